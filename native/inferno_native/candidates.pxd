"""The contract of inferno_native.candidates: a thread's buffers and the stages that narrow one row."""

from libc.stddef cimport size_t
from libc.stdint cimport int16_t, int32_t

from .sampler_params cimport SamplerStatus


cdef extern from "sampler_simd.h" nogil:
    ctypedef struct inferno_passes:
        const char *name
        float (*max)(const float *x, size_t n) noexcept nogil
        size_t (*first_equal)(const float *x, size_t n, float v) noexcept nogil
        double (*block_sums)(const float *x, size_t n, float max, float scale, double *sums) noexcept nogil
        double (*floor_sums)(const float *x, size_t n, float max, const float *floors, double *sums) noexcept nogil
        double (*weights)(const float *x, size_t n, float max, float scale, float *out) noexcept nogil
        size_t (*above)(const float *x, size_t n, float threshold, int32_t *ids, size_t room) noexcept nogil
    const inferno_passes *inferno_passes_at(int level) noexcept
    const size_t INFERNO_BLOCK
    const int INFERNO_FLOORS


cdef struct SamplerScratch:
    int32_t n_vocab
    int32_t *ids  # the candidates, ascending
    float *logits
    float *weights
    float *keys
    int32_t *order
    int16_t *buckets
    float *maxima  # of blocks of the row, by row_max
    int32_t num_maxima
    double *sums  # of blocks of the row
    int32_t *undo_ids
    float *undo_logits
    size_t undo_size
    size_t undo_capacity
    # What is left of the row
    bint is_row  # draw from the whole row, else from the list
    int32_t size
    float max_logit
    float scale
    double total


cdef SamplerScratch *sampler_scratch_new(int32_t n_vocab) noexcept nogil
cdef void sampler_scratch_free(SamplerScratch *scratch) noexcept nogil
cdef int set_logit(SamplerScratch *scratch, float *logits, int32_t token, float value) noexcept nogil
cdef void restore_logits(SamplerScratch *scratch, float *logits) noexcept nogil
cdef void gather(SamplerScratch *scratch, const float *logits, float max_logit) noexcept nogil
cdef void list_above(SamplerScratch *scratch, const float *logits, int32_t n, float threshold) noexcept nogil
cdef void list_at_least(SamplerScratch *scratch, const float *logits, int32_t n, float max_logit,
                         int32_t count) noexcept nogil
cdef float row_max(SamplerScratch *scratch, const float *logits, int32_t n) noexcept nogil
cdef void keep_best(SamplerScratch *scratch, bint by_weight, double target, bint beyond) noexcept nogil
cdef void keep_top_k(SamplerScratch *scratch, const float *logits, int32_t n, float max_logit, int32_t k) noexcept nogil
cdef void keep_typical(SamplerScratch *scratch, float p) noexcept nogil
cdef void keep_top_p(SamplerScratch *scratch, float p, double total) noexcept nogil
cdef void keep_top_p_of_row(SamplerScratch *scratch, const float *logits, int32_t n, float max_logit, float p) noexcept nogil
cdef void keep_min_p(SamplerScratch *scratch, float p) noexcept nogil
cdef void exclude_top(SamplerScratch *scratch, float threshold) noexcept nogil
cdef int exclude_top_of_row(SamplerScratch *scratch, float *logits, int32_t n, float max_logit,
                     float threshold) noexcept nogil
cdef void heat(SamplerScratch *scratch) noexcept nogil
cdef const inferno_passes *current_passes() noexcept nogil

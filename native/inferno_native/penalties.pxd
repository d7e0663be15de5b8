"""The contract of inferno_native.penalties: what a choice has generated, and what that does to single logits."""

from libc.stdint cimport int32_t

from .candidates cimport SamplerScratch
from .sampler_params cimport SamplerParams
from .token_counts cimport Counts


cdef struct Bias:
    int32_t token
    float value  # added to the logit; -inf is a ban


cdef struct Breaker:
    int32_t head
    int32_t tail_start  # into Penalties.tails: the tokens that must follow `head`
    int32_t tail_length


cdef struct Penalties:
    int32_t n_vocab
    float repeat_penalty
    float frequency_penalty
    float presence_penalty
    float dry_multiplier
    float dry_base
    int32_t dry_allowed_length
    bint has_penalties
    bint has_dry
    int32_t *window  # ring of accepted tokens
    int32_t window_capacity
    int32_t window_size
    int32_t window_next
    int32_t repeat_window  # how many of them the penalties see
    int32_t dry_window
    Counts counts
    Counts repeats
    int32_t *recent  # DRY: the window, newest first
    int32_t *matched  # DRY: length of the repeat that ends at each of them
    Bias *biases
    int32_t num_biases
    Breaker *breakers  # sorted by head
    int32_t num_breakers
    int32_t *tails


cdef int penalties_init(Penalties *penalties, const SamplerParams *params, int32_t n_vocab,
                        int32_t max_history) noexcept nogil
cdef void penalties_free(Penalties *penalties) noexcept nogil
cdef int penalties_set_biases(Penalties *penalties, const Bias *biases, int32_t count) noexcept nogil
cdef int penalties_set_breakers(Penalties *penalties, const Breaker *breakers, int32_t count, const int32_t *tails,
                                int32_t num_tails) noexcept nogil
cdef void penalties_accept(Penalties *penalties, int32_t token) noexcept nogil
cdef int penalties_apply(Penalties *penalties, SamplerScratch *scratch, float *logits) noexcept nogil

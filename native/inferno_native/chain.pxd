"""The sampler of one choice: llama.cpp's chain behind a call that needs no GIL and throws nothing."""

from libc.stdint cimport int32_t, uint32_t
from libcpp cimport bool

from .candidates cimport SamplerScratch
from .sampler cimport Sampler as NativeSampler
from .sampler cimport SamplerState as NativeState
from .llama cimport LlamaApi, llama_sampler, llama_token, llama_token_data, llama_vocab


cdef extern from "sampling.h" nogil:
    const int INFERNO_MAX_TOP
    const int INFERNO_SAMPLED
    const int INFERNO_NOTHING_LEFT
    const int INFERNO_SAMPLER_THREW
    const int INFERNO_BAD_LOGITS

    cdef struct inferno_logprobs:
        int32_t num_top
        llama_token top[20]
        float top_logprob[20]
        float max_logit
        float log_sum

    cdef struct inferno_chain_params:
        float temperature
        float top_p
        float min_p
        float typical_p
        int32_t top_k
        float repeat_penalty
        float frequency_penalty
        float presence_penalty
        int32_t repeat_last_n
        float dry_multiplier
        float dry_base
        int32_t dry_allowed_length
        int32_t dry_penalty_last_n
        const char **dry_breakers
        size_t num_dry_breakers
        float xtc_probability
        float xtc_threshold
        int32_t mirostat
        float mirostat_tau
        float mirostat_eta
        uint32_t seed

    bool inferno_log_softmax(const float *, int32_t, inferno_logprobs *) noexcept
    int inferno_argmax(const float *, int32_t, llama_token *) noexcept
    int inferno_sample_chain(const LlamaApi *, llama_sampler *, llama_sampler *, const float *, int32_t,
                             llama_token_data *, llama_token *) noexcept
    int inferno_accept(const LlamaApi *, llama_sampler *, llama_sampler *, llama_token) noexcept
    llama_sampler *inferno_new_grammar(const LlamaApi *, const llama_vocab *, const char *) noexcept
    llama_sampler *inferno_new_chain(const LlamaApi *, const llama_vocab *, int32_t,
                                     const inferno_chain_params *) noexcept


cdef struct Bias:
    llama_token token
    float value


cdef struct SampleState:
    NativeState *native  # our own sampler; NULL where a grammar needs llama.cpp's chain
    llama_sampler *chain
    llama_sampler *grammar  # NULL: none
    Bias *biases
    int32_t num_biases
    int32_t want_top  # -1: no logprobs
    inferno_logprobs logprobs  # of the last sampled row, when wanted
    float token_logprob
    int status  # INFERNO_SAMPLED or why not
    llama_token token


cdef struct RowBuffers:
    llama_token_data *row  # n_vocab entries, for llama.cpp's chain
    SamplerScratch *native


cdef int sample_row(SampleState *state, float *logits, int32_t n_vocab, const llama_token *forbidden,
                    int32_t num_forbidden, RowBuffers *buffers) noexcept nogil
cdef int row_buffers_make(RowBuffers *buffers, int32_t n_vocab) noexcept nogil
cdef void row_buffers_free(RowBuffers *buffers) noexcept nogil


cdef class Sampler:
    cdef SampleState state
    cdef object _vocab
    cdef NativeSampler _native
    cdef int32_t _n_vocab
    cdef readonly int32_t history  # prompt tokens that the penalties want to see
    cdef int accept(self, llama_token token) noexcept nogil

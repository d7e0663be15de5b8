"""The contract of inferno_native.sampler: one choice's sampler over a row of logits, without the GIL, without llama.cpp.

    SamplerScratch *scratch = sampler_scratch_new(n_vocab)         one for each thread that samples
    SamplerState *state = sampler_new(&params, n_vocab, history)   one for each choice; NULL: no memory
    sampler_accept(state, token)                                   prompt tail and generated tokens, oldest first
    status = sampler_sample(state, scratch, logits, forbidden, num_forbidden, &token)
    sampler_logprobs(scratch, logits, n_vocab, token, top, ids, values, &logprob)

`logits` is changed while sampler_sample runs and restored before it returns, so rows are shared by nobody else during a
call. A state is used by one thread at a time; the tokens that it draws depend on its parameters, its seed, what it
accepted, its rows and how many draws it made, never on other states.
"""

from libc.stdint cimport int32_t, uint64_t

from .candidates cimport SamplerScratch
from .penalties cimport Penalties
from .sampler_params cimport SamplerParams


cdef struct SamplerState:
    SamplerParams params
    Penalties penalties
    int32_t n_vocab
    uint64_t key  # of the random numbers: number i is a function of key and i
    uint64_t draws
    float mu  # mirostat's running target


cdef SamplerState *sampler_new(const SamplerParams *params, int32_t n_vocab, int32_t max_history) noexcept nogil
cdef void sampler_free(SamplerState *state) noexcept nogil
cdef void sampler_accept(SamplerState *state, int32_t token) noexcept nogil
cdef int sampler_sample(SamplerState *state, SamplerScratch *scratch, float *logits, const int32_t *forbidden,
                        int32_t num_forbidden, int32_t *token) noexcept nogil
cdef int sampler_logprobs(SamplerScratch *scratch, const float *logits, int32_t n_vocab, int32_t token, int32_t top,
                          int32_t *ids, float *values, float *logprob) noexcept nogil


cdef class Sampler:
    cdef SamplerState *state
    cdef SamplerScratch *_scratch  # for the Python methods only
    cdef readonly int n_vocab
    cdef readonly int history  # prompt tokens that the penalties want to see

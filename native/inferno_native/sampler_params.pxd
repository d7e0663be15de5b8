"""What a sampler is told, and how a call can end: shared by inferno_native.sampler and the stages below it."""

from libc.stdint cimport int32_t, uint64_t


cdef enum SamplerStatus:
    SAMPLER_SAMPLED = 0
    SAMPLER_NOTHING_LEFT = 1  # every token is forbidden
    SAMPLER_NO_MEMORY = 2
    SAMPLER_BAD_LOGITS = 3  # only NaN, or +inf

cdef enum:
    SAMPLER_MAX_TOP = 20


cdef struct SamplerParams:
    float temperature  # <= 0: greedy, after penalties
    int32_t top_k  # <= 0: off
    float top_p  # >= 1: off
    float min_p  # <= 0: off
    float typical_p  # >= 1: off
    float repeat_penalty  # 1: off
    float frequency_penalty
    float presence_penalty
    int32_t repeat_last_n
    float dry_multiplier  # <= 0: off
    float dry_base
    int32_t dry_allowed_length
    int32_t dry_penalty_last_n
    float xtc_probability  # <= 0: off
    float xtc_threshold
    int32_t mirostat  # 1, 2; the truncating stages are off then
    float mirostat_tau
    float mirostat_eta
    uint64_t seed

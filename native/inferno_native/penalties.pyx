"""Changes of single logits that depend on what was generated: biases, repeat/frequency/presence penalties, DRY.

Owns a choice's window of accepted tokens. The values are llama.cpp's; only the tokens concerned are touched, so the
cost follows the window, not the vocabulary. Knows no vocabulary: DRY's sequence breakers come as token ids.
"""

from libc.math cimport log, pow
from libc.stdint cimport int32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from .candidates cimport SamplerScratch, set_logit
from .sampler_params cimport SAMPLER_NO_MEMORY, SAMPLER_SAMPLED, SamplerParams
from .token_counts cimport Counts, counts_clear, counts_free, counts_new, counts_remove, number_of


cdef int penalties_init(Penalties *penalties, const SamplerParams *params, int32_t n_vocab,
                        int32_t max_history) noexcept nogil:
    """Set up zeroed memory; free with penalties_free, also after a failure. Windows are cut to `max_history`."""
    cdef int status = 0
    penalties.n_vocab = n_vocab
    penalties.repeat_penalty = params.repeat_penalty
    penalties.frequency_penalty = params.frequency_penalty
    penalties.presence_penalty = params.presence_penalty
    penalties.dry_multiplier = params.dry_multiplier
    penalties.dry_base = params.dry_base
    penalties.dry_allowed_length = max(params.dry_allowed_length, 0)
    penalties.has_penalties = params.repeat_last_n > 0 and max_history > 0 and (
        params.repeat_penalty != 1.0 or params.frequency_penalty != 0.0 or params.presence_penalty != 0.0)
    penalties.has_dry = (params.dry_multiplier > 0.0 and params.dry_base >= 1.0 and params.dry_penalty_last_n > 0
                         and max_history > 0)
    if penalties.has_penalties:
        penalties.repeat_window = min(params.repeat_last_n, max_history)
        status |= counts_new(&penalties.counts, penalties.repeat_window + 1)
    if penalties.has_dry:
        penalties.dry_window = min(params.dry_penalty_last_n, max_history)
        status |= counts_new(&penalties.repeats, penalties.dry_window + 1)
        penalties.recent = <int32_t *> malloc(<size_t> penalties.dry_window * sizeof(int32_t))
        penalties.matched = <int32_t *> malloc(<size_t> penalties.dry_window * sizeof(int32_t))
        if penalties.recent is NULL or penalties.matched is NULL:
            status = -1
    penalties.window_capacity = max(penalties.repeat_window, penalties.dry_window)
    if penalties.window_capacity > 0:
        penalties.window = <int32_t *> malloc(<size_t> penalties.window_capacity * sizeof(int32_t))
        if penalties.window is NULL:
            status = -1
    return SAMPLER_SAMPLED if status == 0 else SAMPLER_NO_MEMORY


cdef void penalties_free(Penalties *penalties) noexcept nogil:
    counts_free(&penalties.counts)
    counts_free(&penalties.repeats)
    free(penalties.window)
    free(penalties.recent)
    free(penalties.matched)
    free(penalties.biases)
    free(penalties.breakers)
    free(penalties.tails)


cdef int penalties_set_biases(Penalties *penalties, const Bias *biases, int32_t count) noexcept nogil:
    """Copy `count` biases; tokens outside of the vocabulary must have been refused."""
    free(penalties.biases)
    penalties.num_biases = 0
    penalties.biases = <Bias *> malloc((<size_t> count + 1) * sizeof(Bias))
    if penalties.biases is NULL:
        return SAMPLER_NO_MEMORY
    if count > 0:
        memcpy(penalties.biases, biases, <size_t> count * sizeof(Bias))
    penalties.num_biases = count
    return SAMPLER_SAMPLED


cdef int penalties_set_breakers(Penalties *penalties, const Breaker *breakers, int32_t count, const int32_t *tails,
                              int32_t num_tails) noexcept nogil:
    """Copy DRY's sequence breakers, which are sorted by head; tails lie within `tails`."""
    free(penalties.breakers)
    free(penalties.tails)
    penalties.num_breakers = 0
    penalties.breakers = <Breaker *> malloc((<size_t> count + 1) * sizeof(Breaker))
    penalties.tails = <int32_t *> malloc((<size_t> num_tails + 1) * sizeof(int32_t))
    if penalties.breakers is NULL or penalties.tails is NULL:
        return SAMPLER_NO_MEMORY
    if count > 0:
        memcpy(penalties.breakers, breakers, <size_t> count * sizeof(Breaker))
    if num_tails > 0:
        memcpy(penalties.tails, tails, <size_t> num_tails * sizeof(int32_t))
    penalties.num_breakers = count
    return SAMPLER_SAMPLED


cdef void penalties_accept(Penalties *penalties, int32_t token) noexcept nogil:
    """Let the penalties see a token. Costs nothing where there are none."""
    cdef int32_t oldest
    cdef int32_t *number
    if penalties.window_capacity == 0 or token < 0 or token >= penalties.n_vocab:
        return
    if penalties.has_penalties:
        if penalties.window_size >= penalties.repeat_window:
            oldest = _accepted(penalties, penalties.repeat_window - 1)
            number = number_of(&penalties.counts, oldest)
            number[0] -= 1
            if number[0] <= 0:
                counts_remove(&penalties.counts, oldest)
        number_of(&penalties.counts, token)[0] += 1
    penalties.window[penalties.window_next] = token
    penalties.window_next += 1
    if penalties.window_next == penalties.window_capacity:
        penalties.window_next = 0
    if penalties.window_size < penalties.window_capacity:
        penalties.window_size += 1


cdef inline int32_t _accepted(const Penalties *penalties, int32_t back) noexcept nogil:
    """Return the token `back` places before the newest; 0 <= back < window_size."""
    cdef int32_t at = penalties.window_next - 1 - back
    return penalties.window[at if at >= 0 else at + penalties.window_capacity]


cdef int penalties_apply(Penalties *penalties, SamplerScratch *scratch, float *logits) noexcept nogil:
    """Apply biases, then penalties, then DRY, until restore_logits."""
    cdef int32_t i, token
    cdef int status = SAMPLER_SAMPLED
    cdef float value
    for i in range(penalties.num_biases):
        token = penalties.biases[i].token
        status |= set_logit(scratch, logits, token, logits[token] + penalties.biases[i].value)
    if penalties.has_penalties:
        for i in range(penalties.counts.size):
            token = penalties.counts.tokens[i]
            value = logits[token]
            value = value * penalties.repeat_penalty if value <= 0 else value / penalties.repeat_penalty
            value -= (<float> penalties.counts.numbers[i] * penalties.frequency_penalty
                      + penalties.presence_penalty)
            status |= set_logit(scratch, logits, token, value)
    if penalties.has_dry:
        status |= _dry(penalties, scratch, logits)
    return status


cdef int32_t _first_breaker(const Penalties *penalties, int32_t head) noexcept nogil:
    cdef int32_t low = 0, high = penalties.num_breakers, middle
    while low < high:
        middle = low + (high - low) // 2
        if penalties.breakers[middle].head < head:
            low = middle + 1
        else:
            high = middle
    return low


cdef int32_t _repeat_limit(const Penalties *penalties, int32_t size) noexcept nogil:
    """Return how long a repeat may count: up to the newest sequence breaker. `recent` is newest first."""
    cdef int32_t back, at, offset, longest
    cdef const Breaker *breaker
    for back in range(size):
        longest = -1
        at = _first_breaker(penalties, penalties.recent[back])
        while at < penalties.num_breakers and penalties.breakers[at].head == penalties.recent[back]:
            breaker = &penalties.breakers[at]
            if longest < breaker.tail_length <= back:
                offset = 0
                while (offset < breaker.tail_length
                       and penalties.tails[breaker.tail_start + offset] == penalties.recent[back - offset - 1]):
                    offset += 1
                if offset == breaker.tail_length:
                    longest = offset
            at += 1
        if longest >= 0:
            return back - longest
    return size


cdef int _dry(Penalties *penalties, SamplerScratch *scratch, float *logits) noexcept nogil:
    """Penalize tokens that would lengthen a repeat of the newest tokens (DRY), by the length of the longest."""
    cdef int32_t size = min(penalties.window_size, penalties.dry_window)
    cdef int32_t allowed = penalties.dry_allowed_length
    cdef int32_t i, k, limit, length, left = 0, right = 0, at, token, exponent, most = 0
    cdef int status = SAMPLER_SAMPLED
    cdef bint is_breaker
    cdef int32_t *number
    if size <= allowed:
        return status
    for i in range(size):
        penalties.recent[i] = _accepted(penalties, i)
    limit = _repeat_limit(penalties, size)
    if limit < allowed:
        return status
    # matched[k]: how many tokens before place k repeat the newest ones (Z-function of the reversed window).
    penalties.matched[0] = size
    for k in range(1, size):
        length = 0
        if k <= right:
            length = min(penalties.matched[k - left], right - k + 1)
        while k + length < size and penalties.recent[length] == penalties.recent[k + length]:
            length += 1
        if k + length - 1 > right:
            left = k
            right = k + length - 1
        penalties.matched[k] = length
    for k in range(1, size):
        length = min(penalties.matched[k], limit)
        if length >= allowed:
            number = number_of(&penalties.repeats, penalties.recent[k - 1])
            number[0] = max(number[0], length)
    if penalties.dry_base > 1.000001:
        most = <int32_t> (88.7228391 / log(penalties.dry_base))  # the power stays below FLT_MAX
    for i in range(penalties.repeats.size):
        token = penalties.repeats.tokens[i]
        is_breaker = False
        at = _first_breaker(penalties, token)
        while at < penalties.num_breakers and penalties.breakers[at].head == token:
            is_breaker = is_breaker or penalties.breakers[at].tail_length == 0
            at += 1
        if not is_breaker:
            exponent = penalties.repeats.numbers[i] - allowed
            if most > 0:
                exponent = min(exponent, most)
            status |= set_logit(scratch, logits, token, logits[token] - <float> (
                penalties.dry_multiplier * pow(penalties.dry_base, exponent)))
    counts_clear(&penalties.repeats)
    return status

"""A native sampler: one row of logits → one token, with llama.cpp's distribution and without sorting the vocabulary.

Stages and their order are those of llama.cpp's default chain: logit bias, repeat/frequency/presence penalties, DRY,
top-k, typical, top-p, min-p, XTC, temperature, draw; or bias, penalties, DRY, temperature, mirostat. The stages stand in
inferno_native.penalties and inferno_native.candidates. A draw goes by sums of blocks, then into one block.

Random numbers are a function of the seed and the number of draws so far (a counter hashed by SplitMix64's finalizer).
Knows no tokens' meanings, no slots, no grammar: what must not come is given as `forbidden`. Rows may hold -inf; NaN
is never drawn. Runs in the engine's step loop, without the GIL; the class is for tests and for making states.
"""

from libc.float cimport FLT_MAX
from libc.math cimport INFINITY, isfinite, isnan, log, logf, pow
from libc.stdint cimport int32_t, uint64_t
from libc.stdlib cimport calloc, free, qsort
from libc.string cimport memset

from .candidates cimport (
    INFERNO_BLOCK, current_passes, exclude_top, exclude_top_of_row, gather, heat, inferno_passes, keep_best, keep_min_p,
    keep_top_k, keep_top_p, keep_top_p_of_row, keep_typical, list_above, list_at_least, restore_logits, row_max,
    sampler_scratch_free, sampler_scratch_new, set_logit,
)
from .penalties cimport (
    Bias, Breaker, penalties_accept, penalties_apply, penalties_free, penalties_init, penalties_set_biases,
    penalties_set_breakers,
)
from .sampler_params cimport (
    SAMPLER_BAD_LOGITS, SAMPLER_MAX_TOP, SAMPLER_NO_MEMORY, SAMPLER_NOTHING_LEFT, SAMPLER_SAMPLED, SamplerParams,
)

MAX_VOCAB = 1 << 24
MAX_HISTORY = 1 << 20


cdef inline uint64_t _mix(uint64_t z) noexcept nogil:
    # SplitMix64's finalizer (Steele, Lea, Flood 2014)
    z = (z ^ (z >> 30)) * <uint64_t> 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * <uint64_t> 0x94D049BB133111EB
    return z ^ (z >> 31)


cdef inline double _uniform(SamplerState *state) noexcept nogil:
    """Return the state's next number in [0, 1)."""
    state.draws += 1
    return <double> (_mix(state.key + state.draws * <uint64_t> 0x9E3779B97F4A7C15) >> 11) * (1.0 / 9007199254740992.0)


# ---------------------------------------------------------------- life of states


cdef SamplerState *sampler_new(const SamplerParams *params, int32_t n_vocab, int32_t max_history) noexcept nogil:
    """Return a state, or NULL. Windows longer than `max_history` (the context) are cut to it."""
    cdef SamplerState *state = <SamplerState *> calloc(1, sizeof(SamplerState))
    if state is NULL:
        return NULL
    state.params = params[0]
    state.n_vocab = n_vocab
    state.key = _mix(_mix(params.seed + <uint64_t> 0x9E3779B97F4A7C15) ^ <uint64_t> 0x1F83D9ABFB41BD6B)
    state.mu = 2.0 * params.mirostat_tau
    if penalties_init(&state.penalties, params, n_vocab, max_history) != SAMPLER_SAMPLED:
        sampler_free(state)
        return NULL
    return state


cdef void sampler_free(SamplerState *state) noexcept nogil:
    if state is not NULL:
        penalties_free(&state.penalties)
        free(state)


cdef void sampler_accept(SamplerState *state, int32_t token) noexcept nogil:
    """Let the penalties see a token, oldest first. Costs nothing where there are none."""
    penalties_accept(&state.penalties, token)


# ---------------------------------------------------------------- one row


cdef int _prepare(SamplerState *state, SamplerScratch *scratch, float *logits, const int32_t *forbidden,
                  int32_t num_forbidden, int32_t *greedy) noexcept nogil:
    """Apply every stage but the draw. What is left stands in `scratch`; `greedy` is a token if there is no choice."""
    cdef SamplerParams *p = &state.params
    cdef int32_t n = state.n_vocab
    cdef float max_logit
    cdef bint has_xtc = p.xtc_probability > 0 and p.xtc_threshold <= 0.5
    cdef bint has_top_k = 0 < p.top_k < n
    cdef int32_t i
    cdef const inferno_passes *passes = current_passes()
    cdef int status = penalties_apply(&state.penalties, scratch, logits)
    for i in range(num_forbidden):
        if 0 <= forbidden[i] < n:
            status |= set_logit(scratch, logits, forbidden[i], -INFINITY)
    greedy[0] = -1
    scratch.is_row = False
    scratch.size = 0
    if status != SAMPLER_SAMPLED:
        return status
    max_logit = row_max(scratch, logits, n)
    if max_logit == INFINITY:
        return SAMPLER_BAD_LOGITS
    if max_logit == -INFINITY:
        return _nothing_left(logits, n)
    if p.temperature <= 0:
        greedy[0] = <int32_t> passes.first_equal(logits, n, max_logit)
        return status
    scratch.scale = 1.0 / p.temperature
    if p.mirostat == 1 or p.mirostat == 2:
        _mirostat_list(state, scratch, logits, max_logit)
        return status
    if has_top_k:
        keep_top_k(scratch, logits, n, max_logit, p.top_k)
        if p.typical_p < 1:
            keep_typical(scratch, p.typical_p)
        if p.top_p < 1:
            keep_top_p(scratch, p.top_p, scratch.total)
    elif p.typical_p < 1:
        list_above(scratch, logits, n, -FLT_MAX)
        gather(scratch, logits, max_logit)
        keep_typical(scratch, p.typical_p)
        if p.top_p < 1:
            keep_top_p(scratch, p.top_p, scratch.total)
    elif p.top_p < 1:
        keep_top_p_of_row(scratch, logits, n, max_logit, p.top_p)
    elif p.min_p > 0:
        list_above(scratch, logits, n, max_logit + min(logf(p.min_p), 0.0))
        gather(scratch, logits, max_logit)
    else:
        scratch.is_row = True
    if not scratch.is_row and p.min_p > 0:
        keep_min_p(scratch, p.min_p)
    if has_xtc and (scratch.is_row or scratch.size > 1) and _uniform(state) <= p.xtc_probability:
        if scratch.is_row:
            status = exclude_top_of_row(scratch, logits, n, max_logit, p.xtc_threshold)
            max_logit = passes.max(logits, n)
        else:
            exclude_top(scratch, p.xtc_threshold)
    if scratch.is_row:
        scratch.max_logit = max_logit
        scratch.total = passes.block_sums(logits, n, max_logit, scratch.scale, scratch.sums)
    elif p.temperature != 1:
        heat(scratch)
    return status


cdef int _nothing_left(const float *logits, int32_t n) noexcept nogil:
    cdef int32_t i
    for i in range(n):
        if isnan(logits[i]):
            return SAMPLER_BAD_LOGITS
    return SAMPLER_NOTHING_LEFT


cdef int32_t _draw(SamplerState *state, SamplerScratch *scratch, const float *logits) noexcept nogil:
    """Draw from what _prepare left; return the token."""
    cdef double rest = _uniform(state) * scratch.total
    cdef size_t n = state.n_vocab, block = 0, start = 0, count, last_block
    cdef int32_t i, last = 0
    cdef const inferno_passes *passes = current_passes()
    if not scratch.is_row:
        for i in range(scratch.size):
            if scratch.weights[i] > 0:
                last = i
                rest -= scratch.weights[i]
                if rest < 0:
                    break
        return scratch.ids[last]
    last_block = (n - 1) // INFERNO_BLOCK
    while block < last_block and rest >= scratch.sums[block]:
        rest -= scratch.sums[block]
        block += 1
    while block > 0 and scratch.sums[block] <= 0:  # rounding went past the last weight
        block -= 1
        rest = scratch.sums[block]
    start = block * INFERNO_BLOCK
    count = min(n - start, INFERNO_BLOCK)
    passes.weights(logits + start, count, scratch.max_logit, scratch.scale, scratch.weights)
    for i in range(<int32_t> count):
        if scratch.weights[i] > 0:
            last = i
            rest -= scratch.weights[i]
            if rest < 0:
                break
    return <int32_t> start + last


cdef void _mirostat_list(SamplerState *state, SamplerScratch *scratch, float *logits, float max_logit) noexcept nogil:
    """Truncate by mirostat (Basu et al. 2021): the list of what may be drawn, weighed at the temperature."""
    cdef int32_t n = state.n_vocab, i, m, k
    cdef const inferno_passes *passes = current_passes()
    cdef double total = passes.block_sums(logits, n, max_logit, scratch.scale, scratch.sums)
    cdef double spread, surprise, products = 0, squares = 0, step, size
    if state.params.mirostat == 2:
        # -log2 p <= mu, p = weight / total
        spread = (state.mu * 0.6931471805599453 - log(total)) / scratch.scale
        list_above(scratch, logits, n, <float> (max_logit - spread) if spread > 0 else max_logit)
        if spread <= 0:
            scratch.size = 1
            scratch.ids[0] = <int32_t> passes.first_equal(logits, n, max_logit)
    else:
        m = min(100, n)
        list_at_least(scratch, logits, n, max_logit, m)
        for i in range(scratch.size):
            scratch.logits[i] = logits[scratch.ids[i]]
            scratch.keys[i] = -scratch.logits[i]
            scratch.weights[i] = 0
        keep_best(scratch, False, m, False)
        qsort(scratch.keys, scratch.size, sizeof(float), _ascending)
        for i in range(scratch.size - 1):
            step = log((i + 2.0) / (i + 1.0))
            products += step * (<double> scratch.keys[i + 1] - scratch.keys[i]) * scratch.scale
            squares += step * step
        k = 1
        if squares > 0:
            spread = products / squares  # s_hat
            surprise = spread - 1.0
            size = pow((surprise * pow(2.0, state.mu)) / (1.0 - pow(n, -surprise)), 1.0 / spread)
            if isfinite(size) and size > 1:
                k = <int32_t> min(size, <double> n)
        list_at_least(scratch, logits, n, max_logit, k)
        for i in range(scratch.size):
            scratch.logits[i] = logits[scratch.ids[i]]
            scratch.keys[i] = -scratch.logits[i]
            scratch.weights[i] = 0
        keep_best(scratch, False, k, False)
    for i in range(scratch.size):
        scratch.logits[i] = logits[scratch.ids[i]]
    scratch.max_logit = max_logit
    heat(scratch)


cdef int _ascending(const void *a, const void *b) noexcept nogil:
    cdef float x = (<const float *> a)[0], y = (<const float *> b)[0]
    return (x > y) - (x < y)


cdef void _learn(SamplerState *state, const SamplerScratch *scratch, float logit) noexcept nogil:
    """Move mirostat's target by the surprise of the drawn token among those it was drawn from."""
    cdef double surprise = (log(scratch.total) - (<double> logit - scratch.max_logit) * scratch.scale) / 0.6931471805599453
    state.mu -= <float> (state.params.mirostat_eta * (surprise - state.params.mirostat_tau))


cdef int sampler_sample(SamplerState *state, SamplerScratch *scratch, float *logits, const int32_t *forbidden,
                        int32_t num_forbidden, int32_t *token) noexcept nogil:
    """Draw a token from `logits`, n_vocab of them; `forbidden` ids get no chance. The row is the same afterwards."""
    cdef int status
    cdef int32_t greedy
    token[0] = -1
    scratch.undo_size = 0
    if scratch.n_vocab < state.n_vocab or state.n_vocab <= 0:
        return SAMPLER_NO_MEMORY
    status = _prepare(state, scratch, logits, forbidden, num_forbidden, &greedy)
    if status == SAMPLER_SAMPLED:
        token[0] = greedy if greedy >= 0 else _draw(state, scratch, logits)
        if greedy < 0 and state.params.mirostat > 0:
            _learn(state, scratch, logits[token[0]])
    restore_logits(scratch, logits)
    return status


cdef int sampler_logprobs(SamplerScratch *scratch, const float *logits, int32_t n_vocab, int32_t token, int32_t top,
                          int32_t *ids, float *values, float *logprob) noexcept nogil:
    """Log probabilities of the raw row at temperature 1: of `token`, and the `top` best (at most 20) by falling
    probability, ties by id. Returns how many were found, -1 for a hopeless row."""
    cdef const inferno_passes *passes = current_passes()
    cdef float max_logit
    cdef double log_total
    cdef int32_t i, j, best, kept = 0
    if scratch.n_vocab < n_vocab:
        return -1
    max_logit = row_max(scratch, logits, n_vocab)
    if max_logit == -INFINITY or max_logit == INFINITY:
        return -1
    log_total = log(passes.block_sums(logits, n_vocab, max_logit, 1.0, scratch.sums))
    logprob[0] = <float> (<double> logits[token] - max_logit - log_total)
    top = min(top, min(n_vocab, <int32_t> SAMPLER_MAX_TOP))
    if top <= 0:
        return 0
    list_at_least(scratch, logits, n_vocab, max_logit, top)
    for i in range(scratch.size):
        scratch.logits[i] = logits[scratch.ids[i]]
        scratch.keys[i] = -scratch.logits[i]
        scratch.weights[i] = 0
    keep_best(scratch, False, top, False)
    for i in range(scratch.size):  # a few, by insertion
        j = kept
        while j > 0 and logits[ids[j - 1]] < scratch.logits[i]:
            ids[j] = ids[j - 1]
            j -= 1
        ids[j] = scratch.ids[i]
        kept += 1
    for i in range(kept):
        values[i] = <float> (<double> logits[ids[i]] - max_logit - log_total)
    return kept


# ---------------------------------------------------------------- for Python


cdef class Sampler:
    def __init__(self, int n_vocab, *, float temperature=1.0, int32_t top_k=0, float top_p=1.0, float min_p=0.0,
                 float typical_p=1.0, float repeat_penalty=1.0, int32_t repeat_last_n=64, float presence_penalty=0.0,
                 float frequency_penalty=0.0, float dry_multiplier=0.0, float dry_base=1.75,
                 int32_t dry_allowed_length=2, int32_t dry_penalty_last_n=4096, dry_breakers=(),
                 float xtc_probability=0.0, float xtc_threshold=0.1, int32_t mirostat=0, float mirostat_tau=5.0,
                 float mirostat_eta=0.1, logit_bias=None, uint64_t seed=0, int32_t max_history=MAX_HISTORY):
        """`dry_breakers`: sequences of token ids, see inferno.engine.breakers. Ranges are the API's (messages.Sampling)."""
        cdef SamplerParams params
        if self.state is not NULL:
            raise RuntimeError("a sampler is made once")
        if not 0 < n_vocab <= MAX_VOCAB:
            raise ValueError(f"a vocabulary of {n_vocab}; 1 to {MAX_VOCAB} are possible")
        if not 0 <= max_history <= MAX_HISTORY:
            raise ValueError(f"max_history {max_history}; at most {MAX_HISTORY}")
        for value in (temperature, top_p, min_p, typical_p, repeat_penalty, presence_penalty, frequency_penalty,
                      dry_multiplier, dry_base, xtc_probability, xtc_threshold, mirostat_tau, mirostat_eta):
            if not isfinite(<float> value):
                raise ValueError("a parameter is not finite")
        if repeat_penalty <= 0:
            raise ValueError(f"repeat_penalty {repeat_penalty}; it is above 0")
        if mirostat not in (0, 1, 2):
            raise ValueError(f"mirostat {mirostat}; 0, 1 or 2")
        memset(&params, 0, sizeof(params))
        params.temperature = temperature
        params.top_k = top_k
        params.top_p = top_p
        params.min_p = min_p
        params.typical_p = typical_p
        params.repeat_penalty = repeat_penalty
        params.repeat_last_n = repeat_last_n
        params.presence_penalty = presence_penalty
        params.frequency_penalty = frequency_penalty
        params.dry_multiplier = dry_multiplier
        params.dry_base = dry_base
        params.dry_allowed_length = max(dry_allowed_length, 0)
        params.dry_penalty_last_n = dry_penalty_last_n
        params.xtc_probability = xtc_probability
        params.xtc_threshold = xtc_threshold
        params.mirostat = mirostat
        params.mirostat_tau = mirostat_tau
        params.mirostat_eta = mirostat_eta
        params.seed = seed
        self.n_vocab = n_vocab
        self.state = sampler_new(&params, n_vocab, max_history)
        if self.state is NULL:
            raise MemoryError
        self.history = self.state.penalties.window_capacity
        self._set_biases(logit_bias or {})
        self._set_breakers(dry_breakers)

    def __dealloc__(self):
        sampler_free(self.state)
        sampler_scratch_free(self._scratch)

    def _set_biases(self, dict logit_bias):
        cdef Bias *biases = <Bias *> calloc(len(logit_bias) + 1, sizeof(Bias))
        cdef int32_t count = 0
        cdef int status
        if biases is NULL:
            raise MemoryError
        try:
            for token, value in logit_bias.items():
                self._check(token)
                if isnan(<float> value):
                    raise ValueError("logit_bias holds NaN")
                biases[count].token = token
                biases[count].value = -INFINITY if value <= -100.0 else value  # OpenAI: -100 is a ban
                count += 1
            status = penalties_set_biases(&self.state.penalties, biases, count)
        finally:
            free(biases)
        if status != SAMPLER_SAMPLED:
            raise MemoryError

    def _set_breakers(self, breakers):
        ordered = sorted({tuple(int(token) for token in sequence) for sequence in breakers})
        if any(not sequence for sequence in ordered):
            raise ValueError("an empty sequence breaker")
        cdef Py_ssize_t num_tails = sum(len(sequence) - 1 for sequence in ordered)
        cdef Breaker *found = <Breaker *> calloc(len(ordered) + 1, sizeof(Breaker))
        cdef int32_t *tails = <int32_t *> calloc(num_tails + 1, sizeof(int32_t))
        cdef int32_t count = 0, at = 0
        cdef int status
        try:
            if found is NULL or tails is NULL:
                raise MemoryError
            for sequence in ordered:
                for token in sequence:
                    self._check(token)
                found[count].head = sequence[0]
                found[count].tail_start = at
                found[count].tail_length = <int32_t> (len(sequence) - 1)
                for token in sequence[1:]:
                    tails[at] = token
                    at += 1
                count += 1
            status = penalties_set_breakers(&self.state.penalties, found, count, tails, at)
        finally:
            free(found)
            free(tails)
        if status != SAMPLER_SAMPLED:
            raise MemoryError

    def _check(self, token):
        if not 0 <= token < self.n_vocab:
            raise ValueError(f"token {token} is outside of the vocabulary of {self.n_vocab}")

    def _ready(self, Py_ssize_t size):
        if size != self.n_vocab:
            raise ValueError(f"{size} logits; the vocabulary has {self.n_vocab}")
        if self._scratch is NULL:
            self._scratch = sampler_scratch_new(self.n_vocab)
            if self._scratch is NULL:
                raise MemoryError

    @property
    def mu(self):
        """Mirostat's running target."""
        return self.state.mu

    @property
    def draws(self):
        """How many random numbers were used."""
        return self.state.draws

    def accept(self, tokens):
        """Let the penalties see tokens, oldest first."""
        for token in tokens:
            self._check(token)
        for token in tokens:
            sampler_accept(self.state, token)

    def sample(self, float[::1] logits not None, const int32_t[::1] forbidden=None):
        """Return a token. Raises ValueError if nothing is left or the row is no row."""
        cdef int32_t token = -1
        cdef int status
        cdef const int32_t *banned = NULL
        cdef int32_t num_banned = 0
        self._ready(logits.shape[0])
        if forbidden is not None and forbidden.shape[0]:
            banned = &forbidden[0]
            num_banned = <int32_t> forbidden.shape[0]
        with nogil:
            status = sampler_sample(self.state, self._scratch, &logits[0], banned, num_banned, &token)
        self._raise(status)
        return token

    def distribution(self, float[::1] logits not None):
        """Return {token: probability} of what the next draw would choose from; XTC's chance is drawn."""
        cdef int32_t greedy = -1, i
        cdef int status
        self._ready(logits.shape[0])
        self._scratch.undo_size = 0
        status = _prepare(self.state, self._scratch, &logits[0], NULL, 0, &greedy)
        try:
            self._raise(status)
            if greedy >= 0:
                return {greedy: 1.0}
            if not self._scratch.is_row:
                return {self._scratch.ids[i]: self._scratch.weights[i] / self._scratch.total
                        for i in range(self._scratch.size)}
            current_passes().weights(&logits[0], self.n_vocab, self._scratch.max_logit, self._scratch.scale,
                            self._scratch.weights)
            return {i: self._scratch.weights[i] / self._scratch.total
                    for i in range(self.n_vocab) if self._scratch.weights[i] > 0}
        finally:
            restore_logits(self._scratch, &logits[0])

    def logprobs(self, const float[::1] logits not None, int32_t token, int32_t top=0):
        """Return (log probability of `token`, [(id, log probability)] of the best), of the raw row."""
        cdef int32_t ids[SAMPLER_MAX_TOP]
        cdef float values[SAMPLER_MAX_TOP]
        cdef float logprob = 0
        cdef int found
        self._check(token)
        if not 0 <= top <= SAMPLER_MAX_TOP:
            raise ValueError(f"top {top}; at most {SAMPLER_MAX_TOP}")
        self._ready(logits.shape[0])
        with nogil:
            found = sampler_logprobs(self._scratch, &logits[0], self.n_vocab, token, top, ids, values, &logprob)
        if found < 0:
            self._raise(SAMPLER_BAD_LOGITS)
        return logprob, [(ids[i], values[i]) for i in range(found)]

    def _raise(self, int status):
        if status == SAMPLER_NOTHING_LEFT:
            raise ValueError("every token is forbidden")
        if status == SAMPLER_BAD_LOGITS:
            raise ValueError("the logits hold no number, or infinity")
        if status != SAMPLER_SAMPLED:
            raise MemoryError


def bench_rows(Sampler sampler not None, float[:, ::1] rows not None):
    """Sample every row once without the GIL; return the sum of the tokens. For benchmarks."""
    cdef Py_ssize_t i
    cdef long long total = 0
    cdef int32_t token = -1
    cdef int status = SAMPLER_SAMPLED
    sampler._ready(rows.shape[1])
    if rows.shape[0] == 0:
        return 0
    with nogil:
        for i in range(rows.shape[0]):
            status |= sampler_sample(sampler.state, sampler._scratch, &rows[0, 0] + i * rows.shape[1], NULL, 0, &token)
            total += token
    sampler._raise(status)
    return total

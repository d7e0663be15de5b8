# distutils: language = c++
"""One choice's sampler: inferno_native.sampler, or llama.cpp's own chain where a grammar binds the answer. Each has
its own random state, so a seed gives the same tokens whoever else is in the batch. `chain=True` takes llama.cpp's
chain without a grammar too: the oracle that the native sampler is tested beside.

Numbers were range-checked by the message types; ids are checked against the vocabulary here. A grammar is measured
before llama.cpp's recursive parser sees it. Knows nothing of slots, batches or text.
"""

from libc.math cimport INFINITY, isnan
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from .candidates cimport sampler_scratch_free, sampler_scratch_new
from .llama cimport Vocab, api
from .sampler cimport sampler_accept, sampler_logprobs, sampler_sample

MAX_GRAMMAR_BYTES = 65536
MAX_GRAMMAR_DEPTH = 64  # nested parentheses: llama.cpp's parser recurses
MAX_REPETITIONS = 1000
MAX_GRAMMAR_RULES = 2000  # and so does its search for left recursion


class GrammarError(ValueError):
    """The grammar cannot be used: too large, too deep, or not GBNF."""


cdef class Sampler:
    def __init__(self, Vocab vocab not None, *, float temperature=1.0, int32_t top_k=0, float top_p=1.0,
                 float min_p=0.0, float typical_p=1.0, float repeat_penalty=1.0, int32_t repeat_last_n=64,
                 float presence_penalty=0.0, float frequency_penalty=0.0, float dry_multiplier=0.0,
                 float dry_base=1.75, int32_t dry_allowed_length=2, int32_t dry_penalty_last_n=4096,
                 dry_sequence_breakers=(), float xtc_probability=0.0, float xtc_threshold=0.1, int32_t mirostat=0,
                 float mirostat_tau=5.0, float mirostat_eta=0.1, logit_bias=None, grammar=None,
                 unsigned long long seed=0, top_logprobs=None, dry_breakers=(), bint chain=False):
        """`dry_sequence_breakers` are texts for llama.cpp's chain, `dry_breakers` the same as token ids for ours."""
        if self._vocab is not None:
            raise RuntimeError("a sampler is made once")
        self._vocab = vocab
        self._n_vocab = vocab.n_tokens
        self.state.want_top = -1
        if top_logprobs is not None:
            if not 0 <= top_logprobs <= INFERNO_MAX_TOP:
                raise ValueError(f"top_logprobs {top_logprobs}; at most {INFERNO_MAX_TOP}")
            self.state.want_top = top_logprobs
        cdef bint penalties = repeat_last_n > 0 and (
            repeat_penalty != 1.0 or presence_penalty != 0.0 or frequency_penalty != 0.0)
        cdef bint dry = dry_multiplier > 0.0 and dry_penalty_last_n > 0
        self.history = max(repeat_last_n if penalties else 0, dry_penalty_last_n if dry else 0)
        for token in logit_bias or ():
            if not 0 <= token < self._n_vocab:
                raise ValueError(f"logit_bias names token {token}; the vocabulary has {self._n_vocab}")
        if grammar is None and not chain:
            self._native = NativeSampler(
                self._n_vocab, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, typical_p=typical_p,
                repeat_penalty=repeat_penalty, repeat_last_n=repeat_last_n, presence_penalty=presence_penalty,
                frequency_penalty=frequency_penalty, dry_multiplier=dry_multiplier, dry_base=dry_base,
                dry_allowed_length=dry_allowed_length, dry_penalty_last_n=dry_penalty_last_n,
                dry_breakers=dry_breakers, xtc_probability=xtc_probability, xtc_threshold=xtc_threshold,
                mirostat=mirostat, mirostat_tau=mirostat_tau, mirostat_eta=mirostat_eta, logit_bias=logit_bias,
                seed=seed)
            self.state.native = self._native.state
            self.history = self._native.history
            return
        self._set_bias(logit_bias or {})
        if grammar is not None:
            self._set_grammar(vocab, grammar)
        cdef inferno_chain_params params
        memset(&params, 0, sizeof(params))
        breakers = [text.encode("utf-8") for text in dry_sequence_breakers] if dry else []
        if any(b"\0" in text for text in breakers):
            raise ValueError("a sequence breaker with NUL")
        cdef const char **texts = NULL
        cdef size_t i
        if breakers:
            texts = <const char **> malloc(len(breakers) * sizeof(const char *))
            if texts is NULL:
                raise MemoryError
            for i in range(len(breakers)):
                texts[i] = <const char *> (<bytes> breakers[i])
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
        params.dry_allowed_length = dry_allowed_length
        params.dry_penalty_last_n = dry_penalty_last_n
        params.dry_breakers = texts
        params.num_dry_breakers = len(breakers)
        params.xtc_probability = xtc_probability
        params.xtc_threshold = xtc_threshold
        params.mirostat = mirostat
        params.mirostat_tau = mirostat_tau
        params.mirostat_eta = mirostat_eta
        params.seed = <uint32_t> ((seed ^ (seed >> 32)) & 0xFFFFFFFF)
        if params.seed == 0xFFFFFFFF:  # LLAMA_DEFAULT_SEED would draw a random one
            params.seed = 0x7FFFFFFF
        with nogil:
            self.state.chain = inferno_new_chain(&api, vocab.ptr, self._n_vocab, &params)
        free(texts)
        if self.state.chain is NULL:
            raise ValueError("llama.cpp refused the sampling parameters")

    def __dealloc__(self):
        if self.state.chain is not NULL:
            api.llama_sampler_free(self.state.chain)
        if self.state.grammar is not NULL:
            api.llama_sampler_free(self.state.grammar)
        free(self.state.biases)

    def _set_bias(self, dict logit_bias):
        cdef Py_ssize_t i = 0
        if not logit_bias:
            return
        self.state.biases = <Bias *> calloc(len(logit_bias), sizeof(Bias))
        if self.state.biases is NULL:
            raise MemoryError
        for token, value in logit_bias.items():
            if not 0 <= token < self._n_vocab:
                raise ValueError(f"logit_bias names token {token}; the vocabulary has {self._n_vocab}")
            if isnan(<float> value):
                raise ValueError("logit_bias holds NaN")
            self.state.biases[i].token = token
            self.state.biases[i].value = -INFINITY if value <= -100.0 else value  # OpenAI: -100 is a ban
            i += 1
        self.state.num_biases = <int32_t> i

    def _set_grammar(self, Vocab vocab, str text):
        cdef bytes encoded = text.encode("utf-8")
        check_grammar(encoded)
        cdef const char *start = <const char *> encoded
        with nogil:
            self.state.grammar = inferno_new_grammar(&api, vocab.ptr, start)
        if self.state.grammar is NULL:
            raise GrammarError("the grammar is not valid GBNF with a rule `root` and without left recursion")

    cdef int accept(self, llama_token token) noexcept nogil:
        if self.state.native is not NULL:
            sampler_accept(self.state.native, token)
            return INFERNO_SAMPLED
        return inferno_accept(&api, self.state.chain, self.state.grammar, token)

    def see(self, tokens):
        """Tell the penalties of prompt tokens; the grammar does not see them."""
        cdef llama_token token
        if not self.history:
            return
        for token in tokens:
            if not 0 <= token < self._n_vocab:
                raise ValueError(f"token {token} is outside of the vocabulary")
            if self.state.native is not NULL:
                sampler_accept(self.state.native, token)
            else:
                inferno_accept(&api, self.state.chain, NULL, token)

    def draw(self, float[::1] logits not None):
        """Sample from one row and accept the token: the plain way, for tests. Changes `logits` by the biases."""
        if logits.shape[0] != self._n_vocab:
            raise ValueError(f"{logits.shape[0]} logits; the vocabulary has {self._n_vocab}")
        cdef RowBuffers buffers
        cdef int status
        if row_buffers_make(&buffers, self._n_vocab) != 0:
            raise MemoryError
        with nogil:
            status = sample_row(&self.state, &logits[0], self._n_vocab, NULL, 0, &buffers)
            row_buffers_free(&buffers)
            if status == INFERNO_SAMPLED and not api.llama_vocab_is_eog((<Vocab> self._vocab).ptr, self.state.token):
                status = self.accept(self.state.token)
        if status != INFERNO_SAMPLED:
            raise ValueError(f"nothing could be sampled (status {status})")
        return self.state.token


def check_grammar(const unsigned char[::1] text not None):
    """Raise GrammarError when the grammar is larger, deeper or longer than llama.cpp's parser should be given."""
    cdef Py_ssize_t i, size = text.shape[0]
    cdef int depth = 0, deepest = 0, rules = 0
    cdef unsigned char c, quote = 0
    cdef bint comment = False
    if size == 0:
        raise GrammarError("the grammar is empty")
    if size > MAX_GRAMMAR_BYTES:
        raise GrammarError(f"the grammar has {size} bytes; at most {MAX_GRAMMAR_BYTES} are allowed")
    i = 0
    while i < size:
        c = text[i]
        if c == 0:
            raise GrammarError("the grammar holds NUL")
        if comment:
            comment = c != 10 and c != 13
        elif quote:
            if c == 92:  # backslash
                i += 1
            elif c == quote:
                quote = 0
        elif c == 34:  # "
            quote = 34
        elif c == 91:  # [ … ]
            quote = 93
        elif c == 35:  # #
            comment = True
        elif c == 40:
            depth += 1
            deepest = max(deepest, depth)
        elif c == 41:
            depth -= 1
        elif c == 61:  # =
            rules += 1
        elif c == 123:  # {
            i = _check_repetition(text, i)
        i += 1
    if deepest > MAX_GRAMMAR_DEPTH:
        raise GrammarError(f"the grammar nests {deepest} deep; at most {MAX_GRAMMAR_DEPTH} is allowed")
    if rules > MAX_GRAMMAR_RULES:
        raise GrammarError(f"the grammar has {rules} rules; at most {MAX_GRAMMAR_RULES} are allowed")


cdef Py_ssize_t _check_repetition(const unsigned char[::1] text, Py_ssize_t start) except -1:
    """Check {m}, {m,} or {m,n} from its brace and return where it ends.

    llama.cpp's parser never comes to an end when n < m, so only the plain forms with m <= n are let through.
    """
    cdef Py_ssize_t i = start + 1, size = text.shape[0]
    cdef long low = -1, high = -1
    cdef bint comma = False
    while i < size:
        if 48 <= text[i] <= 57:
            if comma:
                high = min(max(high, 0) * 10 + text[i] - 48, 1 << 30)
            else:
                low = min(max(low, 0) * 10 + text[i] - 48, 1 << 30)
        elif text[i] == 44 and not comma and low >= 0:  # ,
            comma = True
        elif text[i] == 125:  # }
            if low < 0 or low > MAX_REPETITIONS or high > MAX_REPETITIONS or (high >= 0 and high < low):
                break
            return i
        elif text[i] != 32:
            break
        i += 1
    raise GrammarError(f"a repetition must be {{m}}, {{m,}} or {{m,n}} with m <= n <= {MAX_REPETITIONS}")


cdef int row_buffers_make(RowBuffers *buffers, int32_t n_vocab) noexcept nogil:
    """Returns 0, or -1 when there is no memory."""
    buffers.row = <llama_token_data *> malloc(<size_t> n_vocab * sizeof(llama_token_data))
    buffers.native = sampler_scratch_new(n_vocab)
    if buffers.row is NULL or buffers.native is NULL:
        row_buffers_free(buffers)
        return -1
    return 0


cdef void row_buffers_free(RowBuffers *buffers) noexcept nogil:
    free(buffers.row)
    if buffers.native is not NULL:
        sampler_scratch_free(buffers.native)
    buffers.row = NULL
    buffers.native = NULL


cdef int sample_row(SampleState *state, float *logits, int32_t n_vocab, const llama_token *forbidden,
                    int32_t num_forbidden, RowBuffers *buffers) noexcept nogil:
    """Choose from one row; `forbidden` ids get no chance. Log probabilities are of the raw row. `accept` is the
    caller's: an end token must not be accepted."""
    cdef int32_t i
    cdef float raw
    state.token = -1
    if state.native is not NULL:
        state.status = sampler_sample(state.native, buffers.native, logits, forbidden, num_forbidden, &state.token)
        if state.status == INFERNO_SAMPLED and state.want_top >= 0:
            state.logprobs.num_top = sampler_logprobs(
                buffers.native, logits, n_vocab, state.token, state.want_top, state.logprobs.top,
                state.logprobs.top_logprob, &state.token_logprob)
            if state.logprobs.num_top < 0:
                state.status = INFERNO_BAD_LOGITS
        return state.status
    if state.want_top >= 0:
        state.logprobs.num_top = state.want_top
        if not inferno_log_softmax(logits, n_vocab, &state.logprobs):
            state.status = INFERNO_BAD_LOGITS
            return state.status
    for i in range(state.num_biases):
        logits[state.biases[i].token] += state.biases[i].value
    for i in range(num_forbidden):
        logits[forbidden[i]] = -INFINITY
    state.status = inferno_sample_chain(&api, state.chain, state.grammar, logits, n_vocab, buffers.row, &state.token)
    if state.status == INFERNO_SAMPLED and state.want_top >= 0:
        raw = logits[state.token]
        for i in range(state.num_biases):
            if state.biases[i].token == state.token:
                raw -= state.biases[i].value
        state.token_logprob = raw - state.logprobs.max_logit - state.logprobs.log_sum
    return state.status

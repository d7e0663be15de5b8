# distutils: language = c++
"""Batch assembly over one llama.cpp context: slots, prefill chunks, decode steps, sampling.

A sequence holds a slot from `admit` to `release`. `prefill` evaluates one chunk of one sequence in a call of its own;
chunks start at fixed boundaries, whatever the load, so the same prompt always meets the same arithmetic:
see chunk_end. `decode` evaluates one row of every running sequence in one call and samples each. Both release the GIL
for the evaluation and the sampling, and return finished text events.

What enters llama.cpp is checked here: ids within the vocabulary, positions within the context. It knows nothing of
sockets, requests' messages, fairness or time; the runner decides what runs when. Step loop thread of the engine only.
"""

from collections import deque

from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memset, strlen

from .chain cimport INFERNO_NOTHING_LEFT, INFERNO_SAMPLED, SampleState, row_buffers_free, row_buffers_make, sample_row
from .llama cimport api, inferno_new_context, inferno_piece, llama_context_params

from .llama import LlamaError, take_log_lines

KV_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "bf16": 30}  # ggml_type
MAX_SLOTS = 255  # LLAMA_MAX_SEQ is 256; one may be the ghost's
MAX_GAP = 4  # idle slots between running ones that are filled with ghost rows: a row costs less than another pass
_LONE_FROM = 250  # tokens before a lone row over a flash attention cache needs company; llama.cpp: from 512 cells on


cdef inline int32_t _next_boundary(int32_t start, int32_t quantum) noexcept nogil:
    """The first tokens in small chunks, for what many prompts have in common is short: 8, 16, 24, 32, then doubling up
    to the quantum, then its multiples."""
    if start >= quantum:
        return start + quantum
    return min(start + 8 if start < 32 else 2 * start, quantum)


cdef inline int32_t _chunk_end(int32_t num_prompt, int32_t start, int32_t quantum) noexcept nogil:
    cdef int32_t end = _next_boundary(start, quantum)
    return num_prompt if num_prompt - end <= 1 else end


cdef int32_t _call_end(int32_t num_prompt, int32_t start, int32_t quantum, int32_t max_chunks) noexcept nogil:
    cdef int32_t end = _chunk_end(num_prompt, start, quantum)
    cdef int32_t limit, further
    if end == num_prompt or quantum % ROW_TILE:
        return end
    limit = _last_boundary(num_prompt, quantum)
    while end < min(limit, ROW_TILE):
        further = _chunk_end(num_prompt, end, quantum)
        if further > limit or further - start >= ROW_TILE:
            break
        end = further
    if start >= ROW_TILE:
        while max_chunks > 1 and end < limit:
            end = _chunk_end(num_prompt, end, quantum)
            max_chunks -= 1
    return end


def call_end(int32_t num_prompt, int32_t start, int32_t quantum, int32_t max_chunks):
    """Return where a call that starts at `start` may end when several chunks at once change no bits.

    llama.cpp's flash attention computes calls of fewer than ROW_TILE rows row by row, others in tiles; within either kind
    a row's bits do not depend on how many others there are. So the first ROW_TILE tokens are always computed in calls
    of fewer rows, all later chunks but the last in calls of at least as many, and the last one, at whose start the
    state is kept, by itself.
    """
    return _call_end(num_prompt, start, quantum, max_chunks)


def next_boundary(int32_t start, int32_t quantum):
    """Return the boundary after the boundary `start`: where prefill chunks may end and stored prefixes be cut."""
    return _next_boundary(start, quantum)


def chunk_end(int32_t num_prompt, int32_t start, int32_t quantum):
    """Return where the chunk that starts at `start` ends. Depends on the prompt's length alone.

    The last chunk holds at least 2 tokens: a lone last token would be computed like a decode row, not like a prefill, and
    give other bits than the same token within a chunk.
    """
    return _chunk_end(num_prompt, start, quantum)


cdef int32_t _last_boundary(int32_t num_prompt, int32_t quantum) noexcept nogil:
    cdef int32_t start = 0, end = _chunk_end(num_prompt, 0, quantum)
    if num_prompt > 4 * quantum:  # where chunks are regular
        start = (num_prompt // quantum - 2) * quantum
        end = _chunk_end(num_prompt, start, quantum)
    while end < num_prompt:
        start = end
        end = _chunk_end(num_prompt, start, quantum)
    return start


def last_boundary(int32_t num_prompt, int32_t quantum):
    """Return the start of the last chunk: the most of this prompt that a stored prefix can replace."""
    return _last_boundary(num_prompt, quantum)


class DecodeError(Exception):
    """llama_decode failed; the sequences in the call cannot go on."""


cdef class Sequence:
    def __init__(self, tokens not None, Sampler sampler not None, *, int32_t max_tokens, int32_t min_tokens=0,
                 bint ignore_eos=False, stops=(), owner=None):
        cdef Py_ssize_t count = len(tokens), i
        if self._tokens is not NULL:
            raise RuntimeError("a sequence is made once")
        if not 1 <= count <= 1 << 24:
            raise ValueError(f"a prompt of {count} tokens")
        if not 1 <= max_tokens <= 1 << 24:
            raise ValueError(f"max_tokens {max_tokens}")
        self._tokens = <llama_token *> malloc((count + max_tokens) * sizeof(llama_token))
        if self._tokens is NULL:
            raise MemoryError
        for i in range(count):
            self._tokens[i] = tokens[i]
        self.num_prompt = <int32_t> count
        self.max_tokens = max_tokens
        self.min_tokens = min_tokens
        self.ignore_eos = ignore_eos
        self.sampler = sampler
        self.text = TextStream(stops)
        self.owner = owner
        self.slot = -1
        self._logprobs = deque()

    def __dealloc__(self):
        free(self._tokens)

    @property
    def num_remaining(self):
        """Prompt tokens that are still to be evaluated."""
        return max(self.num_prompt - self.num_evaluated, 0)

    def generated(self):
        """Return the sampled ids so far."""
        return [self._tokens[i] for i in range(self.num_prompt, self.num_prompt + self.num_generated)]


cdef class Batcher:
    def __cinit__(self, Model model not None, *, int32_t num_slots, int32_t context_size, int32_t quantum,
                  int32_t threads, bint flash_attention=False, bint unified=False, kv_type=None, int32_t ubatch=0,
                  bint swa_full=False, int32_t call_chunks=0):
        if not 1 <= num_slots <= MAX_SLOTS:
            raise ValueError(f"{num_slots} slots; 1 to {MAX_SLOTS} are possible")
        if not 16 <= context_size <= 1 << 24 or <int64_t> context_size * (num_slots + 1) > (1 << 31) - 1:
            raise ValueError(f"a context of {context_size} tokens for each of {num_slots} slots")
        if not 1 <= quantum <= 4096:
            raise ValueError(f"a prefill quantum of {quantum}")
        if model.vocab_only:
            raise ValueError("only the vocabulary of this model is loaded")
        self.model = model
        self.vocab = model.vocab
        self._n_vocab = self.vocab.n_tokens
        self.num_slots = num_slots
        self.context_size = context_size
        self.quantum = quantum
        self.unified = unified
        if not 0 <= call_chunks <= 64:
            raise ValueError(f"{call_chunks} chunks in a call; 0 to 64 are possible")
        self.exact_restore_only = model.is_recurrent or model.is_hybrid or model.n_swa > 0
        # Such a memory can be kept only where a call ended, and may depend on where calls end.
        self.call_chunks = 0 if self.exact_restore_only or quantum % ROW_TILE else call_chunks
        self._fills_gaps = not unified and not model.is_recurrent and not model.is_hybrid
        self.ghost_row = flash_attention and self._fills_gaps
        # With flash attention a lone row needs a ghost beside it, and such a memory takes none in a slot in use.
        self.is_exact_in_company = not unified and (
            not flash_attention or model.is_recurrent or not self.exact_restore_only)
        self._num_sequences = num_slots + (1 if self.ghost_row and num_slots == 1 else 0)
        self._slots = [None] * num_slots
        self._batch_capacity = max(quantum * max(self.call_chunks, 1) + 1, num_slots + 1)
        self._allocate_batch()
        self._open_context(threads, flash_attention, kv_type, ubatch, swa_full)
        self._read_vocab()

    def _allocate_batch(self):
        cdef int32_t n = self._batch_capacity, i
        self._token = <llama_token *> calloc(n, sizeof(llama_token))
        self._pos = <llama_pos *> calloc(n, sizeof(llama_pos))
        self._n_seq_id = <int32_t *> calloc(n, sizeof(int32_t))
        self._seq_ids = <llama_seq_id *> calloc(n, sizeof(llama_seq_id))
        self._seq_id = <llama_seq_id **> calloc(n, sizeof(llama_seq_id *))
        self._logits = <int8_t *> calloc(n, 1)
        if (self._token is NULL or self._pos is NULL or self._n_seq_id is NULL or self._seq_ids is NULL
                or self._seq_id is NULL or self._logits is NULL
                or row_buffers_make(&self._buffers, self._n_vocab) != 0):
            raise MemoryError
        for i in range(n):
            self._n_seq_id[i] = 1
            self._seq_id[i] = &self._seq_ids[i]
        memset(&self._batch, 0, sizeof(self._batch))
        self._batch.token = self._token
        self._batch.pos = self._pos
        self._batch.n_seq_id = self._n_seq_id
        self._batch.seq_id = self._seq_id
        self._batch.logits = self._logits

    def _open_context(self, int32_t threads, bint flash_attention, kv_type, int32_t ubatch, bint swa_full):
        cdef llama_context_params params = api.llama_context_default_params()
        cdef int32_t sequences = self._num_sequences
        cdef char why[256]
        memset(why, 0, sizeof(why))
        params.n_ctx = sequences * ((self.context_size + 255) // 256 * 256)  # llama.cpp rounds to 256 cells
        params.n_seq_max = sequences
        params.n_batch = max(self._batch_capacity, ubatch)
        params.n_ubatch = max(self._batch_capacity, ubatch)
        params.n_outputs_max = 0
        params.n_threads = threads
        params.n_threads_batch = threads
        params.flash_attn_type = 1 if flash_attention else 0
        params.kv_unified = self.unified
        params.swa_full = swa_full
        params.no_perf = True
        if kv_type is not None:
            if kv_type not in KV_TYPES:
                raise ValueError(f"KV cache type {kv_type!r}; known are {', '.join(KV_TYPES)}")
            params.type_k = params.type_v = KV_TYPES[kv_type]
        with nogil:
            self._context = inferno_new_context(&api, self.model.ptr, params, why, sizeof(why))
        if self._context is NULL:
            said = [text for level, text in take_log_lines() if level == "error"]
            reason = why[:strlen(why)].decode("utf-8", "replace") or (said[len(said) - 1] if said else "no reason given")
            raise LlamaError(f"llama.cpp made no context: {reason}")
        self._memory = api.llama_get_memory(self._context)
        given = api.llama_n_ctx_seq(self._context)
        if given < <uint32_t> self.context_size:
            raise LlamaError(f"llama.cpp gives {given} tokens per sequence, {self.context_size} are needed")

    def _read_vocab(self):
        """Copy every token's bytes into one table: pieces are needed for each sampled token."""
        cdef llama_token token
        cdef int size
        cdef int64_t capacity = <int64_t> self._n_vocab * 8 + 256, used = 0
        cdef uint8_t *larger
        self._piece_start = <int64_t *> malloc((self._n_vocab + 1) * sizeof(int64_t))
        self._piece_bytes = <uint8_t *> malloc(capacity)
        self._is_eog = <uint8_t *> calloc(self._n_vocab, 1)
        if self._piece_start is NULL or self._piece_bytes is NULL or self._is_eog is NULL:
            raise MemoryError
        for token in range(self._n_vocab):
            self._piece_start[token] = used
            while True:
                size = inferno_piece(&api, self.vocab.ptr, token, <char *> self._piece_bytes + used,
                                     <int32_t> min(capacity - used, 1 << 20), False)
                if size >= 0 or -size > 1 << 20:
                    break
                capacity = capacity * 2 - size
                larger = <uint8_t *> realloc(self._piece_bytes, capacity)
                if larger is NULL:
                    raise MemoryError
                self._piece_bytes = larger
            used += max(size, 0)
        self._piece_start[self._n_vocab] = used
        eog = [token for token in range(self._n_vocab) if api.llama_vocab_is_eog(self.vocab.ptr, token)]
        banned = [token for token in self.vocab.suppressed() if 0 <= token < self._n_vocab]
        cdef Py_ssize_t i
        self._forbidden = <llama_token *> malloc((len(eog) + len(banned) + 1) * sizeof(llama_token))
        if self._forbidden is NULL:
            raise MemoryError
        self._num_suppressed = <int32_t> len(banned)
        self._num_eog = <int32_t> len(eog)
        for i in range(len(banned)):
            self._forbidden[i] = banned[i]
        for i in range(len(eog)):
            self._forbidden[len(banned) + i] = eog[i]
            self._is_eog[<llama_token> eog[i]] = 1

    def __dealloc__(self):
        if self._context is not NULL:
            api.llama_free(self._context)
        free(self._token)
        free(self._pos)
        free(self._n_seq_id)
        free(self._seq_ids)
        free(self._seq_id)
        free(self._logits)
        row_buffers_free(&self._buffers)
        free(self._forbidden)
        free(self._piece_bytes)
        free(self._piece_start)
        free(self._is_eog)

    # ------------------------------------------------------------ slots

    @property
    def num_free(self):
        return self._slots.count(None)

    @property
    def sequences(self):
        """The admitted sequences, by slot."""
        return [sequence for sequence in self._slots if sequence is not None]

    @property
    def kv_used_tokens(self):
        return sum((<Sequence> sequence).num_evaluated for sequence in self._slots if sequence is not None)

    def check(self, Sequence sequence not None):
        """Raise ValueError when the sequence cannot run here: ids outside the vocabulary, no room to generate."""
        cdef int32_t i
        if sequence.num_prompt >= self.context_size:
            raise ValueError(f"a prompt of {sequence.num_prompt} tokens; a slot holds {self.context_size}")
        for i in range(sequence.num_prompt):
            if not 0 <= sequence._tokens[i] < self._n_vocab:
                raise ValueError(f"token {sequence._tokens[i]} is outside of the vocabulary of {self._n_vocab}")

    def admit(self, Sequence sequence not None):
        """Give the sequence a free slot. Raises ValueError when none is free or it was admitted before."""
        if sequence.state != WAITING:
            raise ValueError("the sequence was admitted before")
        self.check(sequence)
        if sequence.sampler._n_vocab != self._n_vocab:
            raise ValueError("the sampler belongs to another vocabulary")
        cdef int32_t slot = self._slots.index(None)
        self._slots[slot] = sequence
        sequence.slot = slot
        sequence.state = PREFILLING

    def release(self, Sequence sequence not None):
        """Free the sequence's slot; idempotent."""
        if sequence.slot >= 0:
            self._slots[sequence.slot] = None
            with nogil:
                api.llama_memory_seq_rm(self._memory, sequence.slot, -1, -1)
            sequence.slot = -1
        sequence.state = FINISHED

    # ------------------------------------------------------------ prefix state

    def snapshot(self, Sequence sequence not None):
        """Return the state of the sequence's slot as bytes. Holds `num_evaluated` tokens."""
        if sequence.slot < 0:
            raise ValueError("the sequence has no slot")
        cdef size_t size, written
        with nogil:
            size = api.llama_state_seq_get_size(self._context, sequence.slot)
        cdef bytes state = bytes(size)  # fresh and unshared, filled below
        cdef uint8_t *start = <uint8_t *> <char *> state
        with nogil:
            written = api.llama_state_seq_get_data(self._context, start, size, sequence.slot)
        if written != size:
            raise LlamaError("llama.cpp did not give the sequence's state")
        return state

    def restore(self, Sequence sequence not None, bytes state not None, int32_t num_tokens):
        """Fill a fresh slot from a snapshot and keep its first `num_tokens`. False: the sequence starts cold."""
        if sequence.state != PREFILLING or sequence.num_evaluated:
            raise ValueError("only a fresh sequence can be restored")
        if not 0 < num_tokens < sequence.num_prompt:
            raise ValueError(f"{num_tokens} tokens restored of a prompt of {sequence.num_prompt}")
        cdef const uint8_t *start = <const uint8_t *> <char *> state
        cdef size_t size = len(state), taken
        cdef llama_pos last
        cdef bint good
        with nogil:
            taken = api.llama_state_seq_set_data(self._context, start, size, sequence.slot)
            last = api.llama_memory_seq_pos_max(self._memory, sequence.slot)
            good = taken > 0 and last >= num_tokens - 1
            if good and last > num_tokens - 1:
                good = not self.exact_restore_only and api.llama_memory_seq_rm(
                    self._memory, sequence.slot, num_tokens, -1)
            if not good:
                api.llama_memory_seq_rm(self._memory, sequence.slot, -1, -1)
        if good:
            sequence.num_evaluated = sequence.num_cached = num_tokens
        return good

    # ------------------------------------------------------------ work

    cdef void _put(self, int32_t row, llama_token token, llama_pos position, llama_seq_id slot,
                   bint wants_logits) noexcept nogil:
        self._token[row] = token
        self._pos[row] = position
        self._seq_ids[row] = slot
        self._logits[row] = wants_logits

    def prefill(self, Sequence sequence not None, int32_t max_chunks=1):
        """Evaluate the next chunk of a prompt. Returns None, or after the last chunk the first token's event.

        Up to `max_chunks` regular chunks go into one call, and small ones at the beginning, where `call_chunks` allows
        it: fewer calls for the same bits (call_end).
        Raises DecodeError; the sequence must then be released.
        """
        if sequence.state != PREFILLING:
            raise ValueError("the sequence is not prefilling")
        cdef int32_t start = sequence.num_evaluated, i, status
        cdef int32_t end
        if self.call_chunks > 0:
            end = _call_end(sequence.num_prompt, start, self.quantum, min(max_chunks, self.call_chunks))
        else:
            end = _chunk_end(sequence.num_prompt, start, self.quantum)
        cdef bint last = end == sequence.num_prompt
        cdef float *logits = NULL
        if end - start > self._batch_capacity or end > self.context_size:
            raise DecodeError("a chunk does not fit the batch")
        with nogil:
            for i in range(end - start):
                self._put(i, sequence._tokens[start + i], start + i, sequence.slot, False)
            self._logits[end - start - 1] = last
            self._batch.n_tokens = end - start
            status = api.llama_decode(self._context, self._batch)
            if status == 0:
                if last:
                    logits = api.llama_get_logits_ith(self._context, end - start - 1)
                    if logits is not NULL:
                        self._sample(sequence, logits)
                else:
                    api.llama_synchronize(self._context)
        if status != 0 or (last and logits is NULL):
            raise DecodeError(f"llama_decode answered {status} to a prefill chunk of {end - start} tokens at {start}")
        sequence.num_evaluated = end
        self.num_prefilled += end - start
        if not last:
            return None
        sequence.state = DECODING
        return self._after_sample(sequence)

    def decode(self):
        """Evaluate one row of each running sequence and sample it. Returns [(sequence, event)], events may be None.

        Rows of neighbouring slots share one pass over the weights; see _step_slots for the ghosts among them.
        """
        cdef int32_t slot, row = 0, status = 0
        cdef Sequence sequence
        cdef float *logits
        slots = self._step_slots()
        if not slots:
            return []
        running = []
        ghosts = []
        for slot in slots:
            sequence = self._slots[slot] if slot < self.num_slots else None
            if sequence is not None and sequence.state == DECODING:
                if sequence.num_evaluated >= self.context_size:
                    raise DecodeError("a sequence outgrew its slot")
                self._put(row, sequence._tokens[sequence.num_evaluated], sequence.num_evaluated, slot, True)
                running.append((row, sequence))
            else:
                start = 0 if sequence is None else sequence.num_evaluated
                self._put(row, 0, start, slot, False)
                ghosts.append((slot, start))
            row += 1
        self._batch.n_tokens = row
        with nogil:
            status = api.llama_decode(self._context, self._batch)
        for slot, start in ghosts:
            api.llama_memory_seq_rm(self._memory, slot, start, -1)
        if status != 0:
            raise DecodeError(f"llama_decode answered {status} to {row} decode rows")
        for row, sequence in running:
            with nogil:
                logits = api.llama_get_logits_ith(self._context, row)
                if logits is not NULL:
                    self._sample(sequence, logits)
            if logits is NULL:
                raise DecodeError("llama.cpp gave no logits")
        self.num_decoded += len(running)
        self.num_steps += 1
        done = []
        for _, sequence in running:
            sequence.num_evaluated += 1
            done.append((sequence, self._after_sample(sequence)))
        return done

    def _step_slots(self):
        """Return the slots of the next decode call in order: running ones, and some that get a ghost row.

        In streams llama.cpp evaluates rows of consecutive sequences together, and starts another pass over all weights
        at every gap: short gaps are filled. A row alone in its pass is computed in another order by flash attention
        once the cache is long, so it gets company where flash attention is on: the bits must not depend on who else is
        there. A ghost's cell is taken back after the call; in a slot in use it lies behind what is evaluated.
        """
        cdef int32_t slot
        slots = [slot for slot in range(self.num_slots)
                 if self._slots[slot] is not None and (<Sequence> self._slots[slot]).state == DECODING]
        if not slots or not self._fills_gaps:
            return slots
        filled = slots[:1]
        for slot in slots[1:]:
            gap = range(filled[len(filled) - 1] + 1, slot)
            if 0 < len(gap) <= MAX_GAP and all([self._may_take_ghost(idle) for idle in gap]):
                filled.extend(gap)
            filled.append(slot)
        if not self.ghost_row:
            return filled
        taken = set(filled)
        for slot in filled:
            if slot - 1 in taken or slot + 1 in taken or (<Sequence> self._slots[slot]).num_evaluated < _LONE_FROM:
                continue
            for idle in (slot + 1, slot - 1):
                if 0 <= idle < self._num_sequences and self._may_take_ghost(idle):
                    taken.add(idle)
                    break
        return sorted(taken)

    cdef bint _may_take_ghost(self, int32_t slot) except -1:
        """Whether a slot that is not running can hold one more row and give it back without a trace."""
        if slot >= self.num_slots or self._slots[slot] is None:
            return True
        return not self.exact_restore_only and (<Sequence> self._slots[slot]).num_evaluated < self.context_size

    cdef void _sample(self, Sequence sequence, float *logits) noexcept nogil:
        cdef int32_t forbidden = self._num_suppressed
        cdef SampleState *state = &sequence.sampler.state
        if sequence.ignore_eos or sequence.num_generated < sequence.min_tokens:
            forbidden += self._num_eog
        if sample_row(state, logits, self._n_vocab, self._forbidden, forbidden, &self._buffers) == INFERNO_SAMPLED:
            if not self._is_eog[state.token]:
                state.status = sequence.sampler.accept(state.token)

    cdef object _after_sample(self, Sequence sequence):
        """Turn the sampled token into an Output, or None while its text is held back."""
        cdef SampleState *state = &sequence.sampler.state
        cdef llama_token token = state.token
        cdef bint out_of_room
        if state.status == INFERNO_NOTHING_LEFT:  # a grammar that is complete, with the end forbidden
            return self._finish(sequence, "stop")
        if state.status != INFERNO_SAMPLED:
            sequence.state = FINISHED
            return Output(sequence, "", 0, None, None, True)
        sequence._tokens[sequence.num_prompt + sequence.num_generated] = token
        sequence.num_generated += 1
        sequence._num_unreported += 1
        if self._is_eog[token]:
            return self._finish(sequence, "stop")
        cdef int64_t start = self._piece_start[token]
        cdef Py_ssize_t size = <Py_ssize_t> (self._piece_start[token + 1] - start)
        sequence.text.feed(self._piece_bytes + start, size, sequence.num_generated > sequence.min_tokens)
        if state.want_top >= 0:
            sequence._logprobs.append((sequence.text.num_received, token, state.token_logprob,
                                       [(state.logprobs.top[i], state.logprobs.top_logprob[i])
                                        for i in range(state.logprobs.num_top)]))
        if sequence.text.stopped:
            return self._finish(sequence, "stop")
        out_of_room = sequence.num_prompt + sequence.num_generated >= self.context_size
        if out_of_room or sequence.num_generated >= sequence.max_tokens:
            return self._finish(sequence, "length")
        text = sequence.text.take(False)
        if not text and size:
            return None
        return self._output(sequence, text, None)

    cdef object _finish(self, Sequence sequence, str reason):
        sequence.state = FINISHED
        return self._output(sequence, sequence.text.take(True), reason)

    cdef object _output(self, Sequence sequence, str text, object finish):
        logprobs = None
        if sequence.sampler.state.want_top >= 0:
            logprobs = []
            while sequence._logprobs and sequence._logprobs[0][0] <= sequence.text.num_emitted:
                _, token, logprob, top = sequence._logprobs.popleft()
                logprobs.append((token, self.piece(token), logprob, [(self.piece(t), p) for t, p in top]))
        count = sequence._num_unreported
        sequence._num_unreported = 0
        return Output(sequence, text, count, finish, logprobs, False)

    def piece(self, int32_t token):
        """Return the bytes of a token as clients see it."""
        if not 0 <= token < self._n_vocab:
            raise ValueError(f"token {token} is outside of the vocabulary")
        cdef int64_t start = self._piece_start[token]
        return (<char *> self._piece_bytes)[start:self._piece_start[token + 1]]


class Output:
    """What a sampled token brought: text, how many tokens stand behind it, why it ended, log probabilities.

    `failed`: the sampler cannot go on (a grammar that contradicts itself, logits that are no numbers).
    """

    __slots__ = ("failed", "finish", "logprobs", "num_tokens", "sequence", "text")

    def __init__(self, sequence, text, num_tokens, finish, logprobs, failed):
        self.sequence = sequence
        self.text = text
        self.num_tokens = num_tokens
        self.finish = finish
        self.logprobs = logprobs
        self.failed = failed

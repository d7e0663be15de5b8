"""Slots, sequences and the two kinds of llama_decode call: one prefill chunk, or one row per running sequence."""

from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint32_t

from .chain cimport RowBuffers, Sampler
from .llama cimport Model, Vocab, llama_batch, llama_context, llama_memory_i, llama_pos, llama_seq_id, llama_token
from .textstream cimport TextStream


cpdef enum SequenceState:
    WAITING = 0  # no slot
    PREFILLING = 1
    DECODING = 2
    FINISHED = 3


cpdef enum:
    ROW_TILE = 64  # rows from which on llama.cpp's CPU flash attention computes in tiles: its GGML_FA_TILE_Q


cdef class Sequence:
    """One choice of one request: its tokens, its sampler and its text."""

    cdef public object owner  # the runner's record; opaque here
    cdef readonly Sampler sampler
    cdef readonly TextStream text
    cdef llama_token *_tokens  # prompt, then sampled tokens; `num_prompt + max_tokens` entries
    cdef readonly int32_t num_prompt
    cdef readonly int32_t max_tokens
    cdef readonly int32_t min_tokens
    cdef readonly bint ignore_eos
    cdef readonly int32_t num_generated
    cdef readonly int32_t num_evaluated  # tokens whose KV lies in the slot
    cdef readonly int32_t num_cached  # of these, restored instead of computed
    cdef readonly int32_t slot  # -1: none
    cdef readonly int state
    cdef object _logprobs  # held-back (end offset, token, logprob, top) of tokens whose text is not out yet
    cdef int32_t _num_unreported  # sampled tokens since the last event


cdef class Batcher:
    """One llama.cpp context with its slots. One thread at a time may call it."""

    cdef readonly Model model
    cdef readonly Vocab vocab
    cdef llama_context *_context
    cdef llama_memory_i *_memory
    cdef int32_t _n_vocab
    cdef readonly int32_t num_slots
    cdef readonly int32_t context_size  # tokens per slot
    cdef readonly int32_t quantum  # tokens of a prefill chunk, but the first ones; see next_boundary
    cdef readonly int32_t call_chunks  # that a call may evaluate at once without other bits; 0: none, small ones neither
    cdef readonly bint exact_restore_only  # recurrent or sliding-window memory: no cutting at the end
    cdef readonly bint ghost_row  # a lone decode row is accompanied, see _step_slots()
    cdef readonly bint is_exact_in_company  # this memory and attention give the same bits whoever else is running
    cdef bint _fills_gaps
    cdef int32_t _num_sequences  # the slots', and one for the ghost of an only slot
    cdef readonly bint unified
    cdef list _slots  # Sequence or None
    cdef llama_batch _batch
    cdef int32_t _batch_capacity
    cdef llama_token *_token
    cdef llama_pos *_pos
    cdef int32_t *_n_seq_id
    cdef llama_seq_id *_seq_ids
    cdef llama_seq_id **_seq_id
    cdef int8_t *_logits
    cdef RowBuffers _buffers
    cdef llama_token *_eog
    cdef int32_t _num_eog
    cdef llama_token *_suppressed
    cdef int32_t _num_suppressed
    cdef llama_token *_forbidden  # suppressed, then eog
    cdef uint8_t *_piece_bytes
    cdef int64_t *_piece_start  # n_vocab + 1 offsets
    cdef uint8_t *_is_eog
    cdef readonly int64_t num_prefilled
    cdef readonly int64_t num_decoded
    cdef readonly int64_t num_steps

    cdef void _put(self, int32_t row, llama_token token, llama_pos position, llama_seq_id slot, bint wants_logits) noexcept nogil
    cdef void _sample(self, Sequence sequence, float *logits) noexcept nogil
    cdef bint _may_take_ghost(self, int32_t slot) except -1
    cdef object _after_sample(self, Sequence sequence)
    cdef object _finish(self, Sequence sequence, str reason)
    cdef object _output(self, Sequence sequence, str text, object finish)

from collections.abc import Iterable
from enum import IntEnum

from .chain import Sampler
from .llama import Model, Vocab
from .textstream import TextStream

KV_TYPES: dict[str, int]
MAX_SLOTS: int

ROW_TILE: int

class SequenceState(IntEnum):
    WAITING = 0
    PREFILLING = 1
    DECODING = 2
    FINISHED = 3

class DecodeError(Exception): ...

class Sequence:
    owner: object
    sampler: Sampler
    text: TextStream
    num_prompt: int
    max_tokens: int
    min_tokens: int
    ignore_eos: bool
    num_generated: int
    num_evaluated: int
    num_cached: int
    slot: int
    state: int
    def __init__(
        self,
        tokens: Iterable[int],
        sampler: Sampler,
        *,
        max_tokens: int,
        min_tokens: int = 0,
        ignore_eos: bool = False,
        stops: Iterable[bytes] = (),
        owner: object = None,
    ) -> None: ...
    @property
    def num_remaining(self) -> int: ...
    def generated(self) -> list[int]: ...

class Output:
    sequence: Sequence
    text: str
    num_tokens: int
    finish: str | None
    logprobs: list[tuple[int, bytes, float, list[tuple[bytes, float]]]] | None
    failed: bool

class Batcher:
    model: Model
    vocab: Vocab
    num_slots: int
    context_size: int
    quantum: int
    call_chunks: int
    exact_restore_only: bool
    ghost_row: bool
    is_exact_in_company: bool
    unified: bool
    num_prefilled: int
    num_decoded: int
    num_steps: int
    def __init__(
        self,
        model: Model,
        *,
        num_slots: int,
        context_size: int,
        quantum: int,
        threads: int,
        flash_attention: bool = False,
        unified: bool = False,
        kv_type: str | None = None,
        ubatch: int = 0,
        swa_full: bool = False,
        call_chunks: int = 0,
    ) -> None: ...
    @property
    def num_free(self) -> int: ...
    @property
    def sequences(self) -> list[Sequence]: ...
    @property
    def kv_used_tokens(self) -> int: ...
    def check(self, sequence: Sequence) -> None: ...
    def admit(self, sequence: Sequence) -> None: ...
    def release(self, sequence: Sequence) -> None: ...
    def snapshot(self, sequence: Sequence) -> bytes: ...
    def restore(self, sequence: Sequence, state: bytes, num_tokens: int) -> bool: ...
    def prefill(self, sequence: Sequence, max_chunks: int = 1) -> Output | None: ...
    def decode(self) -> list[tuple[Sequence, Output | None]]: ...
    def piece(self, token: int) -> bytes: ...

def next_boundary(start: int, quantum: int) -> int: ...
def call_end(num_prompt: int, start: int, quantum: int, max_chunks: int) -> int: ...
def chunk_end(num_prompt: int, start: int, quantum: int) -> int: ...
def last_boundary(num_prompt: int, quantum: int) -> int: ...

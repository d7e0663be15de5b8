"""What a model will need in memory, computed before it is loaded, and refused with the numbers when it cannot fit.

An estimate from above for weights, KV and compute buffers; llama.cpp's own allocation stays the last word. The prefix
store and the queue keep to what is planned for them here. Knows the arithmetic of a transformer's cache and what a
waiting request holds, not the files. Engine process.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

KV_ELEMENT_BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32,
                    "q4_1": 20 / 32, "q4_0": 18 / 32}  # fmt: skip
RESERVE_BYTES = 128 << 20  # Python, the tokenizer, sockets' buffers, prompts that are not queued yet (16 MiB a worker)
DEFAULT_SLOTS = 8
DEFAULT_CONTEXT = 8192
_MIN_CONTEXT = 512
_TOKEN_BYTES = 4
_CHOICE_BYTES = 4 << 10  # a sequence, its sampler and its text stream, empty
_HISTORY_BYTES = 64  # for each token that penalties and DRY look back at: windows, counts, matches
_GRAMMAR_BYTES = 64  # parsed, for each byte of its text
_REQUEST_BYTES = 16 << 10


class NoMemory(Exception):
    """The configuration does not fit; the text says what it needs and what there is."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the arithmetic needs to know of a model."""

    weight_bytes: int
    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    n_vocab: int
    n_ctx_train: int
    head_dim: int | None = None  # None: n_embd / n_head

    def kv_bytes_per_token(self, kv_type: str | None) -> float:
        width = self.head_dim or self.n_embd // max(self.n_head, 1)
        return 2 * self.n_layer * max(self.n_head_kv, 1) * width * KV_ELEMENT_BYTES[kv_type or "f16"]


@dataclass(frozen=True, slots=True)
class Plan:
    slots: int
    context_size: int
    weights: int
    kv: int
    compute: int
    prefix: int
    queue: int
    available: int

    @property
    def needed(self) -> int:
        return self.weights + self.kv + self.compute + self.prefix + self.queue + RESERVE_BYTES

    def as_dict(self) -> dict[str, int]:
        return {"weights": self.weights, "kv": self.kv, "compute": self.compute, "prefix": self.prefix,
                "queue": self.queue, "needed": self.needed, "available": self.available}  # fmt: skip


def waiting_bytes(num_tokens: int, max_tokens: int, *, num_choices: int = 1, history: int = 0, grammar: int = 0) -> int:
    """Return what a request holds while it waits: its ids, and for each choice a copy with room for the answer."""
    choice = _TOKEN_BYTES * (num_tokens + max_tokens) + _HISTORY_BYTES * history + _GRAMMAR_BYTES * grammar + _CHOICE_BYTES
    return _TOKEN_BYTES * num_tokens + num_choices * choice


def queue_place_bytes(context_size: int) -> int:
    """Return what the plan has for one place in the queue: a request that fills the context, with one choice."""
    return 2 * _TOKEN_BYTES * context_size + _REQUEST_BYTES


def available_bytes() -> int:
    """Return what can be taken without swapping: the machine's free memory, or the control group's where less."""
    free = 1 << 62
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    for limit_path, used_path in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):
            limit = int(Path(limit_path).read_text("ascii"))
            free = min(free, max(limit - int(Path(used_path).read_text("ascii")), 0))
    return free


def make_plan(
    shape: Shape,
    *,
    slots: int | None,
    context_size: int | None,
    kv_type: str | None,
    ubatch: int,
    extra_sequences: int,
    prefix_bytes: int,
    max_queue: int,
    available: int,
    weights_resident: int = 0,
) -> Plan:
    """Choose what is not given and check that all fits. `weights_resident` bytes are in memory already.

    Raises NoMemory with the numbers.
    """
    num_slots = slots or DEFAULT_SLOTS
    context = context_size or min(shape.n_ctx_train or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
    # Activations of one ubatch, and the logits of every row.
    compute = ubatch * (shape.n_vocab + 24 * shape.n_embd) * 4 + ubatch * context * max(shape.n_head, 1) * 4

    def plan(tokens: int) -> Plan:
        kv = int((num_slots + extra_sequences) * tokens * shape.kv_bytes_per_token(kv_type))
        weights = max(shape.weight_bytes - weights_resident, 0)
        queue = max_queue * queue_place_bytes(tokens)
        return Plan(num_slots, tokens, weights, kv, compute, prefix_bytes, queue, available)

    chosen = plan(context)
    if context_size is None:
        while chosen.needed > available and chosen.context_size > _MIN_CONTEXT:
            chosen = plan(max(chosen.context_size // 2, _MIN_CONTEXT))
    if chosen.needed > available:
        raise NoMemory(
            f"weights {_mib(chosen.weights)}, KV {_mib(chosen.kv)} ({num_slots} slots of {chosen.context_size} tokens), "
            f"compute {_mib(compute)}, prefix store {_mib(prefix_bytes)}, queue {_mib(chosen.queue)} ({max_queue} requests) "
            f"and {_mib(RESERVE_BYTES)} for the process need {_mib(chosen.needed)}; {_mib(available)} are available. "
            "Lower slots, context_size, prefix_cache_mb or max_queue."
        )
    return chosen


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.0f} MiB"

"""A short measurement at load: flash attention or not, and how long a prefill chunk takes on this machine.

Both ways are exact in streams (a lone decode row is accompanied where flash attention needs it), so only speed decides:
a decode step of all slots and one prefill chunk, weighted as a typical request in company uses them. The result goes to the
supervisor, which gives it back at the next start of the same model; settings override it. Engine process, before the
first request; uses a small context of its own and frees it.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

from inferno_native import llama
from inferno_native.batching import Batcher, Sequence
from inferno_native.chain import Sampler

from ..messages import EngineSettings
from .memory import Plan

VERSION = 4
QUANTUM = 64
_CHUNKS = 3  # of the prompt behind which a decode step is measured
_TAIL = 2  # tokens after the last boundary: the least that a prefill may hold
_STEPS = 5
_MAX_SLOTS = 8
_BUDGET_SECONDS = 5.0  # for all of it; threads that wait for each other make a busy machine hundreds of times slower
_ASSUMED_CHUNK_SECONDS, _ASSUMED_STEP_SECONDS = 0.05, 0.02  # corrected by what the running engine measures
_log = logging.getLogger("inferno.engine")


@dataclass(frozen=True, slots=True)
class Calibration:
    flash_attention: bool
    quantum: int
    threads: int
    chunk_seconds: float
    step_seconds: float
    source: str  # "measured", "stored", "settings" or "assumed"

    def as_dict(self) -> dict[str, Any]:
        """Return what the next start may reuse; nothing when it was not measured."""
        if self.source == "assumed":
            return {}
        return {
            "version": VERSION,
            "flash_attention": self.flash_attention,
            "quantum": self.quantum,
            "threads": self.threads,
            "chunk_seconds": self.chunk_seconds,
            "step_seconds": self.step_seconds,
        }

    def open(self, model: llama.Model, plan: Plan, settings: EngineSettings, *, call_chunks: int) -> Batcher:
        return _open(
            model,
            plan.slots,
            plan.context_size,
            self.quantum,
            self.threads,
            self.flash_attention,
            settings,
            call_chunks,
        )


class _TooSlow(Exception):
    """The budget is used up: something else keeps the machine busy."""


def calibrate(model: llama.Model, settings: EngineSettings, plan: Plan, threads: int) -> Calibration:
    """Return the stored result where it still applies, else measure, else assume when that takes too long."""
    stored = settings.calibration
    wanted = {"on": True, "off": False}.get(settings.flash_attention)
    if (
        stored.get("version") == VERSION
        and stored.get("threads") == threads
        and (wanted is None or stored.get("flash_attention") is wanted)
        and isinstance(stored.get("quantum"), int)
        and 16 <= stored["quantum"] <= 512
    ):
        return Calibration(
            bool(stored["flash_attention"]), stored["quantum"], threads, _seconds(stored, "chunk_seconds"),
            _seconds(stored, "step_seconds"), "stored",
        )  # fmt: skip
    quantum = QUANTUM
    choices = [wanted] if wanted is not None else [False, True]
    if wanted is None and (model.n_swa > 0 or model.is_hybrid):
        choices = [False]  # a lone row gets no company in a memory that cannot be cut: exact only without
    if settings.kv_cache_type not in (None, "f16", "bf16", "f32") and wanted is None:
        choices = [True]  # a quantized V cache needs flash attention
    results = []
    deadline = time.perf_counter() + _BUDGET_SECONDS
    for flash in choices:
        try:
            chunk, step = _measure(model, min(plan.slots, _MAX_SLOTS), quantum, threads, flash, settings, deadline)
        except _TooSlow:
            _log.warning("calibration: not done after %.0f s, the machine is busy; measured at the next start",
                         _BUDGET_SECONDS)  # fmt: skip
            return Calibration(
                choices[0], quantum, threads, _ASSUMED_CHUNK_SECONDS, _ASSUMED_STEP_SECONDS, "assumed"
            )
        # A typical request: 4 chunks and 64 tokens, each a row of a full step. Without flash attention V lies transposed,
        # which costs more in a large context than in this small one: it must be clearly faster here.
        rows = min(plan.slots, _MAX_SLOTS)
        results.append(((4 * chunk + 64 * step / rows) * (1.0 if flash else 1.15), flash, chunk, step))
        _log.info("calibration: flash attention %s: chunk of %d tokens %.1f ms, step of %d rows %.1f ms",
                  "on" if flash else "off", quantum, chunk * 1e3, rows, step * 1e3)  # fmt: skip
    _, flash, chunk, step = min(results)
    return Calibration(flash, quantum, threads, chunk, step, "measured" if wanted is None else "settings")


def _measure(
    model: llama.Model, slots: int, quantum: int, threads: int, flash: bool, settings: EngineSettings, deadline: float
) -> tuple[float, float]:
    """Return seconds of a prefill chunk and of a decode step of `slots` rows behind it.

    Raises _TooSlow when `deadline` (perf_counter) passed.
    """
    length = _CHUNKS * quantum + _TAIL
    batcher = _open(model, slots, length + 64, quantum, threads, flash, settings)
    num_tokens = batcher.vocab.n_tokens
    chunks = []
    state = b""
    for slot in range(slots):
        tokens = [(1000 + 7919 * (slot + 1) * i) % num_tokens for i in range(length)]
        sequence = Sequence(
            tokens, Sampler(batcher.vocab, temperature=0.0), max_tokens=_STEPS + 8, ignore_eos=True
        )
        batcher.admit(sequence)
        if slot:  # the same cache in every slot costs a copy, not another prefill
            batcher.restore(sequence, state, _CHUNKS * quantum)
        while (start := sequence.num_evaluated) < _CHUNKS * quantum:
            begin = time.perf_counter()
            batcher.prefill(sequence)
            if sequence.num_evaluated - start == quantum:
                chunks.append(time.perf_counter() - begin)
            _check(deadline)
        if not slot:
            state = batcher.snapshot(sequence)
        batcher.prefill(sequence)
    steps = []
    for _ in range(_STEPS):
        begin = time.perf_counter()
        batcher.decode()
        steps.append(time.perf_counter() - begin)
        _check(deadline)
    for sequence in batcher.sequences:
        batcher.release(sequence)
    return min(chunks), min(steps)  # the least disturbed


def _check(deadline: float) -> None:
    if time.perf_counter() > deadline:
        raise _TooSlow


def _open(
    model: llama.Model,
    slots: int,
    context_size: int,
    quantum: int,
    threads: int,
    flash: bool,
    settings: EngineSettings,
    call_chunks: int = 0,
) -> Batcher:
    return Batcher(
        model,
        num_slots=slots,
        context_size=context_size,
        quantum=quantum,
        threads=threads,
        flash_attention=flash,
        unified=settings.kv_layout == "unified",
        kv_type=settings.kv_cache_type,
        call_chunks=call_chunks,
    )


def _seconds(stored: dict[str, Any], name: str) -> float:
    value = stored.get(name)
    return float(value) if isinstance(value, int | float) and 0 < value < 60 else 0.05

"""From EngineSettings to a Batcher that is ready: open and verify, confine, load, plan memory, calibrate, describe.

The order is the point: the file is opened once and verified through that descriptor; libraries, backends and every
module are loaded before the process is confined; only then llama.cpp parses the model, from the same descriptor.
Engine process, before the first request.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import logging
import math
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from inferno_native import llama
from inferno_native.batching import ROW_TILE, Batcher
from inferno_native.gguf import check_block_sizes
from inferno_native.gguf_report import Facts, GgufError

from ..messages import EngineSettings, LoadProgress, ModelInfo, ModelRefused, ModelVerified
from .calibration import Calibration, calibrate
from .costs import CostModel
from .memory import NoMemory, Plan, Shape, available_bytes, make_plan
from .pieces import NO_VOCABULARY
from .prompts import PromptBuilder
from .sandbox import SandboxError, confine
from .source import ModelSource
from .template_spawn import Spawn
from .templates import RENDER_LIMITS, TemplateProcess, TemplateUnavailable
from .verification import Verdict, open_verified

SAMPLER_VERSION = 2  # a change of it may change sampled bytes
CHUNKS_VERSION = 2  # likewise: where prefill chunks begin and end
CALL_CHUNKS = 4  # that prefill may evaluate in one call while nothing decodes, where that changes no bits: on CPUs
_log = logging.getLogger("inferno.engine")
_DIGEST_PIECES, _DIGEST_PIECE_BYTES = 64, 64 << 10
MAX_DESCRIPTORS = 1024  # of a locked engine: front workers and their like
_DEVICE_FILES = ("/dev/nvidia*", "/dev/nvidia-caps/*", "/dev/dri/*", "/dev/kfd")
# Types whose products with a row are the same whatever rows stand beside it; K-quants, IQ and floats have kernels that
# add in another order from some number of rows on (each type is tested alone and in company).
EXACT_TYPES = frozenset({"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4", "TQ1_0", "TQ2_0"})


class Refused(Exception):
    """The model is not served; carries the message for the supervisor."""

    def __init__(self, reason: str, detail: str, offset: int | None = None) -> None:
        super().__init__(detail)
        self.message = ModelRefused(reason=reason, detail=detail, offset=offset)


@dataclass(frozen=True, slots=True)
class Loaded:
    batcher: Batcher
    prompts: PromptBuilder
    template: TemplateProcess | None
    costs: CostModel
    info: ModelInfo
    calibration: dict[str, Any]
    source: ModelSource


def open_and_verify(
    settings: EngineSettings, report: Callable[[Any], None]
) -> tuple[ModelSource, Verdict]:
    """The check that comes before everything else, told with `report`. Raises Refused. The source is the caller's."""
    try:
        source, verdict = open_verified(
            settings.paths,
            sha256=settings.sha256,
            known_files=settings.known_files,
            allow=settings.allow,
            source=settings.source,
            max_bytes=settings.max_model_bytes,
            take_digest=settings.only_verify,
            sandbox=settings.sandbox,
            progress=lambda done, size: report(LoadProgress(stage="verify", fraction=done / max(size, 1))),
        )
    except GgufError as error:
        raise Refused(error.reason, str(error.detail or error.reason), error.offset) from None
    report(LoadProgress(stage="verify", fraction=1.0))
    checks = [digest.xxh3_128 for digest in verdict.digests]
    report(ModelVerified(sha256=list(verdict.sha256), xxh3_128=checks, policy=list(verdict.policy)))
    return source, verdict


def load(
    settings: EngineSettings,
    report: Callable[[Any], None],
    *,
    spawn: Spawn | None = None,
    keep: Sequence[int] = (),
) -> Loaded:
    """Do all of it; `report` sends LoadProgress, `spawn` gives template children. Raises Refused.

    `keep`: descriptors that stay open beside the model's and the template child's when the process is locked.
    """
    source, verdict = open_and_verify(settings, report)
    facts = verdict.facts
    try:
        library = llama.load_library()
        _check_block_sizes()
        template = _start_template(facts, settings, spawn)
        created = _newest(settings.paths)
        # What files say is read before the lock: a copy's bytes are taken from what is free already.
        available = available_bytes() + (source.size_bytes if source.mode == "copy" else 0)
        force = _confine(settings, source, template, library, keep)
        model = _load_weights(source, settings, report)
        source.recheck()
    except SandboxError as error:
        raise Refused("sandbox-unavailable", str(error)) from None
    except TemplateUnavailable as error:
        raise Refused("template-unchecked", error.message) from None
    except (llama.LlamaError, OSError) as error:
        raise Refused("load-failed", str(error)) from None
    except GgufError as error:
        raise Refused(error.reason, str(error.detail or error.reason), error.offset) from None
    if not model.has_decoder or model.is_diffusion:
        raise Refused("load-failed", "the model cannot generate text token by token")
    if model.vocab.vocab_type == NO_VOCABULARY:  # most calls on such a vocabulary abort the process
        raise Refused("load-failed", "the model has no vocabulary to tokenize with")
    quantum = int(settings.calibration.get("quantum", 64))
    shape = Shape(model.size_bytes, model.n_layer, model.n_embd, model.n_head, model.n_head_kv,
                  model.vocab.n_tokens, model.n_ctx_train)  # fmt: skip
    try:
        plan, call_chunks = plan_memory(shape, settings, quantum, available, _call_chunks(library, model, quantum))
        threads = settings.threads or _num_cpus()
        report(LoadProgress(stage="calibrate", fraction=0.0))
        chosen = calibrate(model, settings, plan, threads)
        report(LoadProgress(stage="calibrate", fraction=1.0))
        batcher = chosen.open(model, plan, settings, call_chunks=call_chunks)
    except NoMemory as error:
        raise Refused("no-memory", str(error)) from None
    except (llama.LlamaError, ValueError, MemoryError) as error:
        raise Refused("load-failed", str(error) or "out of memory") from None
    costs = CostModel(settings.target_itl_ms / 1000, chosen.chunk_seconds, chosen.quantum)
    prompts = PromptBuilder(batcher.vocab, template)
    info = _describe(settings, library, model, facts, verdict.sha256, plan, chosen, force, source, created,
                     is_exact=batcher.is_exact_in_company)  # fmt: skip
    return Loaded(batcher, prompts, template, costs, info, chosen.as_dict(), source)


def _num_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _newest(paths: Sequence[str]) -> int:
    """When the latest of the files was changed."""
    return max((max(0, int(Path(path).stat().st_mtime)) for path in paths), default=0)


def _start_template(facts: Facts, settings: EngineSettings, spawn: Spawn | None) -> TemplateProcess | None:
    source = facts.chat_templates.get("default") or next(iter(facts.chat_templates.values()), None)
    if source is None:
        return None
    limits = msgspec.structs.replace(
        RENDER_LIMITS,
        cpu_seconds=max(1, math.ceil(settings.template_timeout_seconds)),
        wall_seconds=max(10.0, 5 * settings.template_timeout_seconds),
        sandbox=settings.sandbox,
    )
    process = TemplateProcess(source, special_texts=facts.special_texts, limits=limits, spawn=spawn)
    process.start()
    return process


def _check_block_sizes() -> None:
    """The verifier judged sizes with its own table: the library that loads the model must have the same."""
    from llama_cpp import llama_cpp as binding

    check_block_sizes(binding._lib)


def _confine(
    settings: EngineSettings,
    source: ModelSource,
    template: TemplateProcess | None,
    library: llama.Library,
    keep: Sequence[int],
) -> dict[str, str]:
    """The one place where this process is locked: after libraries and backends, before the model is parsed.

    Returns what is in force, the template child's part too. Raises SandboxError.
    """
    os.umask(0o077)
    descriptors = [*keep, *source.fds]
    if template is not None:
        descriptors += template.descriptors
    force = confine(
        "engine",
        mode=settings.sandbox,
        # A copy in memory is no file that Landlock knows: it is opened again only through our own descriptor.
        readable=[] if source.mode == "copy" else source.paths,
        devices=_device_files(library) if settings.gpu_layers else [],
        keep_descriptors=descriptors,
        limits={"CORE": 0, "FSIZE": 0, "NOFILE": MAX_DESCRIPTORS},
    )
    threads = _num_threads()
    if (
        threads > 1 and settings.sandbox != "off"
    ):  # Landlock holds for the thread that asked, and those that it starts
        if settings.sandbox == "required":
            raise SandboxError(f'sandbox = "required", but {threads} threads run before the lock')
        force["threads"] = f"unavailable: {threads} run before the lock"
    if template is not None:
        force |= {f"template_{name}": value for name, value in template.sandbox.items()}
    return force


def _num_threads() -> int:
    """Threads of this process, 1 where the system does not say. /proc is closed by now: it is asked through stat."""
    try:
        return max(1, os.stat("/proc/self/task").st_nlink - 2)
    except OSError:
        return 1


def _device_files(library: llama.Library) -> list[str]:
    """GPU device files that exist here, when the library found a GPU."""
    if not any(kind in (1, 2) for _, _, kind, _, _ in library.devices()):
        return []
    return sorted(path for pattern in _DEVICE_FILES for path in glob.glob(pattern))


def _load_weights(
    source: ModelSource, settings: EngineSettings, report: Callable[[Any], None]
) -> llama.Model:
    state = llama.LoadState()
    done = threading.Event()

    def tell() -> None:
        while not done.wait(0.25):
            report(LoadProgress(stage="load", fraction=min(state.fraction, 1.0)))

    teller = threading.Thread(target=tell, name="inferno-load", daemon=True)
    teller.start()
    try:
        try:
            return llama.load_model(source.fds, gpu_layers=settings.gpu_layers, state=state)
        except llama.LlamaError as error:
            if "mmap" not in str(error):
                raise
            return llama.load_model(source.fds, gpu_layers=settings.gpu_layers, mapped=False, state=state)
    finally:
        done.set()
        teller.join()


def _sampled_digest(source: ModelSource) -> str:
    """A name for weights whose digest nobody took: their size and 64 pieces of them, whichever inode holds them."""
    state = hashlib.sha256()
    for fd in source.fds:
        size = os.fstat(fd).st_size
        state.update(size.to_bytes(8, "little"))
        for piece in range(_DIGEST_PIECES):
            state.update(os.pread(fd, _DIGEST_PIECE_BYTES, size * piece // _DIGEST_PIECES))
    return state.hexdigest()


def _call_chunks(library: llama.Library, model: llama.Model, quantum: int) -> int:
    """Return how many chunks a prefill call may hold without changing bits; 0 where that is not certain.

    Other devices than CPUs choose their kernels by the number of rows, even for layers that stay with the CPU; and a
    memory that can't be cut is kept only where a call ended.
    """
    if model.is_recurrent or model.is_hybrid or model.n_swa > 0 or quantum % ROW_TILE:
        return 0
    return CALL_CHUNKS if all(kind == 0 for _, _, kind, _, _ in library.devices()) else 0


def plan_memory(
    shape: Shape, settings: EngineSettings, quantum: int, available: int, call_chunks: int
) -> tuple[Plan, int]:
    """Return the plan, and the chunks of a call that it has memory for: large calls are given up before anything else.

    Raises NoMemory.
    """

    def planned(chunks: int) -> Plan:
        return make_plan(
            shape,
            slots=settings.slots,
            context_size=settings.context_size,
            kv_type=settings.kv_cache_type,
            ubatch=max(quantum * max(chunks, 1) + 1, (settings.slots or 8) + 1),
            extra_sequences=1 if settings.slots == 1 and settings.flash_attention != "off" else 0,
            prefix_bytes=settings.prefix_cache_mb << 20,
            max_queue=settings.max_queue,
            available=available,
            weights_resident=0,
        )

    plan = planned(0)
    if call_chunks:
        with contextlib.suppress(NoMemory):
            large = planned(call_chunks)
            if large.context_size == plan.context_size:
                return large, call_chunks
    return plan, 0


def _describe(
    settings: EngineSettings,
    library: llama.Library,
    model: llama.Model,
    facts: Facts,
    digests: tuple[str, ...],
    plan: Plan,
    chosen: Calibration,
    force: dict[str, str],
    source: ModelSource,
    created: int,
    *,
    is_exact: bool,
) -> ModelInfo:
    devices = library.devices()
    accelerators = [name for name, _, kind, _, _ in devices if kind in (1, 2)]
    on_gpu = bool(accelerators) and settings.gpu_layers != 0
    backend = accelerators[0] if on_gpu else "CPU"
    sha256 = next(iter(digests or settings.sha256), "")
    layout = settings.kv_layout
    kv_type = settings.kv_cache_type or "f16"
    quantization = model.quantization or facts.quantization or ""
    exact = is_exact and not on_gpu and EXACT_TYPES.issuperset(facts.matrix_types)
    identity = "|".join([
        sha256 or _sampled_digest(source), library.version, library.package_version, backend,
        library.system_info(), str(chosen.flash_attention), kv_type, layout, str(chosen.quantum), str(chosen.threads),
        str(SAMPLER_VERSION), str(CHUNKS_VERSION),
    ])  # fmt: skip
    fingerprint = "fp_" + hashlib.sha256(identity.encode()).hexdigest()[:16] + ("" if exact else "-approx")
    return ModelInfo(
        name=settings.name,
        context_size=plan.context_size,
        slots=plan.slots,
        vocab_size=model.vocab.n_tokens,
        fingerprint=fingerprint,
        has_chat_template=bool(facts.chat_templates),
        created=created,
        architecture=facts.architecture or "",
        parameters=model.n_params,
        quantization=quantization,
        size_bytes=source.size_bytes,
        sha256=sha256,
        backend=backend,
        gpu_layers=(model.n_layer if settings.gpu_layers < 0 else min(settings.gpu_layers, model.n_layer))
        if on_gpu
        else 0,
        threads=chosen.threads,
        memory_bytes=plan.as_dict(),
        sandbox=force,
        settings={
            "flash_attention": "on" if chosen.flash_attention else "off",
            "prefill_quantum": str(chosen.quantum),
            "kv_layout": layout,
            "kv_cache_type": kv_type,
            "prefix_cache_mb": str(settings.prefix_cache_mb),
            "source": source.mode,
        },
    )

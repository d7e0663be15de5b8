"""What is not a servable model is refused with a reason; no hang, no crash."""

from __future__ import annotations

import os
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests.inferno.engine.client import EngineFailed, EngineUnderTest
from tests.models import DEMO_SHA256, demo_model

pytestmark = pytest.mark.e2e


def refusal(path: Path, **settings: object) -> tuple[str, str]:
    with pytest.raises(EngineFailed) as failed:
        EngineUnderTest(path, **settings)
    assert failed.value.message is not None
    return failed.value.message.reason, failed.value.message.detail


@pytest.mark.parametrize("kind", ["html", "empty", "cut", "folder", "pipe", "missing", "garbage"])
def test_files_that_are_no_model(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    match kind:
        case "html":
            path.write_text("<!doctype html><title>404</title>")
        case "empty":
            path.touch()
        case "cut":
            path.write_bytes(demo_model().read_bytes()[: 20 << 20])
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "garbage":
            path.write_bytes(b"GGUF\x03\0\0\0" + os.urandom(4096))
    reason, detail = refusal(path)
    assert reason
    assert detail
    assert str(tmp_path) not in detail


def test_a_wrong_digest_is_refused() -> None:
    assert refusal(demo_model(), sha256=["0" * 64])[0] == "checksum-mismatch"


def test_what_does_not_fit_is_refused_with_numbers() -> None:
    reason, detail = refusal(demo_model(), slots=200, context_size=262144)
    assert reason == "no-memory"
    assert "MiB are available" in detail


def measured(**settings: object) -> EngineUnderTest:
    """Start an engine that measured. At a busy moment one assumes instead; the next one tries again."""
    for _ in range(5):
        engine = EngineUnderTest(demo_model(), **settings)
        if engine.ready is not None and engine.ready.calibration:
            return engine
        engine.close()
    raise AssertionError("no engine came to measure")


def test_ready_says_what_is_served() -> None:
    with measured(sha256=[DEMO_SHA256], slots=2, context_size=300) as engine:
        assert engine.ready is not None
        info = engine.ready.model
        assert (info.slots, info.context_size, info.vocab_size, info.quantization) == (2, 300, 49152, "Q4_1")
        assert info.sha256 == DEMO_SHA256
        assert info.has_chat_template
        assert info.fingerprint.startswith("fp_")
        assert not info.fingerprint.endswith("-approx")
        assert {"verify", "load", "calibrate"} >= set(engine.progress)
        again = EngineUnderTest(demo_model(), sha256=[DEMO_SHA256], slots=2, context_size=300,
                                calibration=engine.ready.calibration)  # fmt: skip
        with again:
            assert again.ready is not None
            assert again.ready.model.fingerprint == info.fingerprint
            assert again.ready.calibration == engine.ready.calibration


def test_unified_memory_is_selectable_and_approximate() -> None:
    with EngineUnderTest(demo_model(), slots=2, context_size=256, kv_layout="unified") as engine:
        worker = engine.attach()
        assert worker.model.fingerprint.endswith("-approx")
        assert worker.run("Hello", max_tokens=4, ignore_eos=True).usages[0].completion_tokens == 4


def without_vocabulary(path: Path) -> None:
    """A tiny sound llama whose header says that it has no vocabulary."""
    width, size = 32, 64
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(width)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(size)
    writer.add_tokenizer_model("no_vocab")
    shapes = {"token_embd": (size, width), "output_norm": (width,), "blk.0.attn_norm": (width,), "blk.0.ffn_norm": (width,)}
    shapes |= {f"blk.0.{name}": (width, width) for name in
               ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")}  # fmt: skip
    for name, shape in shapes.items():
        writer.add_tensor(name + ".weight", np.full(shape, 0.01, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_model_without_a_vocabulary_is_refused_before_anything_asks_it(tmp_path: Path) -> None:
    without_vocabulary(tmp_path / "model.gguf")
    assert refusal(tmp_path / "model.gguf") == ("load-failed", "the model has no vocabulary to tokenize with")

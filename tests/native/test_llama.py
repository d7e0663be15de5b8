"""inferno_native.llama: the table of functions, models from descriptors, vocabularies."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import llama_cpp
import pytest
from inferno_native import llama

from tests.models import demo_model


@pytest.fixture(scope="module")
def model() -> Iterator[llama.Model]:
    descriptor = os.open(demo_model(), os.O_RDONLY | os.O_CLOEXEC)
    yield llama.load_model([descriptor])
    os.close(descriptor)


def test_library_is_the_pinned_one() -> None:
    library = llama.load_library()
    assert library is llama.load_library()
    assert library.version.startswith(llama.LLAMA_VERSION)
    assert library.package_version == llama_cpp.__version__
    assert any(kind == 0 for _, _, kind, _, _ in library.devices())


REFUSE = """
import ctypes, sys
from llama_cpp import llama_cpp as binding
{change}
from inferno_native import llama
try:
    llama.load_library()
except llama.LlamaError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "real = binding._lib\nclass Other:\n def __getitem__(self, n):\n"
            "  if n == 'llama_decode': raise AttributeError(n)\n  return real[n]\nbinding._lib = Other()",
            "has no llama_decode",
        ),
        (
            "class S(ctypes.Structure): _fields_ = [('n_ctx', ctypes.c_uint32)]\nbinding.llama_context_params = S",
            "llama_context_params has 4 bytes",
        ),
        (
            "f = list(binding.llama_batch._fields_); f[1], f[2] = f[2], f[1]\n"
            "class S(ctypes.Structure): _fields_ = f\nbinding.llama_batch = S",
            "llama_batch.token lies elsewhere",
        ),
    ],
)
def test_another_library_is_refused(change: str, message: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", REFUSE.format(change=change)],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        env={**os.environ, "PYTHONPATH": "native"},
    )
    assert message in done.stdout


def test_model_facts(model: llama.Model) -> None:
    assert (model.n_layer, model.n_ctx_train, model.n_swa, model.vocab.n_tokens) == (30, 8192, 0, 49152)
    assert model.metadata("general.architecture") == b"llama"
    assert model.metadata("no.such.key") is None
    assert model.quantization == "Q4_1"
    assert b"im_start" in (model.chat_template() or b"")
    assert (model.is_recurrent, model.is_hybrid, model.has_encoder) == (False, False, False)


def test_load_reports_progress() -> None:
    descriptor = os.open(demo_model(), os.O_RDONLY)
    state = llama.LoadState()
    llama.load_model([descriptor], state=state, mapped=False)
    os.fstat(descriptor)  # still the caller's
    os.close(descriptor)
    assert state.fraction == pytest.approx(1.0)


def test_a_cancelled_load_fails() -> None:
    descriptor = os.open(demo_model(), os.O_RDONLY)
    state = llama.LoadState()
    state.cancel()
    with pytest.raises(llama.LlamaError):
        llama.load_model([descriptor], state=state)
    os.close(descriptor)


@pytest.mark.parametrize(
    "content", [b"", b"<html>not a model</html>", b"GGUF", b"GGUF\x03\0\0\0" + b"\xff" * 64]
)
def test_no_model_is_an_error(content: bytes) -> None:
    descriptor = os.memfd_create("model")
    os.write(descriptor, content)
    with pytest.raises(llama.LlamaError, match="refused the model"):
        llama.load_model([descriptor])
    os.close(descriptor)


def test_tokenize_agrees_with_the_binding(model: llama.Model) -> None:
    other = llama_cpp.Llama(str(demo_model()), vocab_only=True, verbose=False)
    vocab = model.vocab
    text = "Hello wörld 😀 <|im_start|> 12345\n\n漢字".encode()
    for parse_special in (False, True):
        found = vocab.tokenize(text, True, parse_special)
        assert list(found) == other.tokenize(text, add_bos=True, special=parse_special)
        assert (1 in found) == parse_special
        assert vocab.detokenize(found, special=True) == text
    assert list(vocab.tokenize(b"", True, False)) == []
    other.close()


def test_tokenize_any_text_round_trips(model: llama.Model) -> None:
    vocab = model.vocab
    for text in ("a" * 5000, "\x00\x01", "\U0010ffff" * 50, " \t\n" * 100, "é" * 3):
        data = text.encode()
        assert vocab.detokenize(vocab.tokenize(data, False, False)) == data


def test_tokenizing_leaves_the_gil_to_others(model: llama.Model) -> None:
    vocab = model.vocab
    text = b"hello world " * 100_000
    turns = 0
    worker = threading.Thread(target=lambda: vocab.tokenize(text, False, False))
    worker.start()
    while worker.is_alive():
        turns += 1
        worker.join(0.001)
    assert turns > 5


def test_ids_outside_of_the_vocabulary_are_refused(model: llama.Model) -> None:
    vocab = model.vocab
    for token in (-1, vocab.n_tokens, 1 << 31, 1 << 40):
        for call in (vocab.piece, vocab.text, vocab.attr, vocab.is_control, vocab.is_eog):
            with pytest.raises(ValueError, match="outside of the vocabulary"):
                call(token)
    with pytest.raises((ValueError, OverflowError)):
        vocab.detokenize([0, vocab.n_tokens])


def test_pieces(model: llama.Model) -> None:
    vocab = model.vocab
    assert vocab.is_control(1)
    assert vocab.is_eog(2)
    assert not vocab.is_eog(100)
    assert vocab.piece(1) == b""
    assert vocab.piece(1, True) == b"<|im_start|>"
    assert vocab.attr(1) & llama.ATTR_CONTROL


def test_log_lines_reach_us(capfd: pytest.CaptureFixture[str]) -> None:
    llama.take_log_lines()
    descriptor = os.memfd_create("model")
    os.write(descriptor, b"nothing that is a model")
    with pytest.raises(llama.LlamaError):
        llama.load_model([descriptor])
    os.close(descriptor)
    descriptor = os.open(demo_model(), os.O_RDONLY)
    llama.load_model([descriptor])
    os.close(descriptor)
    assert any(level == "info" for level, _ in llama.take_log_lines())
    assert capfd.readouterr() == ("", "")

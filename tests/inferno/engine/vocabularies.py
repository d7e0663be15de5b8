"""Vocabularies and templates that the prompt tests use: llama.cpp's own files, a harmony-like one made here."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import gguf
from inferno_native import llama
from jinja2.sandbox import ImmutableSandboxedEnvironment

from inferno.engine.prompts import PromptBuilder
from inferno.errors import EngineError

CONTROL = gguf.TokenType.CONTROL
NORMAL = gguf.TokenType.NORMAL
USER_DEFINED = gguf.TokenType.USER_DEFINED


@functools.cache
def open_vocab(path: Path) -> llama.Vocab:
    """Return the vocabulary of a GGUF file; the file's model stays open as long as the tests run."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        llama.load_library()
        return llama.load_model([descriptor], vocab_only=True).vocab
    finally:
        os.close(descriptor)


def _byte_letters() -> list[str]:
    """Return the letters by which GPT-2's byte-level vocabularies spell the bytes 0 to 255."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(spare)) for byte in range(256)]


HARMONY_MARKERS = ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>"]


def write_bpe_vocab(path: Path, special: list[tuple[str, gguf.TokenType]], *, words: tuple[str, ...] = ("hi",)) -> Path:
    """Write a byte-level BPE vocabulary of all bytes, a few merged words and `special` tokens."""
    letters = _byte_letters()
    tokens = [(letter, NORMAL) for letter in letters]
    merges: list[str] = []
    for word in words:
        for end in range(2, len(word) + 1):
            if (word[:end], NORMAL) not in tokens:
                tokens.append((word[:end], NORMAL))
                merges.append(f"{word[: end - 1]} {word[end - 1]}")
    tokens += special
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("synthetic")
    writer.add_context_length(512)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_head_count(1)
    writer.add_feed_forward_length(32)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_types([kind for _, kind in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(len(tokens) - 1)
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_add_bos_token(False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_harmony_vocab(path: Path) -> Path:
    """A vocabulary of gpt-oss's kind: its turn markers are user-defined, only <|endoftext|> is a control token."""
    special = [*((text, USER_DEFINED) for text in HARMONY_MARKERS), ("hello", USER_DEFINED)]
    return write_bpe_vocab(path, [*special, ("<|endoftext|>", CONTROL)], words=("start", "channel", "user"))


class InProcessTemplate:
    """Renders as the template child does, without the child: for laws over many conversations."""

    def __init__(self, source: str, bos_token: str = "") -> None:
        self._bos_token = bos_token
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, **{"ensure_ascii": False, **options})
        environment.globals["raise_exception"] = self._refuse
        environment.globals["strftime_now"] = lambda form: "26 Jul 2026"
        self.template = source
        self._template = environment.from_string(source)

    @staticmethod
    def _refuse(message: str) -> None:
        raise EngineError("template_failed", message)

    def render(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **flags: bool,
    ) -> str:
        try:
            return self._template.render(
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                bos_token=self._bos_token,
                eos_token="",
                **({"tools": tools} if tools else {}),
                **flags,
            )
        except EngineError:
            raise
        except Exception as error:
            raise EngineError("template_failed", type(error).__name__) from error


def builder(vocab: llama.Vocab, source: str) -> PromptBuilder:
    bos = "" if vocab.bos is None else vocab.text(vocab.bos).decode()
    return PromptBuilder(vocab, InProcessTemplate(source, bos))

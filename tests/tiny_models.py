"""Tiny whole models of chosen architectures: real tensors with random weights, a byte-level vocabulary, a chat template.

The header comes from tests/data/gguf_archs (one sound file per architecture); vocabulary, sizes that depend on it and
weights are made here. A few megabytes each, thousands of tokens per second: what an engine does with a kind of memory
(attention, sliding windows, recurrent states) can be tested without the demo model.
"""

from __future__ import annotations

import functools
import json
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.conftest import DATA

NUM_TOKENS = 288  # 256 bytes, the markers, and unused ones to a multiple of 32
IM_START, IM_END = 256, 257
CONTEXT = 4096
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_HEADS = DATA / "gguf_archs" / "heads.tar.xz"
_OWN = {  # what is said here and not by the head
    "general.name", "general.architecture", "tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.tokens",
    "tokenizer.ggml.token_type", "tokenizer.ggml.token_type_count", "tokenizer.ggml.scores", "tokenizer.ggml.merges",
    "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token", "tokenizer.ggml.add_sep_token",
}  # fmt: skip


@functools.cache
def _heads() -> dict[str, tuple[bytes, int]]:
    with tarfile.open(_HEADS) as archive:
        sizes = json.load(archive.extractfile("./sizes.json"))  # type: ignore[arg-type]
        return {name: (archive.extractfile(f"./{name}.head").read(), size)  # type: ignore[union-attr]
                for name, size in sizes.items()}  # fmt: skip


def write_tiny_model(
    path: Path, architecture: str = "llama-dense", quantization: str = "F32", *, seed: int = 1, **overrides: int
) -> Path:
    """Write a model; `overrides` change keys of the architecture, such as context_length or sliding_window."""
    head, size = _heads()[f"{architecture}.gguf"]
    with tempfile.TemporaryDirectory() as folder:
        sparse = Path(folder) / "head.gguf"
        with sparse.open("wb") as file:
            file.write(head)
            file.truncate(size)
        reader = gguf.GGUFReader(sparse)
        name = str(reader.fields["general.architecture"].contents())
        writer = gguf.GGUFWriter(path, name)
        _copy_fields(reader, writer, name, {"context_length": CONTEXT, **overrides})
        _add_vocabulary(writer)
        rng = np.random.default_rng(seed)
        for tensor in reader.tensors:
            shape = [NUM_TOKENS if int(n) == 128 and tensor.name in ("token_embd.weight", "output.weight") else int(n)
                     for n in reversed(tensor.shape)]  # fmt: skip
            _add_tensor(writer, tensor.name, _weights(rng, tensor.name, shape), quantization)
        del reader
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _copy_fields(reader: gguf.GGUFReader, writer: gguf.GGUFWriter, name: str, overrides: dict[str, int]) -> None:
    replaced = {f"{name}.{key}": value for key, value in overrides.items()} | {f"{name}.vocab_size": NUM_TOKENS}
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in _OWN:
            continue
        value: Any = replaced.get(field.name, field.contents())
        kind = field.types[0]
        if kind == gguf.GGUFValueType.ARRAY:
            if value:
                writer.add_key_value(field.name, value, kind, field.types[-1])
        else:
            writer.add_key_value(field.name, value, kind)


def _add_vocabulary(writer: gguf.GGUFWriter) -> None:
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    tokens = [chr(byte) if byte in plain else chr(next(spare)) for byte in range(256)]
    tokens += ["<|im_start|>", "<|im_end|>"]
    kinds = [gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.CONTROL] * 2
    while len(tokens) < NUM_TOKENS:
        tokens.append(f"<unused{len(tokens)}>")
        kinds.append(gguf.TokenType.UNUSED)
    writer.add_name("tiny")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_bos_token_id(IM_START)
    writer.add_eos_token_id(IM_END)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


def _weights(rng: np.random.Generator, name: str, shape: list[int]) -> np.ndarray:
    if name.endswith("scale") or name == "rope_freqs.weight":
        return np.ones(shape, np.float32)
    noise = rng.standard_normal(shape, np.float32)
    if "norm" in name:
        return 1 + 0.1 * noise
    if name.endswith("ssm_a"):
        return -0.5 - np.abs(noise)  # a decay
    if name == "output.weight":
        noise *= 3.0  # rows of logits in which some tokens stand out
    return (noise / np.sqrt(shape[-1]) if len(shape) > 1 else 0.1 * noise).astype(np.float32)


def _add_tensor(writer: gguf.GGUFWriter, name: str, data: np.ndarray, quantization: str) -> None:
    is_matrix = data.ndim == 2 and name.endswith(".weight") and "norm" not in name and "conv" not in name and "gate_inp" not in name
    kind = gguf.GGMLQuantizationType[quantization]
    if not is_matrix or kind == gguf.GGMLQuantizationType.F32 or data.shape[-1] % 32:
        writer.add_tensor(name, data)
    elif kind == gguf.GGMLQuantizationType.F16:
        writer.add_tensor(name, data.astype(np.float16))
    else:
        writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)

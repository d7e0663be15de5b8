"""Seeded mutations of model files: what tests and the fuzzer feed to the verifier and to its judges.

Knows enough of the format to hit its fields: cuts, flips, fields at 32- and 64-bit places replaced by telling numbers,
pieces copied, removed or inserted, types of values changed. Works on headers; tensor data stays as it is.
"""

from __future__ import annotations

import random
import struct

TELLING = (
    0, 1, 2, 3, 4, 6, 7, 8, 9, 12, 13, 31, 32, 33, 43, 63, 64, 65, 128, 255, 256, 511, 512, 513, 1023, 1024, 1025, 4096, 65535,
    65536, 65537, 1 << 20, (1 << 24) + 1, (1 << 30) + 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 40,
    (1 << 62), (1 << 63) - 64, (1 << 63) - 1, 1 << 63, (1 << 64) - 64, (1 << 64) - 16, (1 << 64) - 1,
)
FLOATS = (float("nan"), float("inf"), -1.0, -0.0, 0.0, 1.0, 1e-6, 3e38)


def mutate(data: bytes, rng: random.Random, other: bytes = b"") -> bytes:
    """One to three changes."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = _change(data, rng, other)
    return data


def _change(data: bytes, rng: random.Random, other: bytes) -> bytes:
    if len(data) < 2:
        return data + b"\0" * rng.randrange(1, 9)
    at = _place(data, rng)
    kind = rng.randrange(10)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1:]
    if kind == 2:
        return data[:at] + bytes([rng.randrange(256)]) + data[at + 1:]
    if kind == 3:
        return _replace(data, at, struct.pack("<I", rng.choice(TELLING) & 0xFFFFFFFF))
    if kind == 4:
        return _replace(data, at, struct.pack("<Q", rng.choice(TELLING)))
    if kind == 5:
        return _replace(data, at, struct.pack("<f", rng.choice(FLOATS)))
    length = rng.choice((1, 2, 4, 8, 12, 16, 32, 41))
    if kind == 6:
        return data[:at] + data[at + length:]
    if kind == 7:
        source = rng.randrange(len(data))
        return data[:at] + data[source:source + length] + data[at:]
    if kind == 8:
        old = struct.unpack("<Q", data[at:at + 8].ljust(8, b"\0"))[0]
        return _replace(data, at, struct.pack("<Q", (old + rng.choice((-1, 1, 8, 32, -32))) % (1 << 64)))
    source = rng.randrange(len(other) or len(data))
    return _replace(data, at, (other or data)[source:source + length])


def _place(data: bytes, rng: random.Random) -> int:
    """Anywhere in the first 64 KiB; half of the time right at or behind a key, a type or a length."""
    limit = min(len(data), 1 << 16)
    if rng.random() < 0.5:
        starts = [i for i in (data.find(word, rng.randrange(limit)) for word in WORDS) if 0 <= i < limit]
        if starts:
            place = rng.choice(starts) + rng.choice((-8, -8, 0, rng.randrange(64)))
            return min(max(place, 0), len(data) - 1)
    return rng.randrange(limit)


WORDS = (
    b"general.", b"tokenizer.", b"llama.", b"attention.", b"rope.", b"expert", b"token_type", b"split.", b".weight",
    b"blk.", b"token_id", b"_count", b"_length", b"scores", b"merges", b"GGUF",
)


def _replace(data: bytes, at: int, piece: bytes) -> bytes:
    return data[:at] + piece + data[at + len(piece):]

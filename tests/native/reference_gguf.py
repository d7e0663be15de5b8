"""The model verifier once more, slow and plain: the twin that the compiled one is compared with.

One function per part of the file, Python integers (which do not overflow), sets and dictionaries instead of tables.
`judge(data)` returns "ok" or the reason. Faults are looked for in the order of the compiled passes, so that files with
several faults get the same reason.
"""

from __future__ import annotations

import re
import struct
from typing import Any

KIB, MIB = 1 << 10, 1 << 20
U8, I8, U16, I16, U32, I32, F32, BOOL, STR, ARR, U64, I64, F64 = range(13)
SIZES = {U8: 1, I8: 1, U16: 2, I16: 2, U32: 4, I32: 4, F32: 4, BOOL: 1, U64: 8, I64: 8, F64: 8}
BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66), 17: (256, 74),
    18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2),
    26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
    40: (64, 36), 41: (128, 18), 42: (64, 18),
}
RAW_KEYS = (b"tokenizer.ggml.tokens", b"tokenizer.ggml.merges")
RECURRENT = {b"mamba", b"mamba2", b"rwkv6", b"rwkv6qwen2", b"rwkv7", b"arwkv7"}
SPECIAL = ["bos", "eos", "eot", "eom", "unknown", "seperator", "padding", "cls", "mask", "fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep", "prefix", "suffix", "middle"]
FAMILIES = {
    b"llama": "llama", b"gpt2": "bpe", b"hybriddna": "bpe", b"whitespace": "bpe", b"gemma4": "gemma4", b"bert": "bert",
    b"t5": "t5", b"rwkv": "rwkv", b"plamo2": "plamo2", b"test": "test", b"none": "none", b"no_vocab": "none",
}
BOS_PRE = {
    b"llama3", b"llama-v3", b"llama-bpe", b"falcon3", b"falcon-h1", b"pixtral", b"midm-2.0", b"lfm2", b"jina-v5-nano",
    b"tekken", b"chameleon",
}


class Fault(Exception):
    """args[0] is the reason."""


class Value:
    """One value: its type, for arrays the type of the elements, and the Python value."""

    def __init__(self, kind: int, element: int, value: Any) -> None:
        self.kind, self.element, self.value = kind, element, value

    def is_(self, kind: int, element: int | None = None) -> bool:
        return self.kind == kind and (element is None or self.element == element)


class Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.pos = data, 0

    @property
    def rest(self) -> int:
        return len(self.data) - self.pos

    def take(self, count: int, reason: str) -> bytes:
        if count > self.rest:
            raise Fault(reason)
        self.pos += count
        return self.data[self.pos - count:self.pos]

    def number(self, form: str, reason: str) -> Any:
        return struct.unpack("<" + form, self.take(struct.calcsize(form), reason))[0]

    def string(self, reason: str) -> bytes:
        length = self.number("Q", reason)
        if length > 1 << 30:
            raise Fault("string-length-overflow")
        return self.take(length, "string-length-past-eof")


def is_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def check_text(text: bytes, raw: bool) -> None:
    if b"\0" in text:
        raise Fault("string-has-nul")
    if not raw and not is_utf8(text):
        raise Fault("string-not-utf8")


def read_value(reader: Reader, raw: bool) -> Value:
    kind = reader.number("I", "truncated-kv")
    if kind > F64:
        raise Fault("value-type-invalid")
    if kind == STR:
        text = reader.string("truncated-kv")
        check_text(text, False)
        return Value(STR, STR, text)
    if kind != ARR:
        return Value(kind, kind, scalar(kind, reader.take(SIZES[kind], "truncated-kv")))
    if reader.rest < 12:
        raise Fault("truncated-kv")
    element = reader.number("I", "truncated-kv")
    count = reader.number("Q", "truncated-kv")
    if element == ARR:
        raise Fault("nested-array-depth")
    if element > F64:
        raise Fault("array-type-invalid")
    if count > 1 << 30:
        raise Fault("array-length-overflow")
    if count * SIZES.get(element, 8) > reader.rest:
        raise Fault("array-length-past-eof")
    items: list[Any] = []
    for _ in range(count):
        if element == STR:
            text = reader.string("truncated-kv")
            check_text(text, raw)
            items.append(text)
        else:
            items.append(scalar(element, reader.take(SIZES[element], "array-length-past-eof")))
    return Value(ARR, element, items)


def scalar(kind: int, data: bytes) -> Any:
    if kind == BOOL:
        if data[0] > 1:
            raise Fault("bool-not-0-1")
        return data[0] == 1
    return struct.unpack("<" + {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", U64: "Q", I64: "q",
                                F64: "d"}[kind], data)[0]


class Container:
    """Header, keys, tensor table and placement of one file."""

    def __init__(self, data: bytes) -> None:
        self.reader = Reader(data)
        self.keys: dict[bytes, Value] = {}
        self.tensors: list[tuple[bytes, list[int], int, int]] = []
        if not data:
            raise Fault("zero-length-file")
        num_tensors, num_keys = self.header(data)
        for _ in range(num_keys):
            self.key()
        self.alignment = self.read_alignment()
        self.sum = self.end = 0
        for _ in range(num_tensors):
            self.tensor()
        self.placement(len(data))

    def header(self, data: bytes) -> tuple[int, int]:
        if data[:4] != b"GGUF"[: len(data)]:
            raise Fault("bad-magic")
        if len(data) < 24:
            raise Fault("truncated-header")
        version, num_tensors, num_keys = struct.unpack("<IQQ", data[4:24])
        if version and version & 0xFFFF == 0:
            raise Fault("big-endian")
        if version not in (2, 3):
            raise Fault("unsupported-version")
        if num_tensors > (2**63 - 1) // 400:
            raise Fault("tensor-count-overflow")
        if num_keys > (2**63 - 1) // 104:
            raise Fault("kv-count-overflow")
        self.reader.pos = 24
        if num_keys * 14 > self.reader.rest:
            raise Fault("kv-count-past-eof")
        if num_tensors * 25 > self.reader.rest:
            raise Fault("tensor-count-past-eof")
        if num_keys > 1 << 21 or num_tensors > 1 << 21:
            raise Fault("metadata-too-large")
        return num_tensors, num_keys

    def key(self) -> None:
        name = self.reader.string("truncated-kv")
        if not name:
            raise Fault("key-empty")
        if len(name) > 65535:
            raise Fault("key-too-long")
        if b"\0" in name:
            raise Fault("key-has-nul")
        if not is_utf8(name):
            raise Fault("key-not-utf8")
        if name in self.keys:
            raise Fault("duplicate-key")
        self.keys[name] = read_value(self.reader, name in RAW_KEYS)

    def read_alignment(self) -> int:
        value = self.keys.get(b"general.alignment", Value(U32, U32, 32))
        if not value.is_(U32):
            raise Fault("alignment-wrong-type")
        if value.value.bit_count() != 1:
            raise Fault("alignment-not-power-of-two")
        if value.value % 8:
            raise Fault("alignment-not-multiple-of-8")
        if value.value > 65536:
            raise Fault("alignment-too-large")
        return int(value.value)

    def tensor(self) -> None:
        reader = self.reader
        cut = "truncated-tensor-info"
        name = reader.string(cut)
        if not name:
            raise Fault("tensor-name-empty")
        if len(name) > 63:
            raise Fault("tensor-name-too-long")
        if b"\0" in name:
            raise Fault("tensor-name-has-nul")
        if not is_utf8(name):
            raise Fault("tensor-name-not-utf8")
        if name in {tensor[0] for tensor in self.tensors}:
            raise Fault("duplicate-tensor")
        num_dims = reader.number("I", cut)
        if num_dims > 4:
            raise Fault("tensor-ndims-invalid")
        if reader.rest < 8 * num_dims + 12:
            raise Fault(cut)
        dims = [reader.number("Q", cut) for _ in range(num_dims)]
        product = 1
        for dim in dims:
            if dim >= 2**63:
                raise Fault("tensor-dim-negative")
            product *= dim or 1
            if product >= 2**63:
                raise Fault("tensor-dims-overflow")
        kind = reader.number("I", cut)
        if kind > 42:
            raise Fault("tensor-type-invalid")
        if kind not in BLOCKS:
            raise Fault("tensor-type-removed")
        elements, size = BLOCKS[kind]
        row = dims[0] if dims else 1
        if row % elements:
            raise Fault("tensor-row-not-block-multiple")
        count = 0 if 0 in dims else product // elements * size
        if row * size >= 2**64 or count >= 2**64:
            raise Fault("tensor-bytes-overflow")
        offset = reader.number("Q", cut)
        expected = self.sum
        padded = count + -count % self.alignment
        if count + self.alignment - 1 >= 2**64 or expected + padded >= 2**64:
            raise Fault("tensor-bytes-overflow")
        self.end, self.sum = expected + count, expected + padded
        if offset != expected:
            if offset > len(reader.data):
                raise Fault("tensor-past-eof")
            if offset % self.alignment:
                raise Fault("tensor-offset-misaligned")
            raise Fault("tensor-offset-gap" if offset > expected else "tensor-overlap")
        self.tensors.append((name, dims, kind, offset))

    def placement(self, size: int) -> None:
        head = self.reader.pos
        self.start = head + -head % self.alignment
        if not self.tensors:
            if size > self.start:
                raise Fault("trailing-data")
            return
        if self.start > size:
            raise Fault("data-section-past-eof")
        if self.start + self.sum >= 2**64:
            raise Fault("tensor-bytes-overflow")
        if self.start + self.end > size:
            raise Fault("tensor-past-eof")
        if size > self.start + self.sum:
            raise Fault("trailing-data")


class Model:
    """What the keys of a container say, and its tensors."""

    def __init__(self, container: Container) -> None:
        self.c, self.keys = container, container.keys
        self.split()
        self.architecture()
        self.sizes()
        experts = self.experts()
        self.heads(experts)
        self.floats()
        Vocabulary(self)
        self.tensors()
        self.templates()

    def split(self) -> None:
        kinds = {b"split.no": U16, b"split.count": U16, b"split.tensors.count": I32}
        for key, kind in kinds.items():
            if key in self.keys and not self.keys[key].is_(kind):
                raise Fault("split-wrong-type")
        count, number = (self.keys[key].value if key in self.keys else None for key in (b"split.count", b"split.no"))
        if count is not None and number is not None and number >= max(count, 1):
            raise Fault("split-no-invalid")
        if count is not None and count > 1:
            raise Fault("split-set-incomplete")

    def architecture(self) -> None:
        value = self.keys.get(b"general.architecture")
        if value is None:
            raise Fault("architecture-missing")
        if not value.is_(STR):
            raise Fault("architecture-wrong-type")
        if not re.fullmatch(rb"[a-z0-9][a-z0-9_.-]{0,63}", value.value):
            raise Fault("architecture-invalid")
        self.arch: bytes = value.value

    def param(self, name: str) -> Value | None:
        return self.keys.get(self.arch + b"." + name.encode())

    def u32(self, name: str) -> int | None:
        value = self.param(name)
        if value is None:
            return None
        if not value.is_(U32):
            raise Fault("hparam-wrong-type")
        return int(value.value)

    def within(self, name: str, low: int, high: int, reason: str) -> int | None:
        value = self.u32(name)
        if value is not None and not low <= value <= high:
            raise Fault(reason)
        return value

    def layers(self, name: str) -> list[int] | int | None:
        value = self.param(name)
        if value is None:
            return None
        if value.is_(ARR):
            if value.element not in (U32, I32):
                raise Fault("hparam-wrong-type")
            if self.blocks and len(value.value) != self.blocks:
                raise Fault("hparam-array-length")
            return list(value.value)
        if not value.is_(U32):
            raise Fault("hparam-wrong-type")
        return int(value.value)

    def sizes(self) -> None:
        self.blocks = self.within("block_count", 1, 512, "block-count-invalid")
        nextn = self.u32("nextn_predict_layers")
        if nextn is not None and self.blocks and nextn > self.blocks:
            raise Fault("block-count-invalid")
        self.within("context_length", 1, 1 << 24, "context-length-invalid")
        self.embedding = self.within("embedding_length", 1, 1 << 20, "embedding-length-invalid")
        self.within("vocab_size", 0, 1 << 24, "vocab-size-invalid")
        self.within("attention.key_length", 1, 65536, "head-size-invalid")
        self.within("attention.value_length", 1, 65536, "head-size-invalid")
        for key, kind in ((b"general.file_type", U32), (b"general.name", STR)):
            if key in self.keys and not self.keys[key].is_(kind):
                raise Fault("hparam-wrong-type")

    def experts(self) -> int:
        count = self.u32("expert_count") or 0
        used = self.layers("expert_used_count")
        groups = self.u32("expert_group_count") or 0
        used_groups = self.u32("expert_group_used_count") or 0
        if self.arch in (b"hunyuan-dense", b"hunyuan_vl") and count <= 1:
            return 0
        numbers = as_list(used)
        most = max((number & 0xFFFFFFFF for number in numbers), default=0)
        bad = (
            count > 1024 or most > count or any(number < 0 for number in numbers) or (count > 0 and most == 0)
            or (groups > 0 and groups >= count) or (groups > 1 and (count % groups != 0 or not 0 < used_groups < groups))
        )
        if bad:
            raise Fault("expert-count-invalid")
        return count

    def heads(self, experts: int) -> None:
        limit = min(65536, self.embedding or 65536)
        heads, kv_heads = self.layers("attention.head_count"), self.layers("attention.head_count_kv")
        feed = self.layers("feed_forward_length")
        for value in (heads, kv_heads):
            if any(not 0 <= number <= limit for number in as_list(value)):
                raise Fault("head-count-invalid")
        if any(not 0 <= number <= 1 << 24 for number in as_list(feed)):
            raise Fault("feed-forward-length-invalid")
        if self.arch not in RECURRENT:
            for value in (heads, kv_heads):
                if value is not None and not any(as_list(value)):
                    raise Fault("head-count-invalid")
            if feed is not None and not any(as_list(feed)) and experts == 0:
                raise Fault("feed-forward-length-invalid")
        if heads is not None and kv_heads is not None:
            for a, b in pairs(heads, kv_heads):
                if a and b and a % b:
                    raise Fault("head-count-invalid")
        self.rope(heads)

    def rope(self, heads: list[int] | int | None) -> None:
        dims = self.u32("rope.dimension_count")
        if dims is not None:
            if dims % 2:
                raise Fault("rope-invalid")
            first = as_list(heads)[:1]
            if self.arch == b"llama" and first:
                size = self.u32("attention.key_length")
                if size is None and first[0] and self.embedding:
                    size = self.embedding // first[0]
                if first[0] and size and dims != size:
                    raise Fault("rope-invalid")
        scaling = self.param("rope.scaling.type")
        if scaling is not None:
            if not scaling.is_(STR):
                raise Fault("hparam-wrong-type")
            if scaling.value not in (b"none", b"linear", b"yarn", b"longrope"):
                raise Fault("rope-invalid")

    def floats(self) -> None:
        for name, sound in (
            ("rope.freq_base", lambda x: x > 0), ("rope.freq_base_swa", lambda x: x > 0),
            ("rope.scaling.factor", lambda x: x >= 0), ("attention.layer_norm_epsilon", lambda x: 0 <= x < 1),
            ("attention.layer_norm_rms_epsilon", lambda x: 0 <= x < 1),
        ):
            value = self.param(name)
            if value is None:
                continue
            if not value.is_(F32):
                raise Fault("hparam-wrong-type")
            if value.value != value.value or abs(value.value) == float("inf"):
                raise Fault("float-not-finite")
            if not sound(value.value):
                raise Fault("float-out-of-range")

    def tensors(self) -> None:
        rows = self.vocabulary or self.u32("vocab_size")
        width = self.u32("features_length") if self.arch == b"wavtokenizer-dec" else self.embedding
        matrix = re.compile(
            rb"(token_embd|output|blk\.[0-9]+\.(attn_(q|k|v|qkv|output)|ffn_(gate|up|down)(_exps|_shexp)?))\.weight"
        )
        for name, dims, kind, offset in self.c.tensors:
            if 0 in dims:
                raise Fault("tensor-dim-zero")
            if (self.c.start + offset) % 32:
                raise Fault("tensor-not-mappable")
            if matrix.fullmatch(name) and (24 <= kind <= 28 or kind in (9, 15)):
                raise Fault("tensor-type-not-a-weight")
            if name.endswith((b"_norm.weight", b".bias")) and kind != 0:
                raise Fault("tensor-type-not-a-weight")
            if name == b"token_embd.weight":
                full = dims + [1] * (4 - len(dims))
                if (width and full[0] != width) or (rows and full[1] != rows) or full[2:] != [1, 1]:
                    raise Fault("tensor-shape-mismatch")

    def templates(self) -> None:
        for key in sorted(self.keys):
            if key == b"tokenizer.chat_template" or key.startswith(b"tokenizer.chat_template."):
                if not self.keys[key].is_(STR):
                    raise Fault("template-wrong-type")
                if len(self.keys[key].value) > 256 * KIB:
                    raise Fault("template-too-long")


def as_list(value: list[int] | int | None) -> list[int]:
    return value if isinstance(value, list) else [] if value is None else [value]


def pairs(a: list[int] | int, b: list[int] | int) -> list[tuple[int, int]]:
    count = min(len(x) for x in (a, b) if isinstance(x, list)) if isinstance(a, list) or isinstance(b, list) else 1
    first = a if isinstance(a, list) else [a] * count
    second = b if isinstance(b, list) else [b] * count
    return list(zip(first, second, strict=False))


class Vocabulary:
    def __init__(self, model: Model) -> None:
        self.keys = model.keys
        self.family = "absent"
        name = self.get("model")
        if name is not None:
            if not name.is_(STR) or name.value not in FAMILIES:
                raise Fault("tokenizer-unknown")
            self.family = FAMILIES[name.value]
        self.tokens = self.read_tokens()
        self.lists()
        if self.tokens is not None and self.family != "none":
            self.texts()
        self.merges()
        self.special()
        self.charsmap()
        model.vocabulary = len(self.tokens) if self.tokens is not None and self.family != "none" else 0

    def get(self, name: str) -> Value | None:
        return self.keys.get(b"tokenizer.ggml." + name.encode())

    def array(self, name: str, elements: tuple[int, ...], reason: str) -> list[Any] | None:
        value = self.get(name)
        if value is None:
            return None
        if not value.is_(ARR) or value.element not in elements:
            raise Fault(reason)
        return list(value.value)

    def read_tokens(self) -> list[bytes] | None:
        tokens = self.array("tokens", (STR,), "tokens-wrong-type")
        if tokens is None:
            if self.family not in ("absent", "none"):
                raise Fault("token-list-missing")
            return None
        if len(tokens) > 1 << 24:
            raise Fault("vocab-size-invalid")
        if not tokens and self.family != "none":
            raise Fault("token-list-empty")
        return tokens

    def lists(self) -> None:
        scores = self.array("scores", (F32, I32), "scores-wrong-type")
        if scores is not None and self.tokens is not None and len(scores) != len(self.tokens):
            raise Fault("scores-length-mismatch")
        self.types = self.array("token_type", (I32,), "token-type-wrong-type")
        if self.types is not None:
            if self.tokens is not None and len(self.types) != len(self.tokens):
                raise Fault("token-type-length-mismatch")
            if any(not 0 <= kind <= 6 for kind in self.types):
                raise Fault("token-type-out-of-range")

    def texts(self) -> None:
        tokens = self.tokens or []
        # duplicates among the texts first, then a made-up name beside a real one
        texts = [text for text in tokens if text]
        if len(set(texts)) != len(texts):
            raise Fault("duplicate-token")
        named = [text or b"[EMPTY_%d]" % i for i, text in enumerate(tokens)]
        if len(set(named)) != len(named):
            raise Fault("duplicate-token")
        for text, kind in zip(tokens, self.types or [], strict=False):
            if kind == 6 and (self.family in ("bert", "rwkv") or not re.fullmatch(rb"<0x[0-9A-Fa-f]{2}>", text)):
                raise Fault("byte-token-invalid")
        if self.family == "llama":
            there = set(tokens)
            for byte in range(256):
                if b"<0x%02X>" % byte not in there and (byte == 0 or bytes([byte]) not in there):
                    raise Fault("byte-tokens-missing")

    def merges(self) -> None:
        merges = self.array("merges", (STR,), "merges-wrong-type")
        pre = self.get("pre")
        if merges is None:
            is_kimi = self.family == "bpe" and pre is not None and pre.is_(STR) and pre.value == b"kimi-k2"
            if self.family in ("bpe", "gemma4") and not is_kimi:
                raise Fault("merges-missing")
            return
        if any(b" " not in merge[1:] for merge in merges):
            raise Fault("merge-malformed")

    def special(self) -> None:
        for name in SPECIAL:
            value = self.get(f"{name}_token_id")
            if value is not None and not value.is_(U32):
                raise Fault("special-token-wrong-type")
        self.array("suppress_tokens", (I32,), "suppress-tokens-wrong-type")
        if not self.tokens or self.family in ("absent", "none"):
            return
        pre = self.get("pre")
        bos = self.id("bos", {"llama": 1, "plamo2": 1, "bpe": 11, "bert": 101}.get(self.family))
        eos = self.id("eos", {"llama": 2, "plamo2": 2, "bpe": 11, "t5": 1}.get(self.family))
        sep = self.id("seperator", 102 if self.family == "bert" else None)
        adds = self.family == "llama" or (
            self.family == "bpe" and pre is not None and pre.is_(STR) and pre.value in BOS_PRE)
        if (self.flag("bos", adds) or self.family in ("bert", "gemma4")) and bos is None:
            raise Fault("bos-token-missing")
        if self.family == "bert" and sep is None:
            raise Fault("bos-token-missing")
        if self.flag("eos", self.family == "t5") and eos is None and self.family in ("llama", "bpe", "gemma4", "t5"):
            raise Fault("eos-token-missing")

    def id(self, name: str, fallback: int | None) -> int | None:
        value = self.get(f"{name}_token_id")
        for number in (value.value if value is not None and value.is_(U32) else None, fallback):
            if number is not None and number < len(self.tokens or []):
                return int(number)
        return None

    def flag(self, name: str, fallback: bool) -> bool:
        value = self.get(f"add_{name}_token")
        return bool(value.value) if value is not None and value.is_(BOOL) else fallback

    def charsmap(self) -> None:
        value = self.get("precompiled_charsmap")
        if value is None:
            return
        if not value.is_(ARR) or value.element not in (U8, I8):
            raise Fault("charsmap-invalid")
        data = bytes(number & 0xFF for number in value.value)
        if len(data) < 4:
            raise Fault("charsmap-invalid")
        (size,) = struct.unpack("<I", data[:4])
        if size + 4 >= len(data) or size < 4:
            raise Fault("charsmap-invalid")
        (root,) = struct.unpack("<I", data[4:8])
        base = ((root >> 10) << (8 if root & 0x200 else 0)) & 0xFFFFFFFF
        if base >= size // 4:
            raise Fault("charsmap-invalid")


def judge(data: bytes, profile: str = "model") -> str:
    """The verdict on one file: "ok" or the reason of the fault."""
    try:
        container = Container(data)
        if profile == "model":
            Model(container)
    except Fault as fault:
        return str(fault.args[0])
    return "ok"

"""What the model verifier says: a Report for a sound file, a GgufError for a fault.

Owns the public names of the reasons and the sentences that go with them. Knows nothing of the format itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from inferno_native import NativeError

# What each reason means, for people; the key is the stable code that commands, logs and waivers use.
REASONS: dict[str, str] = {
    "not-a-regular-file": "not a regular file",
    "file-not-found": "no such file",
    "zero-length-file": "the file is empty",
    "file-too-large": "the file is larger than allowed",
    "file-changed": "the file changed while it was read",
    "checksum-mismatch": "the digest is not the expected one",
    "out-of-memory": "not enough memory to check the file",
    "metadata-too-large": "more metadata than any real model has",
    "bad-magic": "the file does not start with GGUF",
    "truncated-header": "the file ends inside its header",
    "big-endian": "the file is big-endian, which this host cannot use",
    "unsupported-version": "only format versions 2 and 3 are supported",
    "tensor-count-overflow": "the number of tensors is absurd",
    "kv-count-overflow": "the number of keys is absurd",
    "tensor-count-past-eof": "more tensors are announced than the file has room for",
    "kv-count-past-eof": "more keys are announced than the file has room for",
    "string-length-overflow": "a string length is absurd",
    "string-length-past-eof": "a string runs past the end of the file",
    "string-has-nul": "a string has a zero byte, so other readers would see another text",
    "string-not-utf8": "a string is not UTF-8",
    "key-empty": "a key is empty",
    "key-too-long": "a key is too long",
    "key-has-nul": "a key has a zero byte, so other readers would see another key",
    "key-not-utf8": "a key is not UTF-8",
    "duplicate-key": "a key stands there twice",
    "truncated-kv": "the file ends inside its keys",
    "value-type-invalid": "a value has an unknown type",
    "array-type-invalid": "an array has an unknown element type",
    "nested-array-depth": "an array holds arrays",
    "array-length-overflow": "an array length is absurd",
    "array-length-past-eof": "an array runs past the end of the file",
    "bool-not-0-1": "a boolean is neither 0 nor 1",
    "alignment-wrong-type": "general.alignment is not a u32",
    "alignment-not-power-of-two": "general.alignment is not a power of two",
    "alignment-not-multiple-of-8": "general.alignment is not a multiple of eight",
    "alignment-too-large": "general.alignment is larger than 65536",
    "truncated-tensor-info": "the file ends inside its tensor table",
    "tensor-name-empty": "a tensor has no name",
    "tensor-name-too-long": "a tensor name is too long",
    "tensor-name-has-nul": "a tensor name has a zero byte",
    "tensor-name-not-utf8": "a tensor name is not UTF-8",
    "duplicate-tensor": "a tensor stands there twice",
    "tensor-ndims-invalid": "a tensor has more than four dimensions",
    "tensor-dim-negative": "a dimension is negative",
    "tensor-dims-overflow": "a tensor has more elements than 63 bits can count",
    "tensor-type-removed": "a tensor type was removed from the format",
    "tensor-type-invalid": "a tensor type is unknown",
    "tensor-row-not-block-multiple": "a row is not a whole number of blocks",
    "tensor-bytes-overflow": "the bytes of the tensors cannot be counted in 64 bits",
    "tensor-offset-misaligned": "a tensor does not start on the alignment",
    "tensor-offset-gap": "a hole lies before a tensor",
    "tensor-overlap": "a tensor overlaps the one before it",
    "tensor-offset-unexpected": "a tensor is not where it should be",
    "data-section-past-eof": "the file ends before its data starts",
    "tensor-past-eof": "a tensor runs past the end of the file",
    "trailing-data": "something follows the last tensor",
    "architecture-missing": "general.architecture is missing",
    "architecture-wrong-type": "general.architecture is not a string",
    "architecture-invalid": "general.architecture is not a plain name",
    "hparam-wrong-type": "a hyper-parameter has the wrong type",
    "hparam-array-length": "a hyper-parameter does not have one value per block",
    "block-count-invalid": "the number of blocks is out of range",
    "context-length-invalid": "the context length is out of range",
    "embedding-length-invalid": "the embedding length is out of range",
    "feed-forward-length-invalid": "the feed-forward length is out of range",
    "head-size-invalid": "a head size is out of range",
    "vocab-size-invalid": "the vocabulary size is out of range",
    "head-count-invalid": "a number of attention heads is out of range",
    "rope-invalid": "the rotary position settings are impossible",
    "float-not-finite": "a number is infinite or not a number",
    "float-out-of-range": "a number is out of range",
    "expert-count-invalid": "the numbers of experts are impossible",
    "tokenizer-unknown": "the tokenizer is unknown",
    "token-list-missing": "a tokenizer is named, but there are no tokens",
    "tokens-wrong-type": "the token list is not an array of strings",
    "token-list-empty": "the token list is empty",
    "duplicate-token": "a token stands there twice",
    "scores-wrong-type": "the scores are not an array of f32 or i32",
    "scores-length-mismatch": "there is not one score per token",
    "token-type-wrong-type": "the token types are not an array of i32",
    "token-type-length-mismatch": "there is not one type per token",
    "token-type-out-of-range": "a token type is unknown",
    "byte-token-invalid": "a byte token is not written as <0xHH>",
    "byte-tokens-missing": "a byte has no token",
    "bos-token-missing": "a first token is to be added, but there is none",
    "eos-token-missing": "a last token is to be added, but there is none",
    "special-token-wrong-type": "the id of a special token is not a u32",
    "merges-missing": "the vocabulary needs merges and has none",
    "merges-wrong-type": "the merges are not an array of strings",
    "merge-malformed": "a merge is not two pieces with a space between",
    "suppress-tokens-wrong-type": "the suppressed tokens are not an array of i32",
    "charsmap-invalid": "the normalization table is broken",
    "tensor-dim-zero": "a tensor has no elements",
    "tensor-shape-mismatch": "the embedding matrix does not have the shape that the keys say",
    "tensor-not-mappable": "a tensor does not start on a multiple of 32 bytes",
    "tensor-type-not-a-weight": "a weight has a type that no kernel can use",
    "split-wrong-type": "a split key has the wrong type",
    "split-key-missing": "a shard lacks a split key",
    "split-no-invalid": "a shard has the wrong number",
    "split-set-incomplete": "shards of the model are missing",
    "split-count-mismatch": "the shards disagree on how many they are",
    "split-tensor-count-mismatch": "the shards do not hold the announced number of tensors",
    "template-wrong-type": "a chat template is not a string",
    "template-too-long": "a chat template is longer than 256 KiB",
    "template-too-complex": "a chat template is nested too deeply to compile",
    "template-syntax": "a chat template does not compile",
    "template-forbidden-statement": "a chat template loads another template",
    "template-forbidden-attribute": "a chat template reaches for the internals of an object",
    "template-unbounded-loop": "a chat template does not come to an end",
    "template-memory-bomb": "a chat template takes too much memory",
    "template-unchecked": "the limited process that tries chat templates cannot be started",
}

# Faults that an operator may accept for one model. Some of these reasons have forms that may not be waived (a zero byte
# inside a token, too few scores, an epsilon that is not a number): the error's own `policy` decides.
POLICY_REASONS: frozenset[str] = frozenset({
    "string-has-nul", "string-not-utf8", "bool-not-0-1", "alignment-not-multiple-of-8", "alignment-too-large",
    "tensor-name-empty", "tensor-name-not-utf8", "trailing-data", "context-length-invalid", "float-not-finite",
    "float-out-of-range", "token-list-empty", "scores-length-mismatch", "token-type-length-mismatch",
    "token-type-out-of-range", "merge-malformed", "tensor-not-mappable", "template-too-long", "template-too-complex",
    "template-forbidden-statement", "template-forbidden-attribute", "template-unbounded-loop", "template-memory-bomb",
})


class GgufError(NativeError):
    """A model file was refused.

    `reason` is the stable code, `offset` the place in the file (None: the file as a whole), `shard` the index of the
    file in a split set, `policy` whether an operator may waive it by name.
    """

    def __init__(
        self,
        reason: str,
        offset: int | None = None,
        detail: str = "",
        *,
        policy: bool = False,
        wanted: int | None = None,
        had: int | None = None,
        shard: int = 0,
    ) -> None:
        self.reason = reason
        self.offset = offset
        self.detail = detail or REASONS.get(reason, reason)
        self.policy = policy
        self.wanted = wanted
        self.had = had
        self.shard = shard
        super().__init__(reason)

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" + ("" if self.offset is None else f" (at byte {self.offset})")


@dataclass(frozen=True, slots=True)
class Facts:
    """What a verified file says about itself; None or empty where it says nothing."""

    version: int
    alignment: int
    size_bytes: int
    data_bytes: int
    tensor_count: int
    parameter_count: int
    tensor_types: dict[str, int]
    matrix_types: tuple[str, ...] = ()  # of the matrices that rows are multiplied with
    architecture: str | None = None
    name: str | None = None
    file_type: int | None = None
    quantization: str | None = None
    context_length: int | None = None
    embedding_length: int | None = None
    block_count: int | None = None
    vocab_size: int | None = None
    tokenizer_model: str | None = None
    tokenizer_pre: str | None = None
    special_tokens: dict[str, int] = field(default_factory=dict)
    special_texts: dict[str, str] = field(default_factory=dict)
    chat_templates: dict[str, str] = field(default_factory=dict)
    pooling_type: int | None = None
    split_no: int = 0
    split_count: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """A sound file (or set of shards): its facts, and the waived faults that were met."""

    facts: Facts
    policy: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SplitKeys:
    """The split keys of one file; None for a key that is absent."""

    no: int | None
    count: int | None
    tensors: int | None

"""The verifier: no model file reaches native code unless it is sound (GGUF versions 2 and 3, llama.cpp as linked).

Owns the order of the checks over one file or a set of shards, the table of reasons and the facts that a sound file
states. The passes themselves are in gguf_container, gguf_model and gguf_vocab and run without the GIL. Chat templates
are only read here, never compiled: that happens in a limited child process. Files are read through the descriptor that
the caller will load, with pread, so its position does not move. Runs in the engine and in commands.
"""

import os
import stat
import sys

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, strlen

from .checked cimport add_u64
from .gguf_container cimport (
    METADATA_CAP,
    TENSOR_TYPES,
    Container,
    Tensor,
    Value,
    block_size_of,
    container_close,
    container_find,
    container_init,
    container_read,
    tensor_at,
)
from .gguf_container cimport *
from .gguf_model cimport Model, check_metadata, check_tensors
from .gguf_set cimport SET_PRESENT, TextSet, gg_hash, set_add, set_close, set_open
from .reader cimport load_f32, load_i32, load_u32, load_u64

from libc.stdlib cimport free, malloc

from inferno_native.gguf_report import POLICY_REASONS, REASONS, Facts, GgufError, Report, SplitKeys

if sys.byteorder != "little":
    raise ImportError("inferno_native.gguf: little-endian hosts only")

VERIFIER_VERSION = 1
MAX_TEMPLATE_BYTES = 256 * 1024
MAX_TEMPLATES = 64
MAX_FACT_BYTES = 4096

SLUGS = {
    R_OUT_OF_MEMORY: "out-of-memory",
    R_FILE_CHANGED: "file-changed",
    R_METADATA_TOO_LARGE: "metadata-too-large",
    R_BAD_MAGIC: "bad-magic",
    R_TRUNCATED_HEADER: "truncated-header",
    R_BIG_ENDIAN: "big-endian",
    R_UNSUPPORTED_VERSION: "unsupported-version",
    R_TENSOR_COUNT_OVERFLOW: "tensor-count-overflow",
    R_KV_COUNT_OVERFLOW: "kv-count-overflow",
    R_TENSOR_COUNT_PAST_EOF: "tensor-count-past-eof",
    R_KV_COUNT_PAST_EOF: "kv-count-past-eof",
    R_STRING_LENGTH_OVERFLOW: "string-length-overflow",
    R_STRING_LENGTH_PAST_EOF: "string-length-past-eof",
    R_STRING_HAS_NUL: "string-has-nul",
    R_STRING_NOT_UTF8: "string-not-utf8",
    R_KEY_EMPTY: "key-empty",
    R_KEY_TOO_LONG: "key-too-long",
    R_KEY_HAS_NUL: "key-has-nul",
    R_KEY_NOT_UTF8: "key-not-utf8",
    R_DUPLICATE_KEY: "duplicate-key",
    R_TRUNCATED_KV: "truncated-kv",
    R_VALUE_TYPE_INVALID: "value-type-invalid",
    R_ARRAY_TYPE_INVALID: "array-type-invalid",
    R_NESTED_ARRAY_DEPTH: "nested-array-depth",
    R_ARRAY_LENGTH_OVERFLOW: "array-length-overflow",
    R_ARRAY_LENGTH_PAST_EOF: "array-length-past-eof",
    R_BOOL_NOT_0_1: "bool-not-0-1",
    R_ALIGNMENT_WRONG_TYPE: "alignment-wrong-type",
    R_ALIGNMENT_NOT_POWER_OF_TWO: "alignment-not-power-of-two",
    R_ALIGNMENT_NOT_MULTIPLE_OF_8: "alignment-not-multiple-of-8",
    R_ALIGNMENT_TOO_LARGE: "alignment-too-large",
    R_TRUNCATED_TENSOR_INFO: "truncated-tensor-info",
    R_TENSOR_NAME_EMPTY: "tensor-name-empty",
    R_TENSOR_NAME_TOO_LONG: "tensor-name-too-long",
    R_TENSOR_NAME_HAS_NUL: "tensor-name-has-nul",
    R_TENSOR_NAME_NOT_UTF8: "tensor-name-not-utf8",
    R_DUPLICATE_TENSOR: "duplicate-tensor",
    R_TENSOR_NDIMS_INVALID: "tensor-ndims-invalid",
    R_TENSOR_DIM_NEGATIVE: "tensor-dim-negative",
    R_TENSOR_DIMS_OVERFLOW: "tensor-dims-overflow",
    R_TENSOR_TYPE_REMOVED: "tensor-type-removed",
    R_TENSOR_TYPE_INVALID: "tensor-type-invalid",
    R_TENSOR_ROW_NOT_BLOCK_MULTIPLE: "tensor-row-not-block-multiple",
    R_TENSOR_BYTES_OVERFLOW: "tensor-bytes-overflow",
    R_TENSOR_OFFSET_MISALIGNED: "tensor-offset-misaligned",
    R_TENSOR_OFFSET_GAP: "tensor-offset-gap",
    R_TENSOR_OVERLAP: "tensor-overlap",
    R_DATA_SECTION_PAST_EOF: "data-section-past-eof",
    R_TENSOR_PAST_EOF: "tensor-past-eof",
    R_TRAILING_DATA: "trailing-data",
    R_ARCHITECTURE_MISSING: "architecture-missing",
    R_ARCHITECTURE_WRONG_TYPE: "architecture-wrong-type",
    R_ARCHITECTURE_INVALID: "architecture-invalid",
    R_HPARAM_WRONG_TYPE: "hparam-wrong-type",
    R_HPARAM_ARRAY_LENGTH: "hparam-array-length",
    R_BLOCK_COUNT_INVALID: "block-count-invalid",
    R_CONTEXT_LENGTH_INVALID: "context-length-invalid",
    R_EMBEDDING_LENGTH_INVALID: "embedding-length-invalid",
    R_FEED_FORWARD_LENGTH_INVALID: "feed-forward-length-invalid",
    R_HEAD_SIZE_INVALID: "head-size-invalid",
    R_VOCAB_SIZE_INVALID: "vocab-size-invalid",
    R_HEAD_COUNT_INVALID: "head-count-invalid",
    R_ROPE_INVALID: "rope-invalid",
    R_FLOAT_NOT_FINITE: "float-not-finite",
    R_FLOAT_OUT_OF_RANGE: "float-out-of-range",
    R_EXPERT_COUNT_INVALID: "expert-count-invalid",
    R_TOKENIZER_UNKNOWN: "tokenizer-unknown",
    R_TOKEN_LIST_MISSING: "token-list-missing",
    R_TOKENS_WRONG_TYPE: "tokens-wrong-type",
    R_TOKEN_LIST_EMPTY: "token-list-empty",
    R_DUPLICATE_TOKEN: "duplicate-token",
    R_SCORES_WRONG_TYPE: "scores-wrong-type",
    R_SCORES_LENGTH_MISMATCH: "scores-length-mismatch",
    R_TOKEN_TYPE_WRONG_TYPE: "token-type-wrong-type",
    R_TOKEN_TYPE_LENGTH_MISMATCH: "token-type-length-mismatch",
    R_TOKEN_TYPE_OUT_OF_RANGE: "token-type-out-of-range",
    R_BYTE_TOKEN_INVALID: "byte-token-invalid",
    R_BYTE_TOKENS_MISSING: "byte-tokens-missing",
    R_BOS_TOKEN_MISSING: "bos-token-missing",
    R_EOS_TOKEN_MISSING: "eos-token-missing",
    R_SPECIAL_TOKEN_WRONG_TYPE: "special-token-wrong-type",
    R_MERGES_MISSING: "merges-missing",
    R_MERGES_WRONG_TYPE: "merges-wrong-type",
    R_MERGE_MALFORMED: "merge-malformed",
    R_SUPPRESS_TOKENS_WRONG_TYPE: "suppress-tokens-wrong-type",
    R_CHARSMAP_INVALID: "charsmap-invalid",
    R_TENSOR_DIM_ZERO: "tensor-dim-zero",
    R_TENSOR_SHAPE_MISMATCH: "tensor-shape-mismatch",
    R_TENSOR_NOT_MAPPABLE: "tensor-not-mappable",
    R_TENSOR_TYPE_NOT_A_WEIGHT: "tensor-type-not-a-weight",
    R_SPLIT_WRONG_TYPE: "split-wrong-type",
    R_SPLIT_KEY_MISSING: "split-key-missing",
    R_SPLIT_NO_INVALID: "split-no-invalid",
    R_SPLIT_SET_INCOMPLETE: "split-set-incomplete",
    R_SPLIT_COUNT_MISMATCH: "split-count-mismatch",
    R_SPLIT_TENSOR_COUNT_MISMATCH: "split-tensor-count-mismatch",
}
_CODES = {slug: code for code, slug in SLUGS.items()}

TYPE_NAMES = (
    "F32 F16 Q4_0 Q4_1 Q4_2 Q4_3 Q5_0 Q5_1 Q8_0 Q8_1 Q2_K Q3_K Q4_K Q5_K Q6_K Q8_K IQ2_XXS IQ2_XS IQ3_XXS IQ1_S "
    "IQ4_NL IQ3_S IQ2_S IQ4_XS I8 I16 I32 I64 F64 IQ1_M BF16 - - - TQ1_0 TQ2_0 - - - MXFP4 NVFP4 Q1_0 Q2_0"
).split()

# general.file_type (llama.h, enum llama_ftype)
FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4", 39: "NVFP4",
    40: "Q1_0", 41: "Q2_0",
}

_SPECIAL = {
    "bos": "bos", "eos": "eos", "eot": "eot", "eom": "eom", "unknown": "unk", "seperator": "sep", "padding": "pad",
    "cls": "cls", "mask": "mask", "fim_pre": "fim_pre", "fim_suf": "fim_suf", "fim_mid": "fim_mid",
    "fim_pad": "fim_pad", "fim_rep": "fim_rep", "fim_sep": "fim_sep",
}


cdef class _File:
    """Owner of one container: opened by `read`, freed with the object."""

    cdef Container c
    cdef readonly object size
    cdef readonly int index

    def __cinit__(self):
        container_init(&self.c)

    def __dealloc__(self):
        container_close(&self.c)

    def __init__(self, int index, frozenset allow):
        cdef int code
        self.index = index
        self.size = 0
        # Each walk has its own secret: what collides in one says nothing about the next.
        cdef bytes secret = os.urandom(64)
        memcpy(self.c.keys.secret, <const char *>secret, 32)
        memcpy(self.c.names.secret, <const char *>secret + 32, 32)
        for slug in allow:
            code = _CODES.get(slug, 0)
            self.c.allowed[code] = 1

    cdef int read(self, int fd, uint64_t size, uint64_t cap) except -1:
        cdef int status
        self.size = size
        with nogil:
            status = container_read(&self.c, fd, size, cap)
        if status != 0:
            self.refuse()
        return 0

    cdef int refuse(self) except -1:
        cdef const char *what = self.c.fault.what
        reason = SLUGS[self.c.fault.reason]
        detail = REASONS[reason]
        numbers = what != NULL and what[0] != 0
        if self.c.fault.reason == R_BAD_MAGIC:  # letters say more than the number that they spell
            had = int(self.c.fault.had).to_bytes(4, "little").rstrip(b"\0")
            detail += f": wanted {int(self.c.fault.wanted).to_bytes(4, 'little')!r}, had {had!r}"
        elif numbers:
            detail += f": wanted {self.c.fault.wanted} {(<bytes>what).decode()}, had {self.c.fault.had}"
        raise GgufError(
            reason, self.c.fault.offset, detail, policy=bool(self.c.fault.policy), shard=self.index,
            wanted=self.c.fault.wanted if numbers else None, had=self.c.fault.had if numbers else None,
        )

    cdef bint find(self, bytes key, Value *value) noexcept:
        return container_find(&self.c, <const char *>key, len(key), value)

    def number(self, key: str, kind: int):
        """The integer behind `key` if it has the type `kind`, else None."""
        cdef Value value
        cdef const uint8_t *at
        if not self.find(key.encode(), &value) or value.type != <uint32_t>kind:
            return None
        at = self.c.window.data + value.at
        if kind == T_U32:
            return load_u32(at)
        if kind == T_I32:
            return load_i32(at)
        if kind == T_U16:
            return <int>at[0] | (<int>at[1] << 8)
        return None

    def type_of(self, key: str):
        cdef Value value
        return value.type if self.find(key.encode(), &value) else None

    def place_of(self, key: str):
        cdef Value value
        return value.at if self.find(key.encode(), &value) else None

    def text(self, key: str, limit: int = MAX_FACT_BYTES):
        """The string behind `key`, at most `limit` bytes of it; None if it is no string."""
        cdef Value value
        if not self.find(key.encode(), &value) or value.type != T_STRING:
            return None
        data = (<const char *>self.c.window.data + value.at)[:min(value.count, limit)]
        return data.decode("utf-8", "replace")

    def array_length(self, key: str):
        cdef Value value
        if not self.find(key.encode(), &value) or value.type != T_ARRAY:
            return None
        return value.count

    def array_texts(self, key: str, wanted):
        """The strings with the given indices of a string array: one walk over it."""
        cdef Value value
        cdef uint64_t at
        cdef uint64_t i = 0
        cdef uint64_t stop
        cdef uint64_t length
        result = {}
        if not self.find(key.encode(), &value) or value.type != T_ARRAY or value.element != T_STRING:
            return result
        at = value.at
        for index in sorted(set(wanted)):
            if index >= value.count:
                break
            stop = index
            with nogil:
                while i < stop:
                    at += 8 + load_u64(self.c.window.data + at)
                    i += 1
            length = load_u64(self.c.window.data + at)
            data = (<const char *>self.c.window.data + at + 8)[:min(length, <uint64_t>MAX_FACT_BYTES)]
            result[index] = data.decode("utf-8", "replace")
        return result

    def keys_with_prefix(self, prefix: str):
        """All keys that start with `prefix`, in no special order."""
        cdef uint64_t slot
        cdef uint64_t at
        cdef bytes start = prefix.encode()
        found = []
        for slot in range(self.c.keys.mask + 1):
            at = self.c.keys.slots[slot].offset
            if at == 0:
                continue
            key = (<const char *>self.c.window.data + at + 8)[:load_u64(self.c.window.data + at)]
            if key.startswith(start):
                found.append(key.decode())
        return sorted(found)

    def found(self):
        return [SLUGS[code] for code in range(1, R_COUNT) if self.c.found[code]]


def _open_checked(int fd, uint64_t total, max_bytes):
    """The size of the regular file behind fd."""
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        raise GgufError("not-a-regular-file")
    if info.st_size == 0:
        raise GgufError("zero-length-file", 0)
    if max_bytes is not None and total + info.st_size > max_bytes:
        raise GgufError("file-too-large", None, f"{REASONS['file-too-large']}: {total + info.st_size} bytes, "
                        f"{max_bytes} allowed", wanted=max_bytes, had=total + info.st_size)
    return info.st_size


def verify_fd(fd: int, *, profile: str = "model", max_bytes: int | None = None, allow=frozenset()) -> Report:
    """Check the file behind `fd`; the descriptor's position is neither used nor moved.

    `profile` is "model" or "container" (the format only). `max_bytes` bounds the file. `allow` names policy faults that
    are waived. Raises GgufError for the first fault. Chat templates are only checked for type and length.
    """
    return verify_fds((fd,), profile=profile, max_bytes=max_bytes, allow=allow)


def verify_fds(fds, *, profile: str = "model", max_bytes: int | None = None, allow=frozenset()) -> Report:
    """Check the shards of one model, given in order; one descriptor is a model in one file. See verify_fd."""
    cdef uint64_t total = 0
    cdef uint64_t kept = 0
    cdef _File file
    if profile not in ("model", "container"):
        raise ValueError(f"profile: expected 'model' or 'container', got {profile!r}")
    waived = frozenset(allow)
    unknown = waived - POLICY_REASONS
    if unknown:
        raise ValueError(f"not a policy fault, so it cannot be waived: {', '.join(sorted(unknown))}")
    files = []
    for index, fd in enumerate(fds):
        try:
            size = _open_checked(fd, total, max_bytes)
        except GgufError as error:
            error.shard = index
            raise
        total += size
        file = _File(index, waived)
        files.append(file)
        # The cap is for the set: many shards keep no more than one file may.
        file.read(fd, size, METADATA_CAP - kept)
        # a file in the middle of a set keeps what it has read; give the rest of its reservation back
        kept += file.c.window.filled
    if not files:
        raise ValueError("no file descriptor given")
    if profile == "model":
        _check_split(files)
        _check_names(files)
        _check_model(files)
        _check_templates(files[0], waived)
    found = sorted({slug for file in files for slug in file.found()} | _waived_templates(files[0], waived, profile))
    return Report(_facts(files, total, profile), tuple(found))


def split_keys(fd: int) -> SplitKeys:
    """The split keys of a file whose container is sound; raises GgufError if it is not."""
    cdef _File file = _File(0, POLICY_REASONS)
    file.read(fd, _open_checked(fd, 0, None), METADATA_CAP)
    return SplitKeys(file.number("split.no", T_U16), file.number("split.count", T_U16),
                     file.number("split.tensors.count", T_I32))


def _check_split(list files):
    """The split keys of all shards, in order."""
    for file in files:
        for key, kind in (("split.no", T_U16), ("split.count", T_U16), ("split.tensors.count", T_I32)):
            if file.type_of(key) not in (None, kind):
                raise GgufError("split-wrong-type", file.place_of(key), f"{REASONS['split-wrong-type']}: {key}",
                                shard=file.index)
    first = files[0]
    count = first.number("split.count", T_U16)
    number = first.number("split.no", T_U16)
    if len(files) == 1:
        if count is not None and number is not None and number >= max(count, 1):
            raise GgufError("split-no-invalid", first.place_of("split.no"), wanted=count, had=number)
        if count is not None and count > 1:
            raise GgufError("split-set-incomplete", first.place_of("split.count"), wanted=count, had=1)
        return
    for file in files:
        for key, kind in (("split.no", T_U16), ("split.count", T_U16)):
            if file.number(key, kind) is None:
                raise GgufError("split-key-missing", None, f"{REASONS['split-key-missing']}: {key}", shard=file.index)
    if first.number("split.tensors.count", T_I32) is None:
        raise GgufError("split-key-missing", None, f"{REASONS['split-key-missing']}: split.tensors.count")
    for file in files:
        had = file.number("split.count", T_U16)
        if had != count:
            raise GgufError("split-count-mismatch", file.place_of("split.count"), wanted=count, had=had,
                            shard=file.index)
        had = file.number("split.no", T_U16)
        if had != file.index or had >= count:
            raise GgufError("split-no-invalid", file.place_of("split.no"), wanted=file.index, had=had,
                            shard=file.index)
    if count > len(files):
        raise GgufError("split-set-incomplete", first.place_of("split.count"), wanted=count, had=len(files))
    if count < len(files):
        raise GgufError("split-count-mismatch", first.place_of("split.count"), wanted=count, had=len(files))
    cdef uint64_t tensors = 0
    cdef _File part
    for part in files:
        tensors += part.c.num_tensors
    announced = first.number("split.tensors.count", T_I32)
    if announced != tensors:
        raise GgufError("split-tensor-count-mismatch", first.place_of("split.tensors.count"), wanted=announced,
                        had=tensors)


def _check_names(list files):
    """No tensor name in two shards: the tables are laid side by side and go through one set."""
    cdef _File part
    cdef uint64_t length = 8
    cdef uint64_t at
    cdef uint64_t base
    cdef uint64_t i
    cdef uint64_t count = 0
    cdef Tensor tensor
    cdef TextSet names
    cdef uint8_t *table
    cdef const uint8_t *text
    cdef int status = 0
    if len(files) == 1:
        return
    for part in files:
        # bounded by METADATA_CAP for the whole set, so the sums fit
        length += part.c.header_end - part.c.tensors_at
        count += part.c.num_tensors
    part = files[0]
    memcpy(names.secret, part.c.names.secret, sizeof(names.secret))
    table = <uint8_t *>malloc(length)
    if table == NULL:
        raise MemoryError
    if set_open(&names, count) != 0:
        free(table)
        raise MemoryError
    try:
        base = 8
        for part in files:
            memcpy(table + base, part.c.window.data + part.c.tensors_at, part.c.header_end - part.c.tensors_at)
            at = part.c.tensors_at
            for i in range(part.c.num_tensors):
                tensor_at(&part.c, at, &tensor)
                text = table + base + (at - part.c.tensors_at) + 8
                status = set_add(&names, table, <uint32_t>(base + (at - part.c.tensors_at)),
                                 gg_hash(text, tensor.name_length, names.secret))
                if status == SET_PRESENT:
                    raise GgufError("duplicate-tensor", at, shard=part.index)
                if status != 0:
                    raise MemoryError
                at = tensor.next_at
            base += part.c.header_end - part.c.tensors_at
    finally:
        set_close(&names)
        free(table)


def _check_model(list files):
    """The rules for the metadata (first file) and for the tensors of every file."""
    cdef Model model
    cdef _File first = files[0]
    cdef _File part
    cdef bint sound
    with nogil:
        sound = check_metadata(&model, &first.c)
    if not sound:
        first.refuse()
    for part in files:
        with nogil:
            sound = check_tensors(&model, &part.c)
        if not sound:
            part.refuse()


def _template_keys(_File file):
    keys = file.keys_with_prefix("tokenizer.chat_template")
    return [key for key in keys if key == "tokenizer.chat_template" or key.startswith("tokenizer.chat_template.")]


def _check_templates(_File file, frozenset waived):
    cdef Value value
    keys = _template_keys(file)
    if len(keys) > MAX_TEMPLATES:
        raise GgufError("metadata-too-large", None, f"more than {MAX_TEMPLATES} chat templates", wanted=MAX_TEMPLATES,
                        had=len(keys))
    for key in keys:
        file.find(key.encode(), &value)
        if value.type != T_STRING:
            raise GgufError("template-wrong-type", value.at, f"{REASONS['template-wrong-type']}: {key}",
                            wanted=T_STRING, had=value.type)
        if value.count > MAX_TEMPLATE_BYTES and "template-too-long" not in waived:
            raise GgufError("template-too-long", value.at, policy=True, wanted=MAX_TEMPLATE_BYTES, had=value.count)


def _waived_templates(_File file, frozenset waived, profile):
    cdef Value value
    if profile != "model" or "template-too-long" not in waived:
        return set()
    for key in _template_keys(file):
        file.find(key.encode(), &value)
        if value.count > MAX_TEMPLATE_BYTES:
            return {"template-too-long"}
    return set()


cdef bint name_is(const uint8_t *name, uint32_t length, const char *expected) noexcept nogil:
    return length == strlen(expected) and memcmp(name, expected, length) == 0


cdef bint name_has(const uint8_t *name, uint32_t length, const char *piece) noexcept nogil:
    cdef size_t size = strlen(piece)
    cdef size_t i
    if length < size:
        return False
    for i in range(length - size + 1):
        if memcmp(name + i, piece, size) == 0:
            return True
    return False


cdef bint is_table(const uint8_t *name, uint32_t length) noexcept nogil:
    """Whether a tensor of two dimensions is looked up or used by element: norms, convolutions, decays, positions."""
    return (
        name_has(name, length, "norm") or name_has(name, length, "conv") or name_has(name, length, "ssm_a")
        or name_has(name, length, "ssm_d") and not name_has(name, length, "ssm_dt.weight")
        or name_has(name, length, ".bias") or name_has(name, length, "scale") or name_has(name, length, "rope_")
        or name_has(name, length, "position_embd") or name_has(name, length, "token_types")
        or name_has(name, length, "time_mix_lerp") or name_has(name, length, "time_mix_first")
    )


def _facts(list files, total, profile):
    cdef _File file = files[0]
    cdef _File part
    cdef Tensor tensor
    cdef uint64_t at
    cdef uint64_t i
    cdef uint64_t parameters = 0
    cdef uint64_t elements
    cdef uint64_t data_bytes = 0
    cdef uint64_t num_tensors = 0
    cdef uint64_t[TENSOR_TYPES] per_type
    cdef int d
    # Types of the matrices that rows are multiplied with; the embedding is one where no output matrix is.
    cdef uint64_t[TENSOR_TYPES] multiplied
    cdef uint32_t embedding_type = TENSOR_TYPES
    cdef bint has_output = False
    cdef const uint8_t *label
    for d in range(TENSOR_TYPES):
        per_type[d] = 0
        multiplied[d] = 0
    for part in files:
        at = part.c.tensors_at
        data_bytes += part.c.data_end
        num_tensors += part.c.num_tensors
        with nogil:
            for i in range(part.c.num_tensors):
                tensor_at(&part.c, at, &tensor)
                elements = tensor.dims[0] * tensor.dims[1] * tensor.dims[2] * tensor.dims[3]
                parameters += elements
                per_type[tensor.type] += 1
                label = part.c.window.data + tensor.name_at + 8
                if name_is(label, tensor.name_length, "token_embd.weight"):
                    embedding_type = tensor.type
                else:
                    has_output = has_output or name_is(label, tensor.name_length, "output.weight")
                    if tensor.dims[0] > 1 and tensor.dims[1] > 1 and not is_table(label, tensor.name_length):
                        multiplied[tensor.type] += 1
                at = tensor.next_at
    if not has_output and embedding_type < TENSOR_TYPES:
        multiplied[embedding_type] += 1
    types = {TYPE_NAMES[d]: per_type[d] for d in range(TENSOR_TYPES) if per_type[d]}
    base = {
        "version": file.c.version, "alignment": file.c.alignment, "size_bytes": total, "data_bytes": data_bytes,
        "tensor_count": num_tensors, "parameter_count": parameters, "tensor_types": types,
        "matrix_types": tuple([TYPE_NAMES[d] for d in range(TENSOR_TYPES) if multiplied[d]]),
    }
    if profile == "container":
        return Facts(**base)
    arch = file.text("general.architecture")
    file_type = file.number("general.file_type", T_U32)
    special = {}
    for key, name in _SPECIAL.items():
        token = file.number(f"tokenizer.ggml.{key}_token_id", T_U32)
        if token is not None:
            special[name] = token
    texts = file.array_texts("tokenizer.ggml.tokens", special.values())
    prefix = len("tokenizer.chat_template.")
    num_tokens = file.array_length("tokenizer.ggml.tokens")
    return Facts(
        **base,
        architecture=arch,
        name=file.text("general.name"),
        file_type=file_type,
        quantization=FILE_TYPES.get(file_type) or (max(types, key=types.get) if types else None),
        context_length=file.number(f"{arch}.context_length", T_U32),
        embedding_length=file.number(f"{arch}.embedding_length", T_U32),
        block_count=file.number(f"{arch}.block_count", T_U32),
        vocab_size=num_tokens if num_tokens is not None else file.number(f"{arch}.vocab_size", T_U32),
        tokenizer_model=file.text("tokenizer.ggml.model"),
        tokenizer_pre=file.text("tokenizer.ggml.pre"),
        special_tokens=special,
        special_texts={name: texts[token] for name, token in special.items() if token in texts},
        chat_templates={
            key[prefix:] or "default": file.text(key, 1 << 30) for key in _template_keys(file)
        },
        pooling_type=file.number(f"{arch}.pooling_type", T_U32),
        split_no=file.number("split.no", T_U16) or 0,
        split_count=file.number("split.count", T_U16) or 0,
    )


def block_sizes() -> dict:
    """Our table: tensor type id → (elements per block, bytes per block), without the removed types."""
    table = {}
    for kind in range(TENSOR_TYPES):
        block = block_size_of(kind)
        if block.elements:
            table[kind] = (block.elements, block.bytes)
    return table


def check_block_sizes(lib) -> None:
    """Compare our table with the library that will load the model; raises GgufError where they differ.

    `lib` is a ctypes library with ggml_blck_size and ggml_type_size (libggml-base, or what llama_cpp has loaded). Only
    the process that loads models calls this.
    """
    import ctypes

    # by index: function objects of our own, so that nobody else's argument types change
    blck_size = lib["ggml_blck_size"]
    blck_size.restype, blck_size.argtypes = ctypes.c_int64, [ctypes.c_int]
    type_size = lib["ggml_type_size"]
    type_size.restype, type_size.argtypes = ctypes.c_size_t, [ctypes.c_int]
    for kind, (elements, size) in block_sizes().items():
        theirs = (blck_size(kind), type_size(kind))
        if theirs != (elements, size):
            raise GgufError(
                "tensor-type-invalid", None,
                f"tensor type {kind} ({TYPE_NAMES[kind]}): {elements} elements in {size} bytes expected, "
                f"the linked library says {theirs[0]} in {theirs[1]}",
            )
    removed = set(range(TENSOR_TYPES)) - set(block_sizes())
    for kind in removed:
        if blck_size(kind) != 0:
            raise GgufError("tensor-type-removed", None, f"tensor type {kind} is in use in the linked library")

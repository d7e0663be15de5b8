"""The rules for what a model file says about itself: hyper-parameters and tensors.

Owns every range that the loader of llama.cpp relies on without testing it. Knows no Python object and no file: it reads
containers that gguf_container has accepted. The vocabulary's rules are next door in gguf_vocab. Absent keys are not
missed, except general.architecture.
"""

from libc.math cimport isfinite
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, strlen

from .gguf_container cimport (
    R_ARCHITECTURE_INVALID,
    R_ARCHITECTURE_MISSING,
    R_ARCHITECTURE_WRONG_TYPE,
    R_BLOCK_COUNT_INVALID,
    R_CONTEXT_LENGTH_INVALID,
    R_EMBEDDING_LENGTH_INVALID,
    R_EXPERT_COUNT_INVALID,
    R_FEED_FORWARD_LENGTH_INVALID,
    R_FLOAT_NOT_FINITE,
    R_FLOAT_OUT_OF_RANGE,
    R_HEAD_COUNT_INVALID,
    R_HEAD_SIZE_INVALID,
    R_HPARAM_ARRAY_LENGTH,
    R_HPARAM_WRONG_TYPE,
    R_ROPE_INVALID,
    R_TENSOR_DIM_ZERO,
    R_TENSOR_NOT_MAPPABLE,
    R_TENSOR_SHAPE_MISMATCH,
    R_TENSOR_TYPE_NOT_A_WEIGHT,
    R_VOCAB_SIZE_INVALID,
    T_ARRAY,
    T_F32,
    T_I32,
    T_STRING,
    T_U32,
    Value,
    container_find,
    report,
    tensor_at,
)
from .gguf_vocab cimport check_vocabulary
from .reader cimport load_f32, load_i32, load_u32

cdef enum:
    MAX_CONTEXT = 16777216
    MAX_EMBEDDING = 1048576
    MAX_FEED_FORWARD = 16777216
    MAX_HEADS = 65536
    MAX_HEAD_SIZE = 65536
    MAX_ARCHITECTURE = 64
    KEY_ROOM = 160                   # architecture, a dot and the longest suffix below
    MAP_ALIGNMENT = 32               # GGML_MEM_ALIGN of a mapped tensor, checked by the loader with an assertion

# A number per layer: one value for all, or one for each block.
cdef struct PerLayer:
    bint present
    bint is_array
    uint64_t count                   # values
    uint64_t at                      # file offset of the first
    uint64_t largest
    bint all_zero
    bint negative


cdef inline bint text_is(const uint8_t *text, size_t length, const char *expected) noexcept nogil:
    return strlen(expected) == length and memcmp(text, expected, length) == 0


cdef bint find_param(const Model *self, const char *suffix, Value *value) noexcept nogil:
    """Look up `<architecture>.<suffix>`."""
    cdef char[KEY_ROOM] key
    cdef size_t length = strlen(suffix)
    # arch_length <= MAX_ARCHITECTURE and every suffix is a constant below 64 bytes
    memcpy(key, self.arch, self.arch_length)
    key[self.arch_length] = c"."
    memcpy(key + self.arch_length + 1, suffix, length)
    return container_find(self.meta, key, self.arch_length + 1 + length, value)


cdef bint wrong_type(const Model *self, const Value *value, uint32_t wanted) noexcept nogil:
    return report(self.meta, R_HPARAM_WRONG_TYPE, value.at, wanted, value.type, "as the type", False)


cdef bint read_param(const Model *self, const char *suffix, uint64_t *number, uint64_t *at) noexcept nogil:
    """A u32 by name: `at` is 0 if it is absent. False after a fault."""
    cdef Value value
    at[0] = 0
    number[0] = 0
    if not find_param(self, suffix, &value):
        return True
    if value.type != T_U32:
        return not wrong_type(self, &value, T_U32)
    number[0] = load_u32(self.meta.window.data + value.at)
    at[0] = value.at
    return True


cdef bint check_range(
    const Model *self, const char *suffix, uint64_t low, uint64_t high, int reason, bint policy, uint64_t *number
) noexcept nogil:
    """A u32 that, if present, lies in low..high."""
    cdef uint64_t at
    if not read_param(self, suffix, number, &at):
        return False
    if at == 0 or (low <= number[0] <= high):
        return True
    return not report(self.meta, reason, at, low if number[0] < low else high, number[0], "as the limit", policy)


cdef bint read_per_layer(const Model *self, const char *suffix, PerLayer *layers) noexcept nogil:
    """A u32, or an array of u32 or i32 with block_count entries."""
    cdef Value value
    cdef const uint8_t *data
    cdef uint64_t i
    cdef uint64_t number
    layers.present = find_param(self, suffix, &value)
    layers.all_zero = True
    layers.negative = False
    layers.is_array = False
    layers.largest = 0
    layers.count = 0
    layers.at = 0
    if not layers.present:
        return True
    layers.is_array = value.type == T_ARRAY
    if layers.is_array:
        if value.element != T_U32 and value.element != T_I32:
            report(self.meta, R_HPARAM_WRONG_TYPE, value.at, T_U32, value.element, "as the element type", False)
            return False
        if self.blocks and value.count != self.blocks:
            report(self.meta, R_HPARAM_ARRAY_LENGTH, value.at, self.blocks, value.count, "elements", False)
            return False
    elif value.type != T_U32:
        return not wrong_type(self, &value, T_U32)
    layers.count = value.count
    layers.at = value.at
    data = self.meta.window.data + value.at
    for i in range(value.count):
        number = load_u32(data + 4 * i)
        if value.element == T_I32 and load_i32(data + 4 * i) < 0:
            layers.negative = True
        if number:
            layers.all_zero = False
        if number > layers.largest:
            layers.largest = number
    return True


cdef inline uint64_t layer_value(const Model *self, const PerLayer *layers, uint64_t layer) noexcept nogil:
    # A scalar holds for every layer; an array is asked only below its count.
    return load_u32(self.meta.window.data + layers.at + (4 * layer if layers.is_array else 0))


cdef bint is_recurrent(const Model *self) noexcept nogil:
    """Architectures that have no attention and write zero for heads and feed-forward."""
    cdef const uint8_t *arch = <const uint8_t *>self.arch
    cdef size_t length = self.arch_length
    return (
        text_is(arch, length, "mamba") or text_is(arch, length, "mamba2") or text_is(arch, length, "rwkv6")
        or text_is(arch, length, "rwkv6qwen2") or text_is(arch, length, "rwkv7") or text_is(arch, length, "arwkv7")
    )


cdef bint check_architecture(Model *self) noexcept nogil:
    cdef Value value
    cdef const uint8_t *text
    cdef uint8_t c
    cdef uint64_t i
    if not container_find(self.meta, "general.architecture", 20, &value):
        report(self.meta, R_ARCHITECTURE_MISSING, 24, 0, 0, "", False)
        return False
    if value.type != T_STRING:
        report(self.meta, R_ARCHITECTURE_WRONG_TYPE, value.at, T_STRING, value.type, "as the type", False)
        return False
    text = self.meta.window.data + value.at
    if not 1 <= value.count <= MAX_ARCHITECTURE:
        report(self.meta, R_ARCHITECTURE_INVALID, value.at, MAX_ARCHITECTURE, value.count, "bytes", False)
        return False
    for i in range(value.count):
        c = text[i]
        if not (c"a" <= c <= c"z" or c"0" <= c <= c"9" or (i > 0 and (c == c"_" or c == c"." or c == c"-"))):
            report(self.meta, R_ARCHITECTURE_INVALID, value.at + i, 0, c, "as the letter", False)
            return False
    self.arch = <const char *>text
    self.arch_length = value.count
    return True


cdef bint check_sizes(Model *self) noexcept nogil:
    cdef uint64_t number
    cdef uint64_t nextn
    cdef uint64_t at
    cdef Value value
    if not read_param(self, "block_count", &self.blocks, &at):
        return False
    if at and not 1 <= self.blocks <= MAX_BLOCKS:
        report(self.meta, R_BLOCK_COUNT_INVALID, at, 1 if self.blocks == 0 else MAX_BLOCKS, self.blocks,
               "as the limit", False)
        return False
    if not read_param(self, "nextn_predict_layers", &nextn, &at):
        return False
    if at and self.blocks and nextn > self.blocks:
        report(self.meta, R_BLOCK_COUNT_INVALID, at, self.blocks, nextn, "blocks at most", False)
        return False
    if not check_range(self, "context_length", 1, MAX_CONTEXT, R_CONTEXT_LENGTH_INVALID, True, &number):
        return False
    if not check_range(self, "embedding_length", 1, MAX_EMBEDDING, R_EMBEDDING_LENGTH_INVALID, False, &self.embedding):
        return False
    if not check_range(self, "vocab_size", 0, MAX_VOCABULARY, R_VOCAB_SIZE_INVALID, False, &number):
        return False
    if not check_range(self, "attention.key_length", 1, MAX_HEAD_SIZE, R_HEAD_SIZE_INVALID, False, &number):
        return False
    if not check_range(self, "attention.value_length", 1, MAX_HEAD_SIZE, R_HEAD_SIZE_INVALID, False, &number):
        return False
    if container_find(self.meta, "general.file_type", 17, &value) and value.type != T_U32:
        return not wrong_type(self, &value, T_U32)
    if container_find(self.meta, "general.name", 12, &value) and value.type != T_STRING:
        return not wrong_type(self, &value, T_STRING)
    return True


cdef bint check_experts(Model *self, uint64_t *experts) noexcept nogil:
    cdef uint64_t groups
    cdef uint64_t used_groups
    cdef uint64_t at
    cdef uint64_t groups_at
    cdef uint64_t used_at
    cdef uint64_t most
    cdef PerLayer used
    if not read_param(self, "expert_count", experts, &at) or not read_per_layer(self, "expert_used_count", &used):
        return False
    if not read_param(self, "expert_group_count", &groups, &groups_at):
        return False
    if not read_param(self, "expert_group_used_count", &used_groups, &used_at):
        return False
    if (
        text_is(<const uint8_t *>self.arch, self.arch_length, "hunyuan-dense")
        or text_is(<const uint8_t *>self.arch, self.arch_length, "hunyuan_vl")
    ) and experts[0] <= 1:
        # the loader sets both numbers to zero for these two
        experts[0] = 0
        return True
    most = used.largest
    if experts[0] > MAX_EXPERTS:
        report(self.meta, R_EXPERT_COUNT_INVALID, at, MAX_EXPERTS, experts[0], "experts at most", False)
        return False
    if most > experts[0] or used.negative:
        report(self.meta, R_EXPERT_COUNT_INVALID, used.at, experts[0], most, "experts used at most", False)
        return False
    if experts[0] > 0 and most == 0:
        report(self.meta, R_EXPERT_COUNT_INVALID, used.at if used.present else at, 1, 0, "experts used at least",
               False)
        return False
    if groups > 0 and groups >= experts[0]:
        report(self.meta, R_EXPERT_COUNT_INVALID, groups_at, experts[0], groups, "groups below", False)
        return False
    # llama.cpp ends the process when these do not hold (llama-model.cpp, load_hparams)
    if groups > 1 and (experts[0] % groups != 0 or not 0 < used_groups < groups):
        report(self.meta, R_EXPERT_COUNT_INVALID, groups_at, groups, used_groups, "groups, some of them used", False)
        return False
    return True


cdef bint check_heads(Model *self, uint64_t experts) noexcept nogil:
    cdef PerLayer heads
    cdef PerLayer kv_heads
    cdef PerLayer feed
    cdef uint64_t i
    cdef uint64_t count
    cdef uint64_t a
    cdef uint64_t b
    cdef uint64_t limit = MAX_HEADS
    cdef bint recurrent = is_recurrent(self)
    if self.embedding and self.embedding < limit:
        limit = self.embedding
    if not read_per_layer(self, "attention.head_count", &heads):
        return False
    if not read_per_layer(self, "attention.head_count_kv", &kv_heads):
        return False
    if not read_per_layer(self, "feed_forward_length", &feed):
        return False
    if heads.present and (heads.negative or heads.largest > limit):
        report(self.meta, R_HEAD_COUNT_INVALID, heads.at, limit, heads.largest, "heads at most", False)
        return False
    if kv_heads.present and (kv_heads.negative or kv_heads.largest > limit):
        report(self.meta, R_HEAD_COUNT_INVALID, kv_heads.at, limit, kv_heads.largest, "heads at most", False)
        return False
    if feed.present and (feed.negative or feed.largest > MAX_FEED_FORWARD):
        report(self.meta, R_FEED_FORWARD_LENGTH_INVALID, feed.at, MAX_FEED_FORWARD, feed.largest, "at most", False)
        return False
    if not recurrent:
        if heads.present and heads.all_zero:
            report(self.meta, R_HEAD_COUNT_INVALID, heads.at, 1, 0, "heads at least", False)
            return False
        if kv_heads.present and kv_heads.all_zero:
            report(self.meta, R_HEAD_COUNT_INVALID, kv_heads.at, 1, 0, "heads at least", False)
            return False
        # With experts, the dense feed-forward part may be absent.
        if feed.present and feed.all_zero and experts == 0:
            report(self.meta, R_FEED_FORWARD_LENGTH_INVALID, feed.at, 1, 0, "at least", False)
            return False
    if heads.present and kv_heads.present:
        count = heads.count if heads.is_array else kv_heads.count
        if heads.is_array and kv_heads.is_array and kv_heads.count < count:
            count = kv_heads.count
        for i in range(count):
            a = layer_value(self, &heads, i)
            b = layer_value(self, &kv_heads, i)
            if a and b and a % b != 0:
                report(self.meta, R_HEAD_COUNT_INVALID, kv_heads.at, a, b, "heads, a multiple of the kv heads", False)
                return False
    return check_rope(self, &heads)


cdef bint check_rope(Model *self, const PerLayer *heads) noexcept nogil:
    cdef uint64_t dims
    cdef uint64_t at
    cdef uint64_t size = 0
    cdef uint64_t first
    cdef uint64_t key_at
    cdef Value value
    cdef const uint8_t *text
    if not read_param(self, "rope.dimension_count", &dims, &at):
        return False
    if at:
        if dims % 2 != 0:
            report(self.meta, R_ROPE_INVALID, at, 2, dims, "as a divisor", False)
            return False
        if text_is(<const uint8_t *>self.arch, self.arch_length, "llama") and heads.present and heads.count:
            first = layer_value(self, heads, 0)
            if not read_param(self, "attention.key_length", &size, &key_at):
                return False
            if first and key_at == 0 and self.embedding:
                size = self.embedding // first
            if first and size and dims != size:
                report(self.meta, R_ROPE_INVALID, at, size, dims, "dimensions", False)
                return False
    if not find_param(self, "rope.scaling.type", &value):
        return True
    if value.type != T_STRING:
        return not wrong_type(self, &value, T_STRING)
    text = self.meta.window.data + value.at
    if not (
        text_is(text, value.count, "none") or text_is(text, value.count, "linear")
        or text_is(text, value.count, "yarn") or text_is(text, value.count, "longrope")
    ):
        report(self.meta, R_ROPE_INVALID, value.at, 0, 0, "", False)
        return False
    return True


cdef bint check_float(
    const Model *self, const char *suffix, float low, bint low_included, float high, bint policy
) noexcept nogil:
    """An f32 that, if present, is finite and lies between low and high (high excluded).

    `policy`: the reference runs with any value; without it only with values from zero up.
    """
    cdef Value value
    cdef float number
    if not find_param(self, suffix, &value):
        return True
    if value.type != T_F32:
        return not wrong_type(self, &value, T_F32)
    number = load_f32(self.meta.window.data + value.at)
    # The reference asserts only that an epsilon is not negative (and so that it is a number).
    policy = policy or number >= 0
    if not isfinite(number):
        return not report(self.meta, R_FLOAT_NOT_FINITE, value.at, 0, load_u32(self.meta.window.data + value.at),
                          "as bits", policy)
    if number < high and (number > low or (low_included and number == low)):
        return True
    return not report(self.meta, R_FLOAT_OUT_OF_RANGE, value.at, 0, load_u32(self.meta.window.data + value.at),
                      "as bits", policy)


cdef bint check_floats(const Model *self) noexcept nogil:
    # The reference loads and runs with any RoPE base or factor; a negative epsilon ends it at the first token.
    # A factor of zero is how writers say "none": the loader takes it as one.
    return (
        check_float(self, "rope.freq_base", 0.0, False, 3.5e38, True)
        and check_float(self, "rope.freq_base_swa", 0.0, False, 3.5e38, True)
        and check_float(self, "rope.scaling.factor", 0.0, True, 3.5e38, True)
        and check_float(self, "attention.layer_norm_epsilon", 0.0, True, 1.0, False)
        and check_float(self, "attention.layer_norm_rms_epsilon", 0.0, True, 1.0, False)
    )


cdef bint check_metadata(Model *self, Container *meta) noexcept nogil:
    """Check everything that the keys of `meta` say; False with the fault in meta."""
    cdef uint64_t experts
    cdef uint64_t number
    cdef uint64_t at
    self.meta = meta
    self.blocks = 0
    self.embedding = 0
    self.vocabulary = 0
    if not check_architecture(self) or not check_sizes(self) or not check_experts(self, &experts):
        return False
    if not check_heads(self, experts) or not check_floats(self):
        return False
    if not check_vocabulary(meta, &self.vocabulary):
        return False
    if self.vocabulary == 0:
        # no token list: the rows are whatever the key says
        if not read_param(self, "vocab_size", &self.vocabulary, &at):
            return False
    # Codec models name the row length of the embedding differently (llama-model.cpp, load_hparams).
    if text_is(<const uint8_t *>self.arch, self.arch_length, "wavtokenizer-dec"):
        if not read_param(self, "features_length", &number, &at):
            return False
        self.embedding = number
    return True


cdef bint is_matrix(const uint8_t *name, size_t length) noexcept nogil:
    """The matrices that every kernel multiplies with: token_embd, output, attention and feed-forward of a block."""
    cdef size_t i
    if length < 8 or memcmp(name + length - 7, ".weight", 7) != 0:
        return False
    length -= 7
    if text_is(name, length, "token_embd") or text_is(name, length, "output"):
        return True
    if length < 6 or memcmp(name, "blk.", 4) != 0:
        return False
    i = 4
    while i < length and c"0" <= name[i] <= c"9":
        i += 1
    if i == 4 or i == length or name[i] != c".":
        return False
    name += i + 1
    length -= i + 1
    if length > 5 and memcmp(name, "attn_", 5) == 0:
        name += 5
        length -= 5
        return (
            text_is(name, length, "q") or text_is(name, length, "k") or text_is(name, length, "v")
            or text_is(name, length, "qkv") or text_is(name, length, "output")
        )
    if length > 4 and memcmp(name, "ffn_", 4) == 0:
        name += 4
        length -= 4
        if length > 6 and memcmp(name + length - 6, "_shexp", 6) == 0:
            length -= 6
        elif length > 5 and memcmp(name + length - 5, "_exps", 5) == 0:
            length -= 5
        return text_is(name, length, "gate") or text_is(name, length, "up") or text_is(name, length, "down")
    return False


cdef bint is_vector(const uint8_t *name, size_t length) noexcept nogil:
    return (length >= 12 and memcmp(name + length - 12, "_norm.weight", 12) == 0) or (
        length >= 5 and memcmp(name + length - 5, ".bias", 5) == 0
    )


cdef inline bint is_weight_type(uint32_t kind) noexcept nogil:
    # I8 I16 I32 I64 F64, Q8_1, Q8_K: storage and intermediate formats without a multiplication kernel
    return not (24 <= kind <= 28 or kind == 9 or kind == 15)


cdef bint check_tensors(const Model *self, Container *part) noexcept nogil:
    """Check the tensors of one container of the model; False with the fault in `part`."""
    cdef Tensor tensor
    cdef const uint8_t *name
    cdef uint64_t at = part.tensors_at
    cdef uint64_t i
    cdef uint32_t d
    for i in range(part.num_tensors):
        tensor_at(part, at, &tensor)
        name = part.window.data + tensor.name_at + 8
        for d in range(tensor.num_dims):
            if tensor.dims[d] == 0:
                report(part, R_TENSOR_DIM_ZERO, at, 1, 0, "elements at least", False)
                return False
        if (part.data_start + tensor.offset) % MAP_ALIGNMENT != 0 and report(
            part, R_TENSOR_NOT_MAPPABLE, at, MAP_ALIGNMENT, part.data_start + tensor.offset, "as a divisor", True
        ):
            return False
        if is_matrix(name, tensor.name_length) and not is_weight_type(tensor.type):
            report(part, R_TENSOR_TYPE_NOT_A_WEIGHT, at, 0, tensor.type, "as the type", False)
            return False
        if is_vector(name, tensor.name_length) and tensor.type != 0:
            report(part, R_TENSOR_TYPE_NOT_A_WEIGHT, at, 0, tensor.type, "as the type", False)
            return False
        if text_is(name, tensor.name_length, "token_embd.weight") and not check_embedding(self, part, &tensor):
            return False
        at = tensor.next_at
    return True


cdef bint check_embedding(const Model *self, Container *part, const Tensor *tensor) noexcept nogil:
    if self.embedding and tensor.dims[0] != self.embedding:
        report(part, R_TENSOR_SHAPE_MISMATCH, tensor.name_at, self.embedding, tensor.dims[0], "elements a row", False)
        return False
    if self.vocabulary and tensor.dims[1] != self.vocabulary:
        report(part, R_TENSOR_SHAPE_MISMATCH, tensor.name_at, self.vocabulary, tensor.dims[1], "rows", False)
        return False
    if tensor.dims[2] != 1 or tensor.dims[3] != 1:
        report(part, R_TENSOR_SHAPE_MISMATCH, tensor.name_at, 1, tensor.dims[2] * tensor.dims[3], "matrices", False)
        return False
    return True

"""The container of a GGUF file, checked in one forward pass.

Owns the walk over header, keys and tensor table (format versions 2 and 3) and the arithmetic of the data section. Knows
nothing of models: which keys mean what is decided in gguf_model. Runs in the engine and in commands; no Python object
is touched between container_init and container_close, so the whole pass runs without the GIL.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memset

from .checked cimport add_u64, align_u64, mul_u64
from .gguf_set cimport (
    GG_TEXT_NOT_UTF8,
    GG_TEXT_NUL,
    SET_NO_MEMORY,
    SET_PRESENT,
    TextSet,
    gg_has_nul,
    gg_hash,
    gg_scan_text,
    set_add,
    set_close,
    set_find,
    set_open,
)
from .reader cimport (
    NEED_LOST,
    NEED_NO_MEMORY,
    NEED_OK,
    NEED_OVER_LIMIT,
    load_u32,
    load_u64,
    window_close,
    window_need,
    window_open,
)

cdef uint64_t INT63 = 0x7FFFFFFFFFFFFFFF

# Bytes of a scalar by ValueType; 0 for string and array.
cdef uint8_t[13] SCALAR_BYTES
for _index, _size in enumerate((1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8)):
    SCALAR_BYTES[_index] = _size

# Elements and bytes per block by tensor type (ggml 0.25.3); compared with the linked library by
# gguf.check_block_sizes. Zero: removed from the format.
cdef BlockSize[TENSOR_TYPES] BLOCKS
for _index, (_elements, _bytes) in enumerate((
    (1, 4), (1, 2), (32, 18), (32, 20), (0, 0), (0, 0), (32, 22), (32, 24), (32, 34), (32, 36),
    (256, 84), (256, 110), (256, 144), (256, 176), (256, 210), (256, 292), (256, 66), (256, 74), (256, 98), (256, 50),
    (32, 18), (256, 110), (256, 82), (256, 136), (1, 1), (1, 2), (1, 4), (1, 8), (1, 8), (256, 56),
    (1, 2), (0, 0), (0, 0), (0, 0), (256, 54), (256, 66), (0, 0), (0, 0), (0, 0), (32, 17),
    (64, 36), (128, 18), (64, 18),
)):
    BLOCKS[_index].elements = _elements
    BLOCKS[_index].bytes = _bytes


cdef const BlockSize *block_size_of(uint32_t tensor_type) noexcept nogil:
    """The block of a tensor type below TENSOR_TYPES; NULL for a number that is none."""
    if tensor_type >= TENSOR_TYPES:
        return NULL
    return &BLOCKS[tensor_type]


cdef bint report(
    Container *self, int reason, uint64_t offset, uint64_t wanted, uint64_t had, const char *what, bint policy
) noexcept nogil:
    """Note a fault; return True if it stands, False if the caller has waived it and the walk may go on."""
    if policy and self.allowed[reason]:
        self.found[reason] = 1
        return False
    self.fault.reason = reason
    self.fault.policy = policy
    self.fault.offset = offset
    self.fault.wanted = wanted
    self.fault.had = had
    self.fault.what = what
    return True


cdef void container_init(Container *self) noexcept nogil:
    memset(self, 0, sizeof(Container))


cdef void container_close(Container *self) noexcept nogil:
    window_close(&self.window)
    set_close(&self.keys)
    set_close(&self.names)


cdef inline uint64_t rest(const Container *self) noexcept nogil:
    return self.window.size - self.window.pos


cdef bint need(Container *self, uint64_t count, int reason, const char *what) noexcept nogil:
    """True if `count` bytes at the cursor are in memory; else the fault is noted, `reason` for a short file."""
    cdef int status = window_need(&self.window, count)
    if status == NEED_OK:
        return True
    if status == NEED_OVER_LIMIT:
        report(self, R_METADATA_TOO_LARGE, self.window.pos, self.window.limit, count, "bytes of metadata", False)
    elif status == NEED_LOST:
        report(self, R_FILE_CHANGED, self.window.filled, self.window.size, self.window.filled, "bytes in the file",
               False)
    elif status == NEED_NO_MEMORY:
        report(self, R_OUT_OF_MEMORY, self.window.pos, count, 0, "bytes of memory", False)
    else:
        report(self, reason, self.window.pos, count, rest(self), what, False)
    return False


cdef bint read_length(Container *self, uint64_t *length, int truncated, const char *what) noexcept nogil:
    """Read a string's length field and bring the string into memory; the cursor stands on its first byte then."""
    cdef uint64_t count
    if not need(self, 8, truncated, what):
        return False
    count = load_u64(self.window.data + self.window.pos)
    if count > MAX_STRING:
        report(self, R_STRING_LENGTH_OVERFLOW, self.window.pos, MAX_STRING, count, "bytes at most", False)
        return False
    self.window.pos += 8
    if not need(self, count, R_STRING_LENGTH_PAST_EOF, "bytes of a string"):
        return False
    length[0] = count
    return True


cdef int container_read(Container *self, int fd, uint64_t size, uint64_t cap) noexcept nogil:
    """Check the container behind `fd` (`size` bytes, from fstat); 0, or -1 with `fault` filled.

    At most `cap` bytes of metadata are kept. The secrets of both sets must be filled before.
    """
    if window_open(&self.window, fd, size, cap) != 0 or set_open(&self.keys, 48) != 0:
        report(self, R_OUT_OF_MEMORY, 0, size if size < cap else cap, 0, "bytes of memory", False)
        return -1
    if not read_header(self):
        return -1
    if not read_keys(self):
        return -1
    if not read_alignment(self):
        return -1
    if not read_tensors(self):
        return -1
    if not check_placement(self):
        return -1
    return 0


cdef bint read_header(Container *self) noexcept nogil:
    cdef const uint8_t *data
    # The magic may be judged on whatever is there: three wrong bytes are a wrong file, three right ones a short one.
    cdef uint64_t there = 4 if self.window.size > 4 else self.window.size
    if not need(self, there, R_TRUNCATED_HEADER, "bytes of header"):
        return False
    data = self.window.data
    if memcmp(data, "GGUF", there) != 0:
        report(self, R_BAD_MAGIC, 0, 0x46554747, load_u32(data) if there == 4 else data[0], "as the first word", False)
        return False
    if not need(self, 24, R_TRUNCATED_HEADER, "bytes of header"):
        return False
    data = self.window.data
    self.version = load_u32(data + 4)
    if self.version != 0 and (self.version & 0xFFFF) == 0:
        report(self, R_BIG_ENDIAN, 4, 3, self.version, "as the version", False)
        return False
    if self.version != 2 and self.version != 3:
        report(self, R_UNSUPPORTED_VERSION, 4, 3, self.version, "as the version", False)
        return False
    self.num_tensors = load_u64(data + 8)
    self.num_keys = load_u64(data + 16)
    if self.num_tensors > INT63 // TENSOR_STRUCT:
        report(self, R_TENSOR_COUNT_OVERFLOW, 8, INT63 // TENSOR_STRUCT, self.num_tensors, "tensors at most", False)
        return False
    if self.num_keys > INT63 // KEY_STRUCT:
        report(self, R_KV_COUNT_OVERFLOW, 16, INT63 // KEY_STRUCT, self.num_keys, "keys at most", False)
        return False
    self.window.pos = 24
    if self.num_keys > rest(self) // KEY_MINIMUM:
        report(self, R_KV_COUNT_PAST_EOF, 16, rest(self) // KEY_MINIMUM, self.num_keys, "keys in the rest", False)
        return False
    if self.num_tensors > rest(self) // TENSOR_MINIMUM:
        report(self, R_TENSOR_COUNT_PAST_EOF, 8, rest(self) // TENSOR_MINIMUM, self.num_tensors,
               "tensors in the rest", False)
        return False
    if self.num_keys > MAX_ENTRIES:
        report(self, R_METADATA_TOO_LARGE, 16, MAX_ENTRIES, self.num_keys, "keys", False)
        return False
    if self.num_tensors > MAX_ENTRIES:
        report(self, R_METADATA_TOO_LARGE, 8, MAX_ENTRIES, self.num_tensors, "tensors", False)
        return False
    return True


cdef bint read_keys(Container *self) noexcept nogil:
    cdef uint64_t i
    for i in range(self.num_keys):
        if not read_key(self):
            return False
    return True


cdef bint read_key(Container *self) noexcept nogil:
    cdef uint64_t start = self.window.pos
    cdef uint64_t length
    cdef uint64_t code
    cdef const uint8_t *text
    cdef int status
    cdef bint raw
    if not read_length(self, &length, R_TRUNCATED_KV, "bytes of a key"):
        return False
    if length == 0:
        report(self, R_KEY_EMPTY, start, 1, 0, "bytes of a key", False)
        return False
    if length > MAX_KEY:
        report(self, R_KEY_TOO_LONG, start, MAX_KEY, length, "bytes of a key", False)
        return False
    text = self.window.data + self.window.pos
    status = gg_scan_text(text, length)
    if status != 0:
        report(self, R_KEY_HAS_NUL if status == GG_TEXT_NUL else R_KEY_NOT_UTF8, start + 8, 0, 0, "", False)
        return False
    code = gg_hash(text, length, self.keys.secret)
    status = set_add(&self.keys, self.window.data, <uint32_t>start, code)
    if status == SET_PRESENT:
        report(self, R_DUPLICATE_KEY, start, 0, 0, "", False)
        return False
    if status == SET_NO_MEMORY:
        report(self, R_OUT_OF_MEMORY, start, self.keys.count, 0, "keys in memory", False)
        return False
    # Single raw bytes are legal in these two lists and nowhere else.
    raw = (
        (length == 21 and memcmp(text, "tokenizer.ggml.tokens", 21) == 0)
        or (length == 21 and memcmp(text, "tokenizer.ggml.merges", 21) == 0)
    )
    self.window.pos += length
    return read_value(self, raw)


cdef bint read_value(Container *self, bint raw) noexcept nogil:
    cdef uint32_t kind
    cdef uint64_t length
    cdef uint64_t size
    if not need(self, 4, R_TRUNCATED_KV, "bytes of a value type"):
        return False
    kind = load_u32(self.window.data + self.window.pos)
    if kind >= T_COUNT:
        report(self, R_VALUE_TYPE_INVALID, self.window.pos, T_COUNT - 1, kind, "as the largest type", False)
        return False
    self.window.pos += 4
    if kind == T_STRING:
        if not read_length(self, &length, R_TRUNCATED_KV, "bytes of a string length"):
            return False
        if not check_text(self, length, False):
            return False
        self.window.pos += length
        return True
    if kind == T_ARRAY:
        return read_array(self, raw)
    size = SCALAR_BYTES[kind]
    if not need(self, size, R_TRUNCATED_KV, "bytes of a value"):
        return False
    if kind == T_BOOL and not check_bools(self, 1):
        return False
    self.window.pos += size
    return True


cdef bint check_text(Container *self, uint64_t length, bint raw) noexcept nogil:
    """Refuse a zero byte or bad UTF-8 in the string at the cursor."""
    cdef const uint8_t *text = self.window.data + self.window.pos
    cdef int status
    if raw:
        # Two tokens that are equal up to a zero byte end the loader: no waiver here.
        if gg_has_nul(text, length):
            return not report(self, R_STRING_HAS_NUL, self.window.pos, 0, 0, "", False)
        return True
    status = gg_scan_text(text, length)
    if status == GG_TEXT_NUL and report(self, R_STRING_HAS_NUL, self.window.pos, 0, 0, "", True):
        return False
    if status == GG_TEXT_NOT_UTF8 and report(self, R_STRING_NOT_UTF8, self.window.pos, 0, 0, "", True):
        return False
    return True


cdef bint check_bools(Container *self, uint64_t count) noexcept nogil:
    cdef const uint8_t *data = self.window.data + self.window.pos
    cdef uint64_t i
    for i in range(count):
        if data[i] > 1 and report(self, R_BOOL_NOT_0_1, self.window.pos + i, 1, data[i], "at most", True):
            return False
    return True


cdef bint read_array(Container *self, bint raw) noexcept nogil:
    cdef uint32_t kind
    cdef uint64_t count
    cdef uint64_t size
    if not need(self, 12, R_TRUNCATED_KV, "bytes of an array head"):
        return False
    kind = load_u32(self.window.data + self.window.pos)
    if kind == T_ARRAY:
        report(self, R_NESTED_ARRAY_DEPTH, self.window.pos, 0, 0, "", False)
        return False
    if kind >= T_COUNT:
        report(self, R_ARRAY_TYPE_INVALID, self.window.pos, T_COUNT - 1, kind, "as the largest type", False)
        return False
    count = load_u64(self.window.data + self.window.pos + 4)
    if count > MAX_STRING:
        report(self, R_ARRAY_LENGTH_OVERFLOW, self.window.pos + 4, MAX_STRING, count, "elements at most", False)
        return False
    size = 8 if kind == T_STRING else SCALAR_BYTES[kind]
    # count <= 2^30 and size <= 8: the product is exact
    if count * size > self.window.size - self.window.pos - 12:
        report(self, R_ARRAY_LENGTH_PAST_EOF, self.window.pos + 4, count * size,
               self.window.size - self.window.pos - 12, "bytes of an array", False)
        return False
    self.window.pos += 12
    if kind == T_STRING:
        return read_strings(self, count, raw)
    if not need(self, count * size, R_ARRAY_LENGTH_PAST_EOF, "bytes of an array"):
        return False
    if kind == T_BOOL and not check_bools(self, count):
        return False
    self.window.pos += count * size
    return True


cdef bint read_strings(Container *self, uint64_t count, bint raw) noexcept nogil:
    """The elements of a string array: most lie in memory already and are walked without a call each."""
    cdef const uint8_t *data
    cdef uint64_t pos
    cdef uint64_t filled
    cdef uint64_t length
    cdef uint64_t i = 0
    while i < count:
        data = self.window.data
        pos = self.window.pos
        filled = self.window.filled
        # filled <= METADATA_CAP < MAX_STRING, so a length that fits is legal
        while i < count and filled - pos >= 8:
            length = load_u64(data + pos)
            if length > filled - pos - 8:
                break
            if (gg_has_nul(data + pos + 8, length) if raw else gg_scan_text(data + pos + 8, length)) != 0:
                break
            pos += 8 + length
            i += 1
        self.window.pos = pos
        if i == count:
            break
        # The window has to move on, or this element has a fault to report.
        if not read_length(self, &length, R_TRUNCATED_KV, "bytes of a string length"):
            return False
        if not check_text(self, length, raw):
            return False
        self.window.pos += length
        i += 1
    return True


cdef bint container_find(const Container *self, const char *key, size_t length, Value *value) noexcept nogil:
    """Fill `value` for a key that read_keys has accepted; False if the file has no such key."""
    cdef const uint8_t *data = self.window.data
    cdef uint64_t at = set_find(&self.keys, data, <const uint8_t *>key, length)
    if at == 0:
        return False
    at += 8 + length
    value.type = load_u32(data + at)
    value.element = value.type
    value.count = 1
    at += 4
    if value.type == T_STRING:
        value.count = load_u64(data + at)
        at += 8
    elif value.type == T_ARRAY:
        value.element = load_u32(data + at)
        value.count = load_u64(data + at + 4)
        at += 12
    value.at = at
    return True


cdef bint read_alignment(Container *self) noexcept nogil:
    cdef Value value
    self.alignment = DEFAULT_ALIGNMENT
    if not container_find(self, "general.alignment", 17, &value):
        return True
    if value.type != T_U32:
        report(self, R_ALIGNMENT_WRONG_TYPE, value.at, T_U32, value.type, "as the type", False)
        return False
    self.alignment = load_u32(self.window.data + value.at)
    if self.alignment == 0 or (self.alignment & (self.alignment - 1)) != 0:
        report(self, R_ALIGNMENT_NOT_POWER_OF_TWO, value.at, DEFAULT_ALIGNMENT, self.alignment, "say", False)
        return False
    if self.alignment < 8 and report(
        self, R_ALIGNMENT_NOT_MULTIPLE_OF_8, value.at, 8, self.alignment, "as a divisor", True
    ):
        return False
    return not (
        self.alignment > MAX_ALIGNMENT
        and report(self, R_ALIGNMENT_TOO_LARGE, value.at, MAX_ALIGNMENT, self.alignment, "at most", True)
    )


cdef bint read_tensors(Container *self) noexcept nogil:
    cdef uint64_t i
    self.tensors_at = self.window.pos
    # Grown by need, not by the count that the header claims.
    if set_open(&self.names, 48) != 0:
        return not report(self, R_OUT_OF_MEMORY, self.tensors_at, 1, 0, "sets in memory", False)
    for i in range(self.num_tensors):
        if not read_tensor(self):
            return False
    self.header_end = self.window.pos
    return True


cdef bint read_tensor(Container *self) noexcept nogil:
    cdef uint64_t start = self.window.pos
    cdef uint64_t length
    cdef const uint8_t *data
    cdef int status
    cdef uint32_t num_dims
    cdef uint64_t elements = 1
    cdef uint64_t row = 1
    cdef uint64_t size
    cdef uint32_t kind
    cdef uint64_t at
    cdef uint32_t i
    cdef bint empty = False
    if not read_length(self, &length, R_TRUNCATED_TENSOR_INFO, "bytes of a tensor name"):
        return False
    if length == 0 and report(self, R_TENSOR_NAME_EMPTY, start, 1, 0, "bytes of a tensor name", True):
        return False
    if length > MAX_TENSOR_NAME:
        report(self, R_TENSOR_NAME_TOO_LONG, start, MAX_TENSOR_NAME, length, "bytes of a tensor name", False)
        return False
    data = self.window.data + self.window.pos
    status = gg_scan_text(data, length)
    if status == GG_TEXT_NUL:
        report(self, R_TENSOR_NAME_HAS_NUL, start + 8, 0, 0, "", False)
        return False
    if status == GG_TEXT_NOT_UTF8 and report(self, R_TENSOR_NAME_NOT_UTF8, start + 8, 0, 0, "", True):
        return False
    status = set_add(&self.names, self.window.data, <uint32_t>start, gg_hash(data, length, self.names.secret))
    if status == SET_PRESENT:
        report(self, R_DUPLICATE_TENSOR, start, 0, 0, "", False)
        return False
    if status == SET_NO_MEMORY:
        report(self, R_OUT_OF_MEMORY, start, self.names.count, 0, "tensor names in memory", False)
        return False
    self.window.pos += length
    if not need(self, 4, R_TRUNCATED_TENSOR_INFO, "bytes of a dimension count"):
        return False
    num_dims = load_u32(self.window.data + self.window.pos)
    if num_dims > 4:
        report(self, R_TENSOR_NDIMS_INVALID, self.window.pos, 4, num_dims, "dimensions at most", False)
        return False
    self.window.pos += 4
    if not need(self, 8 * num_dims + 12, R_TRUNCATED_TENSOR_INFO, "bytes of a tensor description"):
        return False
    data = self.window.data
    for i in range(num_dims):
        at = self.window.pos + 8 * i
        size = load_u64(data + at)
        if size > INT63:
            report(self, R_TENSOR_DIM_NEGATIVE, at, INT63, size, "elements at most", False)
            return False
        if i == 0:
            row = size
        if size == 0:
            empty = True
        # zeros count as one, so that a zero does not hide a product that overflows
        elif mul_u64(elements, size, &elements) or elements > INT63:
            report(self, R_TENSOR_DIMS_OVERFLOW, at, INT63, size, "elements at most", False)
            return False
    self.window.pos += 8 * num_dims
    kind = load_u32(data + self.window.pos)
    if kind >= TENSOR_TYPES:
        report(self, R_TENSOR_TYPE_INVALID, self.window.pos, TENSOR_TYPES - 1, kind, "as the largest type", False)
        return False
    if BLOCKS[kind].elements == 0:
        report(self, R_TENSOR_TYPE_REMOVED, self.window.pos, 0, kind, "as the type", False)
        return False
    if row % BLOCKS[kind].elements != 0:
        report(self, R_TENSOR_ROW_NOT_BLOCK_MULTIPLE, start, BLOCKS[kind].elements, row, "elements a block", False)
        return False
    # The reference multiplies the row's elements by the block's bytes before it divides: that product must fit too.
    if mul_u64(row, BLOCKS[kind].bytes, &size):
        report(self, R_TENSOR_BYTES_OVERFLOW, start, INT63, row, "elements a row", False)
        return False
    if empty:
        size = 0
    elif mul_u64(elements // BLOCKS[kind].elements, BLOCKS[kind].bytes, &size):
        report(self, R_TENSOR_BYTES_OVERFLOW, start, INT63, elements, "elements", False)
        return False
    self.window.pos += 4
    if not place_tensor(self, load_u64(data + self.window.pos), size):
        return False
    self.window.pos += 8
    return True


cdef bint place_tensor(Container *self, uint64_t offset, uint64_t size) noexcept nogil:
    """Tensors lie one behind the other, padded: the only right offset is the running sum."""
    cdef uint64_t at = self.window.pos
    cdef uint64_t expected = self.data_bytes
    cdef uint64_t padded
    if align_u64(size, self.alignment, &padded) or add_u64(self.data_bytes, padded, &self.data_bytes):
        report(self, R_TENSOR_BYTES_OVERFLOW, at, INT63, size, "bytes in all", False)
        return False
    self.data_end = expected + size
    if offset == expected:
        return True
    if offset > self.window.size:
        report(self, R_TENSOR_PAST_EOF, at, expected, offset, "as the offset", False)
    elif offset % self.alignment != 0:
        report(self, R_TENSOR_OFFSET_MISALIGNED, at, expected, offset, "as the offset", False)
    elif offset > expected:
        report(self, R_TENSOR_OFFSET_GAP, at, expected, offset, "as the offset", False)
    else:
        report(self, R_TENSOR_OVERLAP, at, expected, offset, "as the offset", False)
    return False


cdef bint check_placement(Container *self) noexcept nogil:
    cdef uint64_t size = self.window.size
    cdef uint64_t end
    # header_end <= METADATA_CAP and alignment <= 2^31: no overflow
    align_u64(self.header_end, self.alignment, &self.data_start)
    if self.num_tensors == 0:
        # One of the two usual writers pads here, the other does not.
        return not (
            size > self.data_start
            and report(self, R_TRAILING_DATA, self.data_start, self.data_start, size, "bytes in the file", True)
        )
    if self.data_start > size:
        report(self, R_DATA_SECTION_PAST_EOF, self.header_end, self.data_start, size, "bytes in the file", False)
        return False
    if add_u64(self.data_start, self.data_bytes, &end):
        report(self, R_TENSOR_BYTES_OVERFLOW, self.tensors_at, INT63, self.data_bytes, "bytes in all", False)
        return False
    if self.data_end > size - self.data_start:
        report_past_end(self)
        return False
    return not (
        size > end and report(self, R_TRAILING_DATA, end, end, size, "bytes in the file", True)
    )


cdef void report_past_end(Container *self) noexcept nogil:
    """Find the first tensor that leaves the file, to name its place."""
    cdef Tensor tensor
    cdef uint64_t at = self.tensors_at
    cdef uint64_t room = self.window.size - self.data_start
    cdef uint64_t i
    for i in range(self.num_tensors):
        tensor_at(self, at, &tensor)
        if tensor.offset > room or tensor.bytes > room - tensor.offset:
            report(self, R_TENSOR_PAST_EOF, at, tensor.bytes, room - tensor.offset if tensor.offset < room else 0,
                   "bytes of a tensor", False)
            return
        at = tensor.next_at


cdef void tensor_at(const Container *self, uint64_t at, Tensor *tensor) noexcept nogil:
    """Decode the entry at `at` of a table that read_tensors has accepted."""
    cdef const uint8_t *data = self.window.data
    cdef uint64_t elements = 1
    cdef uint32_t i
    tensor.name_at = at
    tensor.name_length = <uint32_t>load_u64(data + at)
    at += 8 + tensor.name_length
    tensor.num_dims = load_u32(data + at)
    at += 4
    for i in range(4):
        tensor.dims[i] = load_u64(data + at + 8 * i) if i < tensor.num_dims else 1
        elements *= tensor.dims[i]
    at += 8 * tensor.num_dims
    tensor.type = load_u32(data + at)
    tensor.offset = load_u64(data + at + 4)
    tensor.bytes = elements // BLOCKS[tensor.type].elements * BLOCKS[tensor.type].bytes
    tensor.next_at = at + 12

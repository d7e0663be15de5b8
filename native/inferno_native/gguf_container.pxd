# The container of a GGUF file: header, keys, tensor table, placement of the data (format versions 2 and 3).

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from .gguf_set cimport TextSet
from .reader cimport Window

cdef enum:
    METADATA_CAP = 268435456         # bytes of header kept at most; the largest real one seen has 16 MB
    MAX_ENTRIES = 2097152            # keys, and tensors, at most: bounds the sets at 32 MiB each
    MAX_STRING = 1073741824          # the reference's limit for bytes of a string and elements of an array
    MAX_KEY = 65535
    MAX_TENSOR_NAME = 63
    MAX_ALIGNMENT = 65536
    DEFAULT_ALIGNMENT = 32
    TENSOR_TYPES = 43
    KEY_MINIMUM = 14                 # bytes: length, one letter, type, one-byte value, less the letter
    TENSOR_MINIMUM = 25              # bytes: length, one letter, dimension count, type, offset
    KEY_STRUCT = 104                 # bytes the reference holds per key and per tensor; only for its size test
    TENSOR_STRUCT = 400

cdef enum ValueType:
    T_U8, T_I8, T_U16, T_I16, T_U32, T_I32, T_F32, T_BOOL, T_STRING, T_ARRAY, T_U64, T_I64, T_F64
    T_COUNT

# One code for each reason; gguf.pyx holds their public names.
cdef enum Reason:
    R_OK
    R_OUT_OF_MEMORY, R_FILE_CHANGED, R_METADATA_TOO_LARGE
    R_BAD_MAGIC, R_TRUNCATED_HEADER, R_BIG_ENDIAN, R_UNSUPPORTED_VERSION
    R_TENSOR_COUNT_OVERFLOW, R_KV_COUNT_OVERFLOW, R_TENSOR_COUNT_PAST_EOF, R_KV_COUNT_PAST_EOF
    R_STRING_LENGTH_OVERFLOW, R_STRING_LENGTH_PAST_EOF, R_STRING_HAS_NUL, R_STRING_NOT_UTF8
    R_KEY_EMPTY, R_KEY_TOO_LONG, R_KEY_HAS_NUL, R_KEY_NOT_UTF8, R_DUPLICATE_KEY, R_TRUNCATED_KV
    R_VALUE_TYPE_INVALID, R_ARRAY_TYPE_INVALID, R_NESTED_ARRAY_DEPTH, R_ARRAY_LENGTH_OVERFLOW
    R_ARRAY_LENGTH_PAST_EOF, R_BOOL_NOT_0_1
    R_ALIGNMENT_WRONG_TYPE, R_ALIGNMENT_NOT_POWER_OF_TWO, R_ALIGNMENT_NOT_MULTIPLE_OF_8, R_ALIGNMENT_TOO_LARGE
    R_TRUNCATED_TENSOR_INFO, R_TENSOR_NAME_EMPTY, R_TENSOR_NAME_TOO_LONG, R_TENSOR_NAME_HAS_NUL
    R_TENSOR_NAME_NOT_UTF8, R_DUPLICATE_TENSOR, R_TENSOR_NDIMS_INVALID, R_TENSOR_DIM_NEGATIVE
    R_TENSOR_DIMS_OVERFLOW, R_TENSOR_TYPE_REMOVED, R_TENSOR_TYPE_INVALID, R_TENSOR_ROW_NOT_BLOCK_MULTIPLE
    R_TENSOR_BYTES_OVERFLOW, R_TENSOR_OFFSET_MISALIGNED, R_TENSOR_OFFSET_GAP, R_TENSOR_OVERLAP
    R_DATA_SECTION_PAST_EOF, R_TENSOR_PAST_EOF, R_TRAILING_DATA
    R_ARCHITECTURE_MISSING, R_ARCHITECTURE_WRONG_TYPE, R_ARCHITECTURE_INVALID
    R_HPARAM_WRONG_TYPE, R_HPARAM_ARRAY_LENGTH, R_BLOCK_COUNT_INVALID, R_CONTEXT_LENGTH_INVALID
    R_EMBEDDING_LENGTH_INVALID, R_FEED_FORWARD_LENGTH_INVALID, R_HEAD_SIZE_INVALID, R_VOCAB_SIZE_INVALID
    R_HEAD_COUNT_INVALID, R_ROPE_INVALID, R_FLOAT_NOT_FINITE, R_FLOAT_OUT_OF_RANGE, R_EXPERT_COUNT_INVALID
    R_TOKENIZER_UNKNOWN, R_TOKEN_LIST_MISSING, R_TOKENS_WRONG_TYPE, R_TOKEN_LIST_EMPTY, R_DUPLICATE_TOKEN
    R_SCORES_WRONG_TYPE, R_SCORES_LENGTH_MISMATCH, R_TOKEN_TYPE_WRONG_TYPE, R_TOKEN_TYPE_LENGTH_MISMATCH
    R_TOKEN_TYPE_OUT_OF_RANGE, R_BYTE_TOKEN_INVALID, R_BYTE_TOKENS_MISSING, R_BOS_TOKEN_MISSING
    R_EOS_TOKEN_MISSING, R_SPECIAL_TOKEN_WRONG_TYPE, R_MERGES_MISSING, R_MERGES_WRONG_TYPE, R_MERGE_MALFORMED
    R_SUPPRESS_TOKENS_WRONG_TYPE, R_CHARSMAP_INVALID
    R_TENSOR_DIM_ZERO, R_TENSOR_SHAPE_MISMATCH, R_TENSOR_NOT_MAPPABLE, R_TENSOR_TYPE_NOT_A_WEIGHT
    R_SPLIT_WRONG_TYPE, R_SPLIT_KEY_MISSING, R_SPLIT_NO_INVALID, R_SPLIT_SET_INCOMPLETE, R_SPLIT_COUNT_MISMATCH
    R_SPLIT_TENSOR_COUNT_MISMATCH
    R_COUNT

cdef struct BlockSize:
    uint32_t elements                # per block; 0 for a type that was removed from the format
    uint32_t bytes                   # per block

cdef struct Fault:
    int reason                       # R_OK while none was found
    bint policy                      # the reference takes such a file; an operator may waive it
    uint64_t offset                  # in the file
    uint64_t wanted
    uint64_t had
    const char *what                 # a constant that says what `wanted` and `had` count

cdef struct Container:
    Window window
    TextSet keys
    TextSet names
    uint8_t allowed[R_COUNT]         # reasons waived by the caller
    uint8_t found[R_COUNT]           # waived reasons that were met
    Fault fault
    uint32_t version
    uint32_t alignment
    uint64_t num_keys
    uint64_t num_tensors
    uint64_t tensors_at              # file offset of the tensor table
    uint64_t header_end              # of the first byte behind it
    uint64_t data_start
    uint64_t data_end                # unpadded end of the last tensor, relative to data_start
    uint64_t data_bytes              # padded sum of all tensors

cdef struct Value:
    uint32_t type                    # ValueType
    uint32_t element                 # ValueType of the elements of an array
    uint64_t count                   # elements of an array, bytes of a string, else 1
    uint64_t at                      # file offset of the first byte of the content

cdef struct Tensor:
    uint64_t name_at                 # file offset of the name's length field
    uint32_t name_length
    uint32_t num_dims
    uint64_t dims[4]
    uint32_t type
    uint64_t offset                  # from data_start
    uint64_t bytes                   # unpadded
    uint64_t next_at                 # file offset of the next entry

cdef const BlockSize *block_size_of(uint32_t tensor_type) noexcept nogil
cdef bint report(
    Container *self, int reason, uint64_t offset, uint64_t wanted, uint64_t had, const char *what, bint policy
) noexcept nogil
cdef void container_init(Container *self) noexcept nogil
cdef void container_close(Container *self) noexcept nogil
cdef int container_read(Container *self, int fd, uint64_t size, uint64_t cap) noexcept nogil
cdef bint container_find(const Container *self, const char *key, size_t length, Value *value) noexcept nogil
cdef void tensor_at(const Container *self, uint64_t at, Tensor *tensor) noexcept nogil

# The rules for the content of a model: hyper-parameters, vocabulary, tensor shapes and types.

from libc.stdint cimport uint32_t, uint64_t

from .gguf_container cimport Container, Tensor

cdef enum:
    MAX_BLOCKS = 512                 # LLAMA_MAX_LAYERS
    MAX_EXPERTS = 1024               # LLAMA_MAX_EXPERTS
    MAX_VOCABULARY = 16777216

cdef struct Model:
    Container *meta                  # the container that holds the metadata (shard 0)
    const char *arch                 # the architecture's bytes, inside the buffer
    size_t arch_length
    uint64_t embedding               # row length of token_embd; 0: unknown
    uint64_t vocabulary              # rows of token_embd; 0: unknown
    uint64_t blocks                  # 0: unknown

cdef bint check_metadata(Model *self, Container *meta) noexcept nogil
cdef bint check_tensors(const Model *self, Container *part) noexcept nogil

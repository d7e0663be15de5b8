# The rules for the vocabulary of a model.

from libc.stdint cimport uint64_t

from .gguf_container cimport Container

cdef bint check_vocabulary(Container *meta, uint64_t *num_tokens) noexcept nogil

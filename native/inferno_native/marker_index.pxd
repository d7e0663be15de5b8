"""The contract of inferno_native.marker_index: a read-only trie over the texts that a client must not be able to write."""

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, uint32_t


cdef struct Node:
    int32_t first_edge  # edges of one node stand together, sorted by character
    int32_t num_edges
    int32_t marker  # index of the text that ends here, or -1


cdef struct Edge:
    uint32_t character
    int32_t target


cdef struct Hit:
    Py_ssize_t start
    Py_ssize_t end
    int32_t marker


cdef struct Hits:
    Hit *items
    size_t size
    size_t capacity


cdef class MarkerIndex:
    cdef Node *_nodes
    cdef Edge *_edges
    cdef int32_t _root[128]  # the root's edges for ASCII, -1: none
    cdef Py_ssize_t _num_nodes
    cdef readonly Py_ssize_t max_length
    cdef int _search(self, int kind, const void *data, Py_ssize_t size, Hits *hits) noexcept nogil
    cdef int32_t _child(self, int32_t node, uint32_t character) noexcept nogil

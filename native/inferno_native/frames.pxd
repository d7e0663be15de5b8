"""Contract of event frames: fixed bytes around one JSON string."""

from libc.stdint cimport uint8_t


cdef Py_ssize_t escaped_size(const uint8_t* text, Py_ssize_t size) noexcept nogil
cdef uint8_t* write_escaped(const uint8_t* text, Py_ssize_t size, uint8_t* out) noexcept nogil


cdef class TextFrame:
    cdef bytes _before
    cdef bytes _after

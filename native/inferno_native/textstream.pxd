"""Bytes of sampled tokens become text for a client: whole code points, cut before the first stop string."""

from libc.stdint cimport int32_t, int64_t, uint8_t


cdef struct StopPattern:
    const uint8_t *bytes  # not owned: lies in TextStream._stops
    int32_t size
    int32_t matched  # bytes of it that the text ends with now
    int32_t *failure  # KMP failure table, `size` entries, owned


cdef class TextStream:
    cdef object _stops  # list of bytes objects that the patterns point into
    cdef StopPattern *_patterns
    cdef int _num_patterns
    cdef uint8_t *_held  # bytes received and not yet given out
    cdef Py_ssize_t _num_held
    cdef Py_ssize_t _capacity
    cdef readonly int64_t num_received  # bytes fed
    cdef readonly int64_t num_emitted  # bytes given out as text
    cdef readonly bint stopped  # a stop string was met; `stop_offset` is where it starts
    cdef readonly int64_t stop_offset

    cdef int feed(self, const uint8_t *data, Py_ssize_t size, bint match_stops) except -1
    cdef str take(self, bint finish)

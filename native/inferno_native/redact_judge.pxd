"""Tells a secret from what only looks like one."""

from libc.stdint cimport uint8_t

cdef bint in_alphabet(uint8_t c, int alphabet) noexcept nogil
cdef Py_ssize_t contains(const uint8_t *s, Py_ssize_t n, const char *text) noexcept nogil   # any case; -1: it does not
cdef double entropy(const uint8_t *s, Py_ssize_t n) noexcept nogil
cdef bint is_stand_in(const uint8_t *s, Py_ssize_t n) noexcept nogil
cdef bint is_real_body(const uint8_t *s, Py_ssize_t n, int flags) noexcept nogil
cdef bint is_secret_value(const uint8_t *s, Py_ssize_t n, bint quoted, bint strong, bint loose) noexcept nogil
cdef Py_ssize_t decode_base64(const uint8_t *s, Py_ssize_t n, uint8_t *out) noexcept nogil

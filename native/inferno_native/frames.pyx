"""Frames of server-sent events: what stands before and after a text is fixed for an answer, the text is new.

A frame is made in one allocation: sizes first, then bytes. The text becomes a JSON string as RFC 8259 asks (quotes,
backslashes and the characters below U+0020 escaped, the short escapes where there are some, all else as UTF-8), byte for
byte what msgspec writes. Knows nothing of what a frame says. Runs in front workers.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.string cimport memcpy

cdef const char* HEX = b"0123456789abcdef"

# The letter behind the backslash, 'u' for the long form, 0 for bytes that stand for themselves.
cdef uint8_t[256] ESCAPES
for _byte in range(256):
    ESCAPES[_byte] = c"u" if _byte < 0x20 else 0
for _byte, _letter in zip(b'\b\t\n\f\r"\\', b'btnfr"\\'):
    ESCAPES[_byte] = _letter


cdef Py_ssize_t escaped_size(const uint8_t* text, Py_ssize_t size) noexcept nogil:
    """Return how many bytes `size` bytes of UTF-8 take inside of a JSON string: at most six times as many."""
    cdef Py_ssize_t i
    cdef Py_ssize_t total = size
    cdef uint8_t escape
    for i in range(size):
        escape = ESCAPES[text[i]]
        if escape:
            total += 5 if escape == c"u" else 1
    return total


cdef uint8_t* write_escaped(const uint8_t* text, Py_ssize_t size, uint8_t* out) noexcept nogil:
    """Write exactly `escaped_size(text, size)` bytes; return where they end."""
    cdef Py_ssize_t i
    cdef uint8_t byte, escape
    for i in range(size):
        byte = text[i]
        escape = ESCAPES[byte]
        if escape == 0:
            out[0] = byte
            out += 1
            continue
        out[0] = c"\\"
        out[1] = escape
        out += 2
        if escape == c"u":
            out[0] = c"0"
            out[1] = c"0"
            out[2] = HEX[byte >> 4]
            out[3] = HEX[byte & 15]
            out += 4
    return out


cdef class TextFrame:
    """TextFrame(before, after): `write(text)` returns before + text as a JSON string with its quotes + after."""

    def __cinit__(self, bytes before not None, bytes after not None):
        self._before = before
        self._after = after

    def write(self, str text not None):
        """Return one frame. Raises UnicodeEncodeError for lone surrogates, MemoryError."""
        cdef Py_ssize_t size = 0
        cdef const char* utf8 = PyUnicode_AsUTF8AndSize(text, &size)
        cdef const uint8_t* source = <const uint8_t*> utf8
        cdef Py_ssize_t before = PyBytes_GET_SIZE(self._before)
        cdef Py_ssize_t after = PyBytes_GET_SIZE(self._after)
        cdef Py_ssize_t escaped = escaped_size(source, size)  # a str is below PY_SSIZE_T_MAX / 6 on every machine with 64 bits
        cdef bytes frame = PyBytes_FromStringAndSize(NULL, before + escaped + 2 + after)
        cdef uint8_t* out = <uint8_t*> PyBytes_AS_STRING(frame)
        memcpy(out, PyBytes_AS_STRING(self._before), <size_t> before)
        out += before
        out[0] = c'"'
        out += 1
        if escaped == size:
            memcpy(out, source, <size_t> size)
            out += size
        else:
            out = write_escaped(source, size, out)
        out[0] = c'"'
        memcpy(out + 1, PyBytes_AS_STRING(self._after), <size_t> after)
        return frame

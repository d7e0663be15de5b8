"""Text cleaning for INP-4 and INP-5, and the forms in which text is scanned."""

from libc.stdint cimport uint8_t, uint64_t

cdef enum Feature:
    F_CONTROL = 1       # a control character other than tab, newline, carriage return
    F_WIDE = 2          # something outside ASCII
    F_SPACED = 4        # single letters with single separators: h i d d e n
    F_LEET = 8          # a digit between letters: pr0mpt
    F_ENCODED = 16      # a percent sign or an ampersand
    F_LONG_RUN = 32     # twelve and more letters or digits on end: base64, hashes
    F_NUL = 64

cdef extern from "textfeatures.h" nogil:
    unsigned inferno_text_features(const uint8_t *s, Py_ssize_t n)

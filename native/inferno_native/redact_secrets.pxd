"""Recognisers of secrets: vendors' tokens, JWT, private keys, passwords in URLs, Basic, Bearer, assigned values."""

from libc.stdint cimport uint8_t

from .shadow cimport Verdict, View

cdef enum Recogniser:
    R_KEYED = 0     # prefix, then a run of the body's alphabet
    R_WORD = 1      # a word such as "password", then what is assigned to it
    R_PEM = 2
    R_BASIC = 3
    R_BEARER = 4
    R_HOOK = 5      # a webhook address, covered from its scheme on

cdef struct Literal:
    const char *text
    int size
    int recogniser
    int offset      # of the four bytes that the skip loop knows
    bint fold       # any case
    bint pair       # the skip loop knows two bytes of it, not four
    int alphabet
    int shortest    # of the body
    int longest     # 0: no limit
    int kind
    int flags

cdef Literal LITERALS[200]
cdef int NUM_LITERALS

cdef void literal_verdict(View *w, Py_ssize_t start, const Literal *literal, Verdict *v) noexcept nogil
cdef void url_at(View *w, Py_ssize_t colon, Verdict *v) noexcept nogil
cdef void jwt_at(View *w, Py_ssize_t start, Verdict *v) noexcept nogil
cdef Py_ssize_t pem_goes_on(View *w, Py_ssize_t pos, bint *ended, bint *more) noexcept nogil

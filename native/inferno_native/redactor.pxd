"""The streaming redactor: text in, text out with secrets and personal data replaced by markers."""

from libc.stdint cimport uint8_t, uint32_t

from .redact_words cimport Marks, Past
from .shadow cimport Verdict, View

cdef extern from "prefilter.h" nogil:
    ctypedef struct inferno_prefilter:
        uint8_t gram[32768]
        uint8_t confirm[65536]
        uint8_t pair[8192]
    void inferno_mark_pair(inferno_prefilter *filter, uint8_t first, uint8_t second)
    uint32_t inferno_gram(const uint8_t *p)
    void inferno_mark_gram(inferno_prefilter *filter, const uint8_t *p)
    int inferno_pair_at(const inferno_prefilter *filter, const uint8_t *p)
    int inferno_gram_at(const inferno_prefilter *filter, const uint8_t *p)
    Py_ssize_t inferno_prefilter_next(const inferno_prefilter *filter, const uint8_t *s, Py_ssize_t pos, Py_ssize_t n)

cdef class OwnSecrets:
    cdef inferno_prefilter filter
    cdef uint8_t first[256]     # shadow bytes with which a secret starts
    cdef dict lengths           # first four shadow bytes, folded -> lengths, longest first
    cdef set digests            # keyed digests; the values themselves are not kept
    cdef bytes key

cdef class Redactor:
    cdef const inferno_prefilter *filter
    cdef OwnSecrets own
    cdef frozenset allowed
    cdef bint strict, personal, json, broken, finished
    cdef uint8_t *shadow        # [0, size): context that has left, then the pending text
    cdef Py_ssize_t size, capacity
    cdef str pending            # the text from shadow index `emitted` on
    cdef Py_ssize_t emitted     # shadow index of the first character that has not left
    cdef Py_ssize_t pos         # shadow index of the next trigger to look at
    cdef Py_ssize_t floor       # shadow index behind the last covered span
    cdef Py_ssize_t origin      # stream offset of shadow index 0
    cdef Py_ssize_t json_pos    # shadow index up to which quotes were counted
    cdef bint json_string, json_escape
    cdef int swallow, jwt_dots
    cdef Marks marks            # words of other scripts, by shadow index
    cdef Past past
    cdef set collected
    cdef readonly dict counts
    cdef readonly list spans
    cdef readonly Py_ssize_t steps

    cdef int _append(self, str text) except -1
    cdef str _run(self, bint final)
    cdef Py_ssize_t _next(self, View *w, Py_ssize_t pos) noexcept
    cdef int _verdict(self, View *w, Py_ssize_t t, Verdict *v) except -1
    cdef bint _before(self, View *w, Py_ssize_t t, Verdict *v) except -1
    cdef int _own(self, View *w, Py_ssize_t t, Verdict *v) except -1
    cdef bint _is_allowed(self, int kind, str value) except -1
    cdef Py_ssize_t _swallow(self, View *w, Py_ssize_t pos, bint *more) except -1
    cdef Py_ssize_t _tail_hold(self) noexcept
    cdef bint _inside_string(self, Py_ssize_t upto) noexcept
    cdef void _trim(self) noexcept

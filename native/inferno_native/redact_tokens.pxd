"""Recognisers of tokens that show by themselves what they are."""

from .redact_literals cimport Literal
from .shadow cimport Verdict, View

cdef void keyed_at(View *w, Py_ssize_t start, const Literal *literal, Verdict *v) noexcept nogil
cdef void hook_at(View *w, Py_ssize_t start, const Literal *literal, Verdict *v) noexcept nogil
cdef void jwt_at(View *w, Py_ssize_t start, Verdict *v) noexcept nogil
cdef void token_at(View *w, Py_ssize_t start, Verdict *v) noexcept nogil    # a keyed token or a JWT exactly at start

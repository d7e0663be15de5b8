"""Recognisers of secrets that their context gives away."""

from .redact_literals cimport Literal
from .shadow cimport Verdict, View

cdef void literal_verdict(View *w, Py_ssize_t start, const Literal *literal, Verdict *v) noexcept nogil    # by its recogniser
cdef void url_at(View *w, Py_ssize_t colon, Verdict *v) noexcept nogil
cdef void foreign_at(View *w, Py_ssize_t t, Verdict *v) noexcept nogil     # behind a word of redact_words

"""Recognisers of personal data: cards, IBAN, US social security numbers, telephone numbers, private addresses, e-mail."""

from .shadow cimport Verdict, View

cdef void number_at(View *w, Py_ssize_t pos, Verdict *v) noexcept nogil     # s[pos] no letter or digit, s[pos + 1] a digit
cdef void iban_at(View *w, Py_ssize_t pos, Verdict *v) noexcept nogil       # s[pos] a letter, s[pos + 1] a digit
cdef void email_at(View *w, Py_ssize_t pos, Verdict *v) noexcept nogil      # s[pos] of a local part, s[pos + 1] an @
cdef bint boundary_before(View *w, Py_ssize_t pos) noexcept nogil

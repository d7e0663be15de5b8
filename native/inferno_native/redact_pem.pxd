"""The recogniser of private keys in PEM form."""

from .redact_literals cimport Literal
from .shadow cimport Verdict, View

cdef void pem_at(View *w, Py_ssize_t start, const Literal *literal, Verdict *v) noexcept nogil
cdef Py_ssize_t pem_goes_on(View *w, Py_ssize_t pos, bint *ended, bint *more) noexcept nogil

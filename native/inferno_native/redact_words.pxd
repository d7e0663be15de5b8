"""Words for "password" and their like that hold letters outside of ASCII, found while text is taken in."""

from libc.stdint cimport uint32_t

from .shadow cimport Mark

cdef enum:
    MAX_WORD = 24       # characters of the longest word

cdef struct Head:
    uint32_t text[MAX_WORD]
    int size
    int next            # another head whose last character has the same low byte, plus one
    bint strong         # the value is a secret by its name alone
    bint latin          # Latin letters may go on behind it
    const char *tails[4]    # what follows in ASCII, one of them; none: nothing must

cdef Head HEADS[128]

cdef struct Marks:
    Mark *items         # by index, rising
    Py_ssize_t num
    Py_ssize_t capacity

cdef struct Past:
    uint32_t recent[MAX_WORD]   # the last characters that were taken in, the newest last
    Py_ssize_t word             # index behind which a word ended last

cdef int find_marks(int kind, const void *data, Py_ssize_t n, Py_ssize_t base, Past *past, Marks *marks) except -1
cdef void remember(int kind, const void *data, Py_ssize_t n, Past *past) noexcept

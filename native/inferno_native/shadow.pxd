"""What the redactor's recognisers look at: one byte per character, and the verdict that they give.

The shadow of a text has one byte for each code point, so that its indices are the text's own: ASCII as it is,
look-alike spaces and full-width forms as their ASCII twins, other letters as 0x80, other marks as 0x81. Recognisers
read it and never see the text itself. Every one of them must answer MORE when its answer hangs on characters that
have not come yet: that is what makes any split of a stream give the same result.
"""

from libc.stdint cimport uint8_t

cdef enum Status:
    NO = 0      # nothing starts at this trigger, whatever follows
    MORE = 1    # cannot tell yet; `hold` is the first index that may still be covered
    HIT = 2     # [start, end) is of `kind`

cdef enum Swallow:
    SWALLOW_NONE = 0
    SWALLOW_RUN = 1     # a token longer than MAX_RUN: drop base64url characters until it ends
    SWALLOW_JWT = 2     # the parts of a JWT that follow the proof
    SWALLOW_PEM = 3     # a private key's body up to its END line

cdef struct Mark:
    Py_ssize_t at   # where a word of redact_words ends, in the shadow
    int code        # the word's number in its table plus one, or one of these:

cdef enum:
    MARK_IS = -1        # ends a word that means "is"
    MARK_OPENING = -2   # an opening quote or a dash

cdef struct View:
    const uint8_t *s    # shadow; s[0] is a newline or older context
    Py_ssize_t n        # characters known so far
    Py_ssize_t floor    # no span starts before this index
    bint final          # nothing will follow
    bint json           # the text is JSON: an unescaped quote ends a string
    bint personal       # profile has the personal kinds
    bint strict         # profile has private addresses
    Py_ssize_t run_start, run_end   # the last run of token characters measured, so that dense triggers stay linear
    int run_alphabet    # of which alphabet that run is
    const Mark *marks   # by index, rising
    Py_ssize_t num_marks
    Py_ssize_t steps    # characters looked at: the work done, for the tests that assert linear time

cdef struct Verdict:
    int status
    Py_ssize_t start
    Py_ssize_t end
    Py_ssize_t hold
    int kind
    int swallow

cdef enum:
    MAX_RUN = 512       # a token's characters that are looked at before it is judged
    MAX_LOCAL = 64      # RFC 5321 4.5.3.1.1: octets of a local part
    MAX_CONTEXT = 160   # characters kept behind the last one that left, for words before a value

# Kinds, in the order of KIND_NAMES in redactor.pyx.
cdef enum Kind:
    K_OWN = 0
    K_AWS_ID, K_AWS_SECRET, K_GITHUB, K_GITLAB, K_SLACK, K_SLACK_HOOK, K_GOOGLE, K_GOOGLE_OAUTH, K_STRIPE
    K_OPENAI, K_ANTHROPIC, K_HF, K_NPM, K_PYPI, K_SENDGRID, K_AZURE, K_JWT, K_PEM, K_URL, K_BASIC, K_BEARER
    K_GENERIC, K_INFERNO, K_SERVICE
    K_CARD, K_IBAN, K_SSN, K_EMAIL, K_PHONE, K_IPV4
    K_COUNT

cdef inline bint is_digit(uint8_t c) noexcept nogil:
    return 48 <= c <= 57

cdef inline bint is_upper(uint8_t c) noexcept nogil:
    return 65 <= c <= 90

cdef inline bint is_lower(uint8_t c) noexcept nogil:
    return 97 <= c <= 122

cdef inline bint is_alpha(uint8_t c) noexcept nogil:
    return 65 <= c <= 90 or 97 <= c <= 122

cdef inline bint is_alnum(uint8_t c) noexcept nogil:
    return is_alpha(c) or is_digit(c)

cdef inline bint is_word(uint8_t c) noexcept nogil:
    return is_alnum(c) or c == 95

cdef inline bint is_url64(uint8_t c) noexcept nogil:
    return is_alnum(c) or c == 95 or c == 45

cdef inline bint is_base64(uint8_t c) noexcept nogil:
    return is_alnum(c) or c == 43 or c == 47 or c == 61

cdef inline bint is_local(uint8_t c) noexcept nogil:
    return is_alnum(c) or c == 46 or c == 95 or c == 45 or c == 43 or c == 37

cdef inline bint is_space(uint8_t c) noexcept nogil:
    return c == 32 or c == 9 or c == 10 or c == 13

cdef inline uint8_t lower(uint8_t c) noexcept nogil:
    return c + 32 if 65 <= c <= 90 else c

cdef inline void set_no(Verdict *v) noexcept nogil:
    v.status = NO
    v.swallow = SWALLOW_NONE

cdef inline void set_more(Verdict *v, Py_ssize_t hold) noexcept nogil:
    v.status = MORE
    v.hold = hold

cdef inline void set_hit(Verdict *v, Py_ssize_t start, Py_ssize_t end, int kind, int swallow) noexcept nogil:
    v.status = HIT
    v.start = start
    v.end = end
    v.hold = start
    v.kind = kind
    v.swallow = swallow

cdef inline Py_ssize_t mark_from(View *w, Py_ssize_t pos) noexcept nogil:
    """The number of the first mark at pos or behind."""
    cdef Py_ssize_t low = 0, high = w.num_marks, middle
    while low < high:
        middle = (low + high) >> 1
        if w.marks[middle].at < pos:
            low = middle + 1
        else:
            high = middle
    return low

cdef inline int mark_at(View *w, Py_ssize_t pos) noexcept nogil:
    """The mark's code at pos; 0: there is none."""
    cdef Py_ssize_t k = mark_from(w, pos)
    return w.marks[k].code if k < w.num_marks and w.marks[k].at == pos else 0

cdef inline int literal_at(View *w, Py_ssize_t pos, const char *text, Py_ssize_t size, bint fold) noexcept nogil:
    """1: the literal stands at pos; 0: it does not; 2: the text ends inside of it."""
    cdef Py_ssize_t k
    cdef uint8_t c
    for k in range(size):
        if pos + k >= w.n:
            return 0 if w.final else 2
        c = w.s[pos + k]
        if fold:
            c = lower(c)
        if c != <uint8_t>text[k]:
            return 0
    return 1

"""Tells a secret from what only looks like one: stand-ins, code, words, runs of one character.

Pure functions of a stretch of the shadow; nothing here knows where it stands. Runs in the front's workers without the GIL.
"""

from libc.math cimport log2
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcmp, memset, strlen

from .redact_literals cimport A_ALNUM, A_BASE64, A_DOTTED, A_HEX, A_QUERY, A_UPPER, A_URL64, A_WORD, F_MIX
from .shadow cimport is_alnum, is_alpha, is_base64, is_digit, is_lower, is_upper, is_url64, is_word, lower

cdef enum:
    JUDGED = 64         # characters of a body that decide whether it is real

# Parts that show a value to be a stand-in.
cdef const char *STAND_INS[30]  # a list of another length does not compile
STAND_INS[:] = [
    b"your", b"example", b"placeholder", b"changeme", b"change-me", b"change_me", b"changeit", b"replace",
    b"redacted", b"xxxxx", b"*****", b".....", b"insert", b"dummy", b"todo", b"fixme", b"password", b"passwd",
    b"not-a-", b"notasecret", b"fake", b"sample", b"_here", b"-here", b"undefined", b"12345678", b"abcdefgh",
    b"secret_name", b"none", b"null"
]
_stand_ins = [bytes(STAND_INS[i]).decode() for i in range(sizeof(STAND_INS) // sizeof(STAND_INS[0]))]  # for the slow twin


cdef bint in_alphabet(uint8_t c, int alphabet) noexcept nogil:
    if alphabet == A_URL64:
        return is_url64(c)
    if alphabet == A_ALNUM:
        return is_alnum(c)
    if alphabet == A_HEX:
        return is_digit(c) or 97 <= c <= 102 or 65 <= c <= 70
    if alphabet == A_UPPER:
        return is_upper(c) or is_digit(c)
    if alphabet == A_BASE64:
        return is_base64(c)
    if alphabet == A_DOTTED:
        return is_url64(c) or c == 46
    if alphabet == A_WORD:
        return is_word(c)
    if alphabet == A_QUERY:
        return is_base64(c) or c == 37
    return is_url64(c) or c == 47


cdef Py_ssize_t contains(const uint8_t *s, Py_ssize_t n, const char *text) noexcept nogil:
    cdef Py_ssize_t size = <Py_ssize_t>strlen(text), i, k
    for i in range(n - size + 1):
        k = 0
        while k < size and lower(s[i + k]) == <uint8_t>text[k]:
            k += 1
        if k == size:
            return i
    return -1


cdef double entropy(const uint8_t *s, Py_ssize_t n) noexcept nogil:
    """Shannon entropy in bits per character."""
    cdef int counts[256]
    cdef double total = 0
    cdef Py_ssize_t i
    memset(counts, 0, sizeof(counts))
    for i in range(n):
        counts[s[i]] += 1
    for i in range(256):
        if counts[i]:
            total -= counts[i] * log2(<double>counts[i] / <double>n)
    return total / <double>n


cdef bint is_stand_in(const uint8_t *s, Py_ssize_t n) noexcept nogil:
    cdef size_t k
    for k in range(sizeof(STAND_INS) // sizeof(STAND_INS[0])):
        if contains(s, n, STAND_INS[k]) >= 0:
            return True
    return False


cdef bint is_real_body(const uint8_t *s, Py_ssize_t n, int flags) noexcept nogil:
    """Not one character over and over, no obvious stand-in; a checksum is never asked: it could only clear a secret."""
    cdef Py_ssize_t i, digits = 0, letters = 0
    cdef uint32_t seen = 0
    cdef int distinct = 0
    cdef uint8_t marks[256]
    memset(marks, 0, sizeof(marks))
    if n > JUDGED:
        n = JUDGED
    for i in range(n):
        if not marks[s[i]]:
            marks[s[i]] = 1
            distinct += 1
        if is_digit(s[i]):
            digits += 1
        elif is_alpha(s[i]):
            letters += 1
    if distinct < 5:
        return False
    if flags & F_MIX and (digits == 0 or letters == 0):
        return False
    return not (contains(s, n, b"example") >= 0 or contains(s, n, b"xxxxx") >= 0 or contains(s, n, b"your") >= 0
                or contains(s, n, b"redacted") >= 0 or contains(s, n, b"placeholder") >= 0)


cdef int decode64(uint8_t c) noexcept nogil:
    if is_upper(c):
        return c - 65
    if is_lower(c):
        return c - 71
    if is_digit(c):
        return c + 4
    if c == 43 or c == 45:
        return 62
    return 63 if c == 47 or c == 95 else -1


cdef Py_ssize_t decode_base64(const uint8_t *s, Py_ssize_t n, uint8_t *out) noexcept nogil:
    """Both alphabets, padding optional; the number of bytes, -1 when it is no base64."""
    cdef Py_ssize_t i, size = 0
    cdef int value, bits = 0
    cdef uint32_t buffer = 0
    for i in range(n):
        if s[i] == 61:
            break
        value = decode64(s[i])
        if value < 0:
            return -1
        buffer = ((buffer << 6) | <uint32_t>value) & 0xFFFFFF
        bits += 6
        if bits >= 8:
            bits -= 8
            out[size] = (buffer >> bits) & 255
            size += 1
    return size


cdef bint is_wordlike(const uint8_t *s, Py_ssize_t n, bint strong) noexcept nogil:
    """A name or an expression of names: parts of letters, perhaps with a number behind, joined by . _ - or /."""
    cdef Py_ssize_t i = 0, letters, digits, parts = 0, raised = 0, uppers = 0, lowers = 0, any_digits = 0
    while i < n:
        letters = 0
        digits = 0
        while i < n and (is_alpha(s[i]) or s[i] == 128):
            if is_upper(s[i]):
                uppers += 1
                if i > 0 and is_lower(s[i - 1]):
                    raised += 1
            else:
                lowers += 1
            letters += 1
            i += 1
        while i < n and is_digit(s[i]):
            digits += 1
            i += 1
        any_digits += digits
        if digits > 4 or (i < n and is_alpha(s[i])):
            return False
        parts += 1
        if i < n:
            if s[i] != 46 and s[i] != 95 and s[i] != 45 and s[i] != 47 and s[i] != 32 and s[i] != 58:
                return False
            i += 1
    if parts == 1 and strong and any_digits:
        return False
    return not (any_digits == 0 and parts <= 2 and raised * 4 >= n and n >= 12)


cdef bint is_secret_value(const uint8_t *s, Py_ssize_t n, bint quoted, bint strong, bint loose) noexcept nogil:
    """The value of a secret's name is a secret: not a stand-in, no code, at least 8 characters of 3 bits each."""
    cdef Py_ssize_t i, digits = 0, letters = 0, marks = 0, spaces = 0
    if n < 8 or memcmp(s, b"[REDACT", 7) == 0 or memcmp(s, b"-----BEG", 8) == 0:
        return False
    for i in range(n):
        if is_digit(s[i]):
            digits += 1
        elif is_alpha(s[i]) or s[i] == 128:
            letters += 1
        elif s[i] == 32:
            spaces += 1
        elif s[i] != 95 and s[i] != 45 and s[i] != 46:
            marks += 1
        if (s[i] == 60 or s[i] == 62) and not quoted:
            return False
        if i + 1 < n and ((s[i] == 36 and (s[i + 1] == 123 or s[i + 1] == 40)) or (s[i] == 123 and s[i + 1] == 123)
                          or (s[i] == 37 and s[i + 1] == 40)):
            return False
    if letters == 0 or (digits == 0 and marks == 0 and (not quoted or spaces)):
        if not (letters and digits == 0 and marks == 0 and spaces == 0 and not is_wordlike(s, n, False)):
            return False
    if (s[0] == 60 and s[n - 1] == 62) or (s[0] == 123 and s[n - 1] == 125) or (s[0] == 37 and s[n - 1] == 37):
        return False
    if spaces and (digits == 0 or spaces > 4):
        return False
    if loose and (digits == 0 or n < 8):
        return False
    if s[0] == 36:
        i = 1
        while i < n and (is_word(s[i]) or s[i] == 58) and not is_digit(s[i]):
            i += 1
        if i == n:
            return False
    if s[0] == 47 or s[0] == 126 or (s[0] == 46 and s[1] == 47) or contains(s, n, b"://") >= 0:
        i = 0
        while i < n and (is_lower(s[i]) or s[i] == 47 or s[i] == 46 or s[i] == 95 or s[i] == 45 or s[i] == 126 or is_digit(s[i])):
            i += 1
        if i == n or contains(s, n, b"://") >= 0:
            return False
    if is_wordlike(s, n, strong) or is_stand_in(s, n):
        return False
    return entropy(s, n) >= 3.0 or (strong and n < 12 and entropy(s, n) >= 2.5)

"""The recogniser of private keys in PEM form: from the BEGIN line on, by state, to the END line.

The body may be wrapped, quoted, prefixed or written with escapes for its line ends. Runs in the front's workers without
the GIL.
"""

from libc.stdint cimport uint8_t
from libc.string cimport memcmp

from .redact_literals cimport Literal
from .shadow cimport K_PEM, SWALLOW_PEM, Verdict, View, is_base64, is_digit, is_space, is_upper, literal_at, set_hit, set_more, set_no

cdef enum:
    MAX_PEM_HEAD = 256  # from a key's BEGIN line to the first run of its body


cdef bint is_pem_gap(uint8_t c) noexcept nogil:
    """What may stand between the runs of a private key's body: white space, quote marks, escapes, prefixes of lines."""
    return is_space(c) or c == 34 or c == 39 or c == 92 or c == 62 or c == 44 or c == 42 or c == 35 or c == 124 or c == 96


cdef Py_ssize_t pem_goes_on(View *w, Py_ssize_t pos, bint *ended, bint *more) noexcept nogil:
    """How far the body goes on from pos: the index behind its next run or its END line.

    Returns pos itself when the body is over (ended set) or when more text must come first (more set).
    """
    cdef Py_ssize_t i = pos, run, k
    cdef int found
    cdef bint newline = False, quote = False, spaced = False, bare_quote = False
    ended[0] = False
    more[0] = False
    while i < w.n and i - pos < 48:
        if is_space(w.s[i]):
            newline = newline or w.s[i] == 10 or w.s[i] == 13
            spaced = True
            i += 1
        elif w.s[i] == 92 and i + 1 < w.n and (w.s[i + 1] == 110 or w.s[i + 1] == 114 or w.s[i + 1] == 116):
            newline = True
            i += 2
        elif w.s[i] == 92 and i + 1 == w.n and not w.final:
            more[0] = True
            return pos
        elif is_pem_gap(w.s[i]):
            if w.s[i] == 34 or w.s[i] == 39 or w.s[i] == 96:
                quote = True
                bare_quote = bare_quote or (w.s[i] == 34 and (i == 0 or w.s[i - 1] != 92))
            i += 1
        else:
            break
    w.steps += i - pos + 1
    if i == w.n:
        if w.final:
            ended[0] = True
        else:
            more[0] = True
        return pos
    if i - pos >= 48 or (bare_quote and w.json):
        ended[0] = True
        return pos
    found = literal_at(w, i, b"-----END", 8, False)
    if found == 2:
        more[0] = True
        return pos
    if found == 1:
        # The END line: label, then dashes.
        k = i + 8
        while k < w.n and k - i < 64 and (is_upper(w.s[k]) or w.s[k] == 32 or is_digit(w.s[k])):
            k += 1
        run = k
        while k < w.n and k - run < 5 and w.s[k] == 45:
            k += 1
        if k == w.n and k - run < 5 and not w.final:
            more[0] = True
            return pos
        ended[0] = True
        return k
    run = i
    while i < w.n and i - run < 16 and is_base64(w.s[i]):
        i += 1
    w.steps += i - run
    if i == w.n and i - run < 16 and not w.final and (quote or (spaced and not newline)):
        more[0] = True
        return pos
    if i == run or ((quote or (spaced and not newline)) and i - run < 16):
        ended[0] = True
        return pos
    return i


cdef void pem_at(View *w, Py_ssize_t start, const Literal *literal, Verdict *v) noexcept nogil:
    cdef Py_ssize_t i = start + literal.size, label = i, run, head
    cdef int found
    set_no(v)
    while i < w.n and i - label < 48 and (is_upper(w.s[i]) or is_digit(w.s[i]) or w.s[i] == 32):
        i += 1
    if i == w.n:
        if not w.final:
            set_more(v, start)
        return
    if i - label < 11:
        return
    if memcmp(w.s + i - 11, b"PRIVATE KEY", 11) != 0 and not (i - label >= 17 and memcmp(w.s + i - 17, b"PRIVATE KEY BLOCK", 17) == 0):
        return
    head = i
    while i < w.n and i - head < 5 and w.s[i] == 45:
        i += 1
    if i - head < 5:
        if i == w.n and not w.final:
            set_more(v, start)
        return
    # Header fields of older keys (Proc-Type, DEK-Info, Version) may come before the first run of the body.
    head = i
    run = 0
    while i < w.n and i - head < MAX_PEM_HEAD:
        if w.json and w.s[i] == 34 and w.s[i - 1] != 92:
            return      # the string ends here
        if w.s[i] == 91:
            found = literal_at(w, i, b"[REDACTED:", 10, False)
            if found == 2:
                set_more(v, start)
            if found:
                return      # what followed has been covered before: redacting twice changes nothing
        if w.s[i] == 45 and run < 20:
            if i + 5 < w.n and memcmp(w.s + i, b"-----", 5) == 0:
                return
        if is_base64(w.s[i]) and not (i > head and w.s[i - 1] == 92):
            run += 1
            if run == 20:
                set_hit(v, start, i + 1, K_PEM, SWALLOW_PEM)
                w.steps += i - start
                return
        else:
            run = 0
        i += 1
    w.steps += i - start
    if i == w.n and not w.final and i - head < MAX_PEM_HEAD:
        set_more(v, start)

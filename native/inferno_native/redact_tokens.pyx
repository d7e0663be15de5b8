"""Recognisers of tokens that show by themselves what they are: vendors' keys, webhook addresses, JWT.

A recogniser looks at a bounded stretch (64 characters decide whether a token is real) and answers NO, MORE or HIT. Runs
in the front's workers without the GIL.
"""

from libc.stdint cimport uint8_t
from libc.string cimport memcmp

from .redact_judge cimport contains, decode_base64, in_alphabet, is_real_body
from .redact_literals cimport A_DOTTED, A_PATH, F_BODY, F_EXACT, F_MIX, LITERALS, NUM_LITERALS, R_KEYED, Literal
from .redact_numbers cimport boundary_before
from .shadow cimport (K_JWT, MAX_RUN, NO, SWALLOW_JWT, SWALLOW_NONE, SWALLOW_RUN, Verdict, View, is_url64, is_word,
                      literal_at, set_hit, set_more, set_no)


cdef void keyed_at(View *w, Py_ssize_t start, const Literal *literal, Verdict *v) noexcept nogil:
    cdef Py_ssize_t body = start + literal.size, end, stop
    set_no(v)
    if not boundary_before(w, start):
        return
    stop = body + MAX_RUN
    end = body
    if w.run_alphabet == literal.alphabet and w.run_start <= body and body < w.run_end:
        end = w.run_end if w.run_end < stop else stop
    while end < w.n and end < stop and in_alphabet(w.s[end], literal.alphabet):
        end += 1
        w.steps += 1
    w.run_alphabet = literal.alphabet
    w.run_start = body
    w.run_end = end
    if end == w.n and end < stop and not w.final:
        set_more(v, body if literal.flags & F_BODY else start)
        return
    if literal.alphabet == A_DOTTED:
        while end > body and w.s[end - 1] == 46:
            end -= 1
    if end - body < literal.shortest:
        return
    if literal.flags & F_EXACT and (end - body > literal.longest or (end < w.n and is_word(w.s[end]))):
        return
    if not is_real_body(w.s + body, end - body, literal.flags):
        return
    set_hit(v, body if literal.flags & F_BODY else start, end, literal.kind, SWALLOW_RUN if end == stop else SWALLOW_NONE)


cdef void hook_at(View *w, Py_ssize_t start, const Literal *literal, Verdict *v) noexcept nogil:
    """A webhook address is a secret as a whole: it is covered from https:// on."""
    cdef Py_ssize_t body = start + literal.size, end = body, first = start
    set_no(v)
    while end < w.n and end - body < MAX_RUN and in_alphabet(w.s[end], A_PATH):
        end += 1
    w.steps += end - body
    if start >= 8 and memcmp(w.s + start - 8, b"https://", 8) == 0 and start - 8 >= w.floor:
        first = start - 8
    if not boundary_before(w, first):
        return
    if end == w.n and not w.final and end - body < MAX_RUN:
        set_more(v, first)
        return
    if end - body >= literal.shortest and is_real_body(w.s + body, end - body, F_MIX):
        set_hit(v, first, end, literal.kind, SWALLOW_NONE)


cdef void jwt_at(View *w, Py_ssize_t start, Verdict *v) noexcept nogil:
    cdef Py_ssize_t end = start, part, size
    cdef uint8_t text[MAX_RUN]
    set_no(v)
    if not boundary_before(w, start) or (start > 0 and w.s[start - 1] == 95):
        return
    while end < w.n and end - start < MAX_RUN and is_url64(w.s[end]):
        end += 1
    w.steps += end - start
    if end - start == MAX_RUN:
        return
    if end == w.n:
        if not w.final:
            set_more(v, start)
        return
    if w.s[end] != 46 or end - start < 16:
        return
    size = decode_base64(w.s + start, end - start, text)
    if size < 8 or text[0] != 123 or contains(text, size, b"\"alg\"") < 0:
        return
    part = end + 1
    end = part
    while end < w.n and end - part < 8 and is_url64(w.s[end]):
        end += 1
    if end - part < 8 and end == w.n and not w.final:
        set_more(v, start)
        return
    if end - part >= 4:
        set_hit(v, start, end, K_JWT, SWALLOW_JWT)


cdef void token_at(View *w, Py_ssize_t start, Verdict *v) noexcept nogil:
    """A keyed token, JWT or own marker that stands exactly at start; it is then named by its own kind."""
    cdef int k, found
    set_no(v)
    for k in range(NUM_LITERALS):
        if LITERALS[k].recogniser != R_KEYED or w.s[start] != <uint8_t>LITERALS[k].text[0]:
            continue
        found = literal_at(w, start, LITERALS[k].text, LITERALS[k].size, False)
        if found == 1:
            keyed_at(w, start, &LITERALS[k], v)
            if v.status != NO:
                return
    if literal_at(w, start, b"eyJ", 3, False) == 1:
        jwt_at(w, start, v)

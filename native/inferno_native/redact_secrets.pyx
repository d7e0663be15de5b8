"""Recognisers of secrets that their context gives away: passwords in URLs, Basic, Bearer, assigned values.

A recogniser looks at a bounded stretch (256 characters are the longest assigned value) and answers NO, MORE or HIT.
What only looks like a secret stays: placeholders, code expressions, words. Runs in the front's workers without the GIL.
"""

from libc.stdint cimport uint8_t
from libc.string cimport memcmp, strlen

from .redact_judge cimport contains, decode_base64, entropy, is_secret_value, is_stand_in
from .redact_literals cimport F_STRONG, R_BASIC, R_BEARER, R_KEYED, R_PEM, R_WORD, Literal
from .redact_numbers cimport boundary_before
from .redact_pem cimport pem_at
from .redact_tokens cimport hook_at, keyed_at, token_at
from .redact_words cimport HEADS
from .shadow cimport (HIT, K_AWS_SECRET, K_BASIC, K_BEARER, K_GENERIC, K_JWT, K_URL, MARK_IS, MARK_OPENING, MAX_RUN, MORE,
                      SWALLOW_NONE, SWALLOW_RUN, Verdict, View, is_alnum, is_alpha, is_base64, is_digit, is_local, is_space, is_url64,
                      is_word, literal_at, lower, mark_at, set_hit, set_more, set_no)

cdef enum:
    MAX_VALUE = 256     # of an assigned value

# What stands between a word and its value, beside the marks of assignment.
cdef enum:
    WORD_PLAIN = 0      # a word in ASCII
    WORD_FOREIGN = 1
    WORD_LATIN = 2      # a word in Latin letters, not all of them ASCII
    WORD_BARE = 3       # of another script, without an ending: the value may follow at once
    WORD_IS = 4         # with an ending that means "is"

# What may follow the word inside of an identifier: DB_PASSWORD_PROD holds a secret, PASSWORD_MIN_LENGTH does not.
cdef const char *SUFFIXES[45]  # a list of another length does not compile
SUFFIXES[:] = [
    b"key", b"_key", b"-key", b"accesskey", b"_access_key", b"-access-key", b"value", b"_value", b"string",
    b"_base", b"_key_base", b"keybase", b"_prod", b"_dev", b"_test", b"_live", b"_staging", b"_production",
    b"_primary", b"_secondary", b"_old", b"_new", b"_current", b"_previous", b"_text", b"text", b"_plain", b"_raw",
    b"_v1", b"_v2", b"1", b"2", b"_1", b"_2", b"_main", b"_default", b"hash_key", b"_token", b"token", b"-token",
    b"_id_key", b"_secret", b"secret", b"s", b"a"
]
_suffixes = [bytes(SUFFIXES[i]).decode() for i in range(sizeof(SUFFIXES) // sizeof(SUFFIXES[0]))]  # for the slow twin


cdef bint is_url_stop(uint8_t c) noexcept nogil:
    return is_space(c) or c == 34 or c == 39 or c == 60 or c == 62 or c == 96 or c == 92 or c == 129 or c == 47 or c == 63 or c == 35


cdef void url_at(View *w, Py_ssize_t colon, Verdict *v) noexcept nogil:
    """scheme://user:password@host: the password."""
    cdef Py_ssize_t user = colon + 3, i, first, at = -1, size
    cdef bint odd = False
    cdef Verdict inner
    set_no(v)
    if colon == 0 or not is_alnum(w.s[colon - 1]):
        return
    if colon + 2 >= w.n:
        if not w.final:
            set_more(v, w.n)
        return
    if w.s[colon + 1] != 47 or w.s[colon + 2] != 47:
        return
    i = user
    while i < w.n and i - user < 128 and w.s[i] != 58 and w.s[i] != 64 and not is_url_stop(w.s[i]):
        i += 1
    w.steps += i - user
    if i == w.n and not w.final and i - user < 128:
        set_more(v, w.n)
        return
    if i >= w.n or w.s[i] != 58:
        return
    if i - user >= 9 and memcmp(w.s + i - 9, b"[REDACTED", 9) == 0:
        return      # the colon of a marker
    first = i + 1
    i = first
    while i < w.n and i - first < MAX_VALUE and not is_url_stop(w.s[i]):
        if w.s[i] == 64:
            at = i
        i += 1
    w.steps += i - first
    if i == w.n and not w.final and i - first < MAX_VALUE:
        set_more(v, first)
        return
    if at < 0:
        return
    size = at - first
    if size < 4 or (size == first - 1 - user and memcmp(w.s + first, w.s + user, size) == 0):
        return
    if w.s[first] == 36 or w.s[first] == 123 or w.s[first] == 91 or w.s[first] == 42 or w.s[first] == 37 and size < 6:
        return
    for i in range(first, at):
        if is_digit(w.s[i]) or not is_alnum(w.s[i]):
            odd = True
    if is_stand_in(w.s + first, size) or (size <= 6 and not odd) or contains(w.s + first, size, b"${") >= 0:
        return
    if size == 6 and contains(w.s + first, size, b"secret") == 0:
        return
    token_at(w, first, &inner)
    if inner.status == HIT and inner.end >= at:
        return
    if inner.status == MORE:
        v[0] = inner
        return
    set_hit(v, first, at, K_URL, SWALLOW_NONE)


cdef void basic_at(View *w, Py_ssize_t start, const Literal *literal, Verdict *v) noexcept nogil:
    cdef Py_ssize_t value = start + literal.size, end, size, i
    cdef uint8_t text[MAX_VALUE]
    cdef bint colon = False
    set_no(v)
    if not boundary_before(w, start):
        return
    end = value
    while end < w.n and end - value < MAX_VALUE and is_base64(w.s[end]):
        end += 1
    w.steps += end - value
    if end == w.n and not w.final and end - value < MAX_VALUE:
        set_more(v, value)
        return
    if end - value < 10:
        return
    size = decode_base64(w.s + value, end - value, text)
    if size < 6:
        return
    for i in range(size):
        if text[i] < 32 or text[i] == 127:
            return
        colon = colon or (text[i] == 58 and i + 1 < size)
    if not colon or contains(text, size, b":password") >= 0 or contains(text, size, b"your") >= 0:
        return
    set_hit(v, value, end, K_BASIC, SWALLOW_NONE)


cdef void bearer_at(View *w, Py_ssize_t start, const Literal *literal, Verdict *v) noexcept nogil:
    cdef Py_ssize_t value = start + literal.size, end, size, i, digits = 0, letters = 0
    cdef Verdict inner
    set_no(v)
    if not boundary_before(w, start):
        return
    end = value
    while end < w.n and end - value < MAX_RUN and (is_url64(w.s[end]) or is_base64(w.s[end]) or w.s[end] == 46 or w.s[end] == 126):
        digits += is_digit(w.s[end])
        letters += is_alpha(w.s[end])
        end += 1
    w.steps += end - value
    if end == w.n and not w.final and end - value < MAX_RUN:
        set_more(v, value)
        return
    while end > value and w.s[end - 1] == 46:
        end -= 1
    size = end - value
    if size < 16 or digits == 0 or letters == 0:
        return
    if is_stand_in(w.s + value, size) or entropy(w.s + value, size) < 3.0:
        return
    token_at(w, value, &inner)
    if inner.status == HIT and inner.end >= end - 1:
        return
    if inner.status == HIT and inner.kind == K_JWT:
        return
    set_hit(v, value, end, K_BEARER, SWALLOW_RUN if size == MAX_RUN else SWALLOW_NONE)


cdef bint is_value_stop(uint8_t c) noexcept nogil:
    return (is_space(c) or c == 34 or c == 39 or c == 96 or c == 44 or c == 59 or c == 60 or c == 62 or c == 38 or c == 41
            or c == 125 or c == 93 or c == 124 or c == 92 or c == 129)


cdef void word_at(View *w, Py_ssize_t start, const Literal *literal, Verdict *v) noexcept nogil:
    """A name such as api_key, what joins it to its value, and the value."""
    cdef Py_ssize_t i = start + literal.size, id_start = start, k
    cdef uint8_t suffix[25]
    cdef bint found
    cdef size_t lit
    set_no(v)
    while id_start > 0 and start - id_start < 40 and (is_word(w.s[id_start - 1]) or w.s[id_start - 1] == 45):
        id_start -= 1
    w.steps += start - id_start + 1
    if id_start >= 9 and memcmp(w.s + id_start - 9, b"REDACTED:", 9) == 0:
        return
    # The letter outside ASCII of a Spanish password.
    if i + 1 < w.n and w.s[i] == 128 and literal.size == 8 and w.s[i - 1] != 100:
        i += 1
    # The rest of the name.
    if is_alnum(w.s[i - 1]) or w.s[i - 1] == 128:
        k = i
        while i < w.n and i - k < 24 and (is_word(w.s[i]) or w.s[i] == 45):
            suffix[i - k] = lower(w.s[i])
            i += 1
        if i == w.n:
            if not w.final:
                set_more(v, w.n)
            return
        if i - k == 24:
            return
        if i > k:
            suffix[i - k] = 0
            found = False
            for lit in range(sizeof(SUFFIXES) // sizeof(SUFFIXES[0])):
                if strlen(SUFFIXES[lit]) == <size_t>(i - k) and memcmp(SUFFIXES[lit], suffix, i - k) == 0:
                    found = True
                    break
            if not found:
                return
    else:
        i -= 1      # the literal brought the separator with it
    value_at(w, id_start, start, start + literal.size, i, (literal.flags & F_STRONG) != 0, WORD_PLAIN, v)


cdef void foreign_at(View *w, Py_ssize_t t, Verdict *v) noexcept nogil:
    """A word of another script ends at t, or its last letter outside of ASCII does: its endings, what joins it, the value."""
    cdef int code = mark_at(w, t), found = 0, k, how = WORD_FOREIGN
    cdef Py_ssize_t i = t + 1, start
    set_no(v)
    if code <= 0 or w.s[t] == 93:
        return      # covered by now
    if HEADS[code - 1].tails[0] != NULL:
        for k in range(4):
            if HEADS[code - 1].tails[k] == NULL:
                break
            found = literal_at(w, i, HEADS[code - 1].tails[k], <Py_ssize_t>strlen(HEADS[code - 1].tails[k]), True)
            if found == 1:
                i += <Py_ssize_t>strlen(HEADS[code - 1].tails[k])
                break
            if found == 2:
                set_more(v, w.n)
                return
        if found != 1:
            return
    start = i
    while i < w.n and i - start < 8 and (w.s[i] == 128 or (HEADS[code - 1].latin and is_alpha(w.s[i]))):
        i += 1
    w.steps += i - t
    if i == w.n:
        if not w.final:
            set_more(v, w.n)
        return
    if i > start and mark_at(w, i - 1) == MARK_IS:
        how = WORD_IS
    elif i == start and not HEADS[code - 1].latin:
        how = WORD_BARE
    elif HEADS[code - 1].latin:
        how = WORD_LATIN
    value_at(w, t, t, t + 1, i, HEADS[code - 1].strong, how, v)


cdef void value_at(View *w, Py_ssize_t id_start, Py_ssize_t start, Py_ssize_t name_end, Py_ssize_t i, bint strong, int how,
                   Verdict *v) noexcept nogil:
    """What joins a name to its value, and the value. The name begins at id_start, its word at start; i is behind it."""
    cdef Py_ssize_t k, value, end, size, m
    cdef uint8_t quote = 0
    cdef bint escaped = False, element = False, loose = False, joined = False, closed, beside
    cdef bint option = start - id_start >= 2 and w.s[id_start] == 45 and w.s[id_start + 1] == 45
    cdef int kind
    cdef Verdict inner
    if i + 1 >= w.n and not w.final:
        set_more(v, w.n)
        return
    closed = False
    if i < w.n and w.s[i] == 92:
        i += 1
    if i < w.n and (w.s[i] == 34 or w.s[i] == 39 or w.s[i] == 96):
        closed = True
        i += 1
        if i < w.n and w.s[i] == 93:
            i += 1
    k = i
    while i < w.n and i - k < 8 and (w.s[i] == 32 or w.s[i] == 9):
        i += 1
    if i + 8 >= w.n and not w.final:
        # Too little to tell a colon from "is", a newline from a value attribute.
        if i >= w.n or not (w.s[i] == 58 or w.s[i] == 61):
            # What stands there may yet be the local part of an address.
            while i > start and is_local(w.s[i - 1]):
                i -= 1
            set_more(v, i)
            return
    if i >= w.n:
        return
    if w.s[i] == 58 or w.s[i] == 61:
        joined = True
        i += 1
        if i >= w.n:
            if not w.final:
                set_more(v, w.n)
            return
        if w.s[i - 1] == 61 and w.s[i] == 61:
            return      # a comparison
        if w.s[i] == 61 or w.s[i] == 62:
            i += 1
    elif literal_at(w, i, b"value=", 6, True) == 1 and i > k:
        joined = True
        i += 6
    elif literal_at(w, i, b"is ", 3, True) == 1 or literal_at(w, i, b"is: ", 4, True) == 1:
        joined = True
        loose = True
        i += 3
    elif literal_at(w, i, b"was ", 4, True) == 1 or literal_at(w, i, b"ist ", 4, True) == 1 or literal_at(w, i, b"est ", 4, True) == 1:
        joined = True
        loose = True
        i += 4
    elif literal_at(w, i, b"lautet ", 7, True) == 1:
        joined = True
        loose = True
        i += 7
    elif literal_at(w, i, b"es ", 3, True) == 1:
        joined = True
        loose = True
        i += 3
    elif how == WORD_PLAIN and i > k and literal_at(w, i, b"\x80 ", 2, False) == 1 and (
            literal_at(w, start, b"senha", 5, True) == 1 or literal_at(w, start, b"pa", 2, True) == 1):
        joined = True       # Portuguese, Italian: senha, palavra-passe, parola
        loose = True
        i += 2
    elif w.s[i] == 10 or w.s[i] == 13:
        # YAML: the name, then "value:" on the next line.
        k = i
        while i < w.n and i - k < 32 and is_space(w.s[i]):
            i += 1
        if i + 6 >= w.n and not w.final:
            set_more(v, w.n)
            return
        if literal_at(w, i, b"value:", 6, True) != 1:
            return
        joined = True
        i += 6
    elif w.s[i] == 62 and id_start > 0 and w.s[id_start - 1] == 60:
        joined = True       # an XML element: what stands up to the next <
        element = True
        i += 1
    elif i > k and (w.s[i] == 34 or w.s[i] == 39) and not closed:
        joined = True       # SQL: password 'value'
        loose = True
    elif option and i > k:
        joined = True
        loose = True
    elif i > k and id_start >= 15 and literal_at(w, id_start - 15, b"authorization: ", 15, True) == 1:
        joined = True
        loose = True
    elif how != WORD_PLAIN and w.s[i] == 129 and mark_at(w, i) == MARK_OPENING:
        joined = True
        loose = True
        i += 1
    elif how == WORD_IS or (how == WORD_BARE and i == k and not closed and is_alnum(w.s[i])):
        joined = True
        loose = True
    elif how == WORD_LATIN and (literal_at(w, i, b"to ", 3, True) == 1 or literal_at(w, i, b"\x80r ", 3, True) == 1
                                or literal_at(w, i, b"l\x80 ", 3, True) == 1 or literal_at(w, i, b"er ", 3, True) == 1):
        joined = True
        loose = True
        i += 3
    elif how != WORD_PLAIN and i > k:
        m = i
        while m < w.n and m - i < 24 and w.s[m] == 128:
            m += 1
        if m == w.n:
            if not w.final:
                set_more(v, w.n)
            return
        # "Is", or whose the password is and a colon.
        if m > i and (w.s[m] == 58 or (w.s[m] == 32 and mark_at(w, m - 1) == MARK_IS)):
            joined = True
            loose = True
            i = m + 1
    if not joined:
        return
    k = i
    while i < w.n and i - k < 8 and (w.s[i] == 32 or w.s[i] == 9):
        i += 1
    if i < w.n and i + 1 >= w.n and not w.final:
        set_more(v, i)
        return
    if i < w.n and w.s[i] == 129:
        i += 1      # a quote outside of ASCII, whose twin ends the value
    if i + 1 < w.n and (w.s[i] == 98 or w.s[i] == 102 or w.s[i] == 114 or w.s[i] == 117) and (w.s[i + 1] == 34 or w.s[i + 1] == 39):
        i += 1
    if i + 1 >= w.n:
        if not w.final:
            set_more(v, i if i < w.n else w.n)
        return
    if w.s[i] == 92 and (w.s[i + 1] == 34 or w.s[i + 1] == 39):
        escaped = True
        i += 1
    if w.s[i] == 34 or w.s[i] == 39 or w.s[i] == 96:
        quote = w.s[i]
        i += 1
    elif element:
        quote = 60
    value = i
    end = value
    if quote:
        while end < w.n and end - value < MAX_VALUE and w.s[end] != 10 and w.s[end] != 13:
            if w.s[end] == 92:
                if escaped or end + 1 >= w.n:
                    break
                end += 1
            elif w.s[end] == quote:
                break
            end += 1
    else:
        # Scripts without spaces go on behind the value.
        beside = how != WORD_PLAIN and how != WORD_LATIN and value < w.n and w.s[value] != 128
        while end < w.n and end - value < MAX_VALUE and not is_value_stop(w.s[end]) and not (beside and w.s[end] == 128):
            if w.s[end] == 40 or (w.s[end] == 91 and end > value) or (w.s[end] == 123 and end > value):
                w.steps += end - value
                return      # a call, an index, a literal: code
            end += 1
    if end > w.n:
        end = w.n
    w.steps += end - value
    if not w.final and end - value < MAX_VALUE and (end >= w.n or (w.s[end] == 92 and end + 1 >= w.n)):
        set_more(v, value)
        return
    if not quote:
        while end > value and (w.s[end - 1] == 46 or w.s[end - 1] == 58 or w.s[end - 1] == 63):
            end -= 1
    size = end - value
    if size < 8 or not is_secret_value(w.s + value, size, quote != 0, strong, loose):
        return
    if loose and not quote and size < 16 and not strong:
        return
    token_at(w, value, &inner)
    if inner.status == HIT:
        return
    if inner.status == MORE:
        v[0] = inner
        return
    kind = K_GENERIC
    if size == 40 and (contains(w.s + id_start, name_end - id_start + 12, b"aws") >= 0
                       or contains(w.s + start, name_end - start + 12, b"access") >= 0):
        kind = K_AWS_SECRET
    set_hit(v, value, end, kind, SWALLOW_RUN if size == MAX_VALUE and not quote else SWALLOW_NONE)


cdef void literal_verdict(View *w, Py_ssize_t start, const Literal *literal, Verdict *v) noexcept nogil:
    cdef int found
    set_no(v)
    if start < 0 or (start < w.floor and literal.recogniser != R_WORD):
        return
    found = literal_at(w, start, literal.text, literal.size, literal.fold)
    if found == 0:
        return
    if found == 2:
        set_more(v, w.n if literal.recogniser == R_WORD or literal.recogniser == R_BASIC or literal.recogniser == R_BEARER else start)
        return
    if literal.recogniser == R_KEYED:
        keyed_at(w, start, literal, v)
    elif literal.recogniser == R_WORD:
        word_at(w, start, literal, v)
    elif literal.recogniser == R_PEM:
        pem_at(w, start, literal, v)
    elif literal.recogniser == R_BASIC:
        basic_at(w, start, literal, v)
    elif literal.recogniser == R_BEARER:
        bearer_at(w, start, literal, v)
    else:
        hook_at(w, start, literal, v)

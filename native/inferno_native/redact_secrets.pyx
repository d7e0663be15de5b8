"""Recognisers of secrets: vendors' tokens, JWT, private keys, passwords in URLs, Basic, Bearer, assigned values.

The table LITERALS holds every literal that the skip loop looks for, with the recogniser that judges it. A recogniser
looks at a bounded stretch (64 characters decide whether a token is real, 256 are the longest assigned value) and
answers NO, MORE or HIT. What only looks like a secret stays: placeholders, code expressions, words. Runs in the front's
workers without the GIL.
"""

from libc.math cimport log2
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcmp, memset, strlen

from .redact_numbers cimport boundary_before
from .shadow cimport (K_ANTHROPIC, K_AWS_ID, K_AWS_SECRET, K_AZURE, K_BASIC, K_BEARER, K_GENERIC, K_GITHUB, K_GITLAB,
                      K_GOOGLE, K_GOOGLE_OAUTH, K_HF, K_INFERNO, K_JWT, K_NPM, K_OPENAI, K_PEM, K_PYPI, K_SENDGRID, K_SERVICE,
                      K_SLACK, K_SLACK_HOOK, K_STRIPE, K_URL, HIT, MAX_RUN, MORE, NO, SWALLOW_JWT, SWALLOW_NONE, SWALLOW_PEM,
                      SWALLOW_RUN, Verdict, View, is_alnum, is_alpha, is_base64, is_digit, is_lower, is_space, is_upper,
                      is_url64, is_word, literal_at, lower, set_hit, set_more, set_no)

cdef enum Alphabet:
    A_ALNUM = 0
    A_URL64 = 1
    A_HEX = 2
    A_UPPER = 3     # capitals and digits
    A_BASE64 = 4
    A_DOTTED = 5    # base64url and dots
    A_WORD = 6      # letters, digits, underscore
    A_PATH = 7      # base64url and slashes

cdef enum Flag:
    F_EXACT = 1     # no longer run is taken
    F_MIX = 2       # a digit must stand in the body
    F_BODY = 4      # the prefix may stay
    F_STRONG = 8    # words: the value is a secret by its name alone

cdef enum:
    JUDGED = 64         # characters of a body that decide whether it is real
    MAX_VALUE = 256     # of an assigned value
    MAX_PEM_HEAD = 256  # from a key's BEGIN line to the first run of its body

NUM_LITERALS = 0
_keep = []      # the bytes objects that LITERALS points into


def _add(text, recogniser, kind=0, alphabet=A_URL64, shortest=0, longest=0, flags=0, offset=0, fold=False, pair=False):
    global NUM_LITERALS
    data = text.encode("ascii")
    _keep.append(data)
    cdef Literal *literal = &LITERALS[NUM_LITERALS]
    literal.text = data
    literal.size = len(data)
    literal.recogniser = recogniser
    literal.kind = kind
    literal.alphabet = alphabet
    literal.shortest = shortest
    literal.longest = longest
    literal.flags = flags
    literal.offset = offset
    literal.fold = fold
    literal.pair = pair
    NUM_LITERALS += 1


def _build():
    for prefix in ("AKIA", "ASIA", "ABIA", "ACCA"):
        _add(prefix, R_KEYED, K_AWS_ID, A_UPPER, 16, 16, F_EXACT)
    _add("ABSK", R_KEYED, K_AWS_SECRET, A_BASE64, 60, 0, F_MIX)
    for prefix in ("ghp_", "gho_", "ghu_", "ghs_", "ghr_"):
        _add(prefix, R_KEYED, K_GITHUB, A_ALNUM, 30)
    _add("github_pat_", R_KEYED, K_GITHUB, A_WORD, 40, offset=7)
    for prefix in ("glpat-", "gldt-", "glrt-", "glcbt-", "glptt-", "glft-", "glimt-", "glsoat-", "gloas-", "glagent-",
                   "glffct-", "glrtr-", "GR1348941"):
        _add(prefix, R_KEYED, K_GITLAB, A_URL64, 18)
    for prefix in ("xoxb-", "xoxp-", "xoxa-", "xoxr-", "xoxs-", "xoxe-", "xoxc-", "xoxd-", "xoxo-", "xapp-"):
        _add(prefix, R_KEYED, K_SLACK, A_URL64, 20, 0, F_MIX)
    _add("hooks.slack.com/", R_HOOK, K_SLACK_HOOK, A_PATH, 24, offset=3)
    _add("discord.com/api/webhooks/", R_HOOK, K_SERVICE, A_PATH, 40, offset=8)
    _add("AIza", R_KEYED, K_GOOGLE, A_URL64, 33)
    _add("ya29.", R_KEYED, K_GOOGLE_OAUTH, A_DOTTED, 30, offset=1)
    _add("GOCSPX-", R_KEYED, K_GOOGLE_OAUTH, A_URL64, 20)
    for prefix in ("sk_live_", "sk_test_", "rk_live_", "rk_test_", "sk_prod_"):
        _add(prefix, R_KEYED, K_STRIPE, A_ALNUM, 16, offset=3)
    _add("whsec_", R_KEYED, K_STRIPE, A_BASE64, 20)
    _add("sk-ant-", R_KEYED, K_ANTHROPIC, A_URL64, 20, 0, F_MIX, offset=1, pair=True)
    _add("sk-", R_KEYED, K_OPENAI, A_URL64, 20, 0, F_MIX, offset=1, pair=True)
    _add("hf_", R_KEYED, K_HF, A_ALNUM, 28, offset=1, pair=True)
    _add("npm_", R_KEYED, K_NPM, A_ALNUM, 30)
    _add("pypi-", R_KEYED, K_PYPI, A_URL64, 40, 0, F_MIX, offset=1)
    _add("SG.", R_KEYED, K_SENDGRID, A_DOTTED, 40, offset=1, pair=True)
    for prefix in ("AccountKey=", "SharedAccessKey=", "accesskey="):
        _add(prefix, R_KEYED, K_AZURE, A_BASE64, 40, 0, F_BODY, offset=len(prefix) - 4, fold=False)
    _add("inf_", R_KEYED, K_INFERNO, A_WORD, 40)
    for prefix, alphabet, shortest in (
        ("dop_v1_", A_HEX, 40), ("doo_v1_", A_HEX, 40), ("dor_v1_", A_HEX, 40), ("shpat_", A_HEX, 28), ("shpca_", A_HEX, 28),
        ("shppa_", A_HEX, 28), ("shpss_", A_HEX, 28), ("sq0atp-", A_URL64, 20), ("sq0csp-", A_URL64, 30), ("dapi", A_HEX, 32),
        ("ATATT3x", A_URL64, 40), ("ATCTT3x", A_URL64, 40), ("lin_api_", A_ALNUM, 32), ("ntn_", A_ALNUM, 40),
        ("figd_", A_URL64, 30), ("glsa_", A_WORD, 32), ("glc_", A_BASE64, 40), ("hvs.", A_URL64, 24), ("hvb.", A_URL64, 24),
        ("sbp_", A_HEX, 32), ("pscale_tkn_", A_URL64, 30), ("pscale_pw_", A_URL64, 30), ("rubygems_", A_HEX, 40),
        ("dckr_pat_", A_URL64, 20), ("dckr_oat_", A_URL64, 20), ("HRKU-", A_URL64, 30), ("NRAK-", A_ALNUM, 24),
        ("NRJS-", A_ALNUM, 16), ("gsk_", A_ALNUM, 40), ("xai-", A_ALNUM, 60), ("pplx-", A_ALNUM, 40), ("tvly-", A_URL64, 28),
        ("PMAK-", A_URL64, 40), ("sntrys_", A_BASE64, 40), ("sntryu_", A_HEX, 40), ("AGE-SECRET-KEY-1", A_UPPER, 50),
        ("dp.pt.", A_ALNUM, 40), ("pul-", A_HEX, 40), ("xkeysib-", A_URL64, 60), ("CCIPAT_", A_WORD, 40), ("bkua_", A_HEX, 36),
        ("CFPAT-", A_URL64, 40), ("EZAK", A_ALNUM, 50), ("EZTK", A_ALNUM, 50), ("FLWSECK", A_URL64, 30),
        ("shippo_live_", A_HEX, 36), ("nfp_", A_ALNUM, 36), ("rnd_", A_ALNUM, 28), ("lsv2_pt_", A_WORD, 36),
        ("lsv2_sk_", A_WORD, 36), ("nvapi-", A_URL64, 50), ("jina_", A_URL64, 50), ("tgp_v1_", A_URL64, 40),
        ("SK.", A_URL64, 60), ("key-", A_HEX, 32), ("patA", A_DOTTED, 60), ("EAAC", A_ALNUM, 100), ("PRIVATE-TOKEN-", A_URL64, 20),
        ("whsk_", A_ALNUM, 20), ("rzp_live_", A_ALNUM, 12), ("rzp_test_", A_ALNUM, 12), ("tfp_", A_URL64, 40),
        ("fio-u-", A_URL64, 50), ("secret_", A_ALNUM, 40), ("sl.", A_URL64, 100), ("vault:v1:", A_BASE64, 40),
        ("phc_", A_ALNUM, 36), ("phx_", A_ALNUM, 36), ("waka_", A_URL64, 32), ("ddp_", A_ALNUM, 32), ("sgp_", A_WORD, 40),
        ("cio_", A_ALNUM, 30), ("oy2", A_ALNUM, 43),
    ):
        if len(prefix) >= 4:
            _add(prefix, R_KEYED, K_SERVICE, alphabet, shortest, 0, F_MIX)
    _add("r8_", R_KEYED, K_SERVICE, A_ALNUM, 30, 0, F_MIX, offset=1, pair=True)
    _add("fw_", R_KEYED, K_SERVICE, A_ALNUM, 20, 0, F_MIX, offset=1, pair=True)
    _add("-----BEGIN ", R_PEM, K_PEM, offset=5)
    _add("basic ", R_BASIC, K_BASIC, fold=True, offset=1)
    _add("bearer ", R_BEARER, K_BEARER, fold=True)
    for word in ("password", "passwd", "passphrase", "passwort", "contrase", "pwd=", "pwd:", "pwd ", "pwd\"", "pwd'"):
        _add(word, R_WORD, K_GENERIC, flags=F_STRONG, fold=True)
    for word in ("pass=", "pass:", "passcode"):
        _add(word, R_WORD, K_GENERIC, flags=F_STRONG, fold=True, offset=1 if word != "passcode" else 0)
    for word in ("secret", "token", "credential"):
        _add(word, R_WORD, K_GENERIC, fold=True)
    for word in ("apikey", "api_key", "api-key", "api key"):
        _add(word, R_WORD, K_GENERIC, flags=F_STRONG, fold=True, offset=2)
    for word in ("access_key", "access-key", "accesskey", "auth_key", "authkey", "auth-key", "signing_key", "encryption_key", "master_key",
                 "private_key", "privatekey", "hmac_key", "subscription-key", "license_key", "storage_key", "account_key"):
        _add(word, R_WORD, K_GENERIC, fold=True, offset=word.find("key") - 1)


_build()

# What may follow the word inside of an identifier: DB_PASSWORD_PROD holds a secret, PASSWORD_MIN_LENGTH does not.
_suffixes = ["key", "_key", "-key", "accesskey", "_access_key", "-access-key", "value", "_value", "string", "_base", "_key_base", "keybase",
             "_prod", "_dev", "_test", "_live", "_staging", "_production", "_primary", "_secondary", "_old", "_new", "_current",
             "_previous", "_text", "text", "_plain", "_raw", "_v1", "_v2", "1", "2", "_1", "_2", "_main", "_default", "hash_key",
             "_token", "token", "-token", "_id_key", "_secret", "secret", "ación", "a"]
cdef const char *SUFFIXES[64]
cdef int NUM_SUFFIXES = 0
for _suffix in _suffixes:
    _bytes = _suffix.encode()
    _keep.append(_bytes)
    SUFFIXES[NUM_SUFFIXES] = <const char *>_bytes
    NUM_SUFFIXES += 1

# Parts that show a value to be a stand-in.
_stand_ins = ["your", "example", "placeholder", "changeme", "change-me", "change_me", "changeit", "replace", "redacted", "xxxxx",
              "*****", ".....", "insert", "dummy", "todo", "fixme", "password", "passwd", "not-a-", "notasecret", "fake", "sample",
              "_here", "-here", "undefined", "12345678", "abcdefgh", "secret_name", "none", "null"]
cdef const char *STAND_INS[40]
cdef int NUM_STAND_INS = 0
for _stand_in in _stand_ins:
    _bytes = _stand_in.encode()
    _keep.append(_bytes)
    STAND_INS[NUM_STAND_INS] = <const char *>_bytes
    NUM_STAND_INS += 1


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
    cdef int k
    for k in range(NUM_STAND_INS):
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


cdef bint is_value_stop(uint8_t c) noexcept nogil:
    return (is_space(c) or c == 34 or c == 39 or c == 96 or c == 44 or c == 59 or c == 60 or c == 62 or c == 38 or c == 41
            or c == 125 or c == 93 or c == 124 or c == 92 or c == 129)


cdef void word_at(View *w, Py_ssize_t start, const Literal *literal, Verdict *v) noexcept nogil:
    """A name such as api_key, what joins it to its value, and the value."""
    cdef Py_ssize_t i = start + literal.size, id_start = start, k, value, end, size
    cdef uint8_t suffix[25]
    cdef uint8_t quote = 0
    cdef bint escaped = False, option, loose = False, strong = (literal.flags & F_STRONG) != 0, joined = False, found, closed
    cdef int kind, lit
    cdef Verdict inner
    set_no(v)
    while id_start > 0 and start - id_start < 40 and (is_word(w.s[id_start - 1]) or w.s[id_start - 1] == 45):
        id_start -= 1
    w.steps += start - id_start + 1
    if id_start >= 9 and memcmp(w.s + id_start - 9, b"REDACTED:", 9) == 0:
        return
    option = start - id_start >= 2 and w.s[id_start] == 45 and w.s[id_start + 1] == 45
    # The rest of the name.
    if is_alnum(w.s[i - 1]):
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
            for lit in range(NUM_SUFFIXES):
                if strlen(SUFFIXES[lit]) == <size_t>(i - k) and memcmp(SUFFIXES[lit], suffix, i - k) == 0:
                    found = True
                    break
            if not found:
                return
    else:
        i -= 1      # the literal brought the separator with it
    # What joins name and value.
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
    elif literal_at(w, i, b"was ", 4, True) == 1 or literal_at(w, i, b"ist ", 4, True) == 1:
        joined = True
        loose = True
        i += 4
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
    elif option and i > k:
        joined = True
        loose = True
    elif i > k and id_start >= 15 and literal_at(w, id_start - 15, b"authorization: ", 15, True) == 1:
        joined = True
        loose = True
    if not joined:
        return
    k = i
    while i < w.n and i - k < 8 and (w.s[i] == 32 or w.s[i] == 9):
        i += 1
    if i < w.n and i + 1 >= w.n and not w.final:
        set_more(v, i)
        return
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
        while end < w.n and end - value < MAX_VALUE and not is_value_stop(w.s[end]):
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
    if quote and (end >= w.n or w.s[end] != (92 if escaped else quote)) and end - value < MAX_VALUE and not w.final:
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
    if size == 40 and (contains(w.s + id_start, start + literal.size - id_start + 12, b"aws") >= 0
                       or contains(w.s + start, literal.size + 12, b"access") >= 0):
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

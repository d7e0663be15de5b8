"""The streaming redactor: text in, text out with secrets and personal data replaced by markers.

One skip loop finds triggers (four-byte windows of known prefixes and words, pairs such as a digit behind a space), a
recogniser judges each, and text leaves as soon as nothing that may follow can make it part of a match. Every decision
hangs on the text alone, never on how it was cut: a recogniser that would need more answers MORE and is asked again. So
any split gives the same result. What is held back is bounded: at most 512 characters behind a trigger, 64 of a possible
local part, and nothing of a private key or a long token, which are dropped by state.

It does not know requests, accounts or settings: profile, values that may pass and own secrets are given. Runs in the
front's workers. A fault inside raises RedactorError, and the redactor gives nothing any more (OUT-5).
"""

import json as _json
import secrets as _secrets
from hashlib import blake2b

from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.unicode cimport PyUnicode_DATA, PyUnicode_KIND, PyUnicode_READ
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcmp, memcpy, memmove, memset

from .redact_literals cimport LITERALS, NUM_LITERALS
from .redact_numbers cimport email_at, iban_at, number_at
from .redact_pem cimport pem_goes_on
from .redact_secrets cimport foreign_at, literal_verdict, url_at
from .redact_tokens cimport jwt_at
from .redact_words cimport find_marks, remember
from .shadow cimport (HIT, K_CARD, K_COUNT, K_EMAIL, K_IBAN, K_IPV4, K_OWN, K_PHONE, K_SSN, MAX_CONTEXT, MAX_LOCAL, MORE, NO,
                      SWALLOW_JWT, SWALLOW_NONE, SWALLOW_PEM, SWALLOW_RUN, Verdict, View, is_alnum, is_alpha, is_digit, is_local,
                      is_url64, mark_at, mark_from, set_hit, set_more, set_no)

KIND_NAMES = (
    "own_secret", "aws_access_key_id", "aws_secret_access_key", "github_token", "gitlab_token", "slack_token", "slack_webhook",
    "google_api_key", "google_oauth_secret", "stripe_key", "openai_key", "anthropic_key", "huggingface_token", "npm_token",
    "pypi_token", "sendgrid_key", "azure_storage_key", "jwt", "private_key", "url_password", "basic_auth", "bearer_token",
    "generic_secret", "inferno_api_key", "service_token", "credit_card", "iban", "us_ssn", "email", "phone", "ipv4_private",
)
PROFILES = ("default", "strict", "secrets")
SHORTEST_OWN_SECRET = 8

cdef enum Bucket:
    B_AT = 1        # e-mail
    B_NUMBER = 2    # no letter or digit, then a digit
    B_LETTER = 4    # a letter, then a digit: IBAN
    B_URL = 8       # :/
    B_DASH = 16     # sk- hf_ r8_ fw_
    B_JWT = 32      # yJ
    B_SG = 64       # G.

cdef inferno_prefilter STATIC
cdef uint8_t FIRST[256]     # what a byte may begin and end, as Bucket bits
cdef uint8_t SECOND[256]
cdef enum:
    TABLE = 1024    # open addressing over the literals' windows
cdef uint32_t TABLE_GRAM[TABLE]
cdef int TABLE_FIRST[TABLE]     # index into LITERALS plus one; 0: free
cdef int NEXT[300]              # the next literal with the same window, plus one


cdef uint32_t table_slot(uint32_t gram) noexcept nogil:
    cdef uint32_t slot = (gram * <uint32_t>0x9E3779B1) >> 22
    while TABLE_FIRST[slot] != 0 and TABLE_GRAM[slot] != gram:
        slot = (slot + 1) & (TABLE - 1)
    return slot


cdef void build_filter() noexcept:
    cdef int k, c
    cdef uint32_t gram, slot
    memset(&STATIC, 0, sizeof(STATIC))
    for k in range(NUM_LITERALS):
        if LITERALS[k].pair:
            continue
        inferno_mark_gram(&STATIC, <const uint8_t *>LITERALS[k].text + LITERALS[k].offset)
        gram = inferno_gram(<const uint8_t *>LITERALS[k].text + LITERALS[k].offset)
        slot = table_slot(gram)
        NEXT[k] = TABLE_FIRST[slot]
        TABLE_GRAM[slot] = gram
        TABLE_FIRST[slot] = k + 1
    for c in range(256):
        if is_local(<uint8_t>c):
            FIRST[c] |= B_AT
        if is_alpha(<uint8_t>c):
            FIRST[c] |= B_LETTER
        elif not is_digit(<uint8_t>c):
            FIRST[c] |= B_NUMBER
        if is_digit(<uint8_t>c):
            SECOND[c] |= B_NUMBER | B_LETTER
    SECOND[64] |= B_AT
    FIRST[58] |= B_URL
    SECOND[47] |= B_URL
    for c in (107, 102, 56, 119):
        FIRST[c] |= B_DASH
    SECOND[45] |= B_DASH
    SECOND[95] |= B_DASH
    FIRST[121] |= B_JWT
    SECOND[74] |= B_JWT
    FIRST[71] |= B_SG
    SECOND[46] |= B_SG
    for k in range(256):
        for c in range(256):
            if FIRST[k] & SECOND[c]:
                inferno_mark_pair(&STATIC, <uint8_t>k, <uint8_t>c)


build_filter()


class RedactorError(Exception):
    """The redactor met a fault of its own or was used after one; nothing that it holds may leave."""


cdef inline uint8_t shadow_of(uint32_t c) noexcept nogil:
    """The byte that stands for a code point; see shadow.pxd."""
    if c < 128:
        return <uint8_t>c
    if c == 0xA0 or 0x2000 <= c <= 0x200A or c == 0x202F or c == 0x205F or c == 0x3000:
        return 32
    if c == 0x85 or c == 0x2028 or c == 0x2029:
        return 10
    if c == 0x2011:
        return 45
    if 0xFF01 <= c <= 0xFF5E:
        return 0x81 if c == 0xFF02 or c == 0xFF07 or c == 0xFF3C else <uint8_t>(c - 0xFEE0)
    if c < 0xC0:
        return 0x80 if c == 0xAA or c == 0xB5 or c == 0xBA else 0x81
    if c == 0xD7 or c == 0xF7 or 0x2010 <= c <= 0x206F or 0x3001 <= c <= 0x303F or 0xFF5F <= c <= 0xFF65:
        return 0x81
    return 0x80


cdef str json_body(str value, bint ascii_only):
    cdef str quoted = _json.dumps(value, ensure_ascii=ascii_only)
    return quoted[1:len(quoted) - 1]


cdef bytes shadow_bytes(str text):
    cdef bytearray out = bytearray(len(text))
    cdef Py_ssize_t i
    for i in range(len(text)):
        out[i] = shadow_of(text[i])
    return bytes(out)


cdef class OwnSecrets:
    """Values that must never leave, whatever they look like: found by length and keyed digest, not kept themselves."""

    def __init__(self, values=()):
        cdef bytes shadow
        memcpy(&self.filter, &STATIC, sizeof(STATIC))
        memset(self.first, 0, sizeof(self.first))
        self.lengths = {}
        self.digests = set()
        self.key = _secrets.token_bytes(16)
        for value in values:
            if not isinstance(value, str):
                raise TypeError(f"own secrets are str, got {type(value).__name__}")
            if len(value) < SHORTEST_OWN_SECRET:
                raise ValueError(f"an own secret has at least {SHORTEST_OWN_SECRET} characters, got {len(value)}")
            for form in {value, json_body(value, True), json_body(value, False)}:
                shadow = shadow_bytes(form[:4])
                inferno_mark_gram(&self.filter, <const uint8_t *>shadow)
                self.first[<uint8_t>shadow[0]] = 1
                gram = inferno_gram(<const uint8_t *>shadow)
                self.lengths[gram] = tuple(sorted({len(form), *self.lengths.get(gram, ())}, reverse=True))
                self.digests.add(self.digest(form))

    def digest(self, str value):
        return blake2b(value.encode("utf-8", "surrogatepass"), key=self.key, digest_size=16).digest()


cdef bint is_personal(int kind) noexcept nogil:
    return kind == K_CARD or kind == K_IBAN or kind == K_EMAIL or kind == K_PHONE


cdef str canonical(int kind, str value):
    """One form for every way to write the same value."""
    if kind == K_EMAIL:
        return value.lower()
    return "".join([c for c in value.upper() if c.isalnum()])


cdef class Redactor:
    """Redacts one stream; `feed` as text comes, `finish` at its end, `counts` and `spans` at any time."""

    def __cinit__(self):
        self.shadow = NULL
        memset(&self.marks, 0, sizeof(self.marks))

    def __init__(self, profile="default", allow_values=frozenset(), own_secrets=None, *, json_mode=False):
        if profile not in PROFILES:
            raise ValueError(f"profile is one of {', '.join(PROFILES)}, got {profile!r}")
        if own_secrets is not None and not isinstance(own_secrets, OwnSecrets):
            own_secrets = OwnSecrets(own_secrets)
        self.own = own_secrets
        self.filter = &STATIC if own_secrets is None else &self.own.filter
        self.allowed = frozenset(allow_values)
        self.strict = profile == "strict"
        self.personal = profile != "secrets"
        self.json = json_mode
        self.capacity = 1024
        PyMem_Free(self.shadow)
        self.shadow = <uint8_t *>PyMem_Malloc(self.capacity)
        if self.shadow == NULL:
            raise MemoryError
        self.shadow[0] = 10     # the text starts as if on a new line
        self.size = 1
        self.emitted = 1
        self.pos = 0
        self.floor = 1
        self.origin = -1
        self.json_pos = 1
        self.json_string = self.json_escape = False
        self.pending = ""
        self.broken = self.finished = False
        self.swallow = SWALLOW_NONE
        self.jwt_dots = 0
        self.collected = None
        self.marks.num = 0
        memset(&self.past, 0, sizeof(self.past))
        self.past.word = -MAX_CONTEXT
        self.counts = {}
        self.spans = []
        self.steps = 0

    def __dealloc__(self):
        PyMem_Free(self.shadow)
        PyMem_Free(self.marks.items)

    @property
    def decided(self):
        """How many characters of the stream have been decided: what lies before is out or covered."""
        return self.origin + self.emitted

    @property
    def held(self):
        """How many characters are held back."""
        return self.size - self.emitted

    def feed(self, str text not None):
        """The text that may leave now that `text` has come."""
        return self._step(text, False)

    def finish(self):
        """The rest; the stream is over."""
        return self._step("", True)

    def redact(self, str text not None):
        """The whole of a stream at once; the same object comes back when nothing is covered."""
        return self._step(text, True)

    def _step(self, str text, bint final):
        if self.broken or self.finished:
            raise RedactorError("the stream is over or has failed")
        try:
            self._append(text)
            self.finished = final
            return self._run(final)
        except BaseException as error:
            self.broken = True
            self.pending = ""
            if isinstance(error, Exception):
                raise RedactorError("the redactor failed") from error
            raise

    cdef int _append(self, str text) except -1:
        cdef Py_ssize_t n = len(text), i, wanted
        cdef int kind = PyUnicode_KIND(text)
        cdef void *data = PyUnicode_DATA(text)
        cdef uint8_t *grown
        cdef uint8_t *out
        if n > self.capacity - self.size:
            wanted = 2 * (self.size + n)
            grown = <uint8_t *>PyMem_Realloc(self.shadow, wanted)
            if grown == NULL:
                raise MemoryError
            self.shadow = grown
            self.capacity = wanted
        out = self.shadow + self.size
        if text.isascii():
            memcpy(out, data, n)
            remember(kind, data, n, &self.past)
        else:
            find_marks(kind, data, n, self.size, &self.past, &self.marks)
            for i in range(n):
                out[i] = shadow_of(PyUnicode_READ(kind, data, i))
        self.size += n
        self.pending = self.pending + text if self.pending else text
        return 0

    cdef str _run(self, bint final):
        cdef View w
        cdef Verdict v
        cdef Py_ssize_t t, hold, start, end, resume, asked = -1, base = self.emitted, done = self.emitted
        cdef bint more
        cdef list pieces = []
        cdef str text = self.pending, value
        w.s = self.shadow
        w.n = self.size
        w.floor = self.floor
        w.final = final
        w.json = self.json
        w.personal = self.personal
        w.strict = self.strict
        w.run_start = w.run_end = 0
        w.run_alphabet = -1
        w.marks = self.marks.items
        w.num_marks = self.marks.num
        w.steps = 0
        hold = -1
        while True:
            if self.swallow != SWALLOW_NONE:
                more = False
                end = self._swallow(&w, self.floor, &more)
                if end > self.floor:
                    memset(self.shadow + self.floor, 93, end - self.floor)
                    self.floor = w.floor = done = end
                    self.pos = end - 1
                    last = self.spans.pop()
                    self.spans.append((last[0], self.origin + end, last[2]))
                if more:
                    hold = self.floor
                    break
                self.swallow = SWALLOW_NONE
            t = self._next(&w, self.pos)
            w.steps += t - self.pos
            if t >= w.n:
                self.pos = w.n
                break
            self._verdict(&w, t, &v)
            if v.status == HIT and v.start < self.floor:
                v.status = NO       # what it would cover has been covered for another reason
            resume = t + 1
            if v.status != NO and v.hold > t + 1 and self._before(&w, t, &v):
                resume = t          # something stands before the span; t is asked again behind it
            if v.status == NO:
                self.pos = max(resume, self.floor)
                continue
            if v.status == MORE:
                self.pos = asked = t
                hold = v.hold
                break
            start = v.start
            if start < done:
                raise RedactorError("a match began in text that had left")
            if self.collected is not None or self.allowed:
                value = text[start - base:v.end - base]
                if self._is_allowed(v.kind, value):
                    self.pos = t if resume == t else v.end
                    self.floor = w.floor = v.end
                    continue
            if start > done:
                pieces.append(text[done - base:start - base])
            name = KIND_NAMES[v.kind]
            if self.json and not self._inside_string(start):
                pieces.append(f'"[REDACTED:{name}]"')
            else:
                pieces.append(f"[REDACTED:{name}]")
            self.counts[name] = self.counts.get(name, 0) + 1
            self.spans.append((self.origin + start, self.origin + v.end, name))
            done = v.end
            self.floor = w.floor = v.end
            # What is covered counts as the bracket of a marker for what comes behind: redacting twice changes nothing.
            memset(self.shadow + start, 93, v.end - start)
            self.pos = t if resume == t and v.swallow == SWALLOW_NONE else v.end - 1
            self.swallow = v.swallow
            self.jwt_dots = 1
        self.steps += w.steps
        # The last three positions may begin a window of which less than four bytes have come. A trigger that waits for more
        # is asked again, also when a match that it announces nothing of was covered behind it (a URL's user is a token).
        self.pos = max(min(self.pos, w.n - 3), self.floor - 1 if asked < 0 else min(asked, self.floor - 1))
        if final:
            hold = w.n
        elif hold < 0:
            hold = self._tail_hold()
        else:
            # What waits may stand within the local part of an address, which begins further in front.
            start = hold
            while start > self.floor and hold - start < MAX_LOCAL and is_local(self.shadow[start - 1]):
                start -= 1
            hold = min(start, self._tail_hold())
        if self.swallow != SWALLOW_NONE and not final:
            hold = self.floor
        hold = max(hold, done)
        if done == base and hold == w.n and not pieces:
            self.pending = ""
            self.emitted = w.n
            self._trim()
            return text
        if hold > done:
            pieces.append(text[done - base:hold - base])
        self.pending = text[hold - base:]
        self.emitted = hold
        self._trim()
        return "".join(pieces)

    cdef Py_ssize_t _next(self, View *w, Py_ssize_t pos) noexcept:
        """The first trigger at pos or behind; the end when there is none."""
        cdef Py_ssize_t t, k
        with nogil:
            t = inferno_prefilter_next(self.filter, w.s, pos, w.n)
        if w.num_marks:
            k = mark_from(w, pos)
            while k < w.num_marks and w.marks[k].at < t:
                if w.marks[k].code > 0:
                    return w.marks[k].at
                k += 1
        return t

    cdef int _verdict(self, View *w, Py_ssize_t t, Verdict *v) except -1:
        """What stands at the trigger t: own secrets first, then known prefixes, then what pairs announce."""
        cdef int bits = 0, k
        cdef uint32_t gram
        set_no(v)
        v.hold = t
        if w.n - t >= 4 and inferno_gram_at(self.filter, w.s + t):
            if self.own is not None and self._own(w, t, v):
                return 0
            gram = inferno_gram(w.s + t)
            k = TABLE_FIRST[table_slot(gram)]
            while k:
                literal_verdict(w, t - LITERALS[k - 1].offset, &LITERALS[k - 1], v)
                if v.status != NO:
                    return 0
                k = NEXT[k - 1]
        if w.num_marks and mark_at(w, t) > 0:
            foreign_at(w, t, v)
            if v.status != NO:
                return 0
        if w.n - t >= 2:
            bits = FIRST[w.s[t]] & SECOND[w.s[t + 1]]
        if bits == 0:
            return 0
        if bits & (B_DASH | B_SG):
            for k in range(NUM_LITERALS):
                if LITERALS[k].pair and memcmp(LITERALS[k].text + LITERALS[k].offset, w.s + t, 2) == 0:
                    literal_verdict(w, t - LITERALS[k].offset, &LITERALS[k], v)
                    if v.status != NO:
                        return 0
        if bits & B_JWT and t > w.floor and w.s[t - 1] == 101:
            jwt_at(w, t - 1, v)
        if v.status == NO and bits & B_URL:
            url_at(w, t, v)
        if v.status == NO and bits & B_AT:
            email_at(w, t, v)
        if v.status == NO and bits & B_LETTER and t > w.floor:
            iban_at(w, t, v)
        if v.status == NO and bits & (B_NUMBER | B_LETTER):
            number_at(w, t, v)
        return 0

    cdef bint _before(self, View *w, Py_ssize_t t, Verdict *v) except -1:
        """Whether another match stands between the trigger t and the span that it announces; it then comes first.

        A password's trigger is the :// of its URL: the user's name between the two may itself be a token.
        """
        cdef Verdict inner
        cdef Py_ssize_t i = max(t + 1, w.floor)
        while i < v.hold:
            i = self._next(w, i)
            if i >= v.hold:
                return False
            self._verdict(w, i, &inner)
            if inner.status == MORE and inner.hold < v.hold:
                set_more(v, inner.hold)
                return True
            if inner.status == HIT and w.floor <= inner.start < v.hold:
                v[0] = inner
                return True
            i += 1
        return False

    cdef int _own(self, View *w, Py_ssize_t t, Verdict *v) except -1:
        cdef Py_ssize_t length
        lengths = self.own.lengths.get(inferno_gram(w.s + t))
        if lengths is None or t < w.floor:
            return 0
        for length in lengths:
            if length > w.n - t:
                if not w.final:
                    set_more(v, t)
                    return 1
                continue
            w.steps += length
            if self.own.digest(self.pending[t - self.emitted:t - self.emitted + length]) in self.own.digests:
                set_hit(v, t, t + length, K_OWN, SWALLOW_NONE)
                return 1
        return 0

    cdef bint _is_allowed(self, int kind, str value) except -1:
        cdef str form
        if not is_personal(kind):
            return False
        form = canonical(kind, value)
        if self.collected is not None:
            self.collected.add(form)
            return False
        return form in self.allowed or (kind == K_PHONE and len(form) >= 9 and "~" + form[len(form) - 9:] in self.allowed)

    cdef Py_ssize_t _swallow(self, View *w, Py_ssize_t pos, bint *more) except -1:
        """How far a proven secret goes on; more is set while its end has not come."""
        cdef bint ended = False
        cdef Py_ssize_t i = pos, end
        if self.swallow == SWALLOW_PEM:
            while True:
                end = pem_goes_on(w, i, &ended, more)
                i = end
                if ended or more[0]:
                    return i
        while i < w.n:
            if is_url64(w.s[i]) or (self.swallow == SWALLOW_RUN and (w.s[i] == 43 or w.s[i] == 61)):
                i += 1
                continue
            if self.swallow == SWALLOW_JWT and w.s[i] == 46 and self.jwt_dots < 4:
                if i + 1 == w.n:
                    more[0] = not w.final
                    return i
                if is_url64(w.s[i + 1]):
                    self.jwt_dots += 1
                    i += 1
                    continue
            w.steps += i - pos
            return i
        w.steps += i - pos
        more[0] = not w.final
        return i

    cdef Py_ssize_t _tail_hold(self) noexcept:
        """The first index that may be part of a match whose trigger has not come yet."""
        cdef const uint8_t *s = self.shadow
        cdef Py_ssize_t n = self.size, run = n, hold, k
        while run > self.floor and n - run < MAX_LOCAL and is_local(s[run - 1]):
            run -= 1
        hold = run
        if n - run <= 32 and run - self.floor >= 8 and memcmp(s + run - 8, b"https://", 8) == 0:
            hold = run - 8
        elif run == n:
            for k in range(6, 9):
                if n - self.floor >= k and memcmp(s + n - k, b"https://", k) == 0:
                    hold = n - k
            if n > self.floor and s[n - 1] == 40:
                hold = n - 1
                if n - 1 > self.floor and s[n - 2] == 43:
                    hold = n - 2
        if self.own is not None:
            for k in range(1, 4):
                if n - k >= self.floor and self.own.first[s[n - k]]:
                    hold = min(hold, n - k)
        return hold

    cdef bint _inside_string(self, Py_ssize_t upto) noexcept:
        """JSON: whether an unescaped quote is open before index upto."""
        cdef Py_ssize_t i = self.json_pos
        while i < upto:
            if self.json_escape:
                self.json_escape = False
            elif self.json_string and self.shadow[i] == 92:
                self.json_escape = True
            elif self.shadow[i] == 34:
                self.json_string = not self.json_string
            i += 1
        if upto > self.json_pos:
            self.json_pos = upto
        return self.json_string

    cdef void _trim(self) noexcept:
        """Forget context that no recogniser can look back to."""
        cdef Py_ssize_t first, k
        cdef Py_ssize_t keep = min(self.emitted, min(self.pos, self.floor if self.swallow else self.emitted)) - MAX_CONTEXT
        if keep < 1024 or keep < self.size // 2:
            return
        if self.json:
            self._inside_string(keep)
        memmove(self.shadow, self.shadow + keep, self.size - keep)
        self.size -= keep
        self.emitted -= keep
        self.pos = max(self.pos - keep, 0)
        self.floor = max(self.floor - keep, 0)
        self.json_pos = max(self.json_pos - keep, 0)
        self.origin += keep
        self.past.word -= keep
        first = 0
        while first < self.marks.num and self.marks.items[first].at < keep:
            first += 1
        for k in range(first, self.marks.num):
            self.marks.items[k - first].at = self.marks.items[k].at - keep
            self.marks.items[k - first].code = self.marks.items[k].code
        self.marks.num -= first


def redact(str text not None, profile="default", allow_values=frozenset(), own_secrets=None, *, json_mode=False):
    """The whole text at once; the same object when nothing is covered."""
    return Redactor(profile, allow_values, own_secrets, json_mode=json_mode).redact(text)


def personal_values(texts):
    """The e-mail, telephone, card and IBAN values of a request's own texts, in the form that `allow_values` takes.

    Numbers are taken without asking for context or checksum: whatever the client wrote may come back to it.
    """
    cdef set found = set()
    cdef Redactor redactor
    cdef str text, run
    cdef Py_ssize_t i, gap
    cdef bytes shadow
    for text in texts:
        redactor = Redactor("default")
        redactor.collected = set()
        redactor.redact(text)
        found |= redactor.collected
        if not redactor_has_digits(text):
            continue
        shadow = shadow_bytes(text)
        run = ""
        gap = 0
        for i in range(len(shadow)):
            if is_digit(shadow[i]):
                run += chr(shadow[i])
                gap = 0
            else:
                gap += 1
                if gap == 4 or not (shadow[i] in b" -./()+"):
                    keep_number(found, run)
                    run = ""
        keep_number(found, run)
    return frozenset(found)


cdef bint redactor_has_digits(str text) except -1:
    cdef Py_ssize_t i, count = 0
    for i in range(len(text)):
        if 48 <= text[i] <= 57 or 0xFF10 <= text[i] <= 0xFF19:
            count += 1
            if count >= 8:
                return True
    return False


cdef int keep_number(set found, str run) except -1:
    if 8 <= len(run) <= 24:
        found.add(run)
        if len(run) >= 9:
            found.add("~" + run[len(run) - 9:])
    return 0


def touched_tokens(tokens, spans):
    """For each of the stream's token texts, whether a covered span overlaps it: its text and bytes must be withheld."""
    cdef Py_ssize_t offset = 0, k = 0
    cdef list touched = []
    spans = sorted((start, end) for start, end, *_ in spans)
    for token in tokens:
        end = offset + len(token)
        while k < len(spans) and spans[k][1] <= offset:
            k += 1
        touched.append(k < len(spans) and spans[k][0] < end and spans[k][1] > offset)
        offset = end
    return touched

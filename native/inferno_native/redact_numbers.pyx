"""Recognisers of personal data: cards, IBAN, US social security numbers, telephone numbers, private addresses, e-mail.

Each gets a trigger position from the redactor's skip loop, reads the shadow around it and answers NO, MORE or HIT. All
work is bounded by the longest value (24 digits, 34 characters of an IBAN, 64 + 253 of an address). Runs in the front's
workers without the GIL.
"""

from libc.string cimport memcmp, strlen

from .shadow cimport (K_CARD, K_EMAIL, K_IBAN, K_IPV4, K_PHONE, K_SSN, MAX_LOCAL, SWALLOW_NONE, Verdict, View, is_alnum,
                      is_alpha, is_digit, is_local, is_lower, is_space, is_upper, is_word, lower, set_hit, set_more, set_no)
from libc.stdint cimport uint8_t, uint32_t

cdef enum:
    MAX_DIGITS = 24
    MAX_GROUPS = 12

cdef struct Digits:
    uint8_t digit[MAX_DIGITS]
    int num_digits
    int num_groups
    int length[MAX_GROUPS]      # digits in the group
    int total[MAX_GROUPS]       # digits up to its end
    Py_ssize_t end[MAX_GROUPS]  # index behind its last digit
    uint8_t sep[MAX_GROUPS]     # what follows it before the next group; 255 when more than one character
    bint cut                    # the text ends where another digit could still come
    bint too_long

# ISO 13616 registry: length of the whole IBAN by country; 0 where there is none.
cdef uint8_t IBAN_LENGTH[26][26]
_IBAN = (
    "AD24 AE23 AL28 AO25 AT20 AZ28 BA20 BE16 BF28 BG22 BH22 BI27 BJ28 BR29 BY28 CF27 CG27 CH21 CI28 CM27 CR22 CV25 CY28 "
    "CZ24 DE22 DJ27 DK18 DO28 DZ26 EE20 EG29 ES24 FI18 FK18 FO18 FR27 GA27 GB22 GE22 GI23 GL18 GQ27 GR27 GT28 GW25 HN28 "
    "HR21 HU28 IE22 IL23 IQ23 IR26 IS26 IT27 JO30 KM27 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MA28 MC27 MD24 ME22 "
    "MG27 MK19 ML28 MN20 MR27 MT31 MU30 MZ25 NE28 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 SC31 "
    "SD18 SE24 SI19 SK24 SM27 SN28 SO23 ST25 SV28 TD27 TG28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30"
)
for _entry in _IBAN.split():
    IBAN_LENGTH[ord(_entry[0]) - 65][ord(_entry[1]) - 65] = int(_entry[2:])

# Issuer ranges: first six digits from, to, shortest, longest.
cdef struct Issuer:
    int low
    int high
    int shortest
    int longest

cdef Issuer ISSUERS[40]
cdef int NUM_ISSUERS = 0
_issuers = (
    (400000, 499999, 16, 16), (400000, 499999, 19, 19),             # Visa (13 digits only with its context, below)
    (510000, 559999, 16, 16), (222100, 272099, 16, 16),             # Mastercard
    (340000, 349999, 15, 15), (370000, 379999, 15, 15),             # American Express
    (601100, 601199, 16, 19), (644000, 659999, 16, 19), (622126, 622925, 16, 19),   # Discover
    (620000, 629999, 16, 19), (810000, 817199, 16, 19),             # UnionPay
    (352800, 358999, 16, 19),                                       # JCB
    (300000, 305999, 14, 19), (309500, 309599, 14, 19), (360000, 369999, 14, 19), (380000, 399999, 14, 19),  # Diners
    (501800, 501899, 13, 19), (502000, 502099, 13, 19), (503800, 503899, 13, 19), (589300, 589399, 13, 19),  # Maestro
    (630400, 630499, 13, 19), (675900, 675999, 13, 19), (676100, 676399, 13, 19), (670000, 679999, 16, 19),
    (560000, 589999, 16, 19), (501900, 501999, 16, 16),             # Maestro, Dankort
    (220000, 220499, 16, 19), (600000, 609999, 16, 16), (508000, 508999, 16, 16), (820000, 829999, 16, 16),  # Mir, RuPay
    (506099, 506198, 16, 19), (979200, 979299, 16, 16), (636000, 639999, 16, 19),   # Verve, Troy, InterPayment and kin
    (606282, 606282, 16, 16), (627780, 627780, 16, 16),             # Hipercard, Elo
)
for _low, _high, _shortest, _longest in _issuers:
    ISSUERS[NUM_ISSUERS].low = _low
    ISSUERS[NUM_ISSUERS].high = _high
    ISSUERS[NUM_ISSUERS].shortest = _shortest
    ISSUERS[NUM_ISSUERS].longest = _longest
    NUM_ISSUERS += 1

# Words before a number, in the shadow's form (a letter outside ASCII is 0x80).
cdef const char *PHONE_WORDS[48]
cdef int NUM_PHONE_WORDS = 0
_phone_words = [
    b"tel", b"phone", b"telephone", b"mobile", b"cell", b"cellphone", b"call", b"fax", b"whatsapp", b"sms", b"telefon",
    b"t\x80l", b"telefono", b"tel\x80fono", b"m\x80vil", b"movil", b"handy", b"rufnummer", b"telefonnummer", b"hotline",
    b"dial", b"ring", b"text", b"telefone", b"telefoon", b"mobil", b"celular", b"portable", b"phonenumber", b"signal",
    b"viber", b"landline", b"helpline", b"mob", b"ph", b"t\x80l\x80phone", b"cellulare", b"contactnumber",
    b"\x80\x80\x80\x80\x80\x80\x80", b"\x80\x80\x80",     # Russian "telefon", "tel"
]
for _word in _phone_words:
    PHONE_WORDS[NUM_PHONE_WORDS] = _word
    NUM_PHONE_WORDS += 1
cdef const char *FILLERS[20]
cdef int NUM_FILLERS = 0
_fillers = [b"no", b"nr", b"num", b"number", b"is", b"at", b"on", b"to", b"me", b"us", b"unter", b"au", b"al", b"him", b"her",
            b"them", b"the", b"line", b"nummer"]
for _word in _fillers:
    FILLERS[NUM_FILLERS] = _word
    NUM_FILLERS += 1
cdef const char *SSN_WORDS[8]
_ssn_words = [b"ssn", b"ssns", b"security", b"social", b"itin"]
for _index, _word in enumerate(_ssn_words):
    SSN_WORDS[_index] = _word
cdef const char *CARD_WORDS[6]
_card_words = [b"card", b"visa", b"karte", b"pan", b"tarjeta", b"carte"]
for _index, _word in enumerate(_card_words):
    CARD_WORDS[_index] = _word
cdef const char *RESERVED[7]
# RFC 2606 and RFC 6761: names that belong to nobody.
_reserved = [b"test", b"example", b"invalid", b"localhost"]
for _index, _word in enumerate(_reserved):
    RESERVED[_index] = _word


cdef bint boundary_before(View *w, Py_ssize_t pos) noexcept nogil:
    """No word runs into pos; an escape such as \\n or \\u00e9 is no word."""
    cdef uint8_t c
    cdef Py_ssize_t k
    if pos == 0:
        return True
    c = w.s[pos - 1]
    if not is_alnum(c):
        return True
    if pos >= 2 and w.s[pos - 2] == 92:
        return c == 110 or c == 116 or c == 114 or c == 98 or c == 102
    if pos < 6 or w.s[pos - 6] != 92 or w.s[pos - 5] != 117:
        return False
    for k in range(pos - 4, pos):
        if not (is_digit(w.s[k]) or 97 <= lower(w.s[k]) <= 102):
            return False
    return True


cdef bint is_one_of(const uint8_t *word, Py_ssize_t size, const char **words, int count) noexcept nogil:
    cdef int k
    for k in range(count):
        if strlen(words[k]) == <size_t>size and memcmp(words[k], word, size) == 0:
            return True
    return False


cdef bint context_before(View *w, Py_ssize_t start, const char **words, int count) noexcept nogil:
    """One of `words` stands before start, with at most two filler words and no digit in between."""
    cdef uint8_t word[16]
    cdef Py_ssize_t i = start - 1, gap = 0, size, k
    cdef int fillers = 0
    cdef uint8_t c
    while i >= 0 and gap < 40:
        c = w.s[i]
        if is_alpha(c) or c == 128:
            size = 0
            k = i
            while k >= 0 and size < 16 and (is_alpha(w.s[k]) or w.s[k] == 128):
                size += 1
                k -= 1
            if size == 16:
                return False
            for k in range(size):
                word[k] = lower(w.s[i - size + 1 + k])
            if is_one_of(word, size, words, count):
                # A marker's own kind is no context: redacting twice must change nothing.
                return not (i - size >= 0 and w.s[i - size] == 58 and i - size >= 8 and memcmp(w.s + i - size - 8, b"REDACTED", 8) == 0)
            if fillers == 2 or not is_one_of(word, size, FILLERS, NUM_FILLERS):
                return False
            fillers += 1
            i -= size
            gap += size
        elif c == 32 or c == 9 or c == 58 or c == 61 or c == 34 or c == 39 or c == 46 or c == 40 or c == 35 or c == 45 \
                or c == 43 or c == 95 or c == 62 or c == 129 or c == 92:
            i -= 1
            gap += 1
        else:
            return False
    return False


cdef void read_digits(View *w, Py_ssize_t start, Digits *d) noexcept nogil:
    """Groups of digits from start, joined by one separator, or by a bracket and a separator."""
    cdef Py_ssize_t i = start, k
    cdef int length
    cdef uint8_t c
    d.num_digits = 0
    d.num_groups = 0
    d.cut = False
    d.too_long = False
    while True:
        length = 0
        while i < w.n and is_digit(w.s[i]):
            if d.num_digits == MAX_DIGITS:
                # What was read before this group still counts.
                d.too_long = d.num_groups == 0
                if d.num_groups:
                    d.num_digits = d.total[d.num_groups - 1]
                return
            d.digit[d.num_digits] = w.s[i] - 48
            d.num_digits += 1
            length += 1
            i += 1
        w.steps += length + 1
        d.length[d.num_groups] = length
        d.total[d.num_groups] = d.num_digits
        d.end[d.num_groups] = i
        d.sep[d.num_groups] = 0
        d.num_groups += 1
        k = 0
        while k < 3 and i + k < w.n:
            c = w.s[i + k]
            if c == 32 or c == 45 or c == 46 or c == 47 or c == 40 or c == 41:
                k += 1
            else:
                break
        if i + k >= w.n:
            d.cut = True
            return
        if k == 0 or not is_digit(w.s[i + k]) or d.num_groups == MAX_GROUPS:
            return
        if k == 1 and w.s[i] != 40 and w.s[i] != 41:
            d.sep[d.num_groups - 1] = w.s[i]
        elif k == 1 or w.s[i] == 41 or w.s[i + 1] == 40 or w.s[i + 1] == 41:
            d.sep[d.num_groups - 1] = 255
        else:
            return      # two separators in a row end the number
        i += k


cdef bint luhn(const uint8_t *digit, int count) noexcept nogil:
    cdef int total = 0, k, x
    for k in range(count):
        x = digit[count - 1 - k]
        if k & 1:
            x = 2 * x - 9 if x > 4 else 2 * x
        total += x
    return total % 10 == 0


cdef bint is_card(const uint8_t *digit, int count, bint named) noexcept nogil:
    cdef int k, first_six = 0, equal = 1
    for k in range(6):
        first_six = first_six * 10 + digit[k]
    for k in range(1, count):
        if digit[k] == digit[0]:
            equal += 1
    if equal == count or not luhn(digit, count):
        return False
    if count == 13 and digit[0] == 4:
        return named
    for k in range(NUM_ISSUERS):
        if ISSUERS[k].low <= first_six <= ISSUERS[k].high and ISSUERS[k].shortest <= count <= ISSUERS[k].longest:
            return True
    return False


cdef bint parts_numbers(uint8_t sep) noexcept nogil:
    """A blank or a bracket may stand between two numbers; other marks join one."""
    return sep == 32 or sep == 255


cdef bint ends_clean(View *w, Py_ssize_t end) noexcept nogil:
    """Neither a word nor a fraction goes on at end."""
    if end >= w.n:
        return True
    if is_word(w.s[end]):
        return False
    return not (end + 1 < w.n and (w.s[end] == 45 or w.s[end] == 46) and is_digit(w.s[end + 1]))


cdef bint card(View *w, Py_ssize_t start, Digits *d, Verdict *v) noexcept nogil:
    cdef int g = 0, last = -1
    cdef uint8_t sep = 0
    cdef bint named
    if d.num_digits < 13:
        return False
    named = context_before(w, start, CARD_WORDS, 6)
    while g < d.num_groups:
        if g > 0:
            if d.sep[g - 1] != 32 and d.sep[g - 1] != 45:
                break
            if sep != 0 and d.sep[g - 1] != sep:
                break
            sep = d.sep[g - 1]
            if d.length[g] < 2 and d.total[g] < 14:
                break
        if d.total[g] > 19:
            break
        if d.total[g] >= 13 and ends_clean(w, d.end[g]) and is_card(d.digit, d.total[g], named):
            last = g
        g += 1
    if last < 0:
        return False
    set_hit(v, start, d.end[last], K_CARD, SWALLOW_NONE)
    return True


cdef bint ssn(View *w, Py_ssize_t start, Digits *d, Verdict *v) noexcept nogil:
    cdef int area
    if d.num_groups < 3 or d.length[0] != 3 or d.length[1] != 2 or d.length[2] != 4 or d.sep[0] != d.sep[1]:
        return False
    if d.num_groups > 3 and not parts_numbers(d.sep[2]):
        return False
    if not ends_clean(w, d.end[2]):
        return False
    area = d.digit[0] * 100 + d.digit[1] * 10 + d.digit[2]
    if area == 0 or area == 666 or area >= 900 or d.digit[3] + d.digit[4] == 0:
        return False
    if d.digit[5] + d.digit[6] + d.digit[7] + d.digit[8] == 0:
        return False
    if d.sep[0] != 45 and not (d.sep[0] == 32 and context_before(w, start, SSN_WORDS, 5)):
        return False
    set_hit(v, start, d.end[2], K_SSN, SWALLOW_NONE)
    return True


cdef int group_value(Digits *d, int g) noexcept nogil:
    cdef int value = 0, k
    for k in range(d.total[g] - d.length[g], d.total[g]):
        value = value * 10 + d.digit[k]
    return value


cdef bint looks_like_date(Digits *d) noexcept nogil:
    """2025-11-24, 24.11.2025, 11/24/25 and longer forms that begin so."""
    if d.num_groups < 3 or d.sep[0] != d.sep[1] or d.sep[0] == 32 or d.sep[0] == 255:
        return False
    if d.length[0] == 4 and d.length[1] <= 2 and d.length[2] <= 2:
        return group_value(d, 1) <= 12 and group_value(d, 2) <= 31
    if d.length[0] <= 2 and d.length[1] <= 2 and (d.length[2] == 4 or d.length[2] == 2):
        return group_value(d, 0) <= 31 and group_value(d, 1) <= 31 and d.num_groups == 3
    return False


cdef bint phone(View *w, Py_ssize_t start, Digits *d, Verdict *v) noexcept nogil:
    cdef uint8_t lead = w.s[start - 1]
    cdef Py_ssize_t from_ = start
    cdef int last = d.num_groups - 1
    cdef bint bracket = lead == 40 and d.sep[0] == 255 and w.s[d.end[0]] == 41
    if lead == 43:
        from_ = start - 1
        if not boundary_before(w, from_) or d.digit[0] == 0:
            return False
        if d.num_groups == 2 and d.sep[0] == 46 and d.length[0] > 3:
            return False        # a decimal fraction; a country code has at most three digits
        while last >= 0 and d.total[last] > 15:
            last -= 1
        # Eleven digits are a whole number: another group behind a blank is another number.
        while last > 0 and d.total[last - 1] >= 11 and d.sep[last - 1] == 32:
            last -= 1
        if last < 0 or d.total[last] < 8:
            return False
        if last < d.num_groups - 1 and not parts_numbers(d.sep[last]):
            return False
        if not ends_clean(w, d.end[last]):
            return False
        set_hit(v, from_, d.end[last], K_PHONE, SWALLOW_NONE)
        return True
    if bracket:
        from_ = start - 1
        if from_ > 0 and w.s[from_ - 1] == 43:
            from_ -= 1
    if bracket and d.num_groups >= 3 and d.length[0] == 3 and d.length[1] == 3 and d.length[2] == 4 and d.digit[0] >= 2:
        if ends_clean(w, d.end[2]):
            set_hit(v, from_, d.end[2], K_PHONE, SWALLOW_NONE)
            return True
    while last >= 0 and d.total[last] > 15:
        last -= 1
    if last < 0 or d.total[last] < 8 or (last < d.num_groups - 1 and not parts_numbers(d.sep[last])) or not ends_clean(w, d.end[last]):
        return False
    if looks_like_date(d) or (d.num_groups == 3 and d.length[0] == 3 and d.length[1] == 2 and d.length[2] == 4):
        return False
    if not context_before(w, from_, PHONE_WORDS, NUM_PHONE_WORDS):
        return False
    set_hit(v, from_, d.end[last], K_PHONE, SWALLOW_NONE)
    return True


cdef bint quad(View *w, Py_ssize_t start, Digits *d, Verdict *v) noexcept nogil:
    """A dotted quad: private ones are covered in the strict profile, all are kept from being taken for something else."""
    cdef int a, b, k
    if d.num_groups < 4 or d.sep[0] != 46 or d.sep[1] != 46 or d.sep[2] != 46:
        return False
    set_no(v)
    if d.num_groups > 4 and d.sep[3] == 46:
        return True
    for k in range(4):
        if d.length[k] > 3 or group_value(d, k) > 255:
            return True
    a = group_value(d, 0)
    b = group_value(d, 1)
    if w.strict and (a == 10 or (a == 172 and 16 <= b <= 31) or (a == 192 and b == 168)):
        if d.end[3] >= w.n or not is_word(w.s[d.end[3]]):
            set_hit(v, start, d.end[3], K_IPV4, SWALLOW_NONE)
    return True


cdef void number_at(View *w, Py_ssize_t pos, Verdict *v) noexcept nogil:
    cdef Digits d
    cdef Py_ssize_t start = pos + 1
    cdef uint8_t lead = w.s[pos], before
    set_no(v)
    if is_alnum(lead) and not boundary_before(w, start):
        return
    before = w.s[pos - 1] if pos > 0 else 10
    if lead == 95 or lead == 94 or lead == 37:
        return
    if (lead == 45 or lead == 46 or lead == 47) and is_alnum(before):
        return
    if (lead == 58 or lead == 44) and is_digit(before):
        return
    read_digits(w, start, &d)
    if d.too_long:
        return
    if d.cut and not w.final:
        set_more(v, pos if lead == 43 or lead == 40 else start)
        if lead == 40 and pos > 0 and before == 43:
            v.hold = pos - 1
        return
    if lead != 43 and quad(w, start, &d, v):
        return
    if not w.personal:
        return
    if ssn(w, start, &d, v) or card(w, start, &d, v) or phone(w, start, &d, v):
        return


cdef void iban_at(View *w, Py_ssize_t pos, Verdict *v) noexcept nogil:
    """ISO 13616: country, two check digits, then letters and digits; groups may be parted by single spaces."""
    cdef Py_ssize_t a = pos - 1, i
    cdef int wanted, got = 0, spaces = 0
    cdef bint big
    cdef uint8_t text[40]
    cdef uint8_t c
    cdef uint32_t rest = 0
    set_no(v)
    if not w.personal or a < 0 or not is_alpha(w.s[a]) or not boundary_before(w, a):
        return
    if a > 0 and w.s[a - 1] == 95:
        return
    big = is_upper(w.s[pos])
    if is_upper(w.s[a]) != big:
        return
    wanted = IBAN_LENGTH[lower(w.s[a]) - 97][lower(w.s[pos]) - 97]
    if wanted == 0:
        return
    i = a
    while got < wanted:
        if i >= w.n:
            if not w.final:
                set_more(v, a)
            return
        c = w.s[i]
        w.steps += 1
        if c == 32 or c == 45:
            if got < 4 or w.s[i - 1] == 32 or w.s[i - 1] == 45:
                return
            spaces += 1
            i += 1
            continue
        if not is_digit(c) and not (is_upper(c) if big else is_lower(c)):
            return
        if (got == 2 or got == 3) and not is_digit(c):
            return
        text[got] = lower(c)
        got += 1
        i += 1
    if i >= w.n and not w.final:
        set_more(v, a)
        return
    if i < w.n and is_word(w.s[i]):
        return
    for got in range(wanted):
        c = text[(got + 4) % wanted]
        if is_digit(c):
            rest = (rest * 10 + (c - 48)) % 97
        else:
            rest = (rest * 100 + (c - 87)) % 97
    if rest == 1:
        set_hit(v, a, i, K_IBAN, SWALLOW_NONE)


cdef bint reserved_domain(const uint8_t *s, Py_ssize_t start, Py_ssize_t end) noexcept nogil:
    """example.com, .net, .org and below, and everything under .test, .example, .invalid, .localhost."""
    cdef Py_ssize_t last = end, second
    cdef uint8_t label[12]
    cdef Py_ssize_t k, size
    while last > start and s[last - 1] != 46:
        last -= 1
    size = end - last
    if size > 11:
        return False
    for k in range(size):
        label[k] = lower(s[last + k])
    if is_one_of(label, size, RESERVED, 4):
        return True
    if not (size == 3 and (memcmp(label, b"com", 3) == 0 or memcmp(label, b"net", 3) == 0 or memcmp(label, b"org", 3) == 0)):
        return False
    if last - start < 8:
        return False
    second = last - 1 - 7
    for k in range(7):
        if lower(s[second + k]) != (<const uint8_t *>b"example")[k]:
            return False
    return second == start or s[second - 1] == 46


cdef void email_at(View *w, Py_ssize_t pos, Verdict *v) noexcept nogil:
    cdef Py_ssize_t start = pos + 1, at = pos + 1, i, dot = -1, k, back
    cdef bint letters = True
    set_no(v)
    if not w.personal:
        return
    while start > w.floor and at - start < MAX_LOCAL and is_local(w.s[start - 1]):
        start -= 1
    w.steps += at - start
    # The letter of an escape such as \n is no part of the address.
    if start > 0 and w.s[start - 1] == 92 and start < at and (w.s[start] == 110 or w.s[start] == 116 or w.s[start] == 114):
        start += 1
    while start < at and (w.s[start] == 46 or w.s[start] == 45 or w.s[start] == 37):
        start += 1
    if start >= at:
        return
    i = at + 1
    while i < w.n and i - at <= 253 and (is_alnum(w.s[i]) or w.s[i] == 45 or w.s[i] == 46):
        if w.s[i] == 46:
            if w.s[i - 1] == 46 or i == at + 1:
                break
            dot = i
        i += 1
    w.steps += i - at
    if i >= w.n and not w.final and i - at <= 253:
        set_more(v, start)
        return
    while i > at + 1 and (w.s[i - 1] == 46 or w.s[i - 1] == 45):
        i -= 1
    dot = i - 1
    while dot > at and w.s[dot] != 46:
        letters = letters and is_alpha(w.s[dot])
        dot -= 1
    if dot <= at + 1 or i - dot < 3 or not letters:
        return
    if reserved_domain(w.s, at + 1, i):
        return
    if at - start == 3 and lower(w.s[start]) == 103 and lower(w.s[start + 1]) == 105 and lower(w.s[start + 2]) == 116:
        return      # git@host: the name of a service, in every clone line
    # user:password@host of a URL is the URL recogniser's; what it let pass is a placeholder.
    back = start - 1
    k = 0
    while back > 1 and k < 90 and not is_space(w.s[back]) and w.s[back] != 34 and w.s[back] != 39:
        if w.s[back] == 47 and w.s[back - 1] == 47 and w.s[back - 2] == 58:
            return
        if w.s[back] == 47 or w.s[back] == 63 or w.s[back] == 61 or w.s[back] == 44:
            break
        back -= 1
        k += 1
    set_hit(v, start, i, K_EMAIL, SWALLOW_NONE)

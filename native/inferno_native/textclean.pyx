"""Text cleaning for INP-4 and INP-5, and the forms in which text is scanned.

`features` says in one fast pass what a text needs; ordinary text needs nothing and is used as it is. `clean` removes
control and invisible characters and keeps what languages and emoji need. `fold` gives the form in which rules are
looked for, and the functions below it undo spacing, digits for letters and encodings. All are linear in the text. It
decides nothing: what is reported or refused is inferno.security.screening's. Runs in the front's workers.
"""

import unicodedata

from cpython.unicode cimport PyUnicode_AsUTF8AndSize, PyUnicode_DATA
from libc.stdint cimport uint8_t, uint32_t

CONTROL = 1
INVISIBLE = 2
FEATURE_CONTROL = F_CONTROL
FEATURE_WIDE = F_WIDE
FEATURE_SPACED = F_SPACED
FEATURE_LEET = F_LEET
FEATURE_ENCODED = F_ENCODED
FEATURE_LONG_RUN = F_LONG_RUN
FEATURE_NUL = F_NUL

# Letters that look like Latin ones. NFKC and the removal of marks come first, so that only base letters stand here.
_PAIRS = (
    "аa бb вb гr дd еe жx зe иu йu кk лn мm нh оo пn рp сc тt уy фo хx цu чy шw щw ъb ыb ьb эe яr ѕs іi їi јj һh ԁd ԛq ԝw ѵv ӏl "
    "ґr қk ҡk ңh өo ұy ҳx ӡz ҽe ԍg ԇz "
    "αa βb γy εe ζz ηn ιi κk λl νv οo ρp σo ςc τt υu χx ωw ϲc ϳj "
    "ıi ɑa ɡg ɩi ʟl ɪi ʀr ɴn ʏy ʙb ʜh ᴀa ᴄc ᴅd ᴇe ᴊj ᴋk ᴍm ᴏo ᴘp ᴛt ᴜu ᴠv ᴡw ᴢz ꜰf ɢg ꜱs øo đd łl ħh ŧt ðd þp ƒf ʋv ƨs ɐa ǝe ɹr ʇt ɯm ɥh ʌv ʍw ʎy "
    "օo սu հh ոn ցg զq ԱU օo ꓮa ꓐb ꓚc ꓓd ꓰe ꓝf ꓖg ꓧh ꓲi ꓙj ꓗk ꓡl ꓟm ꓠn ꓳo ꓑp ꓣr ꓢs ꓔt ꓴu ꓦv ꓪw ꓫx ꓬy ꓜz "
    "ꭺa ꮯc ꭰd ꭼe ꮐg ꮋh ꭵi ꭻj ꮶk ꮮl ꮇm ꮲp ꭱr ꮪs ꭲt ꮩv ꮃw ᎠD ᎡR ᎢT ᎥI ᎪA ᎫJ ᎬE ᎳW ᎷM ᎻH ᏀG ᏃZ ᏎS ᏙV ᏚS ᏞL ᏟC ᏢP ᏦK ᏴB "
    "‐- ‑- ‒- –- —- ―- −- ⁃- ∕/ ⁄/ ⧸/ ∖\\ ⧵\\ ‘' ’' ‛' ′' ʹ' ʼ' ＇' “\" ”\" ″\" ‹< ›> ❮< ❯> ٪% ․. 。. ｡. 、, ∶: ꞉: ː: ；; ‚, ⁎* ∗* ⟨< ⟩> 〈< 〉> ❘| ǀ| ∣| ⏐|"
)
cdef dict CONFUSABLE = {}
for _pair in _PAIRS.split(" "):
    if len(_pair) == 2:
        CONFUSABLE[_pair[0]] = _pair[1].lower()
for _k in range(26):
    CONFUSABLE[chr(0x1F1E6 + _k)] = chr(97 + _k)    # regional indicators
    CONFUSABLE[chr(0x1F150 + _k)] = chr(97 + _k)    # negative circled
    CONFUSABLE[chr(0x1F170 + _k)] = chr(97 + _k)    # negative squared
    CONFUSABLE[chr(0x1F130 + _k)] = chr(97 + _k)    # squared

cdef dict LIGHT = {}    # code point -> its UTF-8 bytes, case and accents folded; filled as characters are met
cdef dict FULL = {}     # the same with compatibility forms and look-alikes mapped


cdef bint is_ignorable(uint32_t c) noexcept nogil:
    """Characters that show nothing, or only change how their neighbours look."""
    return (c == 0xAD or c == 0x34F or c == 0x61C or c == 0x115F or c == 0x1160 or c == 0x17B4 or c == 0x17B5 or 0x180B <= c <= 0x180F
            or 0x200B <= c <= 0x200F or 0x202A <= c <= 0x202E or 0x2060 <= c <= 0x206F or c == 0x3164 or 0xFE00 <= c <= 0xFE0F
            or c == 0xFEFF or c == 0xFFA0 or 0xFFF9 <= c <= 0xFFFB or 0x1D173 <= c <= 0x1D17A or 0xE0000 <= c <= 0xE0FFF)


cdef bytes fold_char(Py_UCS4 c, bint full):
    cdef str text = chr(c)
    if full:
        if is_ignorable(c):
            return b""
        text = unicodedata.normalize("NFKC", text).casefold()
    else:
        text = text.casefold()
    out = []
    for part in unicodedata.normalize("NFD", text):
        if unicodedata.category(part) == "Mn":
            continue
        if part.isspace() and part not in "\n\u2028\u2029\x85":
            part = " "
        out.append(CONFUSABLE.get(part, part) if full else part)
    return "".join(out).encode("utf-8", "replace")


def fold(str text not None, bint full):
    """The text in the form in which rules are looked for: lower case, no accents; `full` maps look-alikes too."""
    cdef dict table = FULL if full else LIGHT
    cdef list out = []
    cdef bytearray plain = bytearray()
    cdef Py_UCS4 c
    cdef object known
    for c in text:
        if c < 128:
            plain.append(<uint8_t>c)
            continue
        known = table.get(c)
        if known is None:
            known = table[c] = fold_char(c, full)
        plain += <bytes>known
    return bytes(plain)


def features(str text not None):
    """What the text holds, as FEATURE_ bits; FEATURE_NUL alone stands for a text that must be refused."""
    cdef Py_ssize_t n
    cdef const char *data
    if text.isascii():
        return inferno_text_features(<const uint8_t *>PyUnicode_DATA(text), len(text))
    try:
        data = PyUnicode_AsUTF8AndSize(text, &n)
    except UnicodeEncodeError:
        return F_NUL
    return inferno_text_features(<const uint8_t *>data, n) | F_WIDE


cdef inline bint is_ascii_letter(Py_UCS4 c) noexcept nogil:
    return 65 <= c <= 90 or 97 <= c <= 122


cdef inline bint is_noncharacter(Py_UCS4 c) noexcept nogil:
    return 0xFDD0 <= c <= 0xFDEF or (<uint32_t>c & 0xFFFE) == 0xFFFE


cdef inline bint is_selector(Py_UCS4 c) noexcept nogil:
    return 0xFE00 <= c <= 0xFE0F or 0xE0100 <= c <= 0xE01EF or 0x180B <= c <= 0x180D or c == 0x180F


cdef inline bint is_mark(Py_UCS4 c) noexcept nogil:
    """Combining marks that no script needs three of on one letter."""
    return 0x300 <= c <= 0x36F or 0x483 <= c <= 0x489 or 0x1AB0 <= c <= 0x1AFF or 0x1DC0 <= c <= 0x1DFF or 0x20D0 <= c <= 0x20FF or 0xFE20 <= c <= 0xFE2F


cdef inline bint is_zero_width(Py_UCS4 c) noexcept nogil:
    return 0x200B <= c <= 0x200F or 0x2060 <= c <= 0x2064 or c == 0xFEFF or c == 0x180E or c == 0x34F or c == 0xAD


cdef inline bint is_bidi(Py_UCS4 c) noexcept nogil:
    return 0x202A <= c <= 0x202E or 0x2066 <= c <= 0x2069


cdef inline bint is_filler(Py_UCS4 c) noexcept nogil:
    return c == 0x3164 or c == 0xFFA0 or c == 0x115F or c == 0x1160


cdef inline bint is_hangul(Py_UCS4 c) noexcept nogil:
    return 0x1100 <= c <= 0x11FF or 0x3130 <= c <= 0x318F or 0xAC00 <= c <= 0xD7FF or 0xA960 <= c <= 0xA97F or 0xFFA0 <= c <= 0xFFDC


cdef inline bint is_ideograph(Py_UCS4 c) noexcept nogil:
    return 0x3400 <= c <= 0x9FFF or 0xF900 <= c <= 0xFAFF or 0x20000 <= c <= 0x3FFFD


cdef inline bint is_suspect(Py_UCS4 c) noexcept nogil:
    """Whether the slow look is needed at all."""
    if c < 0x80:
        return (c < 32 and c != 9 and c != 10 and c != 13) or c == 127
    if c < 0xA0 or c == 0xAD:
        return True
    if c < 0x300:
        return False
    return (is_mark(c) or is_zero_width(c) or is_selector(c) or is_bidi(c) or is_filler(c) or is_noncharacter(c) or 0x206A <= c <= 0x206F
            or 0xFFF9 <= c <= 0xFFFB or 0xE0000 <= c <= 0xE0FFF or 0x1D173 <= c <= 0x1D17A or 0x17B4 <= c <= 0x17B5)


cdef Py_ssize_t flag_length(str text, Py_ssize_t i, Py_ssize_t n):
    """Characters of a valid subdivision flag's tag sequence that starts at i (after the black flag); 0 if there is none."""
    cdef Py_ssize_t k = i
    cdef Py_UCS4 c
    while k < n and k - i <= 6:
        c = text[k]
        if c == 0xE007F:
            return k - i + 1 if 3 <= k - i <= 6 else 0
        if not (0xE0061 <= c <= 0xE007A or 0xE0030 <= c <= 0xE0039):
            return 0
        k += 1
    return 0


cdef set bad_bidi_lines(str text):
    """Numbers of the paragraphs that hold an override, or embeddings and isolates that do not close."""
    cdef set bad = set()
    cdef list open_ = []
    cdef Py_ssize_t line = 0
    cdef bint wrong = False
    cdef Py_UCS4 c
    for c in text:
        if c == 10 or c == 0x2029:
            if wrong or open_:
                bad.add(line)
            line += 1
            wrong = False
            open_ = []
        elif not is_bidi(c):
            continue
        elif c == 0x202D or c == 0x202E:
            wrong = True
        elif c == 0x202A or c == 0x202B:
            open_.append(0x202C)
        elif 0x2066 <= c <= 0x2068:
            open_.append(0x2069)
        elif open_ and <uint32_t>open_[len(open_) - 1] == <uint32_t>c:
            open_.pop()
        else:
            wrong = True
    if wrong or open_:
        bad.add(line)
    return bad


cdef enum:
    MAX_CLEANINGS = 8


def clean(str text not None):
    """(cleaned text, CONTROL and INVISIBLE bits); the very same object when nothing was to be done.

    What is removed may bring together what hides something again: the text is looked at until nothing changes, at most
    MAX_CLEANINGS times. The caller has refused NUL and lone surrogates before.
    """
    cdef int found = 0, more, k
    cdef str before
    for k in range(MAX_CLEANINGS):
        before = text
        text, more = _clean_once(text)
        found |= more
        if text is before or text == before:
            break
    return text, found


cdef tuple _clean_once(str text):
    cdef Py_ssize_t n = len(text), i, k, line = 0, inside = 0, clusters = 0, hyphens = 0, last_hyphen = -9
    cdef Py_UCS4 c, base, following
    cdef int found = 0
    cdef bint suspect = False, bidi = False
    cdef list out
    for c in text:
        if is_suspect(c):
            suspect = True
            break
    if not suspect:
        return text, 0
    # First look: what is meaningful only in numbers.
    i = 0
    while i < n:
        c = text[i]
        if is_zero_width(c):
            k = i
            while k < n and is_zero_width(text[k]):
                k += 1
            if i > 0 and k < n and is_ascii_letter(text[i - 1]) and is_ascii_letter(text[k]):
                if c != 0xAD:
                    inside += 1
                elif i - last_hyphen <= 3:
                    hyphens += 1
                last_hyphen = i
            i = k
            continue
        if is_mark(c):
            k = i
            while k < n and is_mark(text[k]):
                k += 1
            if k - i >= 3:
                clusters += 1
            i = k
            continue
        bidi = bidi or is_bidi(c)
        i += 1
    bad_lines = bad_bidi_lines(text) if bidi else set()
    out = []
    i = 0
    while i < n:
        c = text[i]
        if c == 10 or c == 0x2029:
            line += 1
        if not is_suspect(c):
            out.append(c)
            i += 1
            continue
        base = text[i - 1] if i > 0 else 0
        following = text[i + 1] if i + 1 < n else 0
        if c < 0xA0 or is_noncharacter(c):
            found |= 1
            if c == 11 or c == 12:
                out.append("\n")
            i += 1
        elif 0xE0000 <= c <= 0xE007F:
            k = flag_length(text, i, n) if base == 0x1F3F4 else 0
            if k:
                while k:
                    out.append(text[i])
                    i += 1
                    k -= 1
            else:
                found |= 2
                i += 1
        elif is_selector(c):
            # One selector behind a base that can have it; a run, or one behind a Latin letter or a space, hides data.
            if (base < 0x80 and not ((48 <= base <= 57 or base == 35 or base == 42) and (c >= 0xFE0E and c <= 0xFE0F or base == 48 and c == 0xFE00))) \
                    or is_selector(base) or (c >= 0xE0100 and not is_ideograph(base)) or is_zero_width(base):
                found |= 2
            else:
                out.append(c)
            i += 1
        elif is_bidi(c):
            if line in bad_lines:
                found |= 2
            else:
                out.append(c)
            i += 1
        elif is_mark(c):
            k = i
            while k < n and is_mark(text[k]):
                k += 1
            if k - i >= 3 or (clusters >= 2 and is_ascii_letter(base)):
                found |= 2
            else:
                while i < k:
                    out.append(text[i])
                    i += 1
            i = k
        elif is_filler(c):
            if is_hangul(base) and not is_filler(base) or (is_hangul(following) and not is_filler(following)):
                out.append(c)
            else:
                found |= 2
            i += 1
        elif is_zero_width(c):
            k = i
            while k < n and is_zero_width(text[k]):
                k += 1
            if hides(text, i, k, n, inside, hyphens):
                found |= 2
                # A byte order mark at the very start stays when it stands alone.
            else:
                while i < k:
                    out.append(text[i])
                    i += 1
            i = k
        else:
            found |= 2      # tag block, deprecated formats, annotations, musical and Khmer invisibles
            i += 1
    if not found:
        return text, 0
    return "".join(out), found


cdef bint hides(str text, Py_ssize_t i, Py_ssize_t k, Py_ssize_t n, Py_ssize_t inside, Py_ssize_t hyphens) except -1:
    """Whether the run [i, k) of zero-width characters hides something rather than shaping text."""
    cdef Py_UCS4 c = text[i]
    cdef bint latin = i > 0 and k < n and is_ascii_letter(text[i - 1]) and is_ascii_letter(text[k])
    if latin and (inside >= 3 if c != 0xAD else hyphens >= 3):
        return True
    if k - i >= 4:
        return True
    if k - i >= 2 and latin:
        return True
    while i < k:
        c = text[i]
        if c == 0xFEFF and i > 0:
            return True
        if 0x2061 <= c <= 0x2064 and (k - i > 1 or i == 0 or k == n or not chr(text[i - 1]).isalnum() or chr(text[k]).isspace()):
            return True
        if c == 0x34F and latin:
            return True
        if c == 0x180E and not (i > 0 and 0x1820 <= text[i - 1] <= 0x18AA):
            return True
        i += 1
    return False


cdef bint is_disguise(Py_UCS4 c) noexcept nogil:
    """Compatibility forms of ASCII that read as plain letters."""
    return (0xFF01 <= c <= 0xFF5E or 0x1D400 <= c <= 0x1D7FF or 0x2460 <= c <= 0x24FF or 0x1F110 <= c <= 0x1F189 or 0x2100 <= c <= 0x214F
            or 0x1D00 <= c <= 0x1D7F or 0xA730 <= c <= 0xA731 or 0x250 <= c <= 0x2AF or 0x1F1E6 <= c <= 0x1F1FF or 0x2070 <= c <= 0x209C or 0x2B0 <= c <= 0x2B8
            or 0x13A0 <= c <= 0x13F5 or 0xA4D0 <= c <= 0xA4FF or 0xAB70 <= c <= 0xABBF)


cdef bint is_foreign_twin(Py_UCS4 c) noexcept nogil:
    return 0x370 <= c <= 0x3FF or 0x400 <= c <= 0x52F or 0x530 <= c <= 0x58F


def undisguise(str text not None):
    """The text with disguised Latin letters as plain ones: compatibility forms, look-alikes in mixed words, hidden marks."""
    cdef list out = []
    cdef list word = []
    cdef Py_UCS4 c
    for c in text + " ":
        if chr(c).isalnum() or is_mark(c) or is_ignorable(c):
            word.append(chr(c))
            continue
        if word:
            out.append(undisguise_word("".join(word)))
            word = []
        out.append(" " if c == 0x3000 else chr(c))
    out.pop()
    return "".join(out)


cdef str undisguise_word(str word):
    cdef Py_UCS4 c
    cdef Py_ssize_t latin = 0, twins = 0, others = 0
    cdef str mapped
    if word.isascii():
        return word
    for c in word:
        if is_ascii_letter(c) or is_disguise(c):
            latin += 1
        elif is_foreign_twin(c):
            twins += 1
            mapped = CONFUSABLE.get(chr(c).lower(), "")
            others += not mapped
    out = []
    for c in word:
        if is_ignorable(c) and (latin or twins) and not (0x200C <= c <= 0x200D and not latin):
            continue
        if is_disguise(c):
            mapped = unicodedata.normalize("NFKC", chr(c))
            mapped = "".join([CONFUSABLE.get(x, x) for x in mapped])
            out.append(mapped if mapped.isascii() else chr(c))
        elif is_foreign_twin(c) and not others and twins:
            mapped = CONFUSABLE.get(chr(c).lower(), chr(c))
            out.append(mapped.upper() if chr(c).isupper() else mapped)
        elif 0x334 <= c <= 0x338 or c == 0x489 or 0x20D0 <= c <= 0x20FF:
            continue
        else:
            out.append(chr(c))
    return "".join(out)


def mixed_words(str text not None):
    """How many words mix Latin letters with look-alikes of another alphabet."""
    cdef Py_ssize_t latin = 0, twins = 0, others = 0, count = 0
    cdef Py_UCS4 c
    for c in text + " ":
        if is_ascii_letter(c):
            latin += 1
        elif is_foreign_twin(c):
            if CONFUSABLE.get(chr(c).lower()) is not None and c not in "γζηλσωдбжзилпфцчшщъыьэяДБЖЗИЛПФЦЧШЩЪЫЬЭЯ":
                twins += 1
            else:
                others += 1
        elif not (is_mark(c) or is_ignorable(c)):
            if latin and twins and not others and latin + twins >= 3:
                count += 1
            latin = twins = others = 0
    return count


def collapse_spaced(const uint8_t[::1] data not None):
    """Runs of single letters with separators between them, joined into words; empty when there is no run of six.

    Two or more separators part words if one separator parts letters.
    """
    cdef Py_ssize_t n = data.shape[0], i = 0, k, letters, gap
    cdef bytearray out = bytearray()
    cdef bytearray run
    cdef uint8_t c
    while i < n:
        c = data[i] | 32
        if not (97 <= c <= 122 or 48 <= data[i] <= 57) or (i > 0 and (97 <= (data[i - 1] | 32) <= 122)):
            i += 1
            continue
        run = bytearray()
        letters = 0
        k = i
        while k < n:
            c = data[k] | 32
            if not (97 <= c <= 122 or 48 <= data[k] <= 57) or (k + 1 < n and 97 <= (data[k + 1] | 32) <= 122):
                break
            run.append(c if data[k] >= 64 else data[k])
            letters += 1
            k += 1
            gap = 0
            while k < n and gap < 6 and (data[k] in b" .-_*|/,+~'\t"):
                gap += 1
                k += 1
            if gap == 0:
                break
            if gap > 1:
                run.append(32)
        if letters >= 6:
            out += run
            out.append(32)
            # What follows in plain words belongs to the same sentence.
            out += bytes(data[k:min(n, k + 64)])
            out += b" \n"
        i = max(k, i + 1)
    return bytes(out)


cdef bytes LEET = bytes(range(256)).translate(bytes.maketrans(b"0134578@$!|", b"oieastbasii"))


def unleet(const uint8_t[::1] data not None):
    """Words that mix letters and digits, with the digits read as the letters they look like; other words as they are."""
    cdef Py_ssize_t n = data.shape[0], i = 0, k, letters, digits
    cdef bytearray out = bytearray(data)
    cdef uint8_t c
    while i < n:
        letters = digits = 0
        k = i
        while k < n and k - i < 40:
            c = data[k]
            if 97 <= (c | 32) <= 122:
                letters += 1
            elif c in b"0134578@$!|":
                digits += 1
            elif not (48 <= c <= 57):
                break
            k += 1
        if letters and digits:
            while i < k:
                c = data[i]
                if c == 49 and ((i > 0 and data[i - 1] == 49) or (i + 1 < n and data[i + 1] == 49)):
                    out[i] = 108    # "a11": two ones are two l
                else:
                    out[i] = LEET[c]
                i += 1
        i = max(k, i + 1)
    return bytes(out)


cdef int hex_value(uint8_t c) noexcept nogil:
    if 48 <= c <= 57:
        return c - 48
    c |= 32
    return c - 87 if 97 <= c <= 102 else -1


ENTITIES = {
    b"lt": 60, b"gt": 62, b"amp": 38, b"quot": 34, b"apos": 39, b"tab": 9, b"newline": 10, b"colon": 58, b"lpar": 40, b"rpar": 41, b"sol": 47,
    b"bsol": 92, b"period": 46, b"num": 35, b"lbrace": 123, b"lcub": 123, b"rcub": 125, b"dollar": 36, b"semi": 59, b"equals": 61, b"grave": 96, b"nbsp": 32,
    b"vert": 124, b"excl": 33, b"lsqb": 91, b"rsqb": 93, b"ast": 42, b"comma": 44, b"percnt": 37, b"commat": 64, b"hyphen": 45,
}


cdef void put_code_point(bytearray out, uint32_t value):
    if value in (0x2215, 0xFF0F, 0x2044):
        value = 47
    elif value in (0x2216, 0xFF3C):
        value = 92
    elif value == 0xFF0E:
        value = 46
    if value < 0x110000 and not 0xD800 <= value <= 0xDFFF:
        out += chr(value).encode()


def decode_once(const uint8_t[::1] data not None):
    """One round of percent, %u, HTML entity and backslash-hex decoding; overlong UTF-8 of ASCII counts as ASCII."""
    cdef Py_ssize_t n = data.shape[0], i = 0, k
    cdef bytearray out = bytearray()
    cdef int high, low, third, fourth
    cdef uint32_t value
    cdef uint8_t c
    while i < n:
        c = data[i]
        if (c == 37 or c == 92) and n - i >= 6 and (data[i + 1] | 32) == 117:
            value = 0
            for k in range(2, 6):
                high = hex_value(data[i + k])
                if high < 0:
                    break
                value = value * 16 + <uint32_t>high
            else:
                put_code_point(out, value)
                i += 6
                continue
        if n - i >= 4 and c == 92 and (data[i + 1] | 32) == 120:
            high, low = hex_value(data[i + 2]), hex_value(data[i + 3])
            if high >= 0 and low >= 0:
                out.append(<uint8_t>(high * 16 + low))
                i += 4
                continue
        if c == 37 and n - i >= 3:
            high, low = hex_value(data[i + 1]), hex_value(data[i + 2])
            if high >= 0 and low >= 0:
                value = <uint32_t>(high * 16 + low)
                if (value == 0xC0 or value == 0xC1) and n - i >= 6 and data[i + 3] == 37:
                    third, fourth = hex_value(data[i + 4]), hex_value(data[i + 5])
                    if third >= 0 and fourth >= 0:
                        out.append(<uint8_t>(((value & 3) << 6) | <uint32_t>((third * 16 + fourth) & 0x3F)))
                        i += 6
                        continue
                out.append(<uint8_t>value)
                i += 3
                continue
        if c == 38 and n - i >= 3:
            k = i + 1
            while k < n and k - i <= 10 and data[k] != 59 and (data[k] == 35 or 48 <= data[k] <= 57 or 97 <= (data[k] | 32) <= 122):
                k += 1
            name = bytes(data[i + 1:k]).lower()
            if name.startswith(b"#"):
                digits = name[2:] if name[1:2] == b"x" else name[1:]
                try:
                    value = int(digits, 16 if name[1:2] == b"x" else 10)
                except (ValueError, OverflowError):
                    value = 0x110000
                if value < 0x110000:
                    put_code_point(out, value)
                    i = k + (k < n and data[k] == 59)
                    continue
            elif name in ENTITIES and k < n and data[k] == 59:
                out.append(ENTITIES[name])
                i = k + 1
                continue
        out.append(c)
        i += 1
    return bytes(out)


def base64_texts(const uint8_t[::1] data not None):
    """What base64 and hexadecimal runs of 24 and more characters decode to, when it is readable text; joined by newlines."""
    cdef Py_ssize_t n = data.shape[0], i = 0, k, size, j
    cdef bytearray out = bytearray()
    cdef bytearray piece
    cdef uint32_t buffer
    cdef int value, bits, hexes
    cdef uint8_t c
    cdef bint readable
    while i < n:
        k = i
        hexes = 0
        while k < n:
            c = data[k]
            if not (97 <= (c | 32) <= 122 or 48 <= c <= 57 or c == 43 or c == 47 or c == 45 or c == 95):
                break
            hexes += hex_value(c) >= 0
            k += 1
        if k - i >= 24:
            piece = bytearray()
            buffer = bits = 0
            if hexes == k - i and (k - i) % 2 == 0:
                for j in range(i, k, 2):
                    piece.append(<uint8_t>(hex_value(data[j]) * 16 + hex_value(data[j + 1])))
            else:
                for j in range(i, k):
                    c = data[j]
                    value = c - 65 if 65 <= c <= 90 else c - 71 if 97 <= c <= 122 else c + 4 if 48 <= c <= 57 else 62 if c == 43 or c == 45 else 63
                    buffer = ((buffer << 6) | <uint32_t>value) & 0xFFFFFF
                    bits += 6
                    if bits >= 8:
                        bits -= 8
                        piece.append(<uint8_t>((buffer >> bits) & 255))
            readable = len(piece) > 8
            for j in range(len(piece)):
                c = piece[j]
                if c < 32 and c != 10 and c != 9 and c != 13 or c >= 127:
                    readable = False
                    break
            if readable:
                out += piece
                out.append("\n")
        i = max(k, i + 1)
    return bytes(out)

"""Words for "password", "token" and their like that hold letters outside of ASCII, as a table.

The shadow has one byte for all such letters, so these words are found on the characters themselves, while text is taken
in: a word's last such letter is marked, and the recogniser of assigned values looks at what follows, as it does behind
"password". What may stand between the two ("is" in other languages, an opening quote, a dash) is marked likewise, but
only near a word. A mark hangs on the text before it alone, so any split of a stream gives the same marks.
"""

from cpython.mem cimport PyMem_Realloc
from cpython.unicode cimport PyUnicode_READ
from libc.stdint cimport uint32_t
from libc.string cimport memmove

from .shadow cimport MARK_IS, MARK_OPENING, Mark, is_alnum

cdef extern from "Python.h" nogil:
    uint32_t Py_UNICODE_TOLOWER(uint32_t c)

cdef enum:
    FAR = 40        # characters behind a word in which joiners are marked

# (word, strong, what must follow in ASCII). A word ends with its last letter outside of ASCII; endings of cases may follow.
WORDS = (
    # Russian, Ukrainian, Belarusian, Bulgarian, Serbian
    ("парол", True, ()), ("лозинк", True, ()), ("кодовое слово", True, ()), ("кодове слово", True, ()), ("пин-код", True, ()),
    ("секретный ключ", True, ()), ("секретного ключа", True, ()), ("секретний ключ", True, ()), ("закрытый ключ", True, ()),
    ("ключ доступа", True, ()), ("ключ доступу", True, ()), ("api-ключ", True, ()), ("api ключ", True, ()), ("ключ шифрования", True, ()),
    ("токен", False, ()), ("секрет", False, ()), ("учётные данные", False, ()), ("учетные данные", False, ()),
    # Chinese
    ("密码", True, ()), ("密碼", True, ()), ("口令", True, ()), ("密钥", True, ()), ("密鑰", True, ()), ("密匙", True, ()), ("金鑰", True, ()),
    ("通行碼", True, ()), ("令牌", False, ()), ("凭证", False, ()), ("憑證", False, ()),
    # Japanese
    ("パスワード", True, ()), ("パスワ-ド", True, ()), ("ﾊﾟｽﾜｰﾄﾞ", True, ()), ("パスフレーズ", True, ()), ("パスコード", True, ()),
    ("暗証番号", True, ()), ("秘密鍵", True, ()), ("暗号鍵", True, ()), ("apiキー", True, ()), ("アクセスキー", True, ()), ("シークレット", True, ()),
    ("合言葉", True, ()), ("トークン", False, ()),
    # Korean
    ("비밀번호", True, ()), ("비번", True, ()), ("패스워드", True, ()), ("암호", True, ()), ("비밀 키", True, ()), ("비밀키", True, ()),
    ("api 키", True, ()), ("액세스 키", True, ()), ("시크릿", True, ()), ("토큰", False, ()),
    # Arabic, Persian, Hebrew
    ("كلمة المرور", True, ()), ("كلمة مرور", True, ()), ("كلمة السر", True, ()), ("كلمة سر", True, ()), ("الرقم السري", True, ()), ("رمز المرور", True, ()),
    ("المفتاح السري", True, ()), ("مفتاح api", True, ()), ("رمز الوصول", True, ()), ("رمز عبور", True, ()), ("گذرواژه", True, ()), ("کلمه عبور", True, ()),
    ("پسورد", True, ()), ("סיסמה", True, ()), ("סיסמא", True, ()), ("סיסמת", True, ()),
    # Hindi, Bengali, Thai, Greek, Vietnamese
    ("पासवर्ड", True, ()), ("कूटशब्द", True, ()), ("गुप्त कुंजी", True, ()), ("पासफ़्रेज़", True, ()), ("পাসওয়ার্ড", True, ()), ("รหัสผ่าน", True, ()),
    ("พาสเวิร์ด", True, ()), ("κωδικός πρόσβασης", True, ()), ("κωδικός", True, ()), ("κωδικο", True, ()), ("συνθηματικό", True, ()),
    ("mật khẩ", True, ("u",)), ("mật mã", True, ()),
    # Polish, Turkish, Swedish, French, German, Hungarian, Romanian, Icelandic, Lithuanian, Estonian
    ("hasł", True, ("o", "a", "em", "u")), ("ş", True, ("ifre", "\x80fre")), ("lö", True, ("senord",)),
    ("clé", True, (" api", " d'api", " secr")), ("api-schlü", True, ("ssel",)), ("api schlü", True, ("ssel",)),
    ("geheimer schlü", True, ("ssel",)), ("zugangsschlü", True, ("ssel",)), ("jelszó", True, ()), ("jelszav", True, ()), ("parolă", True, ()), ("lykilorð", True, ()), ("slaptaž", True, ("odis",)),
    ("contraseñ", True, ("a",)), ("código secreto", True, ()), ("klucz prywatn", True, ()),
)
# "is" and its like, behind a word: a value may follow.
JOINERS = ("это", "есть", "был", "была", "такой", "це", "був", "е", "является", "是", "为", "為", "は", "が", "는", "은", "가", "هي", "هو", "است", "है", "היא", "הוא",
           "είναι", "คือ", "là", "é", "è", "są")
OPENINGS = "「『“„«‹‘‚《〈【–—―－→"

cdef int NUM_HEADS = 0
cdef int LAST[256]              # by the last character's low byte: a head, plus one
cdef uint32_t JOINS[64][12]     # characters of a joiner, the last first
cdef int NUM_JOINS = 0
cdef uint32_t OPENS[32]
cdef int NUM_OPENS = 0
_keep = []                      # the bytes objects that HEADS points into
TABLE = []                      # the same for the slow twin, by code: (head, strong, tails, whether Latin letters may go on)


def _build():
    global NUM_HEADS, NUM_JOINS, NUM_OPENS
    cdef Head *head
    cdef int k, slot
    for word, strong, tails in WORDS:
        letters = [k for k, c in enumerate(word) if ord(c) > 127]
        if not letters:
            continue
        size = letters[len(letters) - 1] + 1
        ending = word[size:]
        tails = tuple(ending + tail for tail in tails) or ((ending,) if ending else ())
        word = word[:size].lower()
        latin = any(ord(c) < 0x250 or 0x1E00 <= ord(c) < 0x1F00 for c in word if c.isalpha()) and not any(
            0x250 <= ord(c) < 0x1E00 or ord(c) >= 0x1F00 for c in word)
        head = &HEADS[NUM_HEADS]
        head.size = size
        for k in range(size):
            head.text[k] = ord(word[k])
        head.strong = strong
        head.latin = latin
        for k in range(4):
            head.tails[k] = NULL
        for k in range(len(tails)):
            data = tails[k].encode("latin-1")      # as they stand in the shadow: \x80 is any letter outside of ASCII
            _keep.append(data)
            head.tails[k] = data
        slot = head.text[size - 1] & 255
        head.next = LAST[slot]
        NUM_HEADS += 1
        LAST[slot] = NUM_HEADS
        TABLE.append((word, strong, tails, latin))
    for word in JOINERS:
        for k in range(len(word)):
            JOINS[NUM_JOINS][k] = ord(word[len(word) - 1 - k])
        JOINS[NUM_JOINS][len(word)] = 0
        NUM_JOINS += 1
    for c in OPENINGS:
        OPENS[NUM_OPENS] = ord(c)
        NUM_OPENS += 1


_build()


cdef inline uint32_t folded(uint32_t c) noexcept:
    return c if c < 128 and not 65 <= c <= 90 else Py_UNICODE_TOLOWER(c)


cdef inline uint32_t char_at(int kind, const void *data, Py_ssize_t i, const Past *past) noexcept:
    """The character at i of the text that comes now; a negative i is one that came before."""
    return folded(PyUnicode_READ(kind, <void *>data, i)) if i >= 0 else past.recent[MAX_WORD + i]


cdef int code_at(int kind, const void *data, Py_ssize_t i, const Past *past, uint32_t c, bint near) noexcept:
    """What ends with the character c at i: a word's number plus one, MARK_IS, MARK_OPENING or 0."""
    cdef int k = LAST[c & 255], m, longest = 0, found = 0
    cdef uint32_t before
    while k:
        if HEADS[k - 1].size > longest and HEADS[k - 1].text[HEADS[k - 1].size - 1] == c:
            m = 1
            while m < HEADS[k - 1].size and char_at(kind, data, i - m, past) == HEADS[k - 1].text[HEADS[k - 1].size - 1 - m]:
                m += 1
            if m == HEADS[k - 1].size:
                longest = m
                found = k
        k = HEADS[k - 1].next
    if found or not near:
        return found
    for k in range(NUM_OPENS):
        if OPENS[k] == c:
            return MARK_OPENING
    for k in range(NUM_JOINS):
        m = 0
        while JOINS[k][m] and char_at(kind, data, i - m, past) == JOINS[k][m]:
            m += 1
        if JOINS[k][m] == 0:
            before = char_at(kind, data, i - m, past)
            # Particles of scripts without spaces stand behind their word; elsewhere "is" is a word of its own.
            if c >= 0x3040 or (before < 128 and not is_alnum(<unsigned char>before)):
                return MARK_IS
    return 0


cdef int find_marks(int kind, const void *data, Py_ssize_t n, Py_ssize_t base, Past *past, Marks *marks) except -1:
    """Note the marks in text of which the first character gets the index base."""
    cdef Py_ssize_t i, wanted
    cdef uint32_t c
    cdef int code
    cdef Mark *grown
    for i in range(n):
        c = PyUnicode_READ(kind, <void *>data, i)
        if c < 128:
            continue
        c = Py_UNICODE_TOLOWER(c)
        if LAST[c & 255] == 0 and base + i - past.word >= FAR:
            continue
        code = code_at(kind, data, i, past, c, base + i - past.word < FAR)
        if code == 0:
            continue
        if code > 0:
            past.word = base + i
        if marks.num == marks.capacity:
            wanted = 2 * marks.capacity + 16
            grown = <Mark *>PyMem_Realloc(marks.items, wanted * sizeof(Mark))
            if grown == NULL:
                raise MemoryError
            marks.items = grown
            marks.capacity = wanted
        marks.items[marks.num].at = base + i
        marks.items[marks.num].code = code
        marks.num += 1
    remember(kind, data, n, past)
    return 0


cdef void remember(int kind, const void *data, Py_ssize_t n, Past *past) noexcept:
    """Keep the last characters for the text that comes next."""
    cdef Py_ssize_t taken = min(n, <Py_ssize_t>MAX_WORD), k
    memmove(&past.recent[0], &past.recent[taken], (MAX_WORD - taken) * sizeof(uint32_t))
    for k in range(taken):
        past.recent[MAX_WORD - taken + k] = folded(PyUnicode_READ(kind, <void *>data, n - taken + k))

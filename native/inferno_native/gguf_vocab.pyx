"""The rules for a model's vocabulary: tokens, scores, types, merges, special ids, normalization table.

Owns what the tokenizers of llama.cpp take for granted when they load and when they meet their first text. Knows only an
accepted container; touches no Python object. Tokens are compared as the loader compares them: an empty token i has the
name [EMPTY_i].
"""

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset, strlen

from .gguf_container cimport (
    R_BOS_TOKEN_MISSING,
    R_BYTE_TOKEN_INVALID,
    R_BYTE_TOKENS_MISSING,
    R_CHARSMAP_INVALID,
    R_DUPLICATE_TOKEN,
    R_EOS_TOKEN_MISSING,
    R_MERGE_MALFORMED,
    R_MERGES_MISSING,
    R_MERGES_WRONG_TYPE,
    R_OUT_OF_MEMORY,
    R_SCORES_LENGTH_MISMATCH,
    R_SCORES_WRONG_TYPE,
    R_SPECIAL_TOKEN_WRONG_TYPE,
    R_SUPPRESS_TOKENS_WRONG_TYPE,
    R_TOKEN_LIST_EMPTY,
    R_TOKEN_LIST_MISSING,
    R_TOKEN_TYPE_LENGTH_MISMATCH,
    R_TOKEN_TYPE_OUT_OF_RANGE,
    R_TOKEN_TYPE_WRONG_TYPE,
    R_TOKENIZER_UNKNOWN,
    R_TOKENS_WRONG_TYPE,
    R_VOCAB_SIZE_INVALID,
    T_ARRAY,
    T_BOOL,
    T_F32,
    T_I8,
    T_I32,
    T_STRING,
    T_U8,
    T_U32,
    Value,
    container_find,
    report,
)
from .gguf_model cimport MAX_VOCABULARY
from .gguf_set cimport SET_NO_MEMORY, SET_PRESENT, TextSet, gg_has_space, gg_hash, set_add, set_close, set_open, set_touch
from .reader cimport load_i32, load_u32, load_u64

cdef enum Tokenizer:
    TOK_ABSENT, TOK_LLAMA, TOK_BPE, TOK_GEMMA4, TOK_BERT, TOK_T5, TOK_RWKV, TOK_PLAMO2, TOK_TEST, TOK_NONE

cdef enum:
    TOKENS_PER_PASS = 5000000        # bounds the duplicate set at 64 MiB; larger lists take several passes
    BATCH = 32                       # texts hashed ahead of their insertion
    TYPE_BYTE = 6
    TYPE_LARGEST = 6
    NO_TOKEN = -1

cdef const char *SPECIAL_KEYS[18]
SPECIAL_KEYS[:] = [
    "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.eom_token_id", "tokenizer.ggml.unknown_token_id", "tokenizer.ggml.seperator_token_id",
    "tokenizer.ggml.padding_token_id", "tokenizer.ggml.cls_token_id", "tokenizer.ggml.mask_token_id",
    "tokenizer.ggml.fim_pre_token_id", "tokenizer.ggml.fim_suf_token_id", "tokenizer.ggml.fim_mid_token_id",
    "tokenizer.ggml.fim_pad_token_id", "tokenizer.ggml.fim_rep_token_id", "tokenizer.ggml.fim_sep_token_id",
    "tokenizer.ggml.prefix_token_id", "tokenizer.ggml.suffix_token_id", "tokenizer.ggml.middle_token_id",
]

# Pre-tokenizers that add a first token unless the file says otherwise (llama-vocab.cpp, load).
cdef const char *BOS_PRE[11]
BOS_PRE[:] = [
    "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano",
    "tekken", "chameleon",
]


cdef struct Vocabulary:
    Container *meta
    int tokenizer
    bint has_tokens
    Value tokens
    Value pre
    bint has_pre
    bint has_byte_types              # some token has the byte type


cdef inline bint text_is(const uint8_t *text, size_t length, const char *expected) noexcept nogil:
    return strlen(expected) == length and memcmp(text, expected, length) == 0


cdef inline bint find(const Container *meta, const char *key, Value *value) noexcept nogil:
    return container_find(meta, key, strlen(key), value)


cdef int tokenizer_of(const uint8_t *text, size_t length) noexcept nogil:
    """The family of a tokenizer name, -1 for an unknown one."""
    if text_is(text, length, "llama"):
        return TOK_LLAMA
    if text_is(text, length, "gpt2") or text_is(text, length, "hybriddna") or text_is(text, length, "whitespace"):
        return TOK_BPE
    if text_is(text, length, "gemma4"):
        return TOK_GEMMA4
    if text_is(text, length, "bert"):
        return TOK_BERT
    if text_is(text, length, "t5"):
        return TOK_T5
    if text_is(text, length, "rwkv"):
        return TOK_RWKV
    if text_is(text, length, "plamo2"):
        return TOK_PLAMO2
    if text_is(text, length, "test"):
        return TOK_TEST
    if text_is(text, length, "none") or text_is(text, length, "no_vocab"):
        return TOK_NONE
    return -1


cdef bint check_vocabulary(Container *meta, uint64_t *num_tokens) noexcept nogil:
    """Check every vocabulary key that is there; num_tokens becomes the length of the token list, 0 without one."""
    cdef Vocabulary self
    num_tokens[0] = 0
    self.meta = meta
    if not read_model(&self) or not read_tokens(&self):
        return False
    if not check_scores(&self) or not check_types(&self):
        return False
    if self.has_tokens and self.tokenizer != TOK_NONE and not check_texts(&self):
        return False
    if not check_merges(&self) or not check_special(&self):
        return False
    if not check_charsmap(&self):
        return False
    if self.has_tokens and self.tokenizer != TOK_NONE:
        num_tokens[0] = self.tokens.count
    return True


cdef bint read_model(Vocabulary *self) noexcept nogil:
    cdef Value value
    self.tokenizer = TOK_ABSENT
    self.has_byte_types = False
    self.has_pre = find(self.meta, "tokenizer.ggml.pre", &self.pre) and self.pre.type == T_STRING
    if not find(self.meta, "tokenizer.ggml.model", &value):
        return True
    if value.type == T_STRING:
        self.tokenizer = tokenizer_of(self.meta.window.data + value.at, value.count)
    if value.type != T_STRING or self.tokenizer < 0:
        report(self.meta, R_TOKENIZER_UNKNOWN, value.at, T_STRING, value.type, "as the type", False)
        return False
    return True


cdef bint read_tokens(Vocabulary *self) noexcept nogil:
    cdef Value *tokens = &self.tokens
    self.has_tokens = find(self.meta, "tokenizer.ggml.tokens", tokens)
    if not self.has_tokens:
        if self.tokenizer == TOK_ABSENT or self.tokenizer == TOK_NONE:
            return True
        report(self.meta, R_TOKEN_LIST_MISSING, 24, 0, 0, "", False)
        return False
    if tokens.type != T_ARRAY or tokens.element != T_STRING:
        report(self.meta, R_TOKENS_WRONG_TYPE, tokens.at, T_STRING, tokens.element, "as the element type", False)
        return False
    if tokens.count > MAX_VOCABULARY:
        report(self.meta, R_VOCAB_SIZE_INVALID, tokens.at, MAX_VOCABULARY, tokens.count, "tokens at most", False)
        return False
    if tokens.count == 0 and self.tokenizer != TOK_NONE:
        return not report(self.meta, R_TOKEN_LIST_EMPTY, tokens.at, 1, 0, "tokens at least", True)
    return True


cdef bint check_length(Vocabulary *self, const Value *value, int reason) noexcept nogil:
    """One value for each token: the loader reads past a short list and ignores the end of a long one."""
    if not self.has_tokens or value.count == self.tokens.count:
        return True
    return not report(self.meta, reason, value.at, self.tokens.count, value.count, "elements",
                      value.count > self.tokens.count)


cdef bint check_scores(Vocabulary *self) noexcept nogil:
    cdef Value value
    if not find(self.meta, "tokenizer.ggml.scores", &value):
        return True
    if value.type != T_ARRAY or (value.element != T_F32 and value.element != T_I32):
        report(self.meta, R_SCORES_WRONG_TYPE, value.at, T_F32, value.element, "as the element type", False)
        return False
    return check_length(self, &value, R_SCORES_LENGTH_MISMATCH)


cdef bint check_types(Vocabulary *self) noexcept nogil:
    cdef Value value
    cdef const uint8_t *data
    cdef uint64_t i
    cdef int32_t kind
    if not find(self.meta, "tokenizer.ggml.token_type", &value):
        return True
    if value.type != T_ARRAY or value.element != T_I32:
        report(self.meta, R_TOKEN_TYPE_WRONG_TYPE, value.at, T_I32, value.element, "as the element type", False)
        return False
    if not check_length(self, &value, R_TOKEN_TYPE_LENGTH_MISMATCH):
        return False
    data = self.meta.window.data + value.at
    for i in range(value.count):
        kind = load_i32(data + 4 * i)
        if kind == TYPE_BYTE:
            self.has_byte_types = True
        if not 0 <= kind <= TYPE_LARGEST and report(
            self.meta, R_TOKEN_TYPE_OUT_OF_RANGE, value.at + 4 * i, TYPE_LARGEST, <uint32_t>kind, "at most", True
        ):
            return False
    return True


cdef inline int hex_digit(uint8_t c, bint lower_too) noexcept nogil:
    if c"0" <= c <= c"9":
        return c - c"0"
    if c"A" <= c <= c"F":
        return c - c"A" + 10
    if lower_too and c"a" <= c <= c"f":
        return c - c"a" + 10
    return -1


cdef int byte_of(const uint8_t *text, uint64_t length, bint lower_too) noexcept nogil:
    """The byte that a token <0xHH> stands for, -1 if it has another form."""
    cdef int high
    cdef int low
    if length != 6 or memcmp(text, "<0x", 3) != 0 or text[5] != c">":
        return -1
    high = hex_digit(text[3], lower_too)
    low = hex_digit(text[4], lower_too)
    if high < 0 or low < 0:
        return -1
    return high * 16 + low


cdef bint check_texts(Vocabulary *self) noexcept nogil:
    """Walk the token texts: duplicates, byte tokens, names of empty tokens."""
    cdef uint64_t parts = (self.tokens.count + TOKENS_PER_PASS - 1) // TOKENS_PER_PASS
    cdef uint64_t part
    cdef TextSet texts
    cdef bint sound = True
    cdef uint64_t expected = self.tokens.count if parts <= 1 else TOKENS_PER_PASS + TOKENS_PER_PASS // 8
    memcpy(texts.secret, self.meta.keys.secret, sizeof(texts.secret))
    for part in range(parts):
        if set_open(&texts, expected) != 0:
            report(self.meta, R_OUT_OF_MEMORY, self.tokens.at, expected, 0, "tokens in memory", False)
            return False
        sound = add_texts(self, &texts, part, parts)
        set_close(&texts)
        if not sound:
            return False
    return check_bytes(self)


cdef bint add_texts(Vocabulary *self, TextSet *texts, uint64_t part, uint64_t parts) noexcept nogil:
    """Put the tokens whose hash falls into this part into the set; refuse one that is there already."""
    cdef const uint8_t *data = self.meta.window.data
    cdef uint64_t at = self.tokens.at
    cdef uint64_t i = 0
    cdef uint64_t length
    cdef uint64_t code
    cdef uint64_t num_empty = 0
    cdef uint64_t num_aliases = 0
    cdef uint64_t[BATCH] codes
    cdef uint32_t[BATCH] places
    cdef int waiting
    cdef int k
    while i < self.tokens.count:
        # hash a few texts and ask for their slots, then put them in: the memory's delays overlap
        waiting = 0
        while i < self.tokens.count and waiting < BATCH:
            length = load_u64(data + at)
            if length == 0:
                num_empty += 1
            else:
                code = gg_hash(data + at + 8, length, texts.secret)
                if parts == 1 or (code >> 20) % parts == part:
                    set_touch(texts, code)
                    codes[waiting] = code
                    places[waiting] = <uint32_t>at
                    waiting += 1
                if length > 8 and data[at + 8] == c"[" and memcmp(data + at + 8, "[EMPTY_", 7) == 0:
                    num_aliases += 1
            at += 8 + length
            i += 1
        for k in range(waiting):
            if not add_text(self, texts, places[k], codes[k]):
                return False
    if part == 0 and num_empty and num_aliases:
        return check_aliases(self)
    return True


cdef inline bint add_text(Vocabulary *self, TextSet *texts, uint32_t place, uint64_t code) noexcept nogil:
    cdef int status = set_add(texts, self.meta.window.data, place, code)
    if status == SET_PRESENT:
        report(self.meta, R_DUPLICATE_TOKEN, place, 0, load_u64(self.meta.window.data + place), "", False)
        return False
    if status == SET_NO_MEMORY:
        report(self.meta, R_OUT_OF_MEMORY, place, texts.count, 0, "tokens in memory", False)
        return False
    return True


cdef bint check_aliases(Vocabulary *self) noexcept nogil:
    """Refuse a token [EMPTY_i] beside an empty token i: the loader gives both the same name."""
    cdef const uint8_t *data = self.meta.window.data
    cdef uint64_t at = self.tokens.at
    cdef uint64_t i
    cdef uint64_t length
    cdef uint64_t number
    cdef uint8_t *empty = <uint8_t *>calloc(self.tokens.count // 8 + 1, 1)
    cdef bint sound = True
    if empty == NULL:
        report(self.meta, R_OUT_OF_MEMORY, at, self.tokens.count // 8 + 1, 0, "bytes of memory", False)
        return False
    for i in range(self.tokens.count):
        length = load_u64(data + at)
        if length == 0:
            empty[i >> 3] |= <uint8_t>(1 << (i & 7))
        at += 8 + length
    at = self.tokens.at
    for i in range(self.tokens.count):
        length = load_u64(data + at)
        if empty_name(data + at + 8, length, &number) and number < self.tokens.count:
            if empty[number >> 3] & (1 << (number & 7)):
                report(self.meta, R_DUPLICATE_TOKEN, at, number, i, "as the token's number", False)
                sound = False
                break
        at += 8 + length
    free(empty)
    return sound


cdef bint empty_name(const uint8_t *text, uint64_t length, uint64_t *number) noexcept nogil:
    """True for [EMPTY_n] with n written as the loader writes it: no sign, no leading zero."""
    cdef uint64_t i
    number[0] = 0
    if not 9 <= length <= 18 or memcmp(text, "[EMPTY_", 7) != 0 or text[length - 1] != c"]":
        return False
    if text[7] == c"0" and length > 9:
        return False
    for i in range(7, length - 1):
        if not c"0" <= text[i] <= c"9":
            return False
        number[0] = number[0] * 10 + (text[i] - c"0")
    return True


cdef bint check_bytes(Vocabulary *self) noexcept nogil:
    """Byte tokens have the form <0xHH>; a SentencePiece vocabulary has one for each of the 256 bytes."""
    cdef const uint8_t *data = self.meta.window.data
    cdef Value types
    cdef bint has_types = find(self.meta, "tokenizer.ggml.token_type", &types)
    cdef uint8_t[256] there
    cdef uint64_t at = self.tokens.at
    cdef uint64_t i
    cdef uint64_t length
    cdef int byte
    cdef bint spm = self.tokenizer == TOK_LLAMA
    cdef bint none_allowed = self.tokenizer == TOK_BERT or self.tokenizer == TOK_RWKV
    if not self.has_byte_types and not spm:
        return True
    memset(there, 0, sizeof(there))
    for i in range(self.tokens.count):
        length = load_u64(data + at)
        # types.count < tokens.count was refused; a longer list is legal by waiver
        if has_types and load_u32(data + types.at + 4 * i) == TYPE_BYTE:
            if none_allowed or byte_of(data + at + 8, length, True) < 0:
                report(self.meta, R_BYTE_TOKEN_INVALID, at, 6, length, "bytes of a byte token", False)
                return False
        if spm:
            if length == 1:
                there[data[at + 8]] = 1
            elif length == 6:
                byte = byte_of(data + at + 8, length, False)
                if byte >= 0:
                    there[byte] = 1
        at += 8 + length
    if spm:
        for byte in range(256):
            if not there[byte]:
                report(self.meta, R_BYTE_TOKENS_MISSING, self.tokens.at, 256, <uint64_t>byte, "byte tokens", False)
                return False
    return True


cdef bint check_merges(Vocabulary *self) noexcept nogil:
    cdef Value value
    cdef const uint8_t *data = self.meta.window.data
    cdef uint64_t at
    cdef uint64_t i
    cdef uint64_t length
    cdef bint needed = self.tokenizer == TOK_BPE or self.tokenizer == TOK_GEMMA4
    if not find(self.meta, "tokenizer.ggml.merges", &value):
        if not needed or (
            self.tokenizer == TOK_BPE and self.has_pre and text_is(data + self.pre.at, self.pre.count, "kimi-k2")
        ):
            return True
        report(self.meta, R_MERGES_MISSING, 24, 0, 0, "", False)
        return False
    if value.type != T_ARRAY or value.element != T_STRING:
        report(self.meta, R_MERGES_WRONG_TYPE, value.at, T_STRING, value.element, "as the element type", False)
        return False
    at = value.at
    for i in range(value.count):
        length = load_u64(data + at)
        if length < 2 or not gg_has_space(data + at + 9, length - 1):
            if report(self.meta, R_MERGE_MALFORMED, at, i, length, "as the merge's number", True):
                return False
        at += 8 + length
    return True


cdef void effective_id(Vocabulary *self, const char *key, long long fallback, long long *found) noexcept nogil:
    """The id that the loader ends up with: the key if it is inside the list, else the default if that is inside."""
    cdef Value value
    cdef uint64_t number
    found[0] = fallback if 0 <= fallback < <long long>self.tokens.count else NO_TOKEN
    if find(self.meta, key, &value) and value.type == T_U32:
        number = load_u32(self.meta.window.data + value.at)
        if number < self.tokens.count:
            found[0] = <long long>number


cdef bint flag(Vocabulary *self, const char *key, bint default) noexcept nogil:
    cdef Value value
    if find(self.meta, key, &value) and value.type == T_BOOL:
        return self.meta.window.data[value.at] != 0
    return default


cdef bint pre_adds_bos(Vocabulary *self) noexcept nogil:
    cdef const uint8_t *text
    cdef int i
    if not self.has_pre:
        return False
    text = self.meta.window.data + self.pre.at
    for i in range(11):
        if text_is(text, self.pre.count, BOS_PRE[i]):
            return True
    return False


cdef bint check_special(Vocabulary *self) noexcept nogil:
    """Ids are u32 (outside the list is legal); what the tokenizer adds by itself must exist."""
    cdef Value value
    cdef int i
    cdef int kind = self.tokenizer
    cdef long long bos
    cdef long long eos
    cdef long long sep
    cdef bint adds_bos
    cdef bint adds_eos
    for i in range(18):
        if find(self.meta, SPECIAL_KEYS[i], &value) and value.type != T_U32:
            report(self.meta, R_SPECIAL_TOKEN_WRONG_TYPE, value.at, T_U32, value.type, "as the type", False)
            return False
    if find(self.meta, "tokenizer.ggml.suppress_tokens", &value) and (
        value.type != T_ARRAY or value.element != T_I32
    ):
        report(self.meta, R_SUPPRESS_TOKENS_WRONG_TYPE, value.at, T_I32, value.element, "as the element type", False)
        return False
    if not self.has_tokens or kind == TOK_ABSENT or kind == TOK_NONE or self.tokens.count == 0:
        return True
    effective_id(self, "tokenizer.ggml.bos_token_id", default_bos(kind), &bos)
    effective_id(self, "tokenizer.ggml.eos_token_id", default_eos(kind), &eos)
    effective_id(self, "tokenizer.ggml.seperator_token_id", 102 if kind == TOK_BERT else NO_TOKEN, &sep)
    adds_bos = flag(self, "tokenizer.ggml.add_bos_token",
                    kind == TOK_LLAMA or (kind == TOK_BPE and pre_adds_bos(self)))
    # Both ends of a BERT sequence are added whatever the flags say, gemma4 always starts with one.
    if kind == TOK_BERT or kind == TOK_GEMMA4:
        adds_bos = True
    if adds_bos and (bos == NO_TOKEN or (kind == TOK_BERT and sep == NO_TOKEN)):
        report(self.meta, R_BOS_TOKEN_MISSING, self.tokens.at, 0, self.tokens.count, "tokens", False)
        return False
    adds_eos = flag(self, "tokenizer.ggml.add_eos_token", kind == TOK_T5)
    if adds_eos and eos == NO_TOKEN and (
        kind == TOK_LLAMA or kind == TOK_BPE or kind == TOK_GEMMA4 or kind == TOK_T5
    ):
        report(self.meta, R_EOS_TOKEN_MISSING, self.tokens.at, 0, self.tokens.count, "tokens", False)
        return False
    return True


cdef inline long long default_bos(int kind) noexcept nogil:
    if kind == TOK_LLAMA or kind == TOK_PLAMO2:
        return 1
    if kind == TOK_BPE:
        return 11
    if kind == TOK_BERT:
        return 101
    return NO_TOKEN


cdef inline long long default_eos(int kind) noexcept nogil:
    if kind == TOK_LLAMA or kind == TOK_PLAMO2:
        return 2
    if kind == TOK_BPE:
        return 11
    if kind == TOK_T5:
        return 1
    return NO_TOKEN


cdef bint check_charsmap(Vocabulary *self) noexcept nogil:
    """A normalization table: u32 size of a trie, the trie (u32 nodes, the first is its root), replacement texts."""
    cdef Value value
    cdef const uint8_t *data
    cdef uint64_t size
    cdef uint32_t root
    cdef uint64_t base
    if not find(self.meta, "tokenizer.ggml.precompiled_charsmap", &value):
        return True
    if value.type != T_ARRAY or (value.element != T_U8 and value.element != T_I8):
        report(self.meta, R_CHARSMAP_INVALID, value.at, T_U8, value.element, "as the element type", False)
        return False
    if value.count < 4:
        report(self.meta, R_CHARSMAP_INVALID, value.at, 4, value.count, "bytes at least", False)
        return False
    data = self.meta.window.data + value.at
    size = load_u32(data)
    if size + 4 >= value.count:
        report(self.meta, R_CHARSMAP_INVALID, value.at, value.count - 4, size, "bytes of a trie below", False)
        return False
    if size < 4:
        report(self.meta, R_CHARSMAP_INVALID, value.at, 4, size, "bytes of a trie", False)
        return False
    root = load_u32(data + 4)
    base = <uint32_t>((root >> 10) << ((root & 0x200) >> 6))
    if base >= size // 4:
        report(self.meta, R_CHARSMAP_INVALID, value.at + 4, size // 4, base, "nodes", False)
        return False
    return True

# A set of texts that stand in a buffer: open addressing, seeded hash, full compare on every hit.
# An entry is the offset of the text's 8-byte length field, so that texts are never copied; offsets fit 32 bits
# because no more than 256 MiB of metadata are kept.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp

from .reader cimport load_u64

cdef extern from "gguf_text.h":
    int GG_TEXT_OK
    int GG_TEXT_NUL
    int GG_TEXT_NOT_UTF8
    int gg_has_nul(const uint8_t *text, size_t length) noexcept nogil
    int gg_has_space(const uint8_t *text, size_t length) noexcept nogil
    int gg_scan_text(const uint8_t *text, size_t length) noexcept nogil
    void gg_prefetch(const void *place) noexcept nogil
    uint64_t gg_hash(const uint8_t *text, size_t length, const uint64_t *secret) noexcept nogil

cdef struct Slot:
    uint32_t tag             # upper hash bits; with offset 0 the slot is free (no text starts a file)
    uint32_t offset          # of the length field, counted from `base`

cdef struct TextSet:
    Slot *slots
    uint64_t mask            # slot count - 1, a power of two minus one
    uint64_t count
    uint64_t secret[4]

cdef enum SetStatus:
    SET_ADDED = 0
    SET_PRESENT = 1
    SET_NO_MEMORY = 2


cdef inline int set_open(TextSet *texts, uint64_t expected) noexcept nogil:
    # room for `expected` texts at four fifths full; `secret` is filled by the owner
    cdef uint64_t slots = 64
    while slots * 4 < expected * 5:
        slots *= 2
    texts.slots = <Slot *>calloc(slots, sizeof(Slot))
    texts.mask = slots - 1
    texts.count = 0
    return 0 if texts.slots != NULL else -1


cdef inline void set_close(TextSet *texts) noexcept nogil:
    free(texts.slots)
    texts.slots = NULL
    texts.count = 0
    texts.mask = 0


cdef inline int set_grow(TextSet *texts, const uint8_t *base) noexcept nogil:
    cdef uint64_t slots = (texts.mask + 1) * 2
    cdef Slot *grown = <Slot *>calloc(slots, sizeof(Slot))
    cdef uint64_t i, at, code
    cdef Slot slot
    if grown == NULL:
        return -1
    for i in range(texts.mask + 1):
        slot = texts.slots[i]
        if slot.offset == 0:
            continue
        code = gg_hash(base + slot.offset + 8, load_u64(base + slot.offset), texts.secret)
        at = code & (slots - 1)
        while grown[at].offset != 0:
            at = (at + 1) & (slots - 1)
        grown[at] = slot
    free(texts.slots)
    texts.slots = grown
    texts.mask = slots - 1
    return 0


cdef inline void set_touch(const TextSet *texts, uint64_t code) noexcept nogil:
    # Ask for the slot's cache line ahead of set_add: a large table is a cache miss for each text otherwise.
    gg_prefetch(&texts.slots[code & texts.mask])


cdef inline int set_add(TextSet *texts, const uint8_t *base, uint32_t offset, uint64_t code) noexcept nogil:
    # `offset` is that of the length field, `code` the hash of the text behind it
    cdef uint64_t length = load_u64(base + offset)
    cdef uint32_t tag = <uint32_t>(code >> 32)
    cdef uint64_t at
    cdef uint32_t other
    if (texts.count + 1) * 5 > (texts.mask + 1) * 4 and set_grow(texts, base) != 0:
        return SET_NO_MEMORY
    at = code & texts.mask
    while texts.slots[at].offset != 0:
        if texts.slots[at].tag == tag:
            other = texts.slots[at].offset
            if load_u64(base + other) == length and memcmp(base + other + 8, base + offset + 8, length) == 0:
                return SET_PRESENT
        at = (at + 1) & texts.mask
    texts.slots[at].tag = tag
    texts.slots[at].offset = offset
    texts.count += 1
    return SET_ADDED


cdef inline uint32_t set_find(
    const TextSet *texts, const uint8_t *base, const uint8_t *text, uint64_t length
) noexcept nogil:
    # the offset of the length field, 0 if the text is not there
    cdef uint64_t code = gg_hash(text, length, texts.secret)
    cdef uint32_t tag = <uint32_t>(code >> 32)
    cdef uint64_t at = code & texts.mask
    cdef uint32_t other
    while texts.slots[at].offset != 0:
        if texts.slots[at].tag == tag:
            other = texts.slots[at].offset
            if load_u64(base + other) == length and memcmp(base + other + 8, text, length) == 0:
                return other
        at = (at + 1) & texts.mask
    return 0

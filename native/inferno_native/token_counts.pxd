"""A map from token to number: dense for walking, hashed for finding. Inline, without the GIL.

Used for the penalties' window (how often a token stands in it) and DRY (the longest repeat that a token would extend).
"""

from libc.stdint cimport int32_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset


cdef struct Counts:  # token → number, dense and hashed; for the penalties' window and DRY's longest repeats
    int32_t *slots  # index into tokens, or -1
    uint32_t mask
    int32_t *tokens
    int32_t *numbers
    int32_t size
    int32_t capacity


cdef inline int counts_new(Counts *counts, int32_t capacity) noexcept nogil:
    cdef uint32_t slots = 16
    while slots < <uint32_t> capacity * 2:
        slots *= 2
    counts.slots = <int32_t *> malloc(slots * sizeof(int32_t))
    counts.tokens = <int32_t *> malloc(<size_t> capacity * sizeof(int32_t))
    counts.numbers = <int32_t *> malloc(<size_t> capacity * sizeof(int32_t))
    counts.mask = slots - 1
    counts.capacity = capacity
    counts.size = 0
    if counts.slots is NULL or counts.tokens is NULL or counts.numbers is NULL:
        return -1
    memset(counts.slots, 0xFF, slots * sizeof(int32_t))
    return 0


cdef inline void counts_free(Counts *counts) noexcept nogil:
    free(counts.slots)
    free(counts.tokens)
    free(counts.numbers)


cdef inline uint32_t counts_home(const Counts *counts, int32_t token) noexcept nogil:
    return (<uint32_t> token * <uint32_t> 2654435769) >> 7 & counts.mask


cdef inline uint32_t counts_find(const Counts *counts, int32_t token) noexcept nogil:
    """Return the slot of `token`, or the empty one where it belongs. At most half of the slots are taken."""
    cdef uint32_t slot = counts_home(counts, token)
    while counts.slots[slot] >= 0 and counts.tokens[counts.slots[slot]] != token:
        slot = (slot + 1) & counts.mask
    return slot


cdef inline int32_t *number_of(Counts *counts, int32_t token) noexcept nogil:
    """Return where the number of `token` stands, 0 if it is new. The caller keeps size below capacity."""
    cdef uint32_t slot = counts_find(counts, token)
    if counts.slots[slot] < 0:
        counts.slots[slot] = counts.size
        counts.tokens[counts.size] = token
        counts.numbers[counts.size] = 0
        counts.size += 1
    return &counts.numbers[counts.slots[slot]]


cdef inline void counts_remove(Counts *counts, int32_t token) noexcept nogil:
    cdef uint32_t hole = counts_find(counts, token), slot, home
    cdef int32_t index = counts.slots[hole], last = counts.size - 1
    if index < 0:
        return
    if index != last:  # the last entry takes its place
        slot = counts_find(counts, counts.tokens[last])
        counts.slots[slot] = index
        counts.tokens[index] = counts.tokens[last]
        counts.numbers[index] = counts.numbers[last]
    counts.size = last
    # Close the gap: an entry behind the hole moves in unless its home lies between the two.
    slot = (hole + 1) & counts.mask
    while counts.slots[slot] >= 0:
        home = counts_home(counts, counts.tokens[counts.slots[slot]])
        if ((slot - home) & counts.mask) >= ((slot - hole) & counts.mask):
            counts.slots[hole] = counts.slots[slot]
            hole = slot
        slot = (slot + 1) & counts.mask
    counts.slots[hole] = -1


cdef inline void counts_clear(Counts *counts) noexcept nogil:
    cdef int32_t i
    if counts.size * 4 > <int32_t> counts.mask:
        memset(counts.slots, 0xFF, (<size_t> counts.mask + 1) * sizeof(int32_t))
        counts.size = 0
    for i in range(counts.size - 1, -1, -1):
        counts_remove(counts, counts.tokens[i])

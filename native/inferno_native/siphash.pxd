"""SipHash-2-4 with 128 bits of output (Aumasson and Bernstein, 2012): the keyed digest under which a table knows a key.

Hostile clients choose source addresses and names; without the table's random seed they cannot choose where these land.
Reads words in the machine's order, which is little-endian on every platform that we build for.
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy


cdef struct SipState:
    uint64_t v0
    uint64_t v1
    uint64_t v2
    uint64_t v3


cdef inline uint64_t _rotate(uint64_t word, int bits) noexcept nogil:
    return (word << bits) | (word >> (64 - bits))


cdef inline void _round(SipState* s) noexcept nogil:
    s.v0 += s.v1
    s.v2 += s.v3
    s.v1 = _rotate(s.v1, 13) ^ s.v0
    s.v3 = _rotate(s.v3, 16) ^ s.v2
    s.v0 = _rotate(s.v0, 32)
    s.v2 += s.v1
    s.v0 += s.v3
    s.v1 = _rotate(s.v1, 17) ^ s.v2
    s.v3 = _rotate(s.v3, 21) ^ s.v0
    s.v2 = _rotate(s.v2, 32)


cdef inline void siphash_128(const uint64_t* seed, const uint8_t* data, size_t length, uint64_t* out) noexcept nogil:
    """Write the digest of data[0:length] under seed[0:2] to out[0:2]."""
    cdef SipState s
    cdef uint64_t word
    cdef size_t offset = 0
    cdef int i
    s.v0 = seed[0] ^ <uint64_t>0x736f6d6570736575
    s.v1 = seed[1] ^ <uint64_t>0x646f72616e646f6d ^ <uint64_t>0xee
    s.v2 = seed[0] ^ <uint64_t>0x6c7967656e657261
    s.v3 = seed[1] ^ <uint64_t>0x7465646279746573
    while length - offset >= 8:
        memcpy(&word, data + offset, 8)
        s.v3 ^= word
        _round(&s)
        _round(&s)
        s.v0 ^= word
        offset += 8
    word = 0
    memcpy(&word, data + offset, length - offset)
    word |= (<uint64_t>length & 0xff) << 56
    s.v3 ^= word
    _round(&s)
    _round(&s)
    s.v0 ^= word
    s.v2 ^= 0xee
    for i in range(4):
        _round(&s)
    out[0] = s.v0 ^ s.v1 ^ s.v2 ^ s.v3
    s.v1 ^= 0xdd
    for i in range(4):
        _round(&s)
    out[1] = s.v0 ^ s.v1 ^ s.v2 ^ s.v3

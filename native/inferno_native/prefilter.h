/* The skip loop that the scanner and the redactor share: finds the next place where a literal may stand.
 *
 * Two tests per position, both table look-ups without a branch: a byte pair (a bit map, for short literals made of
 * punctuation) and a hashed four-byte window with ASCII case folded (for words). What passes is only a candidate: the
 * caller verifies it. Portable C; eight bytes are loaded at a time on little-endian machines.
 */
#ifndef INFERNO_PREFILTER_H
#define INFERNO_PREFILTER_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define INFERNO_PREFILTER_BITS 15
#define INFERNO_PREFILTER_SLOTS (1u << INFERNO_PREFILTER_BITS)
#define INFERNO_CONFIRM_SLOTS (1u << 16)
#define INFERNO_FOLD32 0x20202020u

typedef struct {
    uint8_t gram[INFERNO_PREFILTER_SLOTS];  /* 1: a marked window hashes here */
    uint8_t confirm[INFERNO_CONFIRM_SLOTS];   /* the same under a second hash, asked only after a hit */
    uint8_t pair[65536 / 8];                /* a bit for each marked pair of bytes */
} inferno_prefilter;

static inline void inferno_mark_pair(inferno_prefilter *filter, uint8_t first, uint8_t second) {
    filter->pair[second * 32u + (first >> 3)] |= (uint8_t)(1u << (first & 7));
}

static inline unsigned inferno_pair_bit(const uint8_t *pair, unsigned first, unsigned second) {
    return (unsigned)pair[second * 32u + (first >> 3)] >> (first & 7) & 1u;
}

static inline uint32_t inferno_gram(const uint8_t *p) {
    return ((uint32_t)p[0] | ((uint32_t)p[1] << 8) | ((uint32_t)p[2] << 16) | ((uint32_t)p[3] << 24)) | INFERNO_FOLD32;
}

static inline uint32_t inferno_hash1(uint32_t gram) {
    return (gram * 0x9E3779B1u) >> (32 - INFERNO_PREFILTER_BITS);
}

static inline uint32_t inferno_hash2(uint32_t gram) {
    return (gram * 0x85EBCA6Bu ^ (gram >> 7)) & (INFERNO_CONFIRM_SLOTS - 1);
}

static inline void inferno_mark_gram(inferno_prefilter *filter, const uint8_t *p) {
    uint32_t gram = inferno_gram(p);
    filter->gram[inferno_hash1(gram)] = 1;
    filter->confirm[inferno_hash2(gram)] = 1;
}

static inline int inferno_pair_at(const inferno_prefilter *filter, const uint8_t *p) {
    return (int)inferno_pair_bit(filter->pair, p[0], p[1]);
}

static inline int inferno_gram_at(const inferno_prefilter *filter, const uint8_t *p) {
    uint32_t gram = inferno_gram(p);
    return filter->gram[inferno_hash1(gram)] && filter->confirm[inferno_hash2(gram)];
}

/* The first position in [pos, n) that may start a marked pair or window; n when there is none. */
static ptrdiff_t inferno_prefilter_next(const inferno_prefilter *filter, const uint8_t *s, ptrdiff_t pos, ptrdiff_t n) {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    const uint8_t *gram = filter->gram, *pair = filter->pair;
    while (n - pos >= 8) {
        uint64_t raw, folded;
        memcpy(&raw, s + pos, 8);
        folded = raw | 0x2020202020202020ull;
        unsigned b1 = (unsigned)(raw >> 8) & 255, b2 = (unsigned)(raw >> 16) & 255, b3 = (unsigned)(raw >> 24) & 255;
        unsigned hit0 = gram[inferno_hash1((uint32_t)folded)] | inferno_pair_bit(pair, (unsigned)(raw & 255), b1);
        unsigned hit1 = gram[inferno_hash1((uint32_t)(folded >> 8))] | inferno_pair_bit(pair, b1, b2);
        unsigned hit2 = gram[inferno_hash1((uint32_t)(folded >> 16))] | inferno_pair_bit(pair, b2, b3);
        unsigned hit3 = gram[inferno_hash1((uint32_t)(folded >> 24))] |
                        inferno_pair_bit(pair, b3, (unsigned)(raw >> 32) & 255);
        if (hit0 | hit1 | hit2 | hit3) {
            for (int k = 0; k < 4; k++)
                if (inferno_pair_at(filter, s + pos + k) || inferno_gram_at(filter, s + pos + k)) return pos + k;
        }
        pos += 4;
    }
#endif
    for (; pos < n; pos++) {
        if (n - pos >= 2 && inferno_pair_at(filter, s + pos)) return pos;
        if (n - pos >= 4 && inferno_gram_at(filter, s + pos)) return pos;
    }
    return n;
}

#endif

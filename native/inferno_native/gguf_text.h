/* Text scans and the seeded hash of the model verifier: word-at-a-time loads that Cython cannot express.
 * No function reads outside p[0 .. n). Little-endian hosts only (checked where the verifier is imported). */
#ifndef INFERNO_GGUF_TEXT_H
#define INFERNO_GGUF_TEXT_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define GG_ONES 0x0101010101010101ULL
#define GG_HIGHS 0x8080808080808080ULL

enum { GG_TEXT_OK = 0, GG_TEXT_NUL = 1, GG_TEXT_NOT_UTF8 = 2 };

static inline uint64_t gg_load8(const uint8_t *p) { uint64_t v; memcpy(&v, p, 8); return v; }
static inline uint32_t gg_load4(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return v; }

/* The bytes of a text shorter than 8, zero-extended (n >= 1). Distinct texts of one length give distinct words. */
static inline uint64_t gg_load_tail(const uint8_t *p, size_t n) {
    if (n >= 4) {
        return gg_load4(p) | ((uint64_t)gg_load4(p + n - 4) << 32);
    }
    return (uint64_t)p[0] | ((uint64_t)p[n >> 1] << 8) | ((uint64_t)p[n - 1] << 16);
}

static inline uint64_t gg_zero_bytes(uint64_t v) { return (v - GG_ONES) & ~v & GG_HIGHS; }

/* 1 if p[0 .. n) has a space. */
static inline int gg_has_space(const uint8_t *p, size_t n) {
    const uint64_t spaces = GG_ONES * ' ';
    if (n < 4) {
        return (n > 0 && p[0] == ' ') || (n > 1 && p[1] == ' ') || (n > 2 && p[2] == ' ');
    }
    if (n < 8) {
        return gg_zero_bytes(gg_load_tail(p, n) ^ spaces) != 0;
    }
    const uint8_t *last = p + n - 8;
    for (; p < last; p += 8) {
        if (gg_zero_bytes(gg_load8(p) ^ spaces)) {
            return 1;
        }
    }
    return gg_zero_bytes(gg_load8(last) ^ spaces) != 0;
}

/* 1 if p[0 .. n) has a zero byte. */
static inline int gg_has_nul(const uint8_t *p, size_t n) {
    if (n < 8) {
        if (n >= 4) {
            return gg_zero_bytes(gg_load_tail(p, n)) != 0;
        }
        return (n > 0 && p[0] == 0) || (n > 1 && p[1] == 0) || (n > 2 && p[2] == 0);
    }
    const uint8_t *last = p + n - 8;
    for (; p < last; p += 8) {
        if (gg_zero_bytes(gg_load8(p))) {
            return 1;
        }
    }
    return gg_zero_bytes(gg_load8(last)) != 0;
}

/* Length of the well-formed UTF-8 sequence at p (Unicode 15, table 3-7), 0 if there is none. */
static inline size_t gg_utf8_step(const uint8_t *p, size_t n) {
    const uint8_t a = p[0];
    if (a < 0x80) return 1;
    if (a < 0xC2 || a > 0xF4) return 0;
    if (a < 0xE0) return n >= 2 && (p[1] & 0xC0) == 0x80 ? 2 : 0;
    if (a < 0xF0) {
        if (n < 3 || (p[1] & 0xC0) != 0x80 || (p[2] & 0xC0) != 0x80) return 0;
        if (a == 0xE0 && p[1] < 0xA0) return 0;  /* overlong */
        if (a == 0xED && p[1] > 0x9F) return 0;  /* surrogate */
        return 3;
    }
    if (n < 4 || (p[1] & 0xC0) != 0x80 || (p[2] & 0xC0) != 0x80 || (p[3] & 0xC0) != 0x80) return 0;
    if (a == 0xF0 && p[1] < 0x90) return 0;      /* overlong */
    if (a == 0xF4 && p[1] > 0x8F) return 0;      /* above U+10FFFF */
    return 4;
}

/* Refuse zero bytes, which win over bad UTF-8 wherever they stand; then ask for strict UTF-8. */
static inline int gg_scan_text(const uint8_t *p, size_t n) {
    if (gg_has_nul(p, n)) {
        return GG_TEXT_NUL;
    }
    size_t i = 0;
    while (i < n) {
        if (n - i >= 8 && (gg_load8(p + i) & GG_HIGHS) == 0) {
            i += 8;
            continue;
        }
        const size_t step = gg_utf8_step(p + i, n - i);
        if (step == 0) {
            return GG_TEXT_NOT_UTF8;
        }
        i += step;
    }
    return GG_TEXT_OK;
}

/* Hash of a text under a secret of four random words. Both factors of every product carry a secret word, so a file
 * cannot be made whose texts collide without knowing the secret; equality is always decided by a full compare. */
static inline uint64_t gg_mix(uint64_t a, uint64_t b) {
    const unsigned __int128 r = (unsigned __int128)a * b;
    return (uint64_t)r ^ (uint64_t)(r >> 64);
}

static inline uint64_t gg_hash(const uint8_t *p, size_t n, const uint64_t *secret) {
    uint64_t h = secret[0] ^ (uint64_t)n;
    size_t left = n;
    while (left >= 16) {
        h = gg_mix(gg_load8(p) ^ secret[1], gg_load8(p + 8) ^ h);
        p += 16;
        left -= 16;
    }
    uint64_t a = 0, b = 0;
    if (left >= 8) {
        a = gg_load8(p);
        b = left > 8 ? gg_load_tail(p + 8, left - 8) : 0;
    } else if (left > 0) {
        a = gg_load_tail(p, left);
    }
    h = gg_mix(a ^ secret[2], b ^ h);
    return gg_mix(h ^ secret[3], secret[1]);
}

static inline void gg_prefetch(const void *p) { __builtin_prefetch(p, 1, 1); }

#endif

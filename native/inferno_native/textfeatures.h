/* What a text holds that needs more than one look, found 64 bytes at a time with bit masks.
 *
 * Exactness: CONTROL, NUL and ENCODED are exact. SPACED finds each run of eight spaced letters, LEET each digit
 * between two letters inside of a block, LONG_RUN each run of 23: the callers look again where a bit is set.
 */
#ifndef INFERNO_TEXTFEATURES_H
#define INFERNO_TEXTFEATURES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

static inline void inferno_block_masks(const uint8_t *s, uint64_t *letter, uint64_t *digit, uint64_t *control, uint64_t *encoded, uint64_t *nul) {
#if defined(__SSE2__)
    uint64_t l = 0, d = 0, c = 0, e = 0, z = 0;
    for (int k = 0; k < 4; k++) {
        __m128i x = _mm_loadu_si128((const __m128i *)(s + 16 * k));
        __m128i low = _mm_or_si128(x, _mm_set1_epi8(0x20));
        /* Signed compares are right here: the texts are ASCII, or UTF-8 whose other bytes are negative. */
        __m128i is_letter = _mm_and_si128(_mm_cmpgt_epi8(low, _mm_set1_epi8(0x60)), _mm_cmplt_epi8(low, _mm_set1_epi8(0x7B)));
        __m128i is_digit = _mm_and_si128(_mm_cmpgt_epi8(x, _mm_set1_epi8(0x2F)), _mm_cmplt_epi8(x, _mm_set1_epi8(0x3A)));
        __m128i small = _mm_and_si128(_mm_cmpgt_epi8(x, _mm_set1_epi8(-1)), _mm_cmplt_epi8(x, _mm_set1_epi8(0x20)));
        __m128i fine = _mm_or_si128(_mm_cmpeq_epi8(x, _mm_set1_epi8(9)),
                                    _mm_or_si128(_mm_cmpeq_epi8(x, _mm_set1_epi8(10)), _mm_cmpeq_epi8(x, _mm_set1_epi8(13))));
        __m128i is_control = _mm_or_si128(_mm_andnot_si128(fine, small), _mm_cmpeq_epi8(x, _mm_set1_epi8(0x7F)));
        __m128i is_encoded = _mm_or_si128(_mm_cmpeq_epi8(x, _mm_set1_epi8('%')), _mm_cmpeq_epi8(x, _mm_set1_epi8('&')));
        l |= (uint64_t)(uint32_t)_mm_movemask_epi8(is_letter) << (16 * k);
        d |= (uint64_t)(uint32_t)_mm_movemask_epi8(is_digit) << (16 * k);
        c |= (uint64_t)(uint32_t)_mm_movemask_epi8(is_control) << (16 * k);
        e |= (uint64_t)(uint32_t)_mm_movemask_epi8(is_encoded) << (16 * k);
        z |= (uint64_t)(uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(x, _mm_setzero_si128())) << (16 * k);
    }
#else
    uint64_t l = 0, d = 0, c = 0, e = 0, z = 0;
    for (int k = 0; k < 64; k++) {
        uint8_t x = s[k], low = x | 0x20;
        l |= (uint64_t)(low >= 'a' && low <= 'z') << k;
        d |= (uint64_t)(x >= '0' && x <= '9') << k;
        c |= (uint64_t)((x < 0x20 && x != 9 && x != 10 && x != 13) || x == 0x7F) << k;
        e |= (uint64_t)(x == '%' || x == '&') << k;
        z |= (uint64_t)(x == 0) << k;
    }
#endif
    *letter = l;
    *digit = d;
    *control = c;
    *encoded = e;
    *nul = z;
}

static unsigned inferno_text_features(const uint8_t *s, ptrdiff_t n) {
    uint64_t letter, digit, control, encoded, nul;
    uint64_t any_control = 0, any_encoded = 0, any_nul = 0, any_spaced = 0, any_leet = 0, any_run = 0;
    uint8_t tail[64];
    for (ptrdiff_t pos = 0; pos < n; pos += 64) {
        const uint8_t *block = s + pos;
        if (n - pos < 64) {
            memset(tail, ' ', sizeof(tail));
            memcpy(tail, block, (size_t)(n - pos));
            block = tail;
        }
        inferno_block_masks(block, &letter, &digit, &control, &encoded, &nul);
        any_control |= control;
        any_encoded |= encoded;
        any_nul |= nul;
        uint64_t single = letter & ~(letter << 1) & ~(letter >> 1);
        any_spaced |= single & (single >> 2) & (single >> 4) & (single >> 6);
        any_leet |= letter & (digit >> 1) & (letter >> 2);
        uint64_t run = letter | digit;
        run &= run >> 1;
        run &= run >> 2;
        run &= run >> 4;
        run &= run >> 4;
        any_run |= run;
    }
    return (any_control ? 1u : 0) | (any_spaced ? 4u : 0) | (any_leet ? 8u : 0) | (any_encoded ? 16u : 0) | (any_run ? 32u : 0) | (any_nul ? 64u : 0);
}

#endif

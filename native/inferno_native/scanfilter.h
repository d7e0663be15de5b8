/* The scanner's skip loop: finds the next place where a rule's literal stands.
 *
 * Literals of four bytes and more are found by their rarest four bytes, hashed into a bit table that is asked at every
 * position; what passes is compared with eight bytes of the literals (ASCII case folded), so that few places reach the
 * automaton. Short literals are pairs with a punctuation mark, or the mark alone: the loop looks for the mark, then at
 * the pair.
 *
 * The text stands between two line ends, which are not in the buffer: a literal may begin or end with one of them.
 * Blocks of 32 bytes; AVX2 where the machine has it, chosen at run time, else portable C. Both give the same places.
 */
#ifndef INFERNO_SCANFILTER_H
#define INFERNO_SCANFILTER_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <immintrin.h>
#define INFERNO_SCAN_AVX2 1
#else
#define INFERNO_SCAN_AVX2 0
#endif

#define INFERNO_WINDOW_BITS 18
#define INFERNO_HEADS (1u << 13)
#define INFERNO_WINDOW_FOLD 0x1F1F1F1Fu     /* letters of either case are the same; others may look alike */

/* A literal, or the eight bytes of it around its window. */
typedef struct {
    uint64_t text, mask;    /* of eight bytes from its start on: 0xFF, 0xDF for letters of either case, 0 behind it */
    int32_t next;           /* the next literal with a window of the same hash, -1 */
    uint8_t at, size;       /* where its window begins; its bytes */
} inferno_anchor;

typedef struct {
    uint32_t window[(1u << INFERNO_WINDOW_BITS) / 32];  /* a bit for each hashed window of a literal */
    int32_t head[INFERNO_HEADS];                        /* by a window's second hash: an anchor, -1 */
    uint8_t pair[65536 / 8];                            /* a bit for each marked pair of bytes */
    uint8_t is_mark[256];                               /* 1: stands in a pair, 2: announces by itself */
    uint8_t low[16], high[16];                          /* the set of marks by nibbles, for a byte shuffle */
    const inferno_anchor *anchors;
    int wide;                                           /* the machine has AVX2 */
} inferno_scanfilter;

/* Where a scan stands: what is left of one block. Bit k stands for the block's byte k. */
typedef struct {
    ptrdiff_t block;
    uint32_t windows, marks;
    int at_start;       /* the window that begins with the line end before the text has not been looked at */
} inferno_scancursor;

static inline uint32_t inferno_window_load(const uint8_t *p) {
    uint32_t value;
    memcpy(&value, p, 4);
    return value;
}

static inline uint32_t inferno_window_hash(uint32_t window) {
    return (window & INFERNO_WINDOW_FOLD) * 0x9E3779B1u;
}

static inline uint32_t inferno_head(const uint8_t *p) {
    return ((inferno_window_load(p) & INFERNO_WINDOW_FOLD) * 0x85EBCA6Bu) >> (32 - 13);
}

static void inferno_scanfilter_clear(inferno_scanfilter *f) {
    memset(f, 0, sizeof(*f));
    memset(f->head, 0xFF, sizeof(f->head));
#if INFERNO_SCAN_AVX2
    f->wide = __builtin_cpu_supports("avx2") != 0;
#endif
}

static void inferno_add_window(inferno_scanfilter *f, const uint8_t *p) {
    uint32_t h = inferno_window_hash(inferno_window_load(p)) >> (32 - INFERNO_WINDOW_BITS);
    f->window[h >> 5] |= 1u << (h & 31);
}

static void inferno_set_anchor(inferno_anchor *a, const uint8_t *literal, int size, int at) {
    uint8_t text[8] = {0}, mask[8] = {0};
    for (int k = 0; k < size && k < 8; k++) {
        int is_letter = (uint8_t)((literal[k] | 0x20) - 'a') < 26;
        mask[k] = is_letter ? 0xDF : 0xFF;
        text[k] = literal[k] & mask[k];
    }
    memcpy(&a->text, text, 8);
    memcpy(&a->mask, mask, 8);
    a->size = (uint8_t)size;
    a->at = (uint8_t)at;
}

static void inferno_add_mark(inferno_scanfilter *f, uint8_t mark, int alone) {
    f->is_mark[mark] |= (uint8_t)(alone ? 2 : 1);
    f->low[mark & 15] |= (uint8_t)(1u << (mark >> 4));
    f->high[mark >> 4] = (uint8_t)(1u << (mark >> 4));
}

static void inferno_add_pair(inferno_scanfilter *f, uint8_t first, uint8_t second) {
    f->pair[second * 32u + (first >> 3)] |= (uint8_t)(1u << (first & 7));
}

static inline int inferno_is_pair(const inferno_scanfilter *f, uint8_t first, uint8_t second) {
    return f->pair[second * 32u + (first >> 3)] >> (first & 7) & 1;
}

/* Eight bytes from start on; zeros behind the line end that follows the text. */
static inline uint64_t inferno_eight(const uint8_t *s, ptrdiff_t n, ptrdiff_t start) {
    uint8_t bytes[8] = {0};
    uint64_t value;
    if (start >= 0 && n - start >= 8) {
        memcpy(&value, s + start, 8);
        return value;
    }
    for (int k = 0; k < 8; k++) {
        ptrdiff_t i = start + k;
        bytes[k] = i < 0 || i == n ? '\n' : i < n ? s[i] : 0;
    }
    memcpy(&value, bytes, 8);
    return value;
}

/* Whether a literal stands in the text so that its window begins at p, -1 being the line end before it. */
static int inferno_literal_stands(const inferno_scanfilter *f, const uint8_t *s, ptrdiff_t n, ptrdiff_t p) {
    uint64_t window = inferno_eight(s, n, p);
    for (int32_t k = f->head[inferno_head((const uint8_t *)&window)]; k >= 0; k = f->anchors[k].next) {
        const inferno_anchor *a = &f->anchors[k];
        ptrdiff_t start = p - a->at;
        if (start < -1 || a->size > n + 1 - start) continue;
        if (((inferno_eight(s, n, start) & a->mask) ^ a->text) == 0) return 1;
    }
    return 0;
}

static int inferno_mark_stands(const inferno_scanfilter *f, const uint8_t *s, ptrdiff_t n, ptrdiff_t p) {
    if (f->is_mark[s[p]] & 2) return 1;
    return inferno_is_pair(f, p > 0 ? s[p - 1] : '\n', s[p]) || inferno_is_pair(f, s[p], p + 1 < n ? s[p + 1] : '\n');
}

/* What a block of 32 bytes may hold; 35 bytes are read. */
static void inferno_block_portable(const inferno_scanfilter *f, const uint8_t *p, uint32_t *windows, uint32_t *marks) {
    uint32_t w = 0, m = 0;
    for (int k = 0; k < 32; k++) {
        uint32_t h = inferno_window_hash(inferno_window_load(p + k)) >> (32 - INFERNO_WINDOW_BITS);
        w |= (f->window[h >> 5] >> (h & 31) & 1u) << k;
    }
    for (int k = 0; k < 32; k++) m |= (uint32_t)(f->is_mark[p[k]] != 0) << k;
    *windows = w;
    *marks = m;
}

#if INFERNO_SCAN_AVX2
__attribute__((target("avx2")))
static void inferno_block_avx2(const inferno_scanfilter *f, const uint8_t *p, uint32_t *windows, uint32_t *marks) {
    const __m256i spread = _mm256_setr_epi8(0, 1, 2, 3, 1, 2, 3, 4, 2, 3, 4, 5, 3, 4, 5, 6,
                                            4, 5, 6, 7, 5, 6, 7, 8, 6, 7, 8, 9, 7, 8, 9, 10);
    const __m256i fold = _mm256_set1_epi32((int)INFERNO_WINDOW_FOLD), mix = _mm256_set1_epi32((int)0x9E3779B1u);
    uint32_t w = 0;
    for (int quarter = 0; quarter < 4; quarter++) {
        /* Eight windows from eleven bytes. */
        const uint8_t *q = p + 8 * quarter;
        __m128i eleven = quarter < 3 ? _mm_loadu_si128((const __m128i *)q)
                                     : _mm_srli_si128(_mm_loadu_si128((const __m128i *)(q - 5)), 5);
        __m256i x = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(eleven), spread);
        __m256i h = _mm256_srli_epi32(_mm256_mullo_epi32(_mm256_and_si256(x, fold), mix), 32 - INFERNO_WINDOW_BITS);
        __m256i word = _mm256_i32gather_epi32((const int *)f->window, _mm256_srli_epi32(h, 5), 4);
        __m256i bit = _mm256_andnot_si256(h, _mm256_set1_epi32(31));
        w |= (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_sllv_epi32(word, bit))) << (8 * quarter);
    }
    __m256i x = _mm256_loadu_si256((const __m256i *)p);
    __m256i low = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)f->low));
    __m256i high = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)f->high));
    __m256i upper = _mm256_and_si256(_mm256_srli_epi16(x, 4), _mm256_set1_epi8(15));
    __m256i member = _mm256_and_si256(_mm256_shuffle_epi8(low, x), _mm256_shuffle_epi8(high, upper));
    *windows = w;
    *marks = ~(uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(member, _mm256_setzero_si256()));
}
#endif

static void inferno_block(const inferno_scanfilter *f, const uint8_t *s, ptrdiff_t n, inferno_scancursor *c) {
    uint8_t tail[36];
    const uint8_t *p = s + c->block;
    ptrdiff_t left = n - c->block;
    if (left < 35) {
        memset(tail, 0, sizeof(tail));
        memcpy(tail, p, (size_t)left);
        tail[left] = '\n';
        p = tail;
    }
#if INFERNO_SCAN_AVX2
    if (f->wide) inferno_block_avx2(f, p, &c->windows, &c->marks);
    else inferno_block_portable(f, p, &c->windows, &c->marks);
#else
    inferno_block_portable(f, p, &c->windows, &c->marks);
#endif
    if (left < 32) {
        c->marks &= (1u << left) - 1;
        c->windows &= (1u << left) - 1;
    }
}

static void inferno_scan_begin(const inferno_scanfilter *f, const uint8_t *s, ptrdiff_t n, inferno_scancursor *c) {
    c->block = 0;
    c->windows = c->marks = 0;
    c->at_start = 1;
    if (n > 0) inferno_block(f, s, n, c);
}

/* The next place, in order, at which a literal stands; n when there is none any more. */
static ptrdiff_t inferno_scan_next(const inferno_scanfilter *f, const uint8_t *s, ptrdiff_t n, inferno_scancursor *c) {
    if (c->at_start) {
        c->at_start = 0;
        if (n > 0 && inferno_literal_stands(f, s, n, -1)) return 0;
    }
    for (;;) {
        while (c->windows | c->marks) {
            int window = c->windows ? __builtin_ctz(c->windows) : 64, mark = c->marks ? __builtin_ctz(c->marks) : 64;
            if (window <= mark) {
                c->windows &= c->windows - 1;
                if (inferno_literal_stands(f, s, n, c->block + window)) return c->block + window;
            } else {
                c->marks &= c->marks - 1;
                if (inferno_mark_stands(f, s, n, c->block + mark)) return c->block + mark;
            }
        }
        if (n - c->block <= 32) return n;
        c->block += 32;
        inferno_block(f, s, n, c);
    }
}

#endif

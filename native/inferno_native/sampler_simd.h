/* Passes over one row of logits, each in three variants: AVX-512, AVX2 and plain C; the CPU decides at run time.
 *
 * NaN counts as "not there" everywhere: never the maximum, never above a threshold, weight 0. Weights are
 * exp((x - max) * scale) for x <= max; below exp(-87) they are 0. Rows may hold -inf. Nothing here allocates; every
 * index stays below n. Sums of a block of INFERNO_BLOCK logits are exact to about 1e-6.
 */
#ifndef INFERNO_SAMPLER_SIMD_H
#define INFERNO_SAMPLER_SIMD_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define INFERNO_BLOCK 1024
#define INFERNO_FLOORS 4

#if defined(__GNUC__) || defined(__clang__)
#pragma GCC diagnostic ignored "-Wunused-function" /* included for its types by modules that call through a table */
#pragma GCC diagnostic ignored "-Wunused-variable"
#endif

typedef struct {
    const char *name;
    float (*max)(const float *x, size_t n);                   /* -inf for an empty or hopeless row */
    size_t (*first_equal)(const float *x, size_t n, float v); /* n: none */
    /* sums[i] = weights of block i; returns the total */
    double (*block_sums)(const float *x, size_t n, float max, float scale, double *sums);
    /* sums[i] = weights of the logits >= floors[i], floors falling; returns the total; scale is 1 */
    double (*floor_sums)(const float *x, size_t n, float max, const float *floors, double *sums);
    double (*weights)(const float *x, size_t n, float max, float scale, float *out); /* returns their total */
    /* ids of logits >= threshold, ascending; returns their number, which may exceed `room` (then only room are set) */
    size_t (*above)(const float *x, size_t n, float threshold, int32_t *ids, size_t room);
} inferno_passes;

/* exp(y) = 2^k (1 + r + r^2 P(r)), y = k ln2 + r, |r| <= ln2/2. P is a minimax fit of this file's own; relative error
 * 8e-8 in float. */
#define INFERNO_LOG2E 1.44269504088896341f
#define INFERNO_LN2_HIGH 0.693359375f
#define INFERNO_LN2_LOW -2.12194440e-4f
#define INFERNO_P0 4.9999993432e-01f
#define INFERNO_P1 1.6666520399e-01f
#define INFERNO_P2 4.1668390787e-02f
#define INFERNO_P3 8.3687451164e-03f
#define INFERNO_P4 1.3814539988e-03f
#define INFERNO_LEAST -87.0f

/* ------------------------------------------------------------------------------------------------ plain C */

static inline float inferno_exp_plain(float y) {
    if (!(y >= INFERNO_LEAST)) return 0.0f;
    float k = rintf(y * INFERNO_LOG2E);
    float r = y - k * INFERNO_LN2_HIGH - k * INFERNO_LN2_LOW;
    float p = (((INFERNO_P4 * r + INFERNO_P3) * r + INFERNO_P2) * r + INFERNO_P1) * r + INFERNO_P0;
    float mantissa = 1.0f + (r + r * r * p);
    int32_t bits = ((int32_t) k + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return mantissa * power;
}

static float inferno_max_plain(const float *x, size_t n) {
    float best = -INFINITY;
    for (size_t i = 0; i < n; i++) best = x[i] > best ? x[i] : best;
    return best;
}

static size_t inferno_first_equal_plain(const float *x, size_t n, float v) {
    size_t i = 0;
    while (i < n && x[i] != v) i++;
    return i;
}

static double inferno_block_sums_plain(const float *x, size_t n, float max, float scale, double *sums) {
    double total = 0;
    for (size_t start = 0, block = 0; start < n; start += INFERNO_BLOCK, block++) {
        size_t end = n - start > INFERNO_BLOCK ? start + INFERNO_BLOCK : n;
        double sum = 0;
        for (size_t i = start; i < end; i++) sum += inferno_exp_plain((x[i] - max) * scale);
        sums[block] = sum;
        total += sum;
    }
    return total;
}

static double inferno_weights_plain(const float *x, size_t n, float max, float scale, float *out) {
    double total = 0;
    for (size_t i = 0; i < n; i++) {
        out[i] = inferno_exp_plain((x[i] - max) * scale);
        total += out[i];
    }
    return total;
}

static double inferno_floor_sums_plain(const float *x, size_t n, float max, const float *floors, double *sums) {
    double total = 0;
    for (int f = 0; f < INFERNO_FLOORS; f++) sums[f] = 0;
    for (size_t i = 0; i < n; i++) {
        double weight = inferno_exp_plain(x[i] - max);
        total += weight;
        for (int f = INFERNO_FLOORS - 1; f >= 0 && x[i] >= floors[f]; f--) sums[f] += weight;
    }
    return total;
}

static size_t inferno_above_plain(const float *x, size_t n, float threshold, int32_t *ids, size_t room) {
    size_t found = 0;
    for (size_t i = 0; i < n; i++) {
        if (x[i] >= threshold) {
            if (found < room) ids[found] = (int32_t) i;
            found++;
        }
    }
    return found;
}

static const inferno_passes inferno_plain_passes = {
    "portable", inferno_max_plain, inferno_first_equal_plain, inferno_block_sums_plain, inferno_floor_sums_plain,
    inferno_weights_plain, inferno_above_plain,
};

#if (defined(__x86_64__) || defined(_M_X64)) && (defined(__GNUC__) || defined(__clang__))
#define INFERNO_X86 1
#include <immintrin.h>

/* ------------------------------------------------------------------------------------------------ AVX2 + FMA */

#define INFERNO_AVX2 __attribute__((target("avx2,fma")))

INFERNO_AVX2 static inline __m256 inferno_exp_avx2(__m256 y) {
    __m256 kept = _mm256_cmp_ps(y, _mm256_set1_ps(INFERNO_LEAST), _CMP_GE_OQ); /* false for NaN and -inf */
    y = _mm256_max_ps(y, _mm256_set1_ps(INFERNO_LEAST));
    __m256 k = _mm256_round_ps(
        _mm256_mul_ps(y, _mm256_set1_ps(INFERNO_LOG2E)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(k, _mm256_set1_ps(INFERNO_LN2_HIGH), y);
    r = _mm256_fnmadd_ps(k, _mm256_set1_ps(INFERNO_LN2_LOW), r);
    __m256 p = _mm256_fmadd_ps(_mm256_set1_ps(INFERNO_P4), r, _mm256_set1_ps(INFERNO_P3));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(INFERNO_P2));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(INFERNO_P1));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(INFERNO_P0));
    __m256 mantissa = _mm256_add_ps(_mm256_set1_ps(1.0f), _mm256_fmadd_ps(_mm256_mul_ps(r, r), p, r));
    __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(k), _mm256_set1_epi32(127)), 23);
    return _mm256_and_ps(_mm256_mul_ps(mantissa, _mm256_castsi256_ps(power)), kept);
}

INFERNO_AVX2 static float inferno_max_avx2(const float *x, size_t n) {
    __m256 a = _mm256_set1_ps(-INFINITY), b = a, c = a, d = a;
    size_t i = 0;
    for (; n - i >= 32; i += 32) { /* max(new, old) is old when new is NaN */
        a = _mm256_max_ps(_mm256_loadu_ps(x + i), a);
        b = _mm256_max_ps(_mm256_loadu_ps(x + i + 8), b);
        c = _mm256_max_ps(_mm256_loadu_ps(x + i + 16), c);
        d = _mm256_max_ps(_mm256_loadu_ps(x + i + 24), d);
    }
    float lanes[8], best;
    _mm256_storeu_ps(lanes, _mm256_max_ps(_mm256_max_ps(a, b), _mm256_max_ps(c, d)));
    best = inferno_max_plain(lanes, 8);
    float rest = inferno_max_plain(x + i, n - i);
    return rest > best ? rest : best;
}

INFERNO_AVX2 static size_t inferno_first_equal_avx2(const float *x, size_t n, float v) {
    __m256 wanted = _mm256_set1_ps(v);
    size_t i = 0;
    for (; n - i >= 8; i += 8) {
        int mask = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(x + i), wanted, _CMP_EQ_OQ));
        if (mask) return i + (size_t) __builtin_ctz((unsigned) mask);
    }
    return i + inferno_first_equal_plain(x + i, n - i, v);
}

INFERNO_AVX2 static inline double inferno_lanes_avx2(__m256 v) {
    float lanes[8];
    double sum = 0;
    _mm256_storeu_ps(lanes, v);
    for (int lane = 0; lane < 8; lane++) sum += lanes[lane];
    return sum;
}

INFERNO_AVX2 static double inferno_sum_avx2(const float *x, size_t n, float max, float scale) {
    __m256 m = _mm256_set1_ps(max), s = _mm256_set1_ps(scale), a = _mm256_setzero_ps(), b = a;
    size_t i = 0;
    for (; n - i >= 16; i += 16) {
        a = _mm256_add_ps(a, inferno_exp_avx2(_mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(x + i), m), s)));
        b = _mm256_add_ps(b, inferno_exp_avx2(_mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(x + i + 8), m), s)));
    }
    double sum = inferno_lanes_avx2(_mm256_add_ps(a, b));
    for (; i < n; i++) sum += inferno_exp_plain((x[i] - max) * scale);
    return sum;
}

INFERNO_AVX2 static double inferno_block_sums_avx2(const float *x, size_t n, float max, float scale, double *sums) {
    double total = 0;
    for (size_t start = 0, block = 0; start < n; start += INFERNO_BLOCK, block++) {
        size_t count = n - start > INFERNO_BLOCK ? INFERNO_BLOCK : n - start;
        sums[block] = inferno_sum_avx2(x + start, count, max, scale);
        total += sums[block];
    }
    return total;
}

INFERNO_AVX2 static double inferno_weights_avx2(const float *x, size_t n, float max, float scale, float *out) {
    __m256 m = _mm256_set1_ps(max), s = _mm256_set1_ps(scale);
    double total = 0;
    size_t i = 0;
    while (n - i >= 8) {
        size_t vectors = (n - i) / 8 < INFERNO_BLOCK / 8 ? (n - i) / 8 : INFERNO_BLOCK / 8;
        __m256 sum = _mm256_setzero_ps();
        for (; vectors; vectors--, i += 8) {
            __m256 w = inferno_exp_avx2(_mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(x + i), m), s));
            _mm256_storeu_ps(out + i, w);
            sum = _mm256_add_ps(sum, w);
        }
        total += inferno_lanes_avx2(sum);
    }
    return total + inferno_weights_plain(x + i, n - i, max, scale, out + i);
}

INFERNO_AVX2 static double inferno_floor_sums_avx2(
        const float *x, size_t n, float max, const float *floors, double *sums) {
    __m256 m = _mm256_set1_ps(max), f[INFERNO_FLOORS];
    double total = 0;
    size_t i = 0;
    for (int k = 0; k < INFERNO_FLOORS; k++) {
        f[k] = _mm256_set1_ps(floors[k]);
        sums[k] = 0;
    }
    while (n - i >= 8) {
        size_t vectors = (n - i) / 8 < INFERNO_BLOCK / 8 ? (n - i) / 8 : INFERNO_BLOCK / 8;
        __m256 all = _mm256_setzero_ps(), a = all, b = all, c = all, d = all;
        for (; vectors; vectors--, i += 8) {
            __m256 v = _mm256_loadu_ps(x + i), w = inferno_exp_avx2(_mm256_sub_ps(v, m));
            all = _mm256_add_ps(all, w);
            a = _mm256_add_ps(a, _mm256_and_ps(w, _mm256_cmp_ps(v, f[0], _CMP_GE_OQ)));
            b = _mm256_add_ps(b, _mm256_and_ps(w, _mm256_cmp_ps(v, f[1], _CMP_GE_OQ)));
            c = _mm256_add_ps(c, _mm256_and_ps(w, _mm256_cmp_ps(v, f[2], _CMP_GE_OQ)));
            d = _mm256_add_ps(d, _mm256_and_ps(w, _mm256_cmp_ps(v, f[3], _CMP_GE_OQ)));
        }
        total += inferno_lanes_avx2(all);
        sums[0] += inferno_lanes_avx2(a);
        sums[1] += inferno_lanes_avx2(b);
        sums[2] += inferno_lanes_avx2(c);
        sums[3] += inferno_lanes_avx2(d);
    }
    double rest[INFERNO_FLOORS];
    total += inferno_floor_sums_plain(x + i, n - i, max, floors, rest);
    for (int k = 0; k < INFERNO_FLOORS; k++) sums[k] += rest[k];
    return total;
}

INFERNO_AVX2 static size_t inferno_above_avx2(const float *x, size_t n, float threshold, int32_t *ids, size_t room) {
    __m256 t = _mm256_set1_ps(threshold);
    size_t found = 0, i = 0;
    for (; n - i >= 32; i += 32) {
        unsigned mask = (unsigned) _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(x + i), t, _CMP_GE_OQ));
        mask |= (unsigned) _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(x + i + 8), t, _CMP_GE_OQ)) << 8;
        mask |= (unsigned) _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(x + i + 16), t, _CMP_GE_OQ)) << 16;
        mask |= (unsigned) _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(x + i + 24), t, _CMP_GE_OQ)) << 24;
        for (; mask; mask &= mask - 1) {
            if (found < room) ids[found] = (int32_t) i + __builtin_ctz(mask);
            found++;
        }
    }
    for (; i < n; i++) {
        if (x[i] >= threshold) {
            if (found < room) ids[found] = (int32_t) i;
            found++;
        }
    }
    return found;
}

static const inferno_passes inferno_avx2_passes = {
    "avx2", inferno_max_avx2, inferno_first_equal_avx2, inferno_block_sums_avx2, inferno_floor_sums_avx2,
    inferno_weights_avx2, inferno_above_avx2,
};

/* ------------------------------------------------------------------------------------------------ AVX-512 */

#define INFERNO_AVX512 __attribute__((target("avx512f,avx512dq,avx2,fma")))

INFERNO_AVX512 static inline __m512 inferno_exp_avx512(__m512 y) {
    __mmask16 kept = _mm512_cmp_ps_mask(y, _mm512_set1_ps(INFERNO_LEAST), _CMP_GE_OQ);
    __m512 k = _mm512_roundscale_ps(
        _mm512_mul_ps(y, _mm512_set1_ps(INFERNO_LOG2E)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(k, _mm512_set1_ps(INFERNO_LN2_HIGH), y);
    r = _mm512_fnmadd_ps(k, _mm512_set1_ps(INFERNO_LN2_LOW), r);
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(INFERNO_P4), r, _mm512_set1_ps(INFERNO_P3));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(INFERNO_P2));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(INFERNO_P1));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(INFERNO_P0));
    __m512 mantissa = _mm512_add_ps(_mm512_set1_ps(1.0f), _mm512_fmadd_ps(_mm512_mul_ps(r, r), p, r));
    return _mm512_maskz_scalef_ps(kept, mantissa, k);
}

INFERNO_AVX512 static float inferno_max_avx512(const float *x, size_t n) {
    __m512 a = _mm512_set1_ps(-INFINITY), b = a, c = a, d = a;
    size_t i = 0;
    for (; n - i >= 64; i += 64) {
        a = _mm512_max_ps(_mm512_loadu_ps(x + i), a);
        b = _mm512_max_ps(_mm512_loadu_ps(x + i + 16), b);
        c = _mm512_max_ps(_mm512_loadu_ps(x + i + 32), c);
        d = _mm512_max_ps(_mm512_loadu_ps(x + i + 48), d);
    }
    float best = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(a, b), _mm512_max_ps(c, d)));
    float rest = inferno_max_plain(x + i, n - i);
    return rest > best ? rest : best;
}

INFERNO_AVX512 static double inferno_block_sums_avx512(
        const float *x, size_t n, float max, float scale, double *sums) {
    __m512 m = _mm512_set1_ps(max), s = _mm512_set1_ps(scale);
    double total = 0;
    for (size_t start = 0, block = 0; start < n; start += INFERNO_BLOCK, block++) {
        size_t count = n - start > INFERNO_BLOCK ? INFERNO_BLOCK : n - start, i = 0;
        const float *row = x + start;
        __m512 a = _mm512_setzero_ps(), b = a;
        for (; count - i >= 32; i += 32) {
            a = _mm512_add_ps(a, inferno_exp_avx512(_mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(row + i), m), s)));
            b = _mm512_add_ps(
                b, inferno_exp_avx512(_mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(row + i + 16), m), s)));
        }
        double sum = _mm512_reduce_add_ps(_mm512_add_ps(a, b));
        for (; i < count; i++) sum += inferno_exp_plain((row[i] - max) * scale);
        sums[block] = sum;
        total += sum;
    }
    return total;
}

INFERNO_AVX512 static double inferno_weights_avx512(const float *x, size_t n, float max, float scale, float *out) {
    __m512 m = _mm512_set1_ps(max), s = _mm512_set1_ps(scale);
    double total = 0;
    size_t i = 0;
    while (n - i >= 16) {
        size_t vectors = (n - i) / 16 < INFERNO_BLOCK / 16 ? (n - i) / 16 : INFERNO_BLOCK / 16;
        __m512 sum = _mm512_setzero_ps();
        for (; vectors; vectors--, i += 16) {
            __m512 w = inferno_exp_avx512(_mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(x + i), m), s));
            _mm512_storeu_ps(out + i, w);
            sum = _mm512_add_ps(sum, w);
        }
        total += _mm512_reduce_add_ps(sum);
    }
    return total + inferno_weights_plain(x + i, n - i, max, scale, out + i);
}

INFERNO_AVX512 static double inferno_floor_sums_avx512(
        const float *x, size_t n, float max, const float *floors, double *sums) {
    __m512 m = _mm512_set1_ps(max), f[INFERNO_FLOORS];
    double total = 0;
    size_t i = 0;
    for (int k = 0; k < INFERNO_FLOORS; k++) {
        f[k] = _mm512_set1_ps(floors[k]);
        sums[k] = 0;
    }
    while (n - i >= 16) {
        size_t vectors = (n - i) / 16 < INFERNO_BLOCK / 16 ? (n - i) / 16 : INFERNO_BLOCK / 16;
        __m512 all = _mm512_setzero_ps(), a = all, b = all, c = all, d = all;
        for (; vectors; vectors--, i += 16) {
            __m512 v = _mm512_loadu_ps(x + i), w = inferno_exp_avx512(_mm512_sub_ps(v, m));
            all = _mm512_add_ps(all, w);
            a = _mm512_mask_add_ps(a, _mm512_cmp_ps_mask(v, f[0], _CMP_GE_OQ), a, w);
            b = _mm512_mask_add_ps(b, _mm512_cmp_ps_mask(v, f[1], _CMP_GE_OQ), b, w);
            c = _mm512_mask_add_ps(c, _mm512_cmp_ps_mask(v, f[2], _CMP_GE_OQ), c, w);
            d = _mm512_mask_add_ps(d, _mm512_cmp_ps_mask(v, f[3], _CMP_GE_OQ), d, w);
        }
        total += _mm512_reduce_add_ps(all);
        sums[0] += _mm512_reduce_add_ps(a);
        sums[1] += _mm512_reduce_add_ps(b);
        sums[2] += _mm512_reduce_add_ps(c);
        sums[3] += _mm512_reduce_add_ps(d);
    }
    double rest[INFERNO_FLOORS];
    total += inferno_floor_sums_plain(x + i, n - i, max, floors, rest);
    for (int k = 0; k < INFERNO_FLOORS; k++) sums[k] += rest[k];
    return total;
}

INFERNO_AVX512 static size_t inferno_above_avx512(
        const float *x, size_t n, float threshold, int32_t *ids, size_t room) {
    __m512 t = _mm512_set1_ps(threshold);
    __m512i id = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    size_t found = 0, i = 0;
    for (; n - i >= 16; i += 16, id = _mm512_add_epi32(id, _mm512_set1_epi32(16))) {
        __mmask16 mask = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + i), t, _CMP_GE_OQ);
        if (!mask) continue;
        size_t count = (size_t) __builtin_popcount(mask);
        if (found <= room && room - found >= 16) { /* a whole vector fits: compressed in a register, stored at once */
            _mm512_storeu_si512(ids + found, _mm512_maskz_compress_epi32(mask, id));
        } else if (found < room) {
            int32_t lanes[16];
            _mm512_storeu_si512(lanes, _mm512_maskz_compress_epi32(mask, id));
            size_t fitting = room - found < count ? room - found : count;
            memcpy(ids + found, lanes, fitting * sizeof(int32_t));
        }
        found += count;
    }
    for (; i < n; i++) {
        if (x[i] >= threshold) {
            if (found < room) ids[found] = (int32_t) i;
            found++;
        }
    }
    return found;
}

static const inferno_passes inferno_avx512_passes = {
    "avx512", inferno_max_avx512, inferno_first_equal_avx2, inferno_block_sums_avx512, inferno_floor_sums_avx512,
    inferno_weights_avx512, inferno_above_avx512,
};
#endif

static const inferno_passes *inferno_passes_at(int level) {
    /* 0: plain C, 1: AVX2, 2: AVX-512; NULL where this CPU or build has it not. */
    if (level == 0) return &inferno_plain_passes;
#ifdef INFERNO_X86
    __builtin_cpu_init();
    if (level == 1 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &inferno_avx2_passes;
    if (level == 2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        return &inferno_avx512_passes;
    }
#endif
    return NULL;
}

#endif

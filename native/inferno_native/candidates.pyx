"""The tokens of one row that can still be chosen: listed by threshold, narrowed by histograms, never sorted.

Owns the passes over a row (sampler_simd.h; the CPU decides which variant), a thread's buffers, changes of a row that
are undone, and the truncating stages: top-k, typical, top-p, min-p, XTC, temperature. Each stage sees the weights that
the one before left, as llama.cpp's stages renormalize. Knows no requests and no random numbers. No GIL anywhere.
"""

from libc.float cimport FLT_MAX
from libc.math cimport INFINITY, fabs, log, logf
from libc.stdint cimport int16_t, int32_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset

from .sampler_params cimport SAMPLER_NO_MEMORY, SAMPLER_SAMPLED

cdef enum:
    _BUCKETS = 512
    _MAXIMUM_OF = 512  # logits in a block of row_max
    _FEW = 48  # from here on sorting is cheaper than another histogram

cdef float[4] _DEPTHS = [3.0, 6.0, 9.0, 14.0]  # below the maximum: where top-p looks first

cdef const inferno_passes *_passes = NULL

MAX_VOCAB = 1 << 24
MAX_HISTORY = 1 << 20


cdef const inferno_passes *_best_passes() noexcept:
    cdef int level
    for level in (2, 1):
        if inferno_passes_at(level) is not NULL:
            return inferno_passes_at(level)
    return inferno_passes_at(0)


_passes = _best_passes()
SIMD_VARIANTS = tuple(
    inferno_passes_at(level).name.decode() for level in range(3) if inferno_passes_at(level) is not NULL)


def simd():
    """Return the name of the variant in use: avx512, avx2 or portable."""
    return _passes.name.decode()


def use_simd(str name):
    """Choose a variant by name for the whole process, for tests and benchmarks; None: the best that this CPU has."""
    global _passes
    cdef int level
    if name is None:
        _passes = _best_passes()
        return
    for level in range(3):
        if inferno_passes_at(level) is not NULL and inferno_passes_at(level).name.decode() == name:
            _passes = inferno_passes_at(level)
            return
    raise ValueError(f"no variant {name!r} on this machine; there are {', '.join(SIMD_VARIANTS)}")



# ---------------------------------------------------------------- buffers


cdef SamplerScratch *sampler_scratch_new(int32_t n_vocab) noexcept nogil:
    """Return buffers for rows of at most `n_vocab` logits, about 22 bytes a logit, or NULL."""
    cdef SamplerScratch *scratch = <SamplerScratch *> calloc(1, sizeof(SamplerScratch))
    cdef size_t n = <size_t> n_vocab
    if scratch is NULL:
        return NULL
    scratch.n_vocab = n_vocab
    scratch.ids = <int32_t *> malloc((n + 16) * sizeof(int32_t))
    scratch.logits = <float *> malloc((n + 16) * sizeof(float))
    scratch.weights = <float *> malloc((n + INFERNO_BLOCK) * sizeof(float))
    scratch.keys = <float *> malloc((n + 16) * sizeof(float))
    scratch.order = <int32_t *> malloc((n + 16) * sizeof(int32_t))
    scratch.buckets = <int16_t *> malloc((n + 16) * sizeof(int16_t))
    scratch.maxima = <float *> malloc((n // _MAXIMUM_OF + 1) * sizeof(float))
    scratch.sums = <double *> malloc((n // INFERNO_BLOCK + 1) * sizeof(double))
    if (scratch.ids is NULL or scratch.logits is NULL or scratch.weights is NULL or scratch.keys is NULL
            or scratch.order is NULL or scratch.buckets is NULL or scratch.maxima is NULL or scratch.sums is NULL):
        sampler_scratch_free(scratch)
        return NULL
    return scratch


cdef void sampler_scratch_free(SamplerScratch *scratch) noexcept nogil:
    if scratch is NULL:
        return
    free(scratch.ids)
    free(scratch.logits)
    free(scratch.weights)
    free(scratch.keys)
    free(scratch.order)
    free(scratch.buckets)
    free(scratch.maxima)
    free(scratch.sums)
    free(scratch.undo_ids)
    free(scratch.undo_logits)
    free(scratch)


# ---------------------------------------------------------------- changes of the row


cdef int set_logit(SamplerScratch *scratch, float *logits, int32_t token, float value) noexcept nogil:
    """Change one logit until _restore."""
    cdef size_t capacity
    cdef void *grown
    if scratch.undo_size == scratch.undo_capacity:
        capacity = scratch.undo_capacity * 2 + 64
        grown = realloc(scratch.undo_ids, capacity * sizeof(int32_t))
        if grown is NULL:
            return SAMPLER_NO_MEMORY
        scratch.undo_ids = <int32_t *> grown
        grown = realloc(scratch.undo_logits, capacity * sizeof(float))
        if grown is NULL:
            return SAMPLER_NO_MEMORY
        scratch.undo_logits = <float *> grown
        scratch.undo_capacity = capacity
    scratch.undo_ids[scratch.undo_size] = token
    scratch.undo_logits[scratch.undo_size] = logits[token]
    scratch.undo_size += 1
    logits[token] = value
    return SAMPLER_SAMPLED


cdef void restore_logits(SamplerScratch *scratch, float *logits) noexcept nogil:
    cdef size_t at = scratch.undo_size
    while at > 0:
        at -= 1
        logits[scratch.undo_ids[at]] = scratch.undo_logits[at]
    scratch.undo_size = 0


# ---------------------------------------------------------------- candidates


cdef void gather(SamplerScratch *scratch, const float *logits, float max_logit) noexcept nogil:
    """Fill logits and weights of the listed ids."""
    cdef int32_t i
    for i in range(scratch.size):
        scratch.logits[i] = logits[scratch.ids[i]]
    weigh(scratch, max_logit)


cdef void weigh(SamplerScratch *scratch, float max_logit) noexcept nogil:
    """Weigh the listed logits at temperature 1."""
    scratch.total = _passes.weights(scratch.logits, scratch.size, max_logit, 1.0, scratch.weights)
    scratch.max_logit = max_logit


cdef void list_above(SamplerScratch *scratch, const float *logits, int32_t n, float threshold) noexcept nogil:
    """List the ids of finite logits >= threshold."""
    scratch.size = <int32_t> _passes.above(logits, n, max(threshold, -FLT_MAX), scratch.ids, n)


cdef float row_max(SamplerScratch *scratch, const float *logits, int32_t n) noexcept nogil:
    """Return the row's maximum and remember those of its blocks, for list_at_least."""
    cdef float best = -INFINITY, here
    cdef int32_t start = 0, block = 0
    while start < n:
        here = _passes.max(logits + start, min(n - start, <int32_t> _MAXIMUM_OF))
        scratch.maxima[block] = here
        best = max(best, here)
        start += _MAXIMUM_OF
        block += 1
    scratch.num_maxima = block
    return best


cdef float _nth_largest(float *values, int32_t size, int32_t n) noexcept nogil:
    """Return the n-th largest (from 1) of `size` values, which are reordered; 1 <= n <= size. No NaN."""
    cdef int32_t low = 0, high = size - 1, wanted = n - 1, i, j
    cdef float pivot
    while low < high:
        pivot = values[low + (high - low) // 2]
        i = low
        j = high
        while i <= j:
            while values[i] > pivot:
                i += 1
            while values[j] < pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if wanted <= j:
            high = j
        elif wanted >= i:
            low = i
        else:
            break
    return values[wanted]


cdef void list_at_least(SamplerScratch *scratch, const float *logits, int32_t n, float max_logit,
                        int32_t count) noexcept nogil:
    """List at least the `count` highest logits (fewer where the row has fewer). Needs row_max before.

    The count-th largest of the blocks' maxima is a logit that at least `count` others reach.
    """
    cdef float depth = 16.0
    if count <= scratch.num_maxima:
        memcpy(scratch.keys, scratch.maxima, <size_t> scratch.num_maxima * sizeof(float))
        list_above(scratch, logits, n, _nth_largest(scratch.keys, scratch.num_maxima, count))
        return
    while depth < 100.0:
        list_above(scratch, logits, n, max_logit - depth)
        if scratch.size >= count:
            return
        depth *= 2.0
    list_above(scratch, logits, n, -FLT_MAX)


cdef void _compact(SamplerScratch *scratch, float cut, int32_t last) noexcept nogil:
    """Keep candidates whose key is below `cut`, or equals it at an index up to `last`. Free of branches: which are
    kept is not predictable."""
    cdef int32_t i, kept = 0
    cdef float key
    for i in range(scratch.size):
        key = scratch.keys[i]
        scratch.ids[kept] = scratch.ids[i]
        scratch.logits[kept] = scratch.logits[i]
        scratch.weights[kept] = scratch.weights[i]
        scratch.keys[kept] = key
        kept += <int32_t> (key < cut) | (<int32_t> (key == cut) & <int32_t> (i <= last))
    scratch.size = kept


cdef void keep_best(SamplerScratch *scratch, bint by_weight, double target, bint beyond) noexcept nogil:
    """Keep the candidates of the lowest keys (ties: lower id) up to the one with which their number, or the sum of
    their weights, reaches `target` (goes beyond it). All are kept where the target is never reached.

    Narrows a range of keys by histograms: each pass looks only at the bucket in which the target falls. Keys are
    finite. Every index into `order` is below the number of candidates.
    """
    cdef double mass[_BUCKETS]
    cdef int32_t i, j, index, bucket, active = scratch.size, gathered
    cdef double base = 0, running, step
    cdef float low, high, key
    cdef bint first = True
    if scratch.size == 0:
        return
    while True:
        low = FLT_MAX
        high = -FLT_MAX
        for i in range(active):
            key = scratch.keys[i if first else scratch.order[i]]
            low = key if key < low else low
            high = key if key > high else high
        if low == high or active <= _FEW:
            break
        step = (_BUCKETS - 1) / (<double> high - <double> low)
        memset(mass, 0, sizeof(mass))
        for i in range(active):
            index = i if first else scratch.order[i]
            bucket = <int32_t> ((<double> scratch.keys[index] - low) * step)
            bucket = bucket if bucket < _BUCKETS else _BUCKETS - 1
            scratch.buckets[i] = <int16_t> bucket
            mass[bucket] += scratch.weights[index] if by_weight else 1.0
        bucket = 0
        while bucket < _BUCKETS:
            running = base + mass[bucket]
            if (running > target if beyond else running >= target):
                break
            base = running
            bucket += 1
        if bucket == _BUCKETS:
            return  # never reached
        gathered = 0
        for i in range(active):
            if scratch.buckets[i] == bucket:
                scratch.order[gathered] = i if first else scratch.order[i]
                gathered += 1
        active = gathered
        first = False
    if first:
        for i in range(active):
            scratch.order[i] = i
    if low != high:
        for i in range(1, active):  # insertion sort of a few, stable: indices ascend
            index = scratch.order[i]
            key = scratch.keys[index]
            j = i
            while j > 0 and scratch.keys[scratch.order[j - 1]] > key:
                scratch.order[j] = scratch.order[j - 1]
                j -= 1
            scratch.order[j] = index
    for i in range(active):
        index = scratch.order[i]
        base += scratch.weights[index] if by_weight else 1.0
        if (base > target if beyond else base >= target):
            _compact(scratch, scratch.keys[index], index)
            return
    # Rounding between the histogram's sums and these: the whole bucket is kept.
    if active > 0:
        _compact(scratch, high, scratch.size)


cdef void keep_top_k(SamplerScratch *scratch, const float *logits, int32_t n, float max_logit, int32_t k) noexcept nogil:
    cdef int32_t i
    list_at_least(scratch, logits, n, max_logit, k)
    for i in range(scratch.size):
        scratch.logits[i] = logits[scratch.ids[i]]
        scratch.keys[i] = -scratch.logits[i]
        scratch.weights[i] = 0
    keep_best(scratch, False, k, False)
    weigh(scratch, max_logit)


cdef void keep_typical(SamplerScratch *scratch, float p) noexcept nogil:
    """Keep the tokens whose surprise is nearest to the entropy, up to probability `p` (Meister et al. 2022)."""
    cdef int32_t i
    cdef double expected = 0  # of the distance to the maximum: entropy less the logarithm of the total
    for i in range(scratch.size):
        if scratch.weights[i] > 0:
            expected += scratch.weights[i] * (<double> scratch.max_logit - scratch.logits[i])
    expected /= scratch.total
    for i in range(scratch.size):
        scratch.keys[i] = <float> min(fabs(<double> scratch.max_logit - scratch.logits[i] - expected), <double> FLT_MAX)
    keep_best(scratch, True, p * scratch.total, True)
    _reweigh(scratch)


cdef void _reweigh(SamplerScratch *scratch) noexcept nogil:
    """Take the maximum of the candidates anew: the former one may be gone."""
    weigh(scratch, _passes.max(scratch.logits, scratch.size))


cdef void keep_top_p(SamplerScratch *scratch, float p, double total) noexcept nogil:
    cdef int32_t i
    for i in range(scratch.size):
        scratch.keys[i] = -scratch.logits[i]
    keep_best(scratch, True, p * total, False)
    weigh(scratch, scratch.max_logit)


cdef void keep_top_p_of_row(SamplerScratch *scratch, const float *logits, int32_t n, float max_logit,
                            float p) noexcept nogil:
    """Top-p over the whole row: list down to the first of four floors above which there is enough weight."""
    cdef float[4] floors  # INFERNO_FLOORS
    cdef double[4] sums
    cdef double total
    cdef int i
    for i in range(4):
        floors[i] = max_logit - _DEPTHS[i]
    total = _passes.floor_sums(logits, n, max_logit, floors, sums)
    for i in range(4):
        if sums[i] >= p * total:
            list_above(scratch, logits, n, floors[i])
            gather(scratch, logits, max_logit)
            keep_top_p(scratch, p, total)
            return
    list_above(scratch, logits, n, -FLT_MAX)
    gather(scratch, logits, max_logit)
    keep_top_p(scratch, p, scratch.total)


cdef void keep_min_p(SamplerScratch *scratch, float p) noexcept nogil:
    cdef int32_t i
    cdef float least = scratch.max_logit + (logf(p) if p < 1 else 0)
    for i in range(scratch.size):
        scratch.keys[i] = 0.0 if scratch.logits[i] >= least else 1.0
    _compact(scratch, 1.0, -1)
    weigh(scratch, scratch.max_logit)


cdef inline bint _is_top(const SamplerScratch *scratch, int32_t i, float threshold) noexcept nogil:
    """Whether a candidate's probability reaches the threshold, both in single precision as llama.cpp compares them."""
    return <float> (scratch.weights[i] / scratch.total) >= threshold


cdef int32_t _least_of_the_top(const SamplerScratch *scratch, float threshold) noexcept nogil:
    """Return the index of the lightest candidate that reaches `threshold` (ties: higher id), -1 if only one does."""
    cdef int32_t i, found = -1, number = 0
    for i in range(scratch.size):
        if _is_top(scratch, i, threshold):
            number += 1
            if found < 0 or scratch.logits[i] <= scratch.logits[found]:
                found = i
    return found if number > 1 else -1


cdef void exclude_top(SamplerScratch *scratch, float threshold) noexcept nogil:
    """XTC: drop all tokens of at least `threshold` but the least likely of them."""
    cdef int32_t i, kept = 0, spared = _least_of_the_top(scratch, threshold)
    if spared < 0:
        return
    for i in range(scratch.size):
        if i == spared or not _is_top(scratch, i, threshold):
            scratch.ids[kept] = scratch.ids[i]
            scratch.logits[kept] = scratch.logits[i]
            kept += 1
    scratch.size = kept
    _reweigh(scratch)


cdef int exclude_top_of_row(SamplerScratch *scratch, float *logits, int32_t n, float max_logit,
                            float threshold) noexcept nogil:
    """The same over the whole row: dropped tokens become -inf until restore_logits."""
    cdef double total = _passes.block_sums(logits, n, max_logit, 1.0, scratch.sums)
    cdef int32_t i, spared
    cdef int status = SAMPLER_SAMPLED
    list_above(scratch, logits, n, max_logit + <float> log(threshold * total) - 0.001 if threshold > 0 else -FLT_MAX)
    gather(scratch, logits, max_logit)
    scratch.total = total
    spared = _least_of_the_top(scratch, threshold)
    if spared < 0:
        return status
    for i in range(scratch.size):
        if i != spared and _is_top(scratch, i, threshold):
            status |= set_logit(scratch, logits, scratch.ids[i], -INFINITY)
    return status


cdef void heat(SamplerScratch *scratch) noexcept nogil:
    """Weigh the candidates at the temperature. Later stages see no other weights: temperature comes last."""
    scratch.total = _passes.weights(scratch.logits, scratch.size, scratch.max_logit, scratch.scale, scratch.weights)


cdef const inferno_passes *current_passes() noexcept nogil:
    """Return the variant in use."""
    return _passes

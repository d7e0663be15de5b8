# Unsigned 64-bit arithmetic that reports overflow instead of wrapping; inline, no GIL, no Python object.
# Every function returns 1 when the true result does not fit and 0 when *result holds it.

from libc.stdint cimport uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    static inline int inferno_add_u64(uint64_t a, uint64_t b, uint64_t *result) {
        return __builtin_add_overflow(a, b, result);
    }
    static inline int inferno_mul_u64(uint64_t a, uint64_t b, uint64_t *result) {
        return __builtin_mul_overflow(a, b, result);
    }
    """
    int add_u64 "inferno_add_u64"(uint64_t a, uint64_t b, uint64_t *result) noexcept nogil
    int mul_u64 "inferno_mul_u64"(uint64_t a, uint64_t b, uint64_t *result) noexcept nogil


cdef inline int align_u64(uint64_t value, uint64_t alignment, uint64_t *result) noexcept nogil:
    # alignment is a power of two, which the caller has checked
    if add_u64(value, alignment - 1, result):
        return 1
    result[0] &= ~(alignment - 1)
    return 0

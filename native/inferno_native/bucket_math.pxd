"""The arithmetic of one token bucket, in integers only.

Time is whole microseconds. A bucket remembers what was *used*, in permits times the window's microseconds, so that a
quota of `quota` permits per window gives back exactly `quota` units a microsecond: nothing is rounded, nothing drifts,
and a full bucket is zero whatever the quota is, which lets a quota change while the bucket lives.

Bounds: window_us < 2^32 and quota < 2^31, hence quota * window_us < 2^63. A window of a counting family (concurrency)
has window_us = 1 and never decays.
"""

from libc.stdint cimport uint32_t, uint64_t


cdef enum:
    MAX_QUOTA = 0x7FFFFFFF
    NO_LIMIT = 0xFFFFFFFF      # the window does not apply to this key: nothing is counted in it


cdef inline uint64_t decayed(uint64_t used, uint64_t elapsed_us, uint32_t quota, uint64_t window_us) noexcept nogil:
    """What is still used after elapsed_us; after a whole window nothing is."""
    cdef uint64_t back
    if elapsed_us >= window_us:
        return 0
    back = elapsed_us * quota
    return used - back if used > back else 0


cdef inline uint64_t round_up(uint64_t value, uint64_t divisor) noexcept nogil:
    return value // divisor + (1 if value % divisor else 0)

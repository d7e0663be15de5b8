"""The classes of buckets.pyx. The shared memory that they stand on is bucket_layout.pxd's, the work on it bucket_core.pxd's."""

from libc.stdint cimport uint32_t, uint64_t

from .bucket_layout cimport MAX_PARTS, MAX_WINDOWS, Charge, Header, Hold


cdef class Outcome:
    cdef readonly int status
    cdef readonly unsigned long long hold
    cdef readonly bint overflowed
    cdef int num_parts
    cdef int num_windows[MAX_PARTS]
    cdef uint32_t quota[MAX_PARTS][MAX_WINDOWS]
    cdef uint64_t used[MAX_PARTS][MAX_WINDOWS]
    cdef uint64_t wait_us[MAX_PARTS][MAX_WINDOWS]
    cdef uint64_t window_us[MAX_PARTS][MAX_WINDOWS]


cdef class BucketTable:
    cdef Header* header
    cdef Header shape                 # our own copy of sizes and offsets: what stands in the shared page later is not trusted
    cdef object _fd
    cdef readonly uint64_t size_bytes
    cdef long owner                   # -1: takes no holds
    cdef uint64_t generation
    cdef uint32_t* free_holds         # this owner's free records, a stack of global indexes
    cdef uint32_t num_free_holds

    cdef int _check_open(self) except -1
    cdef int _check_slot(self, uint32_t slot) except -1
    cdef uint64_t _now(self) noexcept nogil
    cdef Hold* _holds(self) noexcept nogil
    cdef Hold* _hold_at(self, uint64_t hold_id) except? NULL
    cdef bint _owns(self, uint64_t hold_id) noexcept
    cdef int _lock(self) noexcept
    cdef int _read(self, Charge* charge, uint32_t family, bytes key, tuple quotas) except -1
    cdef Outcome _take_parts(self, tuple parts, uint32_t cost, long long spent)
    cdef int _take(self, Charge* charges, int num_charges, uint32_t cost, long long spent, uint64_t* hold_id) noexcept
    cdef void _settle(self, Hold* hold, uint32_t spent) noexcept
    cdef long _release(self, uint32_t slot) except -1

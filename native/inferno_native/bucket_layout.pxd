"""Layout of the shared table. Any change here needs another LAYOUT_VERSION.

    header page(s)   magic, version, sizes, lock, seed, families, owners, journal
    family 0..n      EntrySet[num_sets]
    holds            Hold[num_owners * holds_per_owner]
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "shared_lock.h" nogil:
    ctypedef struct inferno_lock:
        pass
    int INFERNO_LOCK_TAKEN
    int INFERNO_LOCK_RECOVERED
    int INFERNO_LOCK_BUSY
    int INFERNO_DEBUG_BUILD
    int inferno_stop_point
    int inferno_lock_init(inferno_lock* lock)
    int inferno_lock_try(inferno_lock* lock)
    int inferno_lock_wait(inferno_lock* lock, long milliseconds)
    void inferno_lock_release(inferno_lock* lock)
    void INFERNO_COMPILER_BARRIER()
    void INFERNO_POINT(int number)
    uint64_t inferno_monotonic_us()


cdef enum:
    LAYOUT_VERSION = 1
    WAYS = 8
    MAX_WINDOWS = 3
    MAX_FAMILIES = 16
    MAX_PARTS = 4
    MAX_OWNERS = 256
    MAX_HOLDS_PER_OWNER = 65536
    HOLD_FREE = 0
    HOLD_HELD = 1


cdef enum TakeStatus:
    STATUS_ADMITTED = 0
    STATUS_REFUSED = 1        # some window has too little left; a wait helps
    STATUS_TOO_LARGE = 2      # the cost is above some window's quota; no wait helps
    STATUS_NO_HOLD = 3        # this owner has no free hold record left
    STATUS_STALE_OWNER = 4    # the supervisor released this owner
    STATUS_BUSY = 5           # the lock did not come free in time
    STATUS_LOCK_FAILED = 6


cdef struct Entry:                    # 64 bytes: one cache line
    uint64_t check                    # second half of the key's digest
    uint64_t updated_us               # when `used` was true
    uint64_t used[MAX_WINDOWS]        # permits * window_us; see bucket_math.pxd
    uint32_t quota[MAX_WINDOWS]       # as of the last charge; eviction and refunds need it
    uint32_t padding[3]


cdef struct EntrySet:                 # a key has its place in one of two sets, the tags of a set share a cache line
    uint64_t tag[WAYS]                # first half of the key's digest; 0 = free place
    Entry entry[WAYS]


cdef struct Family:
    uint64_t offset                   # of its sets, from the start of the table
    uint64_t num_sets
    uint64_t window_us[MAX_WINDOWS]
    uint32_t num_windows
    uint32_t counting                 # 1: does not decay, ends by settling (concurrency)
    uint64_t num_evicted              # statistics; not exact after a crash
    uint64_t num_overflowed
    Entry overflow                    # shared by keys that found every place taken by a bucket that is not full


cdef struct HoldPart:
    uint64_t tag
    uint64_t check
    uint32_t cost
    uint16_t family
    uint16_t overflowed


cdef struct Hold:                     # 128 bytes: what was charged and may be given back, once
    uint64_t sequence
    uint64_t created_us
    uint32_t state
    uint32_t spent                    # what stays charged if another settles for a dead owner
    uint32_t num_parts
    uint32_t padding
    HoldPart part[MAX_PARTS]


cdef struct Undo:
    uint64_t tag_offset               # 0: overflow entry, no tag
    uint64_t tag
    uint64_t entry_offset
    Entry entry


cdef struct Journal:                  # old values, valid while armed: a crash in between is undone by the next owner
    uint32_t armed
    uint32_t num_undos
    uint64_t hold_offset              # 0: no hold record changes
    uint32_t hold_state
    uint32_t padding
    Undo undo[MAX_PARTS]


cdef struct Header:
    uint8_t magic[8]
    uint32_t version
    uint32_t header_bytes             # sizeof(Header), sizeof(inferno_lock), ... as the creator's build had them
    uint32_t lock_bytes
    uint32_t set_bytes
    uint32_t hold_bytes
    uint32_t num_families
    uint32_t num_owners
    uint32_t holds_per_owner
    uint64_t total_bytes
    uint64_t holds_offset
    uint64_t seed[2]
    uint32_t manual_clock             # 1: time is manual_now_us (tests), 0: CLOCK_MONOTONIC
    uint32_t num_recoveries
    uint64_t manual_now_us
    inferno_lock lock
    uint64_t generation[MAX_OWNERS]
    Family family[MAX_FAMILIES]
    Journal journal


cdef struct Charge:                   # one part of a take, from the caller's arguments to its result
    uint32_t family
    uint32_t num_windows
    uint64_t tag
    uint64_t check
    uint32_t quota[MAX_WINDOWS]
    uint64_t* tag_at                  # where the entry stands; NULL: the overflow entry
    Entry* entry_at
    Entry next                        # the entry as it will be (admitted) or is (refused)
    uint64_t wait_us[MAX_WINDOWS]

# A bounded, forward-only cursor over the start of a file: bytes come through pread into private memory, so that
# nobody who writes to the file can change what was already checked. Never more than `limit` bytes are kept.

from libc.errno cimport EINTR, errno
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy
from posix.types cimport off_t
from posix.unistd cimport pread

cdef enum:
    READ_STEP = 262144       # bytes asked of the kernel at once
    FIRST_ROOM = 4194304     # bytes reserved at first; doubled when they are full

cdef enum NeedStatus:
    NEED_OK = 0
    NEED_PAST_END = 1        # the file has fewer bytes left
    NEED_OVER_LIMIT = 2      # the file has them, but we keep no more than `limit`
    NEED_LOST = 3            # the file became shorter while it was read, or the read failed
    NEED_NO_MEMORY = 4

cdef struct Window:
    int fd
    uint8_t *data            # owned; moves when it grows, so no pointer into it outlives a window_need
    uint64_t room            # bytes reserved behind data
    uint64_t size            # bytes in the file, from fstat before the first read
    uint64_t limit           # min(size, cap): most bytes ever kept
    uint64_t filled
    uint64_t pos             # next unread byte; pos <= filled <= room <= limit <= size


cdef inline int window_open(Window *window, int fd, uint64_t size, uint64_t cap) noexcept nogil:
    window.fd = fd
    window.size = size
    window.limit = size if size < cap else cap
    window.filled = 0
    window.pos = 0
    window.room = window.limit if window.limit < FIRST_ROOM else FIRST_ROOM
    window.data = <uint8_t *>malloc(window.room if window.room else 1)
    return 0 if window.data != NULL else -1


cdef inline void window_close(Window *window) noexcept nogil:
    free(window.data)
    window.data = NULL
    window.filled = 0
    window.pos = 0


cdef inline int window_fill(Window *window, uint64_t target) noexcept nogil:
    # target <= limit
    cdef uint64_t want
    cdef ssize_t got
    cdef uint8_t *grown
    if target > window.room:
        want = window.room * 2
        if want < target:
            want = target
        if want > window.limit:
            want = window.limit
        grown = <uint8_t *>realloc(window.data, want)
        if grown == NULL:
            return NEED_NO_MEMORY
        window.data = grown
        window.room = want
    while window.filled < target:
        want = window.room - window.filled
        if want > READ_STEP:
            want = READ_STEP
        got = pread(window.fd, window.data + window.filled, want, <off_t>window.filled)
        if got < 0 and errno == EINTR:
            continue
        if got <= 0:
            return NEED_LOST
        window.filled += <uint64_t>got
    return NEED_OK


cdef inline int window_need(Window *window, uint64_t count) noexcept nogil:
    # After NEED_OK, data[pos : pos + count] may be read.
    if count <= window.filled - window.pos:
        return NEED_OK
    if count > window.size - window.pos:
        return NEED_PAST_END
    if count > window.limit - window.pos:
        return NEED_OVER_LIMIT
    return window_fill(window, window.pos + count)


# Unaligned little-endian loads. The caller has bounded `at`; hosts are little-endian (checked at import).
cdef inline uint32_t load_u32(const uint8_t *at) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, at, 4)
    return value


cdef inline int32_t load_i32(const uint8_t *at) noexcept nogil:
    cdef int32_t value
    memcpy(&value, at, 4)
    return value


cdef inline uint64_t load_u64(const uint8_t *at) noexcept nogil:
    cdef uint64_t value
    memcpy(&value, at, 8)
    return value


cdef inline float load_f32(const uint8_t *at) noexcept nogil:
    cdef float value
    memcpy(&value, at, 4)
    return value

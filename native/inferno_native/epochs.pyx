"""Shared epoch counters and login-throttle words, in anonymous shared memory that every process maps.

An identity (an account, a key, a session) hashes to one counter; whoever changes the identity bumps it, and a cache
entry that remembers another value is stale. Two identities may share a counter: that costs one needless look at the
store, never a stale answer. `read` adds the global counter, so that `bump_all` makes every cache entry stale at once.

A throttle word packs a heat (24 bits, in 1/1024 of a failure) and the time of the last failure (40 bits,
milliseconds of the monotonic clock, which all processes of a host share). Updates are compare-and-swap loops: no
lock, so a killed process leaves nothing locked.

Made by the supervisor, attached by front workers through an inherited descriptor. Knows nothing of accounts.
"""

import fcntl
import mmap
import os
import tempfile

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

cdef extern from *:
    """
    #include <stdint.h>
    static inline uint64_t inferno_load(uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline void inferno_store(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
    static inline uint64_t inferno_add(uint64_t *p, uint64_t v) { return __atomic_add_fetch(p, v, __ATOMIC_ACQ_REL); }
    static inline int inferno_swap(uint64_t *p, uint64_t expected, uint64_t v) {
        return __atomic_compare_exchange_n(p, &expected, v, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
    }
    """
    uint64_t inferno_load(uint64_t *p) noexcept nogil
    void inferno_store(uint64_t *p, uint64_t v) noexcept nogil
    uint64_t inferno_add(uint64_t *p, uint64_t v) noexcept nogil
    int inferno_swap(uint64_t *p, uint64_t expected, uint64_t v) noexcept nogil

cdef uint64_t MAGIC = 0x48434F5045464E49  # "INFEPOCH" read as a little-endian number
cdef uint64_t VERSION = 1
cdef uint64_t TIME_BITS = 40
cdef uint64_t TIME_MASK = (1ULL << 40) - 1
cdef uint64_t MAX_HEAT = (1ULL << 24) - 1
HEAT_UNIT = 1024  # one failure


cdef uint64_t _hash(const uint8_t* data, Py_ssize_t size) noexcept nogil:
    # FNV-1a, then the finalizer of MurmurHash3 so that low bits depend on all bytes.
    cdef uint64_t value = 0xCBF29CE484222325ULL
    cdef Py_ssize_t i
    for i in range(size):
        value = (value ^ data[i]) * 0x100000001B3ULL
    value ^= value >> 33
    value *= 0xFF51AFD7ED558CCDULL
    value ^= value >> 33
    return value


@cython.cdivision(True)  # decay_ms is at least 1: add_heat refuses zero
cdef uint64_t _cooled(uint64_t word, uint64_t now_ms, uint64_t decay_ms) noexcept nogil:
    """Return the heat of `word` after the time since its last failure; a clock that stands back cools nothing."""
    cdef uint64_t heat = word >> TIME_BITS
    cdef uint64_t last = word & TIME_MASK
    cdef uint64_t lost
    if now_ms <= last:
        return heat
    lost = (now_ms - last) * 1024 // decay_ms  # below 2^50: no overflow
    return heat - lost if lost < heat else 0


cdef class EpochTable:
    """The table, mapped. Make it with `create` or `attach`."""

    def __init__(self):
        raise TypeError("use EpochTable.create() or EpochTable.attach(fd)")

    @staticmethod
    def create(uint32_t num_epochs=65536, uint32_t num_throttles=65536):
        """Return a new table of zeros; both sizes are powers of two."""
        for size in (num_epochs, num_throttles):
            if size == 0 or size & (size - 1):
                raise ValueError(f"sizes are powers of two, not {size}")
        cdef Py_ssize_t total = (HEADER_WORDS + num_epochs + num_throttles) * 8
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("inferno-epochs", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        else:
            fd, name = tempfile.mkstemp()
            os.unlink(name)
        try:
            os.ftruncate(fd, total)
            if hasattr(fcntl, "F_ADD_SEALS"):  # nobody can shrink it under a reader
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            view = mmap.mmap(fd, total)
            words = memoryview(view).cast("Q")
            words[WORD_VERSION] = VERSION
            words[WORD_NUM_EPOCHS] = num_epochs
            words[WORD_NUM_THROTTLES] = num_throttles
            words[WORD_MAGIC] = MAGIC
            words.release()
            view.close()
            return EpochTable.attach(fd)
        except BaseException:
            os.close(fd)
            raise

    @staticmethod
    def attach(int fd):
        """Map the table behind `fd`, which then belongs to the table. Raises ValueError when it is no such table."""
        cdef EpochTable table = EpochTable.__new__(EpochTable)
        size = os.fstat(fd).st_size
        if size < HEADER_WORDS * 8 or size % 8:
            raise ValueError(f"an identity table of {size} bytes")
        table._map = mmap.mmap(fd, size)
        table._words = memoryview(table._map).cast("Q")
        cdef uint64_t num_epochs = table._words[WORD_NUM_EPOCHS]
        cdef uint64_t num_throttles = table._words[WORD_NUM_THROTTLES]
        if table._words[WORD_MAGIC] != MAGIC or table._words[WORD_VERSION] != VERSION:
            raise ValueError("not an identity table of this version")
        if (
            num_epochs == 0 or num_throttles == 0 or num_epochs & (num_epochs - 1) or num_throttles & (num_throttles - 1)
            or num_epochs > 1 << 32 or num_throttles > 1 << 32
            or (HEADER_WORDS + num_epochs + num_throttles) * 8 != <uint64_t>size
        ):
            raise ValueError(f"an identity table of {size} bytes for {num_epochs} epochs and {num_throttles} throttles")
        table._epoch_mask = num_epochs - 1
        table._throttle_mask = num_throttles - 1
        table._throttle_base = <Py_ssize_t>(HEADER_WORDS + num_epochs)
        table.fd = fd
        return table

    cdef uint64_t* _epoch_of(self, bytes identity) except NULL:
        cdef uint64_t bucket = _hash(<const uint8_t*>PyBytes_AS_STRING(identity), PyBytes_GET_SIZE(identity))
        return &self._words[HEADER_WORDS + <Py_ssize_t>(bucket & self._epoch_mask)]

    cdef uint64_t* _throttle_of(self, uint64_t digest) except NULL:
        return &self._words[self._throttle_base + <Py_ssize_t>(digest & self._throttle_mask)]

    def read(self, bytes identity not None) -> int:
        """Return the identity's epoch: it changes with `bump(identity)` and with `bump_all()`."""
        return inferno_load(self._epoch_of(identity)) + inferno_load(&self._words[WORD_GLOBAL])

    def bump(self, bytes identity not None) -> None:
        """Make every cache entry of `identity` stale, in every process, from now on."""
        inferno_add(self._epoch_of(identity), 1)

    def bump_all(self) -> None:
        """Make every cache entry stale: after a worker died in the middle of a change."""
        inferno_add(&self._words[WORD_GLOBAL], 1)

    def heat(self, uint64_t digest) -> tuple[int, int]:
        """Return (heat after the last failure in 1/1024, time of the last failure in ms); (0, 0): none."""
        cdef uint64_t word = inferno_load(self._throttle_of(digest))
        return word >> TIME_BITS, word & TIME_MASK

    def add_heat(self, uint64_t digest, uint64_t now_ms, uint32_t amount, uint32_t decay_ms) -> int:
        """Record a failure: cool by one unit per `decay_ms`, add `amount`, set the time. Returns the new heat."""
        if decay_ms == 0:
            raise ValueError("decay_ms is at least 1")
        cdef uint64_t* place = self._throttle_of(digest)
        cdef uint64_t word, heat
        now_ms &= TIME_MASK
        while True:
            word = inferno_load(place)
            heat = _cooled(word, now_ms, decay_ms) + amount
            if heat > MAX_HEAT:
                heat = MAX_HEAT
            if inferno_swap(place, word, heat << TIME_BITS | now_ms):
                return heat

    def take_heat(self, uint64_t digest, uint32_t amount) -> int:
        """Take back at most `amount`, without touching the time. Returns the new heat."""
        cdef uint64_t* place = self._throttle_of(digest)
        cdef uint64_t word, heat
        while True:
            word = inferno_load(place)
            heat = word >> TIME_BITS
            heat = heat - amount if heat > amount else 0
            if inferno_swap(place, word, heat << TIME_BITS | (word & TIME_MASK)):
                return heat

    def close(self) -> None:
        """Close the descriptor; the memory stays mapped until the object goes. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

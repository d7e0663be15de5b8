"""Layout of the shared identity table: a header, epoch counters, then throttle words. All fields are 64 bits."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cdef enum:
    HEADER_WORDS = 8  # magic, version, num_epochs, num_throttles, global epoch, three spare
    WORD_MAGIC = 0
    WORD_VERSION = 1
    WORD_NUM_EPOCHS = 2
    WORD_NUM_THROTTLES = 3
    WORD_GLOBAL = 4


cdef class EpochTable:
    cdef object _map              # the mmap object: keeps the memory
    cdef uint64_t[::1] _words     # over _map
    cdef readonly int fd          # owned; close() closes it
    cdef uint64_t _epoch_mask     # num_epochs - 1; a power of two less one
    cdef uint64_t _throttle_mask
    cdef Py_ssize_t _throttle_base

    cdef uint64_t* _epoch_of(self, bytes identity) except NULL
    cdef uint64_t* _throttle_of(self, uint64_t digest) except NULL

"""Contract of the strict JSON gate: limits, verdicts, and the state of one walk."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cdef enum:
    MAX_DEPTH_HARD = 256  # size of the frame stack; the caller's limit is at most this


cdef enum Verdict:
    OK = 0
    SYNTAX = 1  # not JSON, more than one document, or nothing
    ENCODING = 2  # not UTF-8, or a byte order mark
    DUPLICATE = 3  # an object names a member twice
    DEPTH = 4  # nested deeper than allowed
    MEMBERS = 5  # one object has too many members, or all together
    ITEMS = 6  # one array has too many items
    NUMBER = 7  # an integer of too many digits or out of range, or a magnitude of 1e308 and more
    SURROGATE = 8  # a lone surrogate escape
    NUL = 9  # U+0000 in a string or name
    MEMORY = 10


# One open array or object.
cdef struct Frame:
    uint8_t is_object
    uint32_t count  # members or items so far
    uint32_t serial  # unique in the document: the member table's namespace


# A member name that was seen: where it stands (between the quotes), under its object's serial.
cdef struct Member:
    uint64_t hash
    uint32_t serial  # 0: empty entry
    uint32_t start
    uint32_t end


cdef struct Gate:
    const uint8_t* data
    int64_t size
    int64_t position
    int64_t fault  # where the verdict was reached
    uint32_t max_depth
    uint32_t max_members
    uint32_t max_total_members
    uint32_t max_items
    uint64_t seed
    uint32_t num_members
    uint32_t next_serial
    uint32_t mask  # table size - 1
    Member* table
    Frame frames[MAX_DEPTH_HARD]

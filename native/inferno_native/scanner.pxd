"""The scanner: one automaton for all rules, run only around the literals that announce a rule."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

cdef extern from "scanfilter.h" nogil:
    ctypedef struct inferno_anchor:
        int32_t next
    ctypedef struct inferno_scanfilter:
        int32_t head[8192]
        const inferno_anchor *anchors
        int wide
    ctypedef struct inferno_scancursor:
        Py_ssize_t block
    void inferno_scanfilter_clear(inferno_scanfilter *f)
    void inferno_add_window(inferno_scanfilter *f, const uint8_t *p)
    void inferno_set_anchor(inferno_anchor *a, const uint8_t *literal, int size, int at)
    void inferno_add_mark(inferno_scanfilter *f, uint8_t mark, int alone)
    void inferno_add_pair(inferno_scanfilter *f, uint8_t first, uint8_t second)
    uint32_t inferno_head(const uint8_t *p)
    void inferno_scan_begin(const inferno_scanfilter *f, const uint8_t *s, Py_ssize_t n, inferno_scancursor *c)
    Py_ssize_t inferno_scan_next(const inferno_scanfilter *f, const uint8_t *s, Py_ssize_t n, inferno_scancursor *c)

cdef enum:
    MAX_STAGES = 4          # patterns in a rule's sequence
    MAX_STATES = 100000     # deterministic states kept; more and the cache starts anew
    UNKNOWN = 0xFFFFFFFF    # a transition that has not been computed

cdef struct Stage:
    int32_t rule
    int32_t stage       # 0 is the first
    int32_t within      # most bytes between the ends of this stage's match and the last one's
    int32_t final       # the last stage of its rule

cdef struct State:
    int32_t fresh       # byte class of the last byte when patterns may have started with it, -1 when not
    int32_t offset      # of its other positions in the pool
    int32_t count
    int32_t accept      # offset of its patterns in the accept pool
    int32_t num_accept

cdef class Literals:
    """What one skip loop looks for."""
    cdef inferno_scanfilter filter
    cdef inferno_anchor *anchors

cdef class Scanner:
    cdef Literals filter            # of all patterns
    cdef Literals gate              # of one stage of each rule: where none of them matches, no rule does
    cdef uint8_t *is_gate           # (num_patterns,)
    cdef uint8_t byte_class[256]
    # The position automaton, fixed.
    cdef int num_positions, num_classes, num_rules
    cdef uint8_t *takes             # (num_positions, num_classes): whether a position takes a class
    cdef int32_t *follow_from       # (num_positions + 1,) into follow
    cdef int32_t *follow
    cdef int32_t *fresh_from        # (num_classes + 1,) into fresh: positions that start a pattern with that class
    cdef int32_t *fresh
    cdef int32_t *pattern_at        # (num_positions,): the pattern that ends there, -1
    cdef int32_t *stage_from        # (num_patterns + 1,) into stages
    cdef Stage *stages
    cdef Py_ssize_t lookback
    # The deterministic states met so far, growing.
    cdef State *states
    cdef uint32_t *moves            # (states, 2, num_classes): without and with patterns starting
    cdef int32_t *pool
    cdef int32_t *accepts
    cdef uint32_t *table            # open addressing by content
    cdef uint32_t table_size
    cdef int32_t num_states, max_states, pool_used, pool_size, accept_used, accept_size
    cdef int32_t *scratch           # (num_positions,)
    cdef uint32_t *stamp            # (num_positions,)
    cdef uint32_t generation
    cdef readonly Py_ssize_t steps  # bytes looked at by the last scan, in the skip loop and in the automaton

    cdef list _hits(self, const uint8_t *s, Py_ssize_t n)
    cdef Py_ssize_t _scan(self, const inferno_scanfilter *filter, bint gate_only, const uint8_t *s, Py_ssize_t n, int64_t *last, int32_t *counts, int64_t *ends) except? -1
    cdef uint32_t _move(self, uint32_t state, int cls, int starting) except? UNKNOWN
    cdef uint32_t _intern(self, int fresh, int count) except? UNKNOWN
    cdef bint _opens_gate(self, uint32_t state) noexcept
    cdef int _reset(self) except -1
    cdef void _event(self, uint32_t state, int64_t end, int64_t *last, int32_t *counts, int64_t *ends) noexcept

"""Cuts a stream of token bytes into text: whole code points only, nothing of a stop string, not its first letters.

A stop string is met at the first byte that completes one; of several that end there the longest counts. The answer
depends on the bytes alone, never on how tokens split them. A byte sequence that can never become a code point turns
into U+FFFD as `bytes.decode("utf-8", "replace")` would; an unfinished one does so only at the end. Knows nothing of
tokens or requests. Used by the engine's step loop with the GIL held: the work is a few bytes.
"""

from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memmove

MAX_STOPS = 16
MAX_STOP_BYTES = 4096  # 1024 characters of four bytes


cdef class TextStream:
    def __cinit__(self, stops=()):
        cdef bytes stop
        cdef int i
        self._stops = list(stops)
        if len(self._stops) > MAX_STOPS:
            raise ValueError(f"{len(self._stops)} stop strings; at most {MAX_STOPS}")
        if self._stops:
            self._patterns = <StopPattern *> calloc(len(self._stops), sizeof(StopPattern))
            if self._patterns is NULL:
                raise MemoryError
        for i in range(len(self._stops)):
            stop = self._stops[i]
            if not 0 < len(stop) <= MAX_STOP_BYTES:
                raise ValueError(f"a stop string of {len(stop)} bytes; 1 to {MAX_STOP_BYTES} are allowed")
            self._patterns[i].bytes = <const uint8_t *> stop
            self._patterns[i].size = <int32_t> len(stop)
            self._patterns[i].failure = <int32_t *> malloc(len(stop) * sizeof(int32_t))
            if self._patterns[i].failure is NULL:
                raise MemoryError
            _fill_failure(&self._patterns[i])
            self._num_patterns = i + 1

    def __dealloc__(self):
        cdef int i
        if self._patterns is not NULL:
            for i in range(self._num_patterns):
                free(self._patterns[i].failure)
            free(self._patterns)
        free(self._held)

    def push(self, const uint8_t[::1] data not None, bint match_stops=True):
        """Feed bytes and return the text that is certain now. After a stop nothing more comes."""
        self.feed(&data[0] if data.shape[0] else NULL, data.shape[0], match_stops)
        return self.take(False)

    def finish(self):
        """Return what is still held back (nothing after a stop)."""
        return self.take(True)

    cdef int feed(self, const uint8_t *data, Py_ssize_t size, bint match_stops) except -1:
        cdef Py_ssize_t wanted
        cdef uint8_t *larger
        if self.stopped or size == 0:
            return 0
        if size > self._capacity - self._num_held:
            wanted = 2 * (self._num_held + size) + 64
            larger = <uint8_t *> realloc(self._held, wanted)
            if larger is NULL:
                raise MemoryError
            self._held = larger
            self._capacity = wanted
        memcpy(self._held + self._num_held, data, size)
        self._num_held += size
        cdef int64_t end
        if match_stops and self._num_patterns:
            end = _advance(self._patterns, self._num_patterns, data, size)
            if end >= 0:
                self.stopped = True
                self.stop_offset = self.num_received + (end >> 16) - (end & 0xFFFF)
                self._num_held = <Py_ssize_t> (self.stop_offset - self.num_emitted)
                if self._num_held < 0:
                    raise SystemError("a stop string reaches into text that was given out")
        self.num_received += size
        return 0

    cdef str take(self, bint finish):
        cdef Py_ssize_t ready = self._num_held
        cdef int i, longest = 0
        if not (finish or self.stopped):
            for i in range(self._num_patterns):
                if self._patterns[i].matched > longest:
                    longest = self._patterns[i].matched
            ready -= longest
            if ready > 0:
                ready -= _unfinished(self._held, ready)
        if ready <= 0:
            return ""
        text = PyUnicode_DecodeUTF8(<const char *> self._held, ready, "replace")
        self._num_held -= ready
        memmove(self._held, self._held + ready, self._num_held)
        self.num_emitted += ready
        return text


cdef void _fill_failure(StopPattern *pattern) noexcept nogil:
    """failure[i]: length of the longest proper prefix that also ends at i."""
    cdef int32_t i, k = 0
    pattern.failure[0] = 0
    for i in range(1, pattern.size):
        while k > 0 and pattern.bytes[i] != pattern.bytes[k]:
            k = pattern.failure[k - 1]
        if pattern.bytes[i] == pattern.bytes[k]:
            k += 1
        pattern.failure[i] = k


cdef int64_t _advance(StopPattern *patterns, int count, const uint8_t *data, Py_ssize_t size) noexcept nogil:
    """Feed each pattern. Returns -1, or (bytes consumed << 16 | length of the stop that ends there)."""
    cdef Py_ssize_t at
    cdef int i
    cdef int32_t k, longest
    for at in range(size):
        longest = 0
        for i in range(count):
            k = patterns[i].matched
            while k > 0 and patterns[i].bytes[k] != data[at]:
                k = patterns[i].failure[k - 1]
            if patterns[i].bytes[k] == data[at]:
                k += 1
            if k == patterns[i].size:
                if k > longest:
                    longest = k
                k = patterns[i].failure[k - 1]
            patterns[i].matched = k
        if longest:
            return (<int64_t> (at + 1) << 16) | longest
    return -1


cdef Py_ssize_t _unfinished(const uint8_t *data, Py_ssize_t size) noexcept nogil:
    """Return how many last bytes are the start of a code point that more bytes could still complete (0 to 3)."""
    cdef Py_ssize_t back = 1
    cdef uint8_t lead, second
    while back <= 3 and back <= size:
        lead = data[size - back]
        if (lead & 0xC0) == 0x80:
            back += 1
            continue
        if lead < 0xC2 or lead > 0xF4:
            return 0
        if back >= (2 if lead < 0xE0 else 3 if lead < 0xF0 else 4):
            return 0
        if back >= 2:  # Unicode table 3-7: the second byte's range depends on the first
            second = data[size - back + 1]
            if (lead == 0xE0 and second < 0xA0) or (lead == 0xED and second > 0x9F):
                return 0
            if (lead == 0xF0 and second < 0x90) or (lead == 0xF4 and second > 0x8F):
                return 0
        return back
    return 0

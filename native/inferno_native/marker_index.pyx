"""Finds every occurrence of a set of strings in a text, overlapping ones too, and exchanges characters of a text, both
with the GIL released: a long text of one client must not stop the tokens of the others.

Owns a flat trie of code points. Does not know what a marker is: inferno.engine.markers decides that. The work is
bounded by the length of the text times the longest string, whatever a client writes. Runs in the engine's prepare
threads; an index never changes after it was made, so threads share it.
"""

from cpython.unicode cimport PyUnicode_DATA, PyUnicode_FromKindAndData, PyUnicode_KIND
from libc.stdint cimport uint8_t, uint16_t
from libc.stdlib cimport free, malloc, realloc


cdef inline uint32_t _read(int kind, const void *data, Py_ssize_t at) noexcept nogil:
    """Return character `at` of a str's buffer, whose kind is the number of bytes of a character."""
    if kind == 1:
        return (<const uint8_t *> data)[at]
    if kind == 2:
        return (<const uint16_t *> data)[at]
    return (<const uint32_t *> data)[at]


cdef int _push(Hits *hits, Py_ssize_t start, Py_ssize_t end, int32_t marker) noexcept nogil:
    cdef size_t capacity
    cdef Hit *grown
    if hits.size == hits.capacity:
        capacity = hits.capacity * 2 + 16
        grown = <Hit *> realloc(hits.items, capacity * sizeof(Hit))
        if grown is NULL:
            return -1
        hits.items = grown
        hits.capacity = capacity
    hits.items[hits.size].start = start
    hits.items[hits.size].end = end
    hits.items[hits.size].marker = marker
    hits.size += 1
    return 0


cdef class MarkerIndex:
    def __init__(self, texts):
        cdef list children = [{}]
        cdef list ends = [-1]
        cdef Py_ssize_t node, number, num_edges
        if self._nodes is not NULL:
            raise RuntimeError("an index is built once")
        self.max_length = 0
        for number, text in enumerate(texts):
            if not isinstance(text, str) or not text:
                raise ValueError(f"text {number} is not a non-empty string")
            node = 0
            for character in text:
                following = (<dict> children[node]).get(character)
                if following is None:
                    following = len(children)
                    (<dict> children[node])[character] = following
                    children.append({})
                    ends.append(-1)
                node = following
            if ends[node] >= 0:
                raise ValueError(f"text {number} occurs twice")
            ends[node] = number
            self.max_length = max(self.max_length, len(text))
        if len(children) >= 1 << 28:
            raise ValueError("the texts are too many")
        self._num_nodes = len(children)
        num_edges = self._num_nodes - 1
        self._nodes = <Node *> malloc(self._num_nodes * sizeof(Node))
        self._edges = <Edge *> malloc((num_edges + 1) * sizeof(Edge))
        if self._nodes is NULL or self._edges is NULL:
            raise MemoryError
        cdef Py_ssize_t at = 0
        for node in range(self._num_nodes):
            self._nodes[node].first_edge = <int32_t> at
            self._nodes[node].num_edges = <int32_t> len(children[node])
            self._nodes[node].marker = ends[node]
            for character in sorted(children[node]):
                self._edges[at].character = <uint32_t> ord(character)
                self._edges[at].target = (<dict> children[node])[character]
                at += 1
        for at in range(128):
            self._root[at] = (<dict> children[0]).get(chr(at), -1)

    def __dealloc__(self):
        free(self._nodes)
        free(self._edges)

    cdef int _search(self, int kind, const void *data, Py_ssize_t size, Hits *hits) noexcept nogil:
        """Append every occurrence in `size` characters of a str's own buffer; -1: out of memory.

        Every index into _nodes and _edges comes from the constructor, every character index is below `size`.
        """
        cdef Py_ssize_t at, here
        cdef int32_t node
        cdef uint32_t character
        for at in range(size):
            character = _read(kind, data, at)
            if character < 128:
                node = self._root[character]
            else:
                node = self._child(0, character)
            here = at + 1
            while node >= 0:
                if self._nodes[node].marker >= 0 and _push(hits, at, here, self._nodes[node].marker) != 0:
                    return -1
                if here >= size or self._nodes[node].num_edges == 0:
                    break
                node = self._child(node, _read(kind, data, here))
                here += 1
        return 0

    cdef int32_t _child(self, int32_t node, uint32_t character) noexcept nogil:
        cdef int32_t low = self._nodes[node].first_edge
        cdef int32_t high = low + self._nodes[node].num_edges
        cdef int32_t middle
        while low < high:
            middle = low + (high - low) // 2
            if self._edges[middle].character < character:
                low = middle + 1
            else:
                high = middle
        if (low < self._nodes[node].first_edge + self._nodes[node].num_edges
                and self._edges[low].character == character):
            return self._edges[low].target
        return -1

    def find(self, str text not None):
        """Return (start, end, index of the string) of every occurrence, by start, then by length."""
        cdef int kind = PyUnicode_KIND(text)
        cdef const void *data = PyUnicode_DATA(text)
        cdef Py_ssize_t size = len(text)
        cdef Hits hits
        cdef int status
        cdef size_t at
        hits.items = NULL
        hits.size = 0
        hits.capacity = 0
        try:
            with nogil:
                status = self._search(kind, data, size, &hits)
            if status != 0:
                raise MemoryError
            return [(hits.items[at].start, hits.items[at].end, hits.items[at].marker) for at in range(hits.size)]
        finally:
            free(hits.items)


cdef enum:
    _MAX_EXCHANGED = 65536


cdef bint _exchange(int kind, const void *data, Py_ssize_t size, const uint32_t *table, const uint32_t *wanted,
                    const uint32_t *given, Py_ssize_t count, uint32_t *out) noexcept nogil:
    """Write the text with exchanged characters; whether any was. `table` serves the first 128, `wanted` is sorted."""
    cdef Py_ssize_t at, low, high, middle
    cdef uint32_t character, put
    cdef bint changed = False
    for at in range(size):
        character = _read(kind, data, at)
        put = character
        if character < 128:
            put = table[character]
        else:
            low = 0
            high = count
            while low < high:
                middle = low + (high - low) // 2
                if wanted[middle] < character:
                    low = middle + 1
                else:
                    high = middle
            if low < count and wanted[low] == character:
                put = given[low]
        out[at] = put
        changed = changed or put != character
    return changed


def exchange(str text not None, dict characters not None):
    """Return `text` with each character that is a key replaced by its value; as str.translate, without the GIL."""
    cdef Py_ssize_t size = len(text), count = len(characters), at
    cdef uint32_t[128] table
    cdef uint32_t *wanted
    cdef uint32_t *given
    cdef uint32_t *out
    cdef bint changed
    cdef int kind = PyUnicode_KIND(text)
    cdef const void *data = PyUnicode_DATA(text)
    if count == 0 or size == 0:
        return text
    if count > _MAX_EXCHANGED:
        raise ValueError(f"{count} characters to exchange; at most {_MAX_EXCHANGED}")
    wanted = <uint32_t *> malloc(count * sizeof(uint32_t))
    given = <uint32_t *> malloc(count * sizeof(uint32_t))
    out = <uint32_t *> malloc(<size_t> size * sizeof(uint32_t))
    try:
        if wanted is NULL or given is NULL or out is NULL:
            raise MemoryError
        for at in range(128):
            table[at] = <uint32_t> at
        for at, (character, replacement) in enumerate(sorted(characters.items())):
            wanted[at] = <uint32_t> ord(character)
            given[at] = <uint32_t> ord(replacement)
            if wanted[at] < 128:
                table[wanted[at]] = given[at]
        with nogil:
            changed = _exchange(kind, data, size, table, wanted, given, count, out)
        return PyUnicode_FromKindAndData(4, out, size) if changed else text
    finally:
        free(wanted)
        free(given)
        free(out)

"""The scanner: one automaton for all rules, run only around the literals that announce a rule.

The skip loop (scanfilter.h) finds the next announced place. From at most `lookback` bytes before it the automaton reads
each byte once, forward only: patterns start up to the announced place, and behind it the automaton goes on until none
is under way. A rule is a pattern or a sequence of up to four with a largest distance between the ends; of each stage
only the latest end is kept, so a match costs constant time. The whole is linear in the text by construction; `steps`
counts the bytes looked at.

Deterministic states are made when they are first met and kept, so that loading rules is cheap; their number is bounded
and does not grow with the text. For that reason a Scanner keeps the GIL (a megabyte takes about a millisecond).

Two passes at most: the first looks only for the rarest stage of each rule, and where none of those stands the text is
done; else the second looks for all. Each pass looks at a byte at most twice, once in the loop, once in the automaton.

It knows patterns and distances only: categories, scores and actions are inferno.security.screening's. Runs in the
front's workers.
"""

from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.unicode cimport PyUnicode_AsUTF8AndSize, PyUnicode_DATA
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

cdef void *allocate(Py_ssize_t count, Py_ssize_t size) except NULL:
    cdef void *p
    if count < 0 or size <= 0 or count > (<Py_ssize_t>1 << 40) // size:
        raise MemoryError
    p = PyMem_Malloc(max(count * size, 1))
    if p == NULL:
        raise MemoryError
    return p


cdef void *grow(void *old, Py_ssize_t count, Py_ssize_t size) except NULL:
    cdef void *p
    if count < 0 or count > (<Py_ssize_t>1 << 40) // size:
        raise MemoryError
    p = PyMem_Realloc(old, max(count * size, 1))
    if p == NULL:
        raise MemoryError
    return p


cdef class Literals:
    """The literals of some patterns in a skip loop's tables."""

    def __init__(self, marks, portable=False):
        cdef const uint8_t *text
        cdef int count = 0, at
        cdef uint32_t slot
        cdef bytes literal
        if self.anchors != NULL:
            raise TypeError("Literals are built once")
        inferno_scanfilter_clear(&self.filter)
        if portable:
            self.filter.wide = 0
        windows = []
        for mark in sorted(set(marks), key=lambda m: (m.literal, m.at)):
            text = mark.literal
            if not 0 <= mark.at <= len(mark.literal) - mark.size or not 0 <= mark.key < mark.size or len(mark.literal) > 8:
                raise ValueError("a mark's window is outside of its literal")
            if mark.size == 4:
                windows.append((mark.literal, mark.at))
                inferno_add_window(&self.filter, text + <int>mark.at)
            elif mark.size == 1:
                inferno_add_mark(&self.filter, text[<int>mark.at], 1)
            elif mark.size == 2:
                window = mark.literal[mark.at:mark.at + 2]
                inferno_add_mark(&self.filter, window[mark.key], 0)
                for first in {window[0], window[:1].upper()[0]}:
                    for second in {window[1], window[1:].upper()[0]}:
                        inferno_add_pair(&self.filter, <uint8_t>first, <uint8_t>second)
            else:
                raise ValueError("a window has one, two or four bytes")
        self.anchors = <inferno_anchor *>allocate(len(windows), sizeof(inferno_anchor))
        for literal, at in windows:
            text = literal
            slot = inferno_head(text + at)
            inferno_set_anchor(&self.anchors[count], text, <int>len(literal), at)
            self.anchors[count].next = self.filter.head[slot]
            self.filter.head[slot] = count
            count += 1
        self.filter.anchors = self.anchors

    def __dealloc__(self):
        PyMem_Free(self.anchors)


cdef class Scanner:
    """Compiled rules, shared by all requests of a worker."""

    def __init__(self, tables, rules, *, portable=False):
        """`tables` as compile_patterns gives them; `rules` a list of [(pattern numbers, within), ...], a stage each.

        `portable`: without this machine's vector instructions; the result is the same.
        """
        cdef Py_ssize_t k, total
        cdef int p, c
        if self.states != NULL:
            raise TypeError("a Scanner is built once")
        self.num_classes = tables.num_classes
        self.num_positions = len(tables.classes)
        if len(tables.byte_class) != 256 or len(tables.follow) != self.num_positions or len(tables.accept) != self.num_positions:
            raise ValueError("tables do not fit each other")
        self.lookback = tables.lookback
        for k in range(256):
            self.byte_class[k] = tables.byte_class[k]
            if self.byte_class[k] >= self.num_classes:
                raise ValueError("byte class out of range")
        self._set_marks(tables.marks, rules, portable)
        self.takes = <uint8_t *>allocate(self.num_positions * self.num_classes, 1)
        memset(self.takes, 0, self.num_positions * self.num_classes)
        self.pattern_at = <int32_t *>allocate(self.num_positions, sizeof(int32_t))
        self.follow_from = <int32_t *>allocate(self.num_positions + 1, sizeof(int32_t))
        self.follow = <int32_t *>allocate(sum(len(f) for f in tables.follow), sizeof(int32_t))
        self.scratch = <int32_t *>allocate(self.num_positions, sizeof(int32_t))
        self.stamp = <uint32_t *>allocate(self.num_positions, sizeof(uint32_t))
        memset(self.stamp, 0, self.num_positions * sizeof(uint32_t))
        total = 0
        for p in range(self.num_positions):
            for c in tables.classes[p]:
                if not 0 <= c < self.num_classes:
                    raise ValueError("class out of range")
                self.takes[p * self.num_classes + c] = 1
            if not -1 <= tables.accept[p] < tables.num_patterns:
                raise ValueError("pattern out of range")
            self.pattern_at[p] = tables.accept[p]
            self.follow_from[p] = total
            for q in tables.follow[p]:
                if not 0 <= q < self.num_positions:
                    raise ValueError("position out of range")
                self.follow[total] = q
                total += 1
        self.follow_from[self.num_positions] = total
        starting = [[p for p in tables.first if self.takes[<int>p * self.num_classes + c]] for c in range(self.num_classes)]
        self.fresh_from = <int32_t *>allocate(self.num_classes + 1, sizeof(int32_t))
        self.fresh = <int32_t *>allocate(sum(len(f) for f in starting), sizeof(int32_t))
        total = 0
        for c in range(self.num_classes):
            self.fresh_from[c] = total
            for q in starting[c]:
                self.fresh[total] = q
                total += 1
        self.fresh_from[self.num_classes] = total
        self._set_rules(rules, tables.num_patterns)
        self._reset()

    def _set_marks(self, marks, rules, portable):
        """Fills both skip loops; the gate knows of each rule the stage whose literals are rarest."""
        cdef int number
        self.is_gate = <uint8_t *>allocate(len(marks), 1)
        memset(self.is_gate, 0, max(len(marks), 1))
        rate = [sum(10.0 ** (mark.cost / 3) for mark in few) for few in marks]
        for sequence in rules:
            for number in min((patterns for patterns, _ in sequence), key=lambda patterns: sum(rate[n] for n in patterns)):
                self.is_gate[number] = 1
        self.filter = Literals([mark for few in marks for mark in few], portable)
        self.gate = Literals([mark for number, few in enumerate(marks) if self.is_gate[<int>number] for mark in few], portable)

    def _set_rules(self, rules, int num_patterns):
        cdef Py_ssize_t total = 0, k
        self.num_rules = len(rules)
        uses = [[] for _ in range(num_patterns)]
        for rule, sequence in enumerate(rules):
            if not 1 <= len(sequence) <= MAX_STAGES:
                raise ValueError(f"a rule has 1 to {MAX_STAGES} stages, got {len(sequence)}")
            for stage, (patterns, within) in enumerate(sequence):
                for number in patterns:
                    uses[number].append((rule, stage, within, stage + 1 == len(sequence)))
        self.stage_from = <int32_t *>allocate(num_patterns + 1, sizeof(int32_t))
        self.stages = <Stage *>allocate(sum(len(u) for u in uses), sizeof(Stage))
        for k in range(num_patterns):
            self.stage_from[k] = total
            # Later stages first: one match never counts as two.
            for rule, stage, within, final in sorted(uses[k], key=lambda use: -use[1]):
                self.stages[total].rule = rule
                self.stages[total].stage = stage
                self.stages[total].within = within
                self.stages[total].final = final
                total += 1
        self.stage_from[num_patterns] = total

    def __dealloc__(self):
        PyMem_Free(self.takes)
        PyMem_Free(self.follow_from)
        PyMem_Free(self.follow)
        PyMem_Free(self.fresh_from)
        PyMem_Free(self.fresh)
        PyMem_Free(self.pattern_at)
        PyMem_Free(self.stage_from)
        PyMem_Free(self.stages)
        PyMem_Free(self.is_gate)
        PyMem_Free(self.states)
        PyMem_Free(self.moves)
        PyMem_Free(self.pool)
        PyMem_Free(self.accepts)
        PyMem_Free(self.table)
        PyMem_Free(self.scratch)
        PyMem_Free(self.stamp)

    @property
    def state_count(self):
        """Deterministic states met so far."""
        return self.num_states

    def scan(self, const uint8_t[::1] data not None):
        """[(rule number, matches, end of the first match in bytes), ...] for the rules that the text matches."""
        cdef Py_ssize_t n = data.shape[0]
        return self._hits(&data[0] if n else NULL, n)

    def scan_text(self, str text not None):
        """The same for a text, ASCII without copying, others as UTF-8."""
        cdef Py_ssize_t n = 0
        cdef const char *data
        if text.isascii():
            return self._hits(<const uint8_t *>PyUnicode_DATA(text), len(text))
        data = PyUnicode_AsUTF8AndSize(text, &n)
        return self._hits(<const uint8_t *>data, n)

    cdef list _hits(self, const uint8_t *s, Py_ssize_t n):
        cdef int64_t *last = <int64_t *>allocate(self.num_rules * (MAX_STAGES + 2), sizeof(int64_t))
        cdef int64_t *ends = last + self.num_rules * MAX_STAGES
        cdef int32_t *counts = <int32_t *>(ends + self.num_rules)
        cdef int k
        cdef list hits = []
        try:
            memset(last, 0xFF, self.num_rules * (MAX_STAGES + 1) * sizeof(int64_t))
            memset(counts, 0, self.num_rules * sizeof(int32_t))
            self.steps = self._scan(&self.gate.filter, True, s, n, last, counts, ends)
            if self.steps < 0:
                self.steps = -self.steps - 2 + self._scan(&self.filter.filter, False, s, n, last, counts, ends)
            for k in range(self.num_rules):
                if counts[k]:
                    hits.append((k, counts[k], ends[k]))
        finally:
            PyMem_Free(last)
        return hits

    cdef Py_ssize_t _scan(self, const inferno_scanfilter *filter, bint gate_only, const uint8_t *s, Py_ssize_t n, int64_t *last, int32_t *counts, int64_t *ends) except? -1:
        """The bytes looked at; with gate_only their negative as soon as a rule's rarest stage matches."""
        cdef Py_ssize_t pos = 0, steps = 0, announced, following
        cdef uint32_t state, target
        cdef int cls
        cdef Py_ssize_t starting
        cdef uint32_t width = 2 * <uint32_t>self.num_classes
        cdef inferno_scancursor cursor
        # The text begins as if on a new line.
        state = self._move(0, self.byte_class[10], 1)
        inferno_scan_begin(filter, s, n, &cursor)
        announced = inferno_scan_next(filter, s, n, &cursor)
        while announced < n:
            if announced - self.lookback > pos:
                pos = announced - self.lookback
                state = 0
            following = inferno_scan_next(filter, s, n, &cursor)
            steps -= pos
            while pos < n:
                while following < n and following - self.lookback <= pos:
                    announced = following
                    following = inferno_scan_next(filter, s, n, &cursor)
                starting = pos <= announced
                if state == 0 and not starting:
                    break
                cls = self.byte_class[s[pos]]
                target = self.moves[state * width + (<uint32_t>self.num_classes if starting else 0) + <uint32_t>cls]
                if target == UNKNOWN:
                    target = self._move(state, cls, starting)
                state = target
                pos += 1
                if self.states[state].num_accept:
                    if not gate_only:
                        self._event(state, pos, last, counts, ends)
                    elif self._opens_gate(state):
                        return -(steps + pos + 1) - 1
            steps += pos
            announced = following
        if pos >= n:
            # The end of the text is a word boundary and the end of a line.
            state = self._move(state, self.byte_class[10], 0)
            if self.states[state].num_accept:
                if not gate_only:
                    self._event(state, n + 1, last, counts, ends)
                elif self._opens_gate(state):
                    return -(steps + n + 1) - 1
        return steps + n

    cdef bint _opens_gate(self, uint32_t state) noexcept:
        cdef int32_t i
        for i in range(self.states[state].accept, self.states[state].accept + self.states[state].num_accept):
            if self.is_gate[self.accepts[i]]:
                return True
        return False

    cdef int _reset(self) except -1:
        """Forget all deterministic states but the dead one, number 0."""
        if self.states == NULL:
            self.max_states = 1024
            self.states = <State *>allocate(self.max_states, sizeof(State))
            self.moves = <uint32_t *>allocate(self.max_states * 2 * self.num_classes, sizeof(uint32_t))
            self.pool_size = self.accept_size = 4096
            self.pool = <int32_t *>allocate(self.pool_size, sizeof(int32_t))
            self.accepts = <int32_t *>allocate(self.accept_size, sizeof(int32_t))
            self.table_size = 1 << 18
            self.table = <uint32_t *>allocate(self.table_size, sizeof(uint32_t))
        memset(self.table, 0xFF, self.table_size * sizeof(uint32_t))
        self.num_states = self.pool_used = self.accept_used = 0
        self._intern(-1, 0)
        return 0

    cdef uint32_t _move(self, uint32_t state, int cls, int starting) except? UNKNOWN:
        """The state behind a byte of class cls; `starting`: patterns may begin with this byte."""
        cdef uint32_t target, before = state
        cdef int32_t k, j, q, p, count = 0, total
        cdef State *from_ = &self.states[state]
        cdef int fresh_count = 0
        cdef int32_t *more
        self.generation += 1
        if self.generation == 0:
            memset(self.stamp, 0, self.num_positions * sizeof(uint32_t))
            self.generation = 1
        if starting:
            for k in range(self.fresh_from[cls], self.fresh_from[cls + 1]):
                self.stamp[self.fresh[k]] = self.generation
        if from_.fresh >= 0:
            fresh_count = self.fresh_from[from_.fresh + 1] - self.fresh_from[from_.fresh]
            more = self.fresh + self.fresh_from[from_.fresh]
        else:
            more = NULL
        total = fresh_count + from_.count
        for k in range(total):
            p = more[k] if k < fresh_count else self.pool[from_.offset + k - fresh_count]
            for j in range(self.follow_from[p], self.follow_from[p + 1]):
                q = self.follow[j]
                if self.takes[<Py_ssize_t>q * self.num_classes + cls] and self.stamp[q] != self.generation:
                    self.stamp[q] = self.generation
                    self.scratch[count] = q
                    count += 1
        sort_positions(self.scratch, count)
        if self.num_states >= MAX_STATES:
            self._reset()
            before = UNKNOWN
        target = self._intern(cls if starting else -1, count)
        if before != UNKNOWN:
            self.moves[(before * 2 + <uint32_t>(1 if starting else 0)) * <uint32_t>self.num_classes + <uint32_t>cls] = target
        return target

    cdef uint32_t _intern(self, int fresh, int count) except? UNKNOWN:
        """The number of the state with these positions (in scratch, sorted); made when it is new."""
        cdef uint64_t h = <uint64_t>(fresh + 7) * <uint64_t>0x9E3779B97F4A7C15
        cdef uint32_t slot
        cdef int32_t k, number, p, accepted = 0
        cdef State *state
        for k in range(count):
            h = (h ^ <uint64_t>self.scratch[k]) * <uint64_t>0x100000001B3
            h ^= h >> 29
        slot = <uint32_t>(h >> 20) & (self.table_size - 1)
        while self.table[slot] != UNKNOWN:
            state = &self.states[self.table[slot]]
            if state.fresh == fresh and state.count == count and memcmp(self.pool + state.offset, self.scratch, count * sizeof(int32_t)) == 0:
                return self.table[slot]
            slot = (slot + 1) & (self.table_size - 1)
        number = self.num_states
        if number == self.max_states:
            self.states = <State *>grow(self.states, 2 * self.max_states, sizeof(State))
            self.moves = <uint32_t *>grow(self.moves, 4 * <Py_ssize_t>self.max_states * self.num_classes, sizeof(uint32_t))
            self.max_states *= 2
        while count > self.pool_size - self.pool_used:
            self.pool = <int32_t *>grow(self.pool, 2 * <Py_ssize_t>self.pool_size, sizeof(int32_t))
            self.pool_size *= 2
        while self.num_positions > self.accept_size - self.accept_used:
            self.accepts = <int32_t *>grow(self.accepts, 2 * <Py_ssize_t>self.accept_size, sizeof(int32_t))
            self.accept_size *= 2
        state = &self.states[number]
        state.fresh = fresh
        state.offset = self.pool_used
        state.count = count
        state.accept = self.accept_used
        memcpy(self.pool + self.pool_used, self.scratch, count * sizeof(int32_t))
        self.pool_used += count
        if fresh >= 0:
            for k in range(self.fresh_from[fresh], self.fresh_from[fresh + 1]):
                p = self.pattern_at[self.fresh[k]]
                if p >= 0:
                    self.accepts[self.accept_used + accepted] = p
                    accepted += 1
        for k in range(count):
            p = self.pattern_at[self.scratch[k]]
            if p >= 0:
                self.accepts[self.accept_used + accepted] = p
                accepted += 1
        state.num_accept = accepted
        self.accept_used += accepted
        memset(self.moves + 2 * <Py_ssize_t>number * self.num_classes, 0xFF, 2 * self.num_classes * sizeof(uint32_t))
        self.num_states = number + 1
        self.table[slot] = <uint32_t>number
        return <uint32_t>number

    cdef void _event(self, uint32_t state, int64_t end, int64_t *last, int32_t *counts, int64_t *ends) noexcept:
        cdef int32_t i, k, pattern
        cdef Stage *stage
        cdef int64_t *slot
        cdef int64_t before
        for i in range(self.states[state].accept, self.states[state].accept + self.states[state].num_accept):
            pattern = self.accepts[i]
            for k in range(self.stage_from[pattern], self.stage_from[pattern + 1]):
                stage = &self.stages[k]
                slot = last + stage.rule * MAX_STAGES + stage.stage
                if stage.stage > 0:
                    before = (slot - 1)[0]
                    if before < 0 or before >= end or end - before > stage.within:
                        continue
                slot[0] = end
                if stage.final:
                    if counts[stage.rule] < 0x7FFFFFFF:
                        counts[stage.rule] += 1
                    if ends[stage.rule] < 0:
                        ends[stage.rule] = end


cdef void sort_positions(int32_t *values, int32_t count) noexcept nogil:
    """Shell sort: short lists, nearly in order."""
    cdef int32_t gap = 1, i, j, v
    while gap < count // 3:
        gap = 3 * gap + 1
    while gap > 0:
        for i in range(gap, count):
            v = values[i]
            j = i
            while j >= gap and values[j - gap] > v:
                values[j] = values[j - gap]
                j -= gap
            values[j] = v
        gap //= 3

"""The strict JSON gate: one linear pass that decides whether bytes are a JSON document we are willing to decode.

RFC 8259, and stricter: UTF-8 without a byte order mark; no member twice in one object (names compared after escapes);
integers of at most 20 digits between -2^63 and 2^64 - 1; no magnitude of 1e308 or more; paired surrogates only; no
U+0000; bounded depth, members and items; exactly one document. Builds no objects: a decoder comes after it. Reads only
`data[0 .. size)`: every access compares the position with the size first. Used by front workers.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp

import os

from .jsongate cimport (
    DEPTH, DUPLICATE, ENCODING, ITEMS, MAX_DEPTH_HARD, MEMBERS, MEMORY, NUL, NUMBER, OK, SURROGATE, SYNTAX,
    Frame, Gate, Member, Verdict,
)

REASONS = {
    SYNTAX: "syntax", ENCODING: "encoding", DUPLICATE: "duplicate", DEPTH: "depth", MEMBERS: "members",
    ITEMS: "items", NUMBER: "number", SURROGATE: "surrogate", NUL: "nul", MEMORY: "memory",
}
MAX_SIZE = (1 << 31) - 1
cdef uint64_t SEED = int.from_bytes(os.urandom(8), "little")
cdef uint32_t FIRST_TABLE = 256


def check(const uint8_t[::1] data not None, uint32_t max_depth=64, uint32_t max_members=4096,
          uint32_t max_total_members=262144, uint32_t max_items=1048576):
    """Return None for an acceptable document, else (reason, offset): reason is one of REASONS' words."""
    if max_depth > MAX_DEPTH_HARD:
        raise ValueError(f"max_depth is at most {MAX_DEPTH_HARD}, not {max_depth}")
    if max_total_members > 1 << 28:
        raise ValueError(f"max_total_members is at most {1 << 28}, not {max_total_members}")
    if data.shape[0] > MAX_SIZE:
        raise ValueError(f"at most {MAX_SIZE} bytes, not {data.shape[0]}")
    cdef Gate gate
    cdef int verdict
    if data.shape[0] == 0:
        return "syntax", 0
    gate.data = &data[0]
    gate.size = data.shape[0]
    gate.position = 0
    gate.fault = 0
    gate.max_depth = max_depth
    gate.max_members = max_members
    gate.max_total_members = max_total_members
    gate.max_items = max_items
    gate.seed = SEED
    gate.num_members = 0
    gate.next_serial = 1
    gate.mask = 0
    gate.table = NULL
    with nogil:
        verdict = _document(&gate)
    free(gate.table)
    if verdict == MEMORY:
        raise MemoryError
    if verdict != OK:
        return REASONS[verdict], gate.fault
    return None


cdef inline int _at(Gate* gate, int64_t position, Verdict verdict) noexcept nogil:
    gate.fault = position
    return verdict


cdef int _document(Gate* gate) noexcept nogil:
    """Walk values with an explicit stack; `depth` is the number of open frames."""
    cdef uint32_t depth = 0
    cdef int verdict
    cdef uint8_t byte
    cdef Frame* frame
    cdef bint wants_value = True  # else: a comma, or the end of the innermost frame

    if gate.size >= 3 and gate.data[0] == 0xEF and gate.data[1] == 0xBB and gate.data[2] == 0xBF:
        return _at(gate, 0, ENCODING)
    while True:
        _skip_space(gate)
        if not wants_value and depth == 0:
            return OK if gate.position == gate.size else _at(gate, gate.position, SYNTAX)
        if gate.position >= gate.size:
            return _at(gate, gate.position, SYNTAX)
        byte = gate.data[gate.position]
        if not wants_value:
            frame = &gate.frames[depth - 1]
            if byte == c",":
                gate.position += 1
                _skip_space(gate)
                if frame.is_object:
                    verdict = _member_name(gate, frame)
                else:
                    verdict = _next_item(gate, frame)
                if verdict != OK:
                    return verdict
                wants_value = True
            elif byte == (c"}" if frame.is_object else c"]"):
                gate.position += 1
                depth -= 1
            else:
                return _at(gate, gate.position, SYNTAX)
            continue
        if byte == c"{" or byte == c"[":
            if depth >= gate.max_depth:
                return _at(gate, gate.position, DEPTH)
            frame = &gate.frames[depth]
            depth += 1
            frame.is_object = byte == c"{"
            frame.count = 0
            frame.serial = gate.next_serial
            gate.next_serial += 1
            gate.position += 1
            _skip_space(gate)
            if gate.position >= gate.size:
                return _at(gate, gate.position, SYNTAX)
            if gate.data[gate.position] == (c"}" if frame.is_object else c"]"):
                gate.position += 1
                depth -= 1
                wants_value = False
                continue
            verdict = _member_name(gate, frame) if frame.is_object else _next_item(gate, frame)
            if verdict != OK:
                return verdict
            continue
        if byte == c'"':
            gate.position += 1
            verdict = _string(gate, NULL)
        elif byte == c"-" or c"0" <= byte <= c"9":
            verdict = _number(gate)
        elif byte == c"t":
            verdict = _word(gate, b"true", 4)
        elif byte == c"f":
            verdict = _word(gate, b"false", 5)
        elif byte == c"n":
            verdict = _word(gate, b"null", 4)
        else:
            return _at(gate, gate.position, SYNTAX)
        if verdict != OK:
            return verdict
        wants_value = False


cdef inline void _skip_space(Gate* gate) noexcept nogil:
    cdef uint8_t byte
    while gate.position < gate.size:
        byte = gate.data[gate.position]
        if byte != c" " and byte != c"\n" and byte != c"\r" and byte != c"\t":
            return
        gate.position += 1


cdef inline int _next_item(Gate* gate, Frame* frame) noexcept nogil:
    if frame.count >= gate.max_items:
        return _at(gate, gate.position, ITEMS)
    frame.count += 1
    return OK


cdef int _word(Gate* gate, const char* word, int64_t length) noexcept nogil:
    if gate.size - gate.position < length or memcmp(gate.data + gate.position, word, <size_t>length) != 0:
        return _at(gate, gate.position, SYNTAX)
    gate.position += length
    return OK


cdef int _number(Gate* gate) noexcept nogil:
    """RFC 8259 section 6, with the ranges of the module's docstring."""
    cdef int64_t start = gate.position
    cdef int64_t position = start
    cdef bint is_negative = gate.data[position] == c"-"
    cdef int64_t num_digits
    cdef int64_t first
    cdef uint64_t value = 0
    cdef bint is_integer = True
    cdef int64_t exponent = 0
    cdef bint is_exponent_negative = False
    cdef uint8_t digit

    if is_negative:
        position += 1
    first = position
    while position < gate.size and c"0" <= gate.data[position] <= c"9":
        position += 1
    num_digits = position - first
    if num_digits == 0 or (num_digits > 1 and gate.data[first] == c"0"):
        return _at(gate, start, SYNTAX)
    if position < gate.size and gate.data[position] == c".":
        is_integer = False
        position += 1
        if position >= gate.size or not (c"0" <= gate.data[position] <= c"9"):
            return _at(gate, start, SYNTAX)
        while position < gate.size and c"0" <= gate.data[position] <= c"9":
            position += 1
    if position < gate.size and (gate.data[position] == c"e" or gate.data[position] == c"E"):
        is_integer = False
        position += 1
        if position < gate.size and (gate.data[position] == c"+" or gate.data[position] == c"-"):
            is_exponent_negative = gate.data[position] == c"-"
            position += 1
        if position >= gate.size or not (c"0" <= gate.data[position] <= c"9"):
            return _at(gate, start, SYNTAX)
        while position < gate.size and c"0" <= gate.data[position] <= c"9":
            if exponent < 100000:
                exponent = exponent * 10 + (gate.data[position] - c"0")
            position += 1
    gate.position = position
    if num_digits > 20:
        return _at(gate, start, NUMBER)
    if not is_integer:
        # Below 10^num_digits times 10^exponent: finite as a double while this sum stays under 309.
        if not is_exponent_negative and num_digits + exponent > 308:
            return _at(gate, start, NUMBER)
        return OK
    for first in range(first, first + num_digits):
        digit = gate.data[first] - c"0"
        if value > (<uint64_t>0xFFFFFFFFFFFFFFFF - digit) // 10:
            return _at(gate, start, NUMBER)
        value = value * 10 + digit
    if is_negative and value > (<uint64_t>1 << 63):
        return _at(gate, start, NUMBER)
    return OK


cdef inline uint64_t _mix(uint64_t hash, uint32_t code) noexcept nogil:
    """One round of a keyed multiply-xorshift; the seed is this process's secret."""
    hash = (hash ^ code) * <uint64_t>0x9E3779B97F4A7C15
    return hash ^ (hash >> 29)


cdef inline int _hex4(Gate* gate, int64_t position) noexcept nogil:
    """Four hexadecimal digits at `position`, or -1."""
    cdef int value = 0
    cdef int64_t i
    cdef uint8_t byte
    if gate.size - position < 4:
        return -1
    for i in range(position, position + 4):
        byte = gate.data[i]
        if c"0" <= byte <= c"9":
            value = value * 16 + (byte - c"0")
        elif c"a" <= byte <= c"f":
            value = value * 16 + (byte - c"a" + 10)
        elif c"A" <= byte <= c"F":
            value = value * 16 + (byte - c"A" + 10)
        else:
            return -1
    return value


cdef inline int64_t _plain_end(Gate* gate, int64_t position) noexcept nogil:
    """The first position that holds a quote, a backslash, a control or a byte above ASCII: eight bytes a step."""
    cdef uint64_t word, low, quotes, slashes
    cdef uint64_t ones = <uint64_t>0x0101010101010101
    cdef uint64_t highs = <uint64_t>0x8080808080808080
    cdef const uint8_t* data = gate.data
    cdef uint8_t byte
    while gate.size - position >= 8:
        word = (
            <uint64_t>data[position] | (<uint64_t>data[position + 1] << 8) | (<uint64_t>data[position + 2] << 16)
            | (<uint64_t>data[position + 3] << 24) | (<uint64_t>data[position + 4] << 32)
            | (<uint64_t>data[position + 5] << 40) | (<uint64_t>data[position + 6] << 48)
            | (<uint64_t>data[position + 7] << 56)
        )
        quotes = word ^ (ones * 0x22)
        slashes = word ^ (ones * 0x5C)
        low = (word - ones * 0x20) & ~word  # a byte below 0x20 (or a borrow: then the slow loop looks again)
        if ((word | low | ((quotes - ones) & ~quotes) | ((slashes - ones) & ~slashes)) & highs) != 0:
            break
        position += 8
    while position < gate.size:
        byte = data[position]
        if byte < 0x20 or byte == c'"' or byte == c"\\" or byte >= 0x80:
            break
        position += 1
    return position


cdef int _string(Gate* gate, uint64_t* hash) noexcept nogil:
    """Walk a string from behind its opening quote to behind its closing one; with `hash`, hash its code points."""
    cdef int64_t position = gate.position
    cdef int64_t end
    cdef uint8_t byte
    cdef uint32_t code
    cdef int unit, low
    cdef uint64_t state = gate.seed
    while True:
        end = _plain_end(gate, position)
        if hash != NULL:
            while position < end:
                state = _mix(state, gate.data[position])
                position += 1
        position = end
        if position >= gate.size:
            return _at(gate, position, SYNTAX)
        byte = gate.data[position]
        if byte == c'"':
            gate.position = position + 1
            if hash != NULL:
                hash[0] = state
            return OK
        if byte < 0x20:
            return _at(gate, position, SYNTAX)
        if byte == c"\\":
            if gate.size - position < 2:
                return _at(gate, position, SYNTAX)
            byte = gate.data[position + 1]
            if byte == c"u":
                unit = _hex4(gate, position + 2)
                if unit < 0:
                    return _at(gate, position, SYNTAX)
                if unit == 0:
                    return _at(gate, position, NUL)
                if 0xDC00 <= unit <= 0xDFFF:
                    return _at(gate, position, SURROGATE)
                code = <uint32_t>unit
                end = position + 6
                if 0xD800 <= unit <= 0xDBFF:
                    if gate.size - end < 2 or gate.data[end] != c"\\" or gate.data[end + 1] != c"u":
                        return _at(gate, position, SURROGATE)
                    low = _hex4(gate, end + 2)
                    if not (0xDC00 <= low <= 0xDFFF):
                        return _at(gate, position, SURROGATE)
                    code = 0x10000 + ((<uint32_t>unit - 0xD800) << 10) + (<uint32_t>low - 0xDC00)
                    end += 6
                position = end
            else:
                if byte == c"n":
                    code = 10
                elif byte == c"t":
                    code = 9
                elif byte == c"r":
                    code = 13
                elif byte == c"b":
                    code = 8
                elif byte == c"f":
                    code = 12
                elif byte == c'"' or byte == c"\\" or byte == c"/":
                    code = byte
                else:
                    return _at(gate, position, SYNTAX)
                position += 2
        else:
            end = _code_point(gate, position, &code)
            if end < 0:
                return _at(gate, position, ENCODING)
            position = end
        if hash != NULL:
            state = _mix(state, code)


cdef int64_t _code_point(Gate* gate, int64_t position, uint32_t* code) noexcept nogil:
    """Decode one multi-byte UTF-8 sequence (Unicode 15, table 3-7); the position behind it, or -1."""
    cdef const uint8_t* data = gate.data
    cdef uint8_t first = data[position]
    cdef int64_t length, i
    cdef uint32_t value
    cdef uint8_t second
    if 0xC2 <= first <= 0xDF:
        length = 2
        value = first & 0x1F
    elif 0xE0 <= first <= 0xEF:
        length = 3
        value = first & 0x0F
    elif 0xF0 <= first <= 0xF4:
        length = 4
        value = first & 0x07
    else:
        return -1
    if gate.size - position < length:
        return -1
    second = data[position + 1]
    if first == 0xE0 and second < 0xA0:
        return -1
    if first == 0xED and second > 0x9F:
        return -1
    if first == 0xF0 and second < 0x90:
        return -1
    if first == 0xF4 and second > 0x8F:
        return -1
    for i in range(position + 1, position + length):
        if data[i] & 0xC0 != 0x80:
            return -1
        value = (value << 6) | (data[i] & 0x3F)
    code[0] = value
    return position + length


cdef int _member_name(Gate* gate, Frame* frame) noexcept nogil:
    """Walk a member's name and its colon, and refuse a name that this object has already."""
    cdef int64_t start
    cdef uint64_t hash
    cdef int verdict
    if gate.position >= gate.size or gate.data[gate.position] != c'"':
        return _at(gate, gate.position, SYNTAX)
    start = gate.position + 1
    gate.position = start
    verdict = _string(gate, &hash)
    if verdict != OK:
        return verdict
    if frame.count >= gate.max_members or gate.num_members >= gate.max_total_members:
        return _at(gate, start, MEMBERS)
    frame.count += 1
    verdict = _remember(gate, frame.serial, hash, start, gate.position - 1)
    if verdict != OK:
        return verdict
    _skip_space(gate)
    if gate.position >= gate.size or gate.data[gate.position] != c":":
        return _at(gate, gate.position, SYNTAX)
    gate.position += 1
    return OK


cdef int _remember(Gate* gate, uint32_t serial, uint64_t hash, int64_t start, int64_t end) noexcept nogil:
    """Put a name into the open-addressing table, at most half full."""
    cdef uint32_t index
    cdef Member* member
    cdef uint64_t key = (hash ^ serial) * <uint64_t>0xD6E8FEB86659FD93
    key ^= key >> 32
    if gate.table == NULL or gate.num_members >= (gate.mask >> 1):
        if _grow(gate) != OK:
            return MEMORY
    index = <uint32_t>(key & gate.mask)
    while gate.table[index].serial != 0:
        member = &gate.table[index]
        if member.hash == key and member.serial == serial and _same_name(gate, member.start, member.end, start, end):
            return _at(gate, start, DUPLICATE)
        index = (index + 1) & gate.mask
    member = &gate.table[index]
    member.hash = key
    member.serial = serial
    member.start = <uint32_t>start  # sizes are below 2^31
    member.end = <uint32_t>end
    gate.num_members += 1
    return OK


cdef int _grow(Gate* gate) noexcept nogil:
    """Double the table. Its size stays below 2^30: max_total_members is at most 2^28."""
    cdef uint32_t size = FIRST_TABLE if gate.table == NULL else (gate.mask + 1) * 2
    cdef Member* table = <Member*>calloc(size, sizeof(Member))
    cdef uint32_t i, index
    if table == NULL:
        return MEMORY
    if gate.table != NULL:
        for i in range(gate.mask + 1):
            if gate.table[i].serial != 0:
                index = <uint32_t>(gate.table[i].hash & (size - 1))
                while table[index].serial != 0:
                    index = (index + 1) & (size - 1)
                table[index] = gate.table[i]
        free(gate.table)
    gate.table = table
    gate.mask = size - 1
    return OK


cdef bint _same_name(Gate* gate, int64_t a, int64_t a_end, int64_t b, int64_t b_end) noexcept nogil:
    """Compare two names that were walked already, escapes decoded."""
    cdef uint32_t code_a = 0
    cdef uint32_t code_b = 0
    while a < a_end and b < b_end:
        a = _decoded(gate, a, &code_a)
        b = _decoded(gate, b, &code_b)
        if code_a != code_b:
            return False
    return a >= a_end and b >= b_end


cdef int64_t _decoded(Gate* gate, int64_t position, uint32_t* code) noexcept nogil:
    """One code point of a string that is known to be well formed; the position behind it."""
    cdef uint8_t byte = gate.data[position]
    cdef int64_t end
    cdef int unit
    if byte < 0x80 and byte != c"\\":
        code[0] = byte
        return position + 1
    if byte != c"\\":
        end = _code_point(gate, position, code)
        return end if end > 0 else gate.size
    byte = gate.data[position + 1]
    if byte == c"u":
        unit = _hex4(gate, position + 2)
        code[0] = <uint32_t>unit
        if 0xD800 <= unit <= 0xDBFF:
            code[0] = 0x10000 + ((<uint32_t>unit - 0xD800) << 10) + (<uint32_t>_hex4(gate, position + 8) - 0xDC00)
            return position + 12
        return position + 6
    if byte == c"n":
        code[0] = 10
    elif byte == c"t":
        code[0] = 9
    elif byte == c"r":
        code[0] = 13
    elif byte == c"b":
        code[0] = 8
    elif byte == c"f":
        code[0] = 12
    else:
        code[0] = byte
    return position + 2

"""The critical section: finding a key's entry, planning a charge, writing it so that a crash leaves all or nothing.

Pure functions on the shared memory that bucket_layout.pxd describes, called with the lock held; no Python, no errors
but a status. buckets.pyx compiles them in; nothing else does.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from .bucket_layout cimport (
    INFERNO_COMPILER_BARRIER, INFERNO_POINT, MAX_PARTS, STATUS_ADMITTED, STATUS_REFUSED, STATUS_TOO_LARGE, WAYS,
    Charge, Entry, EntrySet, Family, Header, Hold, Journal, Undo,
)
from .bucket_math cimport NO_LIMIT, decayed, round_up


# --- finding an entry ---------------------------------------------------------------------------------------------------

cdef inline EntrySet* _set_of(Header* header, const Family* family, uint64_t half) noexcept nogil:
    # The upper half of the word scaled to the number of sets; num_sets < 2^32, so this cannot overflow.
    cdef uint64_t index = ((half >> 32) * family.num_sets) >> 32
    return <EntrySet*>(<uint8_t*>header + family.offset) + index


cdef inline int _way_of(const EntrySet* entries, uint64_t tag, uint64_t check) noexcept nogil:
    cdef int way
    for way in range(WAYS):
        if entries.tag[way] == tag and entries.entry[way].check == check:
            return way
    return -1


cdef inline bint find_entry(Header* header, const Family* family, Charge* charge) noexcept nogil:
    cdef EntrySet* entries = _set_of(header, family, charge.tag)
    cdef int way = _way_of(entries, charge.tag, charge.check)
    if way < 0:
        entries = _set_of(header, family, charge.check)
        way = _way_of(entries, charge.tag, charge.check)
    if way < 0:
        return False
    charge.tag_at = &entries.tag[way]
    charge.entry_at = &entries.entry[way]
    return True


cdef inline bint _is_full(const Entry* entry, const Family* family, uint64_t now) noexcept nogil:
    """Whether forgetting this bucket forgets nothing."""
    cdef uint64_t elapsed = now - entry.updated_us if now > entry.updated_us else 0
    cdef uint32_t window
    cdef uint64_t used
    for window in range(family.num_windows):
        used = entry.used[window]
        if not family.counting and used:
            used = decayed(used, elapsed, entry.quota[window], family.window_us[window])
        if used:
            return False
    return True


cdef inline int _usable_way(const EntrySet* entries, const Family* family, uint64_t now, int* num_usable) noexcept nogil:
    """A free place of a set, else that of a full bucket, else -1; and how many of both kinds there are."""
    cdef int way, free_way = -1, full_way = -1
    num_usable[0] = 0
    for way in range(WAYS):
        if entries.tag[way] == 0:
            num_usable[0] += 1
            free_way = way
        elif _is_full(&entries.entry[way], family, now):
            num_usable[0] += 1
            full_way = way
    return free_way if free_way >= 0 else full_way


cdef inline void _place(Header* header, const Family* family, Charge* charge, uint64_t now) noexcept nogil:
    """Find a place for a new key in the emptier of its two sets; if neither has one, the overflow entry."""
    cdef EntrySet* entries = _set_of(header, family, charge.tag)
    cdef EntrySet* others = _set_of(header, family, charge.check)
    cdef int num_usable, num_others
    cdef int way = _usable_way(entries, family, now, &num_usable)
    cdef int other_way = _usable_way(others, family, now, &num_others)
    if num_others > num_usable:
        entries, way = others, other_way
    if way < 0:
        charge.tag_at = NULL
        charge.entry_at = &header.family[charge.family].overflow
        charge.next = charge.entry_at[0]
        return
    charge.tag_at = &entries.tag[way]
    charge.entry_at = &entries.entry[way]
    memset(&charge.next, 0, sizeof(Entry))
    charge.next.check = charge.check
    charge.next.updated_us = now


# --- charging -----------------------------------------------------------------------------------------------------------

cdef inline int plan_charge(Header* header, const Family* family, Charge* charge, uint32_t cost, uint64_t now) noexcept nogil:
    """Bring charge.next up to now and tell whether the cost fits; charge.next is not charged yet."""
    cdef Entry* entry = &charge.next
    cdef uint64_t elapsed, used, capacity, needed
    cdef uint32_t window, quota
    cdef int status = STATUS_ADMITTED
    if find_entry(header, family, charge):
        charge.next = charge.entry_at[0]
    else:
        _place(header, family, charge, now)
    elapsed = 0
    if now > entry.updated_us:      # another process may have read its clock later and come first
        elapsed = now - entry.updated_us
        entry.updated_us = now
    for window in range(family.num_windows):
        quota = charge.quota[window]
        entry.quota[window] = quota
        charge.wait_us[window] = 0
        if quota == NO_LIMIT:
            entry.used[window] = 0
            continue
        capacity = quota * family.window_us[window]
        used = entry.used[window]
        if not family.counting:
            if used > capacity:     # the quota was lowered: nobody owes more than one full bucket
                used = capacity
            used = decayed(used, elapsed, quota, family.window_us[window])
            entry.used[window] = used
        if cost > quota:
            status = STATUS_TOO_LARGE
            continue
        needed = cost * family.window_us[window]
        if used > capacity - needed:
            if status == STATUS_ADMITTED:
                status = STATUS_REFUSED
            if not family.counting:
                charge.wait_us[window] = round_up(used - (capacity - needed), quota)
    return status


cdef inline void apply_charge(const Family* family, Charge* charge, uint32_t cost) noexcept nogil:
    cdef uint32_t window
    for window in range(family.num_windows):
        if charge.quota[window] != NO_LIMIT:
            charge.next.used[window] += cost * family.window_us[window]


cdef inline void give_back(const Family* family, Entry* entry, uint32_t cost, uint32_t spent, uint64_t now) noexcept nogil:
    """Correct a charge of `cost` to `spent`; more than the charge fills the bucket up to its quota at most."""
    cdef uint64_t elapsed = now - entry.updated_us if now > entry.updated_us else 0
    cdef uint64_t used, change, capacity
    cdef uint32_t window, extra
    entry.updated_us += elapsed
    for window in range(family.num_windows):
        if entry.quota[window] == NO_LIMIT:
            continue
        used = entry.used[window]
        if not family.counting:
            used = decayed(used, elapsed, entry.quota[window], family.window_us[window])
        if spent <= cost:
            change = (cost - spent) * family.window_us[window]
            used = used - change if used > change else 0
        else:
            capacity = entry.quota[window] * family.window_us[window]
            extra = spent - cost
            if extra > entry.quota[window]:
                extra = entry.quota[window]
            used += extra * family.window_us[window]
            if used > capacity:
                used = capacity
        entry.used[window] = used


# --- the journal --------------------------------------------------------------------------------------------------------

cdef inline void commit(Header* header, Charge* charges, int num_charges, Hold* hold, uint32_t hold_state) noexcept nogil:
    """Write all planned entries, and the hold's new state, so that a crash anywhere leaves all or nothing."""
    cdef Journal* journal = &header.journal
    cdef Undo* undo
    cdef int i
    INFERNO_POINT(1)
    for i in range(num_charges):
        undo = &journal.undo[i]
        undo.tag_offset = 0
        if charges[i].tag_at != NULL:
            undo.tag_offset = <uint8_t*>charges[i].tag_at - <uint8_t*>header
            undo.tag = charges[i].tag_at[0]
        undo.entry_offset = <uint8_t*>charges[i].entry_at - <uint8_t*>header
        undo.entry = charges[i].entry_at[0]
    journal.num_undos = num_charges
    journal.hold_offset = 0
    if hold != NULL:
        journal.hold_offset = <uint8_t*>hold - <uint8_t*>header
        journal.hold_state = hold.state
    INFERNO_COMPILER_BARRIER()
    journal.armed = 1
    INFERNO_COMPILER_BARRIER()
    INFERNO_POINT(2)
    for i in range(num_charges):
        if charges[i].tag_at != NULL:
            charges[i].tag_at[0] = charges[i].tag
        INFERNO_POINT(3)
        charges[i].entry_at[0] = charges[i].next
        INFERNO_POINT(4)
    if hold != NULL:
        hold.state = hold_state
    INFERNO_COMPILER_BARRIER()
    INFERNO_POINT(5)
    journal.armed = 0
    INFERNO_COMPILER_BARRIER()
    INFERNO_POINT(6)


cdef inline void recover(Header* header, uint64_t total_bytes) noexcept nogil:
    """Undo what a dead owner of the lock had begun. Dying in here is harmless: the next owner undoes it again."""
    cdef Journal* journal = &header.journal
    cdef Undo* undo
    cdef uint32_t i
    if journal.armed:
        for i in range(<uint32_t>MAX_PARTS):
            if i >= journal.num_undos:
                break
            undo = &journal.undo[i]
            if undo.entry_offset <= total_bytes - sizeof(Entry):
                (<Entry*>(<uint8_t*>header + undo.entry_offset))[0] = undo.entry
            if undo.tag_offset and undo.tag_offset <= total_bytes - sizeof(uint64_t):
                (<uint64_t*>(<uint8_t*>header + undo.tag_offset))[0] = undo.tag
        if journal.hold_offset and journal.hold_offset <= total_bytes - sizeof(Hold):
            (<Hold*>(<uint8_t*>header + journal.hold_offset)).state = journal.hold_state
        INFERNO_COMPILER_BARRIER()
        journal.armed = 0
    header.num_recoveries += 1

"""Token buckets and holds in anonymous shared memory, exact for all processes of the server together.

Owns the table: one mapping made by the supervisor and inherited by every front worker. A *family* is a set of buckets
with the same windows (say a minute and an hour). `check` and `take` charge all windows of all their keys or none, in one
short critical section. A *hold* is a charge that is settled once, later: a reservation of model tokens, a concurrency
slot. Holds belong to an owner (worker slot and generation), so that the supervisor can settle those of a dead worker.

A killed worker cannot leave the lock taken (shared_lock.h), and what it was about to change is undone from the journal:
a charge has either happened wholly or not at all. What a kill can cost is the permits of the one request that was being
charged; it never makes permits.

Does not know: what a key or family means, whose limits these are, HTTP. Quotas come with each call, so that new limits
apply to buckets as they are. The GIL is kept, except to wait for a busy lock: a charge takes less than a GIL switch.
"""

import fcntl
import os
import secrets

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap

from .bucket_core cimport apply_charge, commit, find_entry, give_back, plan_charge, recover
from .bucket_layout cimport (
    HOLD_FREE, HOLD_HELD, INFERNO_DEBUG_BUILD, INFERNO_LOCK_BUSY, INFERNO_LOCK_RECOVERED, INFERNO_LOCK_TAKEN,
    LAYOUT_VERSION, MAX_FAMILIES, MAX_HOLDS_PER_OWNER, MAX_OWNERS, MAX_PARTS, MAX_WINDOWS, STATUS_ADMITTED, STATUS_BUSY,
    STATUS_LOCK_FAILED, STATUS_NO_HOLD, STATUS_REFUSED, STATUS_STALE_OWNER, STATUS_TOO_LARGE, WAYS,
    Charge, EntrySet, Family, Header, Hold,
    inferno_lock, inferno_lock_init, inferno_lock_release, inferno_lock_try, inferno_lock_wait, inferno_monotonic_us,
    inferno_stop_point,
)
from .bucket_math cimport MAX_QUOTA as _MAX_QUOTA
from .bucket_math cimport NO_LIMIT, round_up
from .siphash cimport siphash_128

from . import NativeError

ADMITTED = STATUS_ADMITTED
REFUSED = STATUS_REFUSED
TOO_LARGE = STATUS_TOO_LARGE
NO_HOLD = STATUS_NO_HOLD
MAX_QUOTA = _MAX_QUOTA
DEBUG_BUILD = bool(INFERNO_DEBUG_BUILD)

cdef const char* MAGIC = b"INFBUCKT"
cdef long LOCK_WAIT_MS = 2000
cdef uint32_t MAX_ENTRIES = 1 << 24
# Places per promised entry: with eight places in each of two sets a key practically never finds both taken below this.
cdef double PLACES_PER_ENTRY = 1.6


class BucketsError(NativeError):
    """The table cannot be used: foreign layout, released owner, broken lock."""


class BucketsBusy(BucketsError):
    """Another process holds the lock and neither works nor dies (it is stopped)."""


# --- Python's side ------------------------------------------------------------------------------------------------------

@cython.final
@cython.freelist(16)
cdef class Outcome:
    """What became of one check or take; `states` is computed when asked for."""

    def __init__(self):
        raise TypeError("made by BucketTable only")

    @property
    def allowed(self):
        return self.status == STATUS_ADMITTED

    @property
    def states(self):
        """Per limited window: (part, window, quota, remaining permits, us until full, us until the cost would fit)."""
        cdef int part, window
        cdef uint64_t used, window_us, capacity
        cdef uint32_t quota
        result = []
        for part in range(self.num_parts):
            for window in range(self.num_windows[part]):
                quota = self.quota[part][window]
                if quota == NO_LIMIT:
                    continue
                used, window_us = self.used[part][window], self.window_us[part][window]
                capacity = quota * window_us
                result.append((part, window, quota,
                               (capacity - used) // window_us if capacity > used else 0,
                               round_up(used, quota), self.wait_us[part][window]))
        return tuple(result)


cdef Outcome _outcome(Header* shape, Charge* charges, int num_charges, int status, uint64_t hold_id):
    cdef Outcome outcome = Outcome.__new__(Outcome)
    cdef uint32_t window
    cdef int part
    if status == STATUS_BUSY:
        raise BucketsBusy(f"the lock of the bucket table did not come free within {LOCK_WAIT_MS} ms")
    if status == STATUS_LOCK_FAILED:
        raise BucketsError("the lock of the bucket table is broken")
    if status == STATUS_STALE_OWNER:
        raise BucketsError("this owner of holds was released by the supervisor")
    outcome.status = status
    outcome.hold = hold_id
    outcome.num_parts = num_charges
    for part in range(num_charges):
        outcome.num_windows[part] = charges[part].num_windows
        if charges[part].tag_at == NULL:
            outcome.overflowed = True
        for window in range(charges[part].num_windows):
            outcome.quota[part][window] = charges[part].quota[window]
            outcome.used[part][window] = charges[part].next.used[window]
            outcome.wait_us[part][window] = charges[part].wait_us[window]
            outcome.window_us[part][window] = shape.family[charges[part].family].window_us[window]
    return outcome


@cython.final
cdef class BucketTable:
    """One mapping of the shared table. Made by `create` (the supervisor) or `attach` (a worker)."""

    def __cinit__(self):
        self.header = NULL
        self.free_holds = NULL
        self.owner = -1
        self._fd = None

    def __init__(self):
        raise TypeError("use BucketTable.create or BucketTable.attach")

    def __dealloc__(self):
        if self.header != NULL:
            munmap(self.header, self.size_bytes)
        free(self.free_holds)

    @staticmethod
    def create(families, *, int num_owners=1, int holds_per_owner=4096, bint manual_clock=False, bytes seed=None):
        """Make a table; `families` is a sequence of (num_entries, windows_us, counting), its indexes name them.

        All buckets start full. `seed` (16 bytes) keys the digests, random by default. With `manual_clock` time stands
        still until `set_now_us`, in every process.
        """
        cdef Header shape
        cdef uint64_t offset
        cdef BucketTable table
        if seed is None:
            seed = secrets.token_bytes(16)
        if len(seed) != 16:
            raise ValueError(f"seed: expected 16 bytes, got {len(seed)}")
        if not 1 <= len(families) <= MAX_FAMILIES:
            raise ValueError(f"families: expected 1 to {MAX_FAMILIES}, got {len(families)}")
        if not 1 <= num_owners <= MAX_OWNERS:
            raise ValueError(f"num_owners: expected 1 to {MAX_OWNERS}, got {num_owners}")
        if not 1 <= holds_per_owner <= MAX_HOLDS_PER_OWNER:
            raise ValueError(f"holds_per_owner: expected 1 to {MAX_HOLDS_PER_OWNER}, got {holds_per_owner}")
        memset(&shape, 0, sizeof(Header))
        memcpy(shape.magic, MAGIC, 8)
        shape.version = LAYOUT_VERSION
        shape.header_bytes = sizeof(Header)
        shape.lock_bytes = sizeof(inferno_lock)
        shape.set_bytes = sizeof(EntrySet)
        shape.hold_bytes = sizeof(Hold)
        shape.num_families = <uint32_t>len(families)
        shape.num_owners = <uint32_t>num_owners
        shape.holds_per_owner = <uint32_t>holds_per_owner
        shape.manual_clock = manual_clock
        shape.manual_now_us = 1
        memcpy(shape.seed, PyBytes_AS_STRING(seed), 16)
        offset = _page(sizeof(Header))
        for index, family in enumerate(families):
            _describe(&shape.family[<uint32_t>index], family, offset)
            offset = _page(offset + shape.family[<uint32_t>index].num_sets * sizeof(EntrySet))
        shape.holds_offset = offset
        shape.total_bytes = _page(offset + <uint64_t>num_owners * <uint64_t>holds_per_owner * sizeof(Hold))
        fd = _anonymous_fd(shape.total_bytes)
        try:
            table = _map(fd, shape.total_bytes)
            memcpy(table.header, &shape, sizeof(Header))
            if inferno_lock_init(&table.header.lock) != INFERNO_LOCK_TAKEN:
                raise BucketsError("a process-shared robust lock is not to be had on this system")
        except BaseException:
            os.close(fd)
            raise
        memcpy(&table.shape, &shape, sizeof(Header))
        table._fd = fd
        return table

    @staticmethod
    def attach(int fd):
        """Map a table that another process made; the descriptor stays the caller's and may be closed."""
        cdef uint64_t size = os.fstat(fd).st_size
        cdef BucketTable table
        if size < sizeof(Header):
            raise BucketsError(f"no bucket table: {size} bytes, expected at least {sizeof(Header)}")
        table = _map(fd, size)
        memcpy(&table.shape, table.header, sizeof(Header))
        _check_layout(&table.shape, size)
        return table

    @property
    def fd(self):
        """The descriptor to hand to workers (pass_fds); the creator's only."""
        if self._fd is None:
            raise ValueError("only the table's creator has its descriptor")
        return self._fd

    def close(self):
        """Unmap the table and close the creator's descriptor; holds of this process stay for the supervisor to settle."""
        if self.header != NULL:
            munmap(self.header, self.size_bytes)
            self.header = NULL
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    # --- charging

    def check(self, unsigned int family, bytes key not None, tuple quotas not None, uint32_t cost=1):
        """Charge `cost` permits to one key in every window of its family, or nothing.

        `quotas` has one number of permits per window of the family, None where that window has no limit for this key.
        `cost` 0 looks without charging. Keys are bytes, not a buffer: acquiring one would cost more than the charge.
        """
        cdef Charge charge
        cdef int status
        self._read(&charge, family, key, quotas)
        status = self._take(&charge, 1, cost, -1, NULL)
        return _outcome(&self.shape, &charge, 1, status, 0)

    def take(self, tuple parts not None, uint32_t cost=1):
        """Charge `cost` to several (family, key, quotas), of different families, or to none of them."""
        return self._take_parts(parts, cost, -1)

    def hold(self, tuple parts not None, uint32_t cost, uint32_t spent=0):
        """Like take, but open until `settle`; `spent` is what stays charged if this process dies before.

        The outcome's `hold` is the number to settle by. Status NO_HOLD: this owner has as many open as it may have.
        """
        if self.owner < 0:
            raise BucketsError("no owner: call bind first")
        if cost < 1:
            raise ValueError("a hold costs at least one permit")
        return self._take_parts(parts, cost, spent)

    def settle(self, unsigned long long hold_id, uint32_t spent):
        """Correct a hold's charge to what was really spent; True for the one call that did it, False ever after."""
        cdef Hold* hold = self._hold_at(hold_id)
        cdef int status
        if hold == NULL or hold.state != HOLD_HELD or hold.sequence != hold_id >> 24:
            return False
        status = self._lock()
        if status != INFERNO_LOCK_TAKEN:
            raise BucketsBusy("a hold could not be settled: the lock did not come free")
        # Read again: the supervisor may have settled for us meanwhile.
        if hold.state != HOLD_HELD or hold.sequence != hold_id >> 24:
            inferno_lock_release(&self.header.lock)
            return False
        self._settle(hold, spent)
        if self._owns(hold_id) and self.num_free_holds < self.shape.holds_per_owner:
            self.free_holds[self.num_free_holds] = hold_id & 0xFFFFFF
            self.num_free_holds += 1
        inferno_lock_release(&self.header.lock)
        return True

    def note(self, unsigned long long hold_id, uint32_t spent):
        """Remember what a hold has spent so far, for whoever must settle it if this process dies."""
        cdef Hold* hold = self._hold_at(hold_id)
        if hold == NULL or hold.state != HOLD_HELD or hold.sequence != hold_id >> 24:
            return False
        hold.spent = spent      # one aligned word, and only its owner writes it
        return True

    # --- owners

    def open_owner(self, uint32_t slot):
        """Make a worker slot ready for a new worker and return its generation; settles what an earlier one left."""
        self._check_slot(slot)
        self._release(slot)
        return self.header.generation[slot]

    def bind(self, uint32_t slot, uint64_t generation):
        """Become the owner that the supervisor opened; needed before `hold`."""
        cdef uint32_t i, index
        self._check_slot(slot)
        if self.header.generation[slot] != generation:
            raise BucketsError(f"owner {slot}: generation {generation} is not the present one")
        free(self.free_holds)
        self.free_holds = <uint32_t*>malloc(self.shape.holds_per_owner * sizeof(uint32_t))
        if self.free_holds == NULL:
            raise MemoryError
        self.num_free_holds = 0
        for i in range(self.shape.holds_per_owner):
            index = slot * self.shape.holds_per_owner + (self.shape.holds_per_owner - 1 - i)
            if self._holds()[index].state == HOLD_FREE:
                self.free_holds[self.num_free_holds] = index
                self.num_free_holds += 1
        self.owner = slot
        self.generation = generation

    def release_owner(self, uint32_t slot, uint64_t generation):
        """Settle all holds of a worker that is gone and return how many; 0 if that generation is gone already.

        Concurrency comes back at once, a reservation of tokens keeps what its owner had noted as spent.
        """
        self._check_slot(slot)
        if self.header.generation[slot] != generation:
            return 0
        return self._release(slot)

    def num_open_holds(self, uint32_t slot):
        cdef uint32_t i, count = 0
        self._check_slot(slot)
        for i in range(self.shape.holds_per_owner):
            if self._holds()[slot * self.shape.holds_per_owner + i].state == HOLD_HELD:
                count += 1
        return count

    # --- for tests and for doctor

    def set_now_us(self, uint64_t now_us):
        """Set the manual clock of a table that was created with one, for every process."""
        self._check_open()
        if not self.shape.manual_clock:
            raise BucketsError("this table runs on the machine's monotonic clock")
        self.header.manual_now_us = now_us

    @property
    def now_us(self):
        self._check_open()
        return self._now()

    def statistics(self, uint32_t family):
        """Counts of one family: places, taken ones, evictions, charges to the overflow bucket; lock recoveries."""
        cdef uint64_t index, num_taken = 0
        cdef EntrySet* sets
        cdef int way
        self._check_open()
        if family >= self.shape.num_families:
            raise ValueError(f"family: expected below {self.shape.num_families}, got {family}")
        sets = <EntrySet*>(<uint8_t*>self.header + self.shape.family[family].offset)
        for index in range(self.shape.family[family].num_sets):
            for way in range(WAYS):
                num_taken += sets[index].tag[way] != 0
        return {
            "num_places": self.shape.family[family].num_sets * WAYS,
            "num_taken": num_taken,
            "num_evicted": self.header.family[family].num_evicted,
            "num_overflowed": self.header.family[family].num_overflowed,
            "num_recoveries": self.header.num_recoveries,
            "family_bytes": self.shape.family[family].num_sets * sizeof(EntrySet),
        }

    # --- private

    cdef int _check_open(self) except -1:
        if self.header == NULL:
            raise BucketsError("the bucket table is closed")
        return 0

    cdef int _check_slot(self, uint32_t slot) except -1:
        self._check_open()
        if slot >= self.shape.num_owners:
            raise ValueError(f"owner: expected below {self.shape.num_owners}, got {slot}")
        return 0

    cdef uint64_t _now(self) noexcept nogil:
        return self.header.manual_now_us if self.shape.manual_clock else inferno_monotonic_us()

    cdef Hold* _holds(self) noexcept nogil:
        return <Hold*>(<uint8_t*>self.header + self.shape.holds_offset)

    cdef Hold* _hold_at(self, uint64_t hold_id) except? NULL:
        self._check_open()
        cdef uint64_t index = hold_id & 0xFFFFFF
        if index >= <uint64_t>self.shape.num_owners * self.shape.holds_per_owner:
            return NULL
        return &self._holds()[index]

    cdef bint _owns(self, uint64_t hold_id) noexcept:
        return (self.owner >= 0 and (hold_id & 0xFFFFFF) // self.shape.holds_per_owner == <uint64_t>self.owner
                and self.header.generation[self.owner] == self.generation)

    cdef int _lock(self) noexcept:
        cdef int result = inferno_lock_try(&self.header.lock)
        if result == INFERNO_LOCK_BUSY:
            with nogil:
                result = inferno_lock_wait(&self.header.lock, LOCK_WAIT_MS)
        if result == INFERNO_LOCK_RECOVERED:
            recover(self.header, self.size_bytes)
            result = INFERNO_LOCK_TAKEN
        return result

    cdef int _read(self, Charge* charge, uint32_t family, bytes key, tuple quotas) except -1:
        cdef uint64_t digest[2]
        cdef uint32_t window, num_windows
        cdef long long quota
        self._check_open()
        if family >= self.shape.num_families:
            raise ValueError(f"family: expected below {self.shape.num_families}, got {family}")
        num_windows = self.shape.family[family].num_windows
        if <uint64_t>PyTuple_GET_SIZE(quotas) != num_windows:
            raise ValueError(f"quotas: expected {num_windows}, got {PyTuple_GET_SIZE(quotas)}")
        for window in range(num_windows):
            item = <object>PyTuple_GET_ITEM(quotas, window)
            if item is None:
                charge.quota[window] = NO_LIMIT
                continue
            quota = item
            if quota < 1 or quota > _MAX_QUOTA:
                raise ValueError(f"quota: expected 1 to {_MAX_QUOTA}, got {quota}")
            charge.quota[window] = <uint32_t>quota
        siphash_128(self.shape.seed, <const uint8_t*>PyBytes_AS_STRING(key), <size_t>PyBytes_GET_SIZE(key), digest)
        charge.family = family
        charge.num_windows = num_windows
        charge.tag = digest[0] if digest[0] else 1      # 0 marks a free place
        charge.check = digest[1]
        return 0

    cdef Outcome _take_parts(self, tuple parts, uint32_t cost, long long spent):
        cdef Charge charges[MAX_PARTS]
        cdef uint64_t hold_id = 0
        cdef int i, j, status, num_parts = <int>len(parts)
        if not 1 <= num_parts <= MAX_PARTS:
            raise ValueError(f"parts: expected 1 to {MAX_PARTS}, got {num_parts}")
        for i in range(num_parts):
            family, key, quotas = parts[i]
            self._read(&charges[i], family, key, quotas)
            for j in range(i):
                if charges[j].family == charges[i].family:   # two plans for one entry would lose one of them
                    raise ValueError(f"parts: family {family} twice")
        status = self._take(charges, num_parts, cost, spent, &hold_id)
        return _outcome(&self.shape, charges, num_parts, status, hold_id)

    cdef int _take(self, Charge* charges, int num_charges, uint32_t cost, long long spent, uint64_t* hold_id) noexcept:
        cdef uint64_t now = self._now()
        cdef int i, planned, status = STATUS_ADMITTED
        cdef Hold* hold = NULL
        planned = self._lock()
        if planned != INFERNO_LOCK_TAKEN:
            return STATUS_BUSY if planned == INFERNO_LOCK_BUSY else STATUS_LOCK_FAILED
        for i in range(num_charges):
            planned = plan_charge(self.header, &self.shape.family[charges[i].family], &charges[i], cost, now)
            if planned > status:
                status = planned
        if status == STATUS_ADMITTED and spent >= 0:
            if self.header.generation[self.owner] != self.generation:
                status = STATUS_STALE_OWNER
            elif self.num_free_holds == 0:
                status = STATUS_NO_HOLD
        if status == STATUS_ADMITTED and cost:
            for i in range(num_charges):
                apply_charge(&self.shape.family[charges[i].family], &charges[i], cost)
                if charges[i].tag_at == NULL:
                    self.header.family[charges[i].family].num_overflowed += 1
                elif charges[i].tag_at[0] and charges[i].tag_at[0] != charges[i].tag:
                    self.header.family[charges[i].family].num_evicted += 1
            if spent >= 0:
                self.num_free_holds -= 1
                hold = &self._holds()[self.free_holds[self.num_free_holds]]
                hold.sequence = (hold.sequence + 1) & 0xFFFFFFFFFF
                hold.created_us = now
                hold.spent = <uint32_t>spent
                hold.num_parts = num_charges
                for i in range(num_charges):
                    hold.part[i].tag = charges[i].tag
                    hold.part[i].check = charges[i].check
                    hold.part[i].cost = cost
                    hold.part[i].family = <uint16_t>charges[i].family
                    hold.part[i].overflowed = charges[i].tag_at == NULL
                hold_id[0] = hold.sequence << 24 | self.free_holds[self.num_free_holds]
            commit(self.header, charges, num_charges, hold, HOLD_HELD)
        inferno_lock_release(&self.header.lock)
        return status

    cdef void _settle(self, Hold* hold, uint32_t spent) noexcept:
        """Give back what a hold did not spend and free it; the lock is held."""
        cdef Charge charges[MAX_PARTS]
        cdef uint64_t now = self._now()
        cdef uint32_t i
        cdef int num_charges = 0
        cdef Charge* charge
        cdef const Family* family
        for i in range(<uint32_t>MAX_PARTS):
            if i >= hold.num_parts:
                break
            charge = &charges[num_charges]
            charge.family = hold.part[i].family
            charge.tag = hold.part[i].tag
            charge.check = hold.part[i].check
            if charge.family >= self.shape.num_families:
                continue
            family = &self.shape.family[charge.family]
            if hold.part[i].overflowed:
                charge.tag_at = NULL
                charge.entry_at = &self.header.family[charge.family].overflow
            elif not find_entry(self.header, family, charge):
                continue            # full again and forgotten: there is nothing to give back
            charge.next = charge.entry_at[0]
            give_back(family, &charge.next, hold.part[i].cost, spent, now)
            num_charges += 1
        commit(self.header, charges, num_charges, hold, HOLD_FREE)

    cdef long _release(self, uint32_t slot) except -1:
        cdef Hold* hold
        cdef uint32_t i
        cdef long num_settled = 0
        cdef int status
        for i in range(self.shape.holds_per_owner + 1):
            status = self._lock()
            if status != INFERNO_LOCK_TAKEN:
                raise BucketsBusy(f"owner {slot} could not be released: the lock did not come free")
            if i == 0:              # first shut the door, then clear the room
                self.header.generation[slot] += 1
            else:
                hold = &self._holds()[slot * self.shape.holds_per_owner + i - 1]
                if hold.state == HOLD_HELD:
                    self._settle(hold, hold.spent)
                    num_settled += 1
            inferno_lock_release(&self.header.lock)
        return num_settled


cdef inline uint64_t _page(uint64_t size) noexcept:
    return (size + 4095) & ~<uint64_t>4095


cdef int _describe(Family* shape, family, uint64_t offset) except -1:
    num_entries, windows_us, counting = family
    if not 1 <= num_entries <= MAX_ENTRIES:
        raise ValueError(f"num_entries: expected 1 to {MAX_ENTRIES}, got {num_entries}")
    if not 1 <= len(windows_us) <= MAX_WINDOWS:
        raise ValueError(f"windows: expected 1 to {MAX_WINDOWS}, got {len(windows_us)}")
    for window, window_us in enumerate(windows_us):
        if not 1 <= window_us <= 0xFFFFFFFF or (counting and window_us != 1):
            raise ValueError(f"window: expected 1 to {0xFFFFFFFF} microseconds (1 in a counting family), got {window_us}")
        shape.window_us[<uint32_t>window] = window_us
    shape.offset = offset
    shape.num_sets = <uint64_t>(num_entries * PLACES_PER_ENTRY / WAYS) + 1
    shape.num_windows = <uint32_t>len(windows_us)
    shape.counting = bool(counting)
    return 0


cdef int _check_layout(const Header* shape, uint64_t size) except -1:
    """Refuse a table of another build, and one whose parts do not lie inside it."""
    cdef uint64_t end = _page(sizeof(Header))
    cdef uint32_t i
    if memcmp(shape.magic, MAGIC, 8) != 0:
        raise BucketsError("no bucket table: wrong magic")
    if shape.version != LAYOUT_VERSION:
        raise BucketsError(f"bucket table of layout {shape.version}, this build has {LAYOUT_VERSION}")
    found = (shape.header_bytes, shape.lock_bytes, shape.set_bytes, shape.hold_bytes, shape.total_bytes)
    expected = (sizeof(Header), sizeof(inferno_lock), sizeof(EntrySet), sizeof(Hold), size)
    if found != expected:
        raise BucketsError(f"bucket table of another build: sizes {found}, expected {expected}")
    if not (1 <= shape.num_families <= MAX_FAMILIES and 1 <= shape.num_owners <= MAX_OWNERS
            and 1 <= shape.holds_per_owner <= MAX_HOLDS_PER_OWNER):
        raise BucketsError("bucket table with impossible counts")
    for i in range(shape.num_families):
        if (shape.family[i].offset != end or not 1 <= shape.family[i].num_sets <= MAX_ENTRIES
                or not 1 <= shape.family[i].num_windows <= MAX_WINDOWS):
            raise BucketsError(f"bucket table with an impossible family {i}")
        end = _page(end + shape.family[i].num_sets * sizeof(EntrySet))
    if shape.holds_offset != end or size != _page(
            end + <uint64_t>shape.num_owners * shape.holds_per_owner * sizeof(Hold)):
        raise BucketsError("bucket table with impossible holds")
    return 0


cdef BucketTable _map(int fd, uint64_t size):
    cdef BucketTable table = BucketTable.__new__(BucketTable)
    cdef void* address = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
    if address == MAP_FAILED:
        raise OSError(f"cannot map {size} bytes of shared memory")
    table.header = <Header*>address
    table.size_bytes = size
    return table


def _anonymous_fd(size):
    """Shared memory without a name; where the system can, sealed against changes of its size."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("inferno-buckets", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        return fd
    from _posixshmem import shm_open, shm_unlink  # macOS has no memfd: a name for the blink of an eye
    name = "/inferno-" + secrets.token_hex(8)
    fd = shm_open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    shm_unlink(name)
    os.ftruncate(fd, size)
    return fd


def stop_at(int point):
    """Debug builds: stop this process (SIGSTOP) when it next passes that point of a critical section (1 to 6)."""
    if not DEBUG_BUILD:
        raise BucketsError("only a debug build (INFERNO_BUILD=debug) can be stopped inside the critical section")
    if not 0 <= point <= 6:
        raise ValueError(f"point: expected 0 to 6, got {point}")
    _set_stop_point(point)


cdef void _set_stop_point(int point) noexcept:
    global inferno_stop_point
    inferno_stop_point = point

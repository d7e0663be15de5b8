"""inferno_native.buckets in one process: exactness, refill, several windows, holds, layout; against the twin."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, rule
from inferno_native import buckets
from inferno_native.buckets import BucketsError, BucketTable

from tests.native.reference_buckets import ReferenceBuckets
from tests.native.reference_siphash import siphash_128

MINUTE, HOUR = 60_000_000, 3_600_000_000
SECOND = 1_000_000
REQUESTS, TOKENS, SLOTS = 0, 1, 2
FAMILIES = [(1000, (MINUTE, HOUR), False), (1000, (MINUTE,), False), (1000, (1,), True)]


@pytest.fixture
def table():
    table = BucketTable.create(FAMILIES, num_owners=4, holds_per_owner=64, manual_clock=True)
    yield table
    table.close()


def admitted(table, num_tries, quotas=(60, 1000), key=b"k"):
    return sum(table.check(REQUESTS, key, quotas).allowed for _ in range(num_tries))


def test_lim_2_sec_082_sixty_pass_and_the_next_is_refused(table):
    assert admitted(table, 61) == 60
    refused = table.check(REQUESTS, b"k", (60, 1000))
    assert refused.status == buckets.REFUSED
    assert refused.states == ((0, 0, 60, 0, MINUTE, SECOND), (0, 1, 1000, 940, 60 * 3_600_000, 0))


def test_lim_2_sec_083_after_one_second_exactly_one_more_passes(table):
    admitted(table, 61)
    table.set_now_us(1 + SECOND - 1)
    assert admitted(table, 3) == 0
    table.set_now_us(1 + SECOND)
    assert admitted(table, 3) == 1


def test_lim_2_sec_084_a_refused_request_takes_nothing_from_the_other_window(table):
    now = 1
    for _ in range(50):
        assert admitted(table, 2, (2, 100)) == 2
        now += MINUTE
        table.set_now_us(now)
    # 50 minutes gave back 83 of the hour's 100: take what is left, then look at the minute after refusals.
    while table.check(REQUESTS, b"k", (1000, 100)).allowed:
        pass
    before = table.check(REQUESTS, b"k", (1000, 100), 0).states
    assert admitted(table, 20, (1000, 100)) == 0
    assert table.check(REQUESTS, b"k", (1000, 100), 0).states == before


def test_lim_2_all_parts_or_none(table):
    owner, key = (REQUESTS, b"owner", (60, 1000)), (TOKENS, b"key", (3,))
    assert [table.take((owner, key)).allowed for _ in range(5)] == [True] * 3 + [False] * 2
    assert [state[3] for state in table.take((owner, key), 0).states] == [57, 997, 0]


def test_lim_11_a_cost_above_the_quota_is_told_apart_from_a_wait(table):
    assert table.check(TOKENS, b"k", (100,), 101).status == buckets.TOO_LARGE
    assert table.check(TOKENS, b"k", (100,), 100).status == buckets.ADMITTED
    assert table.check(TOKENS, b"k", (100,), 100).status == buckets.REFUSED


def test_lim_2_limits_change_live_without_losing_state(table):
    assert admitted(table, 60) == 60
    assert admitted(table, 50, (100, 1000)) == 40, "what was used stays used under a higher limit"
    assert table.check(REQUESTS, b"k", (10, 1000)).states[0] == (0, 0, 10, 0, MINUTE, MINUTE // 10)
    table.set_now_us(1 + MINUTE // 10)
    assert admitted(table, 3, (10, 1000)) == 1, "under a lower limit nobody owes more than one full bucket"


def test_a_window_without_limit_counts_nothing(table):
    assert admitted(table, 500, (None, 1000)) == 500
    assert table.check(REQUESTS, b"k", (60, 1000), 0).states[0][3] == 60


def test_no_drift_over_a_million_refills(table):
    quotas = (7, 2_000_000)  # 60 s / 7 is no whole number of microseconds
    assert admitted(table, 8, quotas) == 7
    now, passed = 1, 0
    for _ in range(20_000):
        now += 9_000_001
        table.set_now_us(now)
        passed += admitted(table, 3, quotas)
    exact = (now - 1) * 7 // MINUTE
    assert exact - 7 <= passed <= exact


@given(st.integers(1, buckets.MAX_QUOTA), st.integers(0, 2**63), st.data())
@settings(max_examples=200, deadline=None)
def test_the_largest_numbers_agree_with_the_twin(quota, elapsed, data):
    table = BucketTable.create([(8, (0xFFFFFFFF, MINUTE), False)], manual_clock=True)
    twin = ReferenceBuckets([(8, (0xFFFFFFFF, MINUTE), False)])
    for now in (1, 1 + elapsed):
        table.set_now_us(now)
        twin.now_us = now
        for cost in data.draw(st.lists(st.integers(0, quota), max_size=4)):
            outcome = table.check(0, b"k", (quota, quota), cost)
            status, states = twin.take(((0, b"k", (quota, quota)),), cost)
            assert (outcome.allowed, list(outcome.states)) == (status == "admitted", states)
    table.close()


def test_lim_7_a_hold_is_settled_exactly_once(table):
    table.bind(0, table.open_owner(0))
    held = table.hold(((TOKENS, b"k", (1000,)),), 400)
    assert held.allowed
    assert table.settle(held.hold, 150) is True
    assert table.settle(held.hold, 0) is False
    assert table.check(TOKENS, b"k", (1000,), 0).states[0][3] == 850
    again = table.hold(((TOKENS, b"k", (1000,)),), 100)
    assert again.hold != held.hold, "a record is used again under another number"
    assert table.settle(held.hold, 0) is False
    assert table.settle(again.hold, 100) is True


def test_lim_7_sec_097_numbers_that_were_never_given_settle_nothing(table):
    table.bind(0, table.open_owner(0))
    for number in (0, 1, 2**24 - 1, 2**24, 2**64 - 1):
        assert table.settle(number, 0) is False
        assert table.note(number, 0) is False


def test_lim_8_a_counting_family_never_gives_back_by_time(table):
    table.bind(0, table.open_owner(0))
    part = ((SLOTS, b"k", (2,)),)
    first, second, third = (table.hold(part, 1) for _ in range(3))
    assert (first.allowed, second.allowed, third.allowed) == (True, True, False)
    table.set_now_us(2**50)
    assert not table.hold(part, 1).allowed
    table.settle(first.hold, 0)
    assert table.hold(part, 1).allowed


def test_lim_7_the_supervisor_settles_for_a_dead_owner(table):
    generation = table.open_owner(1)
    table.bind(1, generation)
    tokens = table.hold(((TOKENS, b"k", (1000,)),), 600, 100)
    slot = table.hold(((SLOTS, b"k", (1,)),), 1)
    table.note(tokens.hold, 250)
    assert table.num_open_holds(1) == 2
    assert table.release_owner(1, generation) == 2
    assert table.release_owner(1, generation) == 0
    assert table.settle(tokens.hold, 0) is False
    assert table.settle(slot.hold, 0) is False
    assert table.check(TOKENS, b"k", (1000,), 0).states[0][3] == 750
    with pytest.raises(BucketsError, match="released"):
        table.hold(((SLOTS, b"k", (1,)),), 1)
    with pytest.raises(BucketsError, match="generation"):
        table.bind(1, generation)
    table.bind(1, table.open_owner(1))
    assert table.hold(((SLOTS, b"k", (1,)),), 1).allowed


def test_an_owner_has_a_bounded_number_of_holds(table):
    table.bind(2, table.open_owner(2))
    held = [table.hold(((SLOTS, b"%d" % i, (1,)),), 1) for i in range(65)]
    assert [outcome.status for outcome in held[63:]] == [buckets.ADMITTED, buckets.NO_HOLD]
    assert table.check(SLOTS, b"64", (1,), 0).states[0][3] == 1, "nothing was charged for the one that found no record"
    assert all(table.settle(outcome.hold, 0) for outcome in held[:64])
    assert table.hold(((SLOTS, b"x", (1,)),), 1).allowed


def test_lim_5_an_active_offender_is_never_evicted_and_overflow_is_shared():
    table = BucketTable.create([(64, (MINUTE, HOUR), False)], manual_clock=True)
    quotas = (5, 1000)
    while table.check(0, b"offender", quotas).allowed:
        pass
    outcomes = [table.check(0, b"flood %d" % i, quotas) for i in range(5000)]
    places = table.statistics(0)["num_places"]
    assert sum(not outcome.overflowed for outcome in outcomes) <= places
    assert sum(outcome.allowed for outcome in outcomes if outcome.overflowed) == 5, "one bucket for all of them"
    assert not table.check(0, b"offender", quotas).allowed
    assert table.statistics(0)["num_evicted"] == 0
    table.set_now_us(1 + HOUR)
    assert not any(table.check(0, b"later %d" % i, quotas).overflowed for i in range(50)), "full ones are evicted"
    assert table.statistics(0)["num_evicted"] > 0
    table.close()


def test_lim_5_the_promised_number_of_sources_finds_places_without_overflow():
    table = BucketTable.create([(20_000, (MINUTE, HOUR), False)], manual_clock=True)
    for i in range(20_000):
        table.check(0, i.to_bytes(4, "big"), (300, 10_000))
    assert table.statistics(0)["num_overflowed"] == 0
    assert table.statistics(0)["num_taken"] == 20_000
    table.close()


def test_sec_098_the_default_clock_is_the_monotonic_one():
    import time
    table = BucketTable.create(FAMILIES)
    before = time.monotonic_ns() // 1000
    assert before <= table.now_us <= time.monotonic_ns() // 1000
    with pytest.raises(BucketsError, match="monotonic"):
        table.set_now_us(1)
    table.close()


def test_sec_098_a_clock_that_steps_back_neither_refills_nor_blocks(table):
    table.set_now_us(HOUR)
    admitted(table, 60)
    table.set_now_us(HOUR - SECOND)
    assert admitted(table, 3) == 0
    table.set_now_us(HOUR + SECOND)
    assert admitted(table, 3) == 1


def test_the_digest_is_siphash_2_4_128():
    # Appendix of the reference implementation: key 00..0f, messages 00.., 128-bit outputs of lengths 0 and 1.
    key = bytes(range(16))
    assert siphash_128(key, b"").hex() == "a3817f04ba25a8e66df67214c7550293"
    assert siphash_128(key, b"\x00").hex() == "da87c1d86b99af44347659119b22fc45"


@given(st.binary(max_size=40), st.binary(min_size=16, max_size=16))
@settings(max_examples=100, deadline=None)
def test_a_key_stands_under_its_digest(key, seed):
    table = BucketTable.create([(8, (MINUTE,), False)], manual_clock=True, seed=seed)
    table.check(0, key, (10,))
    memory = os.pread(table.fd, table.size_bytes, 0)
    assert siphash_128(seed, key)[:8] in memory
    assert siphash_128(seed, key)[8:] in memory
    table.close()


def test_wrong_arguments_are_refused(table):
    for call in (
        lambda: table.check(3, b"k", (1,)),
        lambda: table.check(REQUESTS, b"k", (1,)),
        lambda: table.check(REQUESTS, b"k", (0, 1)),
        lambda: table.check(REQUESTS, b"k", (-1, 1)),
        lambda: table.check(REQUESTS, b"k", (buckets.MAX_QUOTA + 1, 1)),
        lambda: table.take(()),
        lambda: table.take(((TOKENS, b"a", (1,)), (TOKENS, b"b", (1,)))),
        lambda: table.open_owner(4),
        lambda: BucketTable.create([]),
        lambda: BucketTable.create([(0, (MINUTE,), False)]),
        lambda: BucketTable.create([(8, (2**32,), False)]),
        lambda: BucketTable.create([(8, (MINUTE,), True)]),
        lambda: BucketTable.create(FAMILIES, seed=b"short"),
    ):
        with pytest.raises(ValueError):
            call()
    for call in (lambda: table.check(REQUESTS, b"k", (1, 1), -1), lambda: table.check(REQUESTS, b"k", (1, 1), 2**32)):
        with pytest.raises(OverflowError):
            call()
    for call in (lambda: table.check(REQUESTS, "k", (1, 1)), lambda: table.check(REQUESTS, b"k", [1, 1]),
                 BucketTable, buckets.Outcome):
        with pytest.raises(TypeError):
            call()
    with pytest.raises(BucketsError, match="bind"):
        table.hold(((SLOTS, b"k", (1,)),), 1)


def test_a_closed_table_refuses_everything(table):
    table.close()
    for call in (lambda: table.check(REQUESTS, b"k", (1, 1)), lambda: table.settle(1, 0), lambda: table.open_owner(0),
                 lambda: table.statistics(0), lambda: table.now_us):
        with pytest.raises(BucketsError, match="closed"):
            call()


def test_attach_shares_the_table_and_checks_its_layout(table):
    other = BucketTable.attach(table.fd)
    assert admitted(other, 40) + admitted(table, 40) == 60
    other.close()
    memory = os.pread(table.fd, table.size_bytes, 0)
    for offset, what in ((0, "magic"), (8, "layout"), (12, "sizes"), (20, "sizes"), (28, "counts"), (32, "counts")):
        fd = os.memfd_create("damaged", os.MFD_CLOEXEC)
        os.write(fd, memory)
        os.pwrite(fd, b"\xff\xff", offset)
        with pytest.raises(BucketsError, match=what):
            BucketTable.attach(fd)
        os.close(fd)
    for size in (0, 100, table.size_bytes - 4096):
        fd = os.memfd_create("cut", os.MFD_CLOEXEC)
        os.write(fd, memory[:size])
        with pytest.raises(BucketsError):
            BucketTable.attach(fd)
        os.close(fd)


def test_the_shared_memory_has_no_name_and_keeps_its_size(table):
    assert "memfd:inferno-buckets (deleted)" in os.readlink(f"/proc/self/fd/{table.fd}")
    with pytest.raises(PermissionError):
        os.ftruncate(table.fd, 0)


class AgainstTheTwin(RuleBasedStateMachine):
    """Any sequence of charges, holds, settlements, clock steps and new limits gives what the twin gives."""

    holds = Bundle("holds")
    keys = st.sampled_from([b"", b"a", b"b", b"a longer key, of more than one word"])
    quota = st.one_of(st.none(), st.integers(1, 12), st.sampled_from([60, 1000, buckets.MAX_QUOTA]))

    @initialize()
    def start(self):
        self.table = BucketTable.create(FAMILIES, num_owners=2, holds_per_owner=64, manual_clock=True)
        self.table.bind(0, self.table.open_owner(0))
        self.twin = ReferenceBuckets(FAMILIES)

    def teardown(self):
        if hasattr(self, "table"):
            self.table.close()

    @rule(step=st.one_of(st.integers(0, 100), st.integers(0, 2 * SECOND), st.integers(0, 2 * HOUR)))
    def time_passes(self, step):
        self.twin.now_us += step
        self.table.set_now_us(self.twin.now_us)

    @rule(key=keys, minute=quota, hour=quota, cost=st.integers(0, 15))
    def check(self, key, minute, hour, cost):
        outcome = self.table.check(REQUESTS, key, (minute, hour), cost)
        self.agree(outcome, *self.twin.take(((REQUESTS, key, (minute, hour)),), cost))

    @rule(key=keys, minute=quota, hour=quota, tokens=quota, cost=st.integers(0, 15))
    def take(self, key, minute, hour, tokens, cost):
        parts = ((REQUESTS, key, (minute, hour)), (TOKENS, key, (tokens,)))
        self.agree(self.table.take(parts, cost), *self.twin.take(parts, cost))

    @rule(target=holds, key=keys, family=st.sampled_from([TOKENS, SLOTS]), limit=st.integers(1, 12), cost=st.integers(1, 12))
    def hold(self, key, family, limit, cost):
        parts = ((family, key, (limit,)),)
        outcome = self.table.hold(parts, cost)
        if outcome.status == buckets.NO_HOLD:
            assert len(self.twin.holds) == 64
            return 0, 0
        status, states, number = self.twin.hold(parts, cost)
        self.agree(outcome, status, states)
        return outcome.hold, number

    @rule(hold=holds, spent=st.integers(0, 15))
    def settle(self, hold, spent):
        assert self.table.settle(hold[0], spent) == self.twin.settle(hold[1], spent)

    @staticmethod
    def agree(outcome, status, states):
        names = {buckets.ADMITTED: "admitted", buckets.REFUSED: "refused", buckets.TOO_LARGE: "too large"}
        assert (names[outcome.status], list(outcome.states)) == (status, states)


TestAgainstTheTwin = AgainstTheTwin.TestCase
TestAgainstTheTwin.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


class WithEviction(RuleBasedStateMachine):
    """A table with far too few places: whoever has a place of its own is served as by the twin, the others share one.

    Were a bucket that is not full ever given away, its key would come back full and differ from the twin.
    """

    keys = st.integers(0, 60).map(lambda number: b"%d" % number)
    families = [(4, (MINUTE, HOUR), False), (4, (1,), True)]  # noqa: RUF012
    open_holds = Bundle("open_holds")

    @initialize()
    def start(self):
        self.table = BucketTable.create(self.families, holds_per_owner=500, manual_clock=True)
        self.table.bind(0, self.table.open_owner(0))
        self.twin = ReferenceBuckets(self.families)

    def teardown(self):
        if hasattr(self, "table"):
            self.table.close()

    @rule(seconds=st.sampled_from([1, 10, 60, 3600]))
    def time_passes(self, seconds):
        self.twin.now_us += seconds * SECOND
        self.table.set_now_us(self.twin.now_us)

    @rule(keys=st.lists(keys, min_size=1, max_size=12), cost=st.integers(1, 3))
    def charge(self, keys, cost):
        for key in keys:
            outcome = self.table.check(0, key, (5, 50), cost)
            name = b"overflow" if outcome.overflowed else key
            status, states = self.twin.take(((0, name, (5, 50)),), cost)
            assert (outcome.allowed, list(outcome.states)) == (status == "admitted", states)

    @rule(target=open_holds, key=keys)
    def hold(self, key):
        outcome = self.table.hold(((1, key, (3,)),), 1)
        name = b"overflow" if outcome.overflowed else key
        status, states, number = self.twin.hold(((1, name, (3,)),), 1)
        assert (outcome.allowed, list(outcome.states)) == (status == "admitted", states)
        return outcome.hold, number

    @rule(hold=open_holds)
    def settle(self, hold):
        assert self.table.settle(hold[0], 0) == self.twin.settle(hold[1], 0)


TestWithEviction = WithEviction.TestCase
TestWithEviction.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)

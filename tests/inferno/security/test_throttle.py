"""Login delays: they grow, decay, are the same for every answer, and never lock."""

import pytest
from inferno_native.epochs import EpochTable

from inferno.errors import ApiError
from inferno.security.throttle import PAIR, SOURCE, Curve, LoginThrottle


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def throttle(clock):
    table = EpochTable.create()
    yield LoginThrottle(table, b"k" * 32, clock=clock)
    table.close()


def wait_of(throttle, name, block):
    try:
        throttle.begin(name, block)
    except ApiError as error:
        return error.retry_after if error.code == "rate_limit_exceeded" else None
    return 0


def fail(throttle, clock, name, block, times):
    """Fail `times` times, waiting as told."""
    for _ in range(times):
        while (wait := wait_of(throttle, name, block)) > 0:
            clock.now += wait


def test_pwd_4_sec_047_delay_after_failures_then_the_right_password_works(throttle, clock):
    fail(throttle, clock, "ann", "10.0.0.1", 6)
    first = wait_of(throttle, "ann", "10.0.0.1")  # also the right password gets this
    assert 0 < first <= 1
    assert wait_of(throttle, "ann", "10.0.0.1") == first  # asking again costs nothing more
    clock.now += first + 0.001
    attempt = throttle.begin("ann", "10.0.0.1")
    throttle.succeeded(attempt)
    for _ in range(5):
        throttle.begin("ann", "10.0.0.1")  # anew


def test_pwd_4_the_delay_grows_to_its_cap_and_decays(throttle, clock):
    waits = []
    for _ in range(16):
        fail(throttle, clock, "ann", "10.0.0.1", 1)
        waits.append(wait_of(throttle, "ann", "10.0.0.1"))
    assert waits[:5] == [0, 0, 0, 0, 0] or waits[0] == 0
    assert max(waits) == pytest.approx(PAIR.max_delay_ms / 1000, abs=0.01)
    clock.now += 3600
    assert wait_of(throttle, "ann", "10.0.0.1") == 0


def test_pwd_4_sec_048_nobody_can_lock_out_the_admin(throttle, clock):
    fail(throttle, clock, "admin", "203.0.113.9", 40)
    assert wait_of(throttle, "admin", "203.0.113.9") > 0
    throttle.begin("admin", "198.51.100.4")  # from elsewhere at once


def test_pwd_4_sec_049_spraying_is_throttled_per_source(throttle, clock):
    passed = sum(wait_of(throttle, f"user{i}", "203.0.113.9") == 0 for i in range(1000))
    assert passed == SOURCE.free + 1
    throttle.begin("user5", "198.51.100.4")


def test_parallel_tries_cannot_slip_through(throttle):
    passed = sum(wait_of(throttle, "ann", "10.0.0.1") == 0 for _ in range(100))
    assert passed == PAIR.free + 1


def test_a_try_that_was_not_decided_costs_nothing(throttle):
    for _ in range(100):
        throttle.give_back(throttle.begin("ann", "10.0.0.1"))
    throttle.begin("ann", "10.0.0.1")


def test_other_workers_share_the_count(clock):
    table = EpochTable.create()
    workers = [LoginThrottle(table, b"k" * 32, clock=clock) for _ in range(4)]
    passed = sum(wait_of(workers[i % 4], "ann", "10.0.0.1") == 0 for i in range(100))
    assert passed == PAIR.free + 1
    table.close()


def test_known_and_unknown_names_are_counted_alike(throttle, clock):
    waits = []
    for name in ("known", "unknown"):
        fail(throttle, clock, name, f"block-{name}", 8)
        waits.append(wait_of(throttle, name, f"block-{name}"))
    assert waits[0] == waits[1] > 0


@pytest.mark.parametrize("heat", [0, 1, 5 * 1024, 6 * 1024, 1 << 24])
def test_a_curve_is_bounded(heat):
    assert 0 <= Curve(5, 60_000, 1000).delay_ms(heat) <= 60_000

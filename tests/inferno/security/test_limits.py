"""security.limits over both stores, the same bodies: LIM-1 to LIM-11 as far as they hold below HTTP."""

from collections.abc import Iterator

import pytest

from inferno.security.limits import (
    Decision,
    KeyLimits,
    Lease,
    LimitSettings,
    Reservation,
    Subject,
    headers,
    subjects,
)
from inferno.security.principal import Principal
from inferno.storage.bucket_store import StoreUnavailable
from tests.inferno.security.limits_harness import Harness, valkey_server

ALICE = Subject("user-alice")
BOB = Subject("user-bob")


@pytest.fixture(scope="module")
def valkey_url() -> Iterator[str]:
    for server in valkey_server():
        yield f"redis://127.0.0.1:{server.port}/0"


@pytest.fixture(params=["shared", pytest.param("valkey", marks=pytest.mark.valkey)])
def limits(request) -> Iterator[Harness]:
    url = request.getfixturevalue("valkey_url") if request.param == "valkey" else None
    harness = Harness(url)
    yield harness
    harness.close()


def requests(limits, count, principal=ALICE, key=None):
    return [limits.run(limits.limiter.check_requests(principal, key)) for _ in range(count)]


def passed(decisions):
    return sum(decision.allowed for decision in decisions)


def reserve(limits, num_prompt_tokens, max_tokens, context_left=100_000, principal=ALICE, key=None):
    return limits.run(limits.limiter.reserve_tokens(principal, key, num_prompt_tokens, max_tokens, context_left))


def acquire(limits, principal=ALICE, key=None):
    return limits.run(limits.limiter.acquire_concurrency(principal, key))


def test_lim_2_sec_082_sixty_at_once_pass_and_the_next_is_told_when(limits):
    decisions = requests(limits, 61)
    assert passed(decisions) == 60
    refused = decisions[-1]
    assert (refused.policy, refused.limit, refused.remaining) == ("minute", 60, 0)
    assert (refused.retry_after, refused.retry_after_ms, refused.reset_seconds) == (1, 1000, 60)


def test_lim_2_sec_083_after_a_second_exactly_one_more(limits):
    requests(limits, 61)
    limits.advance(1)
    assert passed(requests(limits, 3)) == 1


def test_lim_2_sec_084_a_refused_request_takes_nothing_from_the_hour(limits):
    limits.limiter.update(LimitSettings(max_requests_per_minute=60, max_requests_per_hour=100))
    assert passed(requests(limits, 60)) == 60
    assert passed(requests(limits, 100)) == 0
    limits.advance(60)
    # The hour had 40 left and gained 1.67; the hundred refusals cost it nothing.
    decisions = requests(limits, 60)
    assert passed(decisions) == 41
    assert (decisions[-1].policy, decisions[-1].retry_after) == ("hour", 12)


def test_lim_2_owner_and_key_are_charged_together_or_not_at_all(limits):
    key = Subject("key-1", KeyLimits(max_requests_per_minute=3))
    decisions = requests(limits, 5, ALICE, key)
    assert passed(decisions) == 3
    assert [policy.scope for policy in decisions[-1].policies if policy.violated] == ["key"]
    assert passed(requests(limits, 60)) == 57, "the two refusals cost the owner nothing"
    assert passed(requests(limits, 1, ALICE, key)) == 0


def test_lim_2_a_key_without_limits_of_its_own_draws_from_its_owner_only(limits):
    assert passed(requests(limits, 61, ALICE, Subject("key-1"))) == 60


def test_an_accounts_own_limits_stand_in_place_of_the_configured_ones(limits):
    assert passed(requests(limits, 100, Subject("vip", KeyLimits(max_requests_per_minute=90)))) == 90


def test_lim_2_sighup_changes_limits_and_keeps_what_was_used(limits):
    assert passed(requests(limits, 60)) == 60
    limits.limiter.update(LimitSettings(max_requests_per_minute=100))
    assert passed(requests(limits, 60)) == 40
    limits.limiter.update(LimitSettings(max_requests_per_minute=10))
    refused = requests(limits, 1)[0]
    assert (refused.allowed, refused.retry_after) == (False, 6)
    limits.advance(6)
    assert passed(requests(limits, 2)) == 1


def test_lim_2_buckets_survive_a_worker(limits):
    requests(limits, 60)
    limits.restart_worker()
    assert passed(requests(limits, 1)) == 0


def test_lim_3_sec_091_a_slash_64_is_one_source(limits):
    run, check = limits.run, limits.limiter.check_source
    assert passed([run(check(f"2001:db8:0:1::{i:x}")) for i in range(310)]) == 300
    assert run(check("2001:db8:0:2::1")).allowed


def test_lim_3_sec_092_mapped_and_zoned_forms_are_the_same_source(limits):
    run, check = limits.run, limits.limiter.check_source
    forms = ["192.0.2.5", "::ffff:192.0.2.5", "::ffff:c000:205", "::ffff:192.0.2.5%eth0"]
    assert passed([run(check(forms[i % 4])) for i in range(310)]) == 300
    assert passed([run(check(("fe80::1", "fe80::1%eth0")[i % 2])) for i in range(310)]) == 300


def test_lim_1_sec_094_sec_095_a_failed_authentication_costs_the_source_only(limits):
    for _ in range(300):
        assert limits.run(limits.limiter.check_source("192.0.2.9")).allowed
    refused = limits.run(limits.limiter.check_source("192.0.2.9"))
    assert [policy.scope for policy in refused.policies if policy.violated] == ["source"]
    assert passed(requests(limits, 60)) == 60


def test_lim_8_sec_096_one_more_stream_than_allowed_is_refused_at_once(limits):
    leases = [acquire(limits) for _ in range(16)]
    assert all(isinstance(lease, Lease) for lease in leases)
    refused = acquire(limits)
    assert isinstance(refused, Decision)
    assert (refused.policy, refused.limit, refused.remaining, refused.retry_after) == ("concurrency", 16, 0, 1)
    assert isinstance(acquire(limits, BOB), Lease)
    limits.advance(30)
    assert isinstance(acquire(limits), Decision), "time gives no slot back"
    assert leases[0].release() is True
    assert leases[0].release() is False
    limits.settled()
    assert isinstance(acquire(limits), Lease)
    assert isinstance(acquire(limits), Decision)


def test_lim_8_a_keys_own_concurrency_comes_on_top(limits):
    key = Subject("key-1", KeyLimits(max_concurrent_requests=2))
    first, _second, third = (acquire(limits, ALICE, key) for _ in range(3))
    assert isinstance(third, Decision)
    assert [policy.scope for policy in third.policies if policy.violated] == ["key"]
    for _ in range(14):
        assert isinstance(acquire(limits), Lease)
    assert isinstance(acquire(limits), Decision), "a refused slot of the key took none of the owner's"
    assert first.release()


def test_lim_7_sec_097_a_reservation_is_settled_exactly_once(limits):
    limits.limiter.update(LimitSettings(max_tokens_per_minute=1000))
    reservation = reserve(limits, 100, 500)
    assert isinstance(reservation, Reservation)
    assert reservation.granted_max_tokens == 500
    assert reservation.decision.remaining == 400
    assert reservation.settle(150) is True
    assert reservation.settle(0) is False
    limits.settled()
    assert reserve(limits, 0, 1).decision.remaining == 849


def test_lim_7_more_spent_than_reserved_is_charged_too(limits):
    limits.limiter.update(LimitSettings(max_tokens_per_minute=1000))
    assert reserve(limits, 100, 100).settle(300)
    limits.settled()
    assert reserve(limits, 0, 1).decision.remaining == 699


def test_without_max_tokens_the_smaller_of_context_and_bucket_is_reserved(limits):
    limits.limiter.update(LimitSettings(max_tokens_per_minute=1000))
    first = reserve(limits, 100, None, context_left=300)
    assert (first.granted_max_tokens, first.decision.remaining) == (300, 600)
    assert first.settle(0)
    limits.settled()
    second = reserve(limits, 100, None, context_left=5000)
    assert (second.granted_max_tokens, second.decision.remaining) == (900, 0)
    waiting = reserve(limits, 100, None, context_left=5000)
    assert (waiting.allowed, waiting.too_large, waiting.policy, waiting.retry_after) == (False, False, "tokens", 60)


def test_explicit_max_tokens_reserves_no_more_than_the_context_holds(limits):
    limits.limiter.update(LimitSettings(max_tokens_per_minute=1000))
    reservation = reserve(limits, 100, 800, context_left=50)
    assert (reservation.granted_max_tokens, reservation.decision.remaining) == (50, 850)


def test_lim_11_sec_100_more_than_the_bucket_can_ever_hold_is_no_endless_429(limits):
    limits.limiter.update(LimitSettings(max_tokens_per_minute=1000))
    for num_prompt_tokens, max_tokens in ((100, 901), (1001, None), (1000, None), (0, 10**9)):
        decision = reserve(limits, num_prompt_tokens, max_tokens)
        assert isinstance(decision, Decision)
        assert (decision.allowed, decision.too_large, decision.retry_after) == (False, True, None)
        assert (decision.policy, decision.limit) == ("tokens", 1000)
    assert reserve(limits, 100, 900).granted_max_tokens == 900, "exactly the size fits"


def test_lim_11_the_smaller_of_owners_and_keys_bucket_counts(limits):
    limits.limiter.update(LimitSettings(max_tokens_per_minute=1000))
    key = Subject("key-1", KeyLimits(max_tokens_per_minute=200))
    assert reserve(limits, 100, 101, key=key).too_large
    assert reserve(limits, 50, None, key=key).granted_max_tokens == 150
    refused = reserve(limits, 50, None, key=key)
    assert (refused.allowed, refused.limit) == (False, 200)
    assert reserve(limits, 0, 1).decision.remaining == 799


def test_without_a_limit_of_tokens_nothing_is_held(limits):
    reservation = reserve(limits, 10, None, context_left=77)
    assert (reservation.granted_max_tokens, reservation.decision.policies) == (77, ())
    assert reservation.settle(5) is False


def test_impossible_counts_are_our_bug_and_said_so(limits):
    for arguments in ((-1, None, 1), (1, -1, 1), (1, None, -1)):
        with pytest.raises(ValueError, match="negative"):
            reserve(limits, *arguments)


def test_lim_7_a_dead_workers_slots_come_back_and_its_tokens_stay_as_noted(limits):
    limits.limiter.update(LimitSettings(max_tokens_per_minute=1000))
    slots = [acquire(limits) for _ in range(16)]
    reservation = reserve(limits, 100, 500)
    reservation.note(130)
    limits.restart_worker()
    assert isinstance(acquire(limits), Lease)
    after = reserve(limits, 0, 1)
    assert after.decision.remaining == 1000 - 130 - 1
    reservation.settle(0)
    slots[0].release()
    limits.settled()
    assert reserve(limits, 0, 1).decision.remaining == 1000 - 130 - 2, "the dead worker's own settlement comes too late"


def test_lim_9_logins_have_a_tighter_bucket_by_source(limits):
    run, check = limits.run, limits.limiter.check_login
    decisions = [run(check("192.0.2.1", f"user{i}")) for i in range(11)]
    assert passed(decisions) == 10
    assert (decisions[-1].policy, decisions[-1].retry_after) == ("login", 6)
    assert run(check("192.0.2.2", "user0")).allowed


def test_lim_9_tries_at_one_account_from_everywhere_slow_it_and_never_lock_it(limits):
    run, check = limits.run, limits.limiter.check_login
    decisions = [run(check(f"198.51.100.{i}", ("admin", "ADMIN")[i % 2])) for i in range(40)]
    assert passed(decisions) == 40
    assert [decision.delay_seconds for decision in decisions] == [0.0] * 10 + [4.0] * 30
    assert run(check("203.0.113.1", "other")).delay_seconds == 0.0


def test_lim_9_key_creation_and_password_change_have_their_own_buckets(limits):
    run, limiter = limits.run, limits.limiter
    created = [run(limiter.check_key_creation(ALICE)) for _ in range(21)]
    assert (passed(created), created[-1].policy, created[-1].retry_after) == (20, "key-creation", 180)
    changed = [run(limiter.check_password_change(ALICE)) for _ in range(11)]
    assert (passed(changed), changed[-1].policy) == (10, "password")
    assert run(limiter.check_key_creation(BOB)).allowed


def test_what_is_left_is_told_without_being_charged(limits):
    limits.limiter.update(LimitSettings(max_tokens_per_minute=1000))
    requests(limits, 5)
    for _ in range(3):
        left = limits.run(limits.limiter.remaining(ALICE))
        assert [(p.name, p.remaining) for decision in left for p in decision.policies] == [
            ("minute", 55), ("hour", 995), ("tokens", 1000), ("concurrency", 16)]


def test_with_rate_limiting_disabled_quotas_are_off_and_protections_stay(limits):
    limits.limiter.update(LimitSettings(rate_limiting_enabled=False, max_tokens_per_minute=10))
    assert passed(requests(limits, 100)) == 100
    assert limits.run(limits.limiter.check_source("192.0.2.1")).policies == ()
    assert reserve(limits, 500, 500).granted_max_tokens == 500
    assert passed([limits.run(limits.limiter.check_login("192.0.2.1", "a")) for _ in range(20)]) == 10
    leases = [acquire(limits) for _ in range(17)]
    assert isinstance(leases[-1], Decision)


def test_sec_098_a_clock_that_jumps_back_neither_blocks_nor_refills(limits):
    requests(limits, 60)
    limits.advance(-3600 if limits.table is None else -1)
    assert passed(requests(limits, 5)) == 0
    limits.advance(2)
    assert 1 <= passed(requests(limits, 10)) <= 3


def test_retry_after_is_right_to_the_second(limits):
    for per_minute in (7, 13, 60, 999):
        limits.limiter.update(LimitSettings(max_requests_per_minute=per_minute, max_requests_per_hour=10**6))
        principal = Subject(f"user of {per_minute}")
        requests(limits, per_minute, principal)
        for _ in range(20):
            refused = requests(limits, 1, principal)[0]
            assert not refused.allowed
            limits.advance(refused.retry_after_ms / 1000 - 0.002)
            assert passed(requests(limits, 1, principal)) == 0
            limits.advance(0.002)
            assert passed(requests(limits, 1, principal)) == 1
            limits.advance(0)
            before = limits.now_us
            waiting = requests(limits, 1, principal)[0]
            limits.advance(waiting.retry_after)
            assert passed(requests(limits, 1, principal)) == 1
            assert limits.now_us - before == waiting.retry_after * 1_000_000
            while passed(requests(limits, 1, principal)):
                pass


def test_lim_6_headers_of_a_whole_request(limits):
    limits.limiter.update(LimitSettings(max_tokens_per_minute=1000))
    request = requests(limits, 1)[0]
    tokens = reserve(limits, 100, 300)
    told = dict(headers([request, tokens.decision]))
    assert told[b"ratelimit-policy"] == b'"minute";q=60;w=60, "hour";q=1000;w=3600, "tokens";q=1000;w=60'
    assert told[b"ratelimit"] == b'"minute";r=59;t=1, "hour";r=999;t=4, "tokens";r=600;t=24'
    assert b"retry-after" not in told


def test_subjects_of_a_principal():
    principal = Principal("u1", "alice", "key", "user", frozenset(), key_id="k1", account_limits=None,
                          key_limits=KeyLimits(max_requests_per_minute=5))
    assert subjects(principal) == (Subject("u1"), Subject("k1", KeyLimits(max_requests_per_minute=5)))
    assert subjects(Principal("u1", "alice", "user", "user", frozenset())) == (Subject("u1"), None)


class DeadStore:
    """A store that never answers."""

    async def take(self, parts, cost=1, spent=0):
        raise StoreUnavailable("dead")

    hold = take

    def settle(self, hold, spent): ...

    def note(self, hold, spent): ...

    async def close(self): ...


@pytest.fixture
def dead() -> Iterator[Harness]:
    harness = Harness(None)
    alive, harness.limiter.store = harness.limiter.store, DeadStore()
    yield harness
    harness.limiter.store = alive
    harness.close()


def test_lim_10_sec_099_without_the_store_everything_is_closed_by_default(dead):
    run, limiter = dead.run, dead.limiter
    for decision in (run(limiter.check_source("192.0.2.1")), run(limiter.check_requests(ALICE)), acquire(dead),
                     run(limiter.check_login("192.0.2.1", "a")), run(limiter.check_key_creation(ALICE))):
        assert isinstance(decision, Decision)
        assert (decision.allowed, decision.unavailable, decision.retry_after) == (False, True, 5)
    limiter.update(LimitSettings(max_tokens_per_minute=10))
    assert reserve(dead, 1, 1).unavailable


def test_lim_10_sec_099_on_failure_open_lets_inference_pass_and_nothing_else(dead):
    run, limiter = dead.run, dead.limiter
    limiter.update(LimitSettings(on_failure="open", max_tokens_per_minute=10))
    for decision in (run(limiter.check_source("192.0.2.1")), run(limiter.check_requests(ALICE)),
                     acquire(dead).decision, reserve(dead, 1, None, context_left=50).decision):
        assert (decision.allowed, decision.degraded) == (True, True)
    assert acquire(dead).release() is False
    for decision in (run(limiter.check_source("192.0.2.1", administration=True)),
                     run(limiter.check_requests(ALICE, administration=True)),
                     run(limiter.check_login("192.0.2.1", "a")), run(limiter.check_key_creation(ALICE)),
                     run(limiter.check_password_change(ALICE))):
        assert (decision.allowed, decision.unavailable) == (False, True)


def test_settings_are_taken_from_the_configuration():
    class Security:
        rate_limiting_enabled = False
        max_requests_per_minute = 1
        max_requests_per_hour = 2
        max_requests_per_minute_per_ip = 3
        max_requests_per_hour_per_ip = 4
        max_tokens_per_minute = 5
        max_concurrent_requests_per_user = 6
        max_logins_per_minute_per_ip = 7
        max_key_creations_per_hour = 8

    assert LimitSettings.of(Security(), "open") == LimitSettings(False, 1, 2, 3, 4, 5, 6, 7, 8, "open")

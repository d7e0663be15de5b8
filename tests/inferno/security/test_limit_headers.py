"""security.limit_headers: fields that a structured-fields parser and the OpenAI client read (LIM-6)."""

import http_sfv
from hypothesis import given, settings
from hypothesis import strategies as st

from inferno.security.limit_headers import ORDER, Decision, PolicyState, duration, headers


def state(name="minute", *, quota=60, window=60, remaining=59, reset=1_000_000, wait=0, scope="principal"):
    return PolicyState(name, scope, quota, window, remaining, reset, wait, wait > 0)


def parsed(value):
    items = http_sfv.List()
    items.parse(value)
    return [(item.value, dict(item.params)) for item in items]


windows = {"minute": 60, "hour": 3600, "tokens": 60, "login": 60, "key-creation": 3600, "password": 60, "concurrency": None}
states = st.builds(
    lambda name, quota, left, reset, wait, scope: PolicyState(
        name, scope, quota, windows[name], min(left, quota), reset, wait, wait > 0),
    st.sampled_from(ORDER), st.integers(1, 2**31 - 1), st.integers(0, 2**31), st.integers(0, 2**32), st.integers(0, 2**32),
    st.sampled_from(["source", "principal", "key"]),
)
decisions = st.lists(st.builds(
    lambda policies: Decision(not any(policy.violated for policy in policies), tuple(policies)),
    st.lists(states, min_size=1, max_size=4)), min_size=1, max_size=4)


@given(decisions)
@settings(max_examples=200, deadline=None)
def test_lim_6_sec_086_sec_087_fields_are_structured_and_retry_after_is_never_less_than_any_t(all_decisions):
    told = dict(headers(all_decisions))
    policies, limits = parsed(told[b"ratelimit-policy"]), parsed(told[b"ratelimit"])
    names = [name for name, _ in policies]
    assert names == [name for name, _ in limits] == sorted(set(names), key=ORDER.index), "one member per policy"
    for (name, parameters), (_, limit) in zip(policies, limits, strict=True):
        assert 0 <= limit["r"] <= parameters["q"]
        assert set(limit) <= {"r", "t"}
        assert parameters.get("w") == windows[name]
        assert (parameters.get("qu") == "concurrent-requests") == (name == "concurrency")
    if all(decision.allowed for decision in all_decisions):
        assert b"retry-after" not in told
    else:
        assert int(told[b"retry-after"]) >= max([1, *(limit.get("t", 0) for _, limit in limits)])
        assert int(told[b"retry-after"]) == -(-int(told[b"retry-after-ms"]) // 1000)


def test_lim_6_retry_after_is_the_longest_wait_of_the_violated_policies():
    told = dict(headers([Decision(False, (
        state(remaining=0, wait=1_500_000), state("hour", quota=1000, window=3600, remaining=0, wait=3_600_000),
        state("tokens", quota=500, remaining=100, reset=59_000_000)))]))
    assert told[b"ratelimit"] == b'"minute";r=0;t=2, "hour";r=0;t=4, "tokens";r=100'
    assert (told[b"retry-after"], told[b"retry-after-ms"]) == (b"4", b"3600")


def test_lim_6_a_wait_of_one_microsecond_is_a_second():
    told = dict(headers([Decision(False, (state(remaining=0, wait=1),))]))
    assert (told[b"retry-after"], told[b"retry-after-ms"]) == (b"1", b"1")


def test_the_requests_trio_is_the_request_policy_with_the_least_left():
    told = dict(headers([Decision(True, (
        state(remaining=40, reset=20_000_000), state("hour", quota=1000, window=3600, remaining=7, reset=360_000_000))),
        Decision(True, (state("tokens", quota=5000, remaining=4000, reset=12_000_000),))]))
    assert told[b"x-ratelimit-limit-requests"] == b"1000"
    assert told[b"x-ratelimit-remaining-requests"] == b"7"
    assert told[b"x-ratelimit-reset-requests"] == b"6m0s"
    assert told[b"x-ratelimit-limit-tokens"] == b"5000"
    assert told[b"x-ratelimit-remaining-tokens"] == b"4000"
    assert told[b"x-ratelimit-reset-tokens"] == b"12s"


def test_lim_6_owner_and_key_are_told_as_one_policy_the_tighter():
    owner, key = state(remaining=50), state(quota=5, remaining=2, scope="key")
    assert dict(headers([Decision(True, (owner, key))]))[b"ratelimit"].startswith(b'"minute";r=2')
    violated = state(quota=60, remaining=3, wait=2_000_000)
    assert dict(headers([Decision(False, (violated, key))]))[b"ratelimit"] == b'"minute";r=3;t=2'


def test_a_store_that_is_away_says_when_to_come_again():
    assert headers([Decision(False, unavailable=True)]) == [(b"retry-after", b"5"), (b"retry-after-ms", b"5000")]


def test_lim_11_a_cost_that_never_fits_gets_no_retry_after():
    told = dict(headers([Decision(False, (state("tokens", quota=10, remaining=10),), too_large=True)]))
    assert b"retry-after" not in told
    assert told[b"ratelimit-policy"] == b'"tokens";q=10;w=60'


def test_nothing_to_tell_is_no_header():
    assert headers([]) == headers([Decision(True)]) == []


def test_durations_are_written_as_openai_writes_them():
    assert [duration(s) for s in (0, 1, 59, 60, 360, 3600, 3661)] == ["0s", "1s", "59s", "1m0s", "6m0s", "1h0m0s", "1h1m1s"]

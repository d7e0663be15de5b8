"""Two million sources within the bound, and none of them frees an offender (LIM-5, sec-093)."""

import os

import pytest
from inferno_native.buckets import BucketTable

from inferno.security.limit_policy import FAMILIES, Family

pytestmark = pytest.mark.slow

MIB = 1 << 20
NUM_SOURCES = 2_000_000
QUOTAS = (300, 10_000)


def allocated(table):
    return os.fstat(table.fd).st_blocks * 512


@pytest.mark.parametrize(
    ("family", "num_bytes", "name"), [(Family.SOURCE_4, 4, "IPv4"), (Family.SOURCE_6, 8, "IPv6")], ids=["IPv4", "IPv6"])
def test_lim_5_sec_093_two_million_sources_stay_within_32_mib(family, num_bytes, name):
    table = BucketTable.create(FAMILIES, num_owners=4, manual_clock=True)
    now, step = 1, 100_000
    offender = b"\xff" * num_bytes
    offender_passed = sum(table.check(family, offender, QUOTAS).allowed for _ in range(400))
    assert offender_passed == 300
    for number in range(NUM_SOURCES):
        # A multiplicative step spreads the addresses; odd, so that all are different.
        source = (number * 2654435761 % (1 << 32)).to_bytes(num_bytes, "big")
        table.check(family, source, QUOTAS)
        if number % step == step - 1:  # a tenth of a second later: buckets of one request are still not full
            now += 100_000
            table.set_now_us(now)
            offender_passed += sum(table.check(family, offender, QUOTAS).allowed for _ in range(10))
    assert offender_passed == 300 + (now - 1) * 300 // 60_000_000, "its refill and not one more"
    statistics = table.statistics(family)
    assert statistics["family_bytes"] <= 32 * MIB
    assert allocated(table) <= 33 * MIB
    assert statistics["num_overflowed"] > 0
    print(f"{name}: {NUM_SOURCES} sources, {allocated(table) / MIB:.1f} MiB allocated, {statistics}")
    table.close()


def test_lim_5_when_sources_pause_their_places_are_used_again():
    table = BucketTable.create([(1000, (60_000_000, 3_600_000_000), False)], manual_clock=True)
    for wave in range(50):
        table.set_now_us(1 + wave * 1_000_000)
        assert not any(table.check(0, b"%d %d" % (wave, i), QUOTAS).overflowed for i in range(800))
    assert table.statistics(0)["num_evicted"] > 30_000
    table.close()

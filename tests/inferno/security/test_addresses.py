"""security.addresses: whom a request counts for (LIM-3, LIM-4)."""

import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferno.security.addresses import UNKNOWN_SOURCE, ClientAddresses, parse_address, source_block

PROXY = "10.0.0.1"
XFF, FORWARDED = b"X-Forwarded-For", b"Forwarded"


@pytest.fixture
def behind_proxy():
    return ClientAddresses(["10.0.0.0/8", "fd00::/8"])


def test_lim_4_sec_088_headers_of_a_peer_that_is_not_trusted_are_ignored(behind_proxy, caplog):
    for i in range(50):
        assert behind_proxy.client_address("192.0.2.1", [(XFF, b"1.1.1.%d" % i)]) == "192.0.2.1"
    assert ClientAddresses().client_address(PROXY, [(XFF, b"1.1.1.1")]) == PROXY
    assert not caplog.records


def test_lim_4_sec_089_the_rightmost_entry_that_is_not_trusted_is_the_client(behind_proxy):
    find = behind_proxy.client_address
    assert find(PROXY, [(XFF, b"6.6.6.6, 192.0.2.7")]) == "192.0.2.7"
    assert find(PROXY, [(XFF, b"6.6.6.6, 192.0.2.7, 10.1.2.3,10.9.9.9")]) == "192.0.2.7"
    assert find(PROXY, [(XFF, b"10.1.1.1, 10.2.2.2")]) == "10.1.1.1", "all trusted: the leftmost"
    assert find(PROXY, []) == PROXY
    assert find(PROXY, [(b"X-Real-IP", b"1.1.1.1"), (b"True-Client-IP", b"1.1.1.1")]) == PROXY


@pytest.mark.parametrize(
    ("value", "client"),
    [
        (b"192.0.2.7:4711", "192.0.2.7"),
        (b"[2001:db8::7]:4711", "2001:db8::7"),
        (b"[2001:db8::7]", "2001:db8::7"),
        (b"2001:DB8:0::7", "2001:db8::7"),
        (b"::ffff:192.0.2.7", "192.0.2.7"),
        (b"\t192.0.2.7 ", "192.0.2.7"),
    ],
)
def test_lim_4_sec_090_ports_and_brackets_are_read(behind_proxy, value, client):
    assert behind_proxy.client_address(PROXY, [(XFF, value)]) == client


@pytest.mark.parametrize(
    ("value", "client"),
    [
        (b"for=192.0.2.7", "192.0.2.7"),
        (b'For="[2001:db8::7]:4711";proto=https;by=203.0.113.43', "2001:db8::7"),
        (b'for="192.0.2.7:80", for=10.0.0.9', "192.0.2.7"),
        (b"for=6.6.6.6, proto=http;for=192.0.2.7;host=example.com", "192.0.2.7"),
    ],
)
def test_lim_4_sec_090_forwarded_is_read(behind_proxy, value, client):
    assert behind_proxy.client_address(PROXY, [(FORWARDED, value)]) == client


BAD = [
    [(XFF, b"1.1.1.1"), (b"x-forwarded-for", b"2.2.2.2")],
    [(XFF, b"1.1.1.1"), (FORWARDED, b"for=1.1.1.1")],
    [(FORWARDED, b"for=1.1.1.1"), (FORWARDED, b"for=1.1.1.1")],
    *([(XFF, value)] for value in (
        b"", b"unknown", b"1.1.1", b"01.1.1.1", b"1.1.1.1, ", b"1.1.1.1,,10.0.0.1", b"[::1", b"[1.1.1.1]", b"1.1.1.1:", b"1.1.1.1:x",
        b"1.1.1.1:70000", b"1.1.1.1 2.2.2.2", b"\xff", "１.1.1.1".encode(), b"for=1.1.1.1", b"http://1.1.1.1", b"::g",
        b", ".join([b"10.0.0.2"] * 33),
    )),
    *([(FORWARDED, value)] for value in (
        b"", b"1.1.1.1", b"for", b"for=", b"for=_hidden", b"for=unknown", b"for=2001:db8::7", b'for="2001:db8::7"', b"for=1.1.1.1:80",
        b"proto=https", b"for=1.1.1.1;for=2.2.2.2", b'for="1.1.1.1', b'for=1.1.1.1"', b'for="1.1.1.1,for=2.2.2.2"', b"for =1.1.1.1",
        b"for=1.1.1.1;;proto=http",
    )),
]  # fmt: skip


@pytest.mark.parametrize("headers", BAD, ids=repr)
def test_lim_4_sec_090_anything_odd_counts_as_the_peer_with_one_warning(headers, caplog):
    addresses = ClientAddresses(["10.0.0.0/8"])
    with caplog.at_level(logging.WARNING):
        for _ in range(20):
            assert addresses.client_address(PROXY, headers) == PROXY
    assert len(caplog.records) == 1
    assert "1.1.1.1" not in caplog.text, "what a client wrote does not reach the log"


def test_lim_4_warnings_are_bounded(caplog):
    addresses = ClientAddresses(["10.0.0.0/8"])
    for i in range(2000):
        addresses.client_address(f"10.0.{i // 250}.{i % 250}", [(XFF, b"x")])
    assert len(caplog.records) == 256


@given(st.lists(st.tuples(st.sampled_from([XFF, FORWARDED, b"forwarded", b"host"]), st.binary(max_size=60)), max_size=3))
@settings(max_examples=200, deadline=None)
def test_lim_4_no_header_makes_anything_but_an_address(headers):
    client = ClientAddresses(["10.0.0.0/8"]).client_address(PROXY, headers)
    assert str(parse_address(client)) == client


@given(st.ip_addresses(), st.lists(st.ip_addresses(), max_size=4))
@settings(max_examples=200, deadline=None)
def test_lim_4_what_a_client_prepends_changes_nothing(client, prepended):
    addresses = ClientAddresses(["10.0.0.0/8"])
    line = ", ".join(str(hop) for hop in [*prepended, client, "10.0.0.2"]).encode()
    if addresses.is_trusted(parse_address(str(client))):
        return
    assert addresses.client_address(PROXY, [(XFF, line)]) == str(parse_address(str(client)))


def test_a_peer_without_an_address_is_itself(behind_proxy):
    assert behind_proxy.client_address("", [(XFF, b"1.1.1.1")]) == ""
    assert behind_proxy.client_address("fd00::1%eth0", [(XFF, b"1.1.1.1")]) == "1.1.1.1"
    assert behind_proxy.client_address("::ffff:10.0.0.1", [(XFF, b"1.1.1.1")]) == "1.1.1.1"


def test_trusted_proxies_must_be_addresses_or_networks():
    for entry in ("10.0.0.1/8", "proxy.internal", "*", "", "10.0.0.0/33"):
        with pytest.raises(ValueError, match="trusted_proxies"):
            ClientAddresses([entry])


def test_lim_3_sec_091_sec_092_blocks():
    assert source_block("192.0.2.5") == source_block("::ffff:192.0.2.5") == source_block("::ffff:c000:0205")
    assert source_block("192.0.2.5").version == 4
    blocks = {source_block(f"2001:db8:1:2:{i:x}::1") for i in range(10_000)}
    assert len(blocks) == 1
    assert blocks.pop() == (6, bytes.fromhex("20010db800010002"), "2001:db8:1:2::/64")
    assert source_block("2001:db8:1:3::1") != source_block("2001:db8:1:2::1")
    assert source_block("fe80::1%eth0") == source_block("fe80::1%wlan1") == source_block("fe80::1")
    assert source_block("2001:db8::1", 56) == source_block("2001:db8:0:ff::1", 56)
    assert source_block("unix") == UNKNOWN_SOURCE

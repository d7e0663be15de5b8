"""Where a request comes from: the client's address behind trusted proxies, and the block that counts as one source.

Owns the reading of `Forwarded` (RFC 7239) and `X-Forwarded-For`; the HTTP server's own handling of them is off. Does not
know limits. Runs in the front workers.

One rule: the peer, unless the peer is a trusted proxy. Then the forwarding header, if there is exactly one line of one
of the two, is walked from the right over trusted hops; the first address that is not trusted is the client, and if all
are trusted, the leftmost. Anything else (both headers, a header twice, an entry that is no address, more than 32 hops)
counts as the peer, with one warning per kind of fault and proxy, so that a misconfigured proxy is found but cannot
fill the log.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

logger = logging.getLogger(__name__)

IPv4 = ipaddress.IPv4Address
IPv6 = ipaddress.IPv6Address
Address = IPv4 | IPv6

MAX_HOPS = 32
MAX_WARNINGS = 256
DEFAULT_IPV6_PREFIX = 64


class SourceBlock(NamedTuple):
    """What counts as one source: an IPv4 address, or the block of an IPv6 address that one subscriber has."""

    version: int  # 4, 6, or 0 for a peer without an address (a Unix socket)
    key: bytes
    text: str  # "192.0.2.5", "2001:db8::/64", "unknown": for audit records


UNKNOWN_SOURCE = SourceBlock(0, b"", "unknown")


def parse_address(text: str) -> Address | None:
    """Read an address: IPv4-mapped IPv6 becomes IPv4, a zone is dropped, anything else that is odd is None."""
    text = text.partition("%")[0] if ":" in text else text
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


@lru_cache(maxsize=8192)
def source_block(address: str, ipv6_prefix: int = DEFAULT_IPV6_PREFIX) -> SourceBlock:
    """The source that an address belongs to; text that is no address is one source, `unknown`, for all such."""
    parsed = parse_address(address)
    if parsed is None:
        return UNKNOWN_SOURCE
    if isinstance(parsed, IPv4):
        return SourceBlock(4, parsed.packed, str(parsed))
    network = ipaddress.IPv6Network((parsed, ipv6_prefix), strict=False)
    return SourceBlock(6, network.network_address.packed[: (ipv6_prefix + 7) // 8], str(network))


@lru_cache(maxsize=8192)
def usual_form(address: str) -> str:
    """An address as we write it; text that is none stays as it is."""
    parsed = parse_address(address)
    return address if parsed is None else str(parsed)


class ClientAddresses:
    """Finds the client's address; `trusted_proxies` are addresses or networks (`10.0.0.0/8`, `::1`).

    Raises ValueError, naming the entry, for one that is neither.
    """

    def __init__(self, trusted_proxies: Iterable[str] = ()) -> None:
        self._trusted = tuple(_network(entry) for entry in trusted_proxies)
        self._warned: set[tuple[str, str]] = set()

    def is_trusted(self, address: Address) -> bool:
        return any(address.version == network.version and address in network for network in self._trusted)

    def client_address(self, peer: str, headers: Sequence[tuple[bytes, bytes]]) -> str:
        """Return the client's address in its usual form; `headers` are the raw ones, as they came."""
        if not self._trusted:
            return usual_form(peer)
        parsed_peer = parse_address(peer)
        if parsed_peer is None:
            return peer
        usual = str(parsed_peer)
        if not self.is_trusted(parsed_peer):
            return usual
        lines = [(name.lower(), value) for name, value in headers if name.lower() in _READERS]
        if not lines:
            return usual
        if len(lines) > 1:
            mixed = len({name for name, _ in lines}) > 1
            return self._peer(
                usual, "both Forwarded and X-Forwarded-For" if mixed else "a forwarding header twice"
            )
        name, value = lines[0]
        entries = value.split(b",")
        if len(entries) > MAX_HOPS:
            return self._peer(usual, "too many hops in a forwarding header")
        client = parsed_peer
        for entry in reversed(entries):
            hop = _READERS[name](entry)
            if hop is None:
                return self._peer(usual, "a forwarding header with an entry that is no address")
            client = hop
            if not self.is_trusted(hop):
                break
        return str(client)

    def _peer(self, peer: str, fault: str) -> str:
        if (peer, fault) not in self._warned and len(self._warned) < MAX_WARNINGS:
            self._warned.add((peer, fault))
            logger.warning("trusted proxy %s sent %s: its requests count as its own", peer, fault)
        return peer


def _network(entry: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(entry.strip())
    except ValueError as error:
        raise ValueError(f"trusted_proxies: {entry!r} is neither an address nor a network") from error


def _ascii(value: bytes) -> str | None:
    try:
        return value.decode("ascii").strip(" \t")
    except UnicodeDecodeError:
        return None


def _without_port(text: str) -> str | None:
    """Drop the port of `1.2.3.4:5`, `[::1]:5`, and the brackets; None where they do not close or it is no port."""
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        if not bracket or ":" not in host or (port and not port.startswith(":")):
            return None
        return host if not port or _is_port(port[1:]) else None
    if text.count(":") == 1:
        host, _, port = text.partition(":")
        return host if _is_port(port) else None
    return text


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535


def _forwarded_for_entry(entry: bytes) -> Address | None:
    """One entry of X-Forwarded-For: an address, with or without a port."""
    text = _ascii(entry)
    host = _without_port(text) if text else None
    return parse_address(host) if host else None


def _forwarded_element(entry: bytes) -> Address | None:
    """One element of Forwarded: its only `for`, an address (RFC 7239 section 6: IPv6 in brackets, in quotes).

    Quoted commas and semicolons are not taken apart: no address has them, and an element cut by one is refused.
    """
    text = _ascii(entry)
    if not text:
        return None
    found: list[str] = []
    for pair in text.split(";"):
        name, equals, value = pair.strip(" \t").partition("=")
        if not equals or not name or not value or name != name.strip() or value != value.strip():
            return None
        if value.startswith('"') != value.endswith('"') or value == '"' or '"' in value[1:-1]:
            return None
        if name.lower() == "for":
            found.append(value)
    if len(found) != 1:
        return None
    value = found[0]
    quoted = value.startswith('"')
    value = value[1:-1] if quoted else value
    if ":" in value and (not quoted or (value.count(":") > 1 and not value.startswith("["))):
        return None
    host = _without_port(value)
    return parse_address(host) if host else None


_READERS = {b"x-forwarded-for": _forwarded_for_entry, b"forwarded": _forwarded_element}

"""API keys: their form, checksum, and the keyed hash that the store keeps.

    inf_<id>_<secret><checksum>      id 12, secret 43 (32 random bytes), checksum 6 characters of 0-9A-Za-z

The checksum (CRC-32 of all before it) refuses typing errors and noise before the store is asked; it is no secret and
proves nothing. The store keeps HMAC-SHA-256 of the whole key with a server key derived from the pepper, so neither a
copy of the database nor the hash itself opens anything. Runs in front workers, the supervisor and commands.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import zlib
from typing import NamedTuple

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
PREFIX = "inf_"
ID_LENGTH = 12
SECRET_LENGTH = 43  # 62**43 > 2**256
CHECKSUM_LENGTH = 6
KEY_LENGTH = len(PREFIX) + ID_LENGTH + 1 + SECRET_LENGTH + CHECKSUM_LENGTH
_FORM = re.compile(r"inf_[0-9A-Za-z]{12}_[0-9A-Za-z]{49}", re.ASCII)
# What an unknown id is compared with: the path is the same, and nothing hashes to it in practice.
DUMMY_DIGEST = bytes(32)


class NewKey(NamedTuple):
    """A key just made. `text` is shown once; `digest` and `last_four` are kept."""

    id: str
    text: str
    digest: bytes
    last_four: str


class KeyHasher:
    """Holds the derived pepper; hashes keys and compares in constant time."""

    def __init__(self, pepper: bytes) -> None:
        if len(pepper) < 32:
            raise ValueError(f"a pepper of {len(pepper)} bytes; at least 32 are needed")
        self._key = hmac.digest(pepper, b"inferno/api-key/v1", "sha256")

    def __repr__(self) -> str:
        return "KeyHasher()"

    def digest(self, key: str) -> bytes:
        return hmac.digest(self._key, key.encode("utf-8"), "sha256")

    def matches(self, key: str, digest: bytes) -> bool:
        """Compare in constant time; `digest` is DUMMY_DIGEST where the id is unknown."""
        return hmac.compare_digest(self.digest(key), digest)

    def create(self) -> NewKey:
        """Return a new key from the system's random source."""
        key_id = "".join(secrets.choice(ALPHABET) for _ in range(ID_LENGTH))
        secret = base62(secrets.token_bytes(32), SECRET_LENGTH)
        text = f"{PREFIX}{key_id}_{secret}"
        text += checksum(text)
        return NewKey(key_id, text, self.digest(text), text[-4:])


def base62(data: bytes, length: int) -> str:
    """Return `data` as a number in base 62, most significant first, padded to `length`."""
    number = int.from_bytes(data, "big")
    digits = []
    for _ in range(length):
        number, digit = divmod(number, 62)
        digits.append(ALPHABET[digit])
    if number:
        raise ValueError(f"{len(data)} bytes do not fit {length} characters")
    return "".join(reversed(digits))


def checksum(body: str) -> str:
    """Return the six characters that follow `body` (prefix, id, secret)."""
    return base62(zlib.crc32(body.encode("ascii")).to_bytes(4, "big"), CHECKSUM_LENGTH)


def looks_like_key(text: str) -> bool:
    """Whether a credential claims to be an API key rather than a session token."""
    return text.startswith(PREFIX)


def key_id_of(text: str) -> str | None:
    """Return the id of a well-formed key, or None: wrong form or checksum. Says nothing about its being valid."""
    if len(text) != KEY_LENGTH or _FORM.fullmatch(text) is None:
        return None
    if text[-CHECKSUM_LENGTH:] != checksum(text[:-CHECKSUM_LENGTH]):
        return None
    return text[len(PREFIX) : len(PREFIX) + ID_LENGTH]


def fingerprint_key(pepper: bytes) -> bytes:
    """Return the key of fingerprints, derived from the pepper."""
    return hmac.digest(pepper, b"inferno/fingerprint/v1", "sha256")


def fingerprint(key: bytes, secret: str) -> str:
    """Return how a secret appears in the audit log: 24 hexadecimal digits of a keyed hash.

    The secret is hashed first, so that a 10 MB value costs one pass.
    """
    return hmac.digest(key, hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest(), "sha256").hex()[
        :24
    ]

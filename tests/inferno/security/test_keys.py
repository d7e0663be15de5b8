"""API keys: form, checksum, hash at rest, fingerprints."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferno.security import keys
from inferno.security.keys import ALPHABET, KeyHasher, key_id_of

HASHER = KeyHasher(b"p" * 32)


def test_key_1_form():
    made = HASHER.create()
    assert re.fullmatch(r"inf_[0-9A-Za-z]{12}_[0-9A-Za-z]{43}[0-9A-Za-z]{6}", made.text)
    assert made.text.startswith(f"inf_{made.id}_")
    assert key_id_of(made.text) == made.id
    assert made.last_four == made.text[-4:]
    assert len({HASHER.create().text for _ in range(200)}) == 200


def test_sec_056_every_flip_of_one_character_is_refused_by_the_checksum():
    text = HASHER.create().text
    for position in range(len(text)):
        for character in (*ALPHABET, "_", "é", " ", "\0"):
            if character != text[position]:
                assert key_id_of(text[:position] + character + text[position + 1 :]) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda key: key + " ",
        lambda key: " " + key,
        lambda key: key + "\n",
        lambda key: key.swapcase(),
        lambda key: key.upper(),
        lambda key: key.replace("i", "\u0456", 1),
        lambda key: key.replace("_", "\uff3f", 1),
        lambda key: key[:-1],
        lambda key: key + "A",
        lambda key: key * 2,
        lambda key: "",
        lambda key: "inf_",
        lambda key: key.replace("inf_", "INF_"),
    ],
)
def test_sec_057_only_the_exact_text_is_a_key(change):
    assert key_id_of(change(HASHER.create().text)) is None


@given(st.text(max_size=100))
@settings(max_examples=200, deadline=None)
def test_no_text_makes_the_parser_raise(text):
    assert key_id_of(text) is None
    assert key_id_of("inf_" + text) is None


def test_key_1_the_store_keeps_a_keyed_hash_of_the_whole_key():
    made = HASHER.create()
    assert HASHER.matches(made.text, made.digest)
    assert not HASHER.matches(made.text[:-1] + "x", made.digest)
    assert not HASHER.matches(made.text, keys.DUMMY_DIGEST)
    assert not KeyHasher(b"q" * 32).matches(made.text, made.digest)  # another pepper
    assert not HASHER.matches(made.digest.hex(), made.digest)  # the hash is no key
    assert made.text.encode() not in made.digest


def test_sec_058_right_and_unknown_ids_share_one_constant_time_comparison(monkeypatch):
    """On structure: both end in hmac.compare_digest over equally long values."""
    seen = []
    real = keys.hmac.compare_digest
    monkeypatch.setattr(keys.hmac, "compare_digest", lambda a, b: seen.append((len(a), len(b))) or real(a, b))
    made = HASHER.create()
    HASHER.matches(made.text, HASHER.create().digest)
    HASHER.matches(made.text, keys.DUMMY_DIGEST)
    assert seen == [(32, 32), (32, 32)]


def test_base62_law():
    assert keys.base62(b"\0", 2) == "00"
    assert keys.base62(b"\xff" * 32, 43)[0] != "0"
    with pytest.raises(ValueError, match="do not fit"):
        keys.base62(b"\xff" * 32, 42)


def test_a_short_pepper_is_refused_and_nothing_prints_it():
    with pytest.raises(ValueError, match="at least 32"):
        KeyHasher(b"short")
    assert repr(KeyHasher(b"S" * 32)) == "KeyHasher()"


def test_aud_5_fingerprints_are_keyed_and_stable():
    one = keys.fingerprint_key(b"p" * 32)
    assert keys.fingerprint(one, "secret") == keys.fingerprint(one, "secret")
    assert keys.fingerprint(one, "secret") != keys.fingerprint(keys.fingerprint_key(b"q" * 32), "secret")
    assert re.fullmatch(r"[0-9a-f]{24}", keys.fingerprint(one, "\ud800"))

"""Certificate pairs, contexts, reload. NET-1, NET-2; sec-128 and its neighbours need a listener (end_to_end)."""

import datetime
import ssl
import threading

import pytest

from inferno import tls
from inferno.errors import ConfigError


@pytest.fixture
def pair(tmp_path):
    return tls.make_self_signed(tmp_path / "tls")


def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> ssl.SSLObject:
    """Run both ends in memory and return the client's."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    a = client.wrap_bio(to_client, to_server, server_hostname="localhost")
    b = server.wrap_bio(to_server, to_client, server_side=True)
    pending = {a, b}
    for _ in range(10):
        for side in list(pending):
            try:
                side.do_handshake()
                pending.discard(side)
            except ssl.SSLWantReadError:
                pass
        if not pending:
            return a
    raise AssertionError("the handshake does not end")


def client_context(pair, **options) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(pair[0]))
    for name, value in options.items():
        setattr(context, name, value)
    return context


def test_net_1_floor_1_2_speaks_both_and_only_forward_secret_aead(pair):
    server = tls.server_context(*pair, minimum="1.2")
    assert handshake(server, client_context(pair)).version() == "TLSv1.3"
    old = client_context(pair, maximum_version=ssl.TLSVersion.TLSv1_2)
    side = handshake(server, old)
    assert side.version() == "TLSv1.2"
    assert side.cipher()[0].startswith("ECDHE-")
    assert side.compression() is None
    for cipher in server.get_ciphers():
        assert cipher["aead"]
        assert cipher["protocol"] == "TLSv1.3" or cipher["name"].startswith("ECDHE-")


def test_net_1_floor_1_3_refuses_1_2(pair):
    server = tls.server_context(*pair, minimum="1.3")
    with pytest.raises(ssl.SSLError):
        handshake(server, client_context(pair, maximum_version=ssl.TLSVersion.TLSv1_2))


def test_net_1_old_suites_are_refused(pair):
    old = client_context(pair, maximum_version=ssl.TLSVersion.TLSv1_2)
    old.set_ciphers("ECDHE-ECDSA-AES128-SHA256:AES128-GCM-SHA256")
    with pytest.raises(ssl.SSLError):
        handshake(tls.server_context(*pair, minimum="1.2"), old)


def test_net_2_a_key_that_others_can_read_is_refused_with_the_fix(pair):
    pair[1].chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        tls.check_pair(*pair)
    pair[1].chmod(0o640)
    assert tls.check_pair(*pair).names


def test_net_2_foreign_key_missing_file_garbage_and_expiry_are_named(pair, tmp_path):
    other = tls.make_self_signed(tmp_path / "other")
    with pytest.raises(ConfigError, match="does not belong"):
        tls.check_pair(pair[0], other[1])
    with pytest.raises(ConfigError, match=r"tls_cert_path: cannot read"):
        tls.check_pair(tmp_path / "absent.pem", pair[1])
    (tmp_path / "garbage.pem").write_text("-----BEGIN CERTIFICATE-----\nnonsense\n")
    with pytest.raises(ConfigError, match="holds no PEM certificate"):
        tls.check_pair(tmp_path / "garbage.pem", pair[1])
    late = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=tls.SELF_SIGNED_DAYS + 1)
    with pytest.raises(ConfigError, match="expired on"):
        tls.check_pair(*pair, now=late)
    with pytest.raises(ConfigError, match="not valid before"):
        tls.check_pair(*pair, now=late - datetime.timedelta(days=365))


def test_net_2_expiry_is_warned_three_weeks_before(pair):
    near = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=tls.SELF_SIGNED_DAYS - 10)
    assert "expires in" in tls.check_pair(*pair, now=near).warnings[0]
    assert not tls.check_pair(*pair).warnings


def test_net_2_reload_serves_the_new_pair_and_a_bad_one_keeps_the_old(pair, tmp_path):
    server = tls.ReloadableContext(tls.server_context(*pair, minimum="1.2"))
    new = tls.make_self_signed(tmp_path / "new")
    with pytest.raises(ConfigError):
        server.in_force = tls.server_context(new[0], pair[1], minimum="1.2")
    handshake(server, client_context(pair))
    server.in_force = tls.server_context(*new, minimum="1.2")
    handshake(server, client_context(new))
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server, client_context(pair))


def test_client_certificates_are_required_when_an_authority_is_named(pair, tmp_path):
    client_pair = tls.make_self_signed(tmp_path / "client")
    server = tls.server_context(*pair, minimum="1.2", client_ca=client_pair[0])
    without = client_context(pair, maximum_version=ssl.TLSVersion.TLSv1_2)
    with pytest.raises(ssl.SSLError):
        handshake(server, without)
    with pytest.raises(ConfigError, match="tls_client_ca_path"):
        tls.server_context(*pair, minimum="1.2", client_ca=pair[1])


def test_self_signed_never_overwrites_and_is_private(tmp_path):
    pair = tls.make_self_signed(tmp_path / "tls", ("llm.example.com", "10.0.0.1"))
    assert [path.stat().st_mode & 0o777 for path in pair] == [0o600, 0o600]
    assert tls.check_pair(*pair).names == ("llm.example.com", "10.0.0.1")
    with pytest.raises(FileExistsError):
        tls.make_self_signed(tmp_path / "tls")


def test_an_encrypted_key_is_refused_and_never_asks(pair, monkeypatch):
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(pair[1].read_bytes(), None)
    pair[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )  # fmt: skip
    outcome = []

    def attempt():
        try:
            tls.check_pair(*pair)
        except ConfigError as error:
            outcome.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(60)
    assert "is encrypted" in str(outcome[0])

"""TLS through the real server: only the TLS listener, its versions and suites, reload, client certificates, refusals."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import ssl
import subprocess
import sys
import time

import httpx
import openai
import pytest

from inferno import tls
from tests.certificates import issue
from tests.end_to_end.harness import ADMIN_PASSWORD, JWT_SECRET, RunningServer, eventually, running
from tests.ports import free_port

pytestmark = pytest.mark.e2e
TIMEOUT = 10


def tls_config(pair, extra=""):
    return f'''
[server]
tls_enabled = true
tls_cert_path = "{pair[0]}"
tls_key_path = "{pair[1]}"
{extra}
'''


@contextlib.contextmanager
def tls_server(folder, pair=None, *, extra="", **options):
    pair = pair or tls.make_self_signed(folder / "tls")
    server = RunningServer(folder, config=tls_config(pair, extra), authority=pair[0], **options)
    try:
        yield server.start(ready=False)
    finally:
        if server.process is not None and server.process.poll() is None:
            server.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with tls_server(tmp_path_factory.mktemp("tls"), workers=2) as started:
        yield started


def client_context(server, **options):
    context = ssl.create_default_context(cafile=str(server.authority))
    for name, value in options.items():
        setattr(context, name, value)
    return context


def connect(server, context):
    with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT) as plain:
        with context.wrap_socket(plain, server_hostname="127.0.0.1") as secure:
            secure.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            data = b""
            while part := secure.recv(4096):
                data += part
            return secure.version(), secure.cipher()[0], data


def served_certificate(server):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT) as plain:
        with context.wrap_socket(plain) as secure:
            return secure.getpeercert(binary_form=True)


def raw_plain(port, data):
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT) as sock:
        sock.sendall(data)
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while part := sock.recv(4096):
                received += part
        return received


def ports_of(server):
    """TCP ports on which a process of this server listens."""
    inodes = set()
    for pid in [server.process.pid, *server.processes("inferno")]:
        for link in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                inodes.add(os.readlink(f"/proc/{pid}/fd/{link}"))
    found = set()
    for name in ("tcp", "tcp6"):
        with open(f"/proc/net/{name}") as file:
            for line in file.read().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                    found.add(int(fields[1].rsplit(":", 1)[1], 16))
    return found


def test_net_1_sec_151_versions_from_1_2_and_only_forward_secret_aead(server):
    version, cipher, data = connect(server, client_context(server))
    assert (version, data.split(b"\r\n")[0]) == ("TLSv1.3", b"HTTP/1.1 200 OK")
    version, cipher, _ = connect(server, client_context(server, maximum_version=ssl.TLSVersion.TLSv1_2))
    assert version == "TLSv1.2"
    assert cipher.startswith("ECDHE-")


def test_net_1_sec_152_a_floor_of_1_3_refuses_1_2(tmp_path):
    with tls_server(tmp_path, extra='[security]\nmin_tls_version = "1.3"') as server:
        assert connect(server, client_context(server))[0] == "TLSv1.3"
        with pytest.raises(ssl.SSLError):
            connect(server, client_context(server, maximum_version=ssl.TLSVersion.TLSv1_2))


def test_net_1_sec_151_sslyze_finds_nothing_else(server):
    """Judged from outside: protocol versions, suites, compression, renegotiation, the well-known faults."""
    from sslyze import (
        ScanCommand,
        Scanner,
        ServerNetworkConfiguration,
        ServerNetworkLocation,
        ServerScanRequest,
    )

    commands = {
        ScanCommand.SSL_2_0_CIPHER_SUITES, ScanCommand.SSL_3_0_CIPHER_SUITES, ScanCommand.TLS_1_0_CIPHER_SUITES,
        ScanCommand.TLS_1_1_CIPHER_SUITES, ScanCommand.TLS_1_2_CIPHER_SUITES, ScanCommand.TLS_1_3_CIPHER_SUITES,
        ScanCommand.TLS_COMPRESSION, ScanCommand.SESSION_RENEGOTIATION, ScanCommand.HEARTBLEED, ScanCommand.ROBOT,
        ScanCommand.OPENSSL_CCS_INJECTION, ScanCommand.TLS_FALLBACK_SCSV,
    }  # fmt: skip
    location = ServerNetworkLocation("localhost", server.port, ip_address="127.0.0.1")
    scanner = Scanner()
    patient = ServerNetworkConfiguration(tls_server_name_indication="localhost", network_timeout=20)
    scanner.queue_scans([ServerScanRequest(location, network_configuration=patient, scan_commands=commands)])
    result = next(iter(scanner.get_results())).scan_result
    assert result is not None
    for name in ("ssl_2_0", "ssl_3_0", "tls_1_0", "tls_1_1"):
        found = getattr(result, f"{name}_cipher_suites").result
        assert not found.is_tls_version_supported, name
    suites = {
        name: [entry.cipher_suite.name for entry in getattr(result, f"{name}_cipher_suites").result.accepted_cipher_suites]
        for name in ("tls_1_2", "tls_1_3")
    }  # fmt: skip
    print("sslyze accepts", suites)
    assert suites["tls_1_2"]
    assert suites["tls_1_3"]
    assert all(name.startswith("TLS_ECDHE_") for name in suites["tls_1_2"])
    for name in (*suites["tls_1_2"], *suites["tls_1_3"]):
        assert "GCM" in name or "CHACHA20_POLY1305" in name, name
    assert not result.tls_compression.result.supports_compression
    assert not result.session_renegotiation.result.is_vulnerable_to_client_renegotiation_dos
    assert not result.heartbleed.result.is_vulnerable_to_heartbleed
    assert not result.openssl_ccs_injection.result.is_vulnerable_to_ccs_injection


def test_net_1_sec_154_plain_bytes_close_unread_and_no_plain_listener_exists(server):
    key = "inf_canary_" + "x" * 40
    body = b'{"model":"demo"}' * 1000
    request = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {key}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    answer = raw_plain(server.port, request + body)
    assert b"HTTP/" not in answer  # no redirect, no error page: at most a TLS alert
    assert key not in server.output()
    assert ports_of(server) == {server.port}


@pytest.mark.parametrize("required", [True, False])
def test_net_1_where_tls_is_required_the_operators_listener_speaks_it_too(tmp_path, required):
    port = free_port()
    extra = f"""admin_host = "127.0.0.1"
admin_port = {port}
[security]
tls_required = {str(required).lower()}"""
    with tls_server(tmp_path, extra=extra) as server:
        request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        assert (b"200 OK" in raw_plain(port, request)) is not required
        if required:
            assert b"HTTP/" not in raw_plain(port, request)
            with server.http() as client:
                assert client.get(f"https://127.0.0.1:{port}/metrics").status_code == 200


def test_net_2_hsts_stands_on_tls_answers_and_only_there(server, tmp_path):
    with server.http() as client:
        assert client.get("/healthz").headers["strict-transport-security"].startswith("max-age=")
    plain = RunningServer(tmp_path)
    try:
        plain.start(ready=False)
        with plain.http() as client:
            assert "strict-transport-security" not in client.get("/healthz").headers
    finally:
        plain.stop()


def test_net_2_sec_155_reload_serves_the_new_pair_and_a_bad_one_keeps_the_old(tmp_path):
    pair = tls.make_self_signed(tmp_path / "tls")
    with tls_server(tmp_path, pair, workers=2) as server:
        first = served_certificate(server)
        new = tls.make_self_signed(tmp_path / "new")
        for old, fresh in zip(pair, new, strict=True):
            old.write_bytes(fresh.read_bytes())
        server.process.send_signal(signal.SIGHUP)
        expected = ssl.PEM_cert_to_DER_cert(new[0].read_text())
        assert eventually(lambda: all(served_certificate(server) == expected for _ in range(8)))
        assert first != expected
        other = tls.make_self_signed(tmp_path / "other")
        pair[0].write_bytes(other[0].read_bytes())  # with the key of another certificate
        server.process.send_signal(signal.SIGHUP)
        assert eventually(lambda: any(e["result"] == "failure" for e in server.events("config.reload")))
        assert all(served_certificate(server) == expected for _ in range(8))
        assert eventually(lambda: "the old one stays" in server.output())
        assert "does not belong" in server.events("config.reload")[-1]["reason"]
        assert server.process.poll() is None


@pytest.mark.slow
def test_net_2_sec_155_a_running_stream_goes_on_over_a_reload(tmp_path):
    pair = tls.make_self_signed(tmp_path / "tls")
    with running(tmp_path, config=tls_config(pair), authority=pair[0]) as server:
        key = server.create_key()["key"]
        with server.http(timeout=60) as http, openai.OpenAI(
            base_url=f"{server.url}/v1", api_key=key, http_client=http, max_retries=0
        ) as client:
            stream = client.chat.completions.create(
                model="demo", messages=[{"role": "user", "content": "Tell a story."}], max_tokens=60, stream=True,
                extra_body={"ignore_eos": True},
            )  # fmt: skip
            finish = None
            for count, chunk in enumerate(stream):
                if count == 3:
                    new = tls.make_self_signed(tmp_path / "new")
                    for old, fresh in zip(pair, new, strict=True):
                        old.write_bytes(fresh.read_bytes())
                    server.process.send_signal(signal.SIGHUP)
                finish = chunk.choices[0].finish_reason or finish
            assert finish == "length"
            expected = ssl.PEM_cert_to_DER_cert(new[0].read_text())
            assert eventually(lambda: served_certificate(server) == expected)


def closed_within(sockets, seconds):
    """Return how many of these connections the server closed."""
    deadline, found = time.monotonic() + seconds, set()
    while time.monotonic() < deadline and len(found) < len(sockets):
        readable, _, _ = select.select([sock for sock in sockets if sock not in found], [], [], 0.1)
        for sock in readable:
            with contextlib.suppress(ConnectionResetError):
                if sock.recv(4096):
                    continue
            found.add(sock)
    return len(found)


def test_sec_157_sec_161_caps_and_the_deadline_hold_before_a_handshake_is_done(tmp_path):
    extra = "max_connections = 20\nmax_connections_per_ip = 12\nheader_timeout_seconds = 20"
    with tls_server(tmp_path, extra=extra) as server, contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(40)]
        assert eventually(lambda: closed_within(silent, 2) >= 20, 10)  # the source's 12 and 8 more to be told so
        elsewhere = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), source_address=(f"127.0.0.{n}", 0)))
            for n in range(2, 22)
        ]
        assert eventually(lambda: closed_within(elsewhere, 2) >= 12)  # the listener's 20 and 8 more
        for sock in silent + elsewhere:
            sock.close()
        assert eventually(lambda: b"200 OK" in attempt(server, client_context(server)))  # all were given back
        assert "Traceback" not in server.output()


def test_sec_157_a_handshake_that_is_not_done_ends_at_the_header_deadline(tmp_path):
    hello = ssl.MemoryBIO()
    context = ssl.create_default_context()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), hello, server_hostname="localhost").do_handshake()
    with tls_server(tmp_path, extra="header_timeout_seconds = 2") as server, contextlib.ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(10)]
        begin = time.monotonic()
        for sock in slow[:5]:
            sock.sendall(hello.read(20))  # the begin of a greeting, and no more
        assert b"200 OK" in attempt(server, client_context(server))
        assert closed_within(slow, 30) == 10
        assert time.monotonic() - begin > 1.5
        assert b"200 OK" in attempt(server, client_context(server))
        assert "Traceback" not in server.output()


def test_client_certificates_are_asked_for_and_checked(tmp_path):
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.x509.oid import ExtendedKeyUsageOID

    for_clients = [x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])]

    def write(path, private, certificate):
        path.write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
            + private.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )

    authority, stranger = issue("clients"), issue("strangers")
    (tmp_path / "clients.pem").write_bytes(authority[1].public_bytes(serialization.Encoding.PEM))
    write(tmp_path / "good.pem", *issue("good", authority, for_clients))
    write(tmp_path / "bad.pem", *issue("bad", stranger, for_clients))
    pair = tls.make_self_signed(tmp_path / "tls")
    config = tls_config(pair, f'tls_client_ca_path = "{tmp_path / "clients.pem"}"')
    server = RunningServer(tmp_path, config=config, authority=pair[0])
    good = client_context(server)
    good.load_cert_chain(tmp_path / "good.pem")
    good_1_2 = client_context(server, maximum_version=ssl.TLSVersion.TLSv1_2)
    good_1_2.load_cert_chain(tmp_path / "good.pem")
    server.http = lambda **options: httpx.Client(base_url=server.url, verify=good, **options)
    try:
        server.start(ready=False)
        assert b"200 OK" in connect(server, good)[2]
        bad = client_context(server)
        bad.load_cert_chain(tmp_path / "bad.pem")
        for context in (client_context(server), bad):
            answer = b""  # in TLS 1.3 the client learns of the refusal when it reads: an alert, or the end
            with contextlib.suppress(ssl.SSLError, ConnectionResetError, BrokenPipeError):
                answer = connect(server, context)[2]
            assert answer == b""
        # Another authority takes over: what is open goes on, the old clients get in no more, by no old session either.
        sessions = [resumable(server, good_1_2), resumable(server, good)]
        with server.http() as open_since:
            assert open_since.get("/healthz").status_code == 200
            (tmp_path / "clients.pem").write_bytes(stranger[1].public_bytes(serialization.Encoding.PEM))
            server.process.send_signal(signal.SIGHUP)
            assert eventually(lambda: b"200 OK" in attempt(server, bad))
            assert open_since.get("/healthz").status_code == 200
        for context, session in zip((good_1_2, good), sessions, strict=True):
            assert attempt(server, context, session=session) == b""
            assert attempt(server, context) == b""
        (tmp_path / "clients.pem").write_text("no certificate")
        server.process.send_signal(signal.SIGHUP)
        assert eventually(lambda: any(e["result"] == "failure" for e in server.events("config.reload")))
        assert "tls_client_ca_path" in server.events("config.reload")[-1]["reason"]
        assert b"200 OK" in attempt(server, bad)  # the authority before stays
    finally:
        server.stop()


def attempt(server, context, session=None):
    """Return what a connection with this certificate gets; nothing where it is refused."""
    with contextlib.suppress(ssl.SSLError, ConnectionResetError, BrokenPipeError):
        with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT) as plain:
            with context.wrap_socket(plain, server_hostname="127.0.0.1", session=session) as secure:
                secure.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                return secure.recv(4096)
    return b""


def resumable(server, context):
    """Return the session of a connection that was let in, and see that it can be resumed."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT) as plain:
        with context.wrap_socket(plain, server_hostname="127.0.0.1") as secure:
            secure.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert b"200 OK" in secure.recv(4096)
            session = secure.session
    with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT) as plain:
        with context.wrap_socket(plain, server_hostname="127.0.0.1", session=session) as secure:
            assert secure.session_reused
    return session


def refused_start(folder, config, *arguments):
    folder.mkdir(exist_ok=True)
    (folder / "config.toml").write_text(config)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("INFERNO_")}
    environment |= {"INFERNO_JWT_SECRET": JWT_SECRET, "INFERNO_ADMIN_PASSWORD": ADMIN_PASSWORD}
    done = subprocess.run(
        [sys.executable, "-m", "inferno.cli", "serve", "--config", str(folder / "config.toml"), *arguments],
        capture_output=True, text=True, timeout=60, env=environment,
    )  # fmt: skip
    assert done.returncode == 78, done.stderr
    return done.stderr


def test_net_2_sec_156_a_key_that_others_can_read_is_refused_with_78(tmp_path):
    pair = tls.make_self_signed(tmp_path / "tls")
    pair[1].chmod(0o644)
    assert "chmod 600" in refused_start(tmp_path, tls_config(pair))


def test_net_1_sec_153_tls_required_without_a_certificate_is_refused(tmp_path):
    required = "[security]\ntls_required = true\n"
    assert "tls_required" in refused_start(tmp_path, required)
    assert "tls_required" in refused_start(tmp_path, "", "--host", "0.0.0.0", "--port", "0")
    assert "tls_cert_path" in refused_start(tmp_path, "[server]\ntls_enabled = true\n")


def test_net_2_a_certificate_about_to_expire_is_said_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(tls, "SELF_SIGNED_DAYS", 6)
    with tls_server(tmp_path) as server:
        assert server.output().count("the TLS certificate expires in 5 days") == 1
        server.process.send_signal(signal.SIGHUP)
        assert eventually(lambda: server.output().count("the TLS certificate expires in 5 days") == 2)
        with server.http(headers={"Authorization": f"Bearer {server.admin_token()}"}) as client:
            shown = float(re.search(r"^inferno_certificate_expiry\w+ (\S+)$", client.get("/metrics").text, re.M)[1])
        assert 5 < (shown - time.time()) / 86400 < 6


@pytest.mark.slow
def test_init_self_signed_then_serve_then_an_official_client(tmp_path):
    """The three steps of the documentation, with the certificate as the only trust."""
    server = RunningServer(tmp_path)
    server.config.unlink()
    made = subprocess.run(
        [sys.executable, "-m", "inferno.cli", "init", str(server.data), "--self-signed"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "self-signed" in made.stdout
    server.authority = server.data / "tls" / "cert.pem"
    server.url = f"https://127.0.0.1:{server.port}"
    from tests.models import demo_model

    server.arguments += ["--model", f"demo={demo_model()}"]
    try:
        server.start()
        key = server.create_key()["key"]
        with server.http(timeout=60) as http:
            client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, http_client=http, max_retries=0)
            answer = client.chat.completions.create(
                model="demo", messages=[{"role": "user", "content": "hi"}], max_tokens=4
            )
            assert answer.choices[0].finish_reason
        with httpx.Client(base_url=server.url) as stranger, pytest.raises(httpx.ConnectError):
            stranger.get("/healthz")
    finally:
        if server.process is not None and server.process.poll() is None:
            server.stop()

"""The security checklist of the user's guide, line by line and in its order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from .. import __version__, secrets, tls
from ..errors import ConfigError
from ..security import audit_log
from .check import Check, Situation, passed

MAKE_SECRET = "export INFERNO_JWT_SECRET=\"$(openssl rand -base64 48)\""  # noqa: S105 (a command, not a value)
MAKE_PASSWORD = "export INFERNO_ADMIN_PASSWORD=\"$(openssl rand -base64 16)\""  # noqa: S105


def checks(situation: Situation) -> Iterator[Check]:
    """Yield the nine lines of the guide's checklist."""
    yield from _secrets(situation)
    yield _tls(situation)
    yield _rate_limits(situation)
    yield _audit_log(situation)
    yield _network_access(situation)
    yield _user(situation)
    yield _versions()
    yield _audit_monitoring(situation)


def _secrets(situation: Situation) -> Iterator[Check]:
    secret = ("checklist.jwt_secret", "INFERNO_JWT_SECRET is set (32+ characters)")
    password = ("checklist.admin_password", "INFERNO_ADMIN_PASSWORD is set (12+ characters)")
    if not situation.loaded.settings.security.auth_enabled:
        fix = "set [security] auth_enabled = true, then set both secrets"
        yield Check(*secret, "not used: authentication is off", "fail", fix)
        yield Check(*password, "not used: authentication is off", "fail", fix)
        return
    try:
        secrets.load(situation.loaded.settings, situation.environ)
    except ConfigError as error:
        if situation.status is not None:
            yield passed(*secret, "accepted when the running server started")
            yield passed(*password, "accepted when the running server started")
            return
        text = str(error)
        at_fault = "INFERNO_ADMIN_PASSWORD" if "INFERNO_ADMIN_PASSWORD" in text.split(":")[0] else "INFERNO_JWT_SECRET"
        for (id, title), name, fix in ((secret, "INFERNO_JWT_SECRET", MAKE_SECRET),
                                       (password, "INFERNO_ADMIN_PASSWORD", MAKE_PASSWORD)):  # fmt: skip
            if name == at_fault:
                yield Check(id, title, text.splitlines()[0], "fail", fix)
            else:
                yield Check(id, title, f"not judged before {at_fault} is right", "warn", fix)
        return
    yield passed(*secret, "set and strong")
    yield passed(*password, "set and strong")


def _tls(situation: Situation) -> Check:
    id, title = "checklist.tls", "TLS/HTTPS is enabled"
    server = situation.loaded.settings.server
    if server.tls_enabled:
        try:
            found = tls.check_pair(Path(server.tls_cert_path or ""), Path(server.tls_key_path or ""))
        except ConfigError as error:
            return Check(id, title, str(error), "fail", "give a certificate and key that belong together, key mode 0600")
        value = f"TLS >= {situation.loaded.settings.security.min_tls_version}, {found.subject}, until {found.not_after:%Y-%m-%d}"
        if found.warnings:
            return Check(id, title, f"{value}; {found.warnings[0]}", "warn", "renew the certificate, then send SIGHUP")
        return passed(id, title, value)
    fix = "set [server] tls_enabled = true with tls_cert_path and tls_key_path (for trials: inferno init --self-signed)"
    if situation.is_loopback:
        return Check(id, title, "plain HTTP, on loopback only", "warn", fix)
    return Check(id, title, "plain HTTP on the network: TLS must end at a proxy before it", "warn", fix)


def _rate_limits(situation: Situation) -> Check:
    id, title = "checklist.rate_limits", "Rate limiting is configured"
    security = situation.loaded.settings.security
    if not security.rate_limiting_enabled:
        return Check(id, title, "off", "fail", "set [security] rate_limiting_enabled = true")
    return passed(
        id, title,
        f"{security.max_requests_per_minute}/minute and {security.max_requests_per_hour}/hour per account, "
        f"{security.max_requests_per_minute_per_ip}/minute per address, {security.max_tokens_per_minute} tokens/minute",
    )  # fmt: skip


def _audit_log(situation: Situation) -> Check:
    id, title = "checklist.audit_log", "Audit logging is enabled"
    security = situation.loaded.settings.security
    if not security.audit_logging_enabled:
        return Check(id, title, "off", "fail", "set [security] audit_logging_enabled = true")
    folder = Path(security.audit_path).parent
    nearest = next((place for place in (folder, *folder.parents) if place.exists()), folder)
    if not os.access(nearest, os.W_OK):
        return Check(id, title, f"{nearest} cannot be written", "fail", f"let the server's user write {folder}")
    return passed(id, title, security.audit_path)


def _network_access(situation: Situation) -> Check:
    id, title = "checklist.network_access", "Network access is restricted"
    server = situation.loaded.settings.server
    if situation.is_loopback:
        return passed(id, title, f"{server.host}:{server.port}, reachable from this machine only")
    fix = (
        f"iptables -A INPUT -p tcp --dport {server.port} -s TRUSTED -j ACCEPT && "
        f"iptables -A INPUT -p tcp --dport {server.port} -j DROP"
    )
    return Check(id, title, f"{server.host}:{server.port} is open to the network; firewalls can't be seen from here", "warn", fix)


def _user(situation: Situation) -> Check:
    id, title = "checklist.dedicated_user", "A dedicated user with minimal permissions runs the server"
    uid, what = os.geteuid(), "this command"
    if situation.status is not None:
        try:
            uid, what = os.stat(f"/proc/{situation.status['pid']}").st_uid, "the server"
        except (OSError, KeyError):
            pass
    if uid == 0:
        fix = "run it as a user of its own (deploy/systemd/inferno.service, or the container: uid 65532)"
        return Check(id, title, f"{what} runs as root", "warn", fix)
    return passed(id, title, f"{what} runs as uid {uid}")


def _versions() -> Check:
    parts = [f"inferno {__version__}"]
    for package in ("llama-cpp-python", "starlette", "uvicorn", "pyjwt", "cryptography"):
        try:
            parts.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            parts.append(f"{package} missing")
    value = ", ".join(parts)
    if "missing" in value:
        return Check("checklist.updates", "Security updates are installed", value, "fail", "pip install inferno-server")
    return passed("checklist.updates", "Security updates are installed (compare with CHANGELOG.md)", value)


def _audit_monitoring(situation: Situation) -> Check:
    id, title = "checklist.audit_monitoring", "The audit log proves itself"
    security = situation.loaded.settings.security
    path = Path(security.audit_path)
    if not security.audit_logging_enabled:
        return Check(id, title, "no log is written", "fail", "set [security] audit_logging_enabled = true")
    if not audit_log.files(path):
        return passed(id, title, "no record yet")
    try:
        key = situation.data.read_key("audit")
        result = audit_log.verify(path, key, audit_log.read_head(path.parent / "audit.head", key))
    except (OSError, ValueError, ConfigError) as error:
        return Check(id, title, f"cannot be read: {error}", "fail", "inferno audit verify, as the server's user")
    if result.status != 0:
        return Check(id, title, f"broken: {result.reason}", "fail", "inferno audit verify names the first bad record")
    return passed(id, title, f"{result.records} records, chain intact; watch it with: inferno audit tail")

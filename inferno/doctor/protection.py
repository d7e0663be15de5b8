"""Configuration, confinement, network and limits: each control of the security requirements with its effective value."""

from __future__ import annotations

import os
import platform
import resource
import stat
from collections.abc import Iterator
from pathlib import Path

from .check import Check, Situation, passed

MIN_LANDLOCK_KERNEL = "5.13"
_SECRET_NAMES = ("INFERNO_JWT_SECRET", "INFERNO_JWT_SECRET_PREVIOUS", "INFERNO_ADMIN_PASSWORD")


def configuration_checks(situation: Situation) -> Iterator[Check]:
    """CFG: authentication, keys, guards, modes of the files that matter."""
    loaded, security = situation.loaded, situation.loaded.settings.security
    where = str(loaded.file or "defaults and environment only")
    if situation.differs:
        where += f"; the running server has its own {', '.join(situation.differs)}, judged here"
    yield passed("config", "Configuration is valid", where)
    for name, title in (
        ("auth_enabled", "Every call needs a credential"),
        ("api_key_enabled", "API keys are accepted"),
        ("input_validation_enabled", "Input is scanned"),
        ("output_sanitization_enabled", "Output is redacted"),
    ):
        value = getattr(security, name)
        if value:
            yield passed(f"config.{name}", title, "on")
        else:
            verdict = "fail" if name == "auth_enabled" else "warn"
            yield Check(f"config.{name}", title, "off", verdict, f"set [security] {name} = true")  # type: ignore[arg-type]
    if loaded.not_built:
        yield Check("config.not_built", "Every control is built", ", ".join(loaded.not_built), "fail", "upgrade")
    for number, warning in enumerate(loaded.warnings, 1):
        id = "config.warning" if number == 1 else f"config.warning.{number}"
        yield Check(id, "Configuration warning", warning, "warn", "see docs/configuration.md")
    yield from _environments(situation)
    yield from _modes(situation)


def _environments(situation: Situation) -> Iterator[Check]:
    """CFG-3: secrets left the environment of every process of a running server."""
    status = situation.status
    if status is None:
        return
    id, title = "config.environment", "No secret stands in a server process's environment"
    pids = [status.get("pid"), *(worker.get("pid") for worker in status.get("workers", []))]
    pids += [model.get("pid") for model in status.get("models", [])]
    seen, found = 0, set()
    for pid in filter(None, pids):
        try:
            text = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue  # another user's, or not to be dumped: nobody else reads it either
        seen += 1
        found |= {name for name in _SECRET_NAMES for entry in text.split(b"\0") if entry.startswith(name.encode() + b"=")}
    if found:
        yield Check(id, title, f"{', '.join(sorted(found))} can be read", "fail", "restart the server; report it if it stays")
    else:
        yield passed(id, title, f"{seen} of {len([pid for pid in pids if pid])} environments can be read, none has one")



def _modes(situation: Situation) -> Iterator[Check]:
    data = situation.data
    wanted: list[tuple[str, Path, int]] = [
        ("data_dir", data.root, stat.S_IWGRP | stat.S_IWOTH),
        ("secrets_file", data.secrets_file, stat.S_IRWXG | stat.S_IRWXO),
        ("keys", data.keys, stat.S_IRWXG | stat.S_IRWXO),
        *((f"key.{path.stem}", path, stat.S_IRWXG | stat.S_IRWXO) for path in sorted(data.keys.glob("*.key"))),
        ("audit_dir", Path(situation.loaded.settings.security.audit_path).parent, stat.S_IRWXG | stat.S_IRWXO),
    ]
    if situation.loaded.file is not None:
        wanted.append(("file", situation.loaded.file, stat.S_IWOTH))
    for name, path, forbidden in wanted:
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except OSError:
            continue  # not made yet
        if mode & forbidden:
            fix = f"chmod {'700' if path.is_dir() else '600'} {path}"
            yield Check(f"config.mode.{name}", f"Only the server's user touches {path}", f"{mode:04o}", "fail", fix)
        else:
            yield passed(f"config.mode.{name}", f"Only the server's user touches {path}", f"{mode:04o}")


def sandbox_checks(situation: Situation) -> Iterator[Check]:
    """BOX: what the kernel offers and what is asked of it."""
    wanted = situation.loaded.settings.security.sandbox
    if wanted == "off":
        yield Check("sandbox", "Engines are confined", "off", "fail", '[security] sandbox = "required"')
    elif wanted == "auto":
        yield Check("sandbox", "Engines are confined", "auto: as far as the kernel can", "pass")
    else:
        yield passed("sandbox", "Engines are confined", "required")
    abi = _landlock_abi()
    if abi:
        yield passed("sandbox.landlock", "Landlock", f"ABI {abi}")
    else:
        yield Check("sandbox.landlock", "Landlock", "not available", "warn", f"a kernel >= {MIN_LANDLOCK_KERNEL} with Landlock on")
    actions = _read("/proc/sys/kernel/seccomp/actions_avail")
    if actions and platform.machine() in {"x86_64", "aarch64"}:
        yield passed("sandbox.seccomp", "System-call filters", f"available ({platform.machine()})")
    else:
        yield Check("sandbox.seccomp", "System-call filters", "not available", "warn", "Linux on x86-64 or arm64")
    for model in (situation.status or {}).get("models", []):
        missing = [name for name, value in model.get("sandbox", {}).items() if str(value).startswith("unavailable")]
        id, title = f"sandbox.engine.{model['name']}", f"The engine of {model['name']} is confined"
        if model.get("state") != "ready":
            continue
        if missing or not model.get("sandbox"):
            yield Check(id, title, f"missing: {', '.join(missing) or 'everything'}", "warn", "see docs/sandbox.md")
        else:
            yield passed(id, title, ", ".join(f"{k} {v}" for k, v in model["sandbox"].items()))


def process_checks(situation: Situation) -> Iterator[Check]:
    """BOX-4, BOX-6: what the server's own process may do, and whose caches are whose."""
    pid, whose = (os.getpid(), "this command") if situation.status is None else (situation.status["pid"], "the server")
    status = dict(line.split(":\t", 1) for line in _read(f"/proc/{pid}/status").splitlines() if ":\t" in line)
    container = Path("/run/.containerenv").exists() or Path("/.dockerenv").exists()
    id, title = "sandbox.capabilities", "No capabilities, no new privileges"
    if not status:
        yield Check(id, title, "cannot be seen here", "warn", "run it on Linux, as the server's user")
    else:
        held, is_locked = int(status.get("CapEff", "0"), 16), status.get("NoNewPrivs") == "1"
        value = f"{whose}: capabilities {held:#x}, no_new_privs {'on' if is_locked else 'off'}"
        if held or (container and not is_locked):
            fix = "a user of its own (deploy/systemd/inferno.service); in a container --cap-drop=ALL --security-opt=no-new-privileges"
            yield Check(id, title, value, "warn", fix)
        else:
            yield passed(id, title, value)
    is_read_only = bool(os.statvfs(f"/proc/{pid}/root" if situation.status else "/").f_flag & os.ST_RDONLY)
    id, title = "sandbox.root", "The root file system is read-only"
    if is_read_only or not container:
        yield passed(id, title, "yes" if is_read_only else "not in a container; systemd: ProtectSystem=strict")
    else:
        yield Check(id, title, "no", "warn", "run the container with --read-only")
    megabytes = situation.loaded.settings.engine.prefix_cache_mb
    yield passed("sandbox.caches", "Cached prompts are used for their own account only", f"yes, up to {megabytes} MiB a model")


def _landlock_abi() -> int:
    """As engine/sandbox.py asks it; commands may not load the engine's modules for more than that."""
    from ..engine.sandbox import landlock_abi

    return landlock_abi()


def network_checks(situation: Situation) -> Iterator[Check]:
    """NET: deadlines, sizes, hosts, origins, proxies."""
    server, security = situation.loaded.settings.server, situation.loaded.settings.security
    yield passed("network.tls_required", "TLS is required", "yes" if security.tls_required else "no")
    yield passed("network.min_tls_version", "Oldest TLS version", security.min_tls_version)
    yield passed(
        "network.deadlines", "Deadlines",
        f"headers {server.header_timeout_seconds:g} s, idle {server.idle_timeout_seconds:g} s, body 20 s + 1 s/16 KiB",
    )  # fmt: skip
    yield passed("network.framing", "Requests that two servers could read differently", "refused; HTTP/1.1 only")
    yield _operators_listener(situation)
    yield passed("network.sizes", "Sizes", f"body {server.max_body_bytes} bytes, headers 16 KiB, URL 8 KiB")
    hosts = ", ".join(server.allowed_hosts) or "localhost, IP addresses, this machine's name"
    if not server.allowed_hosts and not situation.is_loopback:
        yield Check("network.allowed_hosts", "Accepted Host names", hosts, "warn", '[server] allowed_hosts = ["your.name"]')
    else:
        yield passed("network.allowed_hosts", "Accepted Host names", hosts)
    yield passed("network.cors", "Browser origins", ", ".join(server.cors_origins) or "none")
    yield passed("network.trusted_proxies", "Believed proxies", ", ".join(server.trusted_proxies) or "none")


def _operators_listener(situation: Situation) -> Check:
    """NET-7: metrics and docs are behind a credential, or on an address that only operators reach."""
    from ..config import is_loopback

    server = situation.loaded.settings.server
    id, title = "network.operators", "Metrics and documentation are not public"
    if server.admin_host is None or server.admin_port is None:
        return passed(id, title, "both need a credential")
    where = f"{server.admin_host}:{server.admin_port}"
    if is_loopback(server.admin_host):
        return passed(id, title, f"metrics need none on {where}, which is loopback")
    return Check(id, title, f"metrics need no credential on {where}", "warn", f"let only monitoring reach port {server.admin_port}")


def limit_checks(situation: Situation) -> Iterator[Check]:
    """What bounds one caller and all of them."""
    server, security = situation.loaded.settings.server, situation.loaded.settings.security
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = server.max_connections + 256
    if soft != resource.RLIM_INFINITY and soft < needed:
        yield Check("limits.descriptors", "Open files suffice for max_connections", f"{soft}, {needed} needed", "warn",
                    f"ulimit -n {needed} (systemd: LimitNOFILE)")  # fmt: skip
    else:
        yield passed("limits.descriptors", "Open files suffice for max_connections", soft)
    yield passed("limits.connections", "Connections", f"{server.max_connections}, {server.max_connections_per_ip} per address")
    yield passed("limits.concurrency", "Requests at once per account", security.max_concurrent_requests_per_user)
    yield passed("limits.input", "Longest client string", f"{security.max_input_length} characters")
    yield passed("limits.logins", "Logins per minute and address", security.max_logins_per_minute_per_ip)
    yield passed("limits.store", "Limits are counted in", situation.loaded.settings.limits.url.split("@")[-1])


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""

"""Locks the calling process (an engine or a template child) so that it can do its work and nothing else.

Covered: no new privileges, no capabilities, another uid when started as root, not dumpable, no core files, no memory
that becomes executable, descriptors closed, resource limits, Landlock (only the named files can be opened, no signal
and no abstract socket leaves the domain) and a seccomp allow-list (no socket, exec, ptrace, bpf, mount, io_uring,
keyctl, …). Not covered: memory and CPU use below the limits, the kernel's own faults, side channels between processes
of one machine, a GPU driver's ioctl interface. docs/sandbox.md says more.

Everything that will be imported must be loaded and every thread pool unstarted when `confine` is called: Landlock
stops later imports, and the filters hold for the calling thread and those that it starts. Linux only; elsewhere each
piece reports that it is unavailable.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import struct
import sys
from collections.abc import Callable, Iterable
from typing import Final, Literal

from ..errors import InfernoError
from . import seccomp

Mode = Literal["auto", "required", "off"]
UNPRIVILEGED_ID: Final = 65532  # the image's user; used when an engine is started as root

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP = 1, 4, 22, 24
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, _PR_SET_MDWE = 38, 47, 4, 65
_SYS_CAPSET: Final = {"x86_64": 126, "aarch64": 91}
_SYS_SECCOMP: Final = {"x86_64": 317, "aarch64": 277}
_SYS_LANDLOCK_CREATE, _SYS_LANDLOCK_ADD, _SYS_LANDLOCK_RESTRICT = (
    444,
    445,
    446,
)  # the same on all architectures
_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC = 1, 1

# Landlock: linux/include/uapi/linux/landlock.h
_FS_RIGHTS_BY_ABI: Final = {
    1: (1 << 13) - 1,
    2: (1 << 14) - 1,
    3: (1 << 15) - 1,
    4: (1 << 15) - 1,
    5: (1 << 16) - 1,
}
_NET_RIGHTS: Final = 0b11  # bind and connect TCP, ABI 4
_SCOPES: Final = 0b11  # abstract sockets and signals, ABI 6
_READ_FILE, _WRITE_FILE, _IOCTL_DEV = 1 << 2, 1 << 1, 1 << 15
_RULE_PATH_BENEATH: Final = 1


class SandboxError(InfernoError):
    """A piece of the confinement that `sandbox = "required"` needs is not available."""


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _machine() -> str:
    return os.uname().machine


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _prctl(*arguments: int) -> None:
    values = [ctypes.c_ulong(argument) for argument in arguments]
    while len(values) < 5:
        values.append(ctypes.c_ulong(0))
    _checked(_libc().prctl(ctypes.c_int(arguments[0]), *values[1:]), f"prctl {arguments[0]}")


def _linux() -> None:
    if sys.platform != "linux":
        raise OSError(f"not available on {sys.platform}")


def _no_new_privileges() -> str:
    _linux()
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    return "on"


def _no_core_files() -> str:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return "none"


def _not_dumpable() -> str:
    _linux()
    _prctl(_PR_SET_DUMPABLE, 0)
    return "no"


def _other_user() -> str:
    """Become an unprivileged user when started as root. The parent-death signal is lost by that and set again."""
    if os.geteuid() != 0:
        return f"unchanged ({os.geteuid()})"
    os.setgroups([])
    os.setresgid(UNPRIVILEGED_ID, UNPRIVILEGED_ID, UNPRIVILEGED_ID)
    os.setresuid(UNPRIVILEGED_ID, UNPRIVILEGED_ID, UNPRIVILEGED_ID)
    _linux()
    _prctl(_PR_SET_PDEATHSIG, 9)
    return str(UNPRIVILEGED_ID)


def _drop_bounding_set() -> str:
    """Needs CAP_SETPCAP, so it runs before the user changes; without it the set cannot be used anyway."""
    _linux()
    with contextlib.suppress(OSError):
        for capability in range(64):
            _prctl(_PR_CAPBSET_DROP, capability)
    return "dropped"


def _drop_capabilities() -> str:
    _linux()
    with contextlib.suppress(OSError):
        _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    header = struct.pack("=Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    data = struct.pack("=6I", 0, 0, 0, 0, 0, 0)
    _checked(_libc().syscall(ctypes.c_long(_SYS_CAPSET[_machine()]), header, data), "capset")
    return "none"


def _no_executable_gain() -> str:
    _linux()
    _prctl(_PR_SET_MDWE, 1)
    return "refused"


def _close_descriptors(keep: Iterable[int]) -> str:
    kept = sorted({0, 1, 2, *keep})
    start = 0
    for number in kept:
        if number > start:
            os.closerange(start, number)
        start = number + 1
    os.closerange(start, max(start, resource.getrlimit(resource.RLIMIT_NOFILE)[0]))
    return f"{len(kept)} open"


def landlock_abi() -> int:
    """Return the kernel's Landlock ABI, 0 where there is none."""
    if sys.platform != "linux":
        return 0
    result = _libc().syscall(
        ctypes.c_long(_SYS_LANDLOCK_CREATE), None, ctypes.c_size_t(0), ctypes.c_uint32(1)
    )
    return max(0, int(result))


def _landlock(readable: Iterable[str], devices: Iterable[str]) -> str:
    abi = landlock_abi()
    if abi < 1:
        raise OSError("the kernel has no Landlock")
    rights = _FS_RIGHTS_BY_ABI[min(abi, 5)]
    attributes = struct.pack("=QQQ", rights, _NET_RIGHTS if abi >= 4 else 0, _SCOPES if abi >= 6 else 0)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    libc = _libc()
    ruleset = _checked(
        libc.syscall(
            ctypes.c_long(_SYS_LANDLOCK_CREATE), attributes, ctypes.c_size_t(size), ctypes.c_uint32(0)
        ),
        "landlock_create_ruleset",
    )
    try:
        wanted = [(path, _READ_FILE) for path in readable]
        device_rights = _READ_FILE | _WRITE_FILE | (_IOCTL_DEV if abi >= 5 else 0)
        wanted += [(path, device_rights) for path in devices]
        for path, allowed in wanted:
            number = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                rule = struct.pack("=Qi", allowed & rights, number)
                _checked(
                    libc.syscall(ctypes.c_long(_SYS_LANDLOCK_ADD), ctypes.c_int(ruleset),
                                 ctypes.c_int(_RULE_PATH_BENEATH), rule, ctypes.c_uint32(0)),
                    "landlock_add_rule",
                )  # fmt: skip
            finally:
                os.close(number)
        _checked(
            libc.syscall(ctypes.c_long(_SYS_LANDLOCK_RESTRICT), ctypes.c_int(ruleset), ctypes.c_uint32(0)),
            "landlock_restrict_self",
        )
    finally:
        os.close(ruleset)
    return f"ABI {abi}, {len(wanted)} files"


class _SockFprog(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _seccomp(profile: str, open_files: bool, gpu: bool) -> str:
    _linux()
    if seccomp.architecture() is None:
        raise OSError(f"no system-call filter for {_machine()}")
    code = seccomp.build(profile, own_pid=os.getpid(), open_files=open_files, gpu=gpu)
    program = _SockFprog(len(code) // 8, code)
    result = _libc().syscall(
        ctypes.c_long(_SYS_SECCOMP[_machine()]), ctypes.c_uint(_SECCOMP_SET_MODE_FILTER),
        ctypes.c_uint(_SECCOMP_FILTER_FLAG_TSYNC), ctypes.byref(program),
    )  # fmt: skip
    if result > 0:
        raise OSError(f"thread {result} could not be filtered")
    _checked(result, "seccomp")
    return f"allow-list, {len(code) // 8} instructions"


def _limits(limits: dict[str, int]) -> str:
    for name, value in limits.items():
        number = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(number)[1]
        ceiling = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (ceiling, ceiling))
    return ", ".join(f"{name.lower()} {value}" for name, value in limits.items()) or "none"


def confine(
    profile: Literal["engine", "template"],
    *,
    mode: Mode,
    readable: Iterable[str] = (),
    devices: Iterable[str] = (),
    keep_descriptors: Iterable[int] | None = None,
    limits: dict[str, int] | None = None,
) -> dict[str, str]:
    """Apply every piece in order and return what is in force, piece by piece.

    `readable`: paths that may still be opened for reading; `devices`: GPU device files; `keep_descriptors`: the only
    descriptors (beside 0, 1, 2) that stay open, None leaves them. `limits`: RLIMIT names without the prefix.
    Raises SandboxError when `mode` is required and a piece is missing; with auto a missing piece is reported as
    `unavailable: …` and the rest still applies; off applies only what costs nothing (core files, no new privileges).
    """
    gpu = bool(list(devices))
    force: dict[str, str] = {"mode": mode}

    def apply(name: str, piece: Callable[[], str], *, essential: bool = True) -> bool:
        try:
            force[name] = piece()
        except (OSError, ValueError, KeyError, AttributeError) as error:
            if mode == "required" and essential:
                raise SandboxError(f'sandbox = "required", but {name} is unavailable: {error}') from None
            force[name] = f"unavailable: {error}"
            return False
        return True

    apply("core_files", _no_core_files)
    apply("no_new_privileges", _no_new_privileges)
    if mode == "off":
        return force
    if keep_descriptors is not None:
        kept = list(keep_descriptors)
        apply("descriptors", lambda: _close_descriptors(kept))
    apply("rlimits", lambda: _limits(limits or {}))
    apply("bounding_set", _drop_bounding_set, essential=False)
    files = list(readable)
    has_landlock = apply("landlock", lambda: _landlock(files, devices))
    apply("user", _other_user, essential=False)
    apply("capabilities", _drop_capabilities)
    if not gpu:
        apply("executable_memory", _no_executable_gain, essential=False)
    apply("dumpable", _not_dumpable)
    apply("seccomp", lambda: _seccomp(profile, has_landlock or gpu, gpu))
    return force

"""Builds the system-call filters of the engine and its template child, as classic BPF for seccomp(2).

An allow-list: what is not named is refused with EPERM, another machine's call convention kills the process. A few
calls are allowed with some arguments only. Pure functions: nothing here changes the process (sandbox.py does).

Numbers: linux/include/uapi (6.x), asm/unistd_64.h for x86-64 and asm-generic/unistd.h for arm64.
"""

from __future__ import annotations

import errno
import platform
import struct
from typing import Final

# name: (x86-64, arm64); None where the architecture lacks the call
_CALLS: Final[dict[str, tuple[int | None, int | None]]] = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "fstat": (5, 80), "poll": (7, None), "lseek": (8, 62),
    "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214), "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "ioctl": (16, 29), "pread64": (17, 67),
    "pwrite64": (18, 68), "readv": (19, 65), "writev": (20, 66), "select": (23, None), "sched_yield": (24, 124),
    "mremap": (25, 216), "mincore": (27, 232), "madvise": (28, 233), "dup": (32, 23), "dup2": (33, None),
    "nanosleep": (35, 101), "getpid": (39, 172), "sendto": (44, 206), "recvfrom": (45, 207), "sendmsg": (46, 211),
    "recvmsg": (47, 212), "shutdown": (48, 210), "getsockname": (51, 204), "getpeername": (52, 205),
    "setsockopt": (54, 208), "getsockopt": (55, 209), "clone": (56, 220), "fork": (57, None), "exit": (60, 93),
    "wait4": (61, 260), "kill": (62, 129), "uname": (63, 160), "fcntl": (72, 25), "getcwd": (79, 17),
    "getrlimit": (97, 163), "getrusage": (98, 165), "sysinfo": (99, 179), "times": (100, 153), "getuid": (102, 174),
    "getgid": (104, 176), "geteuid": (107, 175), "getegid": (108, 177), "getppid": (110, 173),
    "rt_sigpending": (127, 136), "rt_sigtimedwait": (128, 137), "sigaltstack": (131, 132), "getpriority": (140, 141),
    "setpriority": (141, 140), "mlock": (149, 228), "munlock": (150, 229), "prctl": (157, 167),
    "gettid": (186, 178), "futex": (202, 98), "sched_setaffinity": (203, 122), "sched_getaffinity": (204, 123),
    "getdents64": (217, 61), "set_tid_address": (218, 96), "restart_syscall": (219, 128), "fadvise64": (221, 223),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "exit_group": (231, 94),
    "epoll_wait": (232, None), "epoll_ctl": (233, 21), "tgkill": (234, 131), "waitid": (247, 95),
    "get_mempolicy": (239, 236), "openat": (257, 56), "newfstatat": (262, 79), "readlinkat": (267, 78),
    "pselect6": (270, 72), "ppoll": (271, 73), "set_robust_list": (273, 99), "epoll_pwait": (281, 22),
    "eventfd2": (290, 19), "epoll_create1": (291, 20), "dup3": (292, 24), "pipe2": (293, 59), "prlimit64": (302, 261),
    "getcpu": (309, 168), "getrandom": (318, 278), "membarrier": (324, 283), "statx": (332, 291), "rseq": (334, 293),
    "clone3": (435, 435), "close_range": (436, 436), "epoll_pwait2": (441, 441), "futex_waitv": (449, 449),
    "socketpair": (53, 199), "set_mempolicy": (238, 237), "mbind": (237, 235), "sched_setscheduler": (144, 119),
    "sched_getparam": (143, 121), "sched_getscheduler": (145, 120), "sched_get_priority_max": (146, 125),
    "sched_get_priority_min": (147, 126), "arch_prctl": (158, None), "access": (21, None), "faccessat2": (439, 439),
    "open": (2, None), "stat": (4, None), "lstat": (6, None), "readlink": (89, None), "ftruncate": (77, 46),
    "memfd_create": (319, 279), "setitimer": (38, 103), "alarm": (37, None), "timerfd_create": (283, 85),
    "timerfd_settime": (286, 86),
}  # fmt: skip

# What Python, glibc, OpenMP and llama.cpp use after everything is loaded. No socket, connect, bind, exec, ptrace, bpf,
# mount, unshare, io_uring, keyctl, userfaultfd, perf, process_vm, kexec, module, chroot, setuid, ...
_COMMON: Final = [
    "read",
    "write",
    "close",
    "fstat",
    "poll",
    "lseek",
    "munmap",
    "brk",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "pread64",
    "readv",
    "writev",
    "select",
    "sched_yield",
    "mremap",
    "mincore",
    "madvise",
    "dup",
    "dup2",
    "dup3",
    "nanosleep",
    "getpid",
    "sendto",
    "recvfrom",
    "sendmsg",
    "recvmsg",
    "shutdown",
    "getsockname",
    "getpeername",
    "getsockopt",
    "exit",
    "uname",
    "fcntl",
    "getcwd",
    "getrlimit",
    "getrusage",
    "sysinfo",
    "times",
    "getuid",
    "getgid",
    "geteuid",
    "getegid",
    "getppid",
    "rt_sigpending",
    "rt_sigtimedwait",
    "sigaltstack",
    "getpriority",
    "gettid",
    "futex",
    "sched_getaffinity",
    "getdents64",
    "set_tid_address",
    "restart_syscall",
    "fadvise64",
    "clock_gettime",
    "clock_getres",
    "clock_nanosleep",
    "exit_group",
    "epoll_wait",
    "epoll_ctl",
    "newfstatat",
    "readlinkat",
    "pselect6",
    "ppoll",
    "set_robust_list",
    "epoll_pwait",
    "epoll_pwait2",
    "eventfd2",
    "epoll_create1",
    "pipe2",
    "getcpu",
    "getrandom",
    "membarrier",
    "statx",
    "rseq",
    "close_range",
    "openat",
    "faccessat2",
    "access",
    "open",
    "stat",
    "lstat",
    "readlink",
]
_ENGINE: Final = [
    "setpriority",
    "mlock",
    "munlock",
    "sched_setaffinity",
    "get_mempolicy",
    "sched_setscheduler",
    "sched_getparam",
    "sched_getscheduler",
    "sched_get_priority_max",
    "sched_get_priority_min",
    "futex_waitv",
]
_TEMPLATE: Final = ["wait4", "waitid", "kill", "socketpair", "setitimer", "alarm"]

_ALLOW: Final = 0x7FFF0000
_KILL_PROCESS: Final = 0x80000000
_ERRNO: Final = 0x00050000
_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data; arguments are u64, low half first

_CLONE_THREAD = 0x00010000
_CLONE_NAMESPACES = 0x7E020080  # NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET, NEWTIME
_PROT_EXEC = 4
_IOCTLS = (0x5421, 0x5450, 0x5451, 0x541B, 0x5401)  # FIONBIO, FIONCLEX, FIOCLEX, FIONREAD, TCGETS (isatty)
_PRCTLS = (15, 16, 3, 23, 39)  # SET_NAME, GET_NAME, GET_DUMPABLE, CAPBSET_READ, GET_NO_NEW_PRIVS
_EPERM = _ERRNO | errno.EPERM
_ENOSYS = _ERRNO | errno.ENOSYS


def architecture() -> tuple[int, int] | None:
    """Return (column of _CALLS, AUDIT_ARCH value) of this machine, or None where no filter exists."""
    return {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}.get(platform.machine())


class _Program:
    """A list of BPF instructions; every call's block ends in a return, so that no jump crosses a block."""

    def __init__(self) -> None:
        self.code: list[tuple[int, int, int, int]] = []

    def add(self, operation: int, value: int, if_true: int = 0, if_false: int = 0) -> None:
        self.code.append((operation, if_true, if_false, value & 0xFFFFFFFF))

    def block(self, number: int, body: list[tuple[int, int, int, int]]) -> None:
        """Run `body` when the call is `number`, else go on behind it."""
        self.add(_JUMP_EQUAL, number, 0, len(body))
        self.code += body

    def encode(self) -> bytes:
        return b"".join(struct.pack("=HBBI", *instruction) for instruction in self.code)


def _low(argument: int) -> int:
    return _ARGUMENTS + 8 * argument


def _give(value: int) -> tuple[int, int, int, int]:
    return (_RETURN, 0, 0, value)


def _only(argument: int, allowed: tuple[int, ...]) -> list[tuple[int, int, int, int]]:
    """Allow when the low half of `argument` is one of `allowed`."""
    body = [(_LOAD, 0, 0, _low(argument))]
    for position, value in enumerate(allowed):
        body.append((_JUMP_EQUAL, len(allowed) - position, 0, value))
    return [*body, _give(_EPERM), _give(_ALLOW)]


def _without_bits(argument: int, bits: int) -> list[tuple[int, int, int, int]]:
    """Allow when none of `bits` is set in the low half of `argument`."""
    return [(_LOAD, 0, 0, _low(argument)), (_JUMP_SET, 1, 0, bits), _give(_ALLOW), _give(_EPERM)]


def build(profile: str, *, own_pid: int, open_files: bool, gpu: bool = False) -> bytes:
    """Return the filter program of `engine` or `template`.

    `open_files`: whether openat and its kin are allowed at all (Landlock then says which files); without Landlock
    they are refused. `gpu`: device drivers need ioctl and executable mappings.
    """
    where = architecture()
    if where is None:
        raise ValueError(f"no system-call filter for {platform.machine()}")
    column, audit_arch = where
    names = [*_COMMON, *(_ENGINE if profile == "engine" else _TEMPLATE)]
    if not open_files:
        names = [
            name for name in names if name not in {"openat", "open", "access", "faccessat2", "stat", "lstat"}
        ]
    program = _Program()
    program.add(_LOAD, _ARCH)
    program.add(_JUMP_EQUAL, audit_arch, 1, 0)
    program.add(_RETURN, _KILL_PROCESS)
    program.add(_LOAD, _NUMBER)
    if column == 0:
        program.add(_JUMP_GREATER_EQUAL, 0x40000000, 0, 1)  # x32 calls
        program.add(_RETURN, _ENOSYS)

    special: dict[str, list[tuple[int, int, int, int]]] = {
        "clone3": [
            _give(_ENOSYS)
        ],  # flags lie in memory, where a filter cannot look; glibc falls back to clone
        "mmap": [_give(_ALLOW)] if gpu else _without_bits(2, _PROT_EXEC),
        "mprotect": [_give(_ALLOW)] if gpu else _without_bits(2, _PROT_EXEC),
        "ioctl": [_give(_ALLOW)] if gpu else _only(1, _IOCTLS),
        "prctl": _only(0, _PRCTLS),
        "setsockopt": _only(1, (1,)),  # SOL_SOCKET
        "tgkill": _only(0, (own_pid,)),
    }
    if profile == "engine":
        special["clone"] = [
            (_LOAD, 0, 0, _low(0)),
            (_JUMP_SET, 0, 2, _CLONE_THREAD),
            (_JUMP_SET, 1, 0, _CLONE_NAMESPACES),
            _give(_ALLOW),
            _give(_EPERM),
        ]
        special["prlimit64"] = [  # reading limits only: new_limit is NULL
            (_LOAD, 0, 0, _low(2)),
            (_JUMP_EQUAL, 0, 3, 0),
            (_LOAD, 0, 0, _low(2) + 4),
            (_JUMP_EQUAL, 0, 1, 0),
            _give(_ALLOW),
            _give(_EPERM),
        ]
    else:
        special["clone"] = _without_bits(0, _CLONE_NAMESPACES)
        special["fork"] = [_give(_ALLOW)]
        special["prlimit64"] = [_give(_ALLOW)]  # children lower their own limits; raising needs a capability
        special["tgkill"] = [_give(_ALLOW)]
    for name, body in special.items():
        number = _CALLS[name][column]
        if number is not None:
            program.block(number, body)
    for name in names:
        number = _CALLS[name][column]
        if number is not None:
            program.block(number, [_give(_ALLOW)])
    program.add(_RETURN, _EPERM)
    return program.encode()

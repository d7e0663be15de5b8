"""Runs a command under what a systemd unit asks of the kernel, as far as that goes without systemd as PID 1:

    python tests/confined.py UNIT WRITABLE -- COMMAND…

Applied: the system-call filter (groups expanded by systemd-analyze), its error number and architecture, the address
families, no new namespaces, personalities or writable and executable memory, no new privileges, no capabilities, the
umask and limits; as root also a read-only root with WRITABLE on top. Not applied: the user (DynamicUser, PrivateUsers),
ProtectHome and ProtectProc (the tests' Python may lie in a home), devices, cgroups, credentials.
"""

import ctypes
import errno
import os
import re
import resource
import struct
import subprocess
import sys
from pathlib import Path

_HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")  # of linux-libc-dev, which every compiler brings
_AUDIT_X86_64 = 0xC000003E
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_PR_SET_NO_NEW_PRIVS, _PR_CAPBSET_DROP, _PR_SET_SECCOMP, _PR_SET_MDWE = 38, 24, 22, 65
_FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10}
_NEW_NAMESPACES = 0x7E020080  # every CLONE_NEW… flag
_LOAD, _EQUAL, _SET, _RETURN = 0x20, 0x15, 0x45, 0x06


def read_unit(path):
    """Return the [Service] section: key → list of values, in their order."""
    found = {}
    for line in Path(path).read_text().partition("[Service]")[2].partition("[Install]")[0].splitlines():
        name, is_setting, value = line.partition("=")
        if is_setting and not line.startswith(("#", ";")):
            found.setdefault(name, []).append(value)
    return found


def groups():
    """Return this systemd's system-call groups: @name → names and groups in it."""
    text = subprocess.run(["systemd-analyze", "syscall-filter"], capture_output=True, text=True, check=True).stdout
    found, name = {}, ""
    for line in text.splitlines():
        if line.startswith("@"):
            name = line.strip()
            found[name] = []
        elif line.startswith("    ") and not line.strip().startswith("#"):
            found[name].append(line.strip())
    return found


def allowed_calls(unit):
    """Return the names of system calls that the unit's SystemCallFilter lines leave, as this systemd reads them."""
    known = groups()

    def expand(word):
        # An unknown group is ignored with a warning, as systemd does it.
        return {name for part in known.get(word, ()) for name in expand(part)} if word.startswith("@") else {word}

    allowed = set()
    for line in unit["SystemCallFilter"]:
        names = {name for word in line.removeprefix("~").split() for name in expand(word)}
        allowed = allowed - names if line.startswith("~") else allowed | names
    return allowed | expand("@default")


def program(unit):
    """Return the filter as classic BPF: one verdict a call, EPERM (or what the unit says) for what is not allowed."""
    numbers = {name: int(number) for name, number in re.findall(r"#define __NR_(\w+) (\d+)", _HEADER.read_text())}
    denied = 0x50000 | getattr(errno, unit["SystemCallErrorNumber"][0])
    code = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, _AUDIT_X86_64), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]

    def verdict(name, *body):
        code.extend([(_EQUAL, 0, len(body), numbers[name]), *body])

    argument = (_LOAD, 0, 0, 16)
    families = [_FAMILIES[name] for name in unit["RestrictAddressFamilies"][0].split()]
    for name in ("socket", "socketpair"):
        tests = [(_EQUAL, len(families) - index, 0, family) for index, family in enumerate(families)]
        verdict(name, argument, *tests, (_RETURN, 0, 0, 0x50000 | errno.EAFNOSUPPORT), (_RETURN, 0, 0, _ALLOW))
    verdict("clone3", (_RETURN, 0, 0, 0x50000 | errno.ENOSYS))  # its flags cannot be seen: systemd does the same
    verdict("clone", argument, (_SET, 0, 1, _NEW_NAMESPACES), (_RETURN, 0, 0, denied), (_RETURN, 0, 0, _ALLOW))
    for name in ("unshare", "setns"):
        verdict(name, (_RETURN, 0, 0, denied))
    verdict("personality", argument, (_EQUAL, 1, 0, 0), (_RETURN, 0, 0, denied), (_RETURN, 0, 0, _ALLOW))
    for name in sorted(allowed_calls(unit) & set(numbers)):
        verdict(name, (_RETURN, 0, 0, _ALLOW))
    code.append((_RETURN, 0, 0, denied))
    return b"".join(struct.pack("HBBI", *entry) for entry in code)


def confine(unit):
    """Lock this process; what it executes stays locked."""
    libc = ctypes.CDLL(None, use_errno=True)

    def prctl(*arguments):
        if libc.prctl(*(ctypes.c_ulong(value) for value in arguments), *[ctypes.c_ulong(0)] * (5 - len(arguments))) != 0:
            raise OSError(ctypes.get_errno(), f"prctl {arguments}")

    os.umask(int(unit["UMask"][0], 8))
    resource.setrlimit(resource.RLIMIT_CORE, (int(unit["LimitCORE"][0]),) * 2)
    wanted = min(int(unit["LimitNOFILE"][0]), resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
    if unit["CapabilityBoundingSet"] == [""] and os.geteuid() == 0:
        for number in range(int(Path("/proc/sys/kernel/cap_last_cap").read_text()) + 1):
            prctl(_PR_CAPBSET_DROP, number)
    filter_bytes = program(unit)
    buffer = ctypes.create_string_buffer(filter_bytes, len(filter_bytes))
    described = struct.pack("HxxxxxxP", len(filter_bytes) // 8, ctypes.addressof(buffer))  # struct sock_fprog
    header = ctypes.create_string_buffer(described, len(described))
    if unit["NoNewPrivileges"] == ["yes"]:
        prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if unit["MemoryDenyWriteExecute"] == ["yes"]:
        prctl(_PR_SET_MDWE, 1)
    prctl(_PR_SET_SECCOMP, 2, ctypes.addressof(header))


def main():
    unit, writable = sys.argv[1:3]
    if os.geteuid() == 0 and os.environ.get("CONFINED_MOUNTS") != "1":
        mounts = 'mount --bind "$0" "$0" && mount --bind / / && mount -o remount,bind,ro / && exec "$@"'
        os.execvpe("unshare", ["unshare", "--mount", "sh", "-c", mounts, writable, sys.executable, *sys.argv],
                   {**os.environ, "CONFINED_MOUNTS": "1"})  # fmt: skip
    os.environ.pop("CONFINED_MOUNTS", None)
    confine(read_unit(unit))
    os.execvp(sys.argv[4], sys.argv[4:])


if __name__ == "__main__":
    main()

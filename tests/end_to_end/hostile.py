"""What code that took over an engine or a template child would try. Loaded before the lock, run after it.

Each try is a function that returns when it got through. Runs inside of the confined process, so it uses only what is
imported here.
"""

import ctypes
import mmap
import os
import resource
import socket
import threading

_libc = ctypes.CDLL(None, use_errno=True)
_IS_ARM = os.uname().machine == "aarch64"
_ADDRESS = b"\x02\x00\x00\x50\x7f\x00\x00\x01" + bytes(8)  # struct sockaddr_in: 127.0.0.1:80


def raw(x86, arm, *values):
    """A system call by number, past everything that Python would do."""
    arguments = [ctypes.c_char_p(v) if isinstance(v, bytes) else ctypes.c_long(v) for v in values]
    result = _libc.syscall(ctypes.c_long(arm if _IS_ARM else x86), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def read(path):
    with open(path, "rb") as file:
        return file.read(16)


def write(path):
    with open(path, "wb") as file:
        file.write(b"x")


def inherited():
    """Descriptors that lead to a file with a name, /dev/null aside."""
    found = []
    for number in range(3, 256):
        try:
            link = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
        if link.startswith("/") and not link.startswith(("/memfd:", "/dev/null")):
            found.append(link)
    if not found:
        raise PermissionError("none")
    return found


def environment():
    """A value in this process's environment that is not on the allow-list."""
    allowed = ("LANG", "LC_", "TZ", "LD_LIBRARY_PATH", "CUDA_", "HIP_", "GGML_", "OMP_", "GOMP_", "OPENBLAS_")
    odd = [name for name in os.environ if not name.startswith(allowed)]
    if not odd:
        raise PermissionError("none")
    return odd


def spin_thread():
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()


def fork():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def tries(secret, parent, bystander):
    """Return name → try. `secret`: a file of the supervisor's side, mode 0644 on purpose. `parent`: the process that
    stands for the supervisor; `bystander`: another one, of the same user as the confined process."""
    found = {
        "open_user_store": lambda: read(secret),
        "open_etc_passwd": lambda: read("/etc/passwd"),
        "open_by_system_call": lambda: raw(257, 56, -100, secret.encode(), 0, 0),
        "list_root": lambda: os.listdir("/"),
        "write_tmp": lambda: write("/tmp/hostile"),
        "write_beside_secret": lambda: write(secret + ".x"),
        "delete_secret": lambda: os.unlink(secret),
        "rename_secret": lambda: os.rename(secret, secret + ".y"),
        "link_secret": lambda: os.link(secret, secret + ".z"),
        "chmod_secret": lambda: os.chmod(secret, 0o666),
        "make_folder": lambda: os.mkdir(secret + ".d"),
        "own_environment_file": lambda: read("/proc/self/environ"),
        "odd_environment": environment,
        "inherited_files": inherited,
        "parent_environment": lambda: read(f"/proc/{parent}/environ"),
        "parent_memory": lambda: read(f"/proc/{parent}/mem"),
        "parent_descriptors": lambda: os.listdir(f"/proc/{parent}/fd"),
        "own_memory_file": lambda: read("/proc/self/mem"),
        "tcp_socket": socket.socket,
        "udp_socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        "unix_socket": lambda: socket.socket(socket.AF_UNIX),
        "raw_socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1),
        "netlink_socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
        "connect_by_system_call": lambda: raw(42, 203, 3, _ADDRESS, 16),
        "bind_by_system_call": lambda: raw(49, 200, 3, _ADDRESS, 16),
        "exec": lambda: os.execv("/bin/true", ["true"]),
        "execveat": lambda: raw(322, 281, -100, b"/bin/true", 0, 0, 0),
        "signal_parent": lambda: os.kill(parent, 0),
        "signal_bystander": lambda: os.kill(bystander, 0),
        "kill_bystander": lambda: os.kill(bystander, 9),
        "signal_its_thread": lambda: raw(234, 131, bystander, bystander, 0),
        "become_root": lambda: os.setuid(0),
        "become_nobody": lambda: raw(105, 146, 65533),
        "ptrace_parent": lambda: raw(101, 117, 16, parent, 0, 0),
        "read_parent_memory": lambda: raw(310, 270, parent, 0, 0, 0, 0, 0),
        "write_parent_memory": lambda: raw(311, 271, parent, 0, 0, 0, 0, 0),
        "pidfd_of_parent": lambda: raw(434, 434, parent, 0),
        "executable_memory": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC),
        "io_uring": lambda: raw(425, 425, 1, 0),
        "bpf": lambda: raw(321, 280, 0, 0, 0),
        "perf": lambda: raw(298, 241, 0, 0, -1, -1, 0),
        "keyctl": lambda: raw(250, 219, 0, 0, 0),
        "userfaultfd": lambda: raw(323, 282, 0),
        "unshare": lambda: raw(272, 97, 0x10000000),
        "mount": lambda: raw(165, 40, 0, 0, 0, 0, 0),
        "chroot": lambda: os.chroot("/"),
        "module": lambda: raw(175, 105, 0, 0, b""),
        "reboot": lambda: raw(169, 142, 0, 0, 0, 0),
        "more_files": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (1 << 20, 1 << 20)),
        "core_files": lambda: resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20)),
        "dumpable": lambda: raw(157, 167, 4, 1, 0, 0, 0),
        "another_filter": lambda: raw(317, 277, 1, 0, 0),
        "thread": spin_thread,
        "fork": fork,
    }
    return found


def run(secret, parent, bystander):
    """Try everything; return name → "done" or the refusal."""
    results = {}
    for name, action in tries(secret, parent, bystander).items():
        try:
            action()
        except BaseException as error:
            results[name] = f"{type(error).__name__} {getattr(error, 'errno', '')}".strip()
        else:
            results[name] = "done"
    return results

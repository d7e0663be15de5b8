"""A port that nothing else takes between the moment it is chosen and the moment a server binds it."""

import secrets
import socket
from pathlib import Path

FIRST = 10_000


def free_port() -> int:
    """Return a free TCP port of 127.0.0.1 below the range from which the kernel serves everyone else, Linux.

    A port that the kernel chooses (bind to 0) is the next client's too as soon as it is let go.
    """
    ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(1000):
        port = FIRST + secrets.randbelow(max(ephemeral - FIRST, 1000))
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no free port found")

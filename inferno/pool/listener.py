"""The listening socket: bound once by the supervisor, shared by all workers through their descriptors."""

from __future__ import annotations

import errno
import os
import socket

from ..errors import StartError

BACKLOG = 2048


def listen(host: str, port: int) -> socket.socket:
    """Return a listening TCP socket. Raises StartError that says why and what to do."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise StartError(f"{host}: not an address of this machine: {error.strerror or error}") from None
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host.strip("[]") == "::" else 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise StartError(_reason(host, port, error)) from None
    return listener


def _reason(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"{host}:{port} is in use by another program; stop it, or choose another port with --port"
    if error.errno == errno.EACCES:
        return f"{host}:{port}: ports below 1024 need a privilege; choose a higher one with --port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is not an address of this machine; see [server] host"
    return f"{host}:{port} cannot be bound: {os.strerror(error.errno or 0)}"


def shown_address(listener: socket.socket) -> str:
    """Return host:port as a URL has it."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

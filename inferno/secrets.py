"""INFERNO_JWT_SECRET and INFERNO_ADMIN_PASSWORD: where they come from, what is refused, and how they stay unseen.

`hide_environment` runs first in a server: it moves secret variables into a sealed memory file and replaces the
process by itself, since unsetenv leaves /proc/PID/environ as it was. `load` then reads variables, …_FILE forms or
<data>/secrets.env. A refusal names the variable and the command that makes a good value, never the value.

Used by the supervisor and by commands. Workers get what they need over their socket, engines get nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import resource
import secrets
import sys
from collections import Counter
from collections.abc import Mapping
from math import log2
from pathlib import Path

from msgspec import Struct

from .config import Settings
from .datadir import DataDir, read_private, read_small
from .errors import ConfigError, StartError

MIN_SECRET_LENGTH = 32
MIN_PASSWORD_LENGTH = 12
MAX_PASSWORD_LENGTH = 1024
COMMON_PASSWORDS = Path(__file__).parent / "security" / "data" / "common_passwords.txt"

# Variables that must not stay in a process's environment. URLs may hold a password.
HIDDEN_VARIABLES = (
    "INFERNO_JWT_SECRET",
    "INFERNO_JWT_SECRET_PREVIOUS",
    "INFERNO_ADMIN_PASSWORD",
    "INFERNO_API_KEY",
    "INFERNO_STORAGE_URL",
    "INFERNO_LIMITS_URL",
    "INFERNO_TELEMETRY_OTLP_ENDPOINT",
)
_FILE_NAMES = ("INFERNO_JWT_SECRET", "INFERNO_JWT_SECRET_PREVIOUS", "INFERNO_ADMIN_PASSWORD")
_MAKE = {
    "INFERNO_JWT_SECRET": "openssl rand -base64 48",
    "INFERNO_JWT_SECRET_PREVIOUS": "openssl rand -base64 48",
    "INFERNO_ADMIN_PASSWORD": "openssl rand -base64 16",
}

_PROCESS_KEY = secrets.token_bytes(16)


class Secret:
    """A secret text. Its printed form is a fingerprint that means something in this process only."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        digest = hashlib.blake2b(self._value.encode(), key=_PROCESS_KEY, digest_size=4).hexdigest()
        return f"Secret({digest})"

    __str__ = __repr__

    def __format__(self, specification: str) -> str:
        return repr(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return secrets.compare_digest(self._value.encode(), other._value.encode())

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __reduce__(self) -> str:
        raise TypeError("a Secret is not serialized")


class Secrets(Struct, frozen=True):
    """The secrets of one server; all None with authentication off."""

    jwt: Secret | None = None
    jwt_previous: Secret | None = None
    admin_password: Secret | None = None


# ---------------------------------------------------------------- reading and judging


def load(settings: Settings, environ: Mapping[str, str]) -> Secrets:
    """Return the secrets that the configuration needs. Raises ConfigError.

    Order: the variable or its …_FILE form, then <data>/secrets.env.
    """
    if not settings.security.auth_enabled:
        return Secrets()
    found = {name: _given(name, environ) for name in _FILE_NAMES}
    data = DataDir(settings.storage.data_dir)
    if found["INFERNO_JWT_SECRET"] is None or found["INFERNO_ADMIN_PASSWORD"] is None:
        for name, value in _read_secrets_file(data.secrets_file).items():
            if found[name] is None:
                found[name] = value
    secret, password = found["INFERNO_JWT_SECRET"], found["INFERNO_ADMIN_PASSWORD"]
    for name in ("INFERNO_JWT_SECRET", "INFERNO_ADMIN_PASSWORD"):
        if found[name] is None:
            raise _refusal(name, "is not set, but authentication is on", data)
    if secret is None or password is None:  # not reached; tells the type checker
        raise _refusal("INFERNO_JWT_SECRET", "is not set", data)
    _check("INFERNO_JWT_SECRET", secret_fault(secret), data)
    _check("INFERNO_ADMIN_PASSWORD", password_fault(password), data)
    if secret == password:
        raise _refusal("INFERNO_JWT_SECRET", "equals INFERNO_ADMIN_PASSWORD; each needs its own value", data)
    previous = found["INFERNO_JWT_SECRET_PREVIOUS"]
    if previous is not None:
        _check("INFERNO_JWT_SECRET_PREVIOUS", secret_fault(previous), data)
        if previous == secret:
            raise _refusal(
                "INFERNO_JWT_SECRET_PREVIOUS",
                "equals INFERNO_JWT_SECRET; unset it, or set a new secret",
                data,
            )
    return Secrets(
        jwt=Secret(secret),
        jwt_previous=None if previous is None else Secret(previous),
        admin_password=Secret(password),
    )


def admin_password(settings: Settings, environ: Mapping[str, str]) -> Secret | None:
    """Return the first administrator's password for a command that works without a server; None: none was given.

    From the places of `load` and as strict. Raises ConfigError.
    """
    if not settings.security.auth_enabled:
        return None
    data = DataDir(settings.storage.data_dir)
    name = "INFERNO_ADMIN_PASSWORD"
    password = _given(name, environ)
    if password is None:
        password = _read_secrets_file(data.secrets_file).get(name)
    if password is None:
        return None
    _check(name, password_fault(password), data)
    return Secret(password)


def secret_fault(value: str) -> str | None:
    """Say why a signing secret is refused, or None. Lengths are in characters."""
    if not value.strip():
        return "is blank"
    if len(value) < MIN_SECRET_LENGTH:
        return f"has {len(value)} characters; at least {MIN_SECRET_LENGTH} are needed"
    if _is_example(value):
        return "is the text of an example"
    return _pattern_fault(value, min_bits=80, max_foreseen=0.6)


def password_fault(value: str) -> str | None:
    """Say why an administrator's password is refused, or None. Lengths are in characters; nothing is stripped."""
    if not value.strip():
        return "is blank"
    if len(value) < MIN_PASSWORD_LENGTH:
        return f"has {len(value)} characters; at least {MIN_PASSWORD_LENGTH} are needed"
    if len(value) > MAX_PASSWORD_LENGTH:
        return f"has {len(value)} characters; at most {MAX_PASSWORD_LENGTH} are allowed"
    if any(ord(character) < 32 or 127 <= ord(character) < 160 for character in value):
        return "holds a control character"
    if _is_example(value):
        return "is the text of an example"
    if _is_common(value):
        return "is a common password"
    return _pattern_fault(value, min_bits=20, max_foreseen=0.85)  # short: chance makes some neighbours


_EXAMPLES = re.compile(
    r"your[-_ ]|[-_ ]your|change[-_ ]?(me|this|it)|replace[-_ ]?(me|this|with)|example|placeholder|at[-_ ]least[-_ ]\d"
    r"|insert[-_ ]|secret[-_ ]?(key|here)|do[-_ ]?not[-_ ]?use|default[-_ ]?(secret|password)|insecure|dummy"
    r"|lorem ipsum|x{8,}|inferno[-_ ]?(jwt|admin|secret|password)",
    re.IGNORECASE,
)
_ROWS = (
    "`1234567890-=",
    "qwertyuiop[]",
    "asdfghjkl;'",
    "zxcvbnm,./",
    "qwertzuiopü",
    "azertyuiop",
    "yxcvbnm",
    "qazwsxedcrfvtgbyhnujmikolp",
)
_NEIGHBOURS = {row[i : i + 2] for row in _ROWS for i in range(len(row) - 1)}
_NEIGHBOURS |= {pair[::-1] for pair in _NEIGHBOURS}


def _is_example(value: str) -> bool:
    return _EXAMPLES.search(value) is not None


def _is_common(value: str) -> bool:
    try:
        words = COMMON_PASSWORDS.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return False
    return value.casefold() in {word.strip().casefold() for word in words}


def _pattern_fault(value: str, *, min_bits: float, max_foreseen: float) -> str | None:
    """Say which pattern makes a text guessable: a repeated part, few different characters, sequences, keyboard rows."""
    text = value.casefold()
    for size in range(1, len(text) // 2 + 1):
        if text[:size] * (len(text) // size) + text[: len(text) % size] == text:
            return "is too weak: one part repeated"
    counts = Counter(text)
    bits = -sum(n * log2(n / len(text)) for n in counts.values())
    if bits < min_bits:
        return "is too weak: too few different characters"
    pairs = [text[i : i + 2] for i in range(len(text) - 1)]
    foreseen = sum(pair in _NEIGHBOURS or abs(ord(pair[1]) - ord(pair[0])) <= 1 for pair in pairs)
    if foreseen > max_foreseen * len(pairs):
        return "is too weak: a sequence or keyboard rows"
    return None


def _given(name: str, environ: Mapping[str, str]) -> str | None:
    """Return a secret from its variable or its …_FILE form."""
    direct, file = environ.get(name), environ.get(f"{name}_FILE")
    if not file:
        return direct
    text, status = read_small_named(Path(file), f"{name}_FILE")
    if status.st_mode & 0o002:
        raise ConfigError(f"{name}_FILE: {file} is writable by everybody; run: chmod o-w {file}")
    content = _without_newline(text)
    if direct is not None and direct != content:
        raise ConfigError(f"{name} and {name}_FILE are both set and differ; keep one of them")
    return content


def read_small_named(path: Path, name: str) -> tuple[str, os.stat_result]:
    """Read a small file and let a refusal name the variable that pointed there."""
    try:
        return read_small(path)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


def _without_newline(text: str) -> str:
    """Take off one trailing newline, nothing else: files end with one, and values are never folded."""
    if text.endswith("\r\n"):
        return text[:-2]
    return text[:-1] if text.endswith("\n") else text


def _read_secrets_file(path: Path) -> dict[str, str]:
    """Return the values of <data>/secrets.env, whose lines systemd's EnvironmentFile= understands too."""
    if not os.path.lexists(path):
        return {}
    found = {}
    for number, line in enumerate(read_private(path).splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals or name.strip() not in _FILE_NAMES:
            raise ConfigError(
                f"{path}, line {number}: expected one of {', '.join(_FILE_NAMES)} followed by ="
            )
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        found[name.strip()] = value
    return found


def _check(name: str, fault: str | None, data: DataDir) -> None:
    if fault is not None:
        raise _refusal(name, fault, data)


def _refusal(name: str, fault: str, data: DataDir) -> ConfigError:
    return ConfigError(
        f'{name} {fault}. Make one with: export {name}="$({_MAKE[name]})"; or name a file in {name}_FILE, or let '
        f"`inferno init {data.root}` make {data.secrets_file}"
    )


def make_secrets_file() -> str:
    """Return the text of a new secrets file."""
    return (
        "# Secrets of this Inferno server. `inferno serve` reads this file when the variables are not set; systemd can\n"
        "# too: EnvironmentFile=. Keep it at mode 0600. The password is for the first account, admin.\n"
        f"INFERNO_JWT_SECRET={secrets.token_urlsafe(48)}\n"
        f"INFERNO_ADMIN_PASSWORD={secrets.token_urlsafe(18)}\n"
    )


# ---------------------------------------------------------------- out of the environment


def hide_environment() -> dict[str, str]:
    """Return the whole environment, having made sure that this process's own holds no secret.

    When it does, the process is replaced by itself with a clean environment and the secrets in a sealed memory
    file (a pipe where there are none): this call then does not return, and returns in the new process.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold them
    given = {name: os.environ[name] for name in HIDDEN_VARIABLES if name in os.environ}
    handed = os.environ.pop("INFERNO_SECRETS_FD", None)
    if given:
        _start_again(given)
    hidden = {} if handed is None else _read_handed(handed)
    return {**os.environ, **hidden}


def _start_again(hidden: dict[str, str]) -> None:
    data = json.dumps(hidden).encode()
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("inferno-secrets", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.write(descriptor, data)
        os.lseek(descriptor, 0, os.SEEK_SET)
        seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    else:
        descriptor, writer = os.pipe()
        os.set_blocking(writer, False)
        if os.write(writer, data) != len(data):
            raise StartError("the secrets in the environment are too long")
        os.close(writer)
    os.set_inheritable(descriptor, True)
    environ = {name: value for name, value in os.environ.items() if name not in hidden}
    environ["INFERNO_SECRETS_FD"] = str(descriptor)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)  # noqa: S606 - the same program again


def _read_handed(text: str) -> dict[str, str]:
    try:
        descriptor = int(text)
        if descriptor <= 2:
            raise ValueError
        with os.fdopen(descriptor, "rb") as file:
            content = json.loads(file.read(MAX_PASSWORD_LENGTH * 256))
    except (ValueError, OSError):
        raise StartError("INFERNO_SECRETS_FD is set by Inferno itself and must not be set by hand") from None
    if not isinstance(content, dict) or not all(name in HIDDEN_VARIABLES for name in content):
        raise StartError("INFERNO_SECRETS_FD is set by Inferno itself and must not be set by hand")
    return {name: str(value) for name, value in content.items()}

"""The data directory: what lies where in it, who may read it, and the lock that keeps two servers apart.

Makes folders 0700 and files 0600, never overwrites, and reads private files without following links or blocking.
Used by the supervisor and by commands; workers and engines get contents, not paths. Knows nothing of what keys and
secrets are for.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import stat
from pathlib import Path
from types import TracebackType

from .errors import ConfigError, StartError

KEY_NAMES = ("audit", "pepper", "cache")
KEY_BYTES = 32
MAX_PRIVATE_BYTES = 64 << 10


class DataDir:
    """Paths below one data directory."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    @property
    def keys(self) -> Path:
        return self.root / "keys"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def run(self) -> Path:
        """What only lives as long as the server: metrics files."""
        return self.root / "run"

    @property
    def secrets_file(self) -> Path:
        return self.root / "secrets.env"

    @property
    def rules_file(self) -> Path:
        """The operator's own rules of the input guard; absent unless made."""
        return self.root / "rules.toml"

    @property
    def control_socket(self) -> Path:
        return self.root / "control.sock"

    @property
    def lock_file(self) -> Path:
        return self.root / "inferno.lock"

    @property
    def cli_key(self) -> Path:
        return self.root / "cli.key"

    def make(self) -> None:
        """Create the folders that a server needs. Raises StartError."""
        make_folder(self.root)
        if self.root.stat().st_mode & stat.S_IWOTH:
            raise StartError(
                f"{self.root}: everybody can write here; a data directory must be closed: chmod 700 {self.root}"
            )
        make_folder(self.keys)
        make_folder(self.run)

    def make_metrics_folder(self) -> Path:
        """Make the private folder of metric files, empty. For the holder of the lock."""
        folder = self.run / "metrics"
        shutil.rmtree(folder, ignore_errors=True)
        make_folder(folder)
        return folder

    def make_keys(self) -> list[Path]:
        """Create the keys that are missing; return their paths."""
        make_folder(self.keys)
        made = []
        for name in KEY_NAMES:
            path = self.keys / f"{name}.key"
            if not path.exists():
                write_new(path, secrets.token_hex(KEY_BYTES) + "\n")
                made.append(path)
        return made

    def read_key(self, name: str) -> bytes:
        """Return one key's bytes. Raises ConfigError when it is missing, damaged or readable by others."""
        path = self.keys / f"{name}.key"
        text = read_private(path).strip()
        try:
            key = bytes.fromhex(text)
        except ValueError:
            key = b""
        if len(key) != KEY_BYTES:
            raise ConfigError(f"{path}: expected {2 * KEY_BYTES} hexadecimal digits")
        return key


def make_folder(path: Path) -> None:
    """Create a folder, 0700, with its parents; an existing one stays as it is. Raises StartError."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StartError(
            f"{path}: cannot be made: {error.strerror}; is the data directory writable?"
        ) from None


def write_new(path: Path, text: str, mode: int = 0o600) -> None:
    """Create a file that must not exist, and bring it to disk. Raises StartError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, mode)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, mode)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
    except OSError as error:
        raise StartError(f"{path}: cannot be written: {error.strerror}") from None


def read_private(path: Path) -> str:
    """Return the text of a file that must be ours and closed to others. Raises ConfigError."""
    text, status = read_small(path, follow=False)
    if status.st_uid not in (os.geteuid(), 0):
        raise ConfigError(f"{path}: belongs to another user")
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise ConfigError(f"{path}: readable by others; run: chmod 600 {path}")
    return text


def read_small(path: Path, *, follow: bool = True) -> tuple[str, os.stat_result]:
    """Return the text of a small regular file, never blocking. Raises ConfigError."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise ConfigError(f"{path}: expected a regular file")
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(MAX_PRIVATE_BYTES + 1)
    if len(data) > MAX_PRIVATE_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_PRIVATE_BYTES} bytes")
    try:
        return data.decode(), status
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text") from None


class DataLock:
    """The writer's lock of a data directory: one server, or one command without a server, at a time.

    The kernel drops it with the process, so a killed server leaves nothing to clean up.
    """

    def __init__(self, data: DataDir) -> None:
        self._path = data.lock_file
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock, or keep it. Raises StartError naming the holder."""
        if self._descriptor is not None:
            return
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(self._path, flags, 0o600)
        except OSError as error:
            raise StartError(f"{self._path}: cannot be opened: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise StartError(
                f"{self._path.parent}: another process (pid {holder}) uses this data directory; stop it, or give this "
                "server its own with [storage] data_dir"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the lock back; idempotent. The file stays: removing it would let two holders lock two files."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> DataLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

"""The registry file of installed models: `<models dir>/registry.json`, private, replaced atomically, under a lock.

Owns the file's form and its life on disk: what a crash leaves is the old file or the new one, never a mixture, and two
writers do not lose each other's changes. Knows nothing of where models come from or whether they are sound; that is the
catalog's matter. Used by commands and by the supervisor.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from .errors import StartError

FORMAT = 1
MAX_FILE_BYTES = 16 << 20
MAX_VERDICTS = 4096


class FactsSummary(msgspec.Struct, frozen=True):
    """The few facts that lists show; taken when the file was verified."""

    architecture: str = ""
    title: str = ""
    parameter_count: int = 0
    quantization: str = ""
    context_length: int | None = None
    embedding_length: int | None = None
    block_count: int | None = None
    vocab_size: int | None = None
    tokenizer: str = ""
    has_chat_template: bool = False
    tensor_count: int = 0


class Registered(msgspec.Struct, frozen=True):
    """One model that was added by name. `paths` and `sha256` go together, one for each shard."""

    name: str
    paths: list[str]
    sha256: list[str]
    size_bytes: int
    added_at: str
    allow: dict[str, str] = {}  # waived reason → when and what was found
    facts: FactsSummary = FactsSummary()
    origin: str = ""  # hf:org/repo/file, or empty for a local path


class KnownVerdict(msgspec.Struct, frozen=True):
    """What was found out about a file in exactly this state; the key is its stamp."""

    verdict: str  # "valid" or the reason of the fault
    verifier: int
    sha256: str = ""
    xxh3_128: str = ""  # corruption check only
    allow: list[str] = []


class Content(msgspec.Struct, frozen=True):
    """The whole file."""

    format: int = FORMAT
    models: dict[str, Registered] = {}
    verdicts: dict[str, KnownVerdict] = {}


_decoder = msgspec.json.Decoder(Content)


class Registry:
    """The registry of one models folder."""

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / "registry.json"

    def read(self) -> Content:
        """The content now; empty if there is no file yet. Raises StartError for a file that is not ours or damaged."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return Content()
        except OSError as error:
            raise StartError(f"{self.path}: cannot be read: {error.strerror}") from None
        with os.fdopen(fd, "rb") as file:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode) or info.st_uid not in (os.geteuid(), 0):
                raise StartError(f"{self.path}: not a file of this user")
            if info.st_mode & 0o022:
                raise StartError(f"{self.path}: others may write to it; run: chmod 600 {self.path}")
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise StartError(f"{self.path}: larger than {MAX_FILE_BYTES} bytes")
        try:
            content = _decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise StartError(f"{self.path}: damaged: {error}") from None
        if content.format != FORMAT:
            raise StartError(f"{self.path}: format {content.format}; this version reads format {FORMAT}")
        return content

    def update(self, change: Callable[[Content], Content]) -> Content:
        """Read, change and write under the lock; return what was written."""
        with self._locked():
            content = change(self.read())
            if len(content.verdicts) > MAX_VERDICTS:
                # dictionaries keep their order: the oldest verdicts go, they only cost a new check
                kept = list(content.verdicts.items())[-MAX_VERDICTS:]
                content = msgspec.structs.replace(content, verdicts=dict(kept))
            self._write(content)
            return content

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            fd = os.open(self.path.with_suffix(".lock"), flags, 0o600)
        except OSError as error:
            raise StartError(f"{self.path.with_suffix('.lock')}: {error.strerror}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _write(self, content: Content) -> None:
        data = msgspec.json.format(msgspec.json.encode(content), indent=1)
        temporary = self.path.with_name(f".registry-{secrets.token_hex(8)}")
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(fd)
            os.replace(temporary, self.path)
            sync_folder(self.path.parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise StartError(f"{self.path}: cannot be written: {error.strerror}") from None


def sync_folder(folder: Path) -> None:
    """Bring a rename in `folder` to disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

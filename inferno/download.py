"""Downloads of model files from a Hugging Face hub: a task of commands, never of the server.

Owns the rules: https only, every redirect checked again, a size limit that holds whatever the server says, no
credential sent to another origin, digest before the file gets its name. Knows nothing of GGUF: the caller verifies the
finished temporary file before `keep` gives it its place.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import secrets
import ssl
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from .errors import InfernoError
from .registry import sync_folder

DEFAULT_BASE = "https://huggingface.co"
MAX_REDIRECTS = 5
CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 60.0
_REFERENCE = re.compile(
    r"^hf:(?P<org>[A-Za-z0-9][\w.-]{0,95})/(?P<repo>[A-Za-z0-9][\w.-]{0,95})/(?P<file>[\w.-]+(?:/[\w.-]+){0,4})$", re.ASCII
)
_DIGEST = re.compile(r'^"?([0-9a-f]{64})"?$')

Progress = Callable[[int, int], None]


class DownloadError(InfernoError):
    """The download was refused or broke off; nothing was kept."""


@dataclass(frozen=True, slots=True)
class Reference:
    """`hf:org/repo/file`, taken apart and checked."""

    org: str
    repo: str
    file: str

    @classmethod
    def parse(cls, text: str) -> Reference:
        match = _REFERENCE.match(text)
        if match is None or any(part in (".", "..") for part in text.split("/")):
            raise DownloadError("expected hf:ORG/REPO/FILE.gguf")
        if not match["file"].endswith(".gguf"):
            raise DownloadError("only .gguf files are downloaded")
        return cls(match["org"], match["repo"], match["file"])

    def url(self, base: str) -> str:
        return f"{base.rstrip('/')}/{self.org}/{self.repo}/resolve/main/{urllib.parse.quote(self.file)}"


@dataclass(slots=True)
class Downloaded:
    """A complete file under a temporary name. Use as a context: without `keep` it is deleted at the end."""

    path: Path
    sha256: str
    size_bytes: int

    def __enter__(self) -> Downloaded:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    def keep(self, target: Path) -> None:
        """Give the file its name; an existing file is never replaced. Raises DownloadError."""
        try:
            os.link(self.path, target)
        except FileExistsError:
            raise DownloadError(f"{target}: exists already") from None
        except OSError as error:
            raise DownloadError(f"{target}: {error.strerror}") from None
        self.path.unlink()
        sync_folder(target.parent)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


def check_url(url: str, plain_origin: str | None) -> urllib.parse.SplitResult:
    """https, a host, no user name. `plain_origin` is the one origin that may be plain http (tests on loopback)."""
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError:
        raise DownloadError("a malformed address") from None
    if parts.scheme != "https" and not (plain_origin and _origin(url) == _origin(plain_origin)):
        raise DownloadError(f"only https is used; the address begins with {parts.scheme or 'nothing'}:")
    if not parts.hostname or parts.username is not None or parts.password is not None or port == 0:
        raise DownloadError("an address without host, or with a user name")
    if any(ord(c) <= 32 or ord(c) == 127 for c in url):
        raise DownloadError("an address with white space or control characters")
    return parts


def _connect(parts: urllib.parse.SplitResult) -> http.client.HTTPConnection:
    assert parts.hostname is not None  # noqa: S101 - check_url has refused it
    if parts.scheme == "https":
        return http.client.HTTPSConnection(
            parts.hostname, parts.port, timeout=TIMEOUT_SECONDS, context=ssl.create_default_context()
        )
    return http.client.HTTPConnection(parts.hostname, parts.port, timeout=TIMEOUT_SECONDS)


def download(
    url: str,
    folder: Path,
    *,
    max_bytes: int,
    token: str | None = None,
    expected_sha256: str | None = None,
    plain_origin: str | None = None,
    progress: Progress | None = None,
) -> Downloaded:
    """Fetch `url` into a temporary file in `folder`. Raises DownloadError.

    The digest is compared with `expected_sha256` and with the one that the hub announces, if it does.
    """
    start = _origin(url)
    announced: str | None = None
    try:
        for _ in range(MAX_REDIRECTS + 1):
            parts = check_url(url, plain_origin)
            headers = {"User-Agent": "inferno", "Accept-Encoding": "identity"}
            if token is not None and _origin(url) == start:
                headers["Authorization"] = f"Bearer {token}"
            connection = _connect(parts)
            try:
                target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
                connection.request("GET", target, headers=headers)
                response = connection.getresponse()
                if _origin(url) == start and announced is None:
                    match = _DIGEST.match(response.headers.get("X-Linked-Etag", "").lower())
                    announced = match[1] if match else None
                if response.status in (301, 302, 303, 307, 308):
                    url = urllib.parse.urljoin(url, response.headers.get("Location", ""))
                    continue
                if response.status != 200:
                    raise DownloadError(f"the server answered {response.status}")
                wanted = {digest.lower() for digest in (expected_sha256, announced) if digest}
                return _save(response, folder, max_bytes, wanted, progress)
            finally:
                connection.close()
        raise DownloadError(f"more than {MAX_REDIRECTS} redirects")
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(f"the download broke off: {type(error).__name__}") from None


def _save(
    response: http.client.HTTPResponse, folder: Path, max_bytes: int, wanted: set[str], progress: Progress | None
) -> Downloaded:
    size = response.length if response.length is not None else -1
    if size > max_bytes:
        raise DownloadError(f"the file has {size} bytes, {max_bytes} are allowed")
    path = folder / f".download-{secrets.token_hex(8)}"
    state = hashlib.sha256()
    done = 0
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "wb") as file:
            while data := response.read(CHUNK_BYTES):
                done += len(data)
                if done > max_bytes:
                    raise DownloadError(f"the file is larger than the {max_bytes} bytes that are allowed")
                state.update(data)
                file.write(data)
                if progress is not None:
                    progress(done, size)
            if size >= 0 and done != size:
                raise DownloadError(f"the download broke off after {done} of {size} bytes")
            file.flush()
            os.fchmod(fd, 0o444)
            os.fsync(fd)
        digest = state.hexdigest()
        if any(digest != other for other in wanted):
            raise DownloadError(f"SHA-256 is {digest}, expected {' and '.join(sorted(wanted))}")
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        raise
    return Downloaded(path, digest, done)

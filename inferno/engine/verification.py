"""The whole check of a model, in the order that the rules need: size, digest, structure, metadata, templates.

Owns that order; each step is elsewhere. Everything is read through the descriptors that will be loaded. Runs in the
engine before a load, and in commands. Raises GgufError for the first fault that is not waived.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from inferno_native import gguf
from inferno_native.gguf_report import Facts, GgufError

from ..digests import FileDigests, FileShrank, Progress, corruption_check_fd, digests_fd
from ..modelfile import Stamp, open_real
from .source import Mode, ModelSource, make_source
from .template_check import check_templates
from .template_wire import Sandbox

Profile = Literal["model", "container"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A sound model: its facts, the waived faults that were met, the digests that were taken, the time it took."""

    facts: Facts
    policy: tuple[str, ...]
    digests: tuple[FileDigests, ...]
    seconds: float

    @property
    def sha256(self) -> tuple[str, ...]:
        return tuple(digest.sha256 for digest in self.digests)


def digest_files(fds: Sequence[int], progress: Progress | None = None) -> tuple[FileDigests, ...]:
    """The digests of each file; a file that shrinks meanwhile is a GgufError."""
    digests = []
    for index, fd in enumerate(fds):
        try:
            digests.append(digests_fd(fd, progress))
        except FileShrank:
            raise GgufError("file-changed", None, shard=index) from None
    return tuple(digests)


def _corruption_checks(fds: Sequence[int], progress: Progress | None) -> list[str | None]:
    """xxh3_128 of each file, None for one that shrinks meanwhile."""
    checks: list[str | None] = []
    for fd in fds:
        try:
            checks.append(corruption_check_fd(fd, progress))
        except FileShrank:
            checks.append(None)
    return checks


def verify_files(
    fds: Sequence[int],
    *,
    profile: Profile = "model",
    max_bytes: int | None = None,
    expected_sha256: Sequence[str] | None = None,
    take_digest: bool = False,
    allow: Collection[str] = frozenset(),
    sandbox: Sandbox = "auto",
    progress: Progress | None = None,
) -> Verdict:
    """Check one model in one file or in shards.

    `expected_sha256` has one digest for each file (or one for the first); digests are also taken with `take_digest`.
    """
    start = time.perf_counter()
    waived = frozenset(allow)
    # The cheap refusals come before a digest of many gigabytes; both read the same descriptors.
    report = (
        gguf.verify_fds(fds, profile=profile, max_bytes=max_bytes, allow=waived)
        if not expected_sha256
        else None
    )
    digests: tuple[FileDigests, ...] = ()
    if expected_sha256 or take_digest:
        digests = digest_files(fds, progress)
        for index, (wanted, had) in enumerate(zip(expected_sha256 or (), digests, strict=False)):
            if wanted.lower() != had.sha256:
                raise GgufError(
                    "checksum-mismatch", None, f"SHA-256 expected {wanted.lower()}, found {had.sha256}", shard=index
                )
    if report is None:
        report = gguf.verify_fds(fds, profile=profile, max_bytes=max_bytes, allow=waived)
    policy = set(report.policy)
    if profile == "model":
        policy.update(
            check_templates(report.facts.chat_templates, report.facts.special_texts, waived, sandbox=sandbox)
        )
    return Verdict(report.facts, tuple(sorted(policy)), digests, time.perf_counter() - start)


def open_verified(
    paths: Sequence[str],
    *,
    sha256: Sequence[str] = (),
    known_files: Mapping[str, str] = MappingProxyType({}),
    allow: Collection[str] = frozenset(),
    source: Mode = "auto",
    memory_bytes: int | None = None,
    max_bytes: int | None = None,
    take_digest: bool = False,
    sandbox: Sandbox = "auto",
    progress: Progress | None = None,
) -> tuple[ModelSource, Verdict]:
    """What an engine does before it loads: open, make the source, digest, verify. The source is the caller's to close.

    `paths` are absolute and free of links (the catalog resolves them); a link put there since is refused.
    `known_files` (verify = "changed"): of files whose SHA-256 was checked before, the state (Stamp.text()) and the xxh3_128.
    Where state and xxh3_128 are the same, SHA-256 is not taken again; where a disk changed bits, it is. Call `source.recheck()` once more after the load.
    """
    fds: list[int] = []
    try:
        for path in paths:
            fds.append(open_real(path))
        size = sum(os.fstat(fd).st_size for fd in fds)
        if max_bytes is not None and size > max_bytes:
            raise GgufError("file-too-large", None, f"{size} bytes, {max_bytes} allowed", wanted=max_bytes, had=size)
        known = [known_files.get(Stamp.of(fd).text()) for fd in fds]
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    model = make_source(fds, source, memory_bytes)
    try:
        is_known = bool(known) and None not in known and known == _corruption_checks(model.fds, progress)
        verdict = verify_files(
            model.fds, max_bytes=max_bytes, expected_sha256=None if is_known else sha256, take_digest=take_digest,
            allow=allow, sandbox=sandbox,
            progress=progress,
        )
        model.recheck()
    except BaseException:
        model.close()
        raise
    return model, verdict

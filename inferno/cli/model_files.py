"""What `inferno models verify` does with the paths it is given: which belong together, and the verdict on each model.

Needs no configuration. Knows the shards of a set by their split keys and names, and by nothing else.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Literal, cast

from inferno_native import gguf
from inferno_native.gguf_report import GgufError

from ..catalog import SHARD_NAME
from ..digests import sum_file_digest
from ..engine.verification import verify_files
from ..modelfile import open_model


def group_shards(paths: list[str]) -> list[list[str]]:
    """Put the shards of a set together, in the order of their numbers; every other path stands alone.

    A set is known by the names that split tools give (prefix-00001-of-00003.gguf), if at least one of its files has
    split keys or cannot be read; files with other names are a set when their split keys make a complete one and their
    names differ in digits only.
    """
    groups: dict[object, list[str]] = {}
    for path in dict.fromkeys(paths):
        groups.setdefault(_set_of(path) or ("file", path), []).append(path)
    result: list[list[str]] = []
    for key, members in groups.items():
        named = isinstance(key, tuple) and key[0] == "named"
        if len(members) == 1:
            result.append(members)
        elif named:
            if any(_split_count(path) != 0 for path in members):
                result.append(sorted(members, key=lambda path: int(cast(Any, SHARD_NAME.match(Path(path).name))["number"])))
            else:
                result.extend([path] for path in members)
        else:
            result.extend(_complete_sets(members))
    return result


def _set_of(path: str) -> tuple[str, str, str] | None:
    """What all shards of one set have in common: folder and name without number."""
    folder, name = os.path.split(os.path.abspath(path))
    match = SHARD_NAME.match(name)
    if match:
        return ("named", os.path.join(folder, match["prefix"]), match["count"])
    if not re.search("[0-9]", name):
        return None
    return ("digits", os.path.join(folder, re.sub("[0-9]+", "#", name)), "")


def _keys(path: str) -> tuple[int | None, int | None] | None:
    """(split.no, split.count), or None if the container is not sound."""
    try:
        fd = open_model(path)
    except GgufError:
        return None
    try:
        keys = gguf.split_keys(fd)
    except GgufError:
        return None
    finally:
        os.close(fd)
    return keys.no, keys.count


def _split_count(path: str) -> int:
    """split.count; -1 if the file cannot say (unreadable, or keys of the wrong type beside other split keys)."""
    keys = _keys(path)
    if keys is None:
        return -1
    return keys[1] or 0


def _complete_sets(paths: list[str]) -> list[list[str]]:
    """Files that differ in digits only: one set if their split keys are exactly 0 … count-1, else separate."""
    numbers = {path: _keys(path) for path in paths}
    counts = {keys[1] for keys in numbers.values() if keys is not None}
    if None not in numbers.values() and counts == {len(paths)}:
        ordered = sorted(paths, key=lambda path: (cast(Any, numbers[path])[0] is None, cast(Any, numbers[path])[0]))
        if [cast(Any, numbers[path])[0] for path in ordered] == list(range(len(paths))):
            return [ordered]
    return [[path] for path in paths]


def verify_group(paths: list[str], profile: str, sha256: str | None) -> dict[str, Any]:
    """The verdict on one model, in the form that `verify` prints (without the seconds)."""
    fds: list[int] = []
    try:
        for path in paths:
            try:
                fds.append(open_model(path))
            except GgufError as error:
                error.shard = len(fds)
                raise
        expected = [sha256] if sha256 else _beside(paths)
        verify_files(fds, profile=cast(Literal["model", "container"], profile), expected_sha256=expected)
    except GgufError as error:
        detail = error.detail if len(paths) == 1 else f"{error.detail} (in {os.path.basename(paths[error.shard])})"
        return _result(paths[0], error.reason, error.offset, detail, error.policy)
    finally:
        for fd in fds:
            os.close(fd)
    return _result(paths[0], "ok", None, "", False)


def _beside(paths: list[str]) -> list[str] | None:
    """The digests of a sha256sum file beside the model, if it has one for every file."""
    digests = [sum_file_digest(Path(path)) for path in paths]
    return [digest for digest in digests if digest] if all(digests) else None


def _result(path: str, reason: str, offset: int | None, detail: str, policy: bool) -> dict[str, Any]:
    return {
        "path": path, "verdict": "valid" if reason == "ok" else "invalid", "reason": reason, "offset": offset,
        "detail": detail, "policy": policy,
    }

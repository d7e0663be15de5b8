"""Which models there are, by exact name: configured, added, or found in the models folder.

Owns the way from a name to the files of a model, the digests they must have and the faults that are waived for them. A
name is looked up, never joined to a path. Does not verify: whoever needs a verdict passes the function that gives it,
and the catalog remembers verdicts under the state of the file. Used by commands and by the supervisor.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol

import msgspec
from inferno_native import gguf
from inferno_native.gguf_report import Facts, GgufError

from .config import Models
from .config.schema import MODEL_NAME
from .digests import FileDigests, Progress
from .errors import InfernoError
from .modelfile import Stamp, find_models, open_below, open_model
from .registry import Content, FactsSummary, KnownVerdict, Registered, Registry

Origin = Literal["configured", "added", "found"]
SHARD_NAME = re.compile(r"^(?P<prefix>.*)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf$")
_NAME = re.compile(MODEL_NAME)
MAX_SHARDS = 1024


class CatalogError(InfernoError):
    """A name that cannot be used, is taken, or is not there."""


class Model(msgspec.Struct, frozen=True):
    """One model by name: where its files are and what they must be.

    `folder` is set for a model that was found: its paths are relative to it and are opened below it.
    """

    name: str
    origin: Origin
    paths: list[str]
    sha256: list[str] = []
    allow: list[str] = []
    folder: str | None = None
    size_bytes: int = 0
    facts: FactsSummary = FactsSummary()
    added_at: str = ""
    context_size: int | None = None
    slots: int | None = None
    gpu_layers: int | None = None
    public_prefixes: list[str] = []

    @property
    def full_paths(self) -> list[str]:
        if self.folder is None:
            return self.paths
        return [os.path.join(self.folder, path) for path in self.paths]

    def open(self) -> list[int]:
        """Descriptors of all files, in order; the caller closes them. Raises GgufError."""
        fds: list[int] = []
        try:
            for path in self.paths:
                fds.append(open_model(path) if self.folder is None else open_below(self.folder, path))
        except GgufError as error:
            error.shard = len(fds)
            for fd in fds:
                os.close(fd)
            raise
        return fds


class Checked(Protocol):
    """What a verifying function gives back: see inferno.engine.verification.Verdict."""

    @property
    def facts(self) -> Facts: ...

    @property
    def policy(self) -> tuple[str, ...]: ...

    @property
    def digests(self) -> tuple[FileDigests, ...]: ...

    @property
    def sha256(self) -> tuple[str, ...]: ...


class VerifyFunction(Protocol):
    """inferno.engine.verification.verify_files, as far as the catalog needs it."""

    def __call__(
        self,
        fds: Sequence[int],
        *,
        max_bytes: int | None = None,
        expected_sha256: Sequence[str] | None = None,
        take_digest: bool = False,
        allow: frozenset[str] = frozenset(),
        progress: Progress | None = None,
    ) -> Checked: ...


def shard_paths(path: str | Path) -> list[Path]:
    """All files of the set that `path` is the first shard of, by the shards' names; else the path alone."""
    path = Path(path)
    match = SHARD_NAME.match(path.name)
    if match is None or int(match["number"]) != 1 or not 1 < int(match["count"]) <= MAX_SHARDS:
        return [path]
    count = int(match["count"])
    return [path.with_name(f"{match['prefix']}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1)]


def name_of(path: str | Path) -> str:
    """The name that a file gets unless another one is asked for: its own, without suffix and shard number."""
    name = Path(path).name
    match = SHARD_NAME.match(name)
    return match["prefix"] if match else name.removesuffix(".gguf")


def check_name(name: str) -> str:
    """Return a usable name. Raises CatalogError."""
    if _NAME.search(name) is None or not name.isprintable() or name == "default":
        raise CatalogError('a model\'s name must be letters, digits and . _ : / - (at most 128, not "default")')
    return name


def summary_of(facts: Facts) -> FactsSummary:
    return FactsSummary(
        architecture=facts.architecture or "", title=facts.name or "", parameter_count=facts.parameter_count,
        quantization=facts.quantization or "", context_length=facts.context_length,
        embedding_length=facts.embedding_length, block_count=facts.block_count, vocab_size=facts.vocab_size,
        tokenizer=facts.tokenizer_model or "", has_chat_template=bool(facts.chat_templates),
        tensor_count=facts.tensor_count,
    )


class Catalog:
    """The models of one configuration."""

    def __init__(self, settings: Models, now: Callable[[], datetime.datetime] | None = None) -> None:
        self.settings = settings
        self.registry = Registry(settings.dir)
        self._now = now or (lambda: datetime.datetime.now(datetime.UTC))

    @property
    def max_bytes(self) -> int:
        return int(self.settings.max_model_size_gb * (1 << 30))

    def models(self) -> dict[str, Model]:
        """Every model by name; where a name stands twice, configured goes before added before found."""
        content = self.registry.read()
        all_models: dict[str, Model] = {}
        known = set()
        for name, entry in self.settings.entries.items():
            all_models[name] = Model(
                name=name, origin="configured",
                paths=[os.path.realpath(path) for path in shard_paths(entry.path)],
                sha256=[entry.sha256.lower()] if entry.sha256 else [], allow=sorted(entry.allow),
                context_size=entry.context_size, slots=entry.slots, gpu_layers=entry.gpu_layers,
                public_prefixes=entry.public_prefixes,
            )
        for name, added in content.models.items():
            known.update(added.paths)
            if name in all_models:
                continue
            all_models[name] = Model(
                name=name, origin="added", paths=added.paths, sha256=added.sha256, allow=sorted(added.allow),
                size_bytes=added.size_bytes, facts=added.facts, added_at=added.added_at,
            )
        known.update(os.path.realpath(path) for model in all_models.values() for path in model.full_paths)
        if os.path.isdir(self.settings.dir):
            for found in self._found():
                if found.name not in all_models and os.path.realpath(found.full_paths[0]) not in known:
                    all_models[found.name] = found
        return all_models

    def _found(self) -> list[Model]:
        root = os.path.realpath(self.settings.dir)
        models = []
        for relative in find_models(root):
            # a link inside the folder is opened by where it leads
            real = os.path.relpath(os.path.realpath(os.path.join(root, relative)), root)
            match = SHARD_NAME.match(relative)
            if match and match["number"] != "00001":
                continue
            name = str(Path(relative).with_name(name_of(relative)))
            try:
                check_name(name)
            except CatalogError:
                continue
            paths = [str(path) for path in shard_paths(real)]
            size = sum(os.path.getsize(p) for path in paths if os.path.exists(p := os.path.join(root, path)))
            models.append(Model(name=name, origin="found", paths=paths, folder=root, size_bytes=size))
        return models

    def find(self, name: str) -> Model:
        """The model of exactly this name. Raises CatalogError."""
        model = self.models().get(name)
        if model is None:
            raise CatalogError(f"no model has the name {name[:128]!r}")
        return model

    def expected_digests(self, model: Model) -> list[str]:
        """The digests that a load must find: as recorded; with `require_checksum` there must be some."""
        if self.settings.require_checksum and not model.sha256:
            raise GgufError(
                "checksum-mismatch", None,
                f"require_checksum is set and no SHA-256 is recorded for {model.name!r}; add the model or give sha256",
            )
        return model.sha256

    def known_files(self, model: Model) -> dict[str, str]:
        """Of files that were verified with these waivers and digests, the state and the xxh3_128.

        An engine that finds both the same need not take their SHA-256 again.
        """
        if self.settings.verify == "always":
            return {}
        return {
            stamp: known.xxh3_128
            for stamp, known in self.registry.read().verdicts.items()
            if known.verdict == "valid" and known.verifier == gguf.VERIFIER_VERSION and known.xxh3_128
            and set(known.allow) <= set(model.allow)
            and (not model.sha256 or known.sha256 in model.sha256)
        }

    def remember(
        self, stamps: Sequence[Stamp], verdict: str, digests: Sequence[FileDigests], allow: Sequence[str]
    ) -> None:
        """Keep a verdict under the state of the files it was made for."""
        new = {
            stamp.text(): KnownVerdict(
                verdict=verdict, verifier=gguf.VERIFIER_VERSION, allow=sorted(allow),
                sha256=digests[index].sha256 if index < len(digests) else "",
                xxh3_128=digests[index].xxh3_128 if index < len(digests) else "",
            )
            for index, stamp in enumerate(stamps)
        }

        def change(content: Content) -> Content:
            kept = {key: value for key, value in content.verdicts.items() if key not in new}
            return msgspec.structs.replace(content, verdicts=kept | new)

        self.registry.update(change)

    def add(
        self,
        path: str | Path,
        verify: VerifyFunction,
        *,
        name: str | None = None,
        sha256: Sequence[str] = (),
        allow: Sequence[str] = (),
        origin: str = "",
        progress: Progress | None = None,
        before_recording: Callable[[Registered], None] | None = None,
    ) -> Registered:
        """Verify the files at `path` and record them under a name. Raises CatalogError, GgufError.

        `before_recording` may still refuse: what it raises leaves the registry as it was.
        Links are resolved once and the real path is recorded. The digest is taken and the file checked through one
        descriptor, and the file must be the same afterwards.
        """
        name = check_name(name_of(path) if name is None else name)
        if name in self.settings.entries or name in self.registry.read().models:
            raise CatalogError(f"the name {name!r} is taken; choose another with --name, or remove that model first")
        paths = [os.path.realpath(part) for part in shard_paths(path)]
        model = Model(name=name, origin="added", paths=paths)
        fds = model.open()
        try:
            before = [Stamp.of(fd) for fd in fds]
            verdict = verify(
                fds, max_bytes=self.max_bytes, expected_sha256=list(sha256) or None, take_digest=True,
                allow=frozenset(allow), progress=progress,
            )
            if [Stamp.of(fd) for fd in fds] != before:
                raise GgufError("file-changed", None, "the file changed while it was verified")
        finally:
            for fd in fds:
                os.close(fd)
        now = self._now().replace(microsecond=0).isoformat().replace("+00:00", "Z")
        entry = Registered(
            name=name, paths=paths, sha256=list(verdict.sha256), size_bytes=sum(stamp.size for stamp in before),
            added_at=now, allow={reason: f"found and accepted {now}" for reason in verdict.policy},
            facts=summary_of(verdict.facts), origin=origin,
        )

        if before_recording is not None:
            before_recording(entry)

        def change(content: Content) -> Content:
            if name in content.models:
                raise CatalogError(f"the name {name!r} is taken")
            return msgspec.structs.replace(content, models=content.models | {name: entry})

        self.registry.update(change)
        self.remember(before, "valid", verdict.digests, verdict.policy)
        return entry

    def remove(self, name: str) -> Registered:
        """Forget a model that was added; its files stay. Raises CatalogError."""
        removed: list[Registered] = []

        def change(content: Content) -> Content:
            entry = content.models.get(name)
            if entry is None:
                if name in self.models():
                    raise CatalogError(f"{name!r} was not added: it comes from the configuration or the models folder")
                raise CatalogError(f"no model has the name {name[:128]!r}")
            removed.append(entry)
            return msgspec.structs.replace(
                content, models={key: value for key, value in content.models.items() if key != name}
            )

        self.registry.update(change)
        return removed[0]

    def delete_files(self, entry: Registered) -> list[str]:
        """Delete the files of a removed model, if they lie in the models folder; return those that are gone now."""
        root = os.path.realpath(self.settings.dir)
        deleted = []
        for path in entry.paths:
            if os.path.commonpath([os.path.realpath(path), root]) == root:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
                    deleted.append(path)
        return deleted

"""`inferno models`: list, info, add, verify, remove.

Owns what the commands print and their exit codes. The work is the catalog's, the verifier's and the downloader's; each
is imported by the command that needs it, so that `--help` stays light.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import config_option, json_option, settings_for_reading

if TYPE_CHECKING:
    from ..catalog import Catalog, Model
    from ..config import Settings
    from ..registry import Registered

_HEX = re.compile(r"^[0-9a-fA-F]{64}$")


@click.group(epilog="Example: inferno models add hf:org/repo/model.gguf --name mine")
def models() -> None:
    """Models that can be served: list, inspect, add, verify, remove."""


def _catalog(config: str | None) -> Catalog:
    from ..catalog import Catalog

    return Catalog(settings_for_reading(config).models)


def _note_added(settings: Settings, entry: Registered) -> None:
    from .model_audit import ModelNote, note_models

    note_models(settings, [
        ModelNote("model.verified", entry.name, entry.sha256[0]),
        *(ModelNote("model.waived", entry.name, reason) for reason in sorted(entry.allow)),
    ])


def _note_refused(settings: Settings, name: str, reason: str) -> None:
    from ..errors import InfernoError
    from .model_audit import ModelNote, note_models

    # nothing changed, so a log that cannot be written does not hide the refusal
    with contextlib.suppress(InfernoError):
        note_models(settings, [ModelNote("model.refused", name[:256], reason)])


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Errors that the user can act on become one line and an exit code."""
    from inferno_native.gguf_report import GgufError

    from ..errors import InfernoError

    try:
        yield
    except GgufError as error:
        hint = f"\nTo accept this fault for this model: --allow {error.reason}" if error.policy else ""
        raise click.ClickException(f"refused: {error}{hint}") from None
    except InfernoError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(getattr(error, "exit_code", 1))


def _progress(label: str) -> tuple[Any, Callable[[int, int], None]]:
    """A progress bar on a terminal, nothing elsewhere: (context, callback)."""
    if not sys.stderr.isatty():
        return contextlib.nullcontext(), lambda done, size: None
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    bar = Progress(
        TextColumn(label), BarColumn(), DownloadColumn(), TransferSpeedColumn(), console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task(label, total=None)
    return bar, lambda done, size: bar.update(task, completed=done, total=size if size >= 0 else None)


def _size(count: int) -> str:
    for unit, bytes_each in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= bytes_each:
            return f"{count / bytes_each:.1f} {unit}"
    return f"{count} B"


def _row(model: Model) -> dict[str, Any]:
    return {
        "name": model.name, "origin": model.origin, "paths": model.full_paths, "sha256": model.sha256,
        "size_bytes": model.size_bytes or sum(_file_size(path) for path in model.full_paths),
        "architecture": model.facts.architecture or None, "quantization": model.facts.quantization or None,
        "context_length": model.facts.context_length, "allow": model.allow, "added_at": model.added_at or None,
    }


def _measured(settings: Settings, name: str) -> dict[str, Any]:
    """What the last load with these settings measured and chose on this machine; {} before the first."""
    from ..errors import ApiError
    from .served import ServedModels

    with contextlib.suppress(ApiError):  # a model that would not be loaded was not measured either
        return ServedModels(settings).engine_settings(name).calibration
    return {}


def _file_size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


@models.command("list", epilog="Example: inferno models list --json")
@config_option
@json_option
def list_models(config: str | None, as_json: bool) -> None:
    """List every model: configured, added, or found in the models folder."""
    with _refusals():
        rows = [_row(model) for model in _catalog(config).models().values()]
    if as_json:
        click.echo(json.dumps(rows))
        return
    if not rows:
        click.echo("No model yet. Add one: inferno models add FILE.gguf")
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        kind = " ".join(part for part in (row["architecture"], row["quantization"]) if part)
        waived = f"  waived: {', '.join(row['allow'])}" if row["allow"] else ""
        digest = row["sha256"][0][:12] if row["sha256"] else "not pinned"
        click.echo(f"{row['name']:{width}}  {row['origin']:10}  {_size(row['size_bytes']):>9}  {digest:12}  {kind}{waived}")


@models.command(epilog="Example: inferno models info smollm2")
@click.argument("name")
@config_option
@json_option
def info(name: str, config: str | None, as_json: bool) -> None:
    """Show what the file of a model says about itself (it is verified for that), and what was measured with it here."""
    from ..catalog import Catalog
    from ..engine.verification import verify_files

    with _refusals():
        settings = settings_for_reading(config)
        catalog = Catalog(settings.models)
        model = catalog.find(name)
        fds = model.open()
        try:
            verdict = verify_files(fds, max_bytes=catalog.max_bytes, allow=frozenset(model.allow))
        finally:
            for fd in fds:
                os.close(fd)
    facts = verdict.facts
    row = _row(model) | {
        "architecture": facts.architecture, "title": facts.name, "parameters": facts.parameter_count,
        "quantization": facts.quantization, "context_length": facts.context_length,
        "embedding_length": facts.embedding_length, "block_count": facts.block_count,
        "vocab_size": facts.vocab_size, "tokenizer": facts.tokenizer_model, "special_tokens": facts.special_tokens,
        "chat_templates": sorted(facts.chat_templates), "tensors": facts.tensor_count,
        "tensor_types": facts.tensor_types, "policy": list(verdict.policy),
        "public_prefixes": model.public_prefixes, "calibration": _measured(settings, name),
    }
    if as_json:
        click.echo(json.dumps(row))
        return
    for key, value in row.items():
        if value not in (None, [], {}, ""):
            text = ", ".join(map(str, value)) if isinstance(value, list) else value
            click.echo(f"{key.replace('_', ' '):18} {text}")


def _verified(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and not _HEX.match(value):
        raise click.BadParameter("expected 64 hexadecimal digits")
    return value


@models.command(
    epilog="Examples: inferno models add ./model.gguf --name mine\n\ninferno models add hf:org/repo/model-Q4_K_M.gguf"
)
@click.argument("source", metavar="PATH|hf:ORG/REPO/FILE")
@click.option("--name", help="Name under which it is served (default: the file's name).")
@click.option("--allow", multiple=True, metavar="REASON", help="Accept this policy fault for this model.")
@click.option("--sha256", callback=_verified, metavar="HEX", help="Expected SHA-256 of the (first) file.")
@config_option
@json_option
@click.pass_context
def add(
    context: click.Context,
    source: str,
    name: str | None,
    allow: tuple[str, ...],
    sha256: str | None,
    config: str | None,
    as_json: bool,
) -> None:
    """Verify a model file and record it with its SHA-256. For shards, give the first one."""
    from inferno_native.gguf_report import POLICY_REASONS, GgufError

    from ..catalog import Catalog, name_of, shard_paths
    from ..digests import sum_file_digest
    from ..engine.verification import verify_files

    unknown = sorted(set(allow) - POLICY_REASONS)
    if unknown:
        raise click.BadParameter(f"{', '.join(unknown)} cannot be waived", param_hint="--allow")
    with _refusals():
        settings = settings_for_reading(config)
        catalog = Catalog(settings.models)
        try:
            path = _fetch(context, catalog, source, sha256, name) if source.startswith("hf:") else Path(source)
            expected = [sha256] if sha256 else [
                digest for part in shard_paths(path) if (digest := sum_file_digest(part))]
            bar, told = _progress("SHA-256")
            with bar:
                entry = catalog.add(
                    path, verify_files, name=name, sha256=expected, allow=allow, progress=told,
                    origin=source if source.startswith("hf:") else "",
                    before_recording=lambda entry: _note_added(settings, entry),
                )
        except GgufError as error:
            _note_refused(settings, name or name_of(source), error.reason)
            raise
    if as_json:
        click.echo(json.dumps({
            "name": entry.name, "paths": entry.paths, "sha256": entry.sha256, "size_bytes": entry.size_bytes,
            "allow": sorted(entry.allow), "added_at": entry.added_at,
        }))
        return
    click.echo(f"Added {entry.name}: {entry.facts.architecture} {entry.facts.quantization}, {_size(entry.size_bytes)}")
    for part, digest in zip(entry.paths, entry.sha256, strict=True):
        click.echo(f"{digest}  {part}")
    if entry.allow:
        click.echo(f"Waived: {', '.join(sorted(entry.allow))}")


def _fetch(context: click.Context, catalog: Catalog, source: str, sha256: str | None, name: str | None) -> Path:
    """Download every file of the model, verify them together, then give them their names; return the first."""
    from ..catalog import CatalogError, check_name, name_of, shard_paths
    from ..download import DEFAULT_BASE, DownloadError, Reference, download
    from ..modelfile import open_model

    reference = Reference.parse(source)
    options = context.obj if isinstance(context.obj, dict) else {}
    base = options.get("hub_base", DEFAULT_BASE)
    folder = Path(catalog.settings.dir)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    wanted = check_name(name_of(reference.file) if name is None else name)
    if wanted in catalog.models():
        raise CatalogError(f"the name {wanted!r} is taken; choose another with --name")
    targets = shard_paths(folder / Path(reference.file).name)
    for target in targets:
        if target.exists():
            raise DownloadError(f"{target}: exists already; add it by its path")
    parent = str(Path(reference.file).parent)
    with contextlib.ExitStack() as stack:
        parts = []
        room = catalog.max_bytes
        for index, target in enumerate(targets):
            file = target.name if parent == "." else f"{parent}/{target.name}"
            bar, told = _progress(target.name)
            with bar:
                part = stack.enter_context(download(
                    Reference(reference.org, reference.repo, file).url(base), folder, max_bytes=room,
                    token=os.environ.get("HF_TOKEN"), expected_sha256=sha256 if index == 0 else None,
                    plain_origin=options.get("plain_origin"), progress=told,
                ))
            room -= part.size_bytes
            parts.append(part)
        # judged before any file gets its name; `add` judges again what it records
        fds = [open_model(part.path) for part in parts]
        try:
            from inferno_native import gguf
            from inferno_native.gguf_report import POLICY_REASONS

            gguf.verify_fds(fds, max_bytes=catalog.max_bytes, allow=POLICY_REASONS)
        finally:
            for fd in fds:
                os.close(fd)
        for part, target in zip(parts, targets, strict=True):
            part.keep(target)
    return targets[0]


@models.command(epilog="Example: inferno models verify --json *.gguf")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--profile", type=click.Choice(["model", "container"]), default="model", show_default=True,
              help="container: judge the file format only.")
@click.option("--sha256", callback=_verified, metavar="HEX", help="Expected SHA-256; for one model only.")
@json_option
def verify(paths: tuple[str, ...], profile: str, sha256: str | None, as_json: bool) -> None:
    """Check model files; needs no configuration. Exit 0 if all are valid, else 1.

    Files are separate models; the shards of one set are one model. Prints one JSON object a line (on a terminal and
    without --json: one plain line).
    """
    from .model_files import group_shards, verify_group

    groups = group_shards(list(paths))
    if sha256 is not None and len(groups) > 1:
        raise click.UsageError("--sha256 is for one model; several were given")
    is_plain = not as_json and sys.stdout.isatty()
    failed = False
    for group in groups:
        start = time.perf_counter()
        result = verify_group(group, profile, sha256)
        result["seconds"] = round(time.perf_counter() - start, 6)
        failed = failed or result["verdict"] != "valid"
        if is_plain:
            click.echo(f"{result['verdict']:8}{result['path']}" + (
                "" if result["verdict"] == "valid" else f"  {result['reason']}: {result['detail']}"))
        else:
            click.echo(json.dumps(result))
    sys.exit(1 if failed else 0)


@models.command(epilog="Example: inferno models remove mine")
@click.argument("name")
@click.option("--delete-files", is_flag=True, help="Delete its files too, if they lie in the models folder.")
@config_option
@json_option
def remove(name: str, delete_files: bool, config: str | None, as_json: bool) -> None:
    """Forget a model that was added. Its files stay unless asked otherwise."""
    with _refusals():
        catalog = _catalog(config)
        entry = catalog.remove(name)
    deleted = catalog.delete_files(entry) if delete_files else []
    if as_json:
        click.echo(json.dumps({"name": name, "removed": True, "deleted": deleted}))
    else:
        click.echo(f"Removed {name}" + (f"; deleted {len(deleted)} file(s)" if deleted else ""))

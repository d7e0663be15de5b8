"""`inferno serve`: puts a server together and runs its supervisor.

The one place that knows all parts: configuration, secrets, the registry, and what security brings. Everything that can
be refused is refused here or in the supervisor's start, before a port is open to anybody.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from .. import config as configuration
from .. import secrets as secrets_module
from .. import telemetry
from ..config import KEYS, Loaded, Settings, value_of
from ..datadir import DataDir, DataLock
from ..doctor.machine import CONTAINER_START, lacking_cpu_features
from ..errors import ConfigError, StartError
from ..pool import summary
from ..pool.supervisor import Supervisor
from .certificate import CertificateWatch
from .options import config_option
from .served import ServedModels


def _check_cpu_in_a_container() -> None:
    """The image is built for x86-64-v3: a lesser CPU would end an engine with an illegal instruction, unexplained."""
    lacking = lacking_cpu_features() if CONTAINER_START.is_file() else []
    if lacking:
        raise StartError(
            f"this CPU lacks {', '.join(lacking)}, which the image's llama.cpp needs (x86-64-v3); build the image on a "
            'machine like this one with --build-arg LLAMA_CMAKE="-DGGML_NATIVE=ON"'
        )


@contextmanager
def _complete_line_in_a_container() -> Iterator[None]:
    """Whoever starts the image without what it needs is told the whole line, not one missing thing after the other."""
    try:
        yield
    except ConfigError as error:
        if CONTAINER_START.is_file():
            raise ConfigError(f"{error}\n\n{CONTAINER_START.read_text().rstrip()}") from None
        raise


@click.command(
    epilog="""\b
Examples:
  inferno serve                                    the models of ./config.toml
  inferno serve --model tiny=models/tiny.gguf      one model, whatever the file says
  inferno serve --host 0.0.0.0 --workers 4         needs TLS, or tls_required=false behind a proxy
  inferno serve --show-config                      what would be in force, and from where

SIGTERM ends the server once running answers are done, SIGHUP reloads what can change, SIGUSR2 replaces the workers.
"""
)
@config_option
@click.option("--host", help="Address to listen on.")
@click.option("--port", type=int, help="Port to listen on; 0: a free one.")
@click.option("--workers", type=int, help="Front worker processes.")
@click.option(
    "--model", "models", multiple=True, metavar="[NAME=]PATH", help="Serve this GGUF file; repeatable."
)
@click.option(
    "--show-config", is_flag=True, help="Print the effective configuration without secrets, and end."
)
@click.option("--json", "as_json", is_flag=True, help="With --show-config: as JSON.")
@click.option(
    "--i-know-this-is-open", "is_open_allowed", is_flag=True, help="Allow no authentication off loopback."
)
@_complete_line_in_a_container()
def serve(
    config: str | None,
    host: str | None,
    port: int | None,
    workers: int | None,
    models: tuple[str, ...],
    show_config: bool,
    as_json: bool,
    is_open_allowed: bool,
) -> None:
    """Serve models over an OpenAI-compatible API. Starts without a model too; refuses to start unsafe, says why and
    how to fix it."""
    _check_cpu_in_a_container()
    environ = secrets_module.hide_environment()
    flags = {"server.host": host, "server.port": port, "server.workers": workers}
    certificate = CertificateWatch()

    def load() -> Loaded:
        loaded = configuration.load(
            flags, config=config, models=list(models), environ=environ, is_open_allowed=is_open_allowed
        )
        check_rules(loaded.settings)
        return certificate.checked(loaded)

    loaded = load()
    if show_config:
        click.echo(_as_json(loaded) if as_json else effective_configuration(loaded))
        return
    telemetry.setup(loaded.settings)
    found = secrets_module.load(loaded.settings, environ)
    data = DataDir(loaded.settings.storage.data_dir)
    data.make()
    lock = DataLock(data)
    lock.acquire()
    data.make_keys()
    keys = {name: data.read_key(name) for name in ("pepper", "cache")}
    hidden = [
        secret.reveal()
        for secret in (found.jwt, found.jwt_previous, found.admin_password)
        if secret is not None
    ]
    telemetry.protect(hidden)
    sys.exit(asyncio.run(_run(loaded, load, certificate, data, lock, found, keys)))


def check_rules(settings: Settings) -> None:
    """Compile the operator's guard rules where there are any, so that a bad file is refused here. Raises ConfigError."""
    if settings.security.input_validation_enabled and os.path.lexists(DataDir(settings.storage.data_dir).rules_file):
        from ..security import rules  # the scanner: not for a server without own rules

        rules.load_rules(rules.operator_rules(settings.storage.data_dir))


async def _run(
    loaded: Loaded,
    load: Callable[[], Loaded],
    certificate: CertificateWatch,
    data: DataDir,
    lock: DataLock,
    found: secrets_module.Secrets,
    keys: dict[str, bytes],
) -> int:
    """Build the parts on the event loop that they will run on, and serve."""
    from ..security.host import IdentityHost
    from . import server_parts  # the parts load the database and password libraries: not for --show-config

    audit = server_parts.make_audit(loaded.settings, data)
    epochs, identities = None, None
    if found.admin_password is not None:
        epochs = server_parts.EpochsTable()
        identities = IdentityHost(
            loaded.settings,
            audit,
            epochs.epochs,
            pepper=keys["pepper"],
            admin_password=found.admin_password.reveal(),
        )
    supervisor = Supervisor(
        loaded,
        ServedModels(loaded.settings),
        secrets={**keys, **_worker_secrets(found)},
        audit=audit,
        verbs=server_parts.make_verbs(loaded.settings, data, audit, identities),
        make_tables=server_parts.table_maker(loaded.settings, epochs),
        parts=[certificate] if identities is None else [certificate, identities],
        reload=load,
        on_settings=None if identities is None else identities.reload,
        announce=_Announcer(loaded),
        lock=lock,
    )
    return await supervisor.run()


def _worker_secrets(found: secrets_module.Secrets) -> dict[str, bytes]:
    """Return what workers need to judge sessions. The administrator's password is not among it."""
    named = {"jwt": found.jwt, "jwt_previous": found.jwt_previous}
    return {name: secret.reveal().encode() for name, secret in named.items() if secret is not None}


class _Announcer:
    """Prints the start summary: for people, or as one JSON line among the logs."""

    def __init__(self, loaded: Loaded) -> None:
        self._is_text = telemetry.is_text(loaded.settings.telemetry.log_format, sys.stderr)

    def __call__(self, facts: dict[str, Any]) -> None:
        if self._is_text:
            click.echo(telemetry.clean_lines(summary.text(facts)), err=True)
        else:
            click.echo(json.dumps({"message": "serving", **facts}, ensure_ascii=False), err=True)


# ---------------------------------------------------------------- --show-config


def effective_configuration(loaded: Loaded) -> str:
    """Return the effective configuration as TOML, each value with where it came from; no secrets."""
    lines = [f"# {loaded.file or 'no configuration file'}"]
    section = ""
    for name in KEYS:
        value = _shown(loaded, name)
        if name.split(".")[0] != section:
            section = name.split(".")[0]
            lines.append(f"\n[{section}]")
        key = name.split(".", 1)[1]
        place = loaded.places.get(name, "default")
        lines.append(
            f"# {key}: not set"
            if value is None
            else f"{key} = {json.dumps(value, ensure_ascii=False)}  # {place}"
        )
    for model, entry in loaded.settings.models.entries.items():
        lines.append(f'\n[models."{model}"]')
        for attribute in entry.__struct_fields__:
            value = getattr(entry, attribute)
            if value is not None:
                lines.append(f"{attribute} = {json.dumps(value, ensure_ascii=False)}")
    if loaded.not_built:
        lines.append(f"\n# not built yet, hence loopback only: {', '.join(loaded.not_built)}")
    lines += [f"# warning: {warning}" for warning in loaded.warnings]
    return "\n".join(lines)


def _as_json(loaded: Loaded) -> str:
    values = {
        name: {"value": _shown(loaded, name), "from": loaded.places.get(name, "default")} for name in KEYS
    }
    models = {
        name: {attribute: getattr(entry, attribute) for attribute in entry.__struct_fields__}
        for name, entry in loaded.settings.models.entries.items()
    }
    found = {"keys": values, "models": models, "not_built": loaded.not_built, "warnings": loaded.warnings}
    return json.dumps(found, ensure_ascii=False, indent=2)


def _shown(loaded: Loaded, name: str) -> Any:
    value = value_of(loaded.settings, name)
    return telemetry.clean(value) if KEYS[name].is_url and isinstance(value, str) else value

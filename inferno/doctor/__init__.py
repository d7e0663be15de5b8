"""What `inferno doctor` checks: the user's checklist, then configuration, confinement, network, models, machine, build.

`examine` gathers what can be seen (files, kernel, a running server through its control socket) and returns a list of
checks; it changes nothing. Every check has an id that scripts rely on, the value in force, a verdict, and one line that
fixes it. Works before the first start and beside a running server, whose own settings are judged then: flags and
reloads count, not what the file says meanwhile. Runs in the command only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from .. import config as configuration
from ..config import Settings
from ..datadir import DataDir
from ..errors import ConfigError, InfernoError
from ..pool import control
from . import checklist, machine, protection
from .check import Check, Situation

_GROUPS: tuple[Callable[[Situation], Iterator[Check]], ...] = (
    checklist.checks,
    protection.configuration_checks,
    protection.sandbox_checks,
    protection.process_checks,
    protection.network_checks,
    protection.limit_checks,
    machine.model_checks,
    machine.machine_checks,
    machine.build_checks,
    machine.server_checks,
)


def examine(config: str | None = None, environ: Mapping[str, str] | None = None) -> list[Check]:
    """Return every check of the installation that `config` describes. Never raises for what it examines."""
    environ = os.environ if environ is None else environ
    try:
        loaded = configuration.load(config=config, environ=environ, is_open_allowed=True)
    except ConfigError as error:
        fault = Check("config", "Configuration is valid", "refused", "fail", str(error))
        return [fault, *machine.machine_checks(None), *machine.build_checks(None)]
    data = DataDir(loaded.settings.storage.data_dir)
    status = _status(data)
    running = None if status is None else _running_settings(data)
    differs: tuple[str, ...] = ()
    if running is not None:
        differs = tuple(configuration.changed_keys(loaded.settings, running))
        loaded = msgspec.structs.replace(loaded, settings=running)
    situation = Situation(loaded, environ, data, status, differs)
    return [check for group in _GROUPS for check in group(situation)]


def is_live(config: str | None = None) -> bool:
    """Say whether the server of this configuration answers at its control socket (the container's health check)."""
    return _status(DataDir(configuration.load(config=config, is_open_allowed=True).settings.storage.data_dir)) is not None


def _running_settings(data: DataDir) -> Settings | None:
    """Return the settings that the running server has, which flags and reloads may have made other than the file's."""
    try:
        return configuration.decode(control.ask(data.control_socket, "config.effective", timeout_seconds=5.0))
    except (InfernoError, OSError, msgspec.MsgspecError, TypeError):
        return None


def _status(data: DataDir) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = control.ask(data.control_socket, "status", timeout_seconds=5.0)
    except (InfernoError, OSError):
        return None
    return found

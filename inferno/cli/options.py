"""Options that several commands share, and how a command gets its configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from .. import config as configuration

_Function = TypeVar("_Function", bound=Callable[..., Any])


def config_option(function: _Function) -> _Function:
    """Add --config."""
    return click.option(
        "--config",
        metavar="FILE",
        help="Configuration file (else $INFERNO_CONFIG, ./config.toml, /etc/inferno/config.toml).",
    )(function)


def json_option(function: _Function) -> _Function:
    """Add --json, as the parameter as_json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")(function)


def settings_for_reading(config: str | None) -> configuration.Settings:
    """Return the settings of a command that reads or changes state; it opens no listener, so a server's rules about
    open addresses do not stop it. Raises ConfigError."""
    return configuration.load(config=config, is_open_allowed=True).settings

"""`inferno init`: a data directory with everything that a first start needs. Never overwrites anything."""

from __future__ import annotations

from pathlib import Path

import click

from .. import secrets
from ..config import document
from ..datadir import DataDir, make_folder, write_new


@click.command(
    epilog="""\b
Examples:
  inferno init                     here
  inferno init /srv/inferno        there
  inferno init --self-signed .     with a certificate for trials, TLS on

Then: inferno serve --config DIR/config.toml
"""
)
@click.argument("folder", metavar="[DIR]", default=".", type=click.Path(file_okay=False, path_type=Path))
@click.option("--demo", is_flag=True, help="Limits wide enough for playing on this machine alone.")
@click.option("--self-signed", is_flag=True, help="Make a self-signed certificate and turn TLS on.")
def init(folder: Path, demo: bool, self_signed: bool) -> None:
    """Make a data directory: config.toml with every key explained, secrets.env (mode 0600) with a signing secret and
    the first account's password, keys/ and models/. What exists is kept as it is."""
    folder = folder.absolute()
    data = DataDir(folder)
    make_folder(folder)
    make_folder(data.models)
    _write(data.root / "config.toml", config_text(demo=demo, self_signed=self_signed), 0o644)
    _write(data.secrets_file, secrets.make_secrets_file(), 0o600)
    made = data.make_keys()
    _say(data.keys, is_new=bool(made), what="audit, pepper and cache keys (0600)")
    if self_signed:
        _certificate(folder / "tls")
    click.echo(f"\nThe password of the account admin stands in {data.secrets_file}.")
    click.echo(f"Put GGUF files into {data.models}, then: inferno serve --config {data.root / 'config.toml'}")


def config_text(*, demo: bool = False, self_signed: bool = False) -> str:
    """Return the config.toml that a new directory gets."""
    text = document.config_file()
    changes: dict[str, str] = {}
    if demo:
        changes |= {
            "#max_requests_per_minute = 60": "max_requests_per_minute = 600",
            "#max_requests_per_hour = 1000": "max_requests_per_hour = 10000",
        }
    if self_signed:
        changes |= {
            "#tls_enabled = false": "tls_enabled = true",
            '#tls_cert_path = "tls/cert.pem"': 'tls_cert_path = "tls/cert.pem"',
            '#tls_key_path = "tls/key.pem"': 'tls_key_path = "tls/key.pem"',
        }
    for old, new in changes.items():
        text = text.replace(f"\n{old}\n", f"\n{new}\n", 1)
    return text


def _write(path: Path, text: str, mode: int) -> None:
    is_new = not path.exists()
    if is_new:
        write_new(path, text, mode)
    _say(path, is_new=is_new)


def _say(path: Path, *, is_new: bool, what: str = "") -> None:
    click.echo(f"{'made' if is_new else 'kept'}  {path}{f'  {what}' if what else ''}")


def _certificate(folder: Path) -> None:
    from ..tls import make_self_signed  # cryptography is loaded only here

    if (folder / "cert.pem").exists() or (folder / "key.pem").exists():
        _say(folder / "cert.pem", is_new=False)
        return
    certificate, _ = make_self_signed(folder)
    _say(certificate, is_new=True, what="self-signed, for trials")

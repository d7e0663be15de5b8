"""The certificate of a running server: told daily when it ends soon, checked with the clients' authorities."""

from __future__ import annotations

import asyncio
import datetime
import logging
from pathlib import Path

import pytest
from msgspec.structs import replace

from inferno import tls
from inferno.cli import certificate
from inferno.cli.certificate import CertificateWatch
from inferno.config import Loaded, Settings
from inferno.errors import ConfigError


def loaded(pair: tuple[Path, Path] | None, **server: object) -> Loaded:
    settings = Settings()
    if pair is not None:
        server |= {"tls_enabled": True, "tls_cert_path": str(pair[0]), "tls_key_path": str(pair[1])}
    settings = replace(
        settings,
        server=replace(settings.server, **server),
        telemetry=replace(settings.telemetry, metrics_enabled=False),
    )
    return Loaded(settings, None, {}, ["first"], [])


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return tls.make_self_signed(tmp_path / "tls")


def test_without_tls_there_is_nothing_to_watch() -> None:
    watch = CertificateWatch()
    given = loaded(None)
    assert watch.checked(given) is given
    asyncio.run(watch.start())
    watch.count_down()


def test_what_cannot_be_served_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    watch = CertificateWatch()
    assert watch.checked(loaded(pair, tls_client_ca_path=str(pair[0]))).warnings == ["first"]
    with pytest.raises(ConfigError, match="tls_client_ca_path"):
        watch.checked(loaded(pair, tls_client_ca_path=str(tmp_path / "absent.pem")))
    pair[1].chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        watch.checked(loaded(pair))


@pytest.mark.parametrize(
    ("days_before", "words"), [(30, None), (20, "expires in 19 days, on"), (-3, "the TLS certificate expired on")]
)
def test_the_end_is_counted_down(
    pair: tuple[Path, Path], caplog: pytest.LogCaptureFixture, days_before: int, words: str | None
) -> None:
    watch = CertificateWatch()
    watch.checked(loaded(pair))
    end = tls.check_pair(*pair).not_after
    watch.count_down(end - datetime.timedelta(days=days_before, seconds=-1))
    messages = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert messages == [] if words is None else words in messages[0]


def test_a_running_server_is_told_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tls, "SELF_SIGNED_DAYS", 6)
    monkeypatch.setattr(certificate, "COUNT_SECONDS", 0.0)

    async def run() -> None:
        watch = CertificateWatch()
        watch.checked(loaded(tls.make_self_signed(tmp_path / "soon")))
        assert not caplog.records  # the start prints the warnings of what was loaded
        await watch.start()
        while len(caplog.records) < 3:
            await asyncio.sleep(0)
        await watch.close()

    asyncio.run(asyncio.wait_for(run(), 60))
    assert all("expires in 5 days" in record.message for record in caplog.records)

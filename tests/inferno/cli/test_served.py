"""The models of a server: names, what loads at start, what engines are told, and measurements that are kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from inferno import config
from inferno.cli import calibrations
from inferno.cli.served import ServedModels
from inferno.errors import ApiError
from inferno.messages import ModelVerified
from inferno.modelfile import Stamp


def served(folder: Path, text: str = "", *files: str) -> ServedModels:
    (folder / "models").mkdir(exist_ok=True)
    for name in files:
        (folder / "models" / name).write_bytes(b"GGUF")
    (folder / "config.toml").write_text(text)
    return ServedModels(config.load(environ={}, folder=folder).settings)


def test_the_only_model_of_the_folder_loads_at_start(tmp_path: Path) -> None:
    assert served(tmp_path).at_start() == []
    assert served(tmp_path, "", "a.gguf").at_start() == ["a"]
    assert served(tmp_path, "", "b.gguf").at_start() == []
    assert served(tmp_path, "[models]\ndefault = 'b'\n").at_start() == ["b"]
    assert served(tmp_path).names() == ["a", "b"]


def test_configured_models_load_at_start_and_the_default_too(tmp_path: Path) -> None:
    text = "[models]\ndefault = 'a'\n[models.big]\npath = 'elsewhere/big.gguf'\nslots = 2\n[engine]\nslots = 8\nthreads = 3\n"
    models = served(tmp_path, text, "a.gguf", "b.gguf")
    assert models.at_start() == ["big", "a"]
    big = models.engine_settings("big")
    assert big.paths == [f"{tmp_path}/elsewhere/big.gguf"]
    assert (big.slots, big.threads) == (2, 3)
    assert models.engine_settings("a").slots == 8


def test_public_prefixes_reach_their_engine_only(tmp_path: Path) -> None:
    text = "[models.big]\npath = 'big.gguf'\npublic_prefixes = ['You sell lamps.']\n"
    models = served(tmp_path, text, "a.gguf")
    assert models.engine_settings("big").public_prefixes == ["You sell lamps."]
    assert models.engine_settings("a").public_prefixes == []


def test_a_name_is_never_a_path(tmp_path: Path) -> None:
    models = served(tmp_path, "", "a.gguf")
    for name in ("../models/a", "a.gguf", str(tmp_path / "models" / "a.gguf"), ""):
        with pytest.raises(ApiError) as caught:
            models.engine_settings(name)
        assert caught.value.code == "model_not_found"


def test_required_checksums_refuse_by_name(tmp_path: Path) -> None:
    models = served(tmp_path, "[models]\nrequire_checksum = true\n", "a.gguf")
    with pytest.raises(ApiError, match="no SHA-256 is recorded"):
        models.engine_settings("a")


def test_an_engines_verdict_spares_the_next_start_its_digest(tmp_path: Path) -> None:
    text = "[models.big]\npath = 'models/big.gguf'\nsha256 = '" + "ab" * 32 + "'\n"
    models = served(tmp_path, text, "big.gguf")
    settings = models.engine_settings("big")
    stamp = Stamp.at(settings.paths[0])
    assert stamp is not None
    assert models.verified(settings, [stamp], ModelVerified(sha256=["cd" * 32], xxh3_128=["f0" * 16])) == {}  # not what was recorded
    assert models.verified(settings, [stamp], ModelVerified()) == {}  # nothing was hashed
    assert models.engine_settings("big").known_files == {}
    verdict = ModelVerified(sha256=["ab" * 32], xxh3_128=["f0" * 16])
    assert models.verified(settings, [stamp], verdict) == {stamp.text(): "f0" * 16}
    assert models.engine_settings("big").known_files == {stamp.text(): "f0" * 16}
    os.utime(settings.paths[0])
    changed = Stamp.at(settings.paths[0])
    assert changed is not None
    assert changed.text() not in models.engine_settings("big").known_files


def test_verify_always_hashes_at_each_start_and_restart(tmp_path: Path) -> None:
    text = "[models]\nverify = 'always'\n[models.big]\npath = 'models/big.gguf'\nsha256 = '" + "ab" * 32 + "'\n"
    models = served(tmp_path, text, "big.gguf")
    settings = models.engine_settings("big")
    stamp = Stamp.at(settings.paths[0])
    assert stamp is not None
    assert models.verified(settings, [stamp], ModelVerified(sha256=["ab" * 32], xxh3_128=["f0" * 16])) == {}
    assert models.engine_settings("big").known_files == {}


def test_a_measurement_is_found_again_until_something_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = served(tmp_path, "", "a.gguf")
    settings = models.engine_settings("a")
    assert settings.calibration == {}
    models.loaded(settings, {"quantum": 64})
    assert (tmp_path / "calibration.json").stat().st_mode & 0o777 == 0o600
    assert models.engine_settings("a").calibration == {"quantum": 64}
    models.loaded(models.engine_settings("a"), {"quantum": 128})
    assert models.engine_settings("a").calibration == {"quantum": 128}
    assert served(tmp_path, "[engine]\nslots = 3\n").engine_settings("a").calibration == {}
    monkeypatch.setattr(calibrations, "_processor", lambda: "another")
    assert models.engine_settings("a").calibration == {}
    monkeypatch.undo()
    os.utime(tmp_path / "models" / "a.gguf", ns=(1, 1))
    assert models.engine_settings("a").calibration == {}


def test_a_damaged_or_huge_file_costs_a_measurement_only(tmp_path: Path) -> None:
    models = served(tmp_path, "", "a.gguf")
    (tmp_path / "calibration.json").write_text("{")
    settings = models.engine_settings("a")
    assert settings.calibration == {}
    models.loaded(settings, {"text": "x" * calibrations.MAX_ENTRY_BYTES})
    assert models.engine_settings("a").calibration == {}
    for number in range(calibrations.MAX_ENTRIES + 5):
        models.loaded(replace(settings, slots=number + 1), {"n": number})
    kept = calibrations.Calibrations(tmp_path / "calibration.json")
    assert kept.find(replace(settings, slots=1)) == {}
    assert kept.find(replace(settings, slots=calibrations.MAX_ENTRIES)) == {"n": calibrations.MAX_ENTRIES - 1}

"""The bars of SECURITY.md over variants that the kinds were not built from, and the command that prints all bars."""

from __future__ import annotations

import pytest

from tests.native.guard_bars import attack_bars, changed_bars, main, variant_leaks, variants


def test_inp_9_bars_hold_for_variants_of_every_category() -> None:
    for category, (total, found, refused) in attack_bars(variants("scan_attack")).items():
        assert refused == total, category
        assert found >= (0.6 if category == "prompt-injection" else 0.9) * total, category


def test_out_6_variants_do_not_leak() -> None:
    assert variant_leaks() == []


def test_out_6_lookalikes_stay() -> None:
    assert changed_bars(variants("redact_negative"))["variant"][1] == 0


def test_bars_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    main()
    printed = capsys.readouterr().out
    for word in ("path-traversal", "credit_card", "variants to redact"):
        assert word in printed

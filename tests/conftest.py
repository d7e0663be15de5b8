"""Shared fixtures: where the larger test data lies, and the rule that CI accepts no skip."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# The same examples on every run and machine, and none judged by the clock: a slow machine is no finding. Whoever looks for
# new examples sets INFERNO_TEST_RANDOM=1.
settings.register_profile(
    "repeatable",
    deadline=None,
    derandomize=os.environ.pop("INFERNO_TEST_RANDOM", "") != "1",
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data"
CASES = DATA / "cases"
# Taken out of the environment: the programs under test refuse INFERNO_ variables that they do not know.
FAIL_ON_SKIP = os.environ.pop("INFERNO_FAIL_ON_SKIP", "") == "1"
SHARED = Path(os.environ.get("INFERNO_TEST_DATA", ROOT.parent / "shared"))


def shared(relative: str) -> Path:
    """Return a path of the larger test data, or skip the test by name when it is absent."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"larger test data absent: {relative} (set INFERNO_TEST_DATA)")
    return path


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With INFERNO_FAIL_ON_SKIP=1 (CI), a skipped test fails the run."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if FAIL_ON_SKIP and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """End with a line that says which data was absent."""
    skipped = terminalreporter.stats.get("skipped", [])
    absent = [report for report in skipped if "absent" in str(report.longrepr)]
    if absent:
        terminalreporter.write_line(
            f"{len(absent)} tests skipped because test data is absent: set INFERNO_TEST_DATA, run `make env`."
        )
    elif skipped and FAIL_ON_SKIP:
        terminalreporter.write_line(f"{len(skipped)} tests skipped; INFERNO_FAIL_ON_SKIP=1 counts that as a failure.")

"""One running server per number of workers for all tests that do not break it."""

from collections.abc import Iterator

import pytest

from tests.end_to_end.harness import RunningServer, running


@pytest.fixture(scope="session", params=[1, 4], ids=["1-worker", "4-workers"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running(tmp_path_factory.mktemp("server"), workers=request.param) as started:
        yield started


@pytest.fixture(scope="session")
def key(server: RunningServer) -> str:
    return str(server.create_key()["key"])

"""One Prefect server for all tests of flows that need one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from prefect_server import PrefectServer, prefect_server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """A running server; tests share it, so look for runs by names of their own."""
    with prefect_server(tmp_path_factory.mktemp("prefect")) as running:
        yield running

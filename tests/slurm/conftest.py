"""One SLURM for all tests in this folder; each of them finds it idle."""

import os
from collections.abc import Iterator

import pytest
from cluster import Cluster, absent


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes that are up, for as long as tests run."""
    if lacking := absent():
        reason = f"SLURM cannot run without {', '.join(lacking)}: see tests/slurm/README.md"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with Cluster(tmp_path_factory.mktemp("slurm") / "cluster") as running:
        yield running


@pytest.fixture(autouse=True)
def _tidy(request: pytest.FixtureRequest) -> Iterator[None]:
    """No job outlives its test, and a node that was taken down is up again."""
    yield
    if "cluster" in request.fixturenames:
        request.getfixturevalue("cluster").tidy()

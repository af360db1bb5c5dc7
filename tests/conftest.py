"""What all tests share."""

import os
import signal
import sys
from collections.abc import Iterator

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling


def pytest_configure(config: pytest.Config) -> None:
    """Tests see no user's cache and no options, and no more threads than small tensors can use."""
    os.environ.pop("MMSSL_CACHE", None)
    os.environ.pop("PYTEST_ADDOPTS", None)  # a plugin's tests are started by ours without them
    # Before torch is imported, here and in what tests start. Threads of processes that share two
    # cores wait for each other in loops: runs took eight times as long.
    os.environ["OMP_NUM_THREADS"] = "1"
    # A shell's background job ignores Ctrl-C, and so would every process that tests send it to.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Side by side, files with slow tests come first: those of others fill the end evenly."""
    if hasattr(config, "workerinput"):
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)


class _Files(LoadFileScheduling):
    """The tests of a file share a process, and those of SLURM a cluster."""

    def _split_scope(self, nodeid: str) -> str:
        folder = "tests/slurm/"
        return folder if nodeid.startswith(folder) else super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling:
    """How ``pytest -n 2`` deals out tests."""
    return _Files(config, log)


@pytest.fixture(scope="module", autouse=True)
def kit_ranks() -> Iterator[None]:
    """The two ranks that the conformance kit keeps end with the module that asked for them."""
    yield
    if "mmssl.testing.crew" in sys.modules:
        sys.modules["mmssl.testing.crew"].dismiss()

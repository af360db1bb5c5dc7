"""What all tests share."""

import os
import signal
import sys
from collections.abc import Iterator

import pytest
import torch
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling


def pytest_configure(config: pytest.Config) -> None:
    """Tests see no user's cache, no more threads than small tensors can use, and no options."""
    os.environ.pop("MMSSL_CACHE", None)
    os.environ.pop("PYTEST_ADDOPTS", None)  # a plugin's tests are started by ours without them
    torch.set_num_threads(1)
    # A shell's background job ignores Ctrl-C, and so would every process that tests send it to.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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

"""What all tests share."""

import os
import signal
import sys
from collections.abc import Iterator

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    """Tests see neither a user's cache nor more threads than small tensors can use."""
    os.environ.pop("MMSSL_CACHE", None)
    torch.set_num_threads(1)
    # A shell's background job ignores Ctrl-C, and so would every process that tests send it to.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module", autouse=True)
def kit_ranks() -> Iterator[None]:
    """The two ranks that the conformance kit keeps end with the module that asked for them."""
    yield
    if "mmssl.testing.crew" in sys.modules:
        sys.modules["mmssl.testing.crew"].dismiss()

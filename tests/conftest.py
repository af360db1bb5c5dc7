"""What all tests share."""

import os

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    """Tests see neither a user's cache nor more threads than small tensors can use."""
    os.environ.pop("MMSSL_CACHE", None)
    torch.set_num_threads(1)

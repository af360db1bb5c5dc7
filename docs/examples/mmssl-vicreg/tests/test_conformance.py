"""What mmssl expects of every plugin."""

import pytest

from mmssl.testing import Check, conformance


@pytest.mark.parametrize("check", conformance("mmssl_vicreg"), ids=str)
def test_conformance(check: Check) -> None:
    check()

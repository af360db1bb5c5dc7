import pytest

from mmssl.testing import Check, conformance


@pytest.mark.parametrize("check", conformance("mmssl_mlflow"), ids=str)
def test_conformance(check: Check) -> None:
    check()

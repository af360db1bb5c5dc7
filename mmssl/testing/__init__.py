"""The conformance kit: does a plugin keep to the contracts of mmssl?

A plugin's own tests call it::

    import pytest
    from mmssl.testing import conformance

    @pytest.mark.parametrize("check", conformance("mmssl_imu"), ids=str)
    def test_conformance(check):
        check()

and so does ``mmssl check-plugin mmssl_imu`` in a terminal.
"""

from mmssl.testing.check import Check, Nonconforming
from mmssl.testing.collect import conformance

__all__ = ["Check", "Nonconforming", "conformance"]

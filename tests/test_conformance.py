"""The first-party plugins keep to the contracts: what a stranger's plugin is held to, too."""

from pathlib import Path

import pytest

from mmssl.testing import Check, conformance

RECIPES = Path(__file__).parent / "conformance"


def checks(plugin: str) -> list[Check]:
    return conformance(plugin, [RECIPES / f"{plugin.removeprefix('mmssl_')}.yaml"])


@pytest.mark.parametrize("check", checks("mmssl_backbones"), ids=str)
def test_backbones(check: Check) -> None:
    check()


@pytest.mark.parametrize("check", checks("mmssl_contrastive"), ids=str)
def test_contrastive(check: Check) -> None:
    check()

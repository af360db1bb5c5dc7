"""Recipes that earlier versions, of mmssl or of plugins, left in a run's folder.

They lack the fields that have been added since. Those have defaults, which are what the run was
computed with, so a recipe that is filled in with them tells whether the run is still the same.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from mmssl.errors import UserError
from mmssl.pipeline.records import PRETRAIN, fingerprint, pretraining_recipe
from mmssl.recipe import Recipe
from mmssl.recipe.typed import validate
from mmssl.registry import discover


def filled_in(plain: Mapping[str, Any]) -> dict[str, Any]:
    """An earlier plain recipe with today's fields.

    One that today's components refuse, as when a field has gone, is returned as it is.
    """
    try:
        return validate(Recipe, dict(plain), {"registry": discover()}).plain()
    except (ValidationError, UserError, OSError):
        return dict(plain)


def fingerprints(plain: Mapping[str, Any], stage: str) -> tuple[str, str]:
    """Of a stage of an earlier plain recipe: as it was written down then, and as it is today.

    Only what decides the stage is looked at: other evaluations may need plugins that have gone.
    """
    part = pretraining_recipe(plain)
    part["evaluations"] = {} if stage == PRETRAIN else {stage: plain["evaluations"][stage]}
    return fingerprint(plain, stage), fingerprint(filled_in(part), stage)

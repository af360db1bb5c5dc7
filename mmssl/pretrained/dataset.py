"""A dataset as it is named on the command line."""

import os
from collections.abc import Sequence

from pydantic import ValidationError

from mmssl.errors import UserError
from mmssl.recipe.component import ComponentSpec
from mmssl.recipe.compose import merge
from mmssl.recipe.model import DatasetSpec
from mmssl.recipe.typed import Typed, validate
from mmssl.recipe.yaml12 import COMMAND_LINE, Node, parse
from mmssl.registry import discover


class _Data(Typed):
    dataset: DatasetSpec


def named_dataset(words: Sequence[str]) -> ComponentSpec:
    """What a recipe would have under ``data.train``.

    Args:
        words: the path of a manifest or folder, and ``KEY=VALUE`` for parameters; without a path,
            ``use=NAME`` names the dataset.

    Raises:
        UserError: there is no such file, dataset or parameter.
    """
    tree = Node({}, COMMAND_LINE)
    for place, word in enumerate(words):
        key, equals, value = word.partition("=")
        if place == 0 and (not equals or os.path.exists(word)):
            if not os.path.exists(word):
                raise UserError(f"{word}: no such manifest or folder")
            use = "folder" if os.path.isdir(word) else "manifest"
            node = Node(
                {"use": Node(use, COMMAND_LINE), "path": Node(word, COMMAND_LINE)}, tree.place
            )
        else:
            keys = tuple(key.split("."))
            if not equals or not all(keys):
                raise UserError(f"{word!r}: write KEY=VALUE, such as use=shards path=videos")
            node = parse(value, COMMAND_LINE, keys)
            for name in reversed(keys):
                node = Node({name: node}, COMMAND_LINE)
        tree = merge(tree, node)
    try:
        data = validate(_Data, {"dataset": tree.python()}, {"registry": discover()})
    except ValidationError as error:
        found = error.errors()[0]
        place_ = ".".join(map(str, found["loc"][1:])) or "dataset"
        raise UserError(f"{place_}: {' '.join(str(found['msg']).split())}") from None
    return data.dataset

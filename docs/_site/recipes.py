"""The reference of recipes: every field, and every recipe that comes with mmssl."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import ours
from components import NESTED, linked
from examples import recipe_page
from prose import code, escaped, fenced, markdown, table
from pydantic import BaseModel
from pydantic_core import PydanticUndefined, to_jsonable_python

from mmssl.recipe.model import Recipe
from mmssl.recipe.signature import Kind, Parameter
from mmssl.recipe.typed import phrase
from mmssl.registry import SINGULAR

_COMPOSED = """Two more keys belong to a recipe's file and are gone from the recipe that a run
keeps: `extends` names the recipes that it is laid over, and `sweep` the runs that it stands for.
[Recipes](../recipes.md) tells how both are read. `mmssl schema` prints the same as a JSON
schema, with which editors complete recipes.
"""

_FOLDERS = {
    "index": "Recipes that come with mmssl",
    "avbert": "Recipes of AVBert",
    "vatt": "Recipes of VATT",
    "xdc": "Recipes of XDC",
    "xdc_pretrain": "Recipes of XDC: pretraining and baselines",
    "evaluations": "Evaluations of the papers",
    "studies": "Studies",
}


def pages() -> Iterator[tuple[str, str]]:
    """Addresses below docs/ and Markdown of the pages."""
    yield "reference/recipe.md", "\n".join(_fields())
    found: dict[str, list[tuple[str, Path]]] = {"index": []}
    for name, file in ours.recipes():
        found.setdefault(recipe_page(name).partition(".")[0], []).append((name, file))
    for page, recipes in found.items():
        yield f"reference/recipes/{page}.md", "\n".join(_shipped(page, recipes, found))


def _fields() -> Iterator[str]:
    yield "# Fields of a recipe\n"
    yield markdown(Recipe.__doc__ or "")
    yield _COMPOSED
    todo: list[tuple[str, type[BaseModel]]] = [("", Recipe)]
    for path, model in todo:
        if path:
            yield f"## {path} {{ #{path} }}\n"
            yield markdown(model.__doc__ or "")
        rows = []
        for name, field in model.model_fields.items():
            nested = _nested(field.annotation)
            key = ".".join(filter(None, [path, name]))
            if nested:
                todo.append((key, nested))
            words = _words(field.annotation, field.metadata)
            values = f"[{words}](#{key})" if nested else linked(words, "components/")
            default = "the file's name" if key == "name" else _default(field)
            rows.append([code(name), values, default, escaped(field.description or "")])
        yield table(["key", "values", "default", ""], rows)


def _words(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """What a field holds, in words; of mappings and lists of components, which."""
    if get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        return _words(annotation, [*more, *metadata])
    for item in metadata:
        if isinstance(item, Kind):
            one = SINGULAR[item.kind]
            return f"{'an' if one[0] in 'aeiou' else 'a'} {one}"
    inner = [_words(part) for part in get_args(annotation)]
    if any(NESTED.search(word) for word in inner):
        origin = get_origin(annotation)
        if origin is dict:
            return f"a mapping: {inner[1]} each"
        return f"a list: {inner[0]} each" if origin is list else " or ".join(inner)
    return phrase(annotation, metadata) or "text"


def _default(field: Any) -> str:
    if field.is_required():
        return "**required**"
    value = field.default if field.default is not PydanticUndefined else field.default_factory()
    if isinstance(value, BaseModel):
        return "as below"
    return code(Parameter("", None, to_jsonable_python(value), "").written_default)


def _nested(annotation: Any) -> type[BaseModel] | None:
    """The block that a field holds, if it holds one: alone, in a list, or or null."""
    if isinstance(annotation, type):
        return annotation if issubclass(annotation, BaseModel) else None
    return next(filter(None, map(_nested, get_args(annotation))), None)


def _shipped(
    page: str, recipes: list[tuple[str, Path]], found: dict[str, list[tuple[str, Path]]]
) -> Iterator[str]:
    yield f"# {_FOLDERS.get(page, page)}\n"
    if page == "index":
        yield (
            "`mmssl run NAME` runs one, `mmssl run NAME --dry-run` shows what it would do, and "
            "`mmssl copy NAME` copies it, to be changed. Names that begin with `_` are parts that "
            "others extend. Variables in capitals are of the environment, and name the folders of "
            "datasets.\n"
        )
        for other in sorted(set(found) - {"index"}):
            yield f"- [{_FOLDERS.get(other, other)}]({other}.md)"
        yield ""
    yield table(
        ["recipe", ""], [[f"[{n}](#{n.replace('/', '-')})", escaped(_first(f))] for n, f in recipes]
    )
    for name, file in recipes:
        # The contents' column is narrow: the folder is the page's.
        label = Path(name).name
        yield f'## {name} {{ #{name.replace("/", "-")} data-toc-label="{label}" }}\n'
        yield fenced(file.read_text(encoding="utf-8"), "yaml")


def _first(file: Path) -> str:
    """What a recipe's leading comment says first."""
    words = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#") or not line[1:].strip() or line.startswith("#   "):
            break
        words.append(line[1:].strip())
    text = re.sub(r"^A part of [\w-]+'s \w+(?:, laid over [^:]*)?: ", "", " ".join(words))
    return re.split(r"[.:;] ", text)[0].rstrip(".:;")

"""From a component's signature and docstring to its parameters, model and JSON schema."""

import json
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema
import pytest
import recipe_components
import yaml
from pydantic import DirectoryPath, Field, FilePath, ValidationError
from recipe_components import RECIPE, Rows, registry, sgd

from mmssl import Backbone, Dataset, UserError
from mmssl.contracts import Evaluator
from mmssl.hooks import KINDS
from mmssl.recipe import load, shipped_recipes
from mmssl.recipe.model import Recipe
from mmssl.recipe.schema import schema
from mmssl.recipe.signature import REQUIRED, parameter_model, parameters, summary
from mmssl.recipe.typed import phrase, validate
from mmssl.registry import discover

# Parameters


def test_parameters_are_the_keyword_only_ones_with_their_description() -> None:
    found = {p.name: p for p in parameters(recipe_components.Video)}
    assert list(found) == ["frames", "mean", "crop"]
    assert found["frames"].default == 8
    assert found["frames"].description == "frames a clip."
    assert found["crop"].description == "side of the crop in pixels, after resizing."
    assert found["crop"].expects == "a whole number > 0 or null"
    # annotations of what a recipe does not set may name what only a type checker imports
    lr, momentum = parameters(sgd)
    assert (lr.name, lr.default, lr.required, lr.description) == ("lr", REQUIRED, True, "the peak.")
    assert momentum.description == ""
    assert not momentum.required


def test_a_subclass_inherits_descriptions() -> None:
    class Base:
        """A base.

        Args:
            size (int): how large, and
                how wide.
            kind: which: one or the other.

        Raises:
            ValueError: size is odd.
        """

        def __init__(self, *, size: int = 2, kind: str = "") -> None: ...

    class Child(Base):
        """A child
        of two lines.

        Args:
            kind: the child's own.
            extra: more.
        """

        def __init__(self, *, extra: int, size: int = 2, kind: str = "") -> None: ...

    assert {p.name: p.description for p in parameters(Child)} == {
        "extra": "more.",
        "size": "how large, and how wide.",
        "kind": "the child's own.",
    }
    assert summary(Child) == "A child of two lines."


def test_a_subclass_that_hands_parameters_on_has_its_bases() -> None:
    class Base:
        """A base.

        Args:
            size: how large.
        """

        def __init__(self, *, size: int, kind: str = "") -> None:
            self.size, self.kind = size, kind

    class Middle(Base):
        """Nothing of its own."""

    class Child(Middle):
        """A child.

        Args:
            extra: more.
        """

        def __init__(self, *, extra: float = 1.5, kind: str = "child's", **others: Any) -> None:
            super().__init__(kind=kind, **others)

    found = {p.name: (p.default, p.description) for p in parameters(Child)}
    assert found == {
        "extra": (1.5, "more."),
        "kind": ("child's", ""),
        "size": (REQUIRED, "how large."),
    }
    assert list(parameter_model(Child).model_fields) == ["extra", "kind", "size"]

    class Grandchild(Child):
        """It hands nothing on."""

        def __init__(self, *, one: int = 1) -> None:
            super().__init__(size=one)

    assert [p.name for p in parameters(Grandchild)] == ["one"]


def test_signatures_that_say_too_little_are_refused() -> None:
    def unresolved(*, x: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821

    def reserved(*, use: int) -> None: ...

    class Strange: ...

    def unsupported(*, x: Strange) -> None: ...

    with pytest.raises(UserError, match=r"^parameter 'size' is declared without a type$"):
        parameters(recipe_components.untyped)
    with pytest.raises(UserError, match=r"type cannot be resolved: name 'Nowhere'"):
        parameters(unresolved)
    with pytest.raises(UserError, match=r"cannot be called 'use'"):
        parameters(reserved)
    with pytest.raises(UserError, match=r"^a parameter's type is not supported: .*Strange"):
        parameter_model(unsupported)


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "a whole number"),
        (Annotated[int, Field(ge=1, lt=9)], "a whole number >= 1 and < 9"),
        (Annotated[float, Field(gt=0)] | None, "a number > 0 or null"),
        (Literal["a", "b", 3], "'a', 'b' or 3"),
        (Literal["a"], "'a'"),
        (Colour, "'red' or 'blue'"),
        (bool, "true or false"),
        (Path, "a path"),
        (FilePath, "the path of a file"),
        (DirectoryPath | None, "the path of a folder or null"),
        (list[int], "a list"),
        (tuple[int, int], "a list of 2 values"),
        (tuple[int, ...], "a list"),
        (dict[str, int] | Mapping[str, int], "a mapping or a mapping"),
        (Dataset, "a dataset"),
        (Backbone | None, "a backbone or null"),
        (complex, "complex"),
    ],
    ids=str,
)
def test_types_in_words(annotation: Any, words: str) -> None:
    def target(*, x: Any) -> None: ...

    target.__annotations__["x"] = annotation
    assert parameters(target)[0].expects == words


def test_values_without_words_of_ours_keep_pydantic_s() -> None:
    assert phrase(complex) is None

    def target(*, x: complex) -> None: ...

    with pytest.raises(ValidationError) as caught:
        validate(parameter_model(target), {"x": "y"})
    message = caught.value.errors()[0]["msg"]
    assert message.startswith("input should be a valid ")
    assert message.endswith("got 'y'")


# Models


@pytest.mark.parametrize(
    ("annotation", "given", "value"),
    [
        (float, 1, 1.0),
        (Path, "a/b", Path("a/b")),
        (tuple[int, float], [1, 2], (1, 2.0)),
        (Colour, "red", Colour.RED),
        (set[int], [1, 1], {1}),
        (int | str, "8", "8"),
        (int | str, 8, 8),
        (Annotated[float, Field(allow_inf_nan=True)], float("inf"), float("inf")),
        (list[tuple[int, int]] | None, [[1, 2]], [(1, 2)]),
    ],
    ids=str,
)
def test_values_become_what_the_annotation_says(annotation: Any, given: Any, value: Any) -> None:
    def target(*, x: Any) -> None: ...

    target.__annotations__["x"] = annotation
    found = validate(parameter_model(target), {"x": given}).x  # type: ignore[attr-defined]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("annotation", "given"),
    [
        (int, "8"),
        (int, True),
        (int, 1.0),
        (float, "1"),
        (float, True),
        (float, float("inf")),
        (float | None, float("nan")),
        (dict[str, tuple[float, ...]], {"a": [1, float("-inf")]}),
        (str, 1),
        (bool, 1),
        (bool, "true"),
        (list[int], ["1"]),
        (Path, 3),
        (tuple[int, int], [1]),
        (dict[str, int], {"a": None}),
        (list[str], "text"),
    ],
    ids=str,
)
def test_nothing_is_converted_silently(annotation: Any, given: Any) -> None:
    def target(*, x: Any) -> None: ...

    target.__annotations__["x"] = annotation
    with pytest.raises(ValidationError):
        validate(parameter_model(target), {"x": given})


def test_models_are_frozen_and_cached() -> None:
    model = parameter_model(Rows)
    assert parameter_model(Rows) is model
    values = validate(model, {"count": 3})
    with pytest.raises(ValidationError, match="frozen"):
        values.count = 4  # type: ignore[attr-defined]
    assert model.model_fields["count"].description == "how many there are."


def test_every_field_of_a_recipe_is_described() -> None:
    def undescribed(model: Any) -> list[str]:
        return [name for name, field in model.model_fields.items() if not field.description]

    from mmssl.recipe.model import Checkpoint, Data, FinalRound, Training

    models = (Recipe, Data, Training, FinalRound, Checkpoint)
    assert [undescribed(model) for model in models] == [[]] * 5


# The JSON schema


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    tiny = schema(registry())
    jsonschema.Draft202012Validator.check_schema(tiny)
    return jsonschema.Draft202012Validator(json.loads(json.dumps(tiny)))


def wrong(validator: jsonschema.Draft202012Validator, recipe: Any) -> list[str]:
    """The JSON paths of the innermost errors."""
    found = []
    for error in validator.iter_errors(recipe):
        while error.context:
            error = error.context[0]
        found.append(f"{error.json_path} {error.validator}")
    return sorted(found)


def recipe_of(text: str = RECIPE) -> Any:
    return yaml.safe_load(text.replace("1e-2", "0.01"))


def changed(path: str, value: Any) -> Any:
    recipe = recipe_of()
    *keys, last = path.split(".")
    target = recipe
    for key in keys:
        target = target.setdefault(key, {})
    target[last] = value
    return recipe


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed", 3),
        ("name", "x"),
        ("name", "${NAME}"),
        ("training.batch_size", "${BATCH:-8}"),
        ("training.compile", "${COMPILE}"),
        ("training.precision", "${PRECISION}"),
        ("training.checkpoint", {"steps": None, "minutes": 0.5}),
        ("training.schedule", "tiny/cosine"),
        ("training.schedule", {"use": "cosine", "warmup": 3}),
        ("training.schedule", "${SCHEDULE}"),
        ("objective.clusters", {"video": 3}),
        ("objective.copy", True),
        ("data.validation", None),
        ("data.validation", {"use": "mixture", "parts": {"a": "rows", "b": {"use": "rows"}}}),
        ("data.train", {"use": "missing", "whatever": 1}),
        ("trackers", []),
        ("callbacks", []),
        ("evaluations", {"a": {"use": "probe", "train": "rows"}}),
        ("modalities.audio", None),
        ("backbones.audio", None),
        ("evaluations", {"a": None}),
        ("evaluations", None),
    ],
    ids=str,
)
def test_the_schema_accepts(
    validator: jsonschema.Draft202012Validator, path: str, value: Any
) -> None:
    assert wrong(validator, changed(path, value)) == []


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        ("sed", 3, "$ additionalProperties"),
        ("seed", "x", "$.seed pattern"),
        ("seed", -1, "$.seed minimum"),
        ("training.batchsize", 3, "$.training additionalProperties"),
        ("training.precision", "fp8", "$.training.precision enum"),
        ("training.schedule", "cosin", "$.training.schedule enum"),
        ("training.schedule", {"warmup": 3}, "$.training.schedule required"),
        ("training.schedule", {"use": "cosin"}, "$.training.schedule.use enum"),
        ("training.schedule", {"use": "cosine", "warmup": "x"},
         "$.training.schedule.warmup pattern"),
        ("training.optimizer", "sgd", "$.training.optimizer enum"),  # lr is missing
        ("training.optimizer", {"use": "sgd"}, "$.training.optimizer required"),
        ("objective", {"use": "cluster", "clusterz": 3}, "$.objective additionalProperties"),
        ("objective", {"use": "contrast", "clusters": 3}, "$.objective additionalProperties"),
        ("data.validation", {"use": "mixture", "parts": {"a": {"use": "rows", "n": 1}}}, None),
        ("modalities", {}, "$.modalities minProperties"),
        ("evaluations", {"a": "probe"}, "$.evaluations.a enum"),  # train is missing
        ("callbacks", ["average"], "$.callbacks[0] not"),  # no plugin brings any
        ("evaluations", {"a": 3}, "$.evaluations.a type"),
        ("evaluations", {"a/b": {"use": "probe", "train": "rows"}},
         "$.evaluations additionalProperties"),
    ],
    ids=str,
)  # fmt: skip
def test_the_schema_refuses(
    validator: jsonschema.Draft202012Validator, path: str, value: Any, where: str | None
) -> None:
    found = wrong(validator, changed(path, value))
    assert found
    # not a message for every component that it is not
    assert where is None or where in found


def test_the_schema_of_a_recipe_that_extends_requires_nothing(
    validator: jsonschema.Draft202012Validator,
) -> None:
    part = {"extends": "base.yaml", "objective": {"clusters": 3}, "training": {"epochs": 3}}
    assert wrong(validator, part) == []
    assert wrong(validator, {"extends": ["a.yaml", "quickstart"]}) == []
    # the bare name of what needs parameters, which the other recipe may bring
    part["training"] = {"optimizer": "sgd"}
    assert wrong(validator, {**part, "evaluations": {"a": "probe", "b": None}}) == []
    assert wrong(validator, {**part, "evaluations": None, "backbones": None}) == []
    assert wrong(validator, {**part, "evaluations": {"a": "prob"}}) == ["$.evaluations.a enum"]
    assert wrong(validator, {**part, "objective": {"use": "contrast", "clusters": 3}}) == [
        "$.objective additionalProperties"
    ]
    assert wrong(validator, {**part, "sed": 3}) == ["$ additionalProperties"]
    assert wrong(validator, {"objective": {"use": "cluster", "clusters": 3}}) != []


def test_the_schema_describes_parameters_and_defaults(
    validator: jsonschema.Draft202012Validator,
) -> None:
    definitions = validator.schema["$defs"]
    rows = definitions["datasets.tiny.rows"]
    assert rows["properties"]["count"] == {
        "default": 10,
        "description": "how many there are.",
        "title": "Count",
        "type": ["integer", "string"],
        "pattern": r"\$\{",
    }
    assert rows["description"] == "Rows."
    assert definitions["Training"]["properties"]["accumulate"]["default"] == 1


def test_what_loads_is_what_the_schema_accepts(
    validator: jsonschema.Draft202012Validator, tmp_path: Path
) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(RECIPE)
    assert wrong(validator, recipe_of()) == []
    dumped = load(file, environ={}, registry=registry()).plain()
    assert wrong(validator, dumped) == []


def test_evaluators_made_by_functions_have_the_keys_of_every_evaluation() -> None:
    def made(*, clips: int = 1) -> Evaluator:
        """Makes one."""
        raise NotImplementedError

    def clashing(*, modalities: int = 1) -> Evaluator:
        raise NotImplementedError

    found = [parameter.name for parameter in parameters(made, "evaluators")]
    assert found == ["clips", "subnetworks", "modalities"]
    assert [parameter.name for parameter in parameters(made, "backbones")] == ["clips"]
    with pytest.raises(UserError, match="'modalities': every evaluation has this key"):
        parameters(clashing, "evaluators")


def test_components_of_this_environment_have_complete_schemas() -> None:
    found = discover()
    for kind in KINDS:
        for registration in found.components(kind):
            for parameter in parameters(registration.load(), kind):
                assert parameter.description, f"{kind} {registration.name}: {parameter.name}"
    jsonschema.Draft202012Validator.check_schema(schema(found))


@pytest.mark.parametrize("path", [path for _, path in shipped_recipes()], ids=lambda p: p.stem)
def test_shipped_recipes_fit_the_schema(path: Path) -> None:
    from mmssl.recipe.yaml12 import Place, parse

    recipe = parse(path.read_text(), Place(str(path), 1)).python()
    assert wrong(jsonschema.Draft202012Validator(schema()), recipe) == []


def test_names_of_components_shared_by_plugins_are_qualified() -> None:
    two = registry()
    other = type(two.plugins[0])(
        "other", "", tuple(type(c)(c.kind, c.name, "other", c.target)
                           for c in two.components("schedules") if c.name == "cosine"),
    )  # fmt: skip
    two.plugins.append(other)
    use = schema(two)["$defs"]["schedules"]["else"]["properties"]["use"]
    names = next(choice["enum"] for choice in use["anyOf"] if "enum" in choice)
    assert names == ["constant", "tiny/constant", "other/cosine", "tiny/cosine"]

"""A JSON Schema of recipes, for an editor's completion and checks.

It knows every component of this environment. A component's parameters are chosen by ``if: use is
X, then: parameters of X``, so that a mistake shows as one message about that component instead of
one for each component that it is not. A recipe that extends another may leave out what that one
says: for it, the definitions whose names begin with ``part.`` require nothing, and a bare name
may be any component's, whose parameters may come from there.
"""

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from mmssl.errors import UserError
from mmssl.hooks import KINDS
from mmssl.recipe.model import Recipe
from mmssl.recipe.signature import parameter_model
from mmssl.registry import SINGULAR, Registration, Registry, discover

Schema = dict[str, Any]

#: A string with a variable in it may become any scalar.
_VARIABLE = r"\$\{"
_EXTENDS: Schema = {
    "description": "A recipe, or several, that this one is laid over: paths relative to this "
    "file, or names of recipes that come with mmssl. Later ones win.",
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "items": {"type": "string", "minLength": 1}},
    ],
}

_SWEEP: Schema = {
    "description": "The runs that this recipe stands for, one for each combination: under a "
    "field's dotted path its values, or under a word of your choice the parts of a recipe that are "
    "laid over this one, by name. Not inherited through extends.",
    "type": "object",
    "additionalProperties": {
        "anyOf": [
            {"type": "array", "minItems": 1},
            {"type": "object", "additionalProperties": {"type": ["object", "null"]}},
        ]
    },
}


def schema(registry: Registry | None = None) -> Schema:
    """The JSON Schema (2020-12) of recipes with the components of this environment.

    A component that does not load, or whose signature says too little, is known by name only.
    """
    registry = registry or discover()
    models: dict[Registration, type[BaseModel]] = {}
    for kind in KINDS:
        for registration in registry.components(kind):
            try:
                models[registration] = parameter_model(registration.load(), kind)
            except UserError:
                continue
    everything: list[type[BaseModel]] = list(dict.fromkeys([Recipe, *models.values()]))
    references, generated = models_json_schema(
        [(model, "validation") for model in everything], ref_template="#/$defs/{model}"
    )
    definitions = {
        name: _with_variables(_with_references(definition))
        for name, definition in generated.get("$defs", {}).items()
    }
    whole = _definition(definitions, references[Recipe, "validation"])
    whole["properties"] = {"extends": _EXTENDS, **whole["properties"], "sweep": _SWEEP}
    whole["required"].remove("name")  # the file's name stands in for it
    parts: dict[str, Schema] = {}
    for kind in KINDS:
        shorthand, cases = [], []
        for registration in registry.components(kind):
            names = _names(registration, registry)
            key = f"{kind}.{registration.owner}.{registration.name}"
            if registration in models:
                reference = references[models[registration], "validation"]
                parameters = _definition(definitions, reference)
                definitions[key] = _component(registration, names, parameters)
                if not parameters.get("required"):
                    shorthand += names
            else:
                definitions[key] = {"type": "object"}
                shorthand += names
            chosen = {"properties": {"use": {"enum": names}}, "required": ["use"]}
            cases.append({"if": chosen, "then": {"$ref": f"#/$defs/{key}"}})
        every = [name for r in registry.components(kind) for name in _names(r, registry)]
        definitions[kind] = _choice(kind, every, shorthand, cases)
        parts[kind] = _choice(kind, every, every, cases)
    parts = {f"part.{name}": _part(node) for name, node in {**definitions, **parts}.items()}
    recipe = references[Recipe, "validation"]["$ref"].rpartition("/")[2]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "mmssl recipe",
        "type": "object",
        "if": {"required": ["extends"]},
        "then": {"$ref": f"#/$defs/part.{recipe}"},
        "else": {"$ref": f"#/$defs/{recipe}"},
        "$defs": {**definitions, **parts},
    }


def _definition(definitions: dict[str, Any], reference: Schema) -> Schema:
    return definitions[reference["$ref"].rpartition("/")[2]]


def _names(registration: Registration, registry: Registry) -> list[str]:
    """What ``use:`` may call a component: its bare name only where no other plugin has it."""
    qualified = f"{registration.owner}/{registration.name}"
    same = [c for c in registry.components(registration.kind) if c.name == registration.name]
    return [registration.name, qualified] if len(same) == 1 else [qualified]


def _component(registration: Registration, names: list[str], parameters: Schema) -> Schema:
    description = parameters.get("description", "")
    return {
        **parameters,
        "title": f"{SINGULAR[registration.kind]} {registration.name}",
        "properties": {
            "use": {"enum": names, "description": description},
            **parameters.get("properties", {}),
        },
        "required": ["use", *parameters.get("required", [])],
    }


def _choice(kind: str, names: list[str], shorthand: list[str], cases: list[Schema]) -> Schema:
    if not cases:
        return {"not": {}, "description": f"No plugin here brings {kind}."}
    use = {"enum": names, "description": f"The {SINGULAR[kind]}: mmssl ls {kind}"}
    return {
        "type": ["object", "string"],
        "if": {"type": "string"},
        "then": _or_variable({"enum": shorthand}),
        "else": {
            "properties": {"use": _or_variable(use)},
            "required": ["use"],
            "allOf": cases,
        },
    }


def _with_references(node: Any) -> Any:
    """``x-component`` marks, left by `mmssl.recipe.signature.Kind`, as references."""
    if isinstance(node, list):
        return [_with_references(item) for item in node]
    if not isinstance(node, dict):
        return node
    result = {key: _with_references(value) for key, value in node.items()}
    if "x-component" in node:
        result["$ref"] = f"#/$defs/{result.pop('x-component')}"
    return result


def _with_variables(node: Schema) -> Schema:
    """The schema with every scalar also open to a string that holds ``${...}``."""
    result = dict(node)
    for key in ("properties", "patternProperties"):
        if key in node:
            result[key] = {name: _with_variables(value) for name, value in node[key].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            result[key] = _with_variables(node[key])
    for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        if key in node:
            result[key] = [_with_variables(value) for value in node[key]]
    if "patternProperties" in node:
        result.setdefault("additionalProperties", False)  # pydantic leaves other keys open
    return _or_variable(result)


def _or_variable(node: Schema) -> Schema:
    if node.get("type") in ("integer", "number", "boolean") and "const" not in node:
        # "pattern" speaks of strings only, "minimum" and its like of numbers only.
        return {**node, "type": [node["type"], "string"], "pattern": _VARIABLE}
    if not node.keys() & {"enum", "const", "pattern"}:
        return node
    notes: Schema = {key: node[key] for key in ("title", "description", "default") if key in node}
    strict = {key: value for key, value in node.items() if key not in notes}
    return {**notes, "anyOf": [strict, {"type": "string", "pattern": _VARIABLE}]}


def _part(node: Any) -> Any:
    """The definition for a recipe that extends another: nothing required, references to parts."""
    if isinstance(node, list):
        return [_part(item) for item in node]
    if not isinstance(node, dict):
        return node
    part: Schema = {}
    for key, value in node.items():
        if key in ("properties", "patternProperties"):
            part[key] = {name: _part(item) for name, item in value.items()}
        elif key == "$ref":
            part[key] = value.replace("#/$defs/", "#/$defs/part.")
        elif key in ("if", "default", "enum", "const"):
            part[key] = value
        elif key != "required":
            part[key] = _part(value)
    return part

"""``mmssl schema``: recipes as a JSON Schema."""


def schema() -> None:
    """Print a JSON Schema of recipes, with every component of this environment.

    For completion in an editor, save it and begin a recipe with
    ``# yaml-language-server: $schema=recipe.schema.json``.

    Example:
      mmssl schema > recipe.schema.json
    """
    import json

    from mmssl.recipe.schema import schema as recipe_schema

    print(json.dumps(recipe_schema(), indent=1, ensure_ascii=False))

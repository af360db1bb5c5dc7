"""The papers' tables on their pages, from recipes/tables."""

import re

from examples import recipe_page
from prose import code, escaped, plain, table

from mmssl.pipeline.tables import PaperTable, load_table
from mmssl.recipe.compose import shipped_tables

_MARK = re.compile(r"^<!-- tables: (\w+) -->$", re.M)


def filled(markdown: str) -> str:
    """The Markdown with every table in place of ``<!-- tables: BEGINNING -->``."""
    return _MARK.sub(
        lambda found: "\n".join(
            _shown(name, load_table(name))
            for name, _ in shipped_tables()
            if name.startswith(found[1])
        ),
        markdown,
    )


def _shown(name: str, found: PaperTable) -> str:
    """One table: the paper's figures, what measures each row, and what each column is."""
    rows = []
    for title, row in found.rows.items():
        figures = [
            "–" if (value := row.paper.get(column)) is None else f"{value:.{about.digits}f}"
            for column, about in found.columns.items()
        ]
        page = f"reference/recipes/{recipe_page(row.recipe)}" if row.recipe else ""
        recipe = [f"[{row.recipe}]({page})"] if page else []
        rows.append([plain(title), *figures, "<br>".join(recipe + list(map(code, _runs(row.run))))])
    measured = [
        f"{plain(column)}: {code(about.metric)}{', the lowest' if about.lowest else ''}"
        for column, about in found.columns.items()
    ]
    parts = [
        f"### {plain(found.title)} {{ #{name} }}\n",
        f"{escaped(found.source)}\n" if found.source else "",
        table(["", *map(plain, found.columns), "recipe, and its run"], rows),
        f"{escaped(found.note)}\n" if found.note else "",
        f"{code(f'mmssl table {name}')}. Evaluation and metric of {'; '.join(measured)}.\n",
    ]
    return "\n".join(filter(None, parts))


def _runs(run: str | dict[str, str] | None) -> list[str]:
    if run is None:
        return []
    return [run] if isinstance(run, str) else list(dict.fromkeys(run.values()))

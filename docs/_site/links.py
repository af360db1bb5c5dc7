"""Links that leave docs/: they lead to a page of the site, or become the names of files.

In a checkout they are links to files, which a reader there can open.
"""

import posixpath
import re
from collections.abc import Callable
from pathlib import Path

from examples import recipe_page

# Code is passed over; of a link, text and address are named.
_LINK = re.compile(
    r"^```.*?^```|``.+?``"
    r"|(?<!!)\[(?P<text>[^\]\[]*(?:\[[^\]]*\][^\]\[]*)*)\]\((?P<to>[^)\s]+)\)"
    r"|`[^`\n]+`",
    re.M | re.S,
)

_ROOT = Path(__file__).resolve().parents[2]

_PAGES = {
    "README.md": "index.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/": "benchmarks.md",
    "mmssl/hooks.py": "reference/python/hooks.md",
    "mmssl/contracts.py": "reference/python/contracts.md",
    "mmssl/recipe/model.py": "reference/recipe.md",
    "recipes/": "reference/recipes/index.md",
}


def file_anchor(path: str) -> str:
    """Of a file or folder of an example plugin, on the plugin's page."""
    return re.sub(r"[^a-z0-9]+", "-", path.lower()).strip("-")


def rewritten(
    markdown: str,
    source: str,
    target: str,
    exists: Callable[[str], bool],
    title: Callable[[str], str],
) -> str:
    """The Markdown with links that hold on the site; a link called by its file is by its title.

    Args:
        markdown: a page's text.
        source: the file it is from, relative to the repository's root.
        target: the page's address below docs/.
        exists: is there a page or file of this address below docs/?
        title: of the page of an address.
    """

    def replace(found: re.Match[str]) -> str:
        to, _, anchor = (found["to"] or "").partition("#")
        if not to or "://" in to or to.startswith("mailto:"):
            return found[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), to))
        page = _page(path + ("/" if to.endswith("/") else ""), exists)
        if page is None:
            return found["text"]
        page, _, own = page.partition("#")
        anchor = own or anchor
        link = posixpath.relpath(page, posixpath.dirname(target) or ".")
        text = title(page) if re.fullmatch(r"[\w/.]+\.md", found["text"]) else found["text"]
        return f"[{text}]({link}{'#' * bool(anchor)}{anchor})"

    return _LINK.sub(replace, markdown)


def _page(path: str, exists: Callable[[str], bool]) -> str | None:
    """The page that shows a file of the repository, as an address below docs/."""
    if path in _PAGES:
        return _PAGES[path]
    if path.startswith("docs/examples/"):
        name, _, file = path.removeprefix("docs/examples/").strip("/").partition("/")
        page = f"example_plugins/{name}.md"
        if not exists(page) or not (_ROOT / path).exists():
            return None
        return page if file in ("", "README.md") else f"{page}#{file_anchor(file)}"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.startswith("recipes/"):
        name = path.removeprefix("recipes/")
        if name.endswith(".yaml"):
            return f"reference/recipes/{recipe_page(name.removesuffix('.yaml'))}"
        page = f"reference/recipes/{name.strip('/').replace('/', '_')}.md"
        return page if exists(page) else None
    return None

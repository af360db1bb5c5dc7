"""What MkDocs calls: pages are generated, links are rewritten, pictures are set into the text."""

import re
from pathlib import Path
from typing import Any

import commands
import components
import links
import paper_tables
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from prose import fenced, plain

import recipes

_ROOT = Path(__file__).resolve().parents[2]


def _generated() -> dict[str, tuple[str, str]]:
    """By address below docs/: where the page is from, relative to the root, and its Markdown."""
    found: dict[str, tuple[str, str]] = {}
    for part in (components, recipes, commands):
        found |= {address: (f"docs/{address}", text) for address, text in part.pages()}
    readme = _ROOT / "benchmarks" / "README.md"
    found["benchmarks.md"] = ("benchmarks/README.md", readme.read_text(encoding="utf-8"))
    for readme in sorted((_ROOT / "docs" / "examples").glob("*/README.md")):
        address = f"example_plugins/{readme.parent.name}.md"
        found[address] = (readme.relative_to(_ROOT).as_posix(), _with_files(readme))
    return found


_LANGUAGES = {".py": "python", ".toml": "toml", ".yaml": "yaml"}


def _with_files(readme: Path) -> str:
    """An example plugin's README, and its files."""
    parts = [readme.read_text(encoding="utf-8"), "\n## Its files\n"]
    seen: set[Path] = {Path(".")}
    for file in sorted(readme.parent.rglob("*"), key=lambda f: (len(f.parts), f)):
        path = file.relative_to(readme.parent)
        if file.suffix not in _LANGUAGES or any(part.startswith(".") for part in path.parts):
            continue
        if path.parent not in seen:  # a link to a folder leads to its first file
            seen.add(path.parent)
            parts.append(f'<span id="{links.file_anchor(path.parent.as_posix())}"></span>\n')
        parts.append(f"### {plain(path.as_posix())} {{ #{links.file_anchor(path.as_posix())} }}\n")
        parts.append(fenced(file.read_text(encoding="utf-8"), _LANGUAGES[file.suffix]))
    return "\n".join(parts)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Generate the pages; an entry of the navigation that ends in / stands for all of a folder."""
    config.extra["generated"] = _generated()
    config.nav = _expanded(config.nav, list(config.extra["generated"]))
    return config


def _expanded(nav: Any, addresses: list[str]) -> Any:
    if isinstance(nav, dict):
        return {title: _expanded(value, addresses) for title, value in nav.items()}
    if isinstance(nav, list):
        return [_expanded(value, addresses) for value in nav]
    if nav.endswith("/"):
        return [a for a in addresses if a.startswith(nav) and "/" not in a.removeprefix(nav)]
    return nav


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for address, (_, text) in config.extra["generated"].items():
        files.append(File.generated(config, address, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files outside docs/, a paper's tables, and drawings."""
    address = page.file.src_uri
    source = config.extra["generated"].get(address, (f"docs/{address}",))[0]
    there = set(files.src_uris)

    def title(other: str) -> str:
        file = files.get_file_from_path(other)
        if file is None:  # MkDocs warns of the link
            return other
        return file.content_string.partition("# ")[2].partition("\n")[0].partition(" {")[0]

    markdown = links.rewritten(markdown, source, address, there.__contains__, title)
    markdown = paper_tables.filled(markdown)
    return _drawn(markdown)


def on_post_build(config: MkDocsConfig) -> None:
    """The search index as a script, which a page that is opened from disk may read."""
    folder = Path(config.site_dir) / "search"
    index = (folder / "search_index.json").read_text(encoding="utf-8")
    (folder / "search_index.js").write_text(f"var __index = {index}", encoding="utf-8")


_DRAWING = re.compile(r"^!\[([^\]]*)\]\((?:\.\./)*(pictures/[^)]+\.svg)\)$", re.M)


def _drawn(markdown: str) -> str:
    """Drawings stand in the page itself, so that they have the colours of its scheme."""

    def inline(found: re.Match[str]) -> str:
        drawing = (_ROOT / "docs" / found[2]).read_text(encoding="utf-8")
        drawing = re.sub(r"<style>.*?</style>|\n", "", drawing, flags=re.S)
        return f'<div class="drawing">{drawing}</div>'

    return _DRAWING.sub(inline, markdown)

"""The documentation as a site: built strictly, whole, and without anything from elsewhere."""

import functools
import html
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from browser import chromium, opened
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from small_runs import mmssl as run_mmssl

import mmssl
from mmssl.hooks import KINDS
from mmssl.recipe.compose import shipped_tables
from mmssl.registry import discover

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "docs" / "_site"))
NEEDED = ("mkdocs", "material", "mkdocstrings")


class Parsed(HTMLParser):
    """What a page holds: anchors, links, and what the browser loads for it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.counts: dict[str, int] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.ids.update(v for k in ("id", "name") if (v := given.get(k)))
        if tag == "a" and (to := given.get("href")):
            self.links.append(to)
        elif tag == "link" and "canonical" not in (given.get("rel") or ""):
            self.loaded.append(given.get("href") or "")
        elif tag in ("script", "img", "source", "iframe", "video", "use", "image"):
            self.loaded.append(given.get("src") or given.get("href") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        reason = f"needs pip install -e '.[docs]': there is no {', '.join(missing)}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def parsed(site: Path) -> dict[str, Parsed]:
    """All pages by their address."""
    return {
        page.relative_to(site).as_posix(): Parsed(page.read_text(encoding="utf-8"))
        for page in sorted(site.rglob("*.html"))
    }


def test_every_page_is_in_the_navigation(parsed: dict[str, Parsed]) -> None:
    """Each Markdown file of docs/ is a page, and the start page's menus lead to it."""
    start = {to.partition("#")[0] for to in parsed["index.html"].links}
    for file in sorted((ROOT / "docs").rglob("*.md")):
        address = file.relative_to(ROOT / "docs").with_suffix(".html").as_posix()
        if address.startswith("examples/"):
            if file.name != "README.md" or address.count("/") != 2:
                continue
            address = f"example_plugins/{file.parent.name}.html"
        assert address in parsed, f"{file} is no page"
        assert address in start or address == "index.html", f"no menu leads to {file}"


def test_links_and_anchors_lead_somewhere(parsed: dict[str, Parsed], site: Path) -> None:
    for address, page in parsed.items():
        for link in page.links:
            if re.match(r"[a-z]+:", link) or address == "404.html":
                continue
            to, _, anchor = link.partition("#")
            target = (site / address).parent / to if to else site / address
            target = target.resolve() / "index.html" if to.endswith("/") else target.resolve()
            assert target.is_file(), f"{address}: {link}"
            name = target.relative_to(site.resolve()).as_posix()
            assert not anchor or anchor in parsed[name].ids, f"{address}: {link}"


def test_nothing_is_loaded_from_elsewhere(parsed: dict[str, Parsed], site: Path) -> None:
    for address, page in parsed.items():
        for loaded in page.loaded:
            assert not re.match(r"(https?:)?//", loaded), f"{address} loads {loaded}"
            if loaded and not loaded.startswith(("data:", "/", "#")):
                file = (site / address).parent / loaded.partition("#")[0].partition("?")[0]
                assert file.is_file(), f"{address} loads {loaded}, which is not there"
    for style in site.rglob("*.css"):
        found = re.findall(r"url\(\s*['\"]?((?:https?:)?//[^)]*)", style.read_text())
        assert not found, f"{style} loads {found}"


def test_all_components_fields_recipes_and_tables_are_there(parsed: dict[str, Parsed]) -> None:
    for kind in KINDS:
        page = parsed[f"reference/components/{kind}.html"]
        assert {c.name for c in discover().components(kind) if _is_ours(c.owner)} <= page.ids
    for file in (ROOT / "recipes").rglob("*.yaml"):
        name = file.relative_to(ROOT / "recipes").with_suffix("").as_posix()
        if name.startswith("tables/"):
            continue
        anchor = name.replace("/", "-")
        assert any(
            anchor in page.ids
            for address, page in parsed.items()
            if address.startswith("reference/recipes/")
        ), name
    for name, _ in shipped_tables():
        paper = name.partition("_")[0]
        page = parsed.get(f"{paper}.html")
        assert page is None or name in page.ids, name


def _is_ours(owner: str) -> bool:
    """Is it mmssl itself, or a plugin that comes with it?"""
    return owner == "mmssl" or (ROOT / "plugins" / owner).is_dir()


def test_every_parameter_is_described_as_mmssl_describe_does(site: Path, tmp_path: Path) -> None:
    text = (site / "reference/components/objectives.html").read_text(encoding="utf-8")
    section = text.partition('id="xdc"')[2].partition("<h2")[0]
    printed = run_mmssl("describe", "objective", "xdc", cwd=tmp_path).stdout
    keys = re.findall(r"^  (\w+): .*; (?:default|required)", printed, re.M)
    assert len(keys) > 5
    assert re.findall(r"<tr>\s*<td><code>(\w+)</code></td>", section) == keys


def test_every_verb_is_there(parsed: dict[str, Parsed], tmp_path: Path) -> None:
    helped = run_mmssl("--help", cwd=tmp_path).stdout
    verbs = re.findall(r"^  ([a-z][a-z-]*)\b", helped.partition("Commands:")[2], re.M)
    commands = discover().components("commands")
    groups = [c.name for c in commands]
    alone = {verb for verb in verbs if not any(g.startswith(f"{verb} ") for g in groups)}
    assert len(alone) > 10
    wanted = alone | {c.name.replace(" ", "-") for c in commands if _is_ours(c.owner)}
    assert wanted <= parsed["reference/commands.html"].ids


def test_the_public_names_are_there(parsed: dict[str, Parsed]) -> None:
    ids = set().union(*(p.ids for a, p in parsed.items() if a.startswith("reference/python/")))
    for name in mmssl.__all__:
        assert any(found.rpartition(".")[2] == name for found in ids), name


def test_the_public_modules_are_there(parsed: dict[str, Parsed]) -> None:
    """Whatever the page on compatibility promises has its documentation."""
    promised = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(mmssl\.[\w.]+)` \| (.*) \|$", promised, re.M)
    assert len(rows) > 10
    ids = set().union(*(p.ids for a, p in parsed.items() if a.startswith("reference/python/")))
    for module, names in rows:
        if module not in ("mmssl.contracts", "mmssl.hooks", "mmssl.recipe.model"):  # types, too
            for name in re.findall(r"`(\w+)`", names.partition(":")[0]):
                assert f"{module}.{name}" in ids, f"{module}.{name}"


@example(text="&#0")
@given(text=st.text(st.characters(codec="ascii", min_codepoint=32), min_size=1, max_size=60))
def test_text_from_signatures_means_itself(text: str) -> None:
    """Whatever a default or a description holds, a cell of a table shows it and no markup."""
    markdown = pytest.importorskip("markdown")
    prose = importlib.import_module("prose")
    for written, expected in (
        (prose.plain(text), " ".join(text.split())),
        (prose.code(text.replace("`", "'")), " ".join(text.replace("`", "'").split())),
    ):
        made = markdown.markdown(prose.table(["a", "b"], [["x", written]]), extensions=["tables"])
        cell = made.rpartition("<td>")[2].partition("</td>")[0]
        shown = html.unescape(re.sub(r"</?code>", "", cell))
        assert "<" not in re.sub(r"</?code>", "", cell)
        assert " ".join(shown.split()) == expected


PAGES = [
    file.relative_to(ROOT / "docs").as_posix()
    for file in sorted((ROOT / "docs").rglob("*.md"))
    if "examples" not in file.parts and "::: " not in file.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_reads_alike_in_a_checkout(name: str, site: Path) -> None:
    """CommonMark, which a checkout is read in, and the site's Markdown see the same structure."""
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    expected = Parsed(MarkdownIt("commonmark").enable("table").render(text)).counts
    page = (site / name.replace(".md", ".html")).read_text(encoding="utf-8")
    found = Parsed(re.split(r"<article[^>]*>|</article>", page)[1]).counts
    added = "<!-- tables: " in text  # the site sets a paper's tables in
    for tag in ("h1", "h2", "h3", "h4", "li", "table", "tr", "td", "pre", "strong", "code"):
        of_each = expected.get(tag, 0), found.get(tag, 0)
        assert of_each[0] <= of_each[1] if added else of_each[0] == of_each[1], (tag, of_each)


def test_what_is_returned_is_one_row_however_long(site: Path) -> None:
    page = (site / "reference" / "python" / "contracts.html").read_text(encoding="utf-8")
    tables = re.findall(r"Returns:.*?<tbody>(.*?)</tbody>", page, re.DOTALL)
    assert len(tables) >= 5
    assert [rows.count("<tr") for rows in tables] == [1] * len(tables)


@pytest.fixture(scope="module")
def seen() -> Iterator[Any]:
    """A running browser."""
    with chromium() as found:
        yield found


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_open_in_a_browser(scheme: str, seen: Any, site: Path) -> None:
    """From disk, without a word on the console; no wider than the window, in either scheme."""
    for name in ("index", "concepts", "xdc", "reference/components/backbones"):
        with opened(seen, site / f"{name}.html", scheme=scheme, width=420) as page:
            page.page.wait_for_load_state("load")
            assert page.said == [], name
            assert all(asked.startswith("file:") for asked in page.asked), name
            body = page.page.evaluate("getComputedStyle(document.body).backgroundColor")
            brightness = sum(int(n) for n in re.findall(r"\d+", body)[:3])
            assert (brightness > 600) == (scheme == "light"), (name, body)
            assert page.page.evaluate("document.documentElement.scrollWidth") <= 420, name


def find(page: Any) -> None:
    """Search for "xdc": the first page that is found is about it."""
    box = page.locator(".md-search__input")
    box.click()
    box.press_sequentially("xdc")
    first = page.locator(".md-search-result__link").first
    first.wait_for(timeout=20_000)
    assert "xdc" in first.get_attribute("href").lower()


def test_search_finds_a_page_from_disk(seen: Any, site: Path) -> None:
    with opened(seen, site / "concepts.html") as page:
        find(page.page)
        assert page.said == []


def test_search_finds_a_page_that_is_served(seen: Any, site: Path) -> None:
    """By any server of files."""
    handler = functools.partial(Quiet, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = seen.new_page()
        page.goto(f"http://127.0.0.1:{server.server_address[1]}/concepts.html")
        find(page)
        page.close()
        server.shutdown()


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and logs nothing."""

    def log_message(self, format: str, *args: object) -> None:
        del format, args

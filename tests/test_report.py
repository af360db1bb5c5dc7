"""The report, from its parts to the page in a real browser."""

import base64
import errno
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from browser import Opened, chromium, opened
from small_runs import RECIPE, mmssl
from torch import nn

from mmssl.cli.report import report
from mmssl.contracts import IGNORE, Sample, Table
from mmssl.errors import UserError
from mmssl.pipeline.records import Records
from mmssl.report import clusters as clustering
from mmssl.report.charts import HEIGHT, draw, thinned, ticks
from mmssl.report.collect import collect
from mmssl.report.contents import (
    Chart,
    Cluster,
    Contents,
    EvaluationResult,
    FeatureMap,
    Labeling,
    Member,
    Series,
    StageState,
)
from mmssl.report.features_map import Found, nearest_first, project
from mmssl.report.filters import _tiles, filter_figure, stem_convolutions
from mmssl.report.looking import Amount
from mmssl.report.media_clips import excerpt
from mmssl.report.numbers import shown
from mmssl.report.page import render
from mmssl.report.write import write_report
from mmssl.training.progress import Silent
from mmssl_media.synthetic_clips import CLASSES, Format, draw_frames, draw_sound, label_of, write

SMALL = Amount(clusters=3, clips=2, samples=24)

# File names and classes as nobody should give them; a slash ends a file's name.
HOSTILE = [
    "<script>alert(1)<script>",
    '"><img src=x onerror=alert(2)>',
    "\u202egnp.exe \u2067rtl",
    "</script><script>alert(3)</script>",
    "{{ 7*7 }} &lt; ]]> <!-- ü 日本",
]


# --- the run that all pages are made of


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def finished(home: Path) -> Path:
    """A finished run on files and classes with hostile names, one of which is damaged."""
    form = Format(side=32, fps=8, seconds=1.0)
    (home / "media").mkdir()
    lines = ["path,label"]
    for i in range(40):
        label = label_of(0, i, len(CLASSES)) % len(HOSTILE)
        name = f"{i:02}{HOSTILE[i % len(HOSTILE)].replace('/', '')}.mp4"
        path = home / "media" / name
        write(path, form, draw_frames(form, 0, i, label), draw_sound(form, 0, i, label))
        if i == 7:
            path.write_bytes(b"no media")
        quoted = [f'"{text.replace(chr(34), chr(34) * 2)}"' for text in (str(path), HOSTILE[label])]
        lines.append(",".join(quoted))
    (home / "list.csv").write_text("\n".join(lines) + "\n")
    recipe = RECIPE.replace(
        "{use: synthetic, videos: 48, side: 32, fps: 8, seconds: 1}",
        f"{{use: manifest, path: {home / 'list.csv'}}}",
    )
    recipe += "evaluations:\n  clusters: {use: clusters, rows: 2}\n"
    (home / "recipe.yaml").write_text(recipe)
    done = mmssl("run", "recipe.yaml", "data.max_bad=0.5", "objective.on_collapse=warn", cwd=home)
    assert done.returncode == 0, done.stderr
    return home / "runs" / "small"


@pytest.fixture(scope="module")
def page(finished: Path) -> Path:
    """The page of it, as the command line makes it."""
    home = finished.parent.parent
    options = ("--clusters", "3", "--clips", "2", "--samples", "40")
    done = mmssl("report", "small", *options, cwd=home)
    assert done.returncode == 0, done.stderr
    path = finished / "report" / "index.html"
    assert str(path.relative_to(home)) in done.stdout
    assert [p.name for p in path.parent.iterdir()] == ["index.html"]
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(finished, tmp_path / "small", ignore=lambda *_: ["report"]))


class Text(HTMLParser):
    """What of a page is text, outside of scripts and styles, and which tags it has."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._within = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._within = tag

    def handle_endtag(self, tag: str) -> None:
        self._within = ""

    def handle_data(self, data: str) -> None:
        if self._within not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def written(run: Path, amount: Amount = SMALL) -> str:
    path = write_report(Records(run), amount, Silent())
    return path.read_text(encoding="utf-8")


# --- the page on disk


def test_the_page_holds_all_it_needs(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    seen = Text(html)
    addresses = [
        value
        for _, attributes in seen.tags
        for name, value in attributes.items()
        if name in ("src", "href", "poster", "srcset", "action", "data")
    ]
    assert addresses
    assert all(value and value.startswith(("data:", "#")) for value in addresses)
    assert not {"link", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in seen.tags}
    assert "@import" not in html
    assert "url(" not in re.sub(r"data:[^\"]*", "", html)
    for section in ("Summary", "Training", "Clusters", "Map of features", "First filters",
                    "Evaluations", "Unreadable samples", "Recipe", "Provenance"):  # fmt: skip
        assert section in seen.text
    assert page.stat().st_size < 3e6


def test_the_policy_names_the_page_s_own_style_and_script(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    policy = next(
        a["content"] for tag, a in Text(html).tags
        if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )  # fmt: skip
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == rules["media-src"] == "data:"
    for directive, tag in (("style-src", "style"), ("script-src", "script")):
        text = re.findall(rf"<{tag}>(.*?)</{tag}>", html, flags=re.DOTALL)
        assert len(text) == 1
        digest = base64.b64encode(hashlib.sha256(text[0].encode()).digest()).decode()
        assert rules[directive] == f"'sha256-{digest}'"
    assert not re.search(r"<[^>]+\sstyle=", re.sub(r'"[^"]*"', '""', html))


def test_the_page_says_what_the_run_s_files_say(page: Path, finished: Path) -> None:
    text = Text(page.read_text(encoding="utf-8")).text
    log = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    last = [r for r in log if r["kind"] == "step"][-1]
    assert f"last loss {shown(last['loss'])}" in text
    skipped = [json.loads(x) for x in (finished / "skipped.jsonl").read_text().splitlines()]
    assert len(skipped) == 1
    assert skipped[0]["reason"] in text
    metrics = json.loads((finished / "evaluations" / "clusters" / "metrics.json").read_text())
    for name, value in metrics.items():
        assert f"{name} {shown(value)}" in text
    provenance = json.loads((finished / "provenance.json").read_text())
    assert provenance[0]["packages"]["torch"] in text
    assert " ".join(provenance[0]["command"]) in text


def test_the_same_run_gives_the_same_page(run: Path) -> None:
    def without_time(html: str) -> str:
        return re.sub(r"Made \S+ by", "Made by", html)

    assert without_time(written(run)) == without_time(written(run))


# --- in a browser


def test_it_opens_from_disk_without_network_errors_or_violations(browser: Any, page: Path) -> None:
    for scheme in ("light", "dark"):
        with opened(browser, page, scheme=scheme) as seen:
            seen.page.wait_for_timeout(300)
            assert seen.said == []
            assert seen.asked == []
            assert seen.dialogs == []
            assert seen.violations() == []


def test_the_policy_stops_what_is_not_the_page_s_own(browser: Any, page: Path) -> None:
    asked = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)

    server = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with opened(browser, page) as seen, closing(server.socket):
        seen.page.evaluate(
            """(address) => {
              const script = document.createElement("script");
              script.textContent = "window.ran = true";
              document.body.append(script);
              const image = document.createElement("img");
              image.src = address;
              document.body.append(image);
            }""",
            f"http://127.0.0.1:{server.server_port}/x.png",
        )
        _wait(seen, "window.violations.length >= 2")
        assert seen.page.evaluate("window.ran") is None
        seen.page.wait_for_timeout(200)
        server.shutdown()
        assert asked == []


def test_hostile_names_are_text(browser: Any, page: Path) -> None:
    with opened(browser, page) as seen:
        seen.page.wait_for_timeout(200)
        assert seen.dialogs == []
        assert seen.page.locator("img[onerror]").count() == 0
        named = set(seen.page.locator(".leading bdi").all_text_contents())
        assert named <= set(HOSTILE)
        assert len(named) > 2
        assert seen.page.evaluate("document.scripts.length") == 2
        ids = seen.page.evaluate(
            "JSON.parse(document.querySelector('#data').textContent).maps[0].ids"
        )
        assert any("<script>alert(1)<script>" in name for name in ids)
        # A name that runs from right to left turns nothing around it.
        assert seen.page.evaluate(
            """[...document.querySelectorAll("figcaption .id")].every(
                 (e) => getComputedStyle(e).unicodeBidi === "isolate")"""
        )


def _wait(seen: Opened, wanted: str, seconds: float = 20) -> None:
    """Until an expression is true; the page's policy leaves no other way than to ask again."""
    for _ in range(int(seconds / 0.05)):
        if seen.page.evaluate(wanted):
            return
        seen.page.wait_for_timeout(50)
    raise AssertionError(f"never: {wanted}")


def _video(seen: Opened) -> dict[str, Any]:
    found: dict[str, Any] = seen.page.evaluate(
        """(() => { const v = document.querySelector("#viewer video");
             return {time: v.currentTime, width: v.videoWidth, height: v.videoHeight,
                     length: v.duration, sound: v.webkitAudioDecodedByteCount,
                     pictures: v.getVideoPlaybackQuality().totalVideoFrames}; })()"""
    )
    return found


def test_a_clip_plays_with_pictures_and_sound(browser: Any, page: Path) -> None:
    with opened(browser, page) as seen:
        seen.page.locator("button.film").first.click()
        _wait(seen, "document.querySelector('#viewer video').currentTime > 0.3")
        found = _video(seen)
        assert (found["width"], found["height"]) == (160, 160)
        assert found["length"] == pytest.approx(1.0, abs=0.1)
        assert found["sound"] > 0
        assert found["pictures"] > 2
        title = seen.page.locator("#viewer-title").text_content()
        seen.page.locator("#viewer [data-do=next]").click()
        assert seen.page.locator("#viewer-title").text_content() != title
        assert seen.page.locator("#viewer video").count() == 1
        seen.page.locator("#viewer [data-do=close]").click()
        assert seen.page.locator("#viewer video").count() == 0
        assert seen.said == []


def _shown_clusters(seen: Opened) -> list[dict[str, str]]:
    found: list[dict[str, str]] = seen.page.evaluate(
        """[...document.querySelectorAll(".cluster")].filter((c) => c.checkVisibility())
             .map((c) => ({...c.dataset}))"""
    )
    return found


def test_sorting_and_filtering_change_what_is_shown(browser: Any, page: Path) -> None:
    with opened(browser, page) as seen:
        control = seen.page.locator
        every = _shown_clusters(seen)
        assert len(every) == 4
        purities = [float(c["purity"]) for c in every]
        assert purities == sorted(purities, reverse=True)
        control("[data-sort=purity]").click()
        assert [float(c["purity"]) for c in _shown_clusters(seen)] == sorted(purities)
        control("[data-sort=size]").click()
        sizes = [int(c["size"]) for c in _shown_clusters(seen)]
        assert sizes == sorted(sizes, reverse=True)
        control("[data-sort=index]").click()
        assert [c["index"] for c in _shown_clusters(seen)] == ["0", "1", "2", "3"]
        control("#cluster-filter").fill("#2")
        assert [c["index"] for c in _shown_clusters(seen)] == ["2"]
        control("#cluster-filter").fill("ONERROR")
        wanted = [c for c in every if "onerror" in c["text"]]
        assert len(_shown_clusters(seen)) == len(wanted)
        control("#cluster-filter").fill("nothing is called so")
        assert _shown_clusters(seen) == []
        assert control(".nothing").is_visible()
        control("#cluster-filter").fill("")
        control("#cluster-shown").check()
        assert len(_shown_clusters(seen)) == 3
        before = control(".labeling:visible h3").text_content()
        control(".controls [data-labeling='1']").click()
        assert (before, control(".labeling:visible h3").text_content()) == ("video", "audio")
        assert "3 of 4" in control(".count").text_content()


def test_tables_sort_by_their_heads(browser: Any, page: Path) -> None:
    with opened(browser, page) as seen:
        table = seen.page.locator("#evaluations table").first
        column = table.locator("th", has_text="size")

        def sizes() -> list[int]:
            cells = table.locator("tbody tr td:nth-child(3)").all_text_contents()
            return [int(text) for text in cells]

        before = sizes()
        column.locator("button").focus()
        seen.page.keyboard.press("Enter")
        assert column.get_attribute("aria-sort") == "ascending"
        assert sizes() == sorted(before)
        seen.page.keyboard.press("Enter")
        assert column.get_attribute("aria-sort") == "descending"
        assert sizes() == sorted(before, reverse=True)


def _tab_to(seen: Opened, wanted: str, most: int = 200) -> None:
    for _ in range(most):
        seen.page.keyboard.press("Tab")
        if seen.page.evaluate("(s) => document.activeElement.matches(s)", wanted):
            outline = seen.page.evaluate(
                """(() => { const style = getComputedStyle(document.activeElement);
                     return [style.outlineStyle, parseFloat(style.outlineWidth)]; })()"""
            )
            assert outline[0] != "none"
            assert outline[1] >= 2, "the focus cannot be seen"
            return
    raise AssertionError(f"Tab does not reach {wanted}")


def test_everything_works_with_the_keyboard_alone(browser: Any, page: Path) -> None:
    with opened(browser, page) as seen:
        press = seen.page.keyboard.press
        press("Tab")
        assert seen.page.evaluate("document.activeElement.className") == "skip"
        _tab_to(seen, '.contents a[href="#clusters"]')
        _tab_to(seen, ".chart > svg")
        assert seen.page.locator("#training .readout").first.text_content() == ""
        press("ArrowRight")
        assert "step" in seen.page.locator("#training .readout").first.text_content()
        value = seen.page.evaluate("document.activeElement.getAttribute('aria-valuetext')")
        assert value == seen.page.locator("#training .readout").first.text_content()
        _tab_to(seen, "[data-sort=index]")
        press("Enter")
        assert [c["index"] for c in _shown_clusters(seen)] == ["0", "1", "2", "3"]
        press("Space")
        assert [c["index"] for c in _shown_clusters(seen)] == ["3", "2", "1", "0"]
        _tab_to(seen, "#cluster-filter")
        seen.page.keyboard.type("#1")
        assert [c["index"] for c in _shown_clusters(seen)] == ["1"]
        for _ in range(2):
            press("Backspace")
        _tab_to(seen, "button.film")
        press("Enter")
        _wait(seen, "document.querySelector('#viewer video').currentTime > 0.1")
        press("Escape")
        assert not seen.page.locator("#viewer").is_visible()
        assert seen.page.evaluate("document.activeElement.matches('button.film')")
        _tab_to(seen, ".map [data-by='video cluster']")
        press("Enter")
        assert seen.page.locator(".map .by").first.text_content() == "video cluster"
        _tab_to(seen, ".map > svg")
        press("End")
        where = seen.page.locator(".map .readout").first.text_content()
        assert ".mp4" in where
        assert "video cluster" in where
        _tab_to(seen, ".map .legend button")
        press("Enter")
        assert seen.page.locator(".map .faint").count() > 0
        _tab_to(seen, "#recipe summary")
        press("Enter")
        assert seen.page.locator("#recipe .code").is_visible()


@pytest.mark.parametrize("javascript", [True, False])
def test_a_phone_needs_no_sideways_scrolling(browser: Any, page: Path, javascript: bool) -> None:
    with opened(browser, page, width=360, height=740, javascript=javascript) as seen:
        # Without scripts of its own the page can still be looked into.
        seen.page.evaluate(
            "document.querySelectorAll('details').forEach((d) => d.setAttribute('open', ''))"
        )
        width = seen.page.evaluate("document.documentElement.scrollWidth")
        assert width == 360
        beyond = seen.page.evaluate(
            """[...document.querySelectorAll("main *")].filter((e) => {
                 const box = e.getBoundingClientRect();
                 return box.width && box.right > 361 && !e.closest(".scroll, .code");
               }).map((e) => e.outerHTML.slice(0, 80))"""
        )
        assert beyond == []


def test_without_scripts_everything_can_be_read_and_played(browser: Any, page: Path) -> None:
    with opened(browser, page, javascript=False) as seen:
        count = seen.page.locator(".cluster").count()
        assert count == 8
        assert all(seen.page.locator(".cluster").nth(i).is_visible() for i in range(count))
        assert seen.page.locator(".controls").is_hidden()
        video = seen.page.locator(".clip video").first
        assert video.is_visible()
        assert video.get_attribute("controls") is not None
        assert seen.page.locator(".chart polyline").first.is_visible()
        assert seen.page.locator(".map circle title").count() > 30


_CONTRAST = """
() => {
  // Colours as a canvas paints them, so that any notation is understood.
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 1;
  const pen = canvas.getContext("2d", {willReadFrequently: true});
  const rgb = (colour) => {
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 1, 1);
    return [...pen.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => v / 255).map(
      (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = rgb(getComputedStyle(e).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255, 255];
  };
  const worst = {};
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !element.checkVisibility() || element.closest("script, title, .skip")) continue;
    const style = getComputedStyle(element);
    const ink = rgb(element instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [light(ink), light(behind(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    const name = `${element.tagName}.${element.className.baseVal ?? element.className}`;
    worst[name] = Math.min(worst[name] ?? 99, ratio);
  }
  return worst;
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_both_schemes(browser: Any, page: Path, scheme: str) -> None:
    with opened(browser, page, scheme=scheme) as seen:
        seen.page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
        found = seen.page.evaluate(_CONTRAST)
        assert len(found) > 20
        # WCAG 2.2, 1.4.3: 4.5 for text of usual size.
        assert {name: ratio for name, ratio in found.items() if ratio < 4.5} == {}
        paper = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
        channels = [int(x) for x in re.findall(r"\d+", paper)[:3]]
        assert (min(channels) > 200) == (scheme == "light")


def test_the_page_is_described_to_those_who_do_not_see_it(browser: Any, page: Path) -> None:
    with opened(browser, page) as seen:
        count = seen.page.locator
        assert count("h1").count() == 1
        levels = seen.page.evaluate(
            "[...document.querySelectorAll('main :is(h2,h3,h4,h5)')].map((h) => +h.tagName[1])"
        )
        assert all(b <= a + 1 for a, b in pairwise(levels))
        assert count("img:not([alt]), img[alt='']").count() == 0
        assert count("table:not(:has(caption))").count() == 0
        nameless = seen.page.evaluate(
            """[...document.querySelectorAll("button, input, video, main svg:not([aria-hidden])")]
                 .filter((e) => !(e.getAttribute("aria-label") || e.labels?.length ||
                                  e.textContent.trim())).length"""
        )
        assert nameless == 0


# --- runs that lack something


def test_without_clips(run: Path) -> None:
    html = written(run, replace(SMALL, media=False))
    assert "video/mp4" not in html
    assert "Near the middle" in html
    assert len(html) < 600_000


def test_without_features(run: Path) -> None:
    text = Text(written(run, replace(SMALL, samples=0))).text
    assert "No features were asked for (--samples 0)." in text
    assert "At random" in text
    assert "Near the middle" not in text.replace("“Near the middle”", "")


def test_an_unfinished_run_shows_its_newest_checkpoint(run: Path) -> None:
    (run / "checkpoints" / "encoders.safetensors").unlink()
    (run / "stages" / "pretrain.json").unlink()
    shutil.rmtree(run / "evaluations")
    (run / "stages" / "evaluate-clusters.json").unlink()
    newest = max((run / "checkpoints").glob("step-*.pt"))
    text = Text(written(run)).text
    assert "Pretraining is not finished (interrupted)" in text
    assert f"Encoders are those of {newest.name}" in text
    assert "No results: interrupted." in text
    # A damaged one is passed over, and stays as it is.
    newest.write_bytes(newest.read_bytes()[:1000])
    second = min((run / "checkpoints").glob("step-*.pt"))
    assert f"Encoders are those of {second.name}" in Text(written(run)).text
    assert newest.is_file()
    shutil.rmtree(run / "checkpoints")
    text = Text(written(run)).text
    assert "There are no encoders yet" in text
    assert "At random" in text


def test_damaged_encoders_are_passed_over(run: Path) -> None:
    weights = run / "checkpoints" / "encoders.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    newest = max((run / "checkpoints").glob("step-*.pt"))
    text = Text(written(run)).text
    assert text.count(f"Encoders are those of {newest.name}") == 2  # of the map and the filters
    assert "Near the middle" in text.replace("“Near the middle”", "")


def test_a_run_whose_data_are_gone(run: Path) -> None:
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("list.csv", "gone.csv"))
    text = Text(written(run)).text
    assert "gone.csv" in text
    assert "video cluster #" in text.replace("  ", " ")
    assert "Near the middle" not in text.replace("“Near the middle”", "")
    # Filters need the encoders alone.
    assert "of the video backbone, on the left before training, on the right after it." in text
    assert "cannot be put together" not in text


def test_a_run_whose_validation_data_are_gone(run: Path) -> None:
    recipe = run / "recipe.yaml"
    text = recipe.read_text()
    assert "  validation: null\n" in text
    gone = "  validation: {use: manifest, path: /nowhere/gone.csv}\n"
    recipe.write_text(
        text.replace("  validation: null\n", gone).replace("early_stop: null", "early_stop: 3")
    )
    text = Text(written(run)).text
    assert "gone.csv" not in text.partition("recipe.yaml,")[0]
    assert "Near the middle" in text.replace("“Near the middle”", "")
    assert "PCA of 2" in text


def test_a_run_whose_weights_to_begin_from_cannot_be_read(run: Path) -> None:
    recipe, weights = run / "recipe.yaml", run.parent / "begin.pt"
    recipe.write_text(recipe.read_text().replace("weights: null", f"weights: {weights}"))
    for content in (b"damaged", None):
        if content is None:
            weights.unlink()
        else:
            weights.write_bytes(content)
        text = Text(written(run)).text
        assert "Those before training cannot be shown" in text
        assert "begin.pt" in text
        assert "of the video backbone, trained." in text
        assert "PCA of 2" in text
        assert "Near the middle" in text.replace("“Near the middle”", "")


def test_files_that_cannot_be_read_any_more(run: Path) -> None:
    media = run.parent / "media"
    listed = (Path(str(next(iter(_paths(run))))).parent, media)
    shutil.copytree(listed[0], media)
    recipe = run / "recipe.yaml"
    table = (listed[0].parent / "list.csv").read_text().replace(str(listed[0]), str(media))
    (run.parent / "list.csv").write_text(table)
    recipe.write_text(recipe.read_text().replace(str(listed[0].parent), str(run.parent)))
    for path in media.iterdir():
        path.write_bytes(b"damaged")
    text = Text(written(run)).text
    assert "Too few samples have video to draw a map." in text
    assert text.count("None of its members could be looked at") == 6  # 3 clusters, 2 labelings
    assert "At random" not in text


def _paths(run: Path) -> list[str]:
    recipe = Records(run).recipe
    lines = Path(recipe["data"]["train"]["path"]).read_text().splitlines()[1:]
    return [line.split('"')[1] for line in lines]


def test_an_objective_that_does_not_cluster(run: Path) -> None:
    recipe = run / "recipe.yaml"
    text = recipe.read_text()
    block = re.search(r"^objective:\n(?:  .*\n|  - .*\n)+", text, flags=re.MULTILINE)
    assert block
    recipe.write_text(text.replace(block[0], "objective: {use: supervised}\n"))
    shutil.rmtree(run / "clusters")
    log = run / "log.jsonl"
    steps = [x for x in log.read_text().splitlines() if '"kind": "step"' in x]
    log.write_text("\n".join(steps) + "\n")
    text = Text(written(run)).text
    assert "There are no clusters" in text
    assert "No round reported figures" in text
    assert "PCA of 24 samples" in text


def test_labels_that_do_not_fit(run: Path) -> None:
    labels = next((run / "clusters").glob("round-02/audio.labels.npy"))
    np.save(labels, np.zeros(13, np.int32))
    assert "Clusters are of 13 samples, but the data now have 40" in Text(written(run)).text
    labels.write_bytes(b"damaged")
    text = Text(written(run)).text
    assert "audio.labels.npy cannot be read" in text
    assert "Near the middle" in text


def test_damaged_records_are_no_reason_to_show_nothing(run: Path) -> None:
    (run / "provenance.json").write_text("{")
    (run / "evaluations" / "clusters" / "tables.json").write_text("[")
    with open(run / "log.jsonl", "a") as file:
        file.write('{"kind": "step", "lo')
    text = Text(written(run)).text
    assert "provenance.json is missing or cannot be read" in text
    assert "its results cannot be read" in text
    assert "Learning rate" in text


@pytest.mark.parametrize(
    "damaged", ["evaluations/clusters/metrics.json", "stages/evaluate-clusters.json"]
)
@pytest.mark.parametrize("content", ["{", "[]", "{}", "[1]"])
@pytest.mark.parametrize("own", [True, False])
def test_damaged_records_are_said_beside_the_papers_figures(
    run: Path, monkeypatch: pytest.MonkeyPatch, damaged: str, content: str, own: bool
) -> None:
    other = run.with_name("other")
    for part in ("stages", "evaluations"):
        shutil.copytree(run / part, other / part)
    shutil.copy(run / "recipe.yaml", other)
    table = run.with_name("mine.yaml")
    table.write_text(
        "title: Purity\ncolumns: {video: {metric: clusters/video/purity}}\n"
        f"rows:\n  ours: {{run: {run.name}}}\n  theirs: {{run: other}}\n"
    )
    monkeypatch.setattr("mmssl.report.collect.shipped_tables", lambda: [("mine", table)])
    monkeypatch.setattr("mmssl.pipeline.tables.shipped_tables", lambda: [("mine", table)])
    ((run if own else other) / damaged).write_text(content)
    contents = collect(Records(run))
    said = " ".join(contents.missing.get("evaluations", ()))
    assert bool(contents.papers) != ("Purity: a record of this run or of one" in said)
    assert not (content == "{" and contents.papers)
    assert "Learning rate" in Text(render(contents)).text


def test_a_folder_that_cannot_be_written_is_said_first(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "report").write_text("a file")
    with monkeypatch.context() as patch:
        patch.setattr("mmssl.report.write.look", None)  # which would be the work
        with pytest.raises(UserError, match=r"index\.html cannot be written: File exists"):
            write_report(Records(run), SMALL, Silent())
    (run / "report").unlink()

    def full(path: Path, write: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mmssl.report.write.write_atomically", full)
    monkeypatch.setattr("mmssl.report.write.look", lambda *_: None)
    with pytest.raises(UserError, match=r"index\.html cannot be written: No space left"):
        write_report(Records(run), SMALL, Silent())


def test_another_process_may_write_a_report_too(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmssl.report.write.look", lambda *_: None)
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                           capture_output=True, text=True, check=True).stdout.strip()  # fmt: skip
    (run / "report").mkdir()
    for process in (ended, str(os.getppid())):
        (run / "report" / f".index.html.{process}.tmp").touch()
    write_report(Records(run), SMALL, Silent())
    names = {path.name for path in (run / "report").iterdir()}
    assert names == {"index.html", f".index.html.{os.getppid()}.tmp"}


def test_mistakes_are_one_line(home: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = mmssl("report", "nothing", cwd=home)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "there is no run 'nothing'" in done.stderr
    (run / "log.jsonl").unlink()
    (run / "provenance.json").unlink()
    with pytest.raises(UserError, match="has not begun") as caught:
        write_report(Records(run), SMALL, Silent())
    assert "\n" not in str(caught.value)
    assert not (run / "report").exists()
    (home / "runs" / "small2").mkdir(exist_ok=True)
    (home / "runs" / "small2" / "recipe.yaml").write_text("name: small2\n")
    monkeypatch.chdir(home)
    with pytest.raises(UserError, match="'small\\*' is 2 runs: name one of them"):
        report("small*")
    shutil.rmtree(home / "runs" / "small2")


# --- the page from made-up contents


def _contents(**fields: Any) -> Contents:
    return Contents(
        name="</title><script>alert(4)</script>",
        description=HOSTILE[1],
        folder=HOSTILE[0],
        made="now",
        version="0",
        stages=[StageState("pretrain", "failed", f"failed: {HOSTILE[3]}")],
        **fields,
    )


def test_hostile_text_in_every_place_stays_text(browser: Any, tmp_path: Path) -> None:
    member = Member(HOSTILE[3], HOSTILE[1])
    cluster = Cluster(0, 2, 0.5, [(HOSTILE[3], 0.5)], [member], [member], True)
    bad = {"split": HOSTILE[0], "row": HOSTILE[1], "id": HOSTILE[2], "reason": HOSTILE[3]}
    contents = _contents(
        facts={HOSTILE[0]: HOSTILE[1]},
        figures={HOSTILE[3]: HOSTILE[3]},
        recipe="\n".join(f"{text}: {text}" for text in HOSTILE),
        training=[Chart(HOSTILE[3], HOSTILE[3], [Series(HOSTILE[3], [1, 2], [1.0, 2.0])])],
        round_table=Table(HOSTILE[3], [HOSTILE[1]], [[HOSTILE[3]]]),
        labelings=[Labeling(HOSTILE[3], 1, 2, 2, [cluster], 1)],
        maps=[FeatureMap(HOSTILE[3], HOSTILE[1], [(0, 0)], [HOSTILE[3]], {"class": [HOSTILE[3]]})],
        evaluations=[
            EvaluationResult(
                HOSTILE[3], HOSTILE[1], {HOSTILE[3]: 1.0},
                [Table(HOSTILE[3], [HOSTILE[3]], [[HOSTILE[1]]])], {HOSTILE[3]: b""}, [bad],
            )
        ],
        skipped=[bad],
        provenance=[{"at": HOSTILE[3], "command": HOSTILE, "packages": {HOSTILE[3]: HOSTILE[1]}}],
        missing={"summary": [HOSTILE[3]], "map": [HOSTILE[1]]},
    )  # fmt: skip
    path = tmp_path / "page.html"
    path.write_text(render(contents), encoding="utf-8")
    images = [a.get("src") or "" for tag, a in Text(render(contents)).tags if tag == "img"]
    assert images
    assert all(source.startswith("data:") for source in images)
    with opened(browser, path) as seen:
        seen.page.locator(".map .legend button").click()
        assert (seen.dialogs, seen.asked, seen.violations()) == ([], [], [])
        assert [line for line in seen.said if "Failed to load" not in line] == []
        assert seen.page.evaluate("document.scripts.length") == 2
        assert seen.page.evaluate("document.title").startswith("</title><script>alert(4)</script>")
        assert seen.page.locator("[onerror]").count() == 0
        assert seen.page.locator(".map .legend bdi").text_content() == HOSTILE[3]


def test_a_column_of_the_paper_stands_beside_ours() -> None:
    table = Table("Fine-tuning", ["setting", "top-1", "paper"], [["full", 0.5, 0.868]])
    result = EvaluationResult("finetune", "finished", {"top1": 0.5}, [table])
    html = render(_contents(evaluations=[result]))
    assert re.search(r'<th scope="col" class="num paper"><bdi>paper</bdi>', html)
    assert re.search(r'<td class="num paper" data-raw="0.868"><bdi>0.8680</bdi>', html)


def test_what_is_looked_for_is_found_whatever_its_case(browser: Any, tmp_path: Path) -> None:
    member = Member("Straße İstanbul.mp4", "Groß")
    cluster = Cluster(0, 2, 0.5, [], [member], [], True)
    path = tmp_path / "page.html"
    html = render(_contents(labelings=[Labeling("video", 1, 2, 2, [cluster], 1)]))
    path.write_text(html, encoding="utf-8")
    with opened(browser, path) as seen:
        for text in ("straße", "STRAßE", "GROß", "İSTANBUL"):
            seen.page.locator("#cluster-filter").fill(text)
            assert len(_shown_clusters(seen)) == 1, text


def test_columns_of_a_long_table_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []

    class Pattern:
        def fullmatch(self, text: str) -> bool:
            looked.append(text)
            return text.isdecimal()

    monkeypatch.setattr("mmssl.report.page._NUMERIC", Pattern())
    table = Table("Long", ["words", "numbers"], [["a", str(i)] for i in range(300)])
    html = render(_contents(papers=[table]))
    assert html.count('<td class="num') == 300
    assert len(looked) < 1000


# --- the parts


def test_clusters_are_ranked_as_counted_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clustering, "_CHUNK", 64)  # so that counts are put together
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, 9, 500).astype(np.int32)
    labels[labels < 0] = IGNORE
    truth = np.where(rng.random(500) < 0.1, IGNORE, rng.integers(0, 4, 500)).astype(np.int32)
    classes = ["a", "b", "c", "d"]
    ranked, total = clustering.ranked(labels, truth, classes)
    assert total == len(set(labels[labels >= 0].tolist()))
    for cluster in ranked:
        members = [t for x, t in zip(labels, truth, strict=True) if x == cluster.index]
        known = [classes[t] for t in members if t != IGNORE]
        assert cluster.size == len(members)
        assert cluster.purity == pytest.approx(max(map(known.count, classes)) / len(known))
        for name, share in cluster.leading:
            assert share == pytest.approx(known.count(name) / len(known))
    purities = [cluster.purity for cluster in ranked]
    assert purities == sorted(purities, reverse=True)
    without, _ = clustering.ranked(labels, None, [])
    assert [c.size for c in without] == sorted((c.size for c in without), reverse=True)
    assert {c.purity for c in without} == {None}


def test_drawn_members_belong_to_their_cluster_and_follow_the_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(clustering, "_CHUNK", 32)
    labels = np.random.default_rng(1).integers(0, 3, 200).astype(np.int32)
    labeling = clustering.Labels("video", 1, labels)
    one = clustering.members_in_random_order(labeling, [0, 2], most=10, seed=5)
    again = clustering.members_in_random_order(labeling, [2], most=10, seed=5)
    other = clustering.members_in_random_order(labeling, [2], most=10, seed=6)
    for cluster, rows in one.items():
        assert len(set(rows.tolist())) == 10
        assert (labels[rows] == cluster).all()
    assert one[2].tolist() == again[2].tolist() != other[2].tolist()


def test_of_many_clusters_both_ends_are_shown() -> None:
    assert clustering.spread(range(10), 4) == [0, 3, 6, 9]
    assert clustering.spread(range(3), 4) == [0, 1, 2]
    assert clustering.spread(range(10), 1) == [0]
    assert clustering.spread(range(10), 0) == []


def test_nearest_members_are_those_with_the_smallest_distance() -> None:
    rng = np.random.default_rng(2)
    rows = np.arange(0, 60, 2)
    pooled = rng.normal(size=(30, 5)) * [1, 10, 0.1, 1, 0] + 3
    every = np.ones(30, bool)
    found = Found(
        rows,
        {"video": pooled, "audio": pooled[:, ::-1]},
        dict.fromkeys(("video", "audio"), every),
        {},
    )
    kept, features = found.of("video")
    # Independently: sklearn's scaler and normalizer, and a loop.
    from sklearn.preprocessing import StandardScaler, normalize

    expected = normalize(StandardScaler().fit_transform(pooled))
    np.testing.assert_allclose(features, expected, atol=1e-9)
    members = np.array([0, 3, 4, 8, 20, 33, 58])  # odd rows have no features
    nearest = nearest_first(kept, features, members)
    there = [0, 4, 8, 20, 58]
    middle = np.mean([expected[r // 2] for r in there], axis=0)
    assert nearest.tolist() == sorted(
        there, key=lambda r: np.linalg.norm(expected[r // 2] - middle)
    )
    _, both = found.of("joint")
    assert both.shape == (30, 10)


def test_a_map_keeps_neighbours_and_follows_the_seed() -> None:
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(3, 8)) * 8
    groups = np.repeat([0, 1, 2], 30)
    features = centres[groups] + rng.normal(size=(90, 8))
    points, method = project(features, seed=1)
    assert "t-SNE of 90" in method
    assert points.min() >= 0
    assert points.max() <= 1
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (groups[distance.argmin(1)] == groups).mean() > 0.95
    np.testing.assert_array_equal(points, project(features, seed=1)[0])
    few, method = project(features[:5], seed=1)
    assert "PCA of 5" in method
    assert few.shape == (5, 2)
    assert np.isfinite(project(np.zeros((40, 8)), seed=1)[0]).all()


def test_charts_put_values_where_they_belong() -> None:
    chart = draw(Chart("Loss", "step", [Series("loss", [0, 50, 100], [0.0, 10.0, 5.0])]))
    (left, right, top, bottom), line = chart.frame, chart.lines[0]
    points = [tuple(map(float, p.split(","))) for p in line.points.split()]
    assert [x for x, _ in points] == [left, (left + right) / 2, right]
    assert points[0][1] == bottom < HEIGHT
    assert points[1][1] > top
    assert points[2][1] == pytest.approx((points[0][1] + points[1][1]) / 2, abs=0.11)
    assert "begins at 0 and ends at 5, lowest 0, highest 10" in chart.summary
    # A thousand values become means of their neighbours, and a band from least to largest.
    y = np.random.default_rng(4).normal(size=1000)
    xs, means, low, high = thinned(np.arange(1000), y, most=100)
    np.testing.assert_allclose(means, y.reshape(100, 10).mean(1))
    np.testing.assert_array_equal(low, y.reshape(100, 10).min(1))
    np.testing.assert_array_equal(high, y.reshape(100, 10).max(1))
    np.testing.assert_allclose(xs, np.arange(1000).reshape(100, 10).mean(1))
    rates = draw(Chart("lr", "step", [Series("lr", [1, 2, 3], [0.0002, 0.0004, 0.00065])]))
    assert [text for _, text in rates.y_ticks] == ["0.0002", "0.0004", "0.0006"]
    tiny = draw(Chart("lr", "step", [Series("lr", [1, 2], [1.2e-7, 2e-7])]))
    assert [text for _, text in tiny.y_ticks][:2] == ["1.2e-7", "1.4e-7"]
    flat = draw(Chart("lr", "step", [Series("lr", [3], [0.1])]))
    assert len(flat.lines[0].dots) == 1
    # What stays the same is told from 0 by the axis.
    for value in (0.001, -2e6):
        constant = draw(Chart("lr", "step", [Series("lr", [1, 900], [value, value])]))
        named = [float(text.replace("M", "e6")) for _, text in constant.y_ticks]
        assert value in named
        assert all(abs(tick - value) < 0.1 * abs(value) for tick in named)
    zero = draw(Chart("lr", "step", [Series("lr", [1, 900], [0.0, 0.0])]))
    assert "0" in [text for _, text in zero.y_ticks]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.013, 0.017), (-3, 1200), (1e-7, 3e-6)])
def test_ticks_are_round_and_within(low: float, high: float) -> None:
    found = ticks(low, high, 5)
    assert 2 <= len(found) <= 12
    assert all(low - 1e-9 * (high - low) <= t <= high + 1e-9 * (high - low) for t in found)
    steps = np.diff(found)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)


def test_numbers_are_written_for_people() -> None:
    assert [shown(x) for x in (None, 12, 1234567, 0.0, 0.12345, 12.3456, 5.630141, 3.0)] == [
        "–", "12", "1\u202f234\u202f567", "0", "0.1235", "12.35", "5.630", "3",
    ]  # fmt: skip
    assert [shown(x) for x in (1e-5, 2.5e9, float("nan"), "47 %", True)] == [
        "1.00e-05", "2.50e+09", "nan", "47 %", "True",
    ]  # fmt: skip


def test_not_a_number_in_the_log_is_left_out(run: Path) -> None:
    with open(run / "log.jsonl", "a") as file:
        file.write('{"kind": "step", "step": 99, "round": 2, "loss": null, "lr": 0.1}\n')
    charts = {chart.title: chart for chart in collect(Records(run)).training}
    assert 99 not in charts["Loss"].series[0].x
    assert 99 in charts["Learning rate"].series[0].x


# --- clips


def _decode(clip: bytes) -> tuple[list[np.ndarray], np.ndarray, int]:
    frames, sound, rate = [], [], 0
    with av.open(io.BytesIO(clip)) as container:
        for frame in container.decode(*container.streams):
            if isinstance(frame, av.VideoFrame):
                frames.append(frame.to_ndarray(format="rgb24"))
            else:
                assert isinstance(frame, av.AudioFrame)
                sound.append(frame.to_ndarray()[0])
                rate = frame.sample_rate
    return frames, np.concatenate(sound) if sound else np.empty(0), rate


def test_a_clip_shows_the_middle_of_its_sample(tmp_path: Path) -> None:
    path = tmp_path / "long.mp4"
    # Ten seconds; the brightness of a frame tells its second, the sound's pitch the half.
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=10, options={"g": "30"})
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        audio = out.add_stream("aac", rate=32000, layout="stereo")
        for i in range(100):
            picture = np.full((64, 96, 3), 20 + 2 * i, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = i
            out.mux(video.encode(frame))
        out.mux(video.encode())
        t = np.arange(320_000) / 32_000
        wave = np.sin(2 * np.pi * np.where(t < 5, 500, 2000) * t).astype(np.float32) * 0.5
        for first in range(0, len(wave), 1024):
            part = np.stack([wave[first : first + 1024]] * 2)
            chunk = av.AudioFrame.from_ndarray(part, format="fltp", layout="stereo")
            chunk.sample_rate, chunk.pts = 32_000, first
            out.mux(audio.encode(chunk))
        out.mux(audio.encode())
    found = excerpt(Sample("long", str(path)), limit=60)
    assert found.trouble == ""
    assert (found.width, found.height, found.has_video) == (240, 160, True)
    assert found.clip is not None
    frames, sound, rate = _decode(found.clip)
    assert len(frames) == 24
    assert frames[0].shape == (160, 240, 3)
    seconds = [(frame.mean() - 20) / 20 for frame in frames]
    # Each moment shows the frame that is seen then, of which there are ten a second.
    np.testing.assert_allclose(seconds, np.floor(40.01 + np.arange(24) / 1.2) / 10, atol=0.15)
    half = rate  # a second
    for part, pitch in (
        (sound[2000 : half - 2000], 500),
        (sound[half + 3000 : 2 * half - 2000], 2000),
    ):
        spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part))))
        assert spectrum.argmax() * rate / len(part) == pytest.approx(pitch, rel=0.01)
    from PIL import Image

    strip = np.asarray(Image.open(io.BytesIO(found.strip or b"")).convert("RGB")).astype(float)
    assert strip.shape == (80, 480, 3)
    brightness = [strip[:, 120 * i + 20 : 120 * i + 100].mean() for i in range(4)]
    assert brightness == sorted(brightness)
    assert brightness[-1] - brightness[0] == pytest.approx(1.5 * 20, abs=8)
    heard = np.asarray(Image.open(io.BytesIO(found.sound or b"")).convert("L")).astype(float)
    loudest = heard.argmax(axis=0)
    width = heard.shape[1]
    # Pitch goes upwards, so the higher one stands nearer to the upper edge.
    assert np.median(loudest[: width // 2 - 5]) > np.median(loudest[width // 2 + 5 :])


def test_a_part_of_a_long_file_and_what_cannot_be_read(tmp_path: Path, finished: Path) -> None:
    path = _paths(finished)[0]
    part = excerpt(Sample("part", path, start=0.25, end=0.75), limit=60)
    assert part.clip is not None
    assert len(_decode(part.clip)[0]) == 6
    assert excerpt(Sample("none", None), limit=60).trouble == "has no file to show"
    assert "no such file" in excerpt(Sample("x", str(tmp_path / "x.mp4")), limit=60).trouble
    (tmp_path / "bad.mp4").write_bytes(b"\0" * 4096)
    assert excerpt(Sample("bad", str(tmp_path / "bad.mp4")), limit=60).trouble
    from PIL import Image

    Image.new("RGB", (64, 48), (200, 0, 0)).save(tmp_path / "picture.png")
    picture = excerpt(Sample("picture", str(tmp_path / "picture.png")), limit=60)
    assert (picture.clip, picture.trouble) == (None, "")
    assert picture.strip is not None


def test_sound_alone_has_a_clip_too(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "tone.wav"), "w") as out:
        stream = out.add_stream("pcm_s16le", rate=16_000, layout="mono")
        wave = (8000 * np.sin(np.arange(16_000) / 5)).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
        frame.sample_rate = 16_000
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    found = excerpt(Sample("tone", str(tmp_path / "tone.wav")), limit=60)
    assert found.clip is not None
    assert (found.has_video, found.strip) == (False, None)
    assert found.sound is not None
    assert len(_decode(found.clip)[1]) == pytest.approx(24_000, rel=0.1)


# --- filters


def test_stems_of_networks_are_found() -> None:
    from mmssl_backbones.audio_resnet import ResNet18Audio
    from mmssl_backbones.video_resnet import r2plus1d_18, r3d_18

    def shapes(network: nn.Module) -> list[list[int]]:
        return [list(module.weight.shape) for _, module in stem_convolutions(network)]

    assert shapes(r2plus1d_18()) == [[45, 3, 1, 7, 7], [64, 45, 3, 1, 1]]
    assert shapes(r3d_18(width=0.25)) == [[16, 3, 3, 7, 7]]
    assert shapes(ResNet18Audio(width=0.25)) == [[16, 1, 7, 7]]
    two = nn.ModuleDict({"slow": nn.Conv3d(3, 8, (1, 7, 7)), "fast": nn.Conv3d(3, 4, (5, 7, 7))})
    assert shapes(two) == [[8, 3, 1, 7, 7], [4, 3, 5, 7, 7]]
    assert shapes(nn.Sequential(nn.Linear(3, 4))) == []
    with pytest.raises(ValueError, match="no convolution"):
        filter_figure(None, nn.Linear(3, 4))


def test_filters_are_drawn_as_their_weights_say() -> None:
    torch.manual_seed(0)
    space = nn.Conv3d(3, 20, (1, 7, 7))
    picture = _tiles(space)
    weight = space.weight.detach().numpy()
    assert picture.shape == (2 * 8 - 1, 16 * 8 - 1, 3)
    for number in (0, 15, 16, 19):
        top, left = number // 16 * 8, number % 16 * 8
        own = weight[number, :, 0]
        for row in range(7):
            for column in range(7):
                expected = (own[:, row, column] - own.min()) / (own.max() - own.min())
                np.testing.assert_allclose(picture[top + row, left + column], expected, atol=1e-6)
    time = nn.Conv3d(45, 64, (3, 1, 1))
    picture = _tiles(time)
    weight = time.weight.detach().numpy()
    assert picture.shape[:2] == (22 * 4 - 1, 3 * 46 - 1)
    # Filter 4 is the second of the second row; redder than blue where it adds.
    tile = picture[4:7, 46 : 46 + 45]
    np.testing.assert_array_equal(tile[..., 0] > tile[..., 2], weight[4, :, :, 0, 0].T > 0)


def test_the_figure_has_both_networks_side_by_side() -> None:
    from mmssl_backbones.video_resnet import r2plus1d_18

    torch.manual_seed(0)
    before, after = r2plus1d_18(width=0.25), r2plus1d_18(width=0.25)
    figure = filter_figure(before, after, titles=("untrained", "trained"))
    titles = [part.get_suptitle() for part in figure.subfigs]
    assert titles == ["untrained", "trained"]
    drawn = [axes.images[0].get_array() for part in figure.subfigs for axes in part.axes]
    networks = [module for network in (before, after) for _, module in stem_convolutions(network)]
    for picture, module in zip(drawn, networks, strict=True):
        np.testing.assert_array_equal(np.asarray(picture), _tiles(module))
    assert len(filter_figure(None, after).subfigs) == 1


def test_the_papers_figures_stand_beside_the_runs(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = json.loads((run / "evaluations" / "clusters" / "metrics.json").read_text())
    table = tmp_path / "mine.yaml"
    table.write_text(
        "title: Purity\nsource: a paper\n"
        "columns: {video: {metric: clusters/video/purity}}\n"
        f"rows:\n  ours: {{paper: {{video: 12.5}}, run: {run.name}}}\n"
        "  theirs: {paper: {video: 70}, run: another}\n"
    )
    other = tmp_path / "other.yaml"
    other.write_text(table.read_text().replace(f"run: {run.name}", "run: yet-another"))
    known = [("mine", table), ("other", other)]
    monkeypatch.setattr("mmssl.report.collect.shipped_tables", lambda: known)
    monkeypatch.setattr("mmssl.pipeline.tables.shipped_tables", lambda: known)
    (found,) = collect(Records(run)).papers
    assert found.title == "Purity (a paper)"
    assert [list(row) for row in found.rows] == [
        ["ours", "12.5", f"{100 * metrics['video/purity']:.1f}"],
        ["theirs", "70.0", "not run"],
    ]
    assert "Beside the paper" in render(_contents(papers=[found]))

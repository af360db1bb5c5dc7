"""A real browser without a window: the system's Chromium, driven through its DevTools."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")

# Whatever the page's policy forbids is an event; a page opens with a list of them.
_WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) =>
  window.violations.push(`${event.violatedDirective}: ${event.blockedURI}`));
"""


@contextmanager
def chromium() -> Iterator[Any]:
    """The running browser; a test that needs it is skipped where there is none, and fails in CI."""
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        found = None
    if found is None:
        _go_without("needs Chromium (apt-get install chromium) and playwright")
    with sync_playwright() as playwright:
        # Its sandbox needs rights that a container's root does not have.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        try:
            browser = playwright.chromium.launch(executable_path=found, args=arguments)
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "page.html").write_text("<title>opened</title>")
                page = browser.new_page()
                page.goto((Path(folder) / "page.html").as_uri())
                assert page.title() == "opened"
                page.close()
        except (Error, AssertionError) as error:  # a snap, for one, may not read /tmp
            _go_without(f"{found} opens no page from disk: {str(error).partition(chr(10))[0]}")
        try:
            yield browser
        finally:
            browser.close()


def _go_without(reason: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass
class Opened:
    """A page that is open, and what it did that it should not.

    Attributes:
        page: playwright's.
        said: what it wrote to the console, uncaught errors among it.
        asked: addresses that it asked for, but for its own and what it holds itself.
        dialogs: what ``alert`` and its kin showed.
    """

    page: Any
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)

    def violations(self) -> list[str]:
        """What the page tried against its own policy."""
        found: list[str] = self.page.evaluate("window.violations")
        return found


@contextmanager
def opened(
    browser: Any,
    path: Path,
    *,
    width: int = 1280,
    height: int = 900,
    scheme: str = "light",
    javascript: bool = True,
    calm: bool = True,
) -> Iterator[Opened]:
    """Open a file as a person does, from disk.

    Args:
        browser: of `chromium`.
        path: the page.
        width: of the window.
        height: of the window.
        scheme: ``"light"`` or ``"dark"``, as the person prefers.
        javascript: does the browser run scripts?
        calm: does the person ask for less motion?
    """
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        reduced_motion="reduce" if calm else "no-preference",
        java_script_enabled=javascript,
    )
    try:
        page = context.new_page()
        page.add_init_script(_WATCH)
        seen = Opened(page)
        page.on("console", lambda message: seen.said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: seen.said.append(f"uncaught: {error}"))

        def dialog(box: Any) -> None:
            seen.dialogs.append(box.message)
            box.dismiss()

        page.on("dialog", dialog)
        own = path.resolve().as_uri()
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith(("data:", own)) else seen.asked.append(request.url)
            ),
        )
        page.goto(own)
        yield seen
    finally:
        context.close()

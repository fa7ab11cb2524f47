"""One visit per page of the built book: what a browser without a network saw there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}
ARGUMENTS = [
    "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync",
    "--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND",
]
AXE_OPTIONS = {"resultTypes": ["violations"], "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}
TYPESET = """() => !window.MathJax || !document.querySelector('.math')
    || document.querySelectorAll('mjx-container').length > 0"""


@dataclass
class Visit:
    """What one page showed."""

    page: str
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    formulas: int = 0
    typeset: int = 0
    unreadable: list[str] = field(default_factory=list)
    phone_width: int = 0
    wide: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)


def pages() -> list[str]:
    """Return the pages of the built book, relative to its folder."""
    return sorted(path.relative_to(HTML).as_posix() for path in HTML.rglob("*.html") if "_static" not in path.parts)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test that takes `page` every page."""
    if "page" in metafunc.fixturenames:
        metafunc.parametrize("page", pages() or [pytest.param("", marks=pytest.mark.xfail(run=False, strict=True,
                             reason="the book is not built: make book"))])


@pytest.fixture(scope="session", autouse=True)
def built_book() -> Path:
    """Return the folder of pages; without one there is nothing to check."""
    if not (HTML / "intro.html").is_file():
        pytest.fail("the book is not built: run `make book` first", pytrace=False)
    return HTML


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Start a headless Chromium that can reach no host."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = os.environ.get("LOSSLAND_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if program is None:
        message = "there is no Chromium: install Debian's chromium, or name one in LOSSLAND_CHROMIUM"
        pytest.fail(message, pytrace=False) if os.environ.get("CI") == "true" else pytest.skip(message)
    from playwright.sync_api import sync_playwright

    arguments = ARGUMENTS + (["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else [])
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, headless=True, args=arguments)
        yield running
        running.close()


def axe_source() -> str:
    """Return axe-core's script, which comes with the package axe-playwright-python."""
    spec = find_spec("axe_playwright_python")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).with_name("axe.min.js").read_text(encoding="utf-8")


def serious(tab: Any, theme: str) -> list[str]:
    """Return the critical and serious faults that axe finds in one colour theme, one line each."""
    tab.evaluate("theme => { document.documentElement.dataset.theme = theme }", theme)
    tab.wait_for_timeout(400)  # the theme fades colours
    found = tab.evaluate("options => axe.run(document, options)", AXE_OPTIONS)["violations"]
    return [
        f"{theme}: {fault['id']} ({fault['impact']}): {fault['help']}: {node['target']} {node['html'][:160]}"
        for fault in found if fault["impact"] in ("critical", "serious") for node in fault["nodes"][:4]
    ]


def look(tab: Any, visit: Visit) -> None:
    """Record formulas, faults and the width on a phone of the page in a tab."""
    visit.formulas = tab.locator(".math").count()
    visit.typeset = tab.locator("mjx-container svg").count()
    visit.unreadable = tab.locator("mjx-merror, [data-mjx-error]").all_inner_texts()
    body = tab.locator("body").inner_text()
    visit.unreadable += [mark for mark in ("\\(", "\\[", "$$", "\\begin{") if mark in body and visit.formulas]
    tab.evaluate(axe_source())
    visit.violations = serious(tab, "light") + serious(tab, "dark")
    tab.set_viewport_size(PHONE)
    tab.wait_for_timeout(150)
    visit.phone_width = tab.evaluate("document.documentElement.scrollWidth")
    visit.wide = tab.evaluate("""width => [...document.querySelectorAll('main *')]
        .filter(e => e.getBoundingClientRect().right > width + 1).slice(0, 5).map(e => e.outerHTML.slice(0, 120))""",
                              PHONE["width"])


@pytest.fixture(scope="session")
def visit(browser: Any) -> Any:
    """Return a function: page -> Visit. A page is opened once, whatever the number of tests."""

    @cache
    def open_page(page: str) -> Visit:
        seen = Visit(page)
        context = browser.new_context(viewport=DESK, offline=True)
        tab = context.new_page()
        tab.on("request", lambda request: seen.requests.append(request.url))
        tab.on("websocket", lambda socket: seen.requests.append(socket.url))
        tab.on("requestfailed", lambda request: seen.errors.append(f"failed: {request.url}"))
        tab.on("console", lambda message: seen.errors.append(message.text) if message.type == "error" else None)
        tab.on("pageerror", lambda error: seen.errors.append(str(error)))
        tab.goto((HTML / page).as_uri(), wait_until="load")
        tab.wait_for_function(TYPESET, timeout=20_000)
        tab.evaluate("() => window.MathJax && MathJax.startup ? MathJax.startup.promise.then(() => 0) : 0")
        look(tab, seen)
        context.close()
        return seen

    return open_page

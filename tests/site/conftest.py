"""One visit per page of the built book; a page is opened once, whatever the number of tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from offline_browser import ARGUMENTS, DESK, HTML, TYPESET, Visit, look, pages


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test that takes `page` every page."""
    if "page" in metafunc.fixturenames:
        found = pages() or ["no-page"]  # without pages `built_book` fails every test
        # A page's tests go to one worker, so that it is opened once.
        metafunc.parametrize("page", [pytest.param(page, marks=pytest.mark.xdist_group(page)) for page in found])


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


@pytest.fixture(scope="session")
def visit(browser: Any) -> Callable[[str], Visit]:
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

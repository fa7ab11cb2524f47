"""What a browser without a network sees on a page of the built book."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}
ARGUMENTS = [
    "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync",
    "--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND",
]
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]
AXE_OPTIONS = {"resultTypes": ["violations"], "preload": False, "runOnly": RULES}  # preload would fetch the styles
TYPESET = """() => !window.MathJax || !document.querySelector('.math')
    || document.querySelectorAll('mjx-container').length > 0"""

WIDE = """width => {
    const scrolls = e => e && (/auto|scroll|hidden/.test(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
    const wide = e => e.getBoundingClientRect().right > width + 1 && !scrolls(e);
    return [...document.querySelectorAll('main *')].filter(wide).slice(0, 5).map(e => e.outerHTML.slice(0, 120));
}"""


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
    visit.wide = tab.evaluate(WIDE, PHONE["width"])

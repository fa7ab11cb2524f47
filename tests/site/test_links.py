"""The files of the built book: links, images, alternative texts, tables, downloads, size."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup
from offline_browser import HTML, ROOT

MEGABYTES = 15
OUTSIDE = {"http", "https", "mailto"}


@cache
def parsed(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


@cache
def anchors(path: Path) -> set[str]:
    named = {element["id"] for element in parsed(path).find_all(id=True)}
    return named | {element["name"] for element in parsed(path).find_all("a", attrs={"name": True})}


def fault_of_link(page: Path, link: str) -> str | None:
    """Return what is wrong with a link on a page, None where it holds."""
    parts = urlsplit(link)
    if parts.scheme in OUTSIDE or link.startswith(("data:", "javascript:", "about:")):
        return None
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if not target.is_file():
        return f"{link}: no such file"
    if parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in anchors(target):
        return f"{link}: no such anchor"
    return None


def test_links_and_anchors_hold(page):
    path = HTML / page
    links = [element["href"] for element in parsed(path).find_all(["a", "link"], href=True) if element["href"] != "#"]
    faults = {fault_of_link(path, link) for link in links} - {None}
    assert not faults


def test_scripts_images_and_styles_are_local_files(page):
    path = HTML / page
    sources = [element["src"] for element in parsed(path).find_all(src=True)]
    sources += [element["href"] for element in parsed(path).find_all("link", rel=["stylesheet", "preload"])]
    remote = [source for source in sources if urlsplit(source).scheme in OUTSIDE or source.startswith("//")]
    assert not remote
    assert not {fault_of_link(path, source) for source in sources} - {None}


def test_figures_have_alternative_texts(page):
    bare = [str(image)[:120] for image in parsed(HTML / page).find_all("img") if not image.get("alt", "").strip()]
    assert not bare


def test_alternative_texts_are_no_file_names(page):
    texts = [image.get("alt", "") for image in parsed(HTML / page).select("main img")]
    assert not [text for text in texts if text.endswith((".png", ".svg")) or "/" in text and " " not in text]


def test_tables_have_headers(page):
    tables = parsed(HTML / page).select("main table:not(.indextable)")
    assert not [str(table)[:160] for table in tables if not table.find("th")]


def test_tables_of_data_have_captions_and_scopes(page):
    tables = parsed(HTML / page).select(".cell_output table")
    assert not [str(table)[:160] for table in tables if not (table.caption and table.caption.get_text(strip=True))]
    assert not [str(cell) for table in tables for cell in table.find_all("th") if not cell.get("scope")]


def test_site_is_small():
    size = sum(path.stat().st_size for path in HTML.rglob("*") if path.is_file())
    assert size < MEGABYTES * 1e6


CHAPTERS = [*sorted((ROOT / "book" / "chapters").glob("[0-9]*.ipynb")), *sorted((ROOT / "book").glob("*.ipynb"))]


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_is_rendered_and_can_be_downloaded(chapter):
    page = (HTML / chapter.relative_to(ROOT / "book")).with_suffix(".html")
    links = [link["href"] for link in parsed(page).find_all("a", href=True) if link["href"].endswith(".ipynb")]
    assert links
    assert (page.parent / links[0]).resolve().read_bytes() == chapter.read_bytes()


def test_no_path_of_this_machine_is_in_the_pages(page):
    assert str(ROOT) not in (HTML / page).read_text(encoding="utf-8")

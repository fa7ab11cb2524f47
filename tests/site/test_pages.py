"""Every page of the built book, opened from its file with no network."""

from __future__ import annotations

from offline_browser import PHONE


def test_page_asks_nothing_of_the_network(visit, page):
    outside = [url for url in visit(page).requests if not url.startswith(("file:", "data:", "blob:", "about:"))]
    assert not outside


def test_page_has_no_script_error_and_no_missing_file(visit, page):
    assert not visit(page).errors


def test_mathematics_is_typeset(visit, page):
    seen = visit(page)
    assert seen.typeset >= seen.formulas
    assert not seen.unreadable


def test_axe_finds_nothing_critical_or_serious(visit, page):
    assert not visit(page).violations, "\n".join(visit(page).violations)


def test_page_fits_a_phone(visit, page):
    assert visit(page).phone_width <= PHONE["width"], visit(page).wide

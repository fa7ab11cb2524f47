"""What a reader does on the pages: search, move a slider with the keyboard, switch to the dark theme."""

from __future__ import annotations

import pytest
from offline_browser import DESK, HTML, pages

MOVED = """input => {
    let frame = input.parentElement;
    while (frame && !frame.querySelector('svg')) frame = frame.parentElement;
    return frame ? frame.innerHTML : '';
}"""


@pytest.fixture()
def tab(browser):
    context = browser.new_context(viewport=DESK, offline=True)
    yield context.new_page()
    context.close()


def test_search_finds_a_page_from_a_file(tab):
    tab.goto((HTML / "search.html").as_uri() + "?q=notation")
    tab.wait_for_selector("#search-results ul.search li a", timeout=20_000)
    assert any("notation.html" in link.get_attribute("href") for link in tab.locator("#search-results li a").all())


def test_there_is_one_search_field_in_the_navigation(tab):
    tab.goto((HTML / "intro.html").as_uri())
    assert tab.locator("input[type=search]:visible").count() <= 1


def test_sliders_answer_the_keyboard(tab):
    still = []
    for page in pages():
        if 'type="range"' not in (HTML / page).read_text(encoding="utf-8"):
            continue
        tab.goto((HTML / page).as_uri())
        for slider in tab.locator("input[type=range]").all():
            before = slider.evaluate(MOVED)
            slider.focus()
            slider.press("End" if slider.input_value() != slider.get_attribute("max") else "Home")
            still += [page] if slider.evaluate(MOVED) == before else []
    assert not still


def test_dark_theme_is_dark(tab):
    tab.emulate_media(color_scheme="dark")
    tab.goto((HTML / "intro.html").as_uri())
    colour = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(int(part) for part in colour.strip("rgba()").split(",")[:3]) < 80


ORDER = "table => [...table.tBodies[0].rows].map(row => row.cells[COLUMN].textContent)"


def test_sortable_tables_answer_the_keyboard(tab):
    stuck = []
    for page in pages():
        if "dataframe sortable" not in (HTML / page).read_text(encoding="utf-8"):
            continue
        tab.goto((HTML / page).as_uri())
        for table in tab.locator("table.sortable").all():
            heading = table.locator("th button").first
            heading.focus()
            orders = []
            for _ in range(2):
                heading.press("Enter")
                orders.append(table.evaluate(ORDER.replace("COLUMN", "0")))
            first = table.locator("th").first.get_attribute("aria-sort")
            stuck += [page] if orders[0] == orders[1] or first != "descending" else []
    assert not stuck

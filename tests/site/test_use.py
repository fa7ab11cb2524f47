"""What a reader does on the pages: search, go on by keyboard, move a slider, switch to the dark theme, print."""

from __future__ import annotations

import pytest
from offline_browser import DESK, HTML, ROOT, pages
from PIL import Image

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


CHAPTER = "chapters/02_preserving_distributions.html"  # with formulas, folded code, tables, a slider and pictures
PAPER = {"width": 680, "height": 960}  # an A4 page between its margins, in CSS pixels
FOCUS = """() => {
    const it = document.activeElement, style = getComputedStyle(it);
    const seen = (style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) > 0) || style.boxShadow !== 'none';
    return [it === document.body ? '' : it.outerHTML.slice(0, 100), seen];
}"""
CUT = """() => [...document.querySelectorAll('main *')].filter(e => e.scrollWidth > e.clientWidth + 2 && e.clientWidth
    && ['auto', 'scroll', 'hidden'].includes(getComputedStyle(e).overflowX) && e.offsetHeight > 4)
    .map(e => e.outerHTML.slice(0, 120))"""
CONTRAST = """selector => [...document.querySelectorAll(selector)].map(e => {
    const light = colour => colour.match(/[0-9.]+/g).slice(0, 3).map(part => part / 255)
        .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
        .reduce((sum, part, i) => sum + part * [0.2126, 0.7152, 0.0722][i], 0);
    let ground = e;
    while (ground.parentElement && /^rgba\\(.*, 0\\)$|transparent/.test(getComputedStyle(ground).backgroundColor)) ground = ground.parentElement;
    const both = [light(getComputedStyle(e).fill), light(getComputedStyle(ground).backgroundColor)].sort();
    return (both[1] + 0.05) / (both[0] + 0.05);
})"""


def test_skip_link_comes_first_and_leads_to_the_content(tab):
    tab.goto((HTML / CHAPTER).as_uri())
    tab.keyboard.press("Tab")
    assert "Skip to main content" in tab.evaluate("document.activeElement.textContent")
    tab.keyboard.press("Enter")
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.closest('main') !== null")


def test_focus_can_be_seen_wherever_the_keyboard_goes(tab):
    tab.goto((HTML / CHAPTER).as_uri())
    seen = []
    for _ in range(300):
        tab.keyboard.press("Tab")
        seen.append(tab.evaluate(FOCUS))
        if not seen[-1][0]:
            break
    assert len(seen) > 50
    assert not [what for what, visible in seen if what and not visible]


def test_printed_page_is_light_without_navigation_and_nothing_is_cut_off(tab):
    tab.emulate_media(color_scheme="dark", media="print")
    tab.set_viewport_size(PAPER)
    tab.goto((HTML / CHAPTER).as_uri())
    tab.wait_for_function("document.querySelectorAll('mjx-container').length > 0", timeout=20_000)
    theme = tab.evaluate("document.documentElement.dataset.theme")
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert (theme, tab.evaluate("document.documentElement.dataset.theme")) == ("dark", "light")
    for part in (".bd-sidebar-primary", ".bd-header-article", ".prev-next-footer", "input[type=range]"):
        assert not tab.locator(part).first.is_visible(), part
    assert not tab.evaluate(CUT)
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    assert tab.evaluate("document.documentElement.dataset.theme") == "dark"


def test_pictures_have_a_ground_of_their_own_in_either_theme():
    pictures = [Image.open(path) for path in (HTML / "_images").glob("*.png")]
    assert pictures
    assert not [one.filename for one in pictures if one.mode in ("RGBA", "LA") or "transparency" in one.info]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_letters_of_drawings_stand_out_from_their_ground(tab, scheme):
    tab.emulate_media(color_scheme=scheme)
    tab.goto((HTML / CHAPTER).as_uri())
    tab.wait_for_timeout(400)  # the theme fades colours
    found = tab.evaluate(CONTRAST, "main .output svg text")
    assert found and min(found) > 4.5


def test_status_page_lists_every_recorded_run(tab):
    tab.goto((HTML / "status.html").as_uri())
    rows = tab.locator("table.runs").last.locator("tbody tr").count()
    assert rows == len(list((ROOT / "book" / "results").glob("*/*.json")))


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

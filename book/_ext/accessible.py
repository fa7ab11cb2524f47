"""Make what pandas and the theme write readable by a screen reader and on a narrow screen.

Tables get a caption, scopes on their headers and a frame that scrolls on its own and can be reached by keyboard. A
table's caption comes from its cell's metadata: `mystnb: {table: {caption: ...}}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bs4 import BeautifulSoup, Tag
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform


def scope_headers(soup: BeautifulSoup, table: Tag) -> None:
    """Say of every header cell what it heads; an empty corner is a plain cell."""
    for cell in table.find_all("th"):
        in_head = cell.find_parent("thead") is not None
        if not cell.get_text(strip=True):
            cell.name = "td"
            continue
        span = "colspan" if in_head else "rowspan"
        cell["scope"] = ("col" if in_head else "row") + ("group" if int(cell.get(span, 1)) > 1 else "")


def accessible_tables(html: str, caption: str | None) -> str:
    """Return the HTML with captioned, scoped, scrollable tables; text without a table comes back as it is."""
    if "<table" not in html:
        return html
    soup = BeautifulSoup(html, "html.parser")
    for style in soup.find_all("style", attrs={"scoped": True}):
        style.decompose()
    for table in soup.find_all("table"):
        del table["border"]
        if caption and table.caption is None:
            heading = soup.new_tag("caption")
            heading.string = caption
            table.insert(0, heading)
        scope_headers(soup, table)
        if table.find_parent(attrs={"tabindex": "0"}):
            continue
        label = table.caption.get_text(" ", strip=True) if table.caption else "Table"
        frame = {"class": "table-scroll", "role": "region", "tabindex": "0", "aria-label": label}
        table.wrap(soup.new_tag("div", attrs=frame))
    return str(soup)


def table_caption(metadata: Mapping[str, Any]) -> str | None:
    """Return the caption that a cell's metadata gives its tables."""
    return metadata.get("mystnb", {}).get("table", {}).get("caption")


class AccessibleTables(SphinxPostTransform):
    """Rewrite the tables among the outputs of every cell, after myst-nb has chosen the MIME type."""

    default_priority = 300
    formats = ("html",)

    def run(self, **kwargs: Any) -> None:
        """Visit the outputs cell by cell, because the caption stands in the cell's metadata."""
        for cell in list(self.document.findall(nodes.container)):
            if cell.get("nb_element") != "cell_code":
                continue
            caption = table_caption(cell.get("cell_metadata", {}))
            for raw in list(cell.findall(nodes.raw)):
                if raw.get("format") == "html":
                    raw.children = [nodes.Text(accessible_tables(raw.astext(), caption))]
                    raw.rawsource = ""


def plain_citation_list(app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Take the role "list" from the list of citations: its entries have a role of their own, which no list may hold."""
    if "body" in context:
        listed, plain = '<div role="list" class="citation-list">', '<div class="citation-list">'
        context["body"] = context["body"].replace(listed, plain)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the transform and the handler."""
    app.add_post_transform(AccessibleTables)
    app.connect("html-page-context", plain_citation_list)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

"""A slider along a path: curves in inline SVG and an `<input type=range>`; no kernel, no network, no library."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from textwrap import fill
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from lossland.errors import choose
from lossland.figures.pictures import COLOURS, DASHES, METRICS, STYLE, WIDTH, canvas, legend, read, settle

# Units of the drawing: on a phone, 360 pixels wide, 14 of them are 12.6 pixels.
_WIDE, _LEFT, _RIGHT, _TOP, _PANEL, _GAP, _BOTTOM = 400, 52, 14, 24, 112, 34, 44
_DASHED = ("", ' stroke-dasharray="8 4"')
# Rules hang on a class made from the content: those of one slider reach neither another one nor the page.
_RULES = (
    ".ID{max-width:32rem;margin:0 auto}.ID>svg{display:block;width:100%;height:auto}.ID label{display:block}"
    ".ID text{font:14px sans-serif;fill:currentColor}"
    ".ID input{display:block;box-sizing:border-box;height:2.75rem;cursor:pointer;color:inherit;accent-color:COLOUR;"
    "width:calc(SHARE% + 16px);margin:0 0 0 calc(START% - 8px)}"
    ".ID input:focus-visible{outline:3px solid currentColor;outline-offset:-3px}"
    ".ID output{display:block;font-variant-numeric:tabular-nums}"
)
# An attribute, not a script element: it works where inserted scripts do not run, and needs neither ids nor globals.
_MOVE = (
    "const f=this.closest('[data-rows]'),i=+this.value,q=s=>f.querySelectorAll(s),b=q('b'),c=q('circle');"
    "f.dataset.rows.split('|')[i].split(' ').forEach((v,k)=>b[k].textContent=v);"
    "q('polyline').forEach((l,k)=>{const p=l.points[i];c[k].setAttribute('cx',p.x);c[k].setAttribute('cy',p.y);"
    "q('line').forEach(n=>{n.setAttribute('x1',p.x);n.setAttribute('x2',p.x)})});"
    "this.setAttribute('aria-valuetext',f.querySelector('output').textContent)"
)


@dataclass(frozen=True)
class Slider:
    """Curves along t with a marker that follows a slider; `slider` makes it.

    A notebook, and the book made from it, show the HTML; arrow, page, home and end keys move the slider. Where HTML is
    not shown the PNG stands in. Without JavaScript the curves and the values at the start remain.

    Attributes:
        html: About 5 kB for 61 points and two metrics.
        png: The curves alone.
        text: Title and description.
    """

    html: str
    png: bytes
    text: str

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str]:
        return {"text/html": self.html, "image/png": base64.b64encode(self.png).decode(), "text/plain": self.text}

    def __repr__(self) -> str:
        return self.text


def slider(frame: pd.DataFrame | Mapping[str, pd.DataFrame], *, title: str, alt: str,
           metrics: Sequence[str] = ("accuracy", "nll"), split: str = "test") -> Slider:
    """Return curves of metrics along t, with a slider that walks along them and prints the values.

    Args:
        frame: Table of `evaluate` (columns t, split and the metrics, one row per t and split), or two of them by name
            on the same t, to compare.
        title: What the drawing shows, in a few words; stands above it.
        alt: What is to be seen, in a sentence or two, for readers who do not see it.
        metrics: One panel each: "accuracy", "error", "ece" (per cent), "nll" (nats) or "distance" (l2).
        split: Which split.

    Returns:
        A value that displays itself; the same input gives the same bytes.

    Raises:
        ValueError: An empty title or alt, no or unknown metrics, an unknown split, a missing column, NaN or infinite
            values, fewer than two t, a t given twice, no table or more than two, tables on different t.
    """
    for name, text in (("title", title), ("alt", alt)):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{name} must be a text that is not empty, got {text!r}")
    if isinstance(metrics, str) or not len(metrics):
        raise ValueError(f"metrics must be a sequence of names such as ('accuracy', 'nll'), got {metrics!r}")
    for metric in metrics:
        choose("metrics", metric, METRICS)
    tables = {"": frame} if isinstance(frame, pd.DataFrame) else dict(frame)
    if not 1 <= len(tables) <= len(_DASHED):
        raise ValueError(f"frame must be one table, or one or two by name, got {len(tables)}: {list(tables)}")
    curves = {name: _curves(table, metrics, split, f"frame[{name!r}]") for name, table in tables.items()}
    grids = [curve.index.to_numpy() for curve in curves.values()]
    if not np.array_equal(grids[0], grids[-1]):
        raise ValueError(f"frame must hold tables on the same t, got {len(grids[0])} and {len(grids[-1])} different t")
    text = f"{title} ({split} split, slider over {len(grids[0])} points). {alt}"
    return Slider(_html(curves, title, alt, split), _still(curves, title, split), text)


def _curves(frame: pd.DataFrame, metrics: Sequence[str], split: str, name: str) -> pd.DataFrame:
    columns = {metric: read(frame, metric, name, ("t", "split")) for metric in metrics}
    choose("split", split, frame["split"].unique().tolist())
    table = pd.DataFrame({"t": frame["t"].astype(float), **columns})[frame["split"] == split]
    table = table.sort_values("t", kind="stable").set_index("t")
    if len(table) < 2 or table.index.has_duplicates:
        different = table.index.nunique()
        raise ValueError(f"{name} must have one row for each of at least two t, got {len(table)} rows on {different} t")
    broken = [metric for metric in metrics if not np.isfinite(table[metric]).all()]
    if broken:
        raise ValueError(f"{name} must be finite, got NaN or infinite values of {', '.join(broken)}")
    return table


def _html(curves: Mapping[str, pd.DataFrame], title: str, alt: str, split: str) -> str:
    first = next(iter(curves.values()))
    t, metrics = first.index.to_numpy(), list(first.columns)
    height = _TOP + len(metrics) * (_PANEL + _GAP) - _GAP + _BOTTOM
    panels = "".join(_panel(curves, metric, _TOP + k * (_PANEL + _GAP), split) for k, metric in enumerate(metrics))
    steps = 2 if np.diff(t).min() >= 0.01 else 3
    rows = [[f"{place:.{steps}f}"] for place in t]
    for curve in curves.values():
        for row, values in zip(rows, curve.itertuples(index=False), strict=True):
            row += [f"{value:.{METRICS[metric].decimals}f}" for metric, value in zip(metrics, values, strict=True)]
    says, spoken = _sentence(list(curves), metrics, rows[0])
    body = (
        f'<p><strong>{escape(title)}</strong></p><svg viewBox="0 0 {_WIDE} {height}" role="img">'
        f"<title>{escape(title)}</title><desc>{escape(alt)}</desc>{panels}{_abscissa(t, height)}</svg>"
        f'<label>Position t along the path<input type="range" min="0" max="{len(t) - 1}" value="0" autocomplete="off" '
        f'aria-valuetext="{escape(spoken)}" oninput="{escape(_MOVE)}"></label>'
        # aria-live off: the slider speaks its aria-valuetext, a live region would say everything twice.
        f'<output aria-live="off">{says}</output>'
    )
    data = "|".join(" ".join(row) for row in rows)
    name = "slider-" + hashlib.sha256((body + data).encode()).hexdigest()[:10]
    share, start = 100 * (_WIDE - _LEFT - _RIGHT) / _WIDE, 100 * _LEFT / _WIDE
    rules = _RULES.replace("ID", name).replace("SHARE", f"{share:g}").replace("START", f"{start:g}")
    style = f"<style>{rules.replace('COLOUR', COLOURS[0])}</style>"
    return f'<div class="{name}" role="group" aria-label="{escape(title)}" data-rows="{data}">{style}{body}</div>'


def _sentence(names: Sequence[str], metrics: Sequence[str], values: Sequence[str]) -> tuple[str, str]:
    # The same words twice, with and without tags; the handler later fills the <b> and reads the text back.
    rest, html, text = iter(values[1:]), f"t = <b>{values[0]}</b>", f"t = {values[0]}"
    for number, name in enumerate(names):
        swatch = (
            f'<br><svg width="34" height="12" aria-hidden="true"><path d="M0 6H34" stroke="{COLOURS[number]}" '
            f'stroke-width="3"{_DASHED[number]}/></svg>' if len(names) > 1 else ""
        )
        start = f" {name}: " if name else ": "
        values_here = [next(rest) for _ in metrics]
        pairs = list(zip((METRICS[metric] for metric in metrics), values_here, strict=True))
        html += swatch + escape(start) + ", ".join(f"{q.word} <b>{v}</b> {q.unit}".rstrip() for q, v in pairs)
        text += start + ", ".join(f"{q.word} {v} {q.unit}".rstrip() for q, v in pairs)
    return html, text


def _panel(curves: Mapping[str, pd.DataFrame], metric: str, top: int, split: str) -> str:
    values = np.concatenate([curve[metric] for curve in curves.values()])
    pad = 0.06 * float(np.ptp(values)) or 0.5
    low, high = float(values.min()) - pad, float(values.max()) + pad
    right, base = _WIDE - _RIGHT, top + _PANEL
    parts = [f'<text x="0" y="{top - 8}">{escape(f"{split} {METRICS[metric].label}")}</text>']
    ticks = [tick for tick in MaxNLocator(3, steps=[1, 2, 5, 10]).tick_values(low, high) if low <= tick <= high]
    for tick in ticks:
        y = base - _PANEL * (tick - low) / (high - low)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{right}" stroke="currentColor" stroke-opacity=".25"/>'
                     f'<text x="{_LEFT - 6}" y="{y + 5:.1f}" text-anchor="end">{tick:g}</text>')
    parts.append(f'<path d="M{_LEFT} {top}V{base}H{right}" fill="none" stroke="currentColor"/>'
                 f'<line x1="{_LEFT}" x2="{_LEFT}" y1="{top}" y2="{base}" stroke="currentColor"/>')
    for number, curve in enumerate(curves.values()):
        t = curve.index.to_numpy()
        x = _LEFT + (right - _LEFT) * (t - t[0]) / (t[-1] - t[0])
        y = base - _PANEL * (curve[metric].to_numpy() - low) / (high - low)
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
        colour = COLOURS[number]
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2.5"{_DASHED[number]}/>'
                     f'<circle cx="{x[0]:.1f}" cy="{y[0]:.1f}" r="6" fill="{colour}" stroke="currentColor"/>')
    return "".join(parts)


def _abscissa(t: np.ndarray, height: int) -> str:
    right, base = _WIDE - _RIGHT, height - _BOTTOM
    places = [(_LEFT, t[0]), ((_LEFT + right) / 2, (t[0] + t[-1]) / 2), (right, t[-1])]
    ticks = "".join(f'<text x="{x:g}" y="{base + 18}" text-anchor="middle">{place:g}</text>' for x, place in places)
    middle = (_LEFT + right) / 2
    return ticks + f'<text x="{middle:g}" y="{base + 38}" text-anchor="middle">t (position on the path)</text>'


@matplotlib.rc_context(STYLE)
def _still(curves: Mapping[str, pd.DataFrame], title: str, split: str) -> bytes:
    metrics = list(next(iter(curves.values())).columns)
    figure, panels = canvas(WIDTH, 1.0 + 1.5 * len(metrics), len(metrics), 1)
    for axes, metric in zip(panels[:, 0], metrics, strict=True):
        for number, (name, curve) in enumerate(curves.items()):
            axes.plot(curve.index, curve[metric], color=COLOURS[number], ls=DASHES[number], lw=2,
                      label=name if metric == metrics[0] and len(curves) > 1 else None)
        axes.set_ylabel(METRICS[metric].label)
    panels[0, 0].set_title(fill(f"{title}, {split}", 56), fontsize=11)
    panels[-1, 0].set_xlabel("t (position on the path)")
    if len(curves) > 1:
        legend(figure)
    return settle(figure).png()

"""HTML of a report: tables, curves, bars of calibration and matrices as text and SVG; no code runs in the page."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bevstack.visualization.palette import color_of

PAGES = Path(__file__).parent / "pages"


class ReportPage:
    """Collects the parts of a page and gives its HTML.

    Args:
        title: of the page.
        said: what stands below it.
    """

    def __init__(self, title: str, said: str = "") -> None:
        self.title, self.parts = title, [f"<h1>{html.escape(title)}</h1>", _paragraph(said)]

    def section(self, title: str, said: str = "") -> None:
        """Begin a section."""
        self.parts += [f"<h2>{html.escape(title)}</h2>", _paragraph(said)]

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table; numbers that are no integers get three places, NaN is a dash."""
        head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
        body = "".join("<tr>" + "".join(f"<td>{_text(value)}</td>" for value in row) + "</tr>" for row in rows)
        self.parts.append(f"<div><h3>{html.escape(title)}</h3><table><tr>{head}</tr>{body}</table></div>")

    def curves(self, title: str, curves: Mapping[str, tuple[np.ndarray, np.ndarray]], axes: tuple[str, str]) -> None:
        """Curves in the unit square, each (x, y) of shape (P,), named beside it in the colour of its class."""
        plot = _Plot(title, axes)
        for place, (name, (x, y)) in enumerate(curves.items()):
            color = "#{:02x}{:02x}{:02x}".format(*color_of(name))
            plot.line(x, y, color)
            plot.label(place, name, color)
        self.parts.append(plot.svg())

    def reliability(self, title: str, counts: np.ndarray, error: float) -> None:
        """A reliability diagram of counts (10, 3) (:func:`bevstack.evaluation.breakdown.calibration_counts`): how often
        what was said with a confidence was right, beside the diagonal of what it should be."""
        plot = _Plot(f"{title}: ECE {_text(error)}", ("confidence", "part that is right"))
        total = counts[:, 0].sum()
        for place, (number, confidence, right) in enumerate(counts):
            if number:
                plot.bar(place / len(counts), 1 / len(counts), right / number, 0.25 + 0.75 * math.sqrt(number / total))
                plot.dot(confidence / number, right / number)
        plot.line(np.array([0.0, 1.0]), np.array([0.0, 1.0]), "#adb5bd")
        self.parts.append(plot.svg())

    def matrix(self, title: str, rows: Sequence[str], columns: Sequence[str], counts: np.ndarray) -> None:
        """A table of counts (R, C) whose cells are the darker the larger a part of their row they are."""
        head = "".join(f"<th>{html.escape(name)}</th>" for name in ("", *columns))
        lines = []
        for name, line in zip(rows, counts, strict=True):
            parts = line / max(1, line.sum())
            cells = "".join(
                f'<td class="cell" style="background:rgba(31,90,230,{0.75 * part:.2f})">{value or ""}</td>'
                for value, part in zip(line.tolist(), parts, strict=True)
            )
            lines.append(f"<tr><td>{html.escape(name)}</td>{cells}</tr>")
        self.parts.append(f"<h3>{html.escape(title)}</h3><table><tr>{head}</tr>{''.join(lines)}</table>")

    def picture(self, address: str, said: str, link: str) -> None:
        """A picture at an address, with words below it that lead elsewhere."""
        words = f'<a href="{html.escape(link)}">{html.escape(said)}</a>'
        image = f'<img src="{html.escape(address)}" alt="{html.escape(said)}" loading="lazy">'
        self.parts.append(f"<figure>{image}<figcaption>{words}</figcaption></figure>")

    def begin_row(self) -> None:
        """What comes now stands side by side, until :meth:`end_row`."""
        self.parts.append('<div class="row">')

    def end_row(self) -> None:
        """End what :meth:`begin_row` began."""
        self.parts.append("</div>")

    def html(self) -> str:
        """The whole page."""
        head = f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(self.title)}</title>'
        style = (PAGES / "report.css").read_text(encoding="utf-8")
        return f"{head}<style>{style}</style></head><body>{''.join(self.parts)}</body></html>\n"


class _Plot:
    """The unit square with axes, as SVG."""

    side, left, top = 260, 44, 26

    def __init__(self, title: str, axes: tuple[str, str]) -> None:
        self.title, self.axes, self.names = title, axes, 0
        self.marks: list[str] = []

    def _place(self, x: float, y: float) -> tuple[float, float]:
        return self.left + self.side * x, self.top + self.side * (1 - y)

    def line(self, x: np.ndarray, y: np.ndarray, color: str) -> None:
        points = " ".join("{:.1f},{:.1f}".format(*self._place(*point)) for point in zip(x, y, strict=True))
        self.marks.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.8"/>')

    def bar(self, x: float, width: float, height: float, strength: float) -> None:
        left, top = self._place(x, height)
        size = f'width="{self.side * width - 1:.1f}" height="{self.side * height:.1f}"'
        self.marks.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" {size} fill="#1f5ae6" fill-opacity="{0.5 * strength:.2f}"/>'
        )

    def dot(self, x: float, y: float) -> None:
        self.marks.append('<circle cx="{:.1f}" cy="{:.1f}" r="3" fill="#212529"/>'.format(*self._place(x, y)))

    def label(self, place: int, name: str, color: str) -> None:
        x, y = self.left + self.side + 12, self.top + 12 + 17 * place
        self.names = max(self.names, 130)
        self.marks.append(
            f'<text x="{x}" y="{y}" fill="{color}" font-weight="600">{html.escape(name.replace("_", " "))}</text>'
        )

    def svg(self) -> str:
        axes = []
        for tick in (0, 0.25, 0.5, 0.75, 1):
            (x, bottom), (left, y) = self._place(tick, 0), self._place(0, tick)
            axes.append(f'<line x1="{x}" x2="{x}" y1="{self.top}" y2="{bottom}" stroke="#e9ecef"/>')
            axes.append(f'<line x1="{left}" x2="{left + self.side}" y1="{y}" y2="{y}" stroke="#e9ecef"/>')
            axes.append(f'<text x="{x}" y="{bottom + 15}" text-anchor="middle">{tick:g}</text>')
            axes.append(f'<text x="{left - 5}" y="{y + 4}" text-anchor="end">{tick:g}</text>')
        middle, bottom = self._place(0.5, 0)
        axes.append(f'<text x="{middle}" y="{bottom + 31}" text-anchor="middle">{html.escape(self.axes[0])}</text>')
        height = self.top + self.side / 2
        turned = f'transform="translate(11 {height}) rotate(-90)" text-anchor="middle"'
        axes.append(f"<text {turned}>{html.escape(self.axes[1])}</text>")
        axes.append(f'<text x="{self.left}" y="15" font-weight="600">{html.escape(self.title)}</text>')
        width, tall = self.left + self.side + 20 + self.names, self.top + self.side + 40
        return f'<svg width="{width}" height="{tall}" font-size="12" fill="#212529">{"".join(axes + self.marks)}</svg>'


def _paragraph(said: str) -> str:
    return f'<p class="said">{html.escape(said)}</p>' if said else ""


def _text(value: object) -> str:
    if isinstance(value, (float, np.floating)):
        return "&ndash;" if math.isnan(value) else f"{value:.3f}"
    return html.escape(str(value))

"""Curves of trainings: what was logged, drawn over the steps, several runs in one picture."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bevstack.files import atomic_write

Curves = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""By name of a scalar: its steps (n,) and values (n,)."""

_COLUMNS = 3
_INK, _FAINT = "#21252a", "#adb2b8"
_COLORS = ("#1f5ae6", "#ff8c00", "#26a65b", "#d62728", "#9452c8", "#17a0aa", "#be9f00", "#8c564b")


def smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """Means of each value (n,) and up to ``window - 1`` before it; (n,). What is not finite is left out of them."""
    finite = np.isfinite(values)
    sums = np.cumsum(np.where(finite, values, 0.0))
    counts = np.cumsum(finite)
    shifted = (np.concatenate([np.zeros(min(window, len(x))), x[:-window]])[: len(x)] for x in (sums, counts))
    earlier_sum, earlier_count = shifted
    number = counts - earlier_count
    return np.where(number > 0, (sums - earlier_sum) / np.maximum(number, 1), np.nan)


def draw_runs(runs: Mapping[str, Curves], names: Sequence[str], smooth: int = 1) -> Figure:
    """A panel a scalar, a line a run; where lines are smoothed, the values themselves stay behind them, faint.

    Args:
        runs: curves by the name of the run, in the order of the legend.
        names: the scalars to draw, in order.
        smooth: window of the mean, in reports.
    """
    columns = min(_COLUMNS, max(1, len(names)))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(5.2 * columns, 3.1 * rows + 0.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for place, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.set_title(name, loc="left", fontsize=11, fontweight="bold", color=_INK)
        for number, (run, curves) in enumerate(runs.items()):
            if name not in curves:
                continue
            steps, values = curves[name]
            color = _COLORS[number % len(_COLORS)]
            few = len(steps) < 30
            if smooth > 1 and not few:
                axes.plot(steps, values, color=color, alpha=0.2, linewidth=0.8)
                values = smoothed(values, smooth)
            axes.plot(steps, values, color=color, linewidth=1.6, marker="o" if few else None, markersize=4, label=run)
        axes.grid(color=_FAINT, alpha=0.35, linewidth=0.6)
        axes.set_xlabel("step", fontsize=9, color=_INK)
        axes.tick_params(labelsize=9, colors=_INK)
        axes.margins(x=0.02)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    labels = dict(zip(runs, (_COLORS[n % len(_COLORS)] for n in range(len(runs))), strict=True))
    if len(runs) > 1:
        from matplotlib.lines import Line2D  # only here: a single run needs no legend

        handles = [Line2D([], [], color=color, linewidth=2, label=run) for run, color in labels.items()]
        figure.legend(handles=handles, loc="outside upper left", ncols=min(4, len(runs)), frameon=False, fontsize=10)
    return figure


def write_figure(path: str | os.PathLike, figure: Figure) -> None:
    """Write a figure as what the ending of ``path`` says: png, svg, pdf.

    Raises:
        InputError: the file cannot be written.
    """
    with atomic_write(path) as temporary:
        figure.savefig(temporary)

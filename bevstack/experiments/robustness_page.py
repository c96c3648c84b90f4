"""The page of ``tools/robustness.py``: a table a suite, in markdown, and one picture of what stays of the score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from bevstack.experiments.fault_suites import CLEAN, FaultCase
from bevstack.files import atomic_write


def write_page(
    path: Path, cases: Sequence[FaultCase], scores: Mapping[str, float], metric: str, facts: Mapping[str, Any]
) -> None:
    """Write the page and, beside it, its picture (``.png``).

    Args:
        path: of the markdown file.
        cases: that were scored, the clean one among them.
        scores: by the cases' keys.
        metric: name of the score.
        facts: lines at the top, texts and numbers.
    """
    clean, picture = scores[CLEAN.key], path.with_suffix(".png")
    lines = ["# With faulty sensors", ""]
    for name, value in facts.items():
        lines.append(f"- {name}: {value:.3f}" if isinstance(value, float) else f"- {name}: `{value}`")
    lines += [f"- {metric} without a fault: {clean:.3f}", "", f"![what stays of the score]({picture.name})", ""]
    for suite in dict.fromkeys(case.suite for case in cases if case is not CLEAN):
        lines += [f"## {suite.capitalize()}", ""]
        lines += [f"| fault | level | {metric} | of the clean score |", "| --- | --- | --- | --- |"]
        for case in (case for case in cases if case.suite == suite):
            score = scores[case.key]
            lines.append(f"| {case.group.replace('_', ' ')} | {case.level} | {score:.3f} | {score / clean:.2f} |")
        lines.append("")
    _draw(picture, cases, scores, metric)
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")


def _draw(path: Path, cases: Sequence[FaultCase], scores: Mapping[str, float], metric: str) -> None:
    """One bar a kind of fault: the mean of its levels, with its least and greatest."""
    from matplotlib.figure import Figure  # only here: it takes a second to import

    kinds: dict[tuple[str, str], list[float]] = {}
    for case in cases:
        if case is not CLEAN:
            kinds.setdefault((case.suite, case.group), []).append(scores[case.key] / scores[CLEAN.key])
    figure = Figure(figsize=(8, 1 + 0.3 * max(len(kinds), 1)), layout="constrained")
    axes = figure.subplots()
    colours = matplotlib.colormaps["tab10"]
    suites = list(dict.fromkeys(suite for suite, _ in kinds))
    for row, ((suite, _), parts) in enumerate(kinds.items()):
        axes.barh(row, np.mean(parts), color=colours(suites.index(suite)))
        axes.plot([min(parts), max(parts)], [row, row], color="black", linewidth=1)
    axes.set_yticks(range(len(kinds)), [f"{suite}: {group.replace('_', ' ')}" for suite, group in kinds])
    axes.invert_yaxis()
    axes.axvline(1, color="grey", linewidth=1)
    axes.set_xlabel(f"part of {metric} that stays")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)

"""Tables and the page ``docs/performance.md`` of what suites wrote: the same files always give the same page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bevstack.experiments.arguments import SUITES

HEAD = """# How fast it is

Every number here was written by `tools/benchmark.py`; the page is made from its files by

```bash
python tools/benchmark.py --report docs/benchmarks/*.json
```

and each table says by which command it can be made again. Candidates take turns in one process on the same inputs; a
number is the median, in brackets the quartiles. *times* is the base's median over the candidate's: how many times
faster it is. *apart* is the largest difference of its answer from the base's, as a share of the largest value.

*usual* is a restatement of the published formulation (`bevstack/experiments/usual_formulation.py`, `usual_model.py`,
`usual_pipeline.py`), tested to give the same answers. The allocator is glibc's: `default` as it is, `raised` with
`MALLOC_MMAP_THRESHOLD_` and `MALLOC_TRIM_THRESHOLD_` in the environment, `kept` as the entry points set it. Compare
numbers of one table only: machines, and the same machine on another day, differ. No GPU was at hand: where a table does
not name one, nothing was measured on one.
"""


def page_of(records: Iterable[Mapping[str, Any]]) -> str:
    """The page, in the order of the suites and, in a suite, of allocator, threads and command."""
    order = list(SUITES)

    def place(record: Mapping[str, Any]) -> tuple:
        machine = record["machine"]
        return order.index(record["suite"]), machine["allocator"], machine["threads"], record["command"]

    sections, last = [HEAD], ""
    for record in sorted(records, key=place):
        if record["suite"] != last:
            last = record["suite"]
            sections.append(f"## {SUITES[last]}\n")
        sections.append(_section(record))
    return "\n".join(sections)


def _section(record: Mapping[str, Any]) -> str:
    machine = record["machine"]
    where = machine["gpu"] or machine["processor"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    lines = [
        f"Allocator **{machine['allocator']}**, **{machine['threads']} threads**; {where}"
        f" ({' '.join(machine['features'])}); torch {machine['torch']}, {packages};"
        f" commit {machine['commit'] or 'unknown'}, {machine['date']}."
        + (" **A quick look, not a measurement.**" if record.get("quick") else ""),
        "",
        "```bash",
        record["command"],
        "```",
        "",
        table_of(record),
        "",
    ]
    return "\n".join(lines)


def table_of(record: Mapping[str, Any]) -> str:
    """The record's rows as one markdown table: times where there are any, facts where there are any."""
    rows: Sequence[Mapping[str, Any]] = record["rows"]
    lines = []
    if any(row["candidates"] for row in rows):
        lines += ["| | candidate | median (quartiles) | times | apart |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        for place, (name, found) in enumerate(row["candidates"].items()):
            ratio = f"**{found['ratio']:.2f}**" if "ratio" in found else "base" if name == row["base"] else ""
            apart = f"{found['difference']:.1e}" if "difference" in found else ""
            spread = f"{_time(found['median'])} ({_time(found['low'])} to {_time(found['high'])})"
            lines.append(f"| {row['name'] if place == 0 else ''} | {name} | {spread} | {ratio} | {apart} |")
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row["facts"]), []).append(row)
    for columns, alike in groups.items():
        if columns and lines:
            lines.append("")
        if columns and len(alike) > 1 and len(columns) <= 8:
            lines += [f"| | {' | '.join(columns)} |", f"| --- |{' --- |' * len(columns)}"]
            lines += [
                f"| {row['name']} | {' | '.join(_word(row['facts'][key]) for key in columns)} |" for row in alike
            ]
        elif columns:
            told = (("; ".join(f"{key}: {_word(row['facts'][key])}" for key in columns), row["name"]) for row in alike)
            lines += [f"- {name}: {facts}" for facts, name in told]
    return "\n".join(lines)


def _time(seconds: float) -> str:
    """Three digits, with their unit."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{1000 * seconds:.3g} ms"


def _word(value: Any) -> str:
    """A fact as one cell: numbers with thousands apart, no bar that would end the cell."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value).replace("|", "/")

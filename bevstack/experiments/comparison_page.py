"""The page of ``tools/compare.py``: tables of what its records hold, and what has an effect beyond the spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bevstack.experiments.run_records import RunRecords

Record = Mapping[str, Any]


def value_of(record: Record, key: str) -> float | None:
    """A number of one run by a column's key; None where it has none.

    ``seconds_per_step``, ``steps`` and ``logged/<name>`` are of the training, ``scores/<name>`` of the table of
    detections, others of the metrics or the cost.
    """
    if key in ("seconds_per_step", "steps"):
        steps, seconds = record["training"].get("steps"), record["training"].get("train_seconds")
        if key == "steps" or not steps or seconds is None:
            return steps if key == "steps" else None
        return seconds / steps
    for field in ("logged", "scores"):
        if key.startswith(f"{field}/"):
            return record[field].get(key.removeprefix(f"{field}/"))
    return record["cost"].get(key, record["metrics"].get(key))


def values_of(records: Sequence[Record], key: str) -> list[float]:
    """A column's numbers of the runs that have it."""
    return [value for value in (value_of(record, key) for record in records) if value is not None]


def beyond(values: Sequence[float], base: Sequence[float]) -> bool:
    """Whether every run lies on the same side of every run of the base, and there are at least two of each.

    Of three runs beside three that differ by chance alone this happens in one of ten comparisons.
    """
    if min(len(values), len(base)) < 2:
        return False
    return min(values) > max(base) or max(values) < min(base)


def cell(records: Sequence[Record], key: str, base: Sequence[Record] = ()) -> str:
    """Mean over the seeds, and half the range where there are several; bold what is beyond the base's runs."""
    values = values_of(records, key)
    if not values:
        return "-"
    mean, spread = sum(values) / len(values), (max(values) - min(values)) / 2
    if key.startswith("parameters"):
        return f"{mean / 1e6:.3g} M"
    if key.startswith("multiply_adds"):
        return f"{mean / 1e9:.3g} G"
    if key == "steps":
        return f"{mean:.0f}"
    text = f"{mean:.3f}" + (f" ± {spread:.3f}" if len(values) > 1 else "")
    return f"**{text}**" if beyond(values, values_of(base, key)) else text


def page_text(
    comparison: Mapping[str, Any],
    sections: Sequence[Mapping],
    keys: Mapping[tuple[str, str, int], str],
    records: RunRecords,
    failures: Mapping[tuple[str, str, int], str],
) -> str:
    """The page: where the numbers come from, then the tables of each section.

    Args:
        comparison: the config's, with ``title`` and ``intro`` where the page has its own.
        sections: those that are shown.
        keys: hash of each variant's config as it is now, by section, name and seed; none of those taken in.
        records: of the runs.
        failures: what went wrong, by section, name and seed.
    """
    seeds = comparison.get("seeds", (0,))
    found: dict[str, dict[str, list[Record]]] = {}
    for section in sections:
        title, found[section["title"]] = section["title"], {}
        for entry in section["variants"]:
            runs = [_record(records, keys, (title, entry["name"], seed)) for seed in seeds]
            found[title][entry["name"]] = [run for run in runs if run is not None]
    every = [run for runs in found.values() for own in runs.values() for run in own]
    lines = [f"# {comparison.get('title', 'Comparison')}", "", "Written by `tools/compare.py`; do not edit."]
    lines[-1] += f" {provenance(comparison, every)}"
    lines += ["", comparison["intro"], ""] if comparison.get("intro") else [""]
    for section in sections:
        title = section["title"]
        own = found[title]
        budgets = list(dict.fromkeys(run["budget"] for runs in own.values() for run in runs))
        lines += [f"## {title}", ""]
        lines += [f"Each run: {', '.join(budgets)}.", ""] if budgets else []
        lines += [section["text"], ""] if section.get("text") else []
        said = [f"- `{e['name']}`: {e['text']}" for e in section["variants"] if e.get("text") and own[e["name"]]]
        lines += [*said, ""] if said else []
        for heading, columns in tables_of(section).items() if budgets else ():
            lines += [f"**{heading}**", ""] if heading else []
            lines += table_of(section, columns, own) + [""]
        lines += effects(section, own)
        for place in (place for place in failures if place[0] == title):
            lines.append(f"- `{place[1]}` failed with seed {place[2]}: {failures[place]}")
        stale = [name for name, runs in own.items() if any(_stale(run, keys, title, name) for run in runs)]
        if stale:
            lines += [f"Of a config that has changed since: {', '.join(f'`{name}`' for name in stale)}.", ""]
        absent = [name for name, runs in own.items() if len(runs) < len(seeds)]
        if absent:
            counts = ", ".join(f"`{name}` ({len(own[name])} of {len(seeds)})" for name in absent)
            lines += [f"Not done yet: {counts}.", ""]
    return "\n".join(lines).rstrip() + "\n"


def tables_of(section: Mapping) -> dict[str, Sequence]:
    """Columns, (header, key) each, of the tables of a section, by their headings; of one without rows."""
    if section.get("tables"):
        return dict(section["tables"])
    return {"": section.get("columns", ())}


def table_of(section: Mapping, columns: Sequence, own: Mapping[str, Sequence[Record]]) -> list[str]:
    """One table as lines of markdown; a variant without a run has no row among columns."""
    if section.get("rows"):
        lines = ["| head | number | alone | jointly |", "| --- | --- | --- | --- |"]
        joint = own.get(section.get("joint", "joint"), ())
        for label, key, name in section["rows"]:
            lines.append(f"| {label} | {key} | {cell(own.get(name, ()), key)} | {cell(joint, key)} |")
        return lines
    headers = [header for header, _ in columns]
    base = own.get(section.get("base", ""), ())
    lines = [f"| | runs | {' | '.join(headers)} |", "| --- | --- |" + " --- |" * len(headers)]
    for name, found in ((name, found) for name, found in own.items() if found):
        cells = (cell(found, key, () if found is base else base) for _, key in columns)
        lines.append(f"| {name} | {len(found)} | " + " | ".join(cells) + " |")
    return lines


def effects(section: Mapping, own: Mapping[str, Sequence[Record]]) -> list[str]:
    """What each variant changes beyond the spread, beside the section's ``base``, as a list; nothing without one."""
    name_of_base = section.get("base")
    if not name_of_base:
        return []
    base, lines = own.get(name_of_base, ()), []
    for name, runs in own.items():
        if name == name_of_base or not runs:
            continue
        changes = []
        for columns in tables_of(section).values():
            for header, key in columns:
                values, others = values_of(runs, key), values_of(base, key)
                if beyond(values, others):
                    change = sum(values) / len(values) - sum(others) / len(others)
                    changes.append(f"{header} {change:+.3f}")
        one = "one run says nothing of that" if min(len(runs), len(base)) < 2 else "nothing"
        lines.append(f"- `{name}` beside `{name_of_base}`, beyond the spread: {', '.join(changes) or one}")
    return [*lines, ""] if lines else []


def provenance(comparison: Mapping, done: Sequence[Record]) -> str:
    """One paragraph: commits, machines, seeds, data."""
    if not done:
        return "Nothing has been run yet."
    seeds = ", ".join(map(str, comparison.get("seeds", (0,))))
    parts = [f"Commits {_all(done, 'commit')}", _all(done, "machine"), f"seeds {seeds}", _all(done, "data")]
    parts.append("mean ± half the range over the seeds, every run scored on the same scenes")
    return "; ".join(part for part in parts if part) + "."


def _all(records: Sequence[Record], field: str) -> str:
    return ", ".join(sorted({record[field] for record in records if record[field]}))


def _record(records: RunRecords, keys: Mapping, place: tuple[str, str, int]) -> Record | None:
    """The run of a place: of its config as it is now, else taken in, else of the config as it was."""
    exact = records.of(*place, keys.get(place))
    return exact or next(reversed(records.placed(*place)), None)


def _stale(run: Record, keys: Mapping, title: str, name: str) -> bool:
    key = keys.get((title, name, run["seed"]))
    return run["key"] is not None and key is not None and run["key"] != key

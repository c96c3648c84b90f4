"""docs/results.md, made of the files of ``tools/results.py`` and ``tools/motion_oracle.py`` alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bevstack.errors import InputError
from bevstack.evaluation.drawn_scores import RINGS_M

_CLASS_ERRORS = ("ATE", "ASE", "AOE", "AVE", "AAE")
_RINGS = [f"{low:g}-{high:g} m" for low, high in zip(RINGS_M[:-1], RINGS_M[1:], strict=True)]
_MOTION = {
    "AVE/movers": "error of the velocity of those that move, m/s",
    "true_speed/movers": "how fast they are, m/s",
    "speed/movers": "what is predicted for them, m/s",
    "moving/movers": "part of them that is predicted to move",
    "moving/standing": "part of the standing ones that is predicted to move",
    "speed/standing": "what is predicted for these, m/s",
}
_HEADINGS = ("heading/within 15 deg", "heading/across", "heading/turned by half")
_DETECTION = ("NDS", "mAP", "mAP_present", "NDS_present", "mATE", "mASE", "mAOE", "mAVE", "mAAE", "train_seconds")
_INTRO = """Written by `tools/results.py`, from the files in `docs/benchmarks/results`; do not edit. `make results`
makes a world of a seed that nothing was trained or tuned on, scores the weights there and writes the files and this
page anew; nothing is trained. Numbers in brackets are the ends of the 95 % interval of a bootstrap over scenes (a
scene's samples are alike): another draw of as many scenes gives a number in there. What trained the weights, and which
changes of the training helped beyond the spread of seeds: [recipe.md](recipe.md)."""


def read_files(folder: Path) -> list[dict[str, Any]]:
    """The results of a folder, models first, each in the order of its name.

    Raises:
        InputError: a file is not what the tools write.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(path, "results", f"cannot be read ({error})") from None
        if not isinstance(content, dict) or content.get("kind") not in _SECTIONS:
            raise InputError(path, "kind", f"must be one of {', '.join(_SECTIONS)}")
        found.append((path, content))
    found.sort(key=lambda one: list(_SECTIONS).index(one[1]["kind"]))
    for path, content in found:
        try:
            _SECTIONS[content["kind"]](content)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise InputError(path, "results", f"is not what the tool writes ({error!r:.80})") from None
    return [content for _, content in found]


def results_page(found: Sequence[Mapping[str, Any]]) -> str:
    """The page's markdown."""
    lines = ["# Results", "", *_INTRO.split("\n"), ""]
    for content in found:
        lines += _SECTIONS[content["kind"]](content)
    if not found:
        lines += ["Nothing has been scored yet.", ""]
    return "\n".join(lines).rstrip() + "\n"


def model_section(found: Mapping[str, Any]) -> list[str]:
    """Tables of one model's results."""
    scores, metrics = found["scores"], found["metrics"]
    made = ", ".join(
        f"{name} {found['data'][name]}" for name in ("seed", "frames", "image_size") if name in found["data"]
    )
    lines = [f"## {found['name']}", ""]
    what = f"`{found['checkpoint']}` (sha256 {found['sha256'][:12] or 'unknown'}) of `{found['config']}`"
    where = f"{found['scenes']} scenes ({made or 'of a set of its own'}); {found['draws']} draws"
    lines.append(f"{what}, on {where}; commit {found['commit']}; {found['machine']}.")
    lines += ["", "| " + " | ".join(name for name in _DETECTION if name in metrics) + " |"]
    lines += ["| --- " * sum(name in metrics for name in _DETECTION) + "|"]
    lines += ["| " + " | ".join(f"{metrics[name]:.3f}" for name in _DETECTION if name in metrics) + " |", ""]
    lines += _by_class(scores, metrics)
    lines += _by_distance(scores)
    rows = [[words, _cell(scores.get(name))] for name, words in _MOTION.items() if name in scores]
    lines += _table("Motion, of vehicles found at 2 m", ("", "now"), rows)
    rows = [
        [name.removeprefix("recall/"), _cell(value)] for name, value in scores.items() if name.startswith("recall/")
    ]
    lines += _table("How much of an object the cameras see", ("", "recall at 2 m"), rows)
    layers = [
        [name.split("/", 1)[1].replace("/", ": "), _cell(v)] for name, v in scores.items() if name.startswith("IoU/")
    ]
    lines += _table("Rasters", ("", "IoU at 0.5"), layers)
    errors = [[name, f"{value:.3f}"] for name, value in found["calibration"].items()]
    lines += _table("Confidence: expected calibration error", ("head", "ECE"), errors)
    lines += _memory(found["frames"])
    known = {*_DETECTION, *(key for key in metrics if "/" in key)}
    rest = [[name, f"{value:.3f}"] for name, value in metrics.items() if name not in known]
    return lines + _table("Other numbers of the test", ("", "now"), rest)


def oracle_section(found: Mapping[str, Any]) -> list[str]:
    """The table of ``tools/motion_oracle.py``."""
    distances = [f"{low:g}-{high:g} m" for low, high in found["distances_m"]]
    rows = [[row["method"], f"{row['milliseconds']} ms", *map(_cell, row["auc"])] for row in found["rows"]]
    first = found["rows"][0]
    counts = ", ".join(
        f"{distance}: {moving} and {standing}"
        for distance, moving, standing in zip(distances, first["moving"], first["standing"], strict=True)
    )
    lines = [
        "## What image motion tells of moving and standing vehicles",
        "",
        "An oracle: each vehicle's place and the ego car's motion are given, and the image motion that is left at its "
        "place is the score for moving. `pixels`: the annotated motion, with noise as of a reader of that precision; "
        "`flow`: what OpenCV's optical flow measures on the box's visible faces. Area under the ROC curve between "
        f"sweep and key frame, images {found['width_px']} px wide; moving and standing vehicles at {counts} "
        f"(`python tools/motion_oracle.py --root ROOT`, {found['draws']} draws of scenes, seed "
        f"{found['data'].get('seed', 'unknown')}). What `flow` lacks beside `pixels` may be lost matches over large "
        "displacements, and ego poses that are interpolated between key frames (up to 6 cm off); an area below 0.5 "
        "says that more is left of standing vehicles than of moving ones.",
        "",
    ]
    return lines + _table("", ("score", "from", *distances), rows)


_SECTIONS = {"model": model_section, "motion oracle": oracle_section}


def _by_class(scores: Mapping, metrics: Mapping) -> list[str]:
    names = [key.removeprefix("gt/") for key in metrics if key.startswith("gt/") and metrics[key]]
    rows = []
    for name in sorted(names, key=lambda name: -metrics[f"gt/{name}"]):
        errors = [f"{metrics[f'{e}/{name}']:.3f}" if f"{e}/{name}" in metrics else "-" for e in _CLASS_ERRORS]
        rows.append([name.replace("_", " "), f"{metrics[f'gt/{name}']:.0f}", _cell(scores.get(f"AP/{name}")), *errors])
    if rows:
        rows.append(["mean of these", "", _cell(scores.get("mAP")), *([""] * len(_CLASS_ERRORS))])
    return _table("By class", ("", "objects", "AP", *_CLASS_ERRORS), rows)


def _by_distance(scores: Mapping) -> list[str]:
    kinds = {"mAP": "mAP of the classes there", "AP/car": "AP of cars", "AP/pedestrian": "AP of pedestrians"}
    kinds |= {"off": "cars found at 2 m: metres off", "AOE": "their headings: radians off"}
    kinds |= {name: f"their headings: part {name.split('/')[1]}" for name in _HEADINGS}
    rows = [[words, *(_cell(scores.get(f"{kind}/{ring}")) for ring in _RINGS)] for kind, words in kinds.items()]
    rows = [row for row in rows if any(text != "-" for text in row[1:])]
    return _table("By distance", ("", *_RINGS), rows)


def _memory(frames: Mapping[str, Any]) -> list[str]:
    """What so many frames give; the last column is the gain of the most frames over one."""
    if not frames:
        return []
    most = list(frames)[-1]
    names = list(dict.fromkeys(name for one in frames.values() for name in one["scores"]))
    names = [name for name in names if not name.startswith("AP/") or name == "AP/car"]
    rows = [
        [name, *(_cell(one["scores"].get(name)) for one in frames.values()), _cell(frames[most]["gain"].get(name), "+")]
        for name in names
    ]
    means = list(dict.fromkeys(name for one in frames.values() for name in one["metrics"]))
    rows += [[name, *(f"{one['metrics'].get(name, math.nan):.3f}" for one in frames.values()), ""] for name in means]
    headers = [f"{count} frame{'s' * (count != '1')}" for count in frames]
    title = "Memory: predictions that rest on so many frames (more than the model reads change nothing)"
    return _table(title, ("", *headers, f"{most} beside {next(iter(frames))}"), rows)


def _table(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    lines = [f"**{title}**", ""] if title else []
    lines += ["| " + " | ".join(headers) + " |", "| --- " * len(headers) + "|"]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def _cell(found: Sequence[float] | None, sign: str = "") -> str:
    """A score with its interval."""
    if found is None or not math.isfinite(found[0]):
        return "-"
    value, low, high = (f"{number:{sign}.3f}" for number in found)
    return f"{value} ({low} to {high})"

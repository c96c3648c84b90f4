"""``tools/plot_run.py``: the curves of one or several trainings, from what they logged."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from bevstack.engine.arguments import plot_run_arguments
from bevstack.engine.console import task_losses
from bevstack.errors import InputError
from bevstack.visualization.run_curves import Curves, draw_runs, write_figure

_SCORES = ("NDS", "mAP", "mAP_present", "mATE", "mAOE", "mAVE", "AMOTA", "PQ")
_MOST_SCORES = 9
_NOT_SCORES = ("step", "epoch", "iter", "time", "data_time", "memory")


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw what the command line asks for, and print one line on what was made.

    Raises:
        InputError: a run that logged nothing, a scalar that no run has, or a file that cannot be written.
    """
    args = plot_run_arguments(arguments)
    labels = run_labels(args.runs)
    runs = {label: read_curves(run) for label, run in zip(labels, args.runs, strict=True)}
    known = list(dict.fromkeys(name for curves in runs.values() for name in curves))
    if args.list:
        print("\n".join(known))
        return 0
    for name in args.keys or ():
        if name not in known:
            near = [other for other in known if name.lower() in other.lower()][:5]
            raise InputError("plot_run", "--keys", f"no run logged '{name}'; there are {', '.join(near or known[:8])}")
    names = args.keys or usual_names(runs.values())
    write_figure(args.out, draw_runs(runs, names, args.smooth))
    print(f"{len(names)} curve(s) of {len(runs)} run(s) in {args.out}")
    return 0


def run_labels(runs: Sequence[Path]) -> list[str]:
    """Names of runs: of their folders, and of more above these where two would be called the same."""
    resolved = [run.resolve() for run in runs]
    for depth in range(1, max(len(path.parts) for path in resolved) + 1):
        labels = ["/".join(path.parts[-depth:]) for path in resolved]
        if len(set(labels)) == len(labels):
            return labels
    raise InputError(runs[0], "RUN", "the same run is given twice")


def read_curves(run: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What a training logged: by the scalar's name, steps (n,) and values (n,).

    A resumed run has a log for each start; where two tell of one step, the later start counts. A score after an epoch
    stands at the last step that was logged before it. Sums of the losses of a task are added, as ``losses/<task>``.

    Args:
        run: a work directory, or a ``scalars.json``.

    Raises:
        InputError: there is no log, or a line of it cannot be read.
    """
    logs = [run] if run.is_file() else sorted(run.glob("*/vis_data/scalars.json"))
    if not logs:
        raise InputError(run, "RUN", "no log of a training (<time>/vis_data/scalars.json)")
    curves: dict[str, dict[int, float]] = {}
    for log in logs:
        last = 0
        for number, line in enumerate(log.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                scalars = json.loads(line)
            except json.JSONDecodeError:
                raise InputError(log, f"line {number}", "is no JSON: the run was cut off there?") from None
            trained = "loss" in scalars
            step = int(scalars.get("iter", scalars.get("step", 0))) if trained else last
            last = step
            if trained:
                scalars |= {f"losses/{task}": value for task, value in task_losses(scalars).items()}
            for name, value in scalars.items():
                if isinstance(value, int | float) and (trained or name not in _NOT_SCORES):
                    curves.setdefault(name, {})[step] = float(value)
    return {
        name: (np.array(sorted(points)), np.array([points[step] for step in sorted(points)]))
        for name, points in curves.items()
    }


def usual_names(runs: Iterable[Curves]) -> list[str]:
    """What one looks at first: the loss, each task's, the learning rate, the speed, and scores of no single class."""
    known = list(dict.fromkeys(name for curves in runs for name in curves))
    tasks = [name for name in known if name.startswith("losses/")]
    names = ["loss", *(tasks if len(tasks) > 1 else []), "lr", "samples_per_second"]
    seen_in_training = {name for name in known if "loss" in name or name.endswith("lr")} | set(names)
    seen_in_training |= {*_NOT_SCORES, "grad_norm", "without_memory"}
    scores = [name for name in known if name not in seen_in_training and "weight" not in name]
    order = {name: place for place, name in enumerate(_SCORES)}
    scores.sort(key=lambda name: (order.get(name, len(order)), "/" in name))
    return [name for name in [*names, *scores[:_MOST_SCORES]] if name in known]

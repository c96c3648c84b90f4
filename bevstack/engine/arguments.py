"""The command lines of the engine's tools; light to import, so that ``--help`` and a mistyped flag answer at once."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bevstack.errors import InputError
from bevstack.files import require_writable


def train_parser() -> argparse.ArgumentParser:
    """Flags of ``tools/train.py``, as OpenMMLab users know them."""
    parser = argparse.ArgumentParser(prog="tools/train.py", description="Train what a config describes.")
    parser.add_argument("config", help="config file")
    parser.add_argument("--work-dir", help="where checkpoints and logs go (default: work_dirs/<name of the config>)")
    parser.add_argument(
        "--resume", nargs="?", const="auto", metavar="CHECKPOINT", help="continue; without a file: the newest one"
    )
    parser.add_argument("--amp", action="store_true", help="mixed precision: bf16 or fp16, what the device has")
    add_config_options(parser)
    add_launcher(parser)
    return parser


def test_parser() -> argparse.ArgumentParser:
    """Flags of ``tools/test.py``, as OpenMMLab users know them."""
    parser = argparse.ArgumentParser(prog="tools/test.py", description="Score a checkpoint on a config's test set.")
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", help="checkpoint file (with EMA, its averaged weights are used)")
    parser.add_argument("--out", "--work-dir", metavar="DIR", help="folder of the results (default: the checkpoint's)")
    parser.add_argument("--report", type=Path, metavar="DIR", help="also write a report that takes the scores apart")
    add_config_options(parser)
    add_launcher(parser)
    return parser


def compare_runs_parser() -> argparse.ArgumentParser:
    """Flags of ``tools/compare_runs.py``."""
    description = "Two tests on the same samples side by side; intervals by bootstrap over scenes say what is noise."
    parser = argparse.ArgumentParser(prog="tools/compare_runs.py", description=description)
    parser.add_argument("first", metavar="A", help="folder that tools/test.py --report wrote")
    parser.add_argument("second", metavar="B", help="another one, of the same samples")
    parser.add_argument("--draws", type=int, default=1000, help="how often scenes are drawn (default: 1000)")
    return parser


def add_config_options(parser: argparse._ActionsContainer) -> None:
    """``--cfg-options KEY=VALUE ...``: overrides of the config."""
    parser.add_argument("--cfg-options", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="overrides")


def add_launcher(parser: argparse.ArgumentParser) -> None:
    """``--launcher`` and the ``--local_rank`` that old launchers pass."""
    parser.add_argument("--launcher", choices=("none", "pytorch", "slurm"), default="none", help="job launcher")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)


def visualize_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line of ``tools/visualize.py``.

    Raises:
        InputError: flags that contradict each other.
    """
    parser = argparse.ArgumentParser(
        prog="tools/visualize.py", description="Draw predictions and ground truth: a PNG a sample, a clip a scene."
    )
    parser.add_argument("config")
    parser.add_argument("checkpoint", nargs="?", help="left out with --dataset-only")
    parser.add_argument("--out", type=Path, help="folder for <scene>/*.png and <scene>.gif")
    parser.add_argument("--html", type=Path, metavar="FILE", help="one page to look through the clip, for any browser")
    parser.add_argument("--dataset-only", action="store_true", help="draw the ground truth, without a model")
    parser.add_argument("--features", action="store_true", help="also draw B_t, its channels as colours")
    parser.add_argument(
        "--attention",
        nargs="?",
        action="append",
        const="",
        metavar="X,Y",
        help="also draw where the cell at X,Y metres looks (again for more; --attention=-3,8 where X is negative); "
        "without a place: where the three likeliest boxes are",
    )
    parser.add_argument("--split", help="train, val or test (that dataloader of the config), or a split of the dataset")
    parser.add_argument("--scenes", nargs="+", help="scene names; all of the split by default")
    parser.add_argument("--max-samples", type=int, help="stop after this many samples")
    parser.add_argument("--score-thr", type=float, default=0.3, help="least score of a box that is drawn")
    parser.add_argument("--fps", type=float, default=4.0)
    parser.add_argument("--format", choices=("gif", "mp4", "both", "none"), default="gif", help="of a scene's clip")
    parser.add_argument("--max-width-px", type=int, default=1280, help="of the clips; PNGs keep their size")
    parser.add_argument("--layout", choices=("wide", "tall"), help="panels right of the cameras, or below them")
    add_config_options(parser)
    args = parser.parse_args(arguments)
    if args.dataset_only == (args.checkpoint is not None):
        raise InputError(args.config, "CHECKPOINT", "give a checkpoint, or --dataset-only without one")
    if args.dataset_only and (args.features or args.attention):
        raise InputError(args.config, "--features, --attention", "show what a model does; give a checkpoint")
    args.attention = None if args.attention is None else [_place(given) for given in args.attention if given]
    if args.out is None and args.html is None:
        raise InputError(
            args.config, "--out", "say what to write: --out DIR for pictures, --html FILE for a page, or both"
        )
    for field, value in (
        ("--fps", args.fps),
        ("--max-samples", args.max_samples),
        ("--max-width-px", args.max_width_px),
    ):
        if value is not None and not value > 0:
            raise InputError(args.config, field, f"must be positive, not {value:g}")
    if args.out is not None:
        require_writable(args.out, "--out")
    if args.html is not None:
        require_writable(args.html.parent, "--html")
        if args.html.is_dir():
            raise InputError(args.html, "--html", "is a folder; name a file, as clip.html")
    return args


def _place(given: str) -> tuple[float, float]:
    """``X,Y`` as numbers."""
    try:
        x, y = map(float, given.split(","))
    except ValueError:
        raise InputError("--attention", given, "is no place; write X,Y in metres of the BEV frame, as 4,12.5") from None
    return x, y


def benchmark_parser() -> argparse.ArgumentParser:
    """Flags of ``tools/benchmark.py`` for one step of a config."""
    parser = argparse.ArgumentParser(prog="tools/benchmark.py", description="Time one step of a config.")
    parser.add_argument("config", help="config file")
    add_step_options(parser)
    return parser


def add_step_options(parser: argparse._ActionsContainer) -> None:
    """``--train``, ``--repeats``, ``--sample`` and ``--cfg-options`` of a timed step."""
    parser.add_argument("--train", action="store_true", help="a training step instead of an inference")
    parser.add_argument("--repeats", type=int, default=3, help="steps that count, after one that does not")
    parser.add_argument("--sample", type=int, default=0, help="index of the first sample of the batch")
    add_config_options(parser)


def convert_parser() -> argparse.ArgumentParser:
    """Flags of ``tools/convert_checkpoint.py``."""
    description = "Weights of other projects in this project's layout, or the weights alone of a training's checkpoint."
    parser = argparse.ArgumentParser(prog="tools/convert_checkpoint.py", description=description)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    bevformer = kinds.add_parser("bevformer", help="a published BEVFormer (tiny, small, base, or of the same layout)")
    bevformer.add_argument("--config", help="the config it is for (default: the published one with its BEV grid)")
    bevformer.add_argument(
        "--boxes",
        choices=("keep", "current"),
        default="keep",
        help="'current': turn the detection head's boxes from mmdet3d 0.17's convention into today's; 'keep' for use "
        "with compat.old_boxes (see docs/compatibility.md)",
    )
    backbone = kinds.add_parser("backbone", help="ResNet of torchvision or caffe, FCOS3D, mmdet or timm weights")
    backbone.add_argument("--config", required=True, help="the config whose backbone (and neck) they are for")
    weights = kinds.add_parser("weights", help="the weights alone of a training's checkpoint, to test or to give away")
    for kind in (bevformer, backbone, weights):
        kind.add_argument("source", metavar="IN", help="the .pth to read")
        kind.add_argument("out", metavar="OUT", help="the .safetensors to write")
    return parser

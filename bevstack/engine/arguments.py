"""The command lines of the engine's tools; light to import, so that ``--help`` and a mistyped flag answer at once."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bevstack.errors import InputError, ToolParser
from bevstack.files import require_writable
from bevstack.weights import NAMES, carries_config

CONFIG_HELP = f"config file; or {' or '.join(NAMES)}, shipped weights, or a file of weights, for the config in it"
CHECKPOINT_HELP = "checkpoint file, work directory or shipped weights; CONFIG where that is weights"


def train_parser() -> argparse.ArgumentParser:
    """Flags of ``tools/train.py``, as OpenMMLab users know them."""
    parser = ToolParser(prog="tools/train.py", description="Train what a config describes.")
    parser.add_argument("config", help=CONFIG_HELP)
    parser.add_argument("--work-dir", help="where checkpoints and logs go (default: work_dirs/<name of the config>)")
    parser.add_argument(
        "--resume", nargs="?", const="auto", metavar="CHECKPOINT", help="continue; without a file: the newest one"
    )
    finetune = f"start from {' or '.join(NAMES)}, a checkpoint or a work directory, as far as it fits"
    parser.add_argument("--finetune", metavar="MODEL", help=finetune)
    parser.add_argument("--amp", action="store_true", help="mixed precision: bf16 or fp16, what the device has")
    scale = "scale the learning rate by samples a step over the config's auto_scale_lr.base_batch_size"
    parser.add_argument("--auto-scale-lr", action="store_true", help=scale)
    dry = "build everything, make a few steps, say memory, speed and the time of the whole, and keep nothing"
    parser.add_argument("--dry-run", action="store_true", help=dry)
    add_config_options(parser)
    add_launcher(parser)
    return parser


def test_parser() -> argparse.ArgumentParser:
    """Flags of ``tools/test.py``, as OpenMMLab users know them."""
    parser = ToolParser(prog="tools/test.py", description="Score a checkpoint on a config's test set.")
    parser.add_argument("config", help=CONFIG_HELP)
    weights = f"{CHECKPOINT_HELP}, or a .onnx of tools/export.py; of EMA, the averaged weights are used"
    parser.add_argument("checkpoint", nargs="?", help=weights)
    out = "folder of the results (default: the checkpoint's; of shipped weights, work_dirs/shipped/NAME)"
    parser.add_argument("--out", "--work-dir", metavar="DIR", help=out)
    parser.add_argument("--report", type=Path, metavar="DIR", help="also write a report that takes the scores apart")
    intervals = "also write metrics_intervals.json: 95 %% intervals of AP and IoU, by bootstrap over scenes"
    parser.add_argument("--intervals", action="store_true", help=intervals)
    add_config_options(parser)
    add_launcher(parser)
    return parser


def compare_runs_parser() -> argparse.ArgumentParser:
    """Flags of ``tools/compare_runs.py``."""
    description = "Two tests on the same samples side by side; intervals by bootstrap over scenes say what is noise."
    parser = ToolParser(prog="tools/compare_runs.py", description=description)
    parser.add_argument("first", metavar="A", help="folder that tools/test.py --report wrote")
    parser.add_argument("second", metavar="B", help="another one, of the same samples")
    parser.add_argument("--draws", type=int, default=1000, help="how often scenes are drawn (default: 1000)")
    return parser


def named_checkpoint(args: argparse.Namespace) -> str:
    """What CONFIG CHECKPOINT mean by a checkpoint: the second, or the first where it is weights that carry a config.

    Raises:
        InputError: the second is absent, and the first is no weights.
    """
    if args.checkpoint is None and not carries_config(args.config):
        reason = f"absent: CONFIG alone is enough where it is {' or '.join(NAMES)}, or a file of weights"
        raise InputError(args.config, "CHECKPOINT", reason)
    return args.config if args.checkpoint is None else args.checkpoint


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
    parser = ToolParser(
        prog="tools/visualize.py", description="Draw predictions and ground truth: a PNG a sample, a clip a scene."
    )
    parser.add_argument("config", help=CONFIG_HELP)
    parser.add_argument("checkpoint", nargs="?", help=f"{CHECKPOINT_HELP}; left out with --ground-truth")
    parser.add_argument("--out", type=Path, help="folder for <scene>/*.png and <scene>.gif")
    parser.add_argument("--html", type=Path, metavar="FILE", help="one page to look through the clip, for any browser")
    recording = "one recording for the Rerun viewer, with B_t (needs rerun-sdk)"
    parser.add_argument("--rerun", type=Path, metavar="FILE.rrd", help=recording)
    parser.add_argument("--ground-truth", action="store_true", help="draw the ground truth, without a model")
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
    if args.checkpoint is None and not args.ground_truth and carries_config(args.config):
        args.checkpoint = args.config
    if args.ground_truth == (args.checkpoint is not None):
        raise InputError(args.config, "CHECKPOINT", "give a checkpoint, or --ground-truth without one")
    if args.ground_truth and (args.features or args.attention):
        raise InputError(args.config, "--features, --attention", "show what a model does; give a checkpoint")
    args.attention = None if args.attention is None else [_place(given) for given in args.attention if given]
    if args.out is None and args.html is None and args.rerun is None:
        reason = "say what to write: --out DIR for pictures, --html FILE for a page, --rerun FILE for a recording"
        raise InputError(args.config, "--out", reason)
    for field, value in (
        ("--fps", args.fps),
        ("--max-samples", args.max_samples),
        ("--max-width-px", args.max_width_px),
    ):
        if value is not None and not value > 0:
            raise InputError(args.config, field, f"must be positive, not {value:g}")
    if args.out is not None:
        require_writable(args.out, "--out")
    for flag, file in (("--html", args.html), ("--rerun", args.rerun)):
        if file is not None:
            require_writable(file.parent, flag)
            if file.is_dir():
                raise InputError(file, flag, f"is a folder; name a file, as clip.{flag[2:].replace('rerun', 'rrd')}")
    return args


def _place(given: str) -> tuple[float, float]:
    """``X,Y`` as numbers."""
    try:
        x, y = map(float, given.split(","))
    except ValueError:
        raise InputError("--attention", given, "is no place; write X,Y in metres of the BEV frame, as 4,12.5") from None
    return x, y


def browse_data_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line of ``tools/browse_data.py``.

    Raises:
        InputError: numbers out of range, or a folder that cannot be written to.
    """
    description = "Draw augmented clips with labels, maps and projected boxes, before training."
    parser = ToolParser(prog="tools/browse_data.py", description=description)
    parser.add_argument("config", help=CONFIG_HELP)
    parser.add_argument("--out", required=True, type=Path, help="folder of the pictures")
    parser.add_argument("--split", choices=("train", "val", "test"), default="train", help="whose pipeline and data")
    parser.add_argument("--scenes", nargs="+", help="scene names; all of the split by default")
    parser.add_argument("--max-samples", type=int, default=8, help="so many, spread over the split")
    parser.add_argument("--epoch", type=int, default=0, help="whose augmentation is drawn")
    parser.add_argument("--repeat", type=int, default=1, help="each sample in so many epochs, one after the other")
    add_config_options(parser)
    args = parser.parse_args(arguments)
    for field, value in (("--max-samples", args.max_samples), ("--repeat", args.repeat)):
        if value < 1:
            raise InputError(args.config, field, f"must be positive, not {value}")
    if args.epoch < 0:
        raise InputError(args.config, "--epoch", f"must not be negative, as {args.epoch} is")
    require_writable(args.out, "--out")
    return args


def plot_run_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line of ``tools/plot_run.py``.

    Raises:
        InputError: a number out of range, or no picture's ending.
    """
    parser = ToolParser(prog="tools/plot_run.py", description="Draw loss and metric curves of trainings.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="work directories, or their scalars.json")
    parser.add_argument("--out", type=Path, default=Path("curves.png"), help="png, svg or pdf (curves.png)")
    parser.add_argument("--keys", nargs="+", metavar="NAME", help="scalars; losses, rate, speed and scores by default")
    parser.add_argument("--smooth", type=int, default=1, metavar="N", help="mean over N reports")
    parser.add_argument("--list", action="store_true", help="print the names of the scalars instead")
    args = parser.parse_args(arguments)
    if args.smooth < 1:
        raise InputError("plot_run", "--smooth", f"must be positive, not {args.smooth}")
    if args.out.suffix not in (".png", ".svg", ".pdf"):
        raise InputError(args.out, "--out", "expected a name that ends in .png, .svg or .pdf")
    require_writable(args.out.parent, "--out")
    return args


def infer_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line of ``tools/infer.py``.

    Raises:
        InputError: flags that contradict each other, or numbers out of range.
    """
    parser = ToolParser(prog="tools/infer.py", description="A trained model on your own images (docs/inference.md).")
    model = f"{', '.join(NAMES)} (shipped), a checkpoint, or a work directory, whose newest one is taken"
    parser.add_argument("model", metavar="MODEL", help=model)
    images = "a folder, or files; '-': moments as lines of JSON on standard input, answered one by one"
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", nargs="+", type=Path, help=images)
    watch = "instead of --images: a folder into which moments come as files, each answered as soon as it is there"
    source.add_argument("--watch", type=Path, metavar="DIR", help=watch)
    parser.add_argument("--idle-seconds", type=float, metavar="S", help="end --watch when so long nothing has come")
    parser.add_argument("--calibration", required=True, type=Path, metavar="RIG.JSON", help="the cameras")
    parser.add_argument("--poses", type=Path, metavar="POSES.JSON", help="when and where: a clip with memory")
    parser.add_argument("--out", required=True, type=Path, help="folder for <moment>.json and <moment>.png")
    parser.add_argument("--config", help="instead of the checkpoint's; a program that runs (weights alone need it)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ...; the GPU where there is one by default")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), help="instead of the config's")
    parser.add_argument("--track", action="store_true", help="identities along streams, by the config's tracker")
    parser.add_argument("--check-cameras", action="store_true", help="say what is wrong with each camera")
    parser.add_argument("--mask-unhealthy", action="store_true", help="a camera with a fault sees nothing")
    parser.add_argument("--frame", choices=("bev", "ego", "global"), default="bev", help="that boxes are written in")
    parser.add_argument("--min-score", type=float, default=0.05, help="least score of a box that is written")
    parser.add_argument("--score-thr", type=float, default=0.3, help="least score of a box that is drawn")
    parser.add_argument("--cells", action="store_true", help="also write the cells of rasters and masks")
    parser.add_argument("--parquet", action="store_true", help="also boxes.parquet (needs pyarrow)")
    parser.add_argument("--no-pictures", action="store_true", help="results alone")
    parser.add_argument("--layout", choices=("wide", "tall"), help="panels right of the cameras, or below them")
    parser.add_argument("--clip", choices=("gif", "mp4", "none"), default="none", help="also a clip a stream")
    parser.add_argument("--fps", type=float, default=4.0, help="of the clip")
    args = parser.parse_args(arguments)
    for field, value in (("--min-score", args.min_score), ("--score-thr", args.score_thr)):
        if not 0 <= value <= 1:
            raise InputError("infer", field, f"{value:g} is no score from 0 to 1")
    if not args.fps > 0:
        raise InputError("infer", "--fps", f"must be positive, not {args.fps:g}")
    if args.no_pictures and args.clip != "none":
        raise InputError("infer", "--clip", "is made of the pictures: leave --no-pictures out")
    streamed = args.watch is not None or Path("-") in args.images
    if args.watch is not None:
        if not args.watch.is_dir():
            raise InputError(args.watch, "--watch", "no such folder")
        if args.out.resolve() == args.watch.resolve():
            raise InputError(args.out, "--out", "is the folder that is watched: results would be taken for moments")
        if args.poses is not None:
            raise InputError("infer", "--watch", "goes without --poses: the files of the moments hold their poses")
    if args.idle_seconds is not None and (args.watch is None or not args.idle_seconds > 0):
        raise InputError("infer", "--idle-seconds", "a positive number of seconds that goes with --watch")
    if args.watch is None and Path("-") in args.images and (len(args.images) > 1 or args.poses is not None):
        raise InputError("infer", "--images", "'-' stands alone, without --poses: its lines hold images and poses")
    if args.frame == "global" and args.poses is None and not streamed:
        raise InputError("infer", "--frame", "global needs --poses")
    require_writable(args.out, "--out")
    return args


def infer_dataset_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line of ``tools/infer_dataset.py``.

    Raises:
        InputError: numbers out of range, or a folder that cannot be written to.
    """
    description = "A trained model over all scenes of a dataset, by workers of Ray Data (docs/fleet.md)."
    parser = ToolParser(prog="tools/infer_dataset.py", description=description)
    model = f"{', '.join(NAMES)} (shipped), a checkpoint, or a work directory, whose newest one is taken"
    parser.add_argument("model", metavar="MODEL", help=model)
    parser.add_argument("root", metavar="ROOT", type=Path, help="dataset root, indexed by tools/create_data.py")
    out = "folder of the results; the same one again goes on where it stopped"
    parser.add_argument("--out", required=True, type=Path, help=out)
    workers = "processes of Ray, each with a model of its own (1); 0: this process, without Ray"
    parser.add_argument("--workers", type=int, default=1, metavar="N", help=workers)
    parser.add_argument("--version", help="folder of the tables, instead of the config's")
    parser.add_argument("--split", help="instead of the config's")
    parser.add_argument("--index-root", type=Path, metavar="DIR", help="of indices (tools/import_infos.py --out)")
    parser.add_argument("--min-score", type=float, default=0.0, help="least score of a box that is written")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), help="instead of the config's")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="of a worker; the cores' share by default")
    parser.add_argument("--address", help="of a Ray cluster that sees ROOT and --out; one is started here by default")
    parser.add_argument("--gpus", type=float, default=0.0, metavar="N", help="of a worker, as Ray counts them")
    args = parser.parse_args(arguments)
    if args.workers < 0 or args.threads < 0 or args.gpus < 0:
        raise InputError("infer_dataset", "--workers, --threads, --gpus", "must not be negative")
    if not 0 <= args.min_score <= 1:
        raise InputError("infer_dataset", "--min-score", f"{args.min_score:g} is no score from 0 to 1")
    require_writable(args.out, "--out")
    return args


def convert_calibration_parser() -> argparse.ArgumentParser:
    """Flags of ``tools/convert_calibration.py``."""
    description = "rig.json (and poses.json) for tools/infer.py, of other formats."
    parser = ToolParser(prog="tools/convert_calibration.py", description=description)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    nuscenes = kinds.add_parser("nuscenes", help="one scene of nuScenes' tables")
    nuscenes.add_argument("--version", default="v1.0-mini", help="folder of the tables")
    t4 = kinds.add_parser("t4", help="one scene of a T4 dataset, whose tables are in annotation/")
    for kind in (nuscenes, t4):
        kind.add_argument("--scene", metavar="NAME", help="the first one by default")
        bev = "the BEV frame: the lidar's, or at its place as nuScenes' lidar stands, x right and y forward"
        kind.add_argument("--bev", choices=("lidar", "nuscenes"), help=bev)
    kitti = kinds.add_parser("kitti", help="a calibration file of KITTI's object or odometry set")
    kitti.add_argument("--cameras", nargs="+", metavar="P", help="projections, P2 by default")
    kitti.add_argument("--lidar-height", type=float, default=1.73, metavar="METRES", help="above the ground")
    for kind in (nuscenes, t4, kitti):
        kind.add_argument("source", type=Path, metavar="SOURCE", help="folder of the dataset, or the calibration file")
        kind.add_argument("--out", required=True, type=Path, help="folder for rig.json and poses.json")
    return parser


def benchmark_parser() -> argparse.ArgumentParser:
    """Flags of ``tools/benchmark.py`` for one step of a config."""
    parser = ToolParser(prog="tools/benchmark.py", description="Time one step of a config.")
    parser.add_argument("config", help=CONFIG_HELP)
    add_step_options(parser)
    return parser


def add_step_options(parser: argparse._ActionsContainer) -> None:
    """``--train``, ``--repeats``, ``--sample`` and ``--cfg-options`` of a timed step."""
    parser.add_argument("--train", action="store_true", help="a training step instead of an inference")
    parser.add_argument("--repeats", type=int, default=3, help="steps that count, after one that does not")
    parser.add_argument("--sample", type=int, default=0, help="index of the first sample of the batch")
    add_config_options(parser)


def export_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line of ``tools/export.py``.

    Raises:
        InputError: a file that is neither ``.onnx`` nor ``.pt2`` or cannot be written, or a size that is none.
    """
    parser = ToolParser(prog="tools/export.py", description="A trained model as a file that runs without this package.")
    model = f"{', '.join(NAMES)} (shipped), checkpoint or work directory; a config (.py): weights drawn at random"
    parser.add_argument("model", help=model)
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="FILE.onnx or FILE.pt2")
    parser.add_argument(
        "--part", choices=("model", "backbone", "encoder"), default="model", help="backbone: with the neck"
    )
    parser.add_argument("--config", help="config of weights that carry none")
    parser.add_argument(
        "--interface", choices=("native", "mlperf"), default="native", help="mlperf: as its 3D detection reference"
    )
    parser.add_argument("--image-size", default="900x1600", metavar="HxW", help="of the cameras' images")
    parser.add_argument("--num-slots", type=int, metavar="S", help="room for so many cameras that see one cell")
    parser.add_argument(
        "--frames", type=int, help="of the stream that is run beside torch (default: 20; 4 of large images)"
    )
    parser.add_argument("--int8", action="store_true", help="quantise backbone and neck (FILE.onnx)")
    parser.add_argument(
        "--calibration-samples",
        type=int,
        default=32,
        metavar="N",
        help="of the config's training split, for --int8 (default: 32); 0: made-up images, for timing alone",
    )
    parser.add_argument("--reduce-range", action="store_true", help="seven-bit weights, for x86 CPUs without VNNI")
    parser.add_argument("--machine-code", action="store_true", help="FILE.pt2 by AOTInductor; needs a C++ compiler")
    parser.add_argument("--json", type=Path, metavar="FILE", help="what is printed, as JSON")
    add_config_options(parser)
    args = parser.parse_args(arguments)
    if args.out.suffix not in (".onnx", ".pt2"):
        raise InputError(args.out, "--out", f"ends in '{args.out.suffix}'; there are .onnx and .pt2")
    height, _, width = args.image_size.partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise InputError(args.model, "--image-size", f"'{args.image_size}' is no HEIGHTxWIDTH, as 900x1600")
    args.image_size = int(height), int(width)
    for field, value in (("--num-slots", args.num_slots), ("--frames", args.frames)):
        if value is not None and value < 1:
            raise InputError(args.model, field, f"must be positive, not {value}")
    if args.calibration_samples < 0:
        raise InputError(args.model, "--calibration-samples", f"must not be negative, as {args.calibration_samples} is")
    if args.interface == "mlperf" and args.part != "model":
        raise InputError(args.model, "--part", f"{args.part}: MLPerf's interface is one of whole models")
    for flag, given, ending in (("--int8", args.int8, ".onnx"), ("--machine-code", args.machine_code, ".pt2")):
        if given and args.out.suffix != ending:
            raise InputError(args.out, flag, f"is of files that end in {ending}")
    require_writable(args.out.parent, "--out")
    return args


def pack_parser() -> argparse.ArgumentParser:
    """Flags of ``tools/pack_weights.py``."""
    description = "Weights as one file that says by itself what they are: config, classes, rig, metrics, origin."
    parser = ToolParser(prog="tools/pack_weights.py", description=description)
    parser.add_argument("checkpoint", help="of a training (of EMA, the averaged weights), or such a file again")
    parser.add_argument("config", nargs="?", help="config file (default: the checkpoint's own config)")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="FILE.safetensors")
    parser.add_argument("--half", action="store_true", help="half precision, but for norms, biases and buffers")
    metrics = "metrics.json of tools/test.py on unseen scenes; with metrics_intervals.json where it lies beside"
    parser.add_argument("--metrics", type=Path, metavar="JSON", help=metrics)
    parser.add_argument("--command", help="that trained it (default: tools/train.py with the config)")
    parser.add_argument("--commit", help="of this package in training (default: the commit here)")
    parser.add_argument("--hours", type=float, help="of training (default: what the checkpoint counted)")
    parser.add_argument("--data", help="that it was trained on, in words")
    parser.add_argument("--licence", help="of the weights (default: Apache-2.0)")
    add_config_options(parser)
    return parser


def calibrate_parser() -> argparse.ArgumentParser:
    """Flags of ``tools/calibrate.py``."""
    description = "One temperature a head, fitted on training scenes, measured on unseen ones, stored with the weights."
    parser = ToolParser(prog="tools/calibrate.py", description=description)
    parser.add_argument("weights", metavar="FILE", help="of tools/pack_weights.py, or the name of shipped weights")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write (default: the same file)")
    parser.add_argument("--samples", type=int, default=400, help="of each split, at most (400)")
    parser.add_argument("--train-root", metavar="DIR", help="data whose training scenes are fitted (the config's)")
    parser.add_argument("--test-root", metavar="DIR", help="data whose test scenes are measured (the config's)")
    add_config_options(parser)
    return parser


def model_card_parser() -> argparse.ArgumentParser:
    """Flags of ``tools/model_card.py``."""
    description = "The pages about shipped weights, from what their files say."
    parser = ToolParser(prog="tools/model_card.py", description=description)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)} (default: all that are there)")
    parser.add_argument("--out", type=Path, default=Path("docs/model_cards"), help="folder (docs/model_cards)")
    return parser


def convert_parser() -> argparse.ArgumentParser:
    """Flags of ``tools/convert_checkpoint.py``."""
    description = "Weights of other projects in this project's layout, or the weights alone of a training's checkpoint."
    parser = ToolParser(prog="tools/convert_checkpoint.py", description=description)
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

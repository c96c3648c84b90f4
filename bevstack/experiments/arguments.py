"""The command lines of the studies' tools; light to import (:mod:`bevstack.engine.arguments`)."""

import argparse
from pathlib import Path

from bevstack.engine.arguments import CHECKPOINT_HELP, CONFIG_HELP, add_config_options, add_step_options
from bevstack.errors import ToolParser

SUITES = {
    "op": "Deformable attention alone",
    "encoder": "Encoder, forward",
    "model": "Whole model, inference",
    "train": "Training steps",
    "data": "From files to what the model takes",
    "scaling": "Growth",
    "latency": "A stream, frame by frame",
    "demo": "The demo's training step, part by part",
    "work": "Counted work",
    "gpu": "On a GPU",
}
"""Suites of ``tools/benchmark.py``, each a file of :mod:`bevstack.experiments.benchmarks`, and what they are about."""


FAULT_SUITES = ("corruptions", "cameras", "calibration", "rig", "time")
"""Suites of ``tools/robustness.py`` (:mod:`bevstack.experiments.fault_suites`)."""


def benchmark_parser() -> argparse.ArgumentParser:
    """Flags of ``tools/benchmark.py``: a suite, a page of suites' files, or one step of a config."""
    parser = ToolParser(
        prog="tools/benchmark.py",
        description="Time a suite against what people would use instead; or one step of a config.",
    )
    kinds = parser.add_mutually_exclusive_group(required=True)
    kinds.add_argument("config", nargs="?", help=f"{CONFIG_HELP}; its step is timed")
    kinds.add_argument("--suite", choices=tuple(SUITES), help="what is timed or counted")
    kinds.add_argument("--latency", dest="suite", action="store_const", const="latency", help="--suite latency")
    kinds.add_argument("--report", nargs="+", type=Path, metavar="JSON", help="write a page from files of --json")
    suite = parser.add_argument_group("with --suite")
    suite.add_argument("--against", choices=("usual", "onnxruntime", "openvino"), default="usual", help="the base")
    suite.add_argument("--json", type=Path, metavar="FILE", help="write the numbers, too")
    suite.add_argument(
        "--allocator",
        choices=("default", "raised", "kept"),
        help="glibc's thresholds: as they are, raised by the environment, or as the entry points set them "
        "(default: what the environment says)",
    )
    suite.add_argument("--threads", type=int, help="of torch and of everything else (default: the environment's)")
    suite.add_argument("--rounds", type=int, help="times that count, after one that does not (default: 9)")
    suite.add_argument("--quick", action="store_true", help="two rounds: whether it runs, not how fast")
    suite.add_argument(
        "--sizes", nargs="+", default=[], choices=("tiny", "small", "base", "toy"), help="instead of the suite's own"
    )
    suite.add_argument("--frames", type=int, default=2000, help="of a stream (latency)")
    suite.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="of suites that run in one format"
    )
    suite.add_argument(
        "--file", type=Path, metavar="FILE.onnx", help="of tools/export.py, which runs in the model's place (latency)"
    )
    suite.add_argument("--bounds", type=Path, metavar="FILE", help="write counted work as the tests' bounds (work)")
    report = parser.add_argument_group("with --report")
    report.add_argument("--page", type=Path, default=Path("docs/performance.md"), help="the page to write")
    add_step_options(parser.add_argument_group("with a config"))
    return parser


def compare_parser() -> argparse.ArgumentParser:
    """Flags of ``tools/compare.py``."""
    parser = ToolParser(
        prog="tools/compare.py",
        description="Train and score a config's variants at equal samples or equal wall clock; write one page.",
    )
    parser.add_argument("config", help="a config with a dict named comparison")
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs/comparison"), help="a folder a training")
    parser.add_argument("--records", type=Path, help="a file a finished run (default: records in the work dir)")
    parser.add_argument("--page", type=Path, help="markdown file to write (default: comparison.md in the work dir)")
    parser.add_argument("--only", nargs="+", metavar="TITLE", help="sections whose title contains one of these words")
    parser.add_argument("--list", action="store_true", help="say what would be trained, and what is done already")
    parser.add_argument("--report", action="store_true", help="write the page from the records, train nothing")
    parser.add_argument("--detach", action="store_true", help="train in a session of its own, which outlives this one")
    parser.add_argument(
        "--take",
        nargs=4,
        action="append",
        metavar=("SECTION", "NAME", "SEED", "FOLDER"),
        help="take in a run that was finished elsewhere, FOLDER that of tools/test.py; train nothing",
    )
    add_config_options(parser)
    return parser


def robustness_parser() -> argparse.ArgumentParser:
    """Flags of ``tools/robustness.py``."""
    parser = ToolParser(
        prog="tools/robustness.py", description="Score a checkpoint with faulty sensors; write one page."
    )
    parser.add_argument("config", help=f"{CONFIG_HELP}; every score is of its test set")
    parser.add_argument("checkpoint", nargs="?", help=CHECKPOINT_HELP)
    parser.add_argument("--suite", nargs="+", choices=FAULT_SUITES, default=FAULT_SUITES, help="default: all")
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs/robustness"), help="raw numbers and the page")
    parser.add_argument("--metric", help="the score that is compared (default: NDS, or else mAP)")
    parser.add_argument("--baseline", type=Path, metavar="JSON", help="robustness.json of another model, for mCE")
    parser.add_argument("--severities", nargs="+", type=int, choices=(1, 2, 3), default=[1, 2, 3], help="corruptions'")
    parser.add_argument(
        "--rigs", nargs="+", default=[], metavar="NAME=ROOT", help="the same world as other rigs took it (suite rig)"
    )
    parser.add_argument("--scenes", type=int, default=0, help="only so many of the test set's first scenes (nuScenes)")
    parser.add_argument("--workers", type=int, default=1, help="processes that score cases side by side (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of all faults")
    parser.add_argument("--as-published", action="store_true", help="with the two slips of RoboBEV's scripts")
    parser.add_argument("--page-only", action="store_true", help="write the page from what is done already")
    add_config_options(parser)
    return parser


def pretrain_motion_parser() -> argparse.ArgumentParser:
    """Flags of ``tools/pretrain_motion.py``."""
    parser = ToolParser(
        prog="tools/pretrain_motion.py",
        description="Teach a video backbone's fast path to see motion; gives a checkpoint for a training's load_from.",
    )
    parser.add_argument("config", help="config with a video backbone; what its load_from holds stays as it is")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write; a picture goes beside it (.png)")
    parser.add_argument("--steps", type=int, default=1500, help="training steps")
    parser.add_argument("--batch-size", type=int, default=16, help="clips a step")
    parser.add_argument("--patch-px", type=int, default=64, help="side of the clips, a multiple of 32")
    parser.add_argument("--samples", type=int, default=150, help="training samples whose images are used")
    parser.add_argument("--lr", type=float, default=4e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0, help="of weights and clips")
    add_config_options(parser)
    return parser


def motion_oracle_parser() -> argparse.ArgumentParser:
    """Flags of ``tools/motion_oracle.py``."""
    parser = ToolParser(
        prog="tools/motion_oracle.py",
        description="What image motion tells of moving and standing vehicles whose place is known; no model.",
    )
    parser.add_argument("--root", type=Path, required=True, help="nuScenes root with camera sweeps and an index")
    parser.add_argument("--version", default="v1.0-mini", help="folder of the tables")
    parser.add_argument("--split", default="val", help="whose samples are looked at")
    parser.add_argument("--width", type=int, default=448, help="of the images, pixels")
    parser.add_argument("--back", type=int, nargs="+", default=[1, 6], help="sweeps before the key frame, at 12 Hz")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.25, 0.5, 1.0], help="pixels, standard deviation")
    parser.add_argument("--draws", type=int, default=300, help="of scenes, for the intervals")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table, for tools/results.py")
    return parser


def results_parser() -> argparse.ArgumentParser:
    """Flags of ``tools/results.py``."""
    parser = ToolParser(
        prog="tools/results.py", description="Score trained weights, with intervals and by frames; write one page."
    )
    parser.add_argument("config", nargs="?", help="config file, of whose test set every score is")
    parser.add_argument("checkpoint", nargs="?", help="checkpoint file")
    parser.add_argument("--name", default="demo", help="of the model, on the page and of its file")
    parser.add_argument("--data-root", type=Path, help="of the test set, instead of the config's")
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs/results"), help="tests and their reports")
    parser.add_argument("--records", type=Path, default=Path("docs/benchmarks/results"), help="a file a model")
    parser.add_argument("--page", type=Path, default=Path("docs/results.md"), help="the page to write")
    parser.add_argument(
        "--frames", type=int, nargs="*", default=[1, 2, 4], help="numbers of frames that predictions may rest on"
    )
    parser.add_argument("--draws", type=int, default=300, help="of scenes, for the intervals")
    parser.add_argument("--report", action="store_true", help="write the page from the files, score nothing")
    add_config_options(parser)
    return parser

"""The command lines of the studies' tools; light to import (:mod:`bevstack.engine.arguments`)."""

import argparse
from pathlib import Path

from bevstack.engine.arguments import add_config_options


def compare_parser() -> argparse.ArgumentParser:
    """Flags of ``tools/compare.py``."""
    parser = argparse.ArgumentParser(
        prog="tools/compare.py", description="Train and score a config's variants at equal steps; write one page."
    )
    parser.add_argument("config", help="a config with a dict named comparison")
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs/comparison"), help="trainings and raw numbers")
    parser.add_argument("--page", type=Path, help="markdown file to write (default: comparison.md in the work dir)")
    parser.add_argument("--only", nargs="+", metavar="TITLE", help="sections whose title contains one of these words")
    parser.add_argument("--list", action="store_true", help="say what would be trained, and what is done already")
    parser.add_argument("--page-only", action="store_true", help="write the page from what is done already")
    add_config_options(parser)
    return parser


def pretrain_motion_parser() -> argparse.ArgumentParser:
    """Flags of ``tools/pretrain_motion.py``."""
    parser = argparse.ArgumentParser(
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

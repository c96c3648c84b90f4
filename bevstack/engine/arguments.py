"""The command lines of the engine's tools; light to import, so that ``--help`` and a mistyped flag answer at once."""

import argparse


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
    add_config_options(parser)
    add_launcher(parser)
    return parser


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """``--cfg-options KEY=VALUE ...``: overrides of the config."""
    parser.add_argument("--cfg-options", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="overrides")


def add_launcher(parser: argparse.ArgumentParser) -> None:
    """``--launcher`` and the ``--local_rank`` that old launchers pass."""
    parser.add_argument("--launcher", choices=("none", "pytorch", "slurm"), default="none", help="job launcher")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)

#!/usr/bin/env python
"""Train what a config describes: ``tools/train.py CONFIG [--work-dir DIR] [--resume [FILE]] [--amp] ...``."""

from bevstack.engine.arguments import train_parser
from bevstack.errors import run_tool

if __name__ == "__main__":
    train_parser().parse_args()  # --help and a mistyped flag answer before torch is imported
    from bevstack.engine.train import main

    run_tool(main)

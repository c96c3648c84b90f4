#!/usr/bin/env python
"""Train what a config describes: ``tools/train.py CONFIG [--work-dir DIR] [--resume [FILE]] [--amp] ...``."""

from bevstack.errors import run_tool

if __name__ == "__main__":
    from bevstack.engine.train import main

    run_tool(main)

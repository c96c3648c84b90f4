#!/usr/bin/env python
"""A trained model over all scenes of a dataset: ``tools/infer_dataset.py MODEL ROOT --out DIR [--workers N]``."""

from bevstack.engine.arguments import infer_dataset_arguments
from bevstack.errors import run_tool


def main() -> int:
    """Read the command line, then import what predicts: --help and mistaken flags answer before torch is there."""
    infer_dataset_arguments()
    from bevstack.engine import fleet

    return fleet.main()


if __name__ == "__main__":
    run_tool(main)

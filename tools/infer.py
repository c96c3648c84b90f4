#!/usr/bin/env python
"""A trained model on your own images, of a folder, of standard input or as they come.

python tools/infer.py MODEL --images DIR --calibration rig.json [--poses poses.json] --out DIR
python tools/infer.py MODEL --images - --calibration rig.json --out DIR
python tools/infer.py MODEL --watch DIR --calibration rig.json --out DIR
"""

from bevstack.engine.arguments import infer_arguments
from bevstack.errors import run_tool


def main() -> int:
    """Read the command line, then import what predicts: --help and mistaken flags answer before torch is there."""
    infer_arguments()
    from bevstack.engine import infer

    return infer.main()


if __name__ == "__main__":
    run_tool(main)

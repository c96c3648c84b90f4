#!/usr/bin/env python
"""Draw predictions and ground truth of a dataset: one PNG a sample, one GIF or MP4 a scene, one HTML page of all, one
recording for the Rerun viewer.

python tools/visualize.py CONFIG CHECKPOINT --out DIR [--split val] [--scenes NAME ...] [--score-thr 0.3]
python tools/visualize.py CONFIG CHECKPOINT --html FILE [--scenes NAME ...] [--max-samples 20]
python tools/visualize.py CONFIG CHECKPOINT --rerun FILE.rrd [--scenes NAME ...] [--max-samples 20]
python tools/visualize.py --ground-truth CONFIG --out DIR
"""

from bevstack.engine.arguments import visualize_arguments
from bevstack.errors import run_tool


def main() -> int:
    """Read the command line, then import what draws: --help and mistaken flags answer before torch is there."""
    visualize_arguments()
    from bevstack.engine import visualize

    return visualize.main()


if __name__ == "__main__":
    run_tool(main)

#!/usr/bin/env python
"""Draw predictions and ground truth of a dataset: one PNG a sample, one GIF or MP4 a scene.

python tools/visualize.py CONFIG CHECKPOINT --out DIR [--split val] [--scenes NAME ...] [--score-thr 0.3]
python tools/visualize.py --dataset-only CONFIG --out DIR
"""

from bevstack.errors import run_tool

if __name__ == "__main__":
    from bevstack.engine.visualize import main

    run_tool(main)

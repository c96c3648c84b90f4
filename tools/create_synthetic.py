#!/usr/bin/env python
"""Make the embedded synthetic dataset in nuScenes format."""

from __future__ import annotations

import argparse

from bevstack.errors import InputError, ToolParser, run_tool
from bevstack.weights import NAMES, unseen_seed, world_of


def _size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        raise InputError("create_synthetic", "--image-size", f"{text!r} is not WxH, such as 800x450")
    return int(parts[0]), int(parts[1])


def main() -> int:
    """Parse the command line, make the dataset, print one line about it."""
    parser = ToolParser(
        prog="tools/create_synthetic.py", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--root", default="data/nuscenes-synthetic", help="folder to make (replaced if it holds a synthetic dataset)"
    )
    parser.add_argument("--train-scenes", type=int, default=100)
    parser.add_argument("--val-scenes", type=int, default=16)
    seed = "of the world (default: 0; with --like drawn anew, and never that of training)"
    parser.add_argument("--seed", type=int, default=argparse.SUPPRESS, help=seed)
    parser.add_argument("--image-size", default="800x450", help="width x height in pixels, up to 1600x900")
    parser.add_argument("--sweeps", action="store_true", help="also camera images between keyframes, at 12 Hz")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0: one a core")
    parser.add_argument("--frames", type=int, default=20, help="keyframes a scene, at 2 Hz")
    parser.add_argument("--version", default="v1.0-mini", help="name of the folder of tables")
    parser.add_argument("--rig", default="sedan", help="car that the cameras are on: sedan, suv, truck or bus")
    parser.add_argument("--cameras", type=int, default=6, help="on it: 5 (none looks back), 6 or 7 (one looks far)")
    parser.add_argument(
        "--only-val", action="store_true", help="leave the train scenes out; the others are as if they were there"
    )
    parser.add_argument(
        "--rare", type=float, default=0.0, help="how many more of rare kinds in training scenes; 1: twice as many drive"
    )
    like = f"image size, frames, sweeps and rig as {' or '.join(NAMES)}, or a file of weights, was trained on"
    parser.add_argument("--like", metavar="MODEL", default=argparse.SUPPRESS, help=like)
    args = parser.parse_args()
    seed = getattr(args, "seed", 0)
    if "like" in args:
        world = world_of(args.like)
        kept = [name for name in ("image_size", "frames", "sweeps", "rig") if name in world]
        parser.set_defaults(**{name: world[name] for name in kept})
        args, seed = parser.parse_args(), unseen_seed(args.like, getattr(args, "seed", None))
        print(f"scenes of seed {seed}; {args.like} was trained on seed {world['seed']}", flush=True)
    from bevstack.synthetic.generate import generate

    counts = generate(
        args.root,
        args.train_scenes,
        args.val_scenes,
        seed,
        _size(args.image_size),
        args.sweeps,
        args.workers,
        args.frames,
        args.version,
        rig=args.rig,
        rare=args.rare,
        cameras=args.cameras,
        only_val=args.only_val,
    )
    print(
        f"{args.root}: {counts['scenes']} scenes, {counts['samples']} keyframes, {counts['images']} images, "
        f"{counts['annotations']} boxes in {counts['seconds']:.0f} s "
        f"({counts['seconds'] / counts['scenes']:.1f} s a scene)"
    )
    return 0


if __name__ == "__main__":
    run_tool(main)

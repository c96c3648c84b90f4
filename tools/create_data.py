"""Index a nuScenes version: ``python tools/create_data.py nuscenes --root data/nuscenes --version v1.0-mini``."""

from __future__ import annotations

from bevstack.errors import ToolParser, run_tool


def main() -> int:
    """Parse the command line and write the index and the map tiles."""
    parser = ToolParser(prog="tools/create_data.py", description=__doc__)
    datasets = parser.add_subparsers(dest="dataset", required=True, metavar="DATASET")
    nuscenes = datasets.add_parser("nuscenes", help="nuScenes tables, or any root in nuScenes format")
    nuscenes.add_argument("--root", required=True, help="folder with samples/, maps/ and the tables' folder")
    nuscenes.add_argument("--version", default="v1.0-mini", help="folder of the tables, such as v1.0-trainval")
    nuscenes.add_argument("--out", help="folder to write to (default: ROOT/bevstack-index)")
    nuscenes.add_argument("--no-maps", action="store_true", help="leave out the map tiles")
    nuscenes.add_argument(
        "--skip-missing", action="store_true", help="leave out samples whose images are not all there"
    )
    nuscenes.add_argument("--every", type=int, default=1, metavar="N", help="index every N-th sample of a scene alone")
    nuscenes.add_argument(
        "--velocity-gap", type=float, default=1.5, metavar="SECONDS", help="no velocity across a longer time (1.5)"
    )
    nuscenes.add_argument("--cameras", nargs="+", metavar="CHANNEL", help="index these cameras, in this order")
    nuscenes.add_argument(
        "--lidar", metavar="CHANNEL", help="whose frame is the BEV's (default: LIDAR_TOP, or the first)"
    )
    nuscenes.add_argument(
        "--own-categories", nargs="+", default=(), metavar="NAME", help="categories near nuScenes' own, and meant so"
    )
    nuscenes.add_argument("--strict", action="store_true", help="refuse what cannot be right, instead of a warning")
    args = parser.parse_args()

    from bevstack.datasets.nuscenes.create_data import IndexChoices, create_nuscenes

    choices = IndexChoices(
        cameras=args.cameras,
        lidar=args.lidar,
        skip_missing=args.skip_missing,
        every=args.every,
        velocity_gap_s=args.velocity_gap,
        own_categories=args.own_categories,
        strict=args.strict,
    )
    create_nuscenes(args.root, args.version, args.out, not args.no_maps, choices)
    return 0


if __name__ == "__main__":
    run_tool(main)

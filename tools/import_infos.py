"""Index mmdet3d's or BEVFormer's info files: ``python tools/import_infos.py INFOS.pkl --root ROOT --out DIR``."""

from __future__ import annotations

from pathlib import Path

from bevstack.errors import ToolParser, run_tool


def main() -> int:
    """Parse the command line, write the index and print what was made of what."""
    parser = ToolParser(prog="tools/import_infos.py", description=__doc__)
    parser.add_argument(
        "infos", nargs="+", type=Path, metavar="INFOS.pkl", help="info files of one version, a split each"
    )
    parser.add_argument("--root", required=True, type=Path, help="folder that samples/ is in")
    parser.add_argument("--out", required=True, type=Path, help="folder of indices (index_root of a dataset's config)")
    parser.add_argument("--version", help="of the index; by default what the files name")
    parser.add_argument("--split", help="of their samples; by default train, val or test as the file is called")
    boxes = "of boxes: before mmdet3d 1.0 or since; by default what sizes and yaws of vehicles show"
    parser.add_argument("--convention", choices=("mmdet3d-0", "mmdet3d-1"), help=boxes)
    args = parser.parse_args()

    from bevstack.datasets.nuscenes.info_index import ImportChoices, import_infos
    from bevstack.datasets.plausibility import print_findings

    made = import_infos(args.infos, args.root, args.out, ImportChoices(args.version, args.split, args.convention))
    print_findings(made["findings"])
    for path, style, convention in zip(args.infos, made["styles"], made["conventions"], strict=True):
        print(f"{path}: {style}, boxes as {convention} writes them")
    splits = ", ".join(f"{name} {scenes}" for name, scenes in made["splits"].items())
    print(f"{made['scenes']} scenes ({splits}), {made['samples']} samples, {made['boxes']} boxes -> {made['folder']}")
    print(f"read it with: index_root={str(args.out)!r}, version={made['version']!r} of the dataset")
    return 0


if __name__ == "__main__":
    run_tool(main)

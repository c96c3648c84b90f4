"""``tools/convert_checkpoint.py``: safetensors files of weights, from other projects or from a training of this one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from bevstack.engine.arguments import convert_parser
from bevstack.engine.checkpoint import TRAINED_WITH, read_checkpoint
from bevstack.engine.config import load_config
from bevstack.engine.models import build_model
from bevstack.errors import InputError
from bevstack.files import atomic_write
from bevstack.interop.foreign_weights import CURRENT_BOXES, backbone_weights, check_complete, native_weights
from bevstack.interop.reference_keys import is_published, whole, with_current_boxes

BOXES_AS_IN_FILE = "as in the source"
_BEV_QUERIES = "pts_bbox_head.bev_embedding.weight"


def main(config_folder: Path, arguments: Sequence[str] | None = None) -> int:
    """Entry point; ``config_folder`` holds the published configurations."""
    args = convert_parser().parse_args(arguments)
    out = Path(args.out)
    if out.suffix != ".safetensors":
        raise InputError(out, "OUT", "must end in .safetensors")
    if args.kind == "weights":
        return strip(Path(args.source), out)
    console = Console(stderr=True)
    steps = iter(track(range(4), "converting", console=console, transient=True, disable=not console.is_terminal))
    next(steps)
    state = read_checkpoint(args.source)["state_dict"]
    next(steps)
    if args.kind == "bevformer" and not is_published(state):
        reason = "no BEVFormer: no key starts with pts_bbox_head.transformer.encoder"
        raise InputError(args.source, "state_dict", reason)
    config = args.config or published_config(state, config_folder, args.source)
    model = build_model(load_config(config), "meta")
    next(steps)
    weights, metadata = convert(state, model, args.source, args.kind, getattr(args, "boxes", "keep"))
    next(steps)
    write_safetensors(weights, out, metadata)
    for _ in steps:
        pass
    count = sum(tensor.numel() for tensor in weights.values())
    print(f"converted {len(state)} tensors of {args.source} for {config}")
    print(f"wrote {len(weights)} tensors, {count:,} values, to {out}; boxes: {metadata['box_convention']}")
    return 0


def strip(source: Path, out: Path) -> int:
    """Write what a checkpoint's ``state_dict`` holds: with EMA the averaged weights, without optimizer and the rest.

    The file says by itself which classes it was trained on and by which cameras. It is read wherever a checkpoint is,
    except to resume.

    Raises:
        InputError: not a checkpoint; the file cannot be written.
    """
    checkpoint = read_checkpoint(source)
    meta = checkpoint.get("meta", {})
    weights = {name.removeprefix("module."): tensor for name, tensor in checkpoint["state_dict"].items()}
    told = {"format": "bevstack", "kind": "weights", "box_convention": meta.get("box_convention", BOXES_AS_IN_FILE)}
    for name in TRAINED_WITH:
        if names := (meta.get("dataset_meta") or {}).get(name):
            told[name] = json.dumps(list(names))
    write_safetensors(weights, out, told)
    before, after = (path.stat().st_size / 1e6 for path in (source, out))
    print(f"wrote {len(weights)} tensors of {source} to {out}: {before:.1f} MB -> {after:.1f} MB")
    return 0


def convert(
    state: Mapping[str, Tensor], model: nn.Module, file: str | os.PathLike, kind: str, boxes: str = "keep"
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights for ``model`` and what the file should say about them.

    Args:
        state: name to tensor of any shape, as read from ``file``.
        model: whose names and shapes are wanted (may live on the meta device).
        file: named in messages.
        kind: ``bevformer`` (complete or an error) or ``backbone``.
        boxes: ``keep`` or ``current``.

    Raises:
        InputError: which keys or shapes do not fit.
    """
    if kind == "backbone":
        weights = backbone_weights(state, model.state_dict(), file)
    else:
        weights = dict(native_weights(state, model, file))
        check_complete(weights, model.state_dict(), file)
    if boxes == "current":
        weights = with_current_boxes(weights)
    convention = CURRENT_BOXES if boxes == "current" else BOXES_AS_IN_FILE
    return weights, {"format": "bevstack", "kind": kind, "box_convention": convention}


def published_config(state: Mapping[str, Tensor], folder: Path, file: str | os.PathLike) -> Path:
    """The published configuration with as many BEV cells as the weights, whose BEV queries are (Q, C).

    Raises:
        InputError: there is none.
    """
    cells = len(state[_BEV_QUERIES]) if _BEV_QUERIES in state else 0
    names = {2500: "bevformer_tiny.py", 22500: "bevformer_small.py", 40000: "bevformer_base.py"}
    if cells not in names or not (folder / names[cells]).is_file():
        raise InputError(file, _BEV_QUERIES, f"{cells} BEV cells: no published configuration; name one with --config")
    return folder / names[cells]


def write_safetensors(weights: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write weights (of any shape) to a file, whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    with atomic_write(path, "write") as temporary:
        try:
            save_file(whole(weights), temporary, dict(metadata))
        except SafetensorError as error:
            raise InputError(path, "write", f"cannot be written: {error}") from error

"""``tools/browse_data.py``: what training sees, drawn: augmented clips with their labels, maps and projected boxes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from rich.console import Console
from rich.progress import track
from torch import Tensor

from bevstack.datasets.base import BEVDataset
from bevstack.engine.arguments import browse_data_arguments
from bevstack.engine.config import building, check_components, load_config
from bevstack.engine.visualize import build_visualizer, choose_samples
from bevstack.errors import InputError
from bevstack.geometry.boxes3d import transform_boxes
from bevstack.registry import DATASETS
from bevstack.structures import BEVDataSample
from bevstack.visualization import CameraView, DrawnBoxes, draw_cameras
from bevstack.visualization.drawing import Text, draw_texts
from bevstack.visualization.files import write_png
from bevstack.visualization.map_outlines import with_map_outlines
from bevstack.visualization.painters import true_boxes
from bevstack.visualization.palette import INK
from bevstack.visualization.sample_visualizer import forward_bearing

_EARLIER_HEIGHT_PX = 150
_CAPTION_PX, _GAP_PX = 26, 10
_GROUND_M = -1.84  # of nuScenes' lidar above the ground; where boxes stand on it, they say it


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw what the command line asks for, and print one line on what was made.

    Raises:
        InputError: a configuration or data that cannot be used, or an unknown scene.
    """
    args = browse_data_arguments(arguments)
    cfg = load_config(args.config, args.cfg_options)
    check_components(cfg)
    dataset = training_dataset(cfg, args.split)
    chosen = choose_samples(dataset, args.scenes, None)
    if not chosen:
        raise InputError(args.config, "--split", "the split has no samples")
    chosen = [chosen[n] for n in np.unique(np.linspace(0, len(chosen) - 1, args.max_samples).round().astype(int))]
    drawn = [(number, epoch) for number in chosen for epoch in range(args.epoch, args.epoch + args.repeat)]
    for number, epoch in track(drawn, "drawing", console=Console(file=sys.stderr)):
        dataset.set_epoch(epoch)
        packed = dataset[number]
        name = f"{number:06d}_epoch{epoch}_{packed['data_samples'].metainfo['token']}.png"
        write_png(args.out / name, draw_clip(packed, cfg))
    print(f"{len(drawn)} picture(s) of {len(chosen)} sample(s) in {args.out}")
    return 0


def training_dataset(cfg: Config, split: str) -> BEVDataset:
    """The dataset of a config's loader, as training has it.

    Args:
        cfg: the config. split: "train", "val" or "test".

    Raises:
        InputError: the config has no such loader.
    """
    loader = cfg.get(f"{split}_dataloader")
    if not loader:
        raise InputError(cfg.filename or "config", f"{split}_dataloader", "absent")
    with building(cfg):
        return DATASETS.build(loader["dataset"])


def draw_clip(packed: dict[str, Any], cfg: Config) -> np.ndarray:
    """A clip as the model gets it: (H, W, 3) uint8 RGB.

    The images are the augmented ones, of their size in the network. On those of the keyframe, true boxes and outlines
    of the map are projected by the very matrices that the model gets, beside what the painters of the config draw; on
    those of earlier frames the boxes of the keyframe, carried back by the motion that the model gets and their own
    velocity (where it is unknown, they stand).

    Args:
        packed: ``inputs`` and ``data_samples`` of :class:`bevstack.datasets.transforms.PackBEVInputs`.
        cfg: says how samples are drawn (``sample_visualizer``).
    """
    inputs, sample = packed["inputs"], packed["data_samples"]
    boxes = true_boxes(sample)
    boxes = DrawnBoxes(np.zeros((0, 9)), ()) if boxes is None else boxes
    rasters = [r for r in sample.get("gt_rasters", {}).values() if r.classes != ("vehicle",)]
    last = len(inputs["images"]) - 1
    views = [with_map_outlines(view, rasters, ground_of(boxes)) for view in frame_views(inputs, sample, last)]
    picture = build_visualizer(cfg).draw(sample, views)
    blocks, moved, seconds = [], torch.from_numpy(boxes.boxes).double(), 0.0
    for frame in range(last, 0, -1):
        if not bool(inputs["has_previous"][frame]):
            break
        elapsed = float(inputs["seconds"][frame])
        moved = carried_back(moved, inputs["previous_from_current"][frame].double(), elapsed)
        seconds += elapsed
        earlier = frame_views(inputs, sample, frame - 1)
        cameras = draw_row(earlier, DrawnBoxes(moved.numpy(), boxes.names))
        caption = f"{seconds:.2f} s before: the boxes, carried back by the ego motion and their velocity"
        head = np.full((_CAPTION_PX, cameras.shape[1], 3), 255, np.uint8)
        head = draw_texts(head, [Text((2, _CAPTION_PX / 2), caption, 13, INK, "lm", True)])
        blocks.append(np.pad(np.concatenate([head, cameras]), ((0, 0), (_GAP_PX, 0), (0, 0)), constant_values=255))
    in_a_row = max(1, picture.shape[1] // blocks[0].shape[1]) if blocks else 1
    rows = [np.concatenate(blocks[n : n + in_a_row], axis=1) for n in range(0, len(blocks), in_a_row)]
    width = max(row.shape[1] for row in [picture, *rows])
    return np.concatenate(
        [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in [picture, *rows]]
    )


def carried_back(boxes: Tensor, previous_from_current: Tensor, seconds: float) -> Tensor:
    """Boxes (G, 9) of a frame where they stood so many seconds before, in the frame of that moment: (G, 9).

    Args:
        boxes: a box without a known velocity stands still.
        previous_from_current: (4, 4) metres.
        seconds: between the two.
    """
    before = boxes.clone()
    before[:, :2] -= boxes[:, 7:9].nan_to_num(nan=0.0) * seconds
    return transform_boxes(previous_from_current, before)


def ground_of(boxes: DrawnBoxes) -> float:
    """Height of the ground in the BEV frame: where most boxes stand; nuScenes' where there is none."""
    return float(np.median(boxes.boxes[:, 2])) if len(boxes) else _GROUND_M


def frame_views(inputs: dict[str, Tensor], sample: BEVDataSample, frame: int) -> list[CameraView]:
    """The cameras of one frame with their images as the network gets them, without padding.

    Args:
        inputs: of a packed clip: ``images`` (T, N, 3, H, W) uint8, matrices and sizes.
        sample: names the cameras.
        frame: which of the T.
    """
    names = sample.metainfo.get("camera_names") or [f"camera {n}" for n in range(inputs["images"].shape[1])]
    views = []
    for n, name in enumerate(names):
        height, width = inputs["image_size_px"][frame, n].tolist()
        image = inputs["images"][frame, n, :, :height, :width].permute(1, 2, 0).contiguous().numpy()
        matrices = (inputs[key][frame, n].double().numpy() for key in ("pixels_from_camera", "camera_from_bev"))
        views.append(CameraView(name, image, *matrices))
    return views


def draw_row(views: Sequence[CameraView], boxes: DrawnBoxes) -> np.ndarray:
    """All cameras with boxes, small, as :func:`bevstack.visualization.draw_cameras` sets them: (H, W, 3) uint8 RGB."""
    height, width = views[0].image.shape[:2]
    cell = _EARLIER_HEIGHT_PX, round(_EARLIER_HEIGHT_PX * width / height)
    return draw_cameras(views, boxes, cell, forward_bearing(views))

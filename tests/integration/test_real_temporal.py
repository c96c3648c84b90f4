"""Real consecutive frames of another make of rig (LIDAR looks along x): the past, aligned, matches the present."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate

from bevstack.geometry import BEVGrid
from bevstack.models.bev import plan_visibility, warp_bev
from bevstack.ops import deformable_attention

ROOT = Path(os.environ.get("BEVSTACK_REALDATA", Path(__file__).parents[3] / "shared" / "realdata")) / "dgp-scene02"
# Ground in front of and beside the car, seen well; this LIDAR frame has its origin on the ground.
GRID = BEVGrid(shape=(120, 120), x_range_m=(-15, 15), y_range_m=(-15, 15), z_range_m=(-0.5, 0.5))


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """The three frames as the pipeline delivers them, oldest first: BEV images of the ground and the motion between."""
    if not ROOT.is_dir():
        pytest.skip(f"no real frames at {ROOT}: set BEVSTACK_REALDATA")
    from bevstack.datasets.nuscenes.create_data import create_nuscenes
    from bevstack.datasets.nuscenes.dataset import NuScenesBEVDataset
    from bevstack.models.preprocessor import BEVPreprocessor

    index = tmp_path_factory.mktemp("index")
    create_nuscenes(ROOT, "v1.0-mini", index)
    pipeline = [
        dict(type="LoadMultiViewImages"),
        dict(type="ResizeImages", scale=0.5),
        dict(type="PackBEVInputs"),
    ]
    dataset = NuScenesBEVDataset(
        ROOT, "v1.0-mini", "mini_val", pipeline, num_frames=3, test_mode=True, index_root=index
    )
    clip = BEVPreprocessor()(pseudo_collate([dataset[2]]), False)["inputs"]
    return [(ground_image(frame), frame.motion) for frame in clip.frames]


def ground_image(frame) -> tuple[torch.Tensor, torch.Tensor]:
    """Colours of the ground (1, 3, Y, X) sampled through the package's own projection, and where a camera sees it."""
    plan = plan_visibility(frame.rig, GRID.pillar_points(1).flatten(0, 1))
    pixels = frame.images.flatten(0, 1).flatten(2).transpose(1, 2).unsqueeze(2)  # (N, H * W, 1, 3)
    queries = plan.slots.shape[1]
    colours = deformable_attention(
        pixels,
        [tuple(frame.images.shape[-2:])],
        plan.slots,
        plan.references,
        torch.zeros(1, queries, 1, 1, 1, 1, 2),
        torch.zeros(1, queries, 1, 1, 1),
        plan.weights,
    )
    seen = (plan.slots >= 0).any(-1)
    return colours.transpose(1, 2).unflatten(2, GRID.shape), seen.unflatten(1, GRID.shape)


def mean_difference(a: torch.Tensor, b: torch.Tensor, where: torch.Tensor) -> float:
    return float((a - b).abs().mean(1)[where].mean())


def test_the_ego_moves_as_the_poses_say(frames):
    # city traffic at 10 Hz: some decimetres a frame, forward along +x of this rig's LIDAR frame
    for _, motion in frames[1:]:
        x, y = motion.previous_from_current[0, :2, 3].tolist()
        assert motion.has_previous.all() and 0.05 < motion.seconds.item() < 0.2
        assert np.hypot(x, y) < 3.0 and x > 2 * abs(y)


def test_the_previous_ground_matches_the_current_better_when_aligned(frames):
    # expected: the road does not move, so warping by the ego motion must lower the difference, both over one step and
    # over two, where the wrong alignment is further off
    (current, seen), motion = frames[2]
    (previous, seen_before), motion_before = frames[1]
    (oldest, seen_first), _ = frames[0]
    one_step = motion.previous_from_current
    two_steps = motion_before.previous_from_current @ one_step
    for past, past_seen, source_from_current in ((previous, seen_before, one_step), (oldest, seen_first, two_steps)):
        warped_seen = warp_bev(past_seen[:, None].float(), GRID, source_from_current)[:, 0] > 0.999
        where = seen & past_seen & warped_seen
        assert where.float().mean() > 0.3
        aligned = mean_difference(current, warp_bev(past, GRID, source_from_current), where)
        unaligned = mean_difference(current, past, where)
        backwards = mean_difference(current, warp_bev(past, GRID, torch.linalg.inv(source_from_current)), where)
        assert aligned < 0.9 * unaligned < backwards

"""Every compatibility switch on both sides: what the published code did, and what is done without it."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from bevstack.datasets.ego_state import CorrectedCanBus, EgoState
from bevstack.geometry import BEVGrid
from bevstack.interop.reference_keys import code_from_old_code, with_current_boxes
from bevstack.models.bev import BEVFormerEncoder, WarpAlignment
from bevstack.models.heads.detection3d_query import QueryDetectionHead
from bevstack.reference.can_bus import ReferenceCanBus
from bevstack.reference.parts import (
    OldBoxesDetectionHead,
    PaddingSeesEncoder,
    ReferenceShiftAlignment,
    rotate_bev,
)
from bevstack.structures import BEVFeatures, BEVMemory, CameraRig, EgoMotion

# Where LIDAR_TOP stands on the ego car: 0.94 m in front of its origin, x to the right.
# docs/reference.md 4.1 I, 4.5, Frames
EGO_FROM_LIDAR = np.array([[0.0, 1.0, 0.0, 0.94], [-1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.84], [0.0, 0.0, 0.0, 1.0]])


def ego_state(x, y, yaw):
    """The ego car at (x, y) metres, heading ``yaw`` radians; CAN values 7 ... 15."""
    cos, sin = math.cos(yaw), math.sin(yaw)
    global_from_ego = np.array([[cos, -sin, 0.0, x], [sin, cos, 0.0, y], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    raw = np.array([x, y, 0.0, math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2), *range(7, 16)], dtype=np.float64)
    return EgoState(raw, True, global_from_ego @ EGO_FROM_LIDAR)


def motion_between(previous, current, form):
    matrix = np.linalg.inv(previous.global_from_bev) @ current.global_from_bev
    return EgoMotion(
        torch.from_numpy(matrix).float()[None],
        torch.tensor([True]),
        torch.tensor([0.5]),
        torch.from_numpy(form(current, previous)).float()[None],
    )


def memory_on(grid, features):
    batch = len(features)
    return BEVMemory(
        features.unsqueeze(1), grid, torch.eye(4).expand(batch, 1, 4, 4), torch.ones(batch, 1, dtype=torch.bool)
    )


def aligned_by(alignment, memory, motion):
    return alignment(memory.moved(motion), motion)


def places_on(grid):
    """(1, 2, Y, X): every cell holds its own metres, so that a moved map tells where each cell came from."""
    return grid.cell_centers().permute(2, 0, 1)[None]


SMALL_GRID = BEVGrid((40, 40), (-20.0, 20.0), (-20.0, 20.0))
START, TURNED = ego_state(3.0, -2.0, 0.4), ego_state(6.0, -1.0, 0.4 + math.radians(5))


@pytest.mark.parametrize("alias", [False, True])
def test_alias_shift_moves_both_references_or_only_the_first(alias):
    alignment = ReferenceShiftAlignment(alias_shift=alias)
    motion = motion_between(START, TURNED, CorrectedCanBus())
    shift = aligned_by(alignment, memory_on(SMALL_GRID, places_on(SMALL_GRID)), motion).reference_shift
    assert shift[0, 0].abs().min() > 1e-3
    torch.testing.assert_close(shift[0, 1], shift[0, 0] if alias else torch.zeros(2))

    encoder = BEVFormerEncoder(SMALL_GRID, channels=8, num_levels=1, num_layers=1, num_heads=2)
    history = aligned_by(alignment, memory_on(SMALL_GRID, torch.zeros(1, 8, 40, 40)), motion)
    context = encoder.temporal_context(torch.zeros(1, 1600, 8), history)
    moved = context.references[0] - encoder.references[:, None]
    torch.testing.assert_close(moved, shift[0].expand(1600, -1, -1), atol=1e-6, rtol=0)


def test_without_history_nothing_is_shifted_even_when_aliased():
    encoder = BEVFormerEncoder(SMALL_GRID, channels=8, num_levels=1, num_layers=1, num_heads=2)
    motion = replace(motion_between(START, TURNED, CorrectedCanBus()), has_previous=torch.tensor([False]))
    memory = memory_on(SMALL_GRID, torch.zeros(1, 8, 40, 40))
    history = aligned_by(ReferenceShiftAlignment(alias_shift=True), memory, motion)
    context = encoder.temporal_context(torch.zeros(1, 1600, 8), history)
    torch.testing.assert_close(context.references[0], encoder.references[:, None].expand(-1, 2, -1))


@pytest.mark.parametrize(
    ("cells", "degrees", "off_m"), [(150, 1.0, 0.42), (150, 5.0, 2.11), (50, 1.0, 3.79), (50, 5.0, 18.95)]
)
def test_rotate_center_of_100_misplaces_small_grids_and_the_true_one_does_not(cells, degrees, off_m):
    # docs/reference.md 4.1 B: metres by which what surrounds the ego is misplaced
    grid, angle = BEVGrid((cells, cells)), torch.tensor([math.radians(degrees)])
    for center, expected in (((100.0, 100.0), off_m), ((cells / 2, cells / 2), 0.0)):
        came_from = rotate_bev(places_on(grid), angle, center, "bilinear")[0]
        around_origin = came_from[:, cells // 2 - 1 : cells // 2 + 1, cells // 2 - 1 : cells // 2 + 1].mean((1, 2))
        assert around_origin.norm().item() == pytest.approx(expected, abs=0.006)
    published = ReferenceShiftAlignment((100, 100))
    corrected = ReferenceShiftAlignment()
    still = replace(motion_between(START, START, CorrectedCanBus()), can_bus=None)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    still.previous_from_current[0, :2, :2] = torch.tensor([[cos, -sin], [sin, cos]])
    memory = memory_on(grid, places_on(grid))
    middle = slice(cells // 2 - 1, cells // 2 + 1)
    for alignment, expected in ((published, off_m), (corrected, 0.0)):
        came_from = aligned_by(alignment, memory, still).features[0, 0, :, middle, middle].mean((1, 2))
        assert came_from.norm().item() == pytest.approx(expected, abs=0.006)


@pytest.mark.parametrize(("interpolation", "unchanged"), [("nearest", True), ("bilinear", False)])
def test_nearest_rotation_loses_a_small_turn(interpolation, unchanged):
    # expected: docs/reference.md 4.1 F: 0.2 degrees leave 200 x 200 cells as they were; the threshold is about 0.29
    features = torch.randn(1, 2, 200, 200, generator=torch.Generator().manual_seed(0))
    for degrees, same in ((0.2, unchanged), (0.5, False)):
        rotated = rotate_bev(features, torch.tensor([math.radians(degrees)]), (100.0, 100.0), interpolation)
        assert torch.equal(rotated, features) == same


def test_bilinear_rotation_about_the_origin_is_the_corrected_warp():
    motion = motion_between(START, TURNED, CorrectedCanBus())
    motion.previous_from_current[:, :3, 3] = 0
    memory = memory_on(SMALL_GRID, torch.randn(1, 3, 40, 40, generator=torch.Generator().manual_seed(0)))
    ours = aligned_by(ReferenceShiftAlignment(), memory, motion)
    warped = aligned_by(WarpAlignment(), memory, motion)
    torch.testing.assert_close(ours.features, warped.features, atol=1e-4, rtol=0)
    assert (ours.reference_shift == 0).all()


CHORD_M = 2 * 0.94 * math.sin(math.radians(2.5))


@pytest.mark.parametrize(("motion_from", "error_m"), [("bev", 0.0), ("can_bus", CHORD_M)])
def test_ego_pose_forgets_the_lever_arm_of_the_lidar(motion_from, error_m):
    # expected: the chord that a point 0.94 m from the ego's origin moves in a turn of 5 degrees, .08 m (4.1 I)
    previous, current = ego_state(3.0, -2.0, 0.4), ego_state(3.0, -2.0, 0.4 + math.radians(5))
    motion = motion_between(previous, current, ReferenceCanBus())
    moved, turned = ReferenceShiftAlignment(motion=motion_from).planar_motion(motion)
    truth = np.linalg.inv(current.global_from_bev)[:3, :3] @ (
        current.global_from_bev[:3, 3] - previous.global_from_bev[:3, 3]
    )
    assert (moved[0].double() - torch.from_numpy(truth[:2])).norm().item() == pytest.approx(error_m, abs=1e-5)
    assert turned.item() == pytest.approx(math.radians(5), abs=1e-5)


@pytest.mark.parametrize("motion_from", ["bev", "can_bus"])
def test_both_motions_agree_on_a_straight_way(motion_from):
    # 5 m forward is +5 m along y of the lidar frame (4.5, shift), whatever the heading
    previous, current = ego_state(0.0, 0.0, 2.0), ego_state(5 * math.cos(2.0), 5 * math.sin(2.0), 2.0)
    motion = motion_between(previous, current, ReferenceCanBus())
    moved, turned = ReferenceShiftAlignment(motion=motion_from).planar_motion(motion)
    torch.testing.assert_close(moved, torch.tensor([[0.0, 5.0]]), atol=1e-5, rtol=0)
    assert turned.item() == pytest.approx(0.0, abs=1e-6)


def test_motion_of_can_bus_needs_one():
    motion = replace(motion_between(START, TURNED, CorrectedCanBus()), can_bus=None)
    with pytest.raises(ValueError, match="can_bus"):
        ReferenceShiftAlignment(motion="can_bus").planar_motion(motion)


ALL_OFF = dict.fromkeys(("quaternion_w", "absolute_yaw", "global_axis_deltas", "unwrapped_yaw_change"), False)


@pytest.mark.parametrize("switch", [None, *ALL_OFF])
def test_each_can_bus_switch_changes_its_own_values_alone(switch):
    # The heading passes zero between the frames: 350 degrees, then 10.
    previous, current = ego_state(1.0, 2.0, math.radians(350)), ego_state(4.0, 6.0, math.radians(10))
    corrected = CorrectedCanBus()(current, previous)
    vector = ReferenceCanBus(**{**ALL_OFF, **({switch: True} if switch else {})})(current, previous)
    published = {
        "quaternion_w": (slice(3, 7), [math.cos(math.radians(5))] * 4),
        "absolute_yaw": (slice(16, 17), [math.radians(10)]),
        "global_axis_deltas": (slice(0, 3), [3.0, 4.0, 0.0]),
        "unwrapped_yaw_change": (slice(17, 18), [-340.0]),
    }
    expected = corrected.copy()
    if switch:
        where, values = published[switch]
        expected[where] = values
        assert not np.allclose(corrected[where], values)
    np.testing.assert_allclose(vector, expected, atol=1e-9)


def test_the_corrected_values_behind_the_can_bus_switches():
    previous, current = ego_state(1.0, 2.0, math.radians(350)), ego_state(4.0, 6.0, math.radians(10))
    corrected = CorrectedCanBus()(current, previous)
    half = math.radians(5)
    np.testing.assert_allclose(corrected[3:7], [math.cos(half), 0, 0, math.sin(half)], atol=1e-9)
    assert corrected[16] == 0 and corrected[17] == pytest.approx(20.0)
    assert np.linalg.norm(corrected[:2]) == pytest.approx(5.0)


def test_the_first_frame_tells_of_no_motion():
    vector = ReferenceCanBus()(TURNED, None)
    assert (vector[:3] == 0).all() and vector[17] == 0
    assert vector[16] == pytest.approx(TURNED.yaw)


@pytest.mark.parametrize(("kind", "seen_in_padding"), [(BEVFormerEncoder, False), (PaddingSeesEncoder, True)])
def test_padding_counts_as_seen_or_not(kind, seen_in_padding):
    # One camera looking along +x; a cell 10 m ahead, 2 m low falls to row 70 of an image of 64 rows padded to 96.
    grid = BEVGrid((1, 1), (9.0, 11.0), (-1.0, 1.0), (-2.5, 5.5))
    camera_from_bev = torch.tensor([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])[None, None]
    pixels_from_camera = torch.tensor([[100.0, 0, 48], [0, 100, 50], [0, 0, 1]])[None, None]
    rig = CameraRig(pixels_from_camera, camera_from_bev, torch.tensor([[[64, 96]]]), (96, 96))
    sizes = {"num_cameras": 1, "num_levels": 1, "num_layers": 1, "num_heads": 2, "num_points": 1, "num_heights": 1}
    encoder = kind(grid, channels=8, **sizes)
    plan = encoder.visibility(rig)
    assert (plan.slots >= 0).all().item() == seen_in_padding
    torch.testing.assert_close(plan.references[0, 0, 0, 0, 1], torch.tensor(70 / 96))  # of the padded image, either way


def test_old_boxes_in_the_head_equal_converted_weights():
    grid = BEVGrid((6, 6))
    arguments = {"in_channels": 16, "grid": grid, "classes": ["a", "b"], "num_queries": 5}
    arguments["decoder"] = {"num_layers": 2, "num_heads": 2, "feed_forward_channels": 16}
    torch.manual_seed(0)
    published = OldBoxesDetectionHead(**arguments).eval()
    for parameter in published.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    converted = QueryDetectionHead(**arguments).eval()
    converted.load_state_dict(with_current_boxes(published.state_dict()))
    untouched = QueryDetectionHead(**arguments).eval()
    untouched.load_state_dict(published.state_dict())
    bev = BEVFeatures(torch.randn(1, 16, 6, 6), grid)
    ours, theirs, raw = published(bev)["boxes"], converted(bev)["boxes"], untouched(bev)["boxes"]
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(code_from_old_code(raw), theirs)
    assert not torch.allclose(raw, theirs)


def test_the_old_code_of_a_known_box():
    # mmdet3d 0.17: sizes (w, l, h), yaw = -rotation - pi / 2 (docs/reference.md 4.7): a car turned left by .3
    width, length, height, rotation = 1.9, 4.5, 1.6, 0.3
    old_yaw = -rotation - math.pi / 2
    rest = (math.log(height), 5.0, 1.0)
    old = torch.tensor(
        [1.0, 2.0, math.log(width), math.log(length), 0.5, rest[0], math.sin(old_yaw), math.cos(old_yaw), *rest[1:]]
    )
    new = torch.tensor(
        [1.0, 2.0, math.log(length), math.log(width), 0.5, rest[0], math.sin(rotation), math.cos(rotation), *rest[1:]]
    )
    torch.testing.assert_close(code_from_old_code(old), new)
    torch.testing.assert_close(code_from_old_code(new), old)

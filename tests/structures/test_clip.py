"""Clips of frames: matrices and moving between devices."""

import torch

from bevstack.geometry import BEVGrid
from bevstack.structures import BEVMemory, CameraRig, Clip, EgoMotion, Frame


def frame(batch=2, cameras=3, can_bus=True, seed=0):
    g = torch.Generator().manual_seed(seed)
    rig = CameraRig(
        pixels_from_camera=torch.randn(batch, cameras, 3, 3, generator=g),
        camera_from_bev=torch.cat(
            [torch.randn(batch, cameras, 3, 4, generator=g), torch.eye(4)[3:].expand(batch, cameras, 1, 4)], dim=-2
        ),
        image_size_px=torch.tensor([30, 50]).expand(batch, cameras, 2),
        padded_size_px=(32, 64),
    )
    motion = EgoMotion(
        previous_from_current=torch.eye(4).expand(batch, 4, 4),
        has_previous=torch.zeros(batch, dtype=torch.bool),
        seconds=torch.zeros(batch),
        can_bus=torch.zeros(batch, 18) if can_bus else None,
    )
    return Frame(torch.zeros(batch, cameras, 3, 32, 64), rig, motion)


def test_pixels_from_bev_is_intrinsics_after_extrinsics():
    rig = frame().rig
    point = torch.tensor([1.0, 2.0, 3.0, 1.0])
    camera = (rig.camera_from_bev @ point)[..., :3]
    pixels = (rig.pixels_from_camera @ camera.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close((rig.pixels_from_bev @ point)[..., :3], pixels)
    assert rig.pixels_from_bev.shape == (2, 3, 4, 4) and rig.num_cameras == 3
    assert torch.equal(rig.pixels_from_bev[..., 3, :], torch.tensor([0.0, 0, 0, 1]).expand(2, 3, 4))


def test_a_clip_moves_as_one():
    valid = torch.ones(2, 1, dtype=torch.bool)
    memory = BEVMemory(torch.zeros(2, 1, 4, 5, 6), BEVGrid((5, 6)), torch.eye(4).expand(2, 1, 4, 4), valid)
    clip = Clip((frame(), frame(can_bus=False)), memory).to("meta")
    assert isinstance(clip, Clip) and clip.batch_size == 2 and len(clip.frames) == 2
    for moved in clip.frames:
        tensors = (moved.images, moved.rig.pixels_from_camera, moved.rig.image_size_px, moved.motion.has_previous)
        assert {tensor.device.type for tensor in tensors} == {"meta"}
        assert moved.rig.padded_size_px == (32, 64)
    assert clip.frames[1].motion.can_bus is None and clip.frames[0].motion.can_bus.device.type == "meta"
    assert clip.memory.features.device.type == "meta"
    assert Clip((frame(),)).to("cpu").memory is None

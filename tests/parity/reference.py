"""Our modules with the recorded reference's sizes, weights and inputs."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import torch

from bevstack.geometry import BEVGrid
from bevstack.interop.reference_keys import our_weights
from bevstack.models.bev import BEVFormerEncoder
from bevstack.models.heads.detection3d_query import QueryDetectionHead
from bevstack.reference.parts import ReferenceShiftAlignment
from bevstack.structures import BEVMemory, CameraRig, EgoMotion

HEAD = "pts_bbox_head."
ENCODER = HEAD + "transformer.encoder."


def weights_of(case, published_prefix, our_prefix, group="weights"):
    """Recorded weights, named relative to ``published_prefix``, relative to ``our_prefix``: as a checkpoint's are."""
    published = {published_prefix + name: tensor for name, tensor in case.group(group).items()}
    ours = our_weights(published)
    return {name[len(our_prefix) :]: tensor for name, tensor in ours.items() if name.startswith(our_prefix)}


def in_float64(case):
    """The case with its floating-point tensors in float64."""
    tensors = {key: t.double() if t.is_floating_point() else t for key, t in case.tensors.items()}
    return replace(case, tensors=tensors)


def encoder_in_float64(encoder):
    """The encoder with weights and points in float64."""
    encoder = encoder.double()
    heights = encoder.pillars.shape[1]
    encoder.pillars = encoder.grid.pillar_points(heights, dtype=torch.float64).flatten(0, 1)
    encoder.references = encoder.grid.reference_points(dtype=torch.float64)
    return encoder


def grid_of(config):
    x0, y0, z0, x1, y1, z1 = config["pc_range"]
    return BEVGrid(tuple(config["bev_hw"]), (x0, x1), (y0, y1), (z0, z1))


def encoder_of(config, **changes):
    cameras = changes.pop("num_cameras", 6)
    arguments = {
        "grid": grid_of(config),
        "channels": config["dim"],
        "num_cameras": cameras,
        "num_levels": len(config["feat_hw"]),
        "num_layers": config["enc_layers"],
        "num_heads": config["heads"],
        "num_points": config["sca_points"],
        "num_heights": config["pillar"],
        "temporal_points": config["tsa_points"],
        "feed_forward_channels": config["ffn"],
    }
    return BEVFormerEncoder(**{**arguments, **changes}).eval()


def head_of(config, **changes):
    arguments = {
        "in_channels": config["dim"],
        "grid": grid_of(config),
        "classes": [f"class_{k}" for k in range(config["num_classes"])],
        "num_queries": config["num_query"],
        "decoder": {
            "num_layers": config["dec_layers"],
            "num_heads": config["heads"],
            "num_points": config["dec_points"],
            "feed_forward_channels": config["ffn"],
        },
    }
    return QueryDetectionHead(**{**arguments, **changes}).eval()


def reference_alignment(config):
    """The rotation and shift that the recordings were made with: not aliased, nearest, of can_bus."""
    return ReferenceShiftAlignment(config["rotate_center"], "nearest", alias_shift=False, motion="can_bus")


def rig_of(metas, dtype=torch.float32):
    """The recorded ``lidar2img`` of every sample; images have no padding there."""
    matrices = torch.tensor([meta["lidar2img"] for meta in metas], dtype=dtype)
    sizes = torch.tensor([[shape[:2] for shape in meta["img_shape"]] for meta in metas])
    identity = torch.eye(3, dtype=dtype).expand(*matrices.shape[:2], 3, 3)
    return CameraRig(identity, matrices, sizes, tuple(sizes[0, 0].tolist()))


def motion_of(metas, dtype=torch.float32):
    can_bus = torch.tensor([meta["can_bus"] for meta in metas], dtype=dtype)
    batch = len(metas)
    return EgoMotion(
        torch.full((batch, 4, 4), float("nan")),  # the recorded can_bus alone must do
        torch.ones(batch, dtype=torch.bool),
        torch.zeros(batch),
        can_bus,
    )


def history_of(previous, motion, grid, config):
    """(B, Q, C) recorded previous BEV (docs/reference.md 4.5, Output), aligned as in the recordings; None for None."""
    if previous is None:
        return None
    batch = len(previous)
    memory = BEVMemory(
        previous.transpose(1, 2).unflatten(2, grid.shape).unsqueeze(1),
        grid,
        torch.eye(4).expand(batch, 1, 4, 4),
        torch.ones(batch, 1, dtype=torch.bool),
    )
    return reference_alignment(config)(memory.moved(motion), motion)


def context_with_position(context, position):
    """``position`` (B, C, Y, X) as recorded, in place of the encoder's own encoding."""
    return replace(context, position=position.flatten(2).transpose(1, 2))


@contextmanager
def recorded_outputs(modules):
    """Outputs of the modules while the block runs, in order."""
    outputs = []
    handles = [module.register_forward_hook(lambda _, __, output: outputs.append(output)) for module in modules]
    yield outputs
    for handle in handles:
        handle.remove()

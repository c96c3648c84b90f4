"""The interface of MLPerf Automotive's 3D detection reference, so that its harness runs a file of ours unchanged.

Source: mlcommons/mlperf_automotive, automotive/camera-3d-detection (``backend_deploy.py``, ``preprocess.py``): five
inputs in the order below, of which the fed ``prev_bev`` is the first output of the run before.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bevstack.errors import InputError
from bevstack.interop.reference_keys import code_from_old_code
from bevstack.models import BEVPerception
from bevstack.structures import BEVMemory, CameraRig, EgoMotion, Frame

DETECTION = "detection"


class MLPerfStep(nn.Module):
    """A step of a BEVFormer by the names and shapes of MLPerf's reference.

    Inputs: ``img`` (1, N, 3, H, W); ``prev_bev`` (Y * X, 1, C); ``use_prev_bev`` () 1.0 or 0.0; ``can_bus`` (18,) as
    published (absolute heading, global axes); ``lidar2img`` (1, N, 4, 4). Outputs: ``bev`` (Y * X, 1, C), ``cls``
    (D, 1, Q, K) logits and ``coords`` (D, 1, Q, 10) of every decoder layer, in the box code of mmdet3d 0.17.

    Args:
        model: with the published alignment (``compat = "bevformer_v1"``), motion embedding and a detection head.
        frame: for the sizes.

    Raises:
        InputError: another kind of model.
    """

    input_names = ("img", "prev_bev", "use_prev_bev", "can_bus", "lidar2img")
    output_names = ("bev", "cls", "coords")
    fed_back = {"prev_bev": "bev"}

    def __init__(self, model: BEVPerception, frame: Frame) -> None:
        super().__init__()
        if getattr(model.alignment, "motion", None) != "can_bus" or model.memory_frames != 1:
            reason = "MLPerf's harness tells motion by can_bus alone; the config needs compat = 'bevformer_v1'"
            raise InputError("export", "--interface", reason)
        if set(model.heads) != {DETECTION}:
            reason = f"MLPerf knows one head, '{DETECTION}'; the model has {', '.join(model.heads) or 'none'}"
            raise InputError("export", "--interface", reason)
        self.model, self.padded_size_px = model, frame.rig.padded_size_px
        self.image_size_px: Tensor
        size = torch.tensor(self.padded_size_px).expand_as(frame.rig.image_size_px)
        self.register_buffer("image_size_px", size.contiguous(), persistent=False)

    def forward(
        self, img: Tensor, prev_bev: Tensor, use_prev_bev: Tensor, can_bus: Tensor, lidar2img: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``bev`` (Q, 1, C), ``cls`` (D, 1, queries, K) and ``coords`` (D, 1, queries, 10)."""
        grid, device = self.model.encoder.grid, img.device
        identity = torch.eye(4, device=device).unsqueeze(0)
        pixels_from_camera = torch.eye(3, device=device).expand(1, lidar2img.shape[1], 3, 3)  # lidar2img is the product
        rig = CameraRig(pixels_from_camera, lidar2img, self.image_size_px, self.padded_size_px)
        previous = use_prev_bev.reshape(1) > 0.5
        motion = EgoMotion(identity, previous, torch.zeros(1, device=device), can_bus.unsqueeze(0))
        remembered = prev_bev.permute(1, 2, 0).unflatten(2, grid.shape).unsqueeze(1)
        memory = BEVMemory(remembered, grid, identity.unsqueeze(1), previous.unsqueeze(1))
        bev, _ = self.model.step(Frame(img, rig, motion), memory)
        raw = self.model.heads[DETECTION](bev)
        encoded = bev.features if bev.encoded is None else bev.encoded.features
        return encoded.flatten(2).permute(2, 0, 1), raw["logits"], code_from_old_code(raw["boxes"])

    def inputs_of(self, frame: Frame, memory: BEVMemory | None) -> dict[str, Tensor]:
        """A frame of one sample and what is remembered, None for nothing: ``img`` (1, N, 3, H, W) and the others."""
        encoder = self.model.encoder
        prev_bev = torch.zeros(encoder.grid.num_cells, 1, encoder.channels)
        if memory is not None:
            prev_bev = memory.features[:, 0].flatten(2).permute(2, 0, 1)
        can_bus = torch.zeros(1, 18) if frame.motion.can_bus is None else frame.motion.can_bus
        values = (
            frame.images.float(),
            prev_bev.contiguous(),
            torch.tensor(float(memory is not None)),
            can_bus[0].float(),
            frame.rig.pixels_from_bev,
        )
        return dict(zip(self.input_names, values, strict=True))

    def outputs_of(self, frame: Frame, memory: BEVMemory | None) -> tuple[dict[str, Tensor], BEVMemory | None]:
        """What the model itself makes of a frame (1, N, 3, H, W), by the names of the outputs, and its memory after."""
        bev, after = self.model.step(frame, memory)
        raw = self.model.heads[DETECTION](bev)
        encoded = bev.features if bev.encoded is None else bev.encoded.features
        values = (encoded.flatten(2).permute(2, 0, 1), raw["logits"], code_from_old_code(raw["boxes"]))
        return dict(zip(self.output_names, values, strict=True)), after

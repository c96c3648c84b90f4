"""One step of a model as a function of tensors alone, with its memory as inputs and outputs: what exporters follow.

What is exported is :meth:`bevstack.models.BEVPerception.step` itself and what its heads make of B_t; here its
structures are taken apart into named tensors and put together again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bevstack.errors import InputError
from bevstack.models import BEVPerception
from bevstack.models.bev import BEVFormerEncoder
from bevstack.models.perception import raw_of
from bevstack.ops import backends
from bevstack.structures import BEVFeatures, BEVMemory, CameraRig, EgoMotion, Frame

MEMORY = {
    "memory_features": "new_memory_features",
    "memory_poses": "new_memory_poses",
    "memory_valid": "new_memory_valid",
    "memory_seconds": "new_memory_seconds",
}
"""Inputs that are the memory, and the output that each takes from the step before."""


class StepOfTensors(nn.Module):
    """A model's step and its heads' raw outputs, as a function of named tensors of fixed shapes.

    Inputs, of one sample: ``images`` (1, N, 3, H, W) normalised; ``pixels_from_camera`` (1, N, 3, 3) and
    ``camera_from_bev`` (1, N, 4, 4) of these images; ``previous_from_current`` (1, 4, 4), ``has_previous`` (1,) bool
    and ``seconds`` (1,) of the motion; ``can_bus`` (1, 18) where the model reads it; and, where it remembers anything,
    ``memory_features`` (1, M, C, Y, X). With M > 1 also ``memory_poses`` (1, M, 4, 4), ``memory_valid`` (1, M) bool and
    ``memory_seconds`` (1, M); one frame is here and now, and as valid as ``has_previous`` says.

    Outputs: each head's raw tensors as ``<head>.<name>``, and the new memory as ``new_<input>``.

    Args:
        model: whose step it is; in evaluation mode.
        frame: a frame of one sample, for the sizes.
        extra: whether the outputs also have ``bev``, B_t as heads read it (1, C, Y, X).

    Attributes:
        input_names, output_names: of :meth:`forward`, in order.

    Raises:
        InputError: a video backbone, or an encoder whose cameras are others than the frame's.
    """

    def __init__(self, model: BEVPerception, frame: Frame, extra: bool = False) -> None:
        super().__init__()
        if getattr(model.backbone, "num_sweeps", 0):
            raise InputError("model", "backbone", "a video backbone: its sweeps are not exported yet")
        self.model, self.extra, self.padded_size_px = model, extra, frame.rig.padded_size_px
        self.reads_can_bus = frame.motion.can_bus is not None and _reads_can_bus(model)
        self.image_size_px: Tensor
        self.register_buffer("image_size_px", frame.rig.image_size_px.contiguous(), persistent=False)
        names = ["images", "pixels_from_camera", "camera_from_bev", "previous_from_current", "has_previous", "seconds"]
        names += ["can_bus"] * self.reads_can_bus
        kept = list(MEMORY) if model.memory_frames > 1 else list(MEMORY)[: model.memory_frames]
        self.input_names = (*names, *kept)
        self.memory_names = tuple(kept)
        self.output_names: tuple[str, ...] = ()
        self._name_outputs(frame)

    @torch.no_grad()
    def _name_outputs(self, frame: Frame) -> None:
        self.output_names = tuple(self.outputs_of(frame, None)[0])

    @property
    def fed_back(self) -> dict[str, str]:
        """Which input takes which output of the step before."""
        return {name: MEMORY[name] for name in self.memory_names}

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        """Outputs (1, ...) in the order of ``output_names``, of inputs (1, ...) in the order of ``input_names``."""
        inputs = dict(zip(self.input_names, given, strict=True))
        bev, memory = self.model.step(self._frame(inputs), self._memory(inputs))
        return tuple(self.outputs(bev, memory).values())

    def inputs_of(self, frame: Frame, memory: BEVMemory | None) -> dict[str, Tensor]:
        """A frame of one sample and what is remembered, None for nothing: ``images`` (1, N, 3, H, W) and the others."""
        values = self._values(frame, memory)
        return {name: values[name].contiguous() for name in self.input_names}

    def _values(self, frame: Frame, memory: BEVMemory | None) -> dict[str, Any]:
        rig, motion = frame.rig, frame.motion
        values: dict[str, Any] = {
            "images": frame.images.float(),
            "pixels_from_camera": rig.pixels_from_camera,
            "camera_from_bev": rig.camera_from_bev,
            "previous_from_current": motion.previous_from_current.float(),
            "has_previous": motion.has_previous & (memory is not None or self.model.memory_frames == 0),
            "seconds": motion.seconds.float(),
            "can_bus": motion.can_bus,
        }
        return values | self._kept(memory)

    def outputs_of(self, frame: Frame, memory: BEVMemory | None) -> tuple[dict[str, Tensor], BEVMemory | None]:
        """What the model itself makes of a frame (1, N, 3, H, W), by the names of the outputs, and its memory after."""
        bev, after = self.model.step(frame, memory)
        return self.outputs(bev, after), after

    def outputs(self, bev: BEVFeatures, memory: BEVMemory | None) -> dict[str, Tensor]:
        """What a step gives, as named outputs: B_t (1, C, Y, X) where asked, raw answers of the heads, memory."""
        named = {"bev": bev.features} if self.extra else {}
        for name, head in self.model._bev_heads():
            named |= {f"{name}.{key}": value for key, value in raw_of(head, bev).items()}
        for name, image_head in self.model._image_heads():
            if image_head.predicts:
                named |= {f"{name}.{key}": value for key, value in image_head(bev.image_features).items()}
        if memory is not None:
            named |= {MEMORY[key]: value for key, value in self._kept(memory).items()}
        return {name: value.contiguous() for name, value in named.items()}

    def _kept(self, memory: BEVMemory | None) -> dict[str, Tensor]:
        """The memory as named tensors, filled up with frames that are not valid."""
        frames, encoder = self.model.memory_frames, self.model.encoder
        if not self.memory_names:
            return {}
        features = torch.zeros(1, frames, encoder.channels, *encoder.grid.shape)
        poses, valid = torch.eye(4).repeat(1, frames, 1, 1), torch.zeros(1, frames, dtype=torch.bool)
        seconds = torch.zeros(1, frames)
        if memory is not None:
            there = memory.features.shape[1]
            pairs = [(features, memory.features), (poses, memory.now_from_frame)]
            pairs += [(valid, memory.valid), (seconds, memory.seconds)]
            kept = [torch.cat([value.to(empty.dtype), empty[:, there:]], dim=1) for empty, value in pairs]
            features, poses, valid, seconds = kept
        if frames > 1:  # what is not valid may be anything; here it is nothing
            poses = torch.where(valid[..., None, None], poses, torch.eye(4))
            seconds = torch.where(valid, seconds, 0.0)
        return (
            dict(zip(MEMORY, (features, poses, valid, seconds), strict=True))
            if frames > 1
            else {"memory_features": features}
        )

    def _frame(self, inputs: Mapping[str, Tensor]) -> Frame:
        rig = CameraRig(
            inputs["pixels_from_camera"], inputs["camera_from_bev"], self.image_size_px, self.padded_size_px
        )
        motion = EgoMotion(
            inputs["previous_from_current"], inputs["has_previous"], inputs["seconds"], inputs.get("can_bus")
        )
        return Frame(inputs["images"], rig, motion)

    def _memory(self, inputs: Mapping[str, Tensor]) -> BEVMemory | None:
        if not self.memory_names:
            return None
        features, grid = inputs["memory_features"], self.model.encoder.grid
        if self.model.memory_frames > 1:
            rest = (inputs["memory_poses"], inputs["memory_valid"], inputs["memory_seconds"])
            return BEVMemory(features, grid, *rest)
        poses = torch.eye(4, device=features.device).view(1, 1, 4, 4)
        return BEVMemory(features, grid, poses, inputs["has_previous"].unsqueeze(1), poses[:, :, 0, 1])


def _reads_can_bus(model: BEVPerception) -> bool:
    return getattr(model.encoder, "motion_embedding", None) is not None or (
        getattr(model.alignment, "motion", None) == "can_bus"
    )


@contextmanager
def exportable(model: BEVPerception, frame: Frame, num_slots: int | None = None) -> Iterator[int]:
    """A model whose shapes depend on no values and whose operators other runtimes have, for as long as it lasts.

    Args:
        model: is put back afterwards.
        frame: whose rig says how many cameras see a cell.
        num_slots: room for so many cameras a cell; at least two, and as many as the rig needs, by default.

    Yields:
        The slots.

    Raises:
        InputError: more cameras of the frame's rig see a cell than there are slots.
    """
    encoder, selected = model.encoder, backends._chosen
    given = getattr(encoder, "num_slots", None)
    if isinstance(encoder, BEVFormerEncoder):
        encoder.num_slots = None
        needed = int(encoder.visibility(frame.rig).slots.shape[-1])
        slots = num_slots or max(needed, min(2, frame.rig.num_cameras))
        encoder.num_slots = given
        if slots < needed:
            reason = f"a cell of this rig is seen by {needed} cameras; {slots} slots are too few"
            raise InputError("export", "--num-slots", reason)
        encoder.num_slots = slots
    else:
        slots = 0
    backends.select_backend("grid_sample")
    try:
        yield slots
    finally:
        backends.select_backend(selected)
        if isinstance(encoder, BEVFormerEncoder):
            encoder.num_slots = given

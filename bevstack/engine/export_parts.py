"""Parts of a model's step that are exported alone: images to features, and features to the encoder's B_t."""

from __future__ import annotations

from torch import Tensor, nn

from bevstack.engine.export_step import MEMORY, StepOfTensors
from bevstack.errors import InputError
from bevstack.models import BEVPerception
from bevstack.models.bev.memory import push_memory
from bevstack.structures import BEVMemory, Frame


def level_names(levels: list[Tensor]) -> list[str]:
    """``features_0`` and so on, the finest first, of L levels (B, N, C, h, w)."""
    return [f"features_{number}" for number in range(len(levels))]


class BackboneStep(nn.Module):
    """Images to features: the backbone, and the neck where there is one.

    Input: ``images`` (1, N, 3, H, W) normalised. Outputs: ``features_0`` (1, N, C, h, w) and so on, the finest first.

    Args:
        model: whose backbone it is; in evaluation mode.
        frame: a frame of one sample, for the number of levels.

    Raises:
        InputError: a video backbone.
    """

    input_names = ("images",)
    fed_back: dict[str, str] = {}

    def __init__(self, model: BEVPerception, frame: Frame) -> None:
        super().__init__()
        if getattr(model.backbone, "num_sweeps", 0):
            raise InputError("model", "backbone", "a video backbone: its sweeps are not exported yet")
        self.model, self.rig, self.motion = model, frame.rig, frame.motion
        self.output_names = tuple(level_names(model.image_features(frame)))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """L levels (1, N, C, h, w) of images (1, N, 3, H, W)."""
        return tuple(level.contiguous() for level in self.model.image_features(Frame(images, self.rig, self.motion)))

    def inputs_of(self, frame: Frame, memory: BEVMemory | None) -> dict[str, Tensor]:
        """``images`` (1, N, 3, H, W) of a frame; there is nothing to remember."""
        return {"images": frame.images.float().contiguous()}

    def outputs_of(self, frame: Frame, memory: BEVMemory | None) -> tuple[dict[str, Tensor], None]:
        """What the model itself makes of a frame (1, N, 3, H, W): levels (1, N, C, h, w) by name; no memory."""
        return dict(zip(self.output_names, self(frame.images), strict=True)), None


class EncoderStep(StepOfTensors):
    """Features to the encoder's B_t, with its memory.

    Inputs: those of :class:`bevstack.engine.export_step.StepOfTensors` with ``features_0`` (1, N, C, h, w) and so on in
    place of ``images``. Outputs: ``bev`` (1, C, Y, X), what the encoder makes of the moment, before any fusion or BEV
    neck, and the new memory where the encoder reads one.

    Args:
        model, frame: see there.
    """

    def __init__(self, model: BEVPerception, frame: Frame) -> None:
        self.levels = level_names(model.image_features(frame))
        super().__init__(model, frame)
        self.input_names = (*self.levels, *(name for name in self.input_names if name != "images"))
        if model.temporal_fusion is not None or not getattr(model.encoder, "history_frames", 0):
            self.input_names = tuple(name for name in self.input_names if name not in MEMORY)
            self.memory_names = ()
        self.output_names = ("bev", *(MEMORY[name] for name in self.memory_names))

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        """Outputs (1, ...) in the order of ``output_names``, of inputs (1, ...) in the order of ``input_names``."""
        inputs = dict(zip(self.input_names, given, strict=True))
        levels = [inputs[name] for name in self.levels]
        frame = self._frame({"images": levels[0]} | inputs)  # which nothing looks at: the features are there
        return tuple(self._encoded(levels, frame, self._memory(inputs))[0].values())

    def inputs_of(self, frame: Frame, memory: BEVMemory | None) -> dict[str, Tensor]:
        """A frame's features (1, N, C, h, w), its matrices and what is remembered, None for nothing."""
        levels = zip(self.levels, self.model.image_features(frame), strict=True)
        values = self._values(frame, memory) | dict(levels)
        return {name: values[name].contiguous() for name in self.input_names}

    def outputs_of(self, frame: Frame, memory: BEVMemory | None) -> tuple[dict[str, Tensor], BEVMemory | None]:
        """``bev`` (1, C, Y, X) by the model's own encoder, and its memory after."""
        return self._encoded(self.model.image_features(frame), frame, memory)

    def _encoded(
        self, levels: list[Tensor], frame: Frame, memory: BEVMemory | None
    ) -> tuple[dict[str, Tensor], BEVMemory | None]:
        past = None if memory is None else memory.moved(frame.motion)
        encoded, _ = self.model.encoded(levels, frame, past)
        after = push_memory(past, encoded, self.model.memory_frames) if self.memory_names else None
        named = {"bev": encoded.features}
        if after is not None:
            named |= {MEMORY[name]: value for name, value in self._kept(after).items()}
        return {name: value.contiguous() for name, value in named.items()}, after

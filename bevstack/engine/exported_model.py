"""An exported file in the place of a model: what a test asks of it, so that it is scored by the same metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bevstack.engine.export_step import MEMORY, StepOfTensors
from bevstack.engine.label_checks import check_trained_cameras, check_trained_labels
from bevstack.errors import InputError
from bevstack.models import BEVPerception
from bevstack.models.perception import set_fields
from bevstack.runtime import ExportedModel, load
from bevstack.structures import BEVDataSample, BEVMemory, Clip, Frame


class ExportedPerception(nn.Module):
    """A file of ``tools/export.py`` with the way in and out of :class:`bevstack.models.BEVPerception`.

    Images are prepared as for the model, the file makes raw outputs of them, and the model's heads read these. Weights
    of the model have no part in it.

    Args:
        model: of the config that the file was made of.
        file: an ONNX file, of a whole model; read before this returns.
        cameras: names of those whose images it will see, in their order.

    Raises:
        InputError: the file cannot be read, or is of a model with other heads, classes, memory or cameras.
    """

    def __init__(self, model: BEVPerception, file: Path, cameras: Sequence[str]) -> None:
        super().__init__()
        self.model, self.data_preprocessor, self.file = model, model.data_preprocessor, file
        self.exported: ExportedModel = load(file, torch.get_num_threads())
        described = self.exported.described
        trained = {"dataset_meta": {"cameras": described["cameras"], "classes": described["classes"]}}
        check_trained_labels(model, trained, file)
        check_trained_cameras(model, trained, cameras, file)
        if set(described["heads"]) != set(model.heads):
            reason = f"{', '.join(described['heads'])}; the config's are {', '.join(model.heads)}"
            raise InputError(file, "heads", reason)
        self._step: StepOfTensors | None = None

    def forward(self, inputs: Clip, data_samples: Sequence[BEVDataSample], mode: str) -> object:
        """Predicted samples of a clip of one sample: alone (``predict``), or with the memory (``stream_predict``).

        Raises:
            InputError: a batch of more than one sample.
            ValueError: another mode.
        """
        if mode not in ("predict", "stream_predict"):
            raise ValueError(f"unknown mode {mode!r}; an exported file is only asked to predict")
        if inputs.batch_size != 1:
            raise InputError(self.file, "batch", f"{inputs.batch_size} samples; a file takes one: set batch_size=1")
        memory, raw = inputs.memory, dict[str, torch.Tensor]()
        for frame in inputs.frames:
            raw, memory = self.answer(frame, memory if bool(frame.motion.has_previous.all()) else None)
        results = [sample.new() for sample in data_samples]
        for head in self.model.heads_in_order():
            set_fields(results, head.predict(of_head(raw, self._name(head)), results))
        for name, image_head in self.model._image_heads():
            if image_head.predicts:
                set_fields(results, image_head.predict(of_head(raw, name), inputs.frames[-1].rig))
        return (results, memory) if mode == "stream_predict" else results

    def answer(self, frame: Frame, memory: BEVMemory | None) -> tuple[dict[str, torch.Tensor], BEVMemory | None]:
        """The file's raw outputs (1, ...) by name, of a frame (1, N, 3, H, W) and the memory, and the memory after."""
        if self._step is None:
            self._step = StepOfTensors(self.model, frame)
        given = {name: value.numpy() for name, value in self._step.inputs_of(frame, memory).items()}
        shape, expected = given["images"].shape, self.exported.inputs["images"]
        if shape != expected:
            found, wanted = ("x".join(map(str, sizes)) for sizes in (shape, expected))
            raise InputError(self.file, "images", f"{found} from the config's data, the file takes {wanted}")
        prediction, after = self.exported.run(given)
        raw = {name: torch.from_numpy(value) for name, value in prediction.raw.items()}
        return raw, self._memory({name: torch.from_numpy(value) for name, value in after.items()})

    def _memory(self, kept: Mapping[str, torch.Tensor]) -> BEVMemory | None:
        if not kept:
            return None
        features, grid = kept["memory_features"], self.model.encoder.grid
        if len(kept) == len(MEMORY):
            return BEVMemory(features, grid, kept["memory_poses"], kept["memory_valid"], kept["memory_seconds"])
        poses = torch.eye(4).view(1, 1, 4, 4)
        return BEVMemory(features, grid, poses, torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1))

    def _name(self, head: Any) -> str:
        return next(name for name, other in self.model._bev_heads() if other is head)


def of_head(raw: Mapping[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """Of raw outputs (1, ...) named ``<head>.<output>``, those of one head by their own names."""
    return {key[len(name) + 1 :]: value for key, value in raw.items() if key.startswith(f"{name}.")}

"""What a frozen backbone makes of a sample, kept for the next epochs: neither decoded nor computed again.

A frozen backbone makes the same features of the same images in every epoch, unless something augments them. So training
computes them once and the loader's processes read them back instead of decoding the images, as long as there is room.
They are the same bits, so that a run with them equals one without, wherever it is stopped and resumed, with any number
of loader processes. Whatever would make that untrue is refused by name.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_dist_info
from torch import Tensor, nn

from bevstack.errors import InputError
from bevstack.structures import Clip
from bevstack.structures.feature_store import FeatureStore


class KeptFeatures:
    """The features of a training's samples (``train_cfg.kept_features`` of a config).

    Args:
        max_bytes: room for them, over all processes, but at most half of what is free on the disk; samples beyond it
            are computed in every epoch.
        folder: where they outlive the run, in a file of which one is kept at most; the next run uses them where all is
            as it was: weights, normalisation, image transforms, number format, threads, version of torch, image files.
            None: a nameless file in the work directory that goes when the run ends.
        required: where features change from epoch to epoch, refuse to train; otherwise say so in the log and compute
            them in every epoch, so that a config can be built upon.

    Raises:
        ValueError: there is no room.
    """

    def __init__(self, max_bytes: int, folder: str | os.PathLike | None = None, required: bool = True) -> None:
        if not max_bytes > 0:
            raise ValueError(f"kept_features.max_bytes: must be positive, not {max_bytes}")
        self.max_bytes, self.folder = int(max_bytes), None if folder is None else Path(folder)
        self.required = required
        self.store: FeatureStore | None = None
        self._logger = logging.getLogger(__name__)

    def start(self, runner: Any) -> None:
        """Open the store and tell the dataset, once weights are loaded and before a loader process is started.

        Raises:
            InputError: features would change from epoch to epoch, and they are ``required``; the reason names what does
                it. Or the file cannot be opened.
        """
        self._logger = runner.logger
        dataset, model = runner.train_dataloader.dataset, runner.module
        reason = why_not(model, dataset)
        if reason and not self.required:
            self._logger.info(f"the backbone's features are computed in every epoch: {reason}")
            return
        if reason:
            advice = "leave train_cfg.kept_features out, or change that"
            raise InputError(runner.cfg.filename or "config", "train_cfg.kept_features", f"{reason}; {advice}")
        rank, ranks = get_dist_info()
        try:
            if self.folder is None:
                room = self._room(runner.work_dir) // ranks
                self.store = FeatureStore(len(dataset), room, folder=runner.work_dir)
            else:
                self.folder.mkdir(parents=True, exist_ok=True)
                file = self.folder / f"{fingerprint(runner, model, dataset)}-{rank}-{ranks}.features"
                for older in self.folder.glob(f"*-{rank}-{ranks}.features"):
                    if older != file:
                        older.unlink(missing_ok=True)
                self.store = FeatureStore(len(dataset), self._room(self.folder) // ranks, file)
        except OSError as error:
            place = self.folder or runner.work_dir
            raise InputError(place, "train_cfg.kept_features", f"cannot be written: {error.strerror}") from error
        dataset.keep_features(self.store)

    def _room(self, folder: str | os.PathLike) -> int:
        """Bytes that may be written to a folder: checkpoints need the disk, too."""
        return min(self.max_bytes, shutil.disk_usage(folder).free // 2)

    def put_into(
        self,
        clip: Clip,
        inputs: Mapping[str, Sequence[Tensor]],
        backbone: Callable[[Tensor], Sequence[Tensor]],
    ) -> Clip:
        """A clip whose frame has the backbone's features: kept ones, and computed ones, which are then kept.

        Each sample is computed alone, so that the batch that it meets first has no say in its bits. Where nothing is
        kept, the clip as it is.

        Args:
            clip: of one frame of B samples; the images of those whose features are kept are not looked at.
            inputs: as collated, with ``features`` and ``sample_identity`` (:class:`PackBEVInputs`), lists of B.
            backbone: (N, 3, H, W) images to its levels.
        """
        store, frame = self.store, clip.frames[-1]
        if store is None:
            return clip
        if store.sample_bytes and all(len(kept) == store.sample_bytes for kept in inputs["features"]):
            levels = store.split(inputs["features"])
        else:
            rows = []
            for images, kept, identity in zip(frame.images, inputs["features"], inputs["sample_identity"], strict=True):
                if len(kept):
                    rows.append([level[0].to(images.device) for level in store.split([kept])])
                    continue
                with torch.no_grad():
                    computed = list(backbone(images))
                number, identity_of_files = identity.tolist()
                self._keep(store, number, identity_of_files, [level.cpu() for level in computed])
                rows.append(computed)
            levels = [_stacked(level) for level in zip(*rows, strict=True)]
        device = frame.images.device
        return replace(clip, frames=(replace(frame, features=tuple(level.to(device) for level in levels)),))

    def _keep(self, store: FeatureStore, number: int, identity: int, computed: Sequence[Tensor]) -> None:
        first = store.sample_bytes == 0
        try:
            store.write(number, identity, computed)
        except OSError as error:  # a full disk ends the keeping, not the training
            self._logger.warning(f"features are not kept any longer: {error.strerror}")
            store.max_bytes = 0
        if first:
            size = store.sample_bytes / 1e6
            self._logger.info(f"features of {store.capacity} of {store.samples} samples are kept, {size:.2f} MB each")


def _stacked(levels: Sequence[Tensor]) -> Tensor:
    """B times (N, C, h, w) to (B, N, C, h, w), each sample as it was in memory."""
    if levels[0].is_contiguous(memory_format=torch.channels_last):
        return torch.stack([level.permute(0, 2, 3, 1) for level in levels]).permute(0, 1, 4, 2, 3)
    return torch.stack(list(levels))


def why_not(model: Any, dataset: Any) -> str:
    """Why the backbone's features of a sample are not the same in every epoch; "" where they are.

    Args:
        model: a :class:`bevstack.models.BEVPerception`.
        dataset: a :class:`bevstack.datasets.clip_dataset.ClipDataset`; wrappers give samples other numbers.
    """
    if not hasattr(dataset, "keep_features"):
        return f"{type(dataset).__name__} has no keep_features(): the samples it gives cannot be told apart"
    if dataset.num_frames != 1 or dataset.num_sweeps:
        return f"clips of {dataset.num_frames} frames with {dataset.num_sweeps} sweeps, and only one frame is kept"
    for transform in dataset.pipeline.transforms:
        kind = type(transform)
        if not kind.__module__.startswith("bevstack.") and not hasattr(transform, "changes_images"):
            return f"nobody knows whether {kind.__name__} in the train pipeline changes images (no changes_images)"
        if getattr(transform, "changes_images", False) and getattr(transform, "draws", True):
            return f"{type(transform).__name__} in the train pipeline changes images by chance"
        if getattr(transform, "reduced", False):
            return f"{type(transform).__name__} decodes at half size (reduced=True)"
    for name in ("photometric", "grid_mask"):
        if getattr(model.data_preprocessor, name, None) is not None:
            return f"data_preprocessor.{name} changes images by chance"
    learning = [name for name, parameter in model.backbone.named_parameters() if parameter.requires_grad]
    if learning:
        return f"the backbone learns ({len(learning)} weights, the first is {learning[0]}): freeze all of it"
    model.train()
    for name, module in model.backbone.named_modules():
        moves = isinstance(module, nn.modules.batchnorm._BatchNorm | nn.modules.dropout._DropoutNd)
        if module.training and (moves or getattr(module, "drop_prob", None)):
            return f"backbone.{name} ({type(module).__name__}) acts differently at each step of training"
    return ""


def fingerprint(runner: Any, model: Any, dataset: Any) -> str:
    """A name for all that decides the features besides the samples: 24 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, value in [*model.backbone.state_dict().items(), *model.data_preprocessor.named_buffers()]:
        digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    changing = [step for step in dataset.pipeline.transforms if _decides_images(step)]
    told = [str(model.backbone), *(f"{type(step).__name__} {sorted(vars(step).items())}" for step in changing)]
    told += [f"{model.data_preprocessor.channel_order} {model.data_preprocessor.pad_divisor}"]
    told += [str(getattr(runner.optim_wrapper, "precision", "float32")), str(runner.cfg.get("compile"))]
    told += [torch.__version__, torch.backends.cpu.get_cpu_capability(), str(torch.get_num_threads())]
    digest.update("\n".join(told).encode())
    return digest.hexdigest()[:24]


def _decides_images(transform: object) -> bool:
    return getattr(transform, "loads_images", False) or getattr(transform, "changes_images", False)

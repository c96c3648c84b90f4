"""Where each annotated object was in the samples before, for heads that look back along an agent's track."""

from __future__ import annotations

import numpy as np
from mmcv.transforms.base import BaseTransform

from bevstack.datasets.base import BEVDataset
from bevstack.errors import InputError
from bevstack.registry import TRANSFORMS

_NO_IDS = "the dataset's objects have no instance_ids"


@TRANSFORMS.register_module()
class LoadPastCenters(BaseTransform):
    """Add ``past_centers`` (G, M, 2): each object's centre now and in the M - 1 samples before, in today's BEV frame.

    Metres (x, y), the newest first (frame 0 is the keyframe); NaN where the object was not annotated or the stream has
    no such sample. In a clip of several frames these are the frames before the keyframe, whatever the queue has left
    out; a clip of one frame looks back along its stream, as the streaming loops' memory does. The places follow the
    BEV augmentation and the object filters, whether these come before or after.

    Args:
        num_frames: M, the keyframe included.

    Raises:
        ValueError: ``num_frames`` is not positive.
        InputError: the dataset does not tell objects again (no ``instance_ids``).
    """

    def __init__(self, num_frames: int) -> None:
        if num_frames < 1:
            raise ValueError(f"LoadPastCenters: num_frames: {num_frames} must be at least 1")
        self.num_frames = num_frames

    def check_dataset(self, dataset: BEVDataset) -> None:
        """Refuse a dataset whose objects have no ``instance_ids``."""
        if dataset.clip(0).objects.instance_ids is None:
            raise InputError("pipeline", "LoadPastCenters", _NO_IDS)

    def transform(self, results: dict) -> dict:
        """Add ``past_centers`` from ``dataset``, ``frames``, ``instance_ids`` and ``augmented_from_bev``."""
        if "instance_ids" not in results:
            raise InputError("pipeline", "LoadPastCenters", _NO_IDS)
        tokens = self._tokens(results)
        known = results["dataset"].past_centers(tokens, results["instance_ids"])
        matrix = np.asarray(results.get("augmented_from_bev", np.eye(4)))
        centers = np.full((len(known), self.num_frames, 2), np.nan)
        centers[:, : len(tokens)] = known @ matrix[:2, :2].T + matrix[:2, 3]
        results["past_centers"] = centers
        return results

    def _tokens(self, results: dict) -> list[str]:
        """Up to M tokens of samples that there are, the keyframe's first."""
        frames = results["frames"]
        newest = frames[-1]["token"]
        if len(frames) == 1:
            return [newest, *results["dataset"].earlier_tokens(newest, self.num_frames - 1)]
        tokens = [newest]
        for step in range(1, min(self.num_frames, len(frames))):
            if not frames[-step]["has_previous"]:
                break
            tokens.append(frames[-1 - step]["token"])
        return tokens

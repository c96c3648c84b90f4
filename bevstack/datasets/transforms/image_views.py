"""Several views of each camera's image, as if more cameras stood there: the whole in few pixels, a part in many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from mmcv.transforms.base import BaseTransform

from bevstack.datasets.transforms.image_geometry import ImageTransform
from bevstack.datasets.transforms.names import require_images
from bevstack.errors import InputError
from bevstack.registry import TRANSFORMS


@TRANSFORMS.register_module()
class ImageViews(BaseTransform):
    """Show every camera in several ways: V views of N cameras are V * N cameras, the first view of all of them first.

    What is far stands around the horizon and is few pixels high; a view of that part alone in the stored resolution
    costs as little as the whole image made small. A model of V * N cameras (``encoder.num_cameras``) sees a place in
    whichever views show it. All views have to give images of one size.

    Args:
        views: V image transforms (:class:`bevstack.datasets.transforms.image_geometry.ImageTransform`), or their
            configs; each starts from the images as they come.

    Raises:
        ValueError: no view, or one that is no image transform.
        InputError: in use: camera sweeps, of which there is no second view.
    """

    changes_images = True

    def __init__(self, views: Sequence[Mapping | ImageTransform]) -> None:
        self.views = [TRANSFORMS.build(dict(view)) if isinstance(view, Mapping) else view for view in views]
        if not self.views or not all(isinstance(view, ImageTransform) for view in self.views):
            raise ValueError("views: must be one or more transforms of images, such as ResizeCropFlipImages")

    @property
    def draws(self) -> bool:
        """Whether a view may change one image differently from one time to the next."""
        return any(view.draws for view in self.views)

    def check_place(self, before: Sequence[object]) -> None:
        """Refuse a place before the images are there."""
        require_images(self, before)

    def transform(self, results: dict) -> dict:
        """Change ``images``, ``pixels_from_camera``, ``image_size_px``; repeat what else each camera has."""
        frames, names = results["frames"], list(results["camera_names"])
        if any("sweeps" in frame for frame in frames):
            raise InputError("pipeline", "ImageViews", "there is no second view of camera sweeps: leave them out")
        shown = [view.transform({**results, "frames": [dict(frame) for frame in frames]}) for view in self.views]
        for t, frame in enumerate(frames):
            parts = [view["frames"][t] for view in shown]
            frame["images"] = [image for part in parts for image in part["images"]]
            for key in ("pixels_from_camera", "image_size_px", "camera_from_bev"):
                frame[key] = np.concatenate([part[key] for part in parts])
            frame["image_paths"] = list(frame["image_paths"]) * len(parts)
        results["camera_names"] = [
            name if view == 0 else f"{name} view {view + 1}" for view in range(len(shown)) for name in names
        ]
        results["images_changed"] = True
        return results

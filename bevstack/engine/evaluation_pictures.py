"""Pictures of every validation, beside its scores: in TensorBoard, and as files under ``vis_data/vis_image``."""

from __future__ import annotations

import numpy as np
from mmengine.dist import is_main_process
from mmengine.hooks import Hook

from bevstack.engine.visualize import build_visualizer, camera_views
from bevstack.registry import HOOKS
from bevstack.visualization.drawing import fitted


@HOOKS.register_module()
class EvaluationPicturesHook(Hook):
    """Draws some samples of each validation, the same ones every time, as ``tools/visualize.py`` draws them.

    Datasets that know no camera images (of one's own, without ``camera_views``) are passed over.

    Args:
        max_samples: of a validation, spread evenly over it.
        score_thr: least score of a box that is drawn, where the config does not say it.
        max_width_px: wider pictures are scaled down.

    Raises:
        ValueError: a number that is not positive.
    """

    priority = "LOW"

    def __init__(self, max_samples: int = 3, score_thr: float = 0.3, max_width_px: int = 1600) -> None:
        if max_samples < 1 or max_width_px < 1:
            raise ValueError(f"max_samples and max_width_px must be positive, not {max_samples} and {max_width_px}")
        self.max_samples, self.score_thr, self.max_width_px = max_samples, score_thr, max_width_px

    def after_val_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Draw the first sample of a batch, if it is one of those chosen."""
        dataset = runner.val_dataloader.dataset
        if not outputs or not is_main_process() or not hasattr(dataset, "camera_views"):
            return
        chosen = np.linspace(0, len(runner.val_dataloader) - 1, self.max_samples).round().astype(int)
        if batch_idx not in chosen:
            return
        sample = outputs[0]
        picture = build_visualizer(runner.cfg, self.score_thr).draw(sample, camera_views(dataset, sample))
        height, width = picture.shape[:2]
        if width > self.max_width_px:
            picture = fitted(picture, round(height * self.max_width_px / width), self.max_width_px)
        name = f"val_{batch_idx:06d}_{sample.metainfo.get('scene_name', '')}".rstrip("_").replace("/", "_")
        runner.visualizer.add_image(name, picture, step=runner.iter)

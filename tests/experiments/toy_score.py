"""A score that an untrained model has: how bright the images were that it saw, between 0 and 1."""

from __future__ import annotations

from mmengine.evaluator import BaseMetric

from bevstack.registry import METRICS


@METRICS.register_module()
class ToyScore(BaseMetric):
    """Mean of the last frame's images over 255."""

    def process(self, data_batch, data_samples) -> None:
        self.results += [float(images[-1].float().mean()) / 255 for images in data_batch["inputs"]["images"]]

    def compute_metrics(self, results: list) -> dict[str, float]:
        return {"brightness": sum(results) / len(results)}

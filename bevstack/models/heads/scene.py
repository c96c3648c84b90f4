"""What kind of scene it is: day or night, dry or rain, where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bevstack.errors import InputError
from bevstack.geometry import BEVGrid
from bevstack.losses.functional import mean_across_ranks
from bevstack.models.heads.base import BEVHead
from bevstack.models.layers.temperature import require_temperature
from bevstack.registry import MODELS
from bevstack.structures import BEVDataSample, BEVFeatures

TIME_AND_WEATHER = {"time": ("day", "night"), "weather": ("dry", "rain")}


@MODELS.register_module()
class SceneHead(BEVHead):
    """Classification of the whole scene, one softmax a task, from pooled B_t and pooled image features.

    Both are averaged (B_t over the cells of the head's grid, image features over cameras, pixels and levels), brought
    to a common scale by layer norms, and read by one hidden layer. The truth is ``gt_scene`` of each sample, the name
    of the true class by task (:class:`bevstack.datasets.transforms.LoadSceneLabels` makes it from nuScenes). A sample
    that lacks a task counts in no loss of it.

    Args:
        in_channels, grid: see :class:`BEVHead`.
        tasks: names of the classes by task, as ``location=("boston-seaport", "singapore-onenorth")``; by default time
            of day and weather.
        image_channels: C of the image features after the neck, 0 to read B_t alone.
        channels: width of the hidden layer.
        dropout: before the classifiers.
        class_weights: by task, a weight a class in its loss (a night that is rare may count more); 1 where not named.
        temperature: that logits are divided by where probabilities are predicted; training does without.

    Raises:
        ValueError: a task without two classes, weights that do not fit the tasks, or a temperature that is not above 0.
    """

    def __init__(
        self,
        in_channels: int,
        grid: BEVGrid | Mapping,
        tasks: Mapping[str, Sequence[str]] | None = None,
        image_channels: int = 0,
        channels: int = 64,
        dropout: float = 0.1,
        class_weights: Mapping[str, Sequence[float]] | None = None,
        temperature: float = 1.0,
        init_cfg: Mapping | None = None,
    ) -> None:
        super().__init__(in_channels, grid, init_cfg)
        self.temperature = require_temperature(temperature)
        self.tasks = {task: tuple(names) for task, names in (tasks or TIME_AND_WEATHER).items()}
        for task, names in self.tasks.items():
            if len(set(names)) < max(2, len(names)):
                raise ValueError(f"tasks: '{task}' needs at least two different classes, not {list(names)}")
        for task, weights in (class_weights or {}).items():
            if task not in self.tasks or len(weights) != len(self.tasks[task]):
                wanted = {name: len(names) for name, names in self.tasks.items()}
                raise ValueError(f"class_weights: '{task}' has {len(weights)}; the tasks have {wanted}")
        self.class_weights = {task: tuple(weights) for task, weights in (class_weights or {}).items()}
        self.bev_norm = nn.LayerNorm(in_channels)
        self.image_norm = nn.LayerNorm(image_channels) if image_channels else None
        self.hidden = nn.Sequential(
            nn.Linear(in_channels + image_channels, channels), nn.ReLU(inplace=True), nn.Dropout(dropout)
        )
        self.classifiers = nn.ModuleDict({task: nn.Linear(channels, len(names)) for task, names in self.tasks.items()})

    def forward(self, bev: BEVFeatures) -> dict[str, Tensor]:
        """Logits (B, K) of each task under its name.

        Raises:
            ValueError: image features are wanted and not there.
        """
        pooled = [self.bev_norm(self.resampled(bev).mean((-2, -1)))]
        if self.image_norm is not None:
            if not bev.image_features:
                raise ValueError("SceneHead: image_channels is set, but there are no image features; set it to 0")
            levels = torch.stack([level.mean((1, 3, 4)) for level in bev.image_features])
            pooled.append(self.image_norm(levels.mean(0)))
        hidden = self.hidden(torch.cat(pooled, dim=-1))
        return {task: classifier(hidden) for task, classifier in self.classifiers.items()}

    def loss(self, raw: dict[str, Tensor], samples: Sequence[BEVDataSample]) -> dict[str, Tensor]:
        """``loss_<task>``, a scalar: cross-entropy, weighted by class, mean over the samples whose class is known.

        Args:
            raw: :meth:`forward`'s, logits (B, K) of each task.
            samples: B, with ``gt_scene``.

        Raises:
            InputError: a sample has no ``gt_scene``, or a name in it that is no class of the task.
        """
        losses = {}
        for task in self.tasks:
            logits = raw[task].float()
            labels = self._labels(task, samples).to(logits.device)
            weights = logits.new_tensor(self.class_weights.get(task, [1.0] * logits.shape[-1]))
            known = labels >= 0
            terms = F.cross_entropy(logits, labels.clamp_min(0), reduction="none") * weights[labels.clamp_min(0)]
            number = mean_across_ranks(known.sum(), logits.device).clamp_min(1)
            losses[f"loss_{task}"] = (terms * known).sum() / number
        return losses

    def _labels(self, task: str, samples: Sequence[BEVDataSample]) -> Tensor:
        """(B,) the true class of each sample, -1 where it is not known."""
        labels = []
        for sample in samples:
            if "gt_scene" not in sample:
                raise InputError("train pipeline", "gt_scene", "not there: add LoadSceneLabels to the pipeline")
            name = sample.gt_scene.get(task)
            if name is not None and name not in self.tasks[task]:
                reason = f"'{name}' is none of the head's classes {list(self.tasks[task])}: name it in the config"
                raise InputError("train pipeline", f"gt_scene '{task}'", reason)
            labels.append(-1 if name is None else self.tasks[task].index(name))
        return torch.tensor(labels)

    @torch.no_grad()
    def predict(self, raw: dict[str, Tensor], samples: Sequence[BEVDataSample]) -> list[dict[str, object]]:
        """``pred_scene`` per sample: by task ``names`` of the K classes and their ``probabilities`` (K,)."""
        probabilities = {task: (raw[task].float() / self.temperature).softmax(-1) for task in self.tasks}
        return [
            {
                "pred_scene": {
                    task: {"names": names, "probabilities": probabilities[task][row]}
                    for task, names in self.tasks.items()
                }
            }
            for row in range(len(samples))
        ]

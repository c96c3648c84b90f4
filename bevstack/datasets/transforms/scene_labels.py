"""What kind of scene it is: time of day, weather and place, out of the words that describe it."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from mmcv.transforms.base import BaseTransform

from bevstack.datasets.base import BEVDataset, SceneRecord
from bevstack.datasets.transforms.names import taxonomy_of
from bevstack.errors import InputError
from bevstack.registry import TRANSFORMS


def scene_conditions(description: str, rules: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """What a scene's description says about it.

    Args:
        description: of the scene.
        rules: task -> label -> regular expression, as :class:`bevstack.datasets.base.Taxonomy` has them.

    Returns:
        By task the first label whose expression is found, in any case of letters; a task without one is left out.
    """
    found = {
        task: [label for label, pattern in labels.items() if re.search(pattern, description, re.IGNORECASE)]
        for task, labels in rules.items()
    }
    return {task: labels[0] for task, labels in found.items() if labels}


@TRANSFORMS.register_module()
class LoadSceneLabels(BaseTransform):
    """Add ``scene_labels``: what the scene's description says (:func:`scene_conditions`), and its ``location``.

    :class:`bevstack.datasets.transforms.PackBEVInputs` makes them the sample's ``gt_scene``.

    Args:
        rules: task -> label -> regular expression; None for the dataset's own ``taxonomy.scene_rules`` (nuScenes':
            ``time``, day or night, and ``weather``, dry or rain).

    Raises:
        InputError: an expression is none; a scene of the dataset has no description, so that nobody knows.
    """

    def __init__(self, rules: Mapping[str, Mapping[str, str]] | None = None) -> None:
        self.rules = rules
        for task, labels in (rules or {}).items():
            for label, pattern in labels.items():
                try:
                    re.compile(pattern)
                except (re.error, TypeError) as error:
                    field = f"LoadSceneLabels.rules.{task}.{label}"
                    raise InputError("pipeline", field, f"{pattern!r} is no expression: {error}") from error

    def check_dataset(self, dataset: BEVDataset) -> None:
        """Refuse a dataset of which a scene is not described."""
        if not (dataset.taxonomy.scene_rules if self.rules is None else self.rules):
            return
        _, first = np.unique(dataset.scene_rows, return_index=True)
        for number in first.tolist():
            _require_description(dataset.clip(number).scene)

    def transform(self, results: dict) -> dict:
        """Read ``scene_description`` and ``location``."""
        rules = taxonomy_of(results).scene_rules if self.rules is None else self.rules
        if rules:
            name, description = results.get("scene_name", "?"), results.get("scene_description", "")
            _require_description(SceneRecord(token=name, name=name, description=description))
        labels = scene_conditions(results.get("scene_description", ""), rules)
        results["scene_labels"] = {**labels, "location": results["location"]}
        return results


def _require_description(scene: SceneRecord) -> None:
    if not scene.description:
        reason = f"scene {scene.name} has none; a nuScenes index made before they were kept is made anew by create_data"
        raise InputError("LoadSceneLabels", "description", reason)

"""What kind of scene it is: time of day, weather and place, out of nuScenes' own words."""

from __future__ import annotations

import re

from mmcv.transforms.base import BaseTransform

from bevstack.errors import InputError
from bevstack.registry import TRANSFORMS

_NIGHT = re.compile(r"\bnight", re.IGNORECASE)
_RAIN = re.compile(r"\brain", re.IGNORECASE)


def scene_conditions(description: str) -> dict[str, str]:
    """Time of day and weather of a scene, from ``description`` of nuScenes' table of scenes.

    nuScenes has no field for either. Its makers search the description for the words (nuscenes-devkit, issue 124), and
    the published splits by day, night and rain do the same: a scene is at night where a word begins with "night", rainy
    where one begins with "rain", in any case of letters; else by day, and dry. "After rain" thus counts as rain: the
    ground is wet. "Train" does not.

    Returns:
        ``time``: "day" or "night"; ``weather``: "dry" or "rain".
    """
    return {
        "time": "night" if _NIGHT.search(description) else "day",
        "weather": "rain" if _RAIN.search(description) else "dry",
    }


@TRANSFORMS.register_module()
class LoadSceneLabels(BaseTransform):
    """Add ``scene_labels``: ``time``, ``weather`` (:func:`scene_conditions`) and ``location`` (of the log).

    :class:`bevstack.datasets.transforms.PackBEVInputs` makes them the sample's ``gt_scene``.

    Raises:
        InputError: in use: the scene has no description, so that nobody knows.
    """

    def transform(self, results: dict) -> dict:
        """Read ``scene_description`` and ``location``."""
        if not results.get("scene_description"):
            scene = results.get("scene_name", "?")
            reason = f"scene {scene} has none; an index made before descriptions were kept is made anew by create_data"
            raise InputError("LoadSceneLabels", "description", reason)
        results["scene_labels"] = {**scene_conditions(results["scene_description"]), "location": results["location"]}
        return results

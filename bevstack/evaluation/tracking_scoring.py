"""Scoring of tracks by the nuScenes devkit's own tracking evaluation (tracking_nips_2019).

Functions import the devkit themselves: it is loaded where something is scored, and its tracking part needs
motmetrics, which is optional.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import sys
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.progress import track

from bevstack.errors import InputError
from bevstack.evaluation.nuscenes_scoring import ScoredSplit

if TYPE_CHECKING:
    from nuscenes import NuScenes
    from nuscenes.eval.common.data_classes import EvalBoxes

TRACKING_CLASSES = ("bicycle", "bus", "car", "motorcycle", "pedestrian", "trailer", "truck")

_KEYS = {
    "AMOTA": "amota", "AMOTP": "amotp", "MOTA": "mota", "track_recall": "recall", "IDS": "ids", "FRAG": "frag",
    "FP": "fp", "FN": "fn", "track_gt": "gt",
}  # fmt: skip
_OVERALL = {**_KEYS, "MOTP": "motp", "MT": "mt", "ML": "ml"}


def require_motmetrics() -> None:
    """Refuse to go on without the package that the devkit counts matches with.

    Raises:
        InputError: it is not installed; says how to.
    """
    if importlib.util.find_spec("motmetrics") is None:
        reason = "is not installed: pip install 'bevstack[tracking]', or leave the tracking metric out"
        raise InputError("NuScenesTrackingMetric", "motmetrics", reason)


def score_tracks(scored: ScoredSplit, records: Mapping[str, Sequence[dict]]) -> dict[str, float]:
    """Official scores of a tracking submission.

    Args:
        scored: the samples to score.
        records: by sample token, all of the split, the boxes of the submission format (https://www.nuscenes.org/tracking).

    Returns:
        Flat keys ``AMOTA``, ``AMOTP`` (m), ``MOTA``, ``MOTP`` (m), ``track_recall``, ``IDS`` (identity switches),
        ``FRAG`` (fragmentations), ``MT`` and ``ML`` (objects tracked mostly and hardly), ``FP``, ``FN``, ``track_gt``
        (true boxes), as the devkit has them: AMOTA and AMOTP over 40 recalls, the others at the score threshold of the
        best MOTA; means or sums over the classes that the split shows. All but MOTP, MT and ML also as
        ``<key>/<class>``: NaN for a class without true boxes; where a class was never found, IDS, FRAG and FP are NaN.

    Raises:
        InputError: motmetrics is not installed.
    """
    require_motmetrics()
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.common.data_classes import EvalBoxes
    from nuscenes.eval.common.loaders import filter_eval_boxes, load_gt_of_sample_tokens
    from nuscenes.eval.tracking.data_classes import TrackingBox, TrackingMetrics
    from nuscenes.eval.tracking.evaluate import TrackingEval

    config = config_factory("tracking_nips_2019")
    tables, tokens = scored.tables, scored.tokens()

    class LoadedTrackingEval(TrackingEval):
        """The devkit's evaluation of one class on tracks in memory; everything but the loading is inherited."""

        def __init__(self, name: str, tracks_gt: dict, tracks_pred: dict) -> None:
            self.cfg, self.verbose, self.output_dir = copy.copy(config), False, ""
            self.render_classes: list[str] = []
            self.cfg.class_names = [name]
            self.tracks_gt, self.tracks_pred = (_of_class(tracks, name) for tracks in (tracks_gt, tracks_pred))

    def filtered(boxes: EvalBoxes) -> EvalBoxes:
        boxes = scored.with_ego_distance(boxes)
        # Without a single box the devkit cannot tell what kind of boxes these are and raises.
        return filter_eval_boxes(tables, boxes, config.class_range) if boxes.all else boxes

    predicted = EvalBoxes()
    for token in tokens:
        predicted.add_boxes(token, [TrackingBox.deserialize(record) for record in records[token]])
    with contextlib.redirect_stderr(io.StringIO()):  # the devkit's progress bar
        truth = load_gt_of_sample_tokens(tables, tokens, TrackingBox, verbose=False)
    with warnings.catch_warnings():
        # Means over nothing but NaN are expected; motmetrics 1.4 meets newer pandas with many words.
        warnings.simplefilter("ignore")
        tracks = [_tracks(tables, filtered(boxes), average) for boxes, average in ((truth, False), (predicted, True))]
        metrics = TrackingMetrics(config)
        bar = track(TRACKING_CLASSES, "scoring tracks", console=Console(file=sys.stderr), transient=True)
        for name in bar:  # the devkit takes a minute for a few hundred samples
            of_class, _ = LoadedTrackingEval(name, *tracks).evaluate()
            for metric, values in of_class.label_metrics.items():
                metrics.add_label_metric(metric, name, values[name])
        flat = {key: metrics.compute_metric(name) for key, name in _OVERALL.items()}
    flat["track_gt"] = float(np.nansum(list(metrics.label_metrics["gt"].values())))
    for name in TRACKING_CLASSES:
        flat |= {f"{key}/{name}": metrics.label_metrics[metric][name] for key, metric in _KEYS.items()}
        if np.isnan(flat[f"track_gt/{name}"]):
            flat[f"track_gt/{name}"] = 0.0
    return {key: float(value) for key, value in flat.items()}


def _of_class(tracks: Mapping[str, Mapping[int, list]], name: str) -> dict:
    """One class's boxes: the devkit looks through all that it is given once for each of its 40 thresholds."""
    return {
        scene: {stamp: [box for box in boxes if box.tracking_name == name] for stamp, boxes in frames.items()}
        for scene, frames in tracks.items()
    }


def _tracks(tables: NuScenes, boxes: EvalBoxes, average_scores: bool) -> dict:
    """Boxes by scene and time, holes in tracks filled, each track with its mean score: what the devkit evaluates.

    The devkit's own ``create_tracks`` does the same, but finds the split's scenes by names, in which one of
    splits.json that is called as one of its own is lost.
    """
    from nuscenes.eval.tracking.loaders import interpolate_tracks

    scenes: dict[str, dict[int, list]] = defaultdict(dict)
    stamps = {token: tables.get("sample", token) for token in boxes.sample_tokens}
    for token, sample in sorted(stamps.items(), key=lambda item: item[1]["timestamp"]):
        scenes[sample["scene_token"]][sample["timestamp"]] = boxes[token]
    answer = {}
    for scene, frames in scenes.items():
        if average_scores:
            scores = defaultdict(list)
            for box in (box for frame in frames.values() for box in frame):
                scores[box.tracking_id].append(box.tracking_score)
            for box in (box for frame in frames.values() for box in frame):
                box.tracking_score = float(np.mean(scores[box.tracking_id]))
        answer[scene] = interpolate_tracks(defaultdict(list, frames))
    return answer

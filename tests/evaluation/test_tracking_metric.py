"""The tracking metric against the devkit called directly, a perfect answer, and answers with known faults."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.constants import DETECTION_NAMES
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.utils.data_classes import Box
from pyquaternion import Quaternion

from bevstack.errors import InputError
from bevstack.evaluation import NuScenesTrackingMetric
from bevstack.registry import METRICS, TASK_UTILS
from bevstack.tracking import CenterPointTracker, Tracker
from tests.evaluation.nuscenes_root import SPLIT, VERSION


class GivenIdentities(Tracker):
    """Takes the identities that the embeddings hold: what a perfect tracker, or one with known faults, would say."""

    def no_tracks(self):
        return ()

    def follow(self, tracks, detections, seconds, next_id):
        return detections.embeddings[:, 0].astype(np.int64), (), next_id


@pytest.fixture(scope="module")
def annotated(tables, sample_of):
    """Makes, of every sample, one whose detections are the annotations; an instance's number is its embedding.

    ``names`` limits the classes; ``keep(number, token)`` leaves detections out.
    """
    numbers = {record["token"]: number for number, record in enumerate(tables.instance)}

    def make(keep=lambda number, token: True, score=lambda number: 0.5 + 0.01 * (number % 12)):
        samples = []
        for sample in tables.sample:
            boxes, identities = [], []
            for token in sample["anns"]:
                record = tables.get("sample_annotation", token)
                name = category_to_detection_name(record["category_name"])
                number = numbers[record["instance_token"]]
                if name and keep(number, sample["token"]):
                    rotation = Quaternion(record["rotation"])
                    box = Box(record["translation"], record["size"], rotation, score=score(number), name=name)
                    box.velocity = np.nan_to_num(tables.box_velocity(token))
                    boxes.append(box)
                    identities.append(number)
            made = sample_of(sample["token"], boxes)
            made.set_metainfo(
                dict(scene_token=sample["scene_token"], timestamp_s=sample["timestamp"] * 1e-6, classes=DETECTION_NAMES)
            )
            made.pred_instances_3d.embeddings = torch.tensor(identities, dtype=torch.float32).reshape(-1, 1)
            samples.append(made)
        return samples

    return make


def score(root, samples, tracker=None, out_dir=None, **options):
    options = {"classes": DETECTION_NAMES, "split": SPLIT, **options}
    metric = NuScenesTrackingMetric(root, VERSION, tracker=tracker or GivenIdentities(), out_dir=out_dir, **options)
    metric.process(None, [sample.to_dict() for sample in samples])
    return metric.evaluate(len(samples))


def devkit_summary(root, path, folder):
    """What the devkit itself makes of a submission file, loading included."""
    from nuscenes.eval.tracking.evaluate import TrackingEval

    evaluation = TrackingEval(
        config_factory("tracking_nips_2019"), str(path), SPLIT, str(folder), VERSION, str(root), verbose=False
    )
    return evaluation.evaluate()[0].serialize()


@pytest.mark.parametrize("tracker", [None, "CenterPointTracker", "DeepSortTracker"])
def test_perfect_detections_are_tracked_perfectly(root, annotated, tracker):
    # Expected: annotations with their own identities have no error, so MOTA and AMOTA are 1 and AMOTP 0 for the three
    # classes of the tiny root that are tracked (the fourth, barriers, is none). The objects move by at most 1.4 m a
    # frame at their annotated velocity, so both trackers find the same; embeddings of length not 1 are left out.
    samples = annotated()
    if tracker is not None:
        for sample in samples:
            del sample.pred_instances_3d.embeddings
        tracker = TASK_UTILS.build(dict(type=tracker, max_gap_s=1.0))
    metrics = score(root, samples, tracker)
    for name in ("car", "pedestrian", "bicycle"):
        assert metrics[f"AMOTA/{name}"] == pytest.approx(1.0) and metrics[f"MOTA/{name}"] == pytest.approx(1.0)
        assert metrics[f"AMOTP/{name}"] < 1e-3 and metrics[f"IDS/{name}"] == 0
    assert metrics["AMOTA"] == pytest.approx(1.0) and metrics["IDS"] == metrics["FP"] == metrics["FN"] == 0
    assert metrics["track_recall"] == pytest.approx(1.0)
    assert math.isnan(metrics["AMOTA/bus"]) and metrics["track_gt/bus"] == 0
    assert "AMOTA/barrier" not in metrics
    # 12 tracks of 5 categories by turns: three cars in each of two scenes of three samples.
    assert metrics["track_gt/car"] == 18


def test_a_switched_identity_is_counted(root, annotated):
    # Two cars of one scene exchange identities in its last sample: two switches by definition, MOTA falls by 2 of 18.
    samples = annotated()
    cars = [i for i, label in enumerate(samples[2].pred_instances_3d.labels_3d) if DETECTION_NAMES[label] == "car"][:2]
    given = samples[2].pred_instances_3d.embeddings
    given[cars] = given[cars[::-1]].clone()
    metrics = score(root, samples)
    assert metrics["IDS/car"] == metrics["IDS"] == 2
    assert metrics["MOTA/car"] == pytest.approx(1 - 2 / 18)
    assert metrics["AMOTA/car"] < 0.95 and metrics["AMOTA/pedestrian"] == pytest.approx(1.0)


def test_nothing_found_and_one_class_missed(root, annotated):
    # No detection at all: AMOTA 0 and AMOTP 2 m, the devkit's worst values, for every class with true boxes.
    nothing = score(root, annotated(keep=lambda number, token: False))
    assert nothing["AMOTA"] == 0 and nothing["AMOTP"] == 2 and nothing["track_recall"] == 0
    # Instances by turns car, pedestrian, barrier, bicycle, animal: without number 1 modulo 5 of each 12, no pedestrian.
    some = score(root, annotated(keep=lambda number, token: (number % 12) % 5 != 1))
    assert some["AMOTA/pedestrian"] == 0 and some["AMOTA/car"] == pytest.approx(1.0)
    assert some["AMOTA"] == pytest.approx(2 / 3)


def test_the_numbers_are_the_devkits_own(root, tables, noisy_boxes, sample_of, tmp_path):
    # Expected: TrackingEval, unmodified and with its own loading, on the file that the metric wrote; noisy detections,
    # false ones among them, in an order that is not that of time.
    samples = []
    for token, boxes in reversed(list(noisy_boxes.items())):
        made = sample_of(token, boxes)
        record = tables.get("sample", token)
        made.set_metainfo(dict(scene_token=record["scene_token"], timestamp_s=record["timestamp"] * 1e-6))
        samples.append(made)
    metrics = score(root, samples, CenterPointTracker(), tmp_path / "out")
    expected = devkit_summary(root, tmp_path / "out" / "tracking_nusc.json", tmp_path / "devkit")
    assert 0.05 < metrics["AMOTA"] < 0.95  # neither perfect nor empty
    names = {"AMOTA": "amota", "AMOTP": "amotp", "MOTA": "mota", "track_recall": "recall", "IDS": "ids",
             "FRAG": "frag", "MOTP": "motp", "FP": "fp", "FN": "fn", "MT": "mt", "ML": "ml"}  # fmt: skip
    for key, name in names.items():
        assert metrics[key] == pytest.approx(expected[name], nan_ok=True), key
        for label, value in expected["label_metrics"][name].items() if key not in ("MOTP", "MT", "ML") else ():
            assert metrics[f"{key}/{label}"] == pytest.approx(value, nan_ok=True), (key, label)
    written = json.loads((tmp_path / "out" / "tracking_nusc.json").read_text())
    assert list(written["results"]) == [sample["token"] for sample in tables.sample]
    named = {record["tracking_name"] for records in written["results"].values() for record in records}
    assert named == {"car", "pedestrian", "bicycle"}
    # The order of the samples makes no difference.
    again = score(root, samples[::-1], CenterPointTracker())
    assert {k: v for k, v in again.items() if v == v} == {k: v for k, v in metrics.items() if v == v}


def test_what_is_refused(root, annotated, tmp_path, monkeypatch):
    samples = annotated()
    with pytest.raises(InputError, match="results: 1 of the 6 samples of split 'tiny_val' are missing"):
        score(root, samples[:-1], out_dir=tmp_path)
    with pytest.raises(InputError, match="sample is there more than once"):
        score(root, [*samples, samples[0]], out_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["results_refused.json"]  # kept, but no submission
    lost = samples[0].new()
    del lost.scene_token
    with pytest.raises(InputError, match="tracker: scene_token: sample .* has none"):
        score(root, [lost])
    with pytest.raises(InputError, match="format_only writes a file and needs a folder"):
        score(root, samples, format_only=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"motmetrics: is not installed: pip install 'bevstack\[tracking\]'"):
        METRICS.build(
            dict(type="NuScenesTrackingMetric", data_root=root, version=VERSION, split=SPLIT,
                 tracker=CenterPointTracker())
        )  # fmt: skip

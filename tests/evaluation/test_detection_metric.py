"""The detection metric against the devkit called directly, and what it refuses."""

from __future__ import annotations

import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.constants import DETECTION_NAMES
from nuscenes.eval.detection.evaluate import DetectionEval
from nuscenes.utils.data_classes import Box
from pyquaternion import Quaternion

from bevstack.errors import InputError
from bevstack.evaluation import NuScenesDetectionMetric, WholeEvaluator
from bevstack.evaluation.nuscenes_scoring import open_tables
from bevstack.models.heads import DenseDetectionHead
from bevstack.registry import METRICS
from tests.evaluation.nuscenes_root import SPLIT, VERSION

PRESENT = ("car", "pedestrian", "barrier", "bicycle")


def metric_of(root, out_dir=None, **options):
    options = {"classes": DETECTION_NAMES, "split": SPLIT, **options}
    return NuScenesDetectionMetric(root, VERSION, out_dir=out_dir, **options)


def score(metric, samples):
    metric.process(None, [sample.to_dict() for sample in samples])
    return metric.evaluate(len(samples))


def devkit_summary(tables, path, folder):
    """What the devkit itself makes of a submission file."""
    evaluation = DetectionEval(
        tables, config_factory("detection_cvpr_2019"), str(path), SPLIT, str(folder), verbose=False
    )
    metrics, _ = evaluation.evaluate()
    return metrics.serialize()


def true_boxes(tables, token):
    """Annotations as the devkit's evaluation counts them, with the devkit's velocities, and their attributes."""
    boxes, attributes = [], []
    names = {"vehicle.car": "car", "human.pedestrian.adult": "pedestrian", "movable_object.barrier": "barrier",
             "vehicle.bicycle": "bicycle"}  # fmt: skip
    for annotation in tables.get("sample", token)["anns"]:
        record = tables.get("sample_annotation", annotation)
        if record["category_name"] in names:
            box = Box(record["translation"], record["size"], Quaternion(record["rotation"]), score=0.5)
            box.name, box.velocity = names[record["category_name"]], tables.box_velocity(annotation)
            boxes.append(box)
            attributes.append(record["attribute_tokens"][0] if record["attribute_tokens"] else "")
    return boxes, attributes


def test_perfect_answer_has_no_error(root, tables, sample_of):
    # Expected: the annotations themselves have AP 1 in every class present and no error of any kind; six classes are
    # absent, so the devkit's own mean is 4 / 10.
    samples = [sample_of(sample["token"], *true_boxes(tables, sample["token"])) for sample in tables.sample]
    metrics = score(metric_of(root), samples)
    assert metrics["mAP"] == pytest.approx(0.4)
    assert metrics["mAP_present"] == pytest.approx(1.0)
    assert metrics["NDS_present"] == pytest.approx(1.0, abs=1e-4)
    for name in PRESENT:
        assert metrics[f"AP/{name}"] == pytest.approx(1.0)
        for error in ("ATE", "ASE", "AOE", "AVE", "AAE"):
            value = metrics[f"{error}/{name}"]
            assert math.isnan(value) if name == "barrier" and error in ("AVE", "AAE") else value < 1e-3, (name, error)
    # 12 tracks of 5 categories by turns, two scenes of three samples: 3 x 6 cars and pedestrians, 2 x 6 of the others
    # (what lies beyond the official range is left out: boxes spread to 38 m, barriers count to 30 m).
    assert metrics["gt/bus"] == 0 and metrics["AP/bus"] == 0
    assert metrics["gt/car"] == 18


@pytest.mark.parametrize(
    ("by", "ap", "error"), [(0.4, 1.0, 0.4), (0.75, 0.75, 0.75), (1.5, 0.5, 1.5), (3.0, 0.25, 1.0)]
)
def test_boxes_shifted_by_a_known_distance(root, tables, sample_of, by, ap, error):
    # Expected, by hand: at each of 0.5, 1, 2 and 4 m all cars are found or none is; the error is the shift where it is
    # under 2 m, and 1 (the devkit's worst) where nothing is found at 2 m.
    samples = []
    for sample in tables.sample:
        boxes, attributes = true_boxes(tables, sample["token"])
        for box in boxes:
            box.translate(np.array([by, 0.0, 0.0]))
        samples.append(sample_of(sample["token"], boxes, attributes))
    metrics = score(metric_of(root), samples)
    assert metrics["AP/car"] == pytest.approx(ap)
    assert metrics["ATE/car"] == pytest.approx(error, abs=1e-4)


def test_half_of_the_boxes_missing(root, tables, sample_of):
    # Expected, by hand: scene tiny-1 has 9 of the 18 cars; precision is 1 up to recall 0.5 and 0 beyond, so that 40 of
    # the 90 recalls 0.11 ... 1.00 count (1 - 0.1) / 0.9 each. What was found has no error.
    samples = []
    for sample in tables.sample:
        found = true_boxes(tables, sample["token"]) if sample["token"].startswith("tiny-1") else ([], [])
        samples.append(sample_of(sample["token"], *found))
    metrics = score(metric_of(root), samples)
    assert metrics["AP/car"] == pytest.approx(40 / 90)
    assert metrics["ATE/car"] < 1e-3


def test_noisy_answer_scores_as_the_devkit_scores_it(root, tables, noisy_boxes, sample_of, tmp_path):
    # Expected: DetectionEval, unmodified, on a file written by hand from the same boxes in the global frame. BEV boxes
    # are float32 (about 1e-6 m at 40 m), hence the tolerance.
    def record(token, box):
        kind = {"car": "vehicle", "pedestrian": "pedestrian", "bicycle": "cycle"}.get(box.name)
        moving = np.hypot(*box.velocity[:2]) > 0.2
        attributes = {"vehicle": ("parked", "moving"), "pedestrian": ("standing", "moving"),
                      "cycle": ("without_rider", "with_rider")}  # fmt: skip
        return {
            "sample_token": token, "translation": box.center.tolist(), "size": box.wlh.tolist(),
            "rotation": box.orientation.elements.tolist(), "velocity": box.velocity[:2].tolist(),
            "detection_name": box.name, "detection_score": box.score,
            "attribute_name": f"{kind}.{attributes[kind][moving]}" if kind else "",
        }  # fmt: skip

    by_hand = {token: [record(token, box) for box in boxes] for token, boxes in noisy_boxes.items()}
    (tmp_path / "by_hand.json").write_text(json.dumps({"meta": {}, "results": by_hand}))
    expected = devkit_summary(tables, tmp_path / "by_hand.json", tmp_path / "devkit")

    metrics = score(metric_of(root, tmp_path / "out"), [sample_of(*item) for item in noisy_boxes.items()])
    assert 0.05 < metrics["mAP_present"] < 0.95  # the case is neither perfect nor empty
    assert metrics["NDS"] == pytest.approx(expected["nd_score"], abs=1e-5)
    assert metrics["mAP"] == pytest.approx(expected["mean_ap"], abs=1e-5)
    short = {"trans_err": "ATE", "scale_err": "ASE", "orient_err": "AOE", "vel_err": "AVE", "attr_err": "AAE"}
    for name in DETECTION_NAMES:
        assert metrics[f"AP/{name}"] == pytest.approx(expected["mean_dist_aps"][name], abs=1e-5)
        for key, error in short.items():
            expected_error = expected["label_tp_errors"][name][key]
            assert metrics[f"{error}/{name}"] == pytest.approx(expected_error, abs=1e-5, nan_ok=True)
    for key, error in short.items():
        assert metrics[f"m{error}"] == pytest.approx(expected["tp_errors"][key], abs=1e-5)

    # The file that the metric wrote, read by the devkit: exactly the numbers that the metric returned.
    own = devkit_summary(tables, tmp_path / "out" / "results_nusc.json", tmp_path / "devkit2")
    assert own["nd_score"] == metrics["NDS"]
    assert own["mean_dist_aps"] == {name: metrics[f"AP/{name}"] for name in DETECTION_NAMES}


def test_order_of_samples_does_not_matter(root, noisy_boxes, sample_of, tmp_path):
    # Expected: the same bytes and numbers as in the order of the tables. Scores are made equal, so that ties count.
    samples = [sample_of(*item) for item in noisy_boxes.items()]
    for sample in samples:
        sample.pred_instances_3d.scores_3d[:] = 0.5
    first = score(metric_of(root, tmp_path / "a"), samples)
    second = score(metric_of(root, tmp_path / "b"), samples[::-1])
    np.testing.assert_equal(second, first)
    contents = [(tmp_path / folder / "results_nusc.json").read_bytes() for folder in "ab"]
    assert contents[0] == contents[1]


def test_no_boxes_at_all_scores_zero(root, noisy_boxes, sample_of):
    # Expected: nothing found, AP 0; the devkit alone raises on an answer without a single box.
    metrics = score(metric_of(root), [sample_of(token, []) for token in noisy_boxes])
    assert metrics["mAP"] == 0 and metrics["NDS"] == 0 and metrics["gt/car"] == 18


def test_split_of_one_scene(root, noisy_boxes, sample_of):
    # Expected: splits.json's split "one" holds scene tiny-1 only: 9 cars of its three samples.
    samples = [sample_of(token, boxes) for token, boxes in noisy_boxes.items() if token.startswith("tiny-1")]
    assert score(metric_of(root, split="one"), samples)["gt/car"] == 9


def test_tables_are_loaded_once(root):
    assert open_tables(root, VERSION) is open_tables(str(root), VERSION)


def test_format_only_writes_and_scores_nothing(root, noisy_boxes, sample_of, tmp_path):
    metric = metric_of(root, tmp_path, format_only=True)
    assert score(metric, [sample_of(*item) for item in noisy_boxes.items()]) == {}
    content = json.loads((tmp_path / "results_nusc.json").read_text())
    assert list(content["results"]) == list(noisy_boxes)
    assert content["meta"]["use_camera"] is True and content["meta"]["use_lidar"] is False


def test_predicted_attributes_are_kept(root, noisy_boxes, sample_of, tmp_path):
    samples = [
        sample_of(token, boxes, ["vehicle.stopped" if box.name == "car" else "" for box in boxes])
        for token, boxes in noisy_boxes.items()
    ]
    score(metric_of(root, tmp_path), samples)
    results = json.loads((tmp_path / "results_nusc.json").read_text())["results"]
    cars = [box for boxes in results.values() for box in boxes if box["detection_name"] == "car"]
    assert cars and all(box["attribute_name"] == "vehicle.stopped" for box in cars)


def missing(samples):
    return samples[1:]


def twice(samples):
    return [*samples, samples[2]]


def foreign(samples):
    samples[0].set_metainfo({"token": "elsewhere"})
    return samples


def too_many(samples):
    instances = samples[0].pred_instances_3d
    samples[0].pred_instances_3d = instances[torch.zeros(501, dtype=torch.int64)]
    return samples


def nan_position(samples):
    samples[0].pred_instances_3d.bboxes_3d.tensor[1, 0] = math.nan
    return samples


def nan_yaw(samples):
    samples[0].pred_instances_3d.bboxes_3d.tensor[1, 6] = math.nan
    return samples


def nan_velocity(samples):
    samples[0].pred_instances_3d.bboxes_3d.tensor[1, 8] = math.nan
    return samples


def infinite_score(samples):
    samples[0].pred_instances_3d.scores_3d[1] = math.inf
    return samples


def flat_box(samples):
    samples[0].pred_instances_3d.bboxes_3d.tensor[1, 5] = 0
    return samples


def unknown_label(samples):
    samples[0].pred_instances_3d.labels_3d[1] = 10
    return samples


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (missing, "1 of the 6 samples of split 'tiny_val' are missing, first tiny-0-0"),
        (twice, "results/tiny-0-2: sample is there more than once"),
        (foreign, "results/elsewhere: is not a sample"),
        (too_many, "501 boxes; at most 500"),
        (nan_position, "results/tiny-0-0[1].translation: is not finite"),
        (nan_yaw, "results/tiny-0-0[1].rotation: is not finite"),
        (nan_velocity, "results/tiny-0-0[1].velocity: is not finite"),
        (infinite_score, "results/tiny-0-0[1].detection_score: is not finite"),
        (flat_box, "results/tiny-0-0[1].size: must be positive"),
        (unknown_label, "results/tiny-0-0[1].detection_name: 'label 10' is no class"),
    ],
)
def test_wrong_results_are_refused_and_kept_apart(root, noisy_boxes, sample_of, tmp_path, spoil, said):
    # Expected: RELIABILITY.md R15, no submission; the boxes, which took hours, lie in a file that the message names.
    samples = spoil([sample_of(*item) for item in noisy_boxes.items()])
    with pytest.raises(InputError) as caught:
        score(metric_of(root, tmp_path / "out"), samples)
    kept = tmp_path / "out" / "results_refused.json"
    assert said in str(caught.value) and str(kept) in str(caught.value)
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]
    boxes = {entry["token"]: entry["boxes"] for entry in json.loads(kept.read_text())}
    assert {sample.token for sample in samples} == boxes.keys()
    assert len(boxes["tiny-0-1"]) == len(noisy_boxes["tiny-0-1"])


def test_predictions_stay_when_the_scoring_fails(root, noisy_boxes, sample_of, tmp_path, monkeypatch, capsys):
    # Expected: the submission was written before; an error that is no InputError is not made one, and a line before it
    # says where it is.
    def fails(*arguments):
        raise MemoryError("too many boxes")

    monkeypatch.setattr("bevstack.evaluation.detection_metric.score_boxes", fails)
    with pytest.raises(MemoryError):
        score(metric_of(root, tmp_path), [sample_of(*item) for item in noisy_boxes.items()])
    assert f"the predictions are kept in {tmp_path / 'results_nusc.json'}" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "results_nusc.json").read_text())["results"]) == 6


def test_one_metrics_fault_leaves_the_others_theirs(root, noisy_boxes, sample_of, tmp_path):
    # Expected: the second metric's submission is written although the first one refuses its results.
    samples = twice([sample_of(*item) for item in noisy_boxes.items()])
    first, second = metric_of(root, tmp_path / "a"), metric_of(root, tmp_path / "b")
    first.process(None, [sample.to_dict() for sample in samples])
    second.process(None, [sample.to_dict() for sample in samples[:-1]])
    with pytest.raises(InputError, match="sample is there more than once"):
        WholeEvaluator([first, second]).evaluate(len(samples))
    assert (tmp_path / "b" / "results_nusc.json").is_file()


def test_foreign_class_names_are_refused_with_a_suggestion(root):
    with pytest.raises(InputError, match="'pedestrians' is no class .* did you mean 'pedestrian'"):
        metric_of(root, classes=("car", "pedestrians"))
    metric = metric_of(root, classes=None)
    metric.dataset_meta = {"classes": ("car", "tram")}
    with pytest.raises(InputError, match="'tram' is no class"):
        _ = metric.classes


def test_model_without_boxes_is_refused(root):
    with pytest.raises(InputError, match="predicts no boxes"):
        metric_of(root).process(None, [{"token": "tiny-0-0"}])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"split": "valid"}, "valid: no such split, or none of its scenes; there are all, one, tiny_val"),
        ({"split": "val"}, "no such split, or none of its scenes"),
        ({"version": "v1.0"}, "v1.0: version: no such folder; there are v1.0-tiny"),
        ({"data_root": "/nowhere"}, "/nowhere: data_root: no such folder"),
    ],
)
def test_wrong_tables_are_refused_where_the_metric_is_built(root, options, said):
    with pytest.raises(InputError) as caught:
        NuScenesDetectionMetric(**{"data_root": root, "version": VERSION, "split": SPLIT, **options})
    assert said in str(caught.value)


def test_a_folder_that_cannot_be_written_is_refused_where_the_metric_is_built(root, tmp_path):
    # It used to be found after the last prediction, which was lost with it.
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="out_dir: cannot be written to"):
            NuScenesDetectionMetric(root, VERSION, SPLIT, out_dir=folder)
    NuScenesDetectionMetric(root, VERSION, SPLIT, out_dir=tmp_path / "new" / "folder")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("meta", "said"),
    [
        ({"split": "one"}, "split: is 'tiny_val', but the dataset's is 'one'"),
        ({"version": "v1.0-mini"}, "version: is 'v1.0-tiny', but the dataset's is 'v1.0-mini'"),
        ({"data_root": "/elsewhere"}, "but the dataset's is /elsewhere"),
        ({"categories": {"car": ["vehicle.car", "vehicle.van"]}}, "labels vehicle.van as 'car', nuScenes' score"),
        ({"num_annotated": 0}, "has no annotated box to score by; format_only=True writes"),
    ],
)
def test_another_dataset_is_refused_before_the_first_prediction(root, meta, said):
    # mmengine tells metrics the dataset's metainfo where it builds the loop.
    with pytest.raises(InputError) as caught:
        metric_of(root).dataset_meta = {"classes": DETECTION_NAMES, **meta}
    assert said in str(caught.value)
    metric_of(root).dataset_meta = {
        "classes": DETECTION_NAMES,
        "data_root": str(root),
        "version": VERSION,
        "split": SPLIT,
    }


def test_tables_without_annotations_are_refused_but_for_format_only(root, tmp_path):
    # The tables of v1.0-test: no box at all, which scores 0.000 where nobody asks.
    shutil.copytree(root / VERSION, tmp_path / "v1.0-test")
    (tmp_path / "v1.0-test" / "sample_annotation.json").write_text("[]")
    with pytest.raises(InputError, match="version v1.0-test has no annotated box to score by; format_only=True"):
        NuScenesDetectionMetric(tmp_path, "v1.0-test", SPLIT)
    NuScenesDetectionMetric(tmp_path, "v1.0-test", SPLIT, out_dir=tmp_path, format_only=True)


def test_a_model_of_too_many_boxes_is_refused(root):
    # 500 boxes a sample is the challenge's limit.
    grid = {"shape": (8, 8), "x_range_m": (-8.0, 8.0), "y_range_m": (-8.0, 8.0)}
    heads = {n: DenseDetectionHead(4, grid, classes=DETECTION_NAMES, decoding={"max_num": n}) for n in (500, 501)}
    metric_of(root).check_model(SimpleNamespace(heads={"detection": heads[500]}))
    with pytest.raises(InputError, match="heads.detection.decoding.max_num: 501 boxes a sample, but .* takes 500"):
        metric_of(root).check_model(SimpleNamespace(heads={"detection": heads[501]}))


@pytest.mark.parametrize("name", ["LIDAR_TOP", "LIDAR_ROOF"])
def test_the_lidar_may_have_any_name(root, noisy_boxes, sample_of, tmp_path, name):
    # Expected: the score of the lidar called LIDAR_TOP, which the devkit asks for.
    shutil.copytree(root / VERSION, tmp_path / VERSION)
    sensor = tmp_path / VERSION / "sensor.json"
    sensor.write_text(sensor.read_text().replace("LIDAR_TOP", name))
    samples = [sample_of(*item) for item in noisy_boxes.items()]
    assert score(metric_of(tmp_path), samples)["NDS"] == score(metric_of(root), samples)["NDS"]


def test_categories_called_as_classes_are_scored_as_the_dataset_labels_them(root, noisy_boxes, sample_of, tmp_path):
    # Expected: the score of nuScenes' names of the same categories.
    shutil.copytree(root / VERSION, tmp_path / VERSION)
    table = tmp_path / VERSION / "category.json"
    for name, own in (("vehicle.car", "car"), ("human.pedestrian.adult", "pedestrian"), ("vehicle.bicycle", "bicycle")):
        table.write_text(table.read_text().replace(f'"name": "{name}"', f'"name": "{own}"'))
    samples = [sample_of(*item) for item in noisy_boxes.items()]
    found, expected = score(metric_of(tmp_path), samples), score(metric_of(root), samples)
    assert found["gt/car"] == 18 and found["NDS"] == expected["NDS"] > 0


def test_samples_that_are_not_indexed_are_not_asked_for(root, noisy_boxes, sample_of):
    # Expected: scored as the split of the other scene alone, by hand: tiny-0 left out leaves split "one".
    samples = [sample_of(token, boxes) for token, boxes in noisy_boxes.items() if token.startswith("tiny-1")]
    metric = metric_of(root)
    with pytest.warns(UserWarning, match="3 samples of v1.0-tiny are not indexed"):
        metric.dataset_meta = {"classes": DETECTION_NAMES, "left_out": ("tiny-0-0", "tiny-0-1", "tiny-0-2")}
    found, expected = score(metric, samples), score(metric_of(root, split="one"), samples)
    assert found["NDS"] == expected["NDS"] and found["gt/car"] == 9


def test_registered():
    assert METRICS.get("NuScenesDetectionMetric") is NuScenesDetectionMetric

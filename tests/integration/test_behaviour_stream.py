"""Behaviour from the tables to the metric: a stream of samples through dataset, memory, loss, prediction and score.

World of ``tests/datasets/tables.py``: scene-0001 has four samples 0.5 s apart, a car that drives and a pedestrian.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bevstack.datasets.nuscenes.create_data import create_nuscenes
from bevstack.datasets.nuscenes.dataset import NuScenesBEVDataset
from bevstack.engine.streaming import Streams
from bevstack.evaluation import BehaviourMetric
from bevstack.registry import MODELS
from bevstack.visualization import BehaviourPainter, BEVWindow
from tests.datasets.tables import VERSION, build_root

GRID = dict(shape=(16, 16), x_range_m=(-32, 32), y_range_m=(-32, 32))
CLASSES = ("car", "pedestrian", "barrier")
FRAMES = 3


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = build_root(tmp_path_factory.mktemp("behaviour") / "root")
    create_nuscenes(root, VERSION)
    return root


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = dict(
        type="BEVPerception",
        data_preprocessor=dict(type="BEVPreprocessor"),
        backbone=dict(type="mmdet.ResNet", depth=18, base_channels=4, out_indices=(1,)),
        neck=dict(type="TopDownNeck", in_channels=(8,), out_channels=8, out_levels=(0,)),
        encoder=dict(
            type="BEVFormerEncoder", grid=GRID, channels=8, num_levels=1, num_layers=1, num_heads=2, num_points=4,
            feed_forward_channels=8, dropout=0.0,
        ),
        bev_neck=dict(type="BEVUNet", in_channels=8, widths=(8, 8), blocks=1, out_channels=6),
        heads=dict(
            behaviour=dict(
                type="BehaviourHead", in_channels=6, grid=GRID, classes=CLASSES, num_frames=FRAMES,
                channels=8, detection="boxes", on_truth=True,
            ),
            boxes=dict(type="DenseDetectionHead", in_channels=6, grid=GRID, classes=CLASSES, channels=6),
        ),
        _scope_="bevstack",
    )  # fmt: skip
    return MODELS.build(config)


def stream(model, root, ask: str, augmented: bool = True):
    """(answer, memory, sample) of each sample of scene-0001, the memory carried along."""
    augmentation = dict(
        type="BEVRotateScaleFlip", rotation_range_deg=(20, 20), scale_range=(1.1, 1.1), constant_along_stream=True
    )
    pipeline = [
        dict(type="LoadMultiViewImages"),
        dict(type="LoadPastCenters", num_frames=FRAMES),
        *([augmentation] if augmented else []),
        dict(type="PackBEVInputs"),
    ]
    dataset = NuScenesBEVDataset(root, VERSION, "tiny_train", pipeline, classes=CLASSES, test_mode=True)
    streams = Streams()
    for item in dataset:
        data = model.data_preprocessor(
            {"inputs": {key: [value] for key, value in item["inputs"].items()}, "data_samples": [item["data_samples"]]},
            ask == "loss",
        )
        answer, streams = streams.step(model, data, ask)
        yield answer, streams.memory, data["data_samples"][0]


def test_tracks_and_memory_mean_the_same_ground(model, root):
    # Expected: past centres come from the tables, the memory's transforms from ego motion. A past centre brought into
    # its frame by the memory is where that frame's own sample had the same object (both augmented alike).
    own: list[dict] = []
    past = FRAMES - 1  # what the head reads beside the current frame
    for k, (losses, memory, sample) in enumerate(stream(model.train(), root, "loss")):
        assert losses["behaviour.loss_attribute"].isfinite()
        assert memory.valid.tolist() == [[True] * min(k + 1, past)]
        np.testing.assert_allclose(memory.seconds[0], [0.0, 0.5][: k + 1], atol=1e-5)
        truth = sample.gt_instances_3d
        boxes = truth.bboxes_3d.tensor[:, :2]
        own.append(dict(zip(truth.instance_ids.tolist(), boxes, strict=True)))
        for age in range(1, min(k + 1, past)):
            frame_from_now = torch.linalg.inv(memory.now_from_frame[0, age])
            seen = 0
            for instance, places in zip(truth.instance_ids.tolist(), truth.past_centers, strict=True):
                there = instance in own[k - age]
                assert there == bool(places[age].isfinite().all())
                if there:
                    moved = frame_from_now @ torch.tensor([*places[age].tolist(), 0.0, 1.0])
                    torch.testing.assert_close(moved[:2], own[k - age][instance], rtol=1e-4, atol=1e-3)
                    seen += 1
            assert seen >= 2
    assert len(own) == 4


@torch.no_grad()
def test_a_stream_is_predicted_scored_and_drawn(model, root):
    # The untrained detector finds nothing reliably, so the truth stands in for its answer: every agent is matched.
    model.eval()
    metric = BehaviourMetric()
    boxes = model.heads["boxes"]
    truth_of = [sample for _, _, sample in stream(model, root, "predict", augmented=False)]
    answers = iter(truth_of)

    def found(raw, samples):
        instances = next(answers).gt_instances_3d[:].new()
        instances.scores_3d = torch.ones(len(instances.labels_3d))
        for name in ("attribute_names", "past_centers"):
            del instances[name]
        return [{"pred_instances_3d": instances}]

    boxes.predict = found
    try:
        predicted = [result[0] for result, _, _ in stream(model, root, "predict", augmented=False)]
    finally:
        del boxes.predict
    metric.process(None, [sample.to_dict() for sample in predicted])
    scores = metric.evaluate(len(predicted))
    # Four samples of one car with an attribute; the pedestrian of these tables has none.
    assert scores["behaviour_matched"] == 4
    assert 0 <= scores["behaviour_f1/vehicle"] <= 1 and 0 <= scores["behaviour_f1_on_truth"] <= 1
    panel = BehaviourPainter().paint(predicted[-1], BEVWindow(size_px=200))
    assert panel.shape == (200, 200, 3)

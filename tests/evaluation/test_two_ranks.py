"""Two and three processes over gloo give the file and the numbers that one gives, and refuse together."""

from __future__ import annotations

import json

import pytest
import torch

from bevstack.errors import InputError
from bevstack.evaluation import BEVSegmentationMetric, ImageKeypointMetric, NuScenesDetectionMetric
from bevstack.geometry import BEVGrid
from bevstack.structures import BEVRaster
from tests.evaluation.nuscenes_root import SPLIT, VERSION
from tests.processes import run_forked_ranks

CLASSES = ("car", "pedestrian", "bicycle")
TOKENS = [f"tiny-{scene}-{moment}" for scene in range(2) for moment in range(3)]


class Boxes:
    """Stands for LiDARInstance3DBoxes, of which the metric reads only the tensor."""

    def __init__(self, tensor):
        self.tensor = tensor


def sample_of(token):
    generator = torch.Generator().manual_seed(TOKENS.index(token))
    boxes = torch.rand(20, 9, generator=generator) * 20 + 0.5
    grid = BEVGrid((8, 8))
    truth = torch.rand(1, 8, 8, generator=generator) < 0.5
    return {
        "token": token,
        "global_from_bev": torch.eye(4).double().numpy(),
        "pred_instances_3d": {
            "bboxes_3d": Boxes(boxes),
            "scores_3d": torch.rand(20, generator=generator).mul(4).round().div(4),
            "labels_3d": torch.randint(0, 3, (20,), generator=generator),
        },
        "gt_instances_3d": {"bboxes_3d": Boxes(boxes), "labels_3d": torch.zeros(20).long()},
        "pixels_from_camera": torch.tensor([[[8.0, 0, 16], [0, 8, 16], [0, 0, 1]]]),
        "camera_from_bev": torch.tensor([[[1.0, 0, 0, -8], [0, 0, -1, 8], [0, 1, 0, 0], [0, 0, 0, 1]]]),
        "image_size_px": torch.tensor([[32, 32]]),
        "pred_image_keypoints": {
            "points_px": torch.rand(90, 2, generator=generator) * 32,
            "cameras": torch.zeros(90).long(),
            "kinds": torch.randint(0, 6, (90,), generator=generator),
            "scores": torch.rand(90, generator=generator).mul(4).round().div(4),
        },
        "gt_rasters": {"map": BEVRaster(truth, ("road",), grid)},
        "pred_rasters": {"map": BEVRaster(torch.rand(1, 8, 8, generator=generator), ("road",), grid)},
    }


def evaluate(root, out, tokens):
    metrics = {}
    detection = NuScenesDetectionMetric(root, VERSION, SPLIT, out, CLASSES)
    for metric in (detection, BEVSegmentationMetric("map"), ImageKeypointMetric(CLASSES)):
        metric.process(None, [sample_of(token) for token in tokens])
        metrics.update(metric.evaluate(len(tokens)))
    return metrics


def run_rank(rank, root, out, parts):
    """One process: its part of the samples; then one more round in which rank 1 has a sample too few."""
    metrics = evaluate(root, out / "together", parts[rank])
    try:
        evaluate(root, out / "refused", parts[rank][int(rank == 1) :])
        refused = "nothing was refused"
    except InputError as error:
        refused = str(error)
    (out / f"rank{rank}.json").write_text(json.dumps([metrics, refused]))


@pytest.mark.parametrize(
    "parts",
    [(TOKENS[4:], TOKENS[3::-1]), (TOKENS[4:], TOKENS[3:0:-1], TOKENS[:1]), (TOKENS[3:], TOKENS[2::-1], [])],
    ids=["two", "three", "three, one without a sample"],
)
def test_ranks_equal_one(root, tmp_path, parts):
    # Expected: the one-rank file and numbers, although the ranks hold different numbers of samples in another order.
    alone = evaluate(root, tmp_path / "one", TOKENS)
    assert 0 < alone["image_keypoint_AP"] < 1 and 0 < alone["image_keypoint_PCK@0.1"] < 1
    run_forked_ranks(tmp_path, run_rank, root, tmp_path, parts, ranks=len(parts))
    missing = parts[1][0]
    for rank in range(len(parts)):
        together, refused = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert json.dumps(together) == json.dumps(alone)
        assert f"1 of the 6 samples of split 'tiny_val' are missing, first {missing}" in refused
    files = [(tmp_path / folder / "results_nusc.json").read_bytes() for folder in ("one", "together")]
    assert files[0] == files[1]
    assert [path.name for path in (tmp_path / "refused").iterdir()] == ["results_refused.json"]

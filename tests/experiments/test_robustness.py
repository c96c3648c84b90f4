"""Scores with faulty sensors: ratios by hand, the cases of each suite, the tool on a small model from end to end."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from bevstack.errors import InputError
from bevstack.experiments.arguments import FAULT_SUITES
from bevstack.experiments.fault_suites import CLEAN, FaultCase, FaultSettings, cases_of, with_faults
from bevstack.experiments.fault_tests import (
    FaultTests,
    FaultTestSettings,
    KeptImageFeatures,
    KeptImages,
    of_first_scenes,
    scored_cases,
)
from bevstack.experiments.robustness import chosen_metric, main, read_scores, summary_of
from bevstack.registry import TRANSFORMS
from bevstack.structures import CameraRig, EgoMotion, Frame
from tests.engine.front_door import saved, small_config, trained

CAMERAS = ("FRONT", "LEFT", "RIGHT")


def corruption(name: str, level: str) -> FaultCase:
    return FaultCase("corruptions", name, level)


def test_ratios_by_hand() -> None:
    """Clean 0.5. Fog 0.4, 0.2: (0.8 + 0.4) / 2 = 0.6; snow 0.5: 1. Errors 1.4 / 1.2 and 0.5 / 0.8 of the baseline."""
    cases = [CLEAN, corruption("fog", "easy"), corruption("fog", "hard"), corruption("snow", "easy")]
    cases += [FaultCase("cameras", "one lost", "a"), FaultCase("cameras", "one lost", "b")]
    values = [0.5, 0.4, 0.2, 0.5, 0.45, 0.35]
    scores = {case.key: {"NDS": value} for case, value in zip(cases, values, strict=True)}
    others = {case.key: {"NDS": value} for case, value in zip(cases[1:4], [0.5, 0.3, 0.2], strict=True)}
    found = summary_of(cases, scores, "NDS", others)
    assert found == pytest.approx({"mRR": 0.8, "mCE": (1.4 / 1.2 + 0.5 / 0.8) / 2, "one camera lost": 0.8})
    assert "mCE" not in summary_of(cases, scores, "NDS", {})


def test_suites_have_what_was_promised() -> None:
    """Expected: 8 corruptions of 3 severities; 3 + 3 + 3 lost, frozen, 5 late, swapped; 2 kinds, 2 ways, 4 levels."""
    suites = {suite: cases_of(suite, FaultSettings(CAMERAS, rigs=(("bus", "data"),))) for suite in FAULT_SUITES}
    assert [len(suites[suite]) for suite in FAULT_SUITES] == [24, 16, 16, 1, 8]
    keys = [case.key for cases in suites.values() for case in cases]
    assert len(set(keys)) == len(keys)
    for case in (case for cases in suites.values() for case in cases):
        for step in case.transforms:
            TRANSFORMS.build(dict(step))


def test_faults_come_right_behind_loading() -> None:
    cfg = small_config()
    case = cases_of("corruptions", FaultSettings(CAMERAS))[0]
    faulty = with_faults(cfg, case).test_dataloader.dataset.pipeline
    names = [step["type"] for step in faulty]
    assert names == ["LoadMultiViewImages", "CorruptImages", "ResizeImages", "PackBEVInputs"]
    assert len(cfg.test_dataloader.dataset.pipeline) == 3, "the config itself is as it was"
    cfg.test_dataloader.dataset.pipeline = []
    with pytest.raises(InputError, match="loads no images"):
        with_faults(cfg, case)


def test_another_rig_is_another_root() -> None:
    """Expected: dataset and metric read the other root; the pipeline fits the cameras to the model's, and is as it was
    otherwise."""
    cfg = small_config()
    cfg.test_evaluator = [{"type": "NuScenesDetectionMetric", "data_root": "absent"}, {"type": "BEVSegmentationMetric"}]
    (case,) = cases_of("rig", FaultSettings(CAMERAS, rigs=(("bus", "elsewhere"),)))
    faulty = with_faults(cfg, case)
    assert faulty.test_dataloader.dataset.data_root == faulty.test_evaluator[0].data_root == "elsewhere"
    steps = list(faulty.test_dataloader.dataset.pipeline)
    assert steps.pop(1) == {"type": "FitCameras", "number": len(CAMERAS)}
    assert steps == cfg.test_dataloader.dataset.pipeline
    assert cfg.test_dataloader.dataset.data_root == "absent"


def test_what_cannot_be_compared_is_refused(tmp_path) -> None:
    path = tmp_path / "robustness.json"
    assert chosen_metric({"mAP": 0.1, "NDS": 0.0}, None, path) == "mAP"
    for clean, wanted, said in (({"mAP": 0.0}, None, "NDS or mAP above 0"), ({"mAP": 1.0}, "PQ", "no PQ"),
                                ({"PQ": 0.0}, "PQ", "nothing to compare")):  # fmt: skip
        with pytest.raises(InputError, match=said):
            chosen_metric(clean, wanted, path)


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"run": {}}', '{"run": 3, "scores": {}}', '{"run": {}, "scores": {"a": 3}}',
     '{"run": {}, "scores": {"a": {"NDS": "x"}}}', '{"run": {"seed": 1}, "scores": {}}', "{" * 100_000],
)  # fmt: skip
def test_numbers_of_another_kind_are_refused(tmp_path, text) -> None:
    path = tmp_path / "robustness.json"
    path.write_text(text)
    with pytest.raises(InputError) as raised:
        read_scores(path, {"seed": 0})
    assert str(raised.value).startswith(f"{path}: ") and "\n" not in str(raised.value)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> tuple[Path, Path]:
    """A config and a checkpoint of a small model on the tiny root."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "datasets"))
    from tables import VERSION, build_root

    from bevstack.datasets.nuscenes.index_writer import write_index
    from tests.reliability.contract import write_config

    folder = tmp_path_factory.mktemp("robustness")
    root = build_root(folder / "root")
    write_index(root, VERSION, maps=False, progress=lambda text: None)

    def score_everything(cfg: Config) -> None:
        cfg.test_evaluator = {"type": "ToyScore"}
        cfg.custom_imports = {"imports": ["tests.experiments.toy_score"]}

    config = write_config(folder / "config.py", root, VERSION, score_everything)
    cfg = small_config()
    cfg.model.heads.pop("map")
    return config, saved(folder / "a.pth", cfg)


def test_the_tool_from_end_to_end(prepared, tmp_path, capsys, monkeypatch) -> None:
    """Two suites in part, stopped in the middle and gone on with: the same numbers as at once, and a page of them."""
    config, checkpoint = prepared
    common = [str(config), str(checkpoint), "--suite", "time", "--metric", "brightness"]
    assert main([*common, "--work-dir", str(tmp_path / "once")]) == 0
    once = json.loads((tmp_path / "once" / "robustness.json").read_text())
    assert len(once["scores"]) == 9
    # Expected: half of the frames black take away brightness, the ego's poses none.
    scores = {key: value["brightness"] for key, value in once["scores"].items()}
    assert scores["time/frames dropped/50 %"] < 0.9 * scores["clean"]
    assert scores["time/ego poses jump/5 m at every tenth sample"] == scores["clean"]
    page = (tmp_path / "once" / "robustness.md").read_text()
    assert "| frames dropped | 50 % |" in page and (tmp_path / "once" / "robustness.png").stat().st_size > 5000

    calls, real = [], FaultTests.metrics

    def dies_at_the_fourth(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(FaultTests, "metrics", dies_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        main([*common, "--work-dir", str(tmp_path / "twice")])
    assert main([*common, "--work-dir", str(tmp_path / "twice")]) == 0
    twice = json.loads((tmp_path / "twice" / "robustness.json").read_text())
    assert twice == once and len(calls) == 10
    assert np.isfinite(list(scores.values())).all()
    with pytest.raises(InputError, match="was made with another seed"):
        main([*common, "--work-dir", str(tmp_path / "once"), "--seed", "3"])


def frame_of(images: torch.Tensor) -> Frame:
    """A frame (B, N, 3, H, W) of which only the images count."""
    batch, cameras = images.shape[:2]
    rig = CameraRig(torch.eye(3).expand(batch, cameras, 3, 3), torch.eye(4).expand(batch, cameras, 4, 4),
                    torch.ones(batch, cameras, 2), tuple(images.shape[-2:]))  # fmt: skip
    motion = EgoMotion(torch.eye(4).expand(batch, 4, 4), torch.zeros(batch, dtype=torch.bool), torch.zeros(batch))
    return Frame(images, rig, motion)


@torch.no_grad()
def test_features_are_kept_by_the_pixels() -> None:
    """Expected: the model's own up to rounding; an image that was there is not computed again and has the same bits,
    in whatever place; without room nothing is kept, and the answers are the same."""
    model = trained(small_config()).eval()
    images = torch.randn(2, 3, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    images[1, 2] = images[0, 0]
    kept, none = KeptImageFeatures(model), KeptImageFeatures(model, max_bytes=0)
    (found,), (own,), (again,) = kept(frame_of(images)), model.image_features(frame_of(images)), none(frame_of(images))
    torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-5)
    assert kept.computed == 5 and none.computed == 6 and torch.equal(again, found)
    (swapped,) = kept(frame_of(images.flip(1)))
    assert kept.computed == 5 and torch.equal(swapped, found.flip(1))
    kept(frame_of(images[:1] + 1))
    assert kept.computed == 8


def test_files_are_decoded_once(tmp_path) -> None:
    """Expected: the same array again, which nobody can write to; the file is gone by then. A full store reads anew."""
    path = str(tmp_path / "a.png")
    cv2.imwrite(path, np.full((4, 6, 3), 7, np.uint8))
    frame = {"image_paths": [path], "image_size_px": np.array([[4, 6]])}
    decoded: dict = {}
    first = KeptImages(False, decoded).transform({"frames": [dict(frame)]})["frames"][0]["images"][0]
    small = KeptImages(False, {}, max_bytes=0)
    small.transform({"frames": [dict(frame)]})
    Path(path).unlink()
    assert KeptImages(False, decoded).transform({"frames": [dict(frame)]})["frames"][0]["images"][0] is first
    assert first.tolist() == [[[7] * 3] * 6] * 4 and not first.flags.writeable
    with pytest.raises(InputError, match="No such file"):
        small.transform({"frames": [dict(frame)]})


def test_first_scenes_alone() -> None:
    """Expected: dataset and metric name the same first scenes of their split; once, however often it is asked."""
    cfg = small_config()
    cfg.test_evaluator = [{"type": "NuScenesDetectionMetric", "split": "val"}, {"type": "BEVSegmentationMetric"}]
    for _ in range(2):
        of_first_scenes(cfg, 3)
    assert cfg.test_dataloader.dataset.split == cfg.test_evaluator[0].split == "val[:3]"
    assert of_first_scenes(small_config(), 0).test_dataloader.dataset.split == "val"


@pytest.mark.slow
def test_two_processes_score_as_one(prepared, tmp_path) -> None:
    """Expected: the same numbers, of every case."""
    settings = FaultTestSettings(str(prepared[0]), (), str(prepared[1]), tmp_path, threads=1)
    cases = [CLEAN, *cases_of("time", FaultSettings(CAMERAS))[:3]]
    one = {case.key: metrics for case, metrics in scored_cases(settings, cases)}
    two = {case.key: metrics for case, metrics in scored_cases(settings, cases, workers=2)}
    assert one == two and len(two) == 4

"""The report of a test: ``report.html``, the worst samples as a page, and the tables that two runs are compared by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.structures import InstanceData

from bevstack.datasets.base import BEVDataset
from bevstack.engine.visualize import build_visualizer, camera_views
from bevstack.evaluation import breakdown
from bevstack.evaluation.breakdown import Group
from bevstack.evaluation.detection_matches import detection_matches
from bevstack.evaluation.detection_table import ERROR_COLUMN, DetectionTable, table_path
from bevstack.evaluation.report_metric import MAX_RINGS, RING_M, ReportMetric, RunFindings
from bevstack.evaluation.run_comparison import save_calibration, save_cells
from bevstack.files import atomic_write
from bevstack.structures import BEVDataSample
from bevstack.structures.boxes import lidar_boxes
from bevstack.visualization.files import write_png
from bevstack.visualization.report_page import ReportPage
from bevstack.visualization.scene_page import ScenePage

SCORE_THR = 0.3
DISTANCE_EDGES_M = (0.0, 10.0, 20.0, 30.0, 40.0, 50.0)
SPEED_EDGES_MPS = (0.0, 0.5, 2.0, 5.0, 10.0, float("inf"))
WORST = 8
REPORT_NAME, WORST_NAME = "report.html", "worst.html"
_COLUMNS = ("objects", "AP", "recall", "precision", "off (m)")


def write_report(
    folder: Path, title: str, cfg: Any, dataset: BEVDataset, metric: ReportMetric, metrics: Mapping[str, float]
) -> Path:
    """Write what a test has gathered.

    Args:
        folder: for ``report.html``, ``worst.html``, the worst samples as PNG, ``detections.npz``, ``cells.json`` and
            ``calibration.json``.
        title: of the report.
        cfg: the config, for its ``sample_visualizer``.
        dataset: that was tested on.
        metric: that has seen the test.
        metrics: of the test.

    Returns:
        Where the report is.
    """
    findings = metric.findings
    said = "Matching as nuScenes has it; recall, precision, distances and confusions at 2 m, boxes of at least "
    page = ReportPage(title, f"{said}{SCORE_THR:g}.")
    summary = {key: value for key, value in metrics.items() if "/" not in key}
    page.table("Metrics of the test", list(summary), [[float(value) for value in summary.values()]])
    if findings.table is not None:
        findings.table.save(table_path(folder))
        _boxes(page, findings.table, scene_descriptions(dataset))
    save_cells(folder, findings.cells)
    save_calibration(folder, findings.calibration)
    _rasters(page, findings)
    _calibration(page, findings)
    if findings.table is not None:
        _worst(page, folder, cfg, dataset, metric, findings.table)
    with atomic_write(folder / REPORT_NAME, "--report") as temporary:
        temporary.write_text(page.html(), encoding="utf-8")
    return folder / REPORT_NAME


def scene_descriptions(dataset: BEVDataset) -> dict[str, str]:
    """What the dataset says of each scene of its samples, by the scene's name."""
    first = {name: number for number, name in reversed(list(enumerate(dataset.scene_names)))}
    return {name: dataset.clip(number).scene.description for name, number in first.items()}


def _boxes(page: ReportPage, table: DetectionTable, descriptions: Mapping[str, str]) -> None:
    page.section("Boxes", "AP is the mean over 0.5, 1, 2 and 4 m, and over the classes that a line has objects of.")
    page.table("By class", ("class", *_COLUMNS), _lines(breakdown.by_class(table, SCORE_THR)))
    _precision_curves(page, table)
    page.begin_row()
    page.table(
        "By distance",
        ("", *_COLUMNS),
        _lines(breakdown.by_range(table, "distance_m", DISTANCE_EDGES_M, "m", SCORE_THR)),
    )
    page.table(
        "By speed", ("", *_COLUMNS), _lines(breakdown.by_range(table, "speed", SPEED_EDGES_MPS, "m/s", SCORE_THR))
    )
    page.end_row()
    page.begin_row()
    if lines := breakdown.by_visibility(table, SCORE_THR):
        page.table("By visibility", ("", *_COLUMNS), _lines(lines))
    for place, title in enumerate(("By time of day", "By weather")):
        kinds = {name: breakdown.conditions_of(text)[place] for name, text in descriptions.items()}
        page.table(title, ("", *_COLUMNS), _lines(breakdown.by_scene(table, kinds, SCORE_THR)))
    page.end_row()
    names = [name.replace("_", " ") for name in table.classes]
    counts = breakdown.confusions(table, SCORE_THR)
    page.matrix("What objects were taken for", [*names, "nothing there"], [*names, "missed"], counts)


def _lines(groups: list[Group]) -> list[list[object]]:
    return [[g.name.replace("_", " "), g.objects, g.ap, g.recall, g.precision, g.off_m] for g in groups]


def _precision_curves(page: ReportPage, table: DetectionTable) -> None:
    """One plot: a curve a class that has objects, at 2 m."""
    recalls, at_2m = np.linspace(0, 1, 101), {}
    for label, name in enumerate(table.classes):
        own, objects = table.label == label, int((table.true_label == label).sum())
        if objects:
            hits = table.hit[own, ERROR_COLUMN]
            at_2m[name] = recalls, breakdown.precision_curve(table.score[own], hits, objects)
    page.curves("Precision over recall at 2 m", at_2m, ("recall", "precision"))


def _rasters(page: ReportPage, findings: RunFindings) -> None:
    layers = sorted({key[:2] for key in findings.cells})
    if not layers:
        return
    page.section("Masks", "IoU at 0.5 by distance from the car; the last column is everything.")
    rows = []
    for layer in layers:
        counts = np.sum([value for key, value in findings.cells.items() if key[:2] == layer], axis=0)
        whole = np.concatenate([counts, counts.sum(0, keepdims=True)])
        union = whole[:, 1] + whole[:, 2] - whole[:, 0]
        iou = np.where(whole[:, 2] > 0, whole[:, 0] / np.maximum(union, 1), np.nan)
        rows.append([" ".join(layer).replace("_", " "), *iou.tolist()])
    rings = [f"{RING_M * ring:g} to {RING_M * (ring + 1):g} m" for ring in range(MAX_RINGS - 1)]
    page.table("IoU", ("layer", *rings, f"from {RING_M * (MAX_RINGS - 1):g} m", "all"), rows)


def _calibration(page: ReportPage, findings: RunFindings) -> None:
    if not findings.calibration:
        return
    said = "Bars: how often what a head says with a confidence is right; dots: its mean confidence. Calibrated heads "
    said += "lie on the diagonal. Of boxes every prediction counts, right if it found an object at 2 m."
    page.section("Calibration", said)
    page.begin_row()
    for name, counts in findings.calibration.items():
        page.reliability(name, counts, breakdown.expected_calibration_error(counts))
    page.end_row()


def _worst(
    page: ReportPage, folder: Path, cfg: Any, dataset: BEVDataset, metric: ReportMetric, table: DetectionTable
) -> None:
    """Pictures of the worst samples, each a link into a page of them all."""
    errors = breakdown.sample_errors(table, SCORE_THR)
    chosen = np.argsort(-errors, kind="stable")[:WORST].tolist()
    said = "Most false alarms (by score) and misses (by nearness). A click opens the sample in a page to look through."
    page.section("The worst samples", said)
    numbers = {dataset.clip(number).frames[-1].token: number for number in range(len(dataset))}
    visualizer, scenes = build_visualizer(cfg, SCORE_THR, "wide"), ScenePage(f"{page.title}: the worst samples")
    for place, row in enumerate(chosen):
        token = str(table.tokens[row])
        sample = with_boxes(dataset[numbers[token]]["data_samples"], metric.shown[token])
        views = camera_views(dataset, sample)
        write_png(folder / f"worst_{place}.png", visualizer.draw(sample, views))
        scenes.add(sample, views, detection_matches(sample, table.classes))
        words = f"{table.scenes[row]}, {token}: {errors[row]:.1f}"
        page.picture(f"worst_{place}.png", words, f"{WORST_NAME}#{token}")
    scenes.write(folder / WORST_NAME)


def with_boxes(sample: BEVDataSample, shown: Mapping[str, np.ndarray]) -> BEVDataSample:
    """The sample with predicted boxes: ``boxes`` (R, 9), ``scores`` (R,), ``labels`` (R,)."""
    sample.pred_instances_3d = InstanceData(
        bboxes_3d=lidar_boxes(torch.from_numpy(shown["boxes"]).float()),
        scores_3d=torch.from_numpy(shown["scores"]).float(),
        labels_3d=torch.from_numpy(shown["labels"]).long(),
    )
    return sample

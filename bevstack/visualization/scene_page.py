"""A clip as one HTML page that needs nothing else: its data here, what it does with them in ``pages/scene.js``.

The page holds its images, its styles and its code; opened from a disk without a network it shows everything. The page
itself draws the boxes, in the cameras and from above, so that scores, heads and time can be changed by the reader.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bevstack.files import atomic_write
from bevstack.structures import BEVDataSample, BEVRaster
from bevstack.structures.matches import DetectionMatches
from bevstack.visualization.bev import BEVWindow, quarter_turns_of
from bevstack.visualization.cameras import CameraView
from bevstack.visualization.files import encoded_image
from bevstack.visualization.painters import (
    CameraPainter,
    PanelPainter,
    PredictionPainter,
    TruthPainter,
    identities_of,
    registered_painters,
)
from bevstack.visualization.palette import LAYER_ALPHA, color_of
from bevstack.visualization.sample_visualizer import forward_bearing

PAGES = Path(__file__).parent / "pages"
STRONGEST = 12
"""Samples of attention that the page holds of a cell."""
MAX_MOMENTS = 120
"""More make a page that browsers open slowly."""


class ScenePage:
    """Collects samples and writes the page.

    Args:
        title: of the page.
        lowest_score: predicted boxes below it are not in the page; where the slider begins.
        score_thr: where the slider stands at first.
        camera_width_px: width of the camera images in the page.
        window_px: side of the masks from above and of the other painters' panels.
        x_range_m, y_range_m: extent from above in the BEV frame.
    """

    def __init__(
        self,
        title: str,
        lowest_score: float = 0.05,
        score_thr: float = 0.3,
        camera_width_px: int = 640,
        window_px: int = 400,
        x_range_m: tuple[float, float] = (-51.2, 51.2),
        y_range_m: tuple[float, float] = (-51.2, 51.2),
    ) -> None:
        self.title, self.score_thr, self.lowest_score = title, score_thr, min(lowest_score, score_thr)
        self.camera_width_px, self.window_px = camera_width_px, window_px
        self.extent = (x_range_m[0], x_range_m[1]), (y_range_m[0], y_range_m[1])
        own = PredictionPainter, TruthPainter
        painters = registered_painters(score_thr)
        self.camera_painters = [p for p in painters if isinstance(p, CameraPainter)]
        self.painters = [p for p in painters if isinstance(p, PanelPainter) and not isinstance(p, own)]
        self.moments: list[dict[str, Any]] = []
        self.classes: list[str] = []
        self.quarter_turns = 0

    def add(self, sample: BEVDataSample, views: Sequence[CameraView], matches: DetectionMatches | None = None) -> None:
        """Take in the next sample.

        Args:
            sample: labels and predictions.
            views: its cameras, of the BEV frame that its boxes are in.
            matches: which predicted box found which true one; without it the page shows no errors.
        """
        self.quarter_turns = quarter_turns_of(forward_bearing(views))
        window = BEVWindow(*self.extent, self.window_px, self.quarter_turns)
        for camera_painter in self.camera_painters:
            if camera_painter.draws(sample):
                views = camera_painter.paint(sample, views, 0.5625 * self.camera_width_px)
        panels = [(painter.title, painter.paint(sample, window)) for painter in self.painters if painter.draws(sample)]
        self.classes = list(sample.metainfo.get("classes", self.classes))
        self.moments.append(
            {
                "scene": str(sample.metainfo.get("scene_name", "")),
                "token": str(sample.metainfo.get("token", "")),
                "seconds": float(sample.metainfo.get("timestamp_s", 0.0)),
                "cameras": [_camera(view, self.camera_width_px) for view in views],
                "predicted": self._boxes(sample, "pred_instances_3d", matches),
                "truth": self._boxes(sample, "gt_instances_3d", matches),
                "matched": matches is not None,
                "rasters": _rasters(sample, window),
                "attention": _attention(sample, views, self.camera_width_px),
                "panels": [{"title": name, "image": _image(made, "webp")} for name, made in panels if made is not None],
            }
        )

    def write(self, path: str | os.PathLike) -> int:
        """Write the page, and return its size in bytes.

        Raises:
            InputError: the file cannot be written.
        """
        (x_min, x_max), (y_min, y_max) = self.extent
        content = {
            "title": self.title,
            "classes": {name: _css(color_of(name)) for name in self.classes},
            "lowest_score": self.lowest_score,
            "score_thr": self.score_thr,
            "window": {"x_range_m": [x_min, x_max], "y_range_m": [y_min, y_max], "quarter_turns": self.quarter_turns},
            "moments": self.moments,
        }
        text = html_page("scene", self.title, content).encode()
        with atomic_write(path, "--html") as temporary:
            temporary.write_bytes(text)
        return len(text)

    def _boxes(self, sample: BEVDataSample, field: str, matches: DetectionMatches | None) -> list[dict[str, Any]]:
        """Boxes with all that is said of them; ``row`` is their place in the sample, which ``found`` refers to."""
        if field not in sample:
            return []
        instances, classes = sample.get(field), sample.metainfo["classes"]
        values = instances["bboxes_3d"].tensor.detach().cpu().double().numpy()
        labels = instances["labels_3d"].tolist()
        scores = instances["scores_3d"].tolist() if "scores_3d" in instances else None
        attributes = instances["attribute_names"] if "attribute_names" in instances else None
        identities = identities_of(instances)
        boxes = []
        for row, label in enumerate(labels):
            if label < 0 or (scores is not None and scores[row] < self.lowest_score):
                continue
            box: dict[str, Any] = {"row": row, "name": classes[label], "box": _plain(values[row])}
            if scores is not None:
                box["score"] = round(scores[row], 4)
            if attributes is not None and attributes[row]:
                box["attribute"] = str(attributes[row])
            if identities is not None:
                box["identity"] = identities[row]
            if matches is not None and scores is not None:
                box["counted"] = bool(matches.counted[row])
                if matches.true_row[row] >= 0:
                    box["found"] = int(matches.true_row[row])
                    box["distance_m"] = round(float(matches.distance_m[row]), 3)
            elif matches is not None:
                box["counted"] = bool(matches.counted_truth[row])
            boxes.append(box)
        return boxes


def html_page(name: str, title: str, content: Mapping[str, Any]) -> str:
    """A page of ``pages/``: ``NAME.html`` with ``NAME.css``, ``NAME.js`` and the content as JSON put into it.

    Args:
        name: of the three files. title: of the page. content: plain values; what is not finite becomes null.
    """
    parts = {kind: (PAGES / f"{name}.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")}
    # "<" in a string of the data could end the script element.
    data = json.dumps(_finite(content), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    page = parts["html"].replace("{{title}}", title.replace("&", "&amp;").replace("<", "&lt;"))
    for place, text in (("{{css}}", parts["css"]), ("{{js}}", parts["js"]), ("{{data}}", data)):
        page = page.replace(place, text)
    return page


def data_uri(content: bytes, kind: str) -> str:
    """An image file's bytes as an address that holds them; ``kind``: png or jpeg."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _camera(view: CameraView, width_px: int) -> dict[str, Any]:
    small = view.narrowed(width_px)
    return {
        "name": view.name,
        "image": _image(small.image, "jpeg"),
        "size_px": [small.image.shape[1], small.image.shape[0]],
        "pixels_from_camera": np.asarray(small.pixels_from_camera, float)[:3, :3].round(4).tolist(),
        "camera_from_bev": np.asarray(small.camera_from_bev, float).round(6).tolist(),
    }


def _attention(sample: BEVDataSample, views: Sequence[CameraView], width_px: int) -> list[dict[str, Any]]:
    """Of each cell of ``attention_lattice`` its place, its strongest samples [camera, u, v, weight] in the page's
    images, weights in thousandths, and where it looks back [x, y, weight]."""
    if "attention_lattice" not in sample:
        return []
    places = sample.attention_lattice
    cells = [place.cpu().double().numpy() for place in (places.cells, places.rays, places.image_weights)]
    cameras = places.cameras.cpu().numpy()
    past = None if places.past is None else [part[:, 0].cpu().numpy() for part in (places.past, places.past_weights)]
    matrices = [np.asarray(view.narrowed(width_px).pixels_from_camera)[:3, :3] for view in views]
    found = []
    for cell, (center, rays, weights) in enumerate(zip(*cells, strict=True)):
        samples = []
        for flat in np.argsort(-weights, axis=None)[:STRONGEST]:
            slot, point = np.unravel_index(flat, weights.shape)
            camera = int(cameras[cell, slot])
            if camera >= 0:
                u, v, _ = matrices[camera] @ [*rays[slot, point], 1.0]
                samples.append([camera, round(u), round(v), round(1000 * weights[slot, point])])
        entry: dict[str, Any] = {"at": center.round(2).tolist(), "seen": samples}
        if past is not None:
            rows = np.argsort(-past[1][cell])[:STRONGEST]
            entry["past"] = [[*past[0][cell, row].round(2).tolist(), round(1000 * past[1][cell, row])] for row in rows]
        found.append(entry)
    return found


def _rasters(sample: BEVDataSample, window: BEVWindow) -> list[dict[str, str]]:
    """Predicted and true masks as transparent pictures of the window."""
    made = []
    for kind, field in (("predicted", "pred_rasters"), ("true", "gt_rasters")):
        for name, raster in (sample.get(field, {}) if field in sample else {}).items():
            made.append({"kind": kind, "name": str(name), "image": _image(_layers(raster, window), "png")})
    return made


def _layers(raster: BEVRaster, window: BEVWindow) -> np.ndarray:
    """(height, width, 4) uint8 RGBA: the layers over each other, large areas first, their edges hard."""
    picture = np.zeros((*window.shape, 4), np.float32)
    order = {name: place for place, name in enumerate(LAYER_ALPHA)}
    layers = sorted(enumerate(raster.classes), key=lambda layer: order.get(layer[1], len(order)))
    for index, name in layers:
        alpha = (window.layer(raster, index) > 0.5)[..., None] * np.float32(LAYER_ALPHA.get(name, 0.9))
        below = picture[..., 3:] * (1 - alpha)
        covered = alpha + below
        color = np.array(color_of(name), np.float32)
        picture[..., :3] = (color * alpha + picture[..., :3] * below) / np.maximum(covered, 1e-6)
        picture[..., 3:] = covered
    return np.concatenate([picture[..., :3], picture[..., 3:] * 255], axis=-1).round().astype(np.uint8)


def _image(image: np.ndarray, kind: str) -> str:
    """An (H, W, 3) or (H, W, 4) uint8 picture as an address that holds it."""
    return data_uri(encoded_image(image, kind), kind)


def _plain(values: np.ndarray) -> list[float | None]:
    return [round(float(value), 3) if np.isfinite(value) else None for value in values]


def _css(color: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


def _finite(value: Any) -> Any:
    """Plain values with None for every number that JSON does not know."""
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value

"""A clip as a recording for the Rerun viewer (rerun.io): a car that drives, what its cameras see, what a model says.

Written without a window or a network. Rerun is an extra (``pip install 'bevstack[rerun]'``) and is imported where a
recording is begun.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from bevstack.errors import InputError
from bevstack.files import atomic_write
from bevstack.structures import BEVDataSample
from bevstack.structures.matches import DetectionMatches
from bevstack.structures.poses import global_from_augmented
from bevstack.visualization.bev import BEVWindow, draw_bev, quarter_turns_of
from bevstack.visualization.boxes import DrawnBoxes
from bevstack.visualization.cameras import CameraView, camera_rows
from bevstack.visualization.files import encoded_image
from bevstack.visualization.painters import (
    CameraPainter,
    PanelPainter,
    identities_of,
    rasters_of,
    registered_painters,
)
from bevstack.visualization.palette import TRUTH, color_of
from bevstack.visualization.sample_visualizer import forward_bearing
from bevstack.visualization.tracks import color_of_identity

CAR = "world/car"


def require_rerun() -> None:
    """Ask before long work whether a recording can be written.

    Raises:
        InputError: Rerun is not installed.
    """
    if find_spec("rerun") is None:
        raise InputError("visualize", "--rerun", "needs Rerun: pip install 'bevstack[rerun]'")


class SceneRecording:
    """Collects samples and writes the recording.

    Entities: ``world`` is the BEV frame of a scene's first sample, ``world/car`` the BEV frame of the moment, which
    moves in it; in that stand ``cameras/<name>`` (pinhole and image), ``boxes/predicted`` and ``boxes/true`` with their
    ``velocities``, and the masks as ``ground``. ``world/tracks`` are the trails of identities. ``bev/<title>`` is the
    panel of each painter from above. The timelines are ``moment``, which counts, and ``time``.

    Args:
        title: what the recording is called.
        score_thr: predicted boxes with a lower score are left out.
        camera_width_px: images are made smaller than this.
        window_px: side of the panels from above.
        x_range_m, y_range_m: their extent in the BEV frame.
    """

    def __init__(
        self,
        title: str,
        score_thr: float = 0.3,
        camera_width_px: int = 800,
        window_px: int = 480,
        x_range_m: tuple[float, float] = (-51.2, 51.2),
        y_range_m: tuple[float, float] = (-51.2, 51.2),
    ) -> None:
        import rerun

        self.rerun, self.score_thr = rerun, score_thr
        self.camera_width_px, self.window_px = camera_width_px, window_px
        self.extent = (x_range_m[0], x_range_m[1]), (y_range_m[0], y_range_m[1])
        painters = registered_painters(score_thr)
        self.camera_painters = [painter for painter in painters if isinstance(painter, CameraPainter)]
        self.panel_painters = [painter for painter in painters if isinstance(painter, PanelPainter)]
        self.stream = rerun.RecordingStream("bevstack", recording_id=title)
        self._content = self.stream.memory_recording()
        self._log("world", rerun.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
        self.count, self.scene, self.world_from_global = 0, "", np.eye(4)
        self.ground_m = 0.0
        self.camera_names: list[list[str]] = []
        self.panel_titles: list[str] = []

    def add(self, sample: BEVDataSample, views: Sequence[CameraView], matches: DetectionMatches | None = None) -> None:
        """Take in the next sample.

        Args:
            sample: labels and predictions.
            views: its cameras, of the BEV frame that its boxes are in.
            matches: how far each predicted box is from the true one that it found.
        """
        info = sample.metainfo
        self.stream.set_time("moment", sequence=self.count)
        self.stream.set_time("time", timestamp=float(info.get("timestamp_s", self.count)))
        global_from_car = np.eye(4)
        if info.get("global_from_bev") is not None:
            global_from_car = global_from_augmented(sample).numpy()
        scene = str(info.get("scene_name", ""))
        if scene != self.scene or not self.count:
            self.scene, self.world_from_global = scene, np.linalg.inv(global_from_car)
            if self.count:
                self._log("world", self.rerun.Clear(recursive=True))
                self._log("bev", self.rerun.Clear(recursive=True))
        self.count += 1
        self._log("scene", self.rerun.TextLog(f"{scene} {info.get('token', '')}".strip()))
        self._log(CAR, self._transform(self.world_from_global @ global_from_car))
        self._add_boxes(sample, "pred_instances_3d", "predicted", matches)
        self._add_boxes(sample, "gt_instances_3d", "true", None)
        if "track_trails" in sample:
            self._add_trails(sample)
        forward = forward_bearing(views)
        window = BEVWindow(*self.extent, self.window_px, quarter_turns_of(forward))
        self._add_ground(sample, window)
        for panel_painter in self.panel_painters:
            panel = panel_painter.paint(sample, window) if panel_painter.draws(sample) else None
            if panel is not None:
                self._add_image(["bev", panel_painter.title], panel, "png")
                if panel_painter.title not in self.panel_titles:
                    self.panel_titles.append(panel_painter.title)
        for camera_painter in self.camera_painters:
            if camera_painter.draws(sample):
                views = camera_painter.paint(sample, views, 0.5625 * self.camera_width_px)
        self.camera_names = [[view.name for view in row] for row in camera_rows(views, forward)]
        for view in views:
            self._add_camera(view.narrowed(self.camera_width_px))

    def write(self, path: str | os.PathLike) -> int:
        """Write the recording, with a layout of its views, and return its size in bytes.

        Raises:
            InputError: the file cannot be written.
        """
        self.stream.send_blueprint(self._layout())
        content = self._content.drain_as_bytes()
        with atomic_write(path, "--rerun") as temporary:
            temporary.write_bytes(content)
        return len(content)

    def _log(self, place: str | list[Any], *parts: Any, static: bool = False) -> None:
        self.stream.log(place, *parts, static=static, strict=True)

    def _transform(self, matrix: np.ndarray) -> Any:
        """What brings an entity's points to the one above it."""
        return self.rerun.Transform3D(translation=matrix[:3, 3], mat3x3=matrix[:3, :3])

    def _add_image(self, place: list[str], image: np.ndarray, kind: str) -> None:
        self._log(place, self.rerun.EncodedImage(contents=encoded_image(image, kind), media_type=f"image/{kind}"))

    def _add_camera(self, view: CameraView) -> None:
        place = [*CAR.split("/"), "cameras", view.name]
        height, width = view.image.shape[:2]
        intrinsics = np.asarray(view.pixels_from_camera, float)[:3, :3]
        axes = self.rerun.ViewCoordinates.RDF
        pinhole = self.rerun.Pinhole(
            image_from_camera=intrinsics, resolution=[width, height], camera_xyz=axes, image_plane_distance=2.0
        )
        self._log(place, self._transform(np.linalg.inv(np.asarray(view.camera_from_bev, float))), pinhole)
        self._add_image(place, view.image, "jpeg")

    def _add_boxes(self, sample: BEVDataSample, field: str, kind: str, matches: DetectionMatches | None) -> None:
        """Boxes with names; of each also its score, speed, attribute, identity and distance to its truth."""
        import pyarrow

        if field not in sample:
            return
        instances, classes = sample.get(field), sample.metainfo["classes"]
        values = instances["bboxes_3d"].tensor.detach().cpu().double().numpy()
        labels = np.asarray(instances["labels_3d"].cpu()).astype(int)
        shown = labels >= 0
        scores = instances["scores_3d"].detach().cpu().numpy() if "scores_3d" in instances else None
        if scores is not None:
            shown &= scores >= self.score_thr
        rows = np.flatnonzero(shown)
        values, names = values[rows], [classes[label] for label in labels[rows]]
        velocity = values[:, 7:9] if values.shape[1] >= 9 else np.full((len(rows), 2), np.nan)
        identities = identities_of(instances)
        attributes = instances["attribute_names"] if "attribute_names" in instances else None
        told: dict[str, Any] = {"speed_mps": np.hypot(*velocity.T).astype(np.float32)}
        texts = list(names)
        if scores is not None:
            told["score"] = scores[rows].astype(np.float32)
            texts = [f"{name} {score:.2f}" for name, score in zip(names, told["score"], strict=True)]
        for name, words in (("attribute", attributes), ("identity", identities)):
            if words is not None:
                told[name] = pyarrow.array([str(words[row]) or None for row in rows], pyarrow.string())
        if matches is not None:
            told["distance_to_truth_m"] = matches.distance_m[rows].astype(np.float32)
        outlined = scores is None and "pred_instances_3d" in sample
        colors = np.array([TRUTH if outlined else color_of(name) for name in names], np.uint8).reshape(-1, 3)
        centers = values[:, :3] + [0, 0, 0.5] * values[:, 3:6]
        half_yaw = values[:, 6:7] / 2
        place = [*CAR.split("/"), "boxes", kind]
        boxes = self.rerun.Boxes3D(
            centers=centers,
            half_sizes=values[:, 3:6] / 2,
            quaternions=np.hstack([0 * half_yaw, 0 * half_yaw, np.sin(half_yaw), np.cos(half_yaw)]),
            colors=colors,
            labels=texts,
            show_labels=False,
        )
        self._log(place, boxes, self.rerun.AnyValues(**told))
        moving = np.flatnonzero(told["speed_mps"] > 0.5)
        vectors = np.pad(velocity[moving], ((0, 0), (0, 1)))
        self._log(
            [*place, "velocities"],
            self.rerun.Arrows3D(origins=centers[moving], vectors=vectors, colors=colors[moving]),
        )
        if len(rows):
            self.ground_m = float(np.median(values[:, 2]))

    def _add_trails(self, sample: BEVDataSample) -> None:
        trails = {identity: np.asarray(trail) for identity, trail in sample.track_trails.items() if len(trail) > 1}
        turn, shift = self.world_from_global[:3, :3], self.world_from_global[:3, 3]
        strips = [trail @ turn.T + shift for trail in trails.values()]
        colors = np.array([color_of_identity(int(identity)) for identity in trails], np.uint8).reshape(-1, 3)
        labels = [str(identity) for identity in trails]
        self._log("world/tracks", self.rerun.LineStrips3D(strips, colors=colors, labels=labels, show_labels=False))

    def _add_ground(self, sample: BEVDataSample, window: BEVWindow) -> None:
        """The masks as a picture on the ground, which lies where boxes stand: at the median of their lower faces."""
        rasters = rasters_of(sample, "pred_rasters") or rasters_of(sample, "gt_rasters")
        if not rasters:
            return
        picture = draw_bev(window, None, DrawnBoxes(np.zeros((0, 9)), ()), rasters)
        (left, right), (near, far) = self.extent
        corners = np.array([[left, near], [right, near], [right, far], [left, far]])
        mesh = self.rerun.Mesh3D(
            vertex_positions=np.pad(corners, ((0, 0), (0, 1)), constant_values=self.ground_m),
            triangle_indices=[[0, 1, 2], [0, 2, 3]],
            vertex_normals=np.tile([0.0, 0.0, 1.0], (4, 1)),
            vertex_texcoords=window.pixels(corners) / np.array(window.shape[::-1]),
            albedo_texture=picture,
        )
        self._log([*CAR.split("/"), "ground"], mesh)

    def _layout(self) -> Any:
        """The drive in the middle, cameras below it as they look, panels from above at the right."""
        from rerun import blueprint

        boxes = [f"/{CAR}/boxes/**"]
        rows = [
            blueprint.Horizontal(
                *(
                    blueprint.Spatial2DView(origin=f"/{CAR}/cameras/{name}", contents=["$origin/**", *boxes], name=name)
                    for name in row
                )
            )
            for row in self.camera_names
        ]
        drive = blueprint.Spatial3DView(origin=f"/{CAR}", contents="/world/**", name="drive")
        panels = [
            blueprint.Spatial2DView(origin=self.rerun.new_entity_path(["bev", title]), name=title)
            for title in self.panel_titles
        ]
        left = blueprint.Vertical(drive, *rows, row_shares=[2] + [1] * len(rows))
        if not panels:
            return blueprint.Blueprint(left, collapse_panels=True)
        right = blueprint.Grid(*panels, grid_columns=1 + (len(panels) > 3))
        return blueprint.Blueprint(blueprint.Horizontal(left, right, column_shares=[2, 1]), collapse_panels=True)

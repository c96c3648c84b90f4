"""What never changes for one camera of a rig: its ground homography, sky coordinates, haze and head lamps, by pixel."""

from __future__ import annotations

import numpy as np

from bevstack.synthetic.cameras import Camera
from bevstack.synthetic.ground import RESOLUTION_M
from bevstack.synthetic.weather import PANORAMA_LOW_DEG, PANORAMA_PX, Weather

NEAR_M = 0.25


class View:
    """What never changes for one camera of a rig: rays, ground homography, sky coordinates, haze, head lamps."""

    def __init__(self, camera: Camera, weather: Weather) -> None:
        self.camera = camera
        width, height = camera.width_px, camera.height_px
        u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
        inverse = np.linalg.inv(camera.intrinsic)
        self.rays = (np.stack([u, v, np.ones_like(u)], -1) @ inverse.T).astype(np.float32)
        toward = self.rays @ camera.rotation.T.astype(np.float32)
        self.down = toward[..., 2] < -1e-3 * np.linalg.norm(toward, axis=-1)
        self.first_row = int(np.argmax(self.down.any(1))) if self.down.any() else height
        rows = camera.rotation @ inverse
        tx, ty, tz = camera.translation
        self.ego_from_pixel = np.stack([tx * rows[2] - tz * rows[0], ty * rows[2] - tz * rows[1], rows[2]])
        reach = np.where(self.down, -tz / np.minimum(toward[..., 2], -1e-6), 1e4)
        distance = reach * np.linalg.norm(toward, axis=-1)
        part = slice(self.first_row, height)
        self.haze = (1 - np.exp(-np.minimum(distance, 1e4) / weather.haze_m)).astype(np.float32)[part]
        self.clear = 1 - self.haze
        self.veil = np.clip(self.haze[..., None] * weather.haze * 255 * weather.gain, 0, 255).astype(np.uint8)
        depth = reach[part]
        focal = camera.intrinsic[0, 0]
        footprint = np.minimum(depth / focal, 50.0) * (np.maximum(depth, tz) / tz) ** 0.42
        self.levels = np.clip(np.round(np.log(np.median(footprint, 1) / RESOLUTION_M) / np.log(2) * 2), 0, 8).astype(
            int
        )
        x, y = tx + reach * toward[..., 0], ty + reach * toward[..., 1]
        self.beam = head_lamps(x[part], y[part]).astype(np.float32) if weather.night else None
        azimuth = np.degrees(np.arctan2(toward[..., 1], toward[..., 0]))
        elevation = np.degrees(np.arctan2(toward[..., 2], np.hypot(toward[..., 0], toward[..., 1])))
        self.last_sky_row = int(height - np.argmax((~self.down)[::-1].any(1))) if (~self.down).any() else 0
        top = slice(0, min(height, self.last_sky_row + 1))
        self.sky_x = ((azimuth % 360.0) / 360.0 * PANORAMA_PX[0]).astype(np.float32)[top]
        span = 65.0 - PANORAMA_LOW_DEG
        self.sky_y = ((65.0 - elevation) / span * PANORAMA_PX[1]).astype(np.float32)[top]
        self.tan_half = np.array(
            [
                max(camera.intrinsic[0, 2], width - camera.intrinsic[0, 2]) / focal,
                max(camera.intrinsic[1, 2], height - camera.intrinsic[1, 2]) / camera.intrinsic[1, 1],
            ]
        )


def head_lamps(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Light of the ego car's head lamps at points of its ego frame (metres), 0..1."""
    forward = np.maximum(x - 3.6, 0.01)
    spread = np.exp(-(((np.abs(y) - 0.4).clip(0) / (0.9 + 0.24 * forward)) ** 2))
    return spread * np.clip(forward / 4, 0, 1) / (1 + (forward / 17.0) ** 2)

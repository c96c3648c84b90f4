"""Light and air of a scene: sun, sky, haze, lamps at night, rain; the panorama behind everything; the sensor's own
noise."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from bevstack.synthetic.ground import smooth_noise

PANORAMA_PX = (1440, 280)  # 0.25 degrees a pixel, elevation from -5 to +65 degrees
PANORAMA_LOW_DEG = -5.0


@dataclass
class Weather:
    """One scene's condition.

    ``sun`` (3,) unit vector towards the light; ``ambient`` and ``direct`` light levels; ``haze`` (3,) BGR 0..1 and
    ``haze_m`` the distance over which it takes over; ``shadow`` 0..1 darkness of shadows; ``gain`` the camera's
    exposure.
    """

    kind: str
    sun: np.ndarray
    ambient: float
    direct: float
    haze: np.ndarray
    haze_m: float
    shadow: float
    gain: float
    noise: float

    @property
    def night(self) -> bool:
        """Whether lamps are needed."""
        return self.kind == "night"

    @property
    def wet(self) -> bool:
        """Whether it rains."""
        return self.kind == "rain"


def draw_weather(rng: np.random.Generator, kind: str) -> Weather:
    """Draw the light of a ``day``, ``night`` or ``rain`` scene."""
    bearing, height = rng.uniform(0, 2 * np.pi), np.deg2rad(rng.uniform(22, 65))
    sun = np.array([np.cos(bearing) * np.cos(height), np.sin(bearing) * np.cos(height), np.sin(height)])
    if kind == "night":
        haze = np.array([0.10, 0.07, 0.06]) * rng.uniform(0.6, 1.3)
        return Weather(
            kind,
            sun,
            rng.uniform(0.2, 0.32),
            rng.uniform(0.04, 0.08),
            haze,
            rng.uniform(120, 220),
            0.1,
            rng.uniform(1.0, 1.4),
            4.5,
        )
    if kind == "rain":
        haze = np.full(3, rng.uniform(0.5, 0.68)) + np.array([0.02, 0.01, 0.0])
        return Weather(
            kind,
            sun,
            rng.uniform(0.76, 0.92),
            rng.uniform(0.08, 0.16),
            haze,
            rng.uniform(110, 220),
            0.12,
            rng.uniform(0.9, 1.1),
            3.2,
        )
    overcast = rng.random() < 0.35
    haze = np.array([0.86, 0.82, 0.78]) * rng.uniform(0.85, 1.0)
    direct = rng.uniform(0.12, 0.25) if overcast else rng.uniform(0.35, 0.6)
    return Weather(
        kind,
        sun,
        rng.uniform(0.5, 0.62),
        direct,
        haze,
        rng.uniform(220, 600),
        0.2 if overcast else rng.uniform(0.35, 0.55),
        rng.uniform(0.9, 1.1),
        2.2,
    )


def paint_panorama(rng: np.random.Generator, weather: Weather) -> np.ndarray:
    """Sky, clouds and a far skyline: (rows from high to low elevation, columns by bearing, 3) uint8 BGR."""
    width, height = PANORAMA_PX
    elevation = np.linspace(65.0, PANORAMA_LOW_DEG, height)[:, None]
    rise = np.clip(elevation / 50.0, 0, 1) ** 0.6
    top = {
        "day": np.array([0.85, 0.6, 0.36]),
        "rain": np.array([0.58, 0.56, 0.54]),
        "night": np.array([0.07, 0.045, 0.035]),
    }[weather.kind]
    if weather.kind == "day" and weather.direct < 0.3:
        top = np.array([0.74, 0.7, 0.68])
    image = weather.haze * (1 - rise[..., None]) + top * rise[..., None]
    image = np.broadcast_to(image, (height, width, 3)).astype(np.float32).copy()
    cloud = smooth_noise(rng, (height, width), 60) + 0.5 * smooth_noise(rng, (height, width), 18)
    seam = np.linspace(0, 1, 120)[None]
    cloud[:, -120:] = cloud[:, -120:] * (1 - seam) + cloud[:, :1] * seam
    cover = (
        1 / (1 + np.exp(-3 * (cloud - rng.uniform(-0.3, 0.9))))[..., None] * np.clip(elevation / 12, 0, 1)[..., None]
    )
    white = {"day": 0.97, "rain": 0.72, "night": 0.09}[weather.kind]
    image = image * (1 - 0.7 * cover) + white * 0.7 * cover
    for distance in (0.8, 0.6):  # two rows of far buildings
        x = 0
        while x < width:
            wide, tall = int(rng.integers(8, 46)), rng.uniform(0.8, 7.5) * (1.0 if rng.random() < 0.8 else 1.8)
            row = int(np.interp(-tall, -elevation[:, 0], np.arange(height)))
            colour = np.full(3, rng.uniform(0.25, 0.6)) * (weather.ambient + 0.5 * weather.direct)
            image[row:, x : x + wide] = colour * (1 - distance) + weather.haze * distance
            if weather.night:
                spots = rng.random((max(1, (height - row) // 5), max(1, wide // 4))) < 0.2
                for i, j in np.argwhere(spots):
                    image[row + 5 * i + 1 : row + 5 * i + 3, x + 4 * j + 1 : x + 4 * j + 3] = (0.35, 0.55, 0.65)
            x += wide + int(rng.integers(0, 14))
    ridge = (np.abs(smooth_noise(rng, (1, width), 12)[0]) * 5 + 8).astype(int)
    rows = np.arange(height)[:, None]
    low = int(np.interp(0.0, -elevation[:, 0], np.arange(height)))
    trees = rows > (low - ridge)[None]
    colour = np.array([0.25, 0.36, 0.28]) * (weather.ambient + 0.4 * weather.direct) * 0.45 + weather.haze * 0.55
    image[trees] = colour
    return np.clip(image * 255 * weather.gain, 0, 255).astype(np.uint8)


class Lens:
    """What the camera adds: vignette, exposure, noise, rain streaks and drops. One a scene; every frame draws by its
    own number."""

    def __init__(self, rng: np.random.Generator, weather: Weather, width_px: int, height_px: int) -> None:
        self.weather, self.width, self.height = weather, width_px, height_px
        y, x = np.mgrid[0:height_px, 0:width_px]
        radius = ((x / width_px - 0.5) ** 2 + (y / height_px - 0.5) ** 2) / 0.5
        self.vignette = cv2.merge([(1 - rng.uniform(0.05, 0.22) * radius).astype(np.float32)] * 3)
        grain = rng.normal(0, weather.noise, (height_px + 64, width_px + 64, 3))
        grain = 0.7 * grain + 0.3 * grain.mean(-1, keepdims=True) * 2
        self.grain = np.clip(np.round(grain) + 128, 0, 255).astype(np.uint8)
        self.drops: list[np.ndarray] = []
        if weather.wet:
            for _ in range(6):
                mask = np.zeros((height_px, width_px), np.uint8)
                for _ in range(int(rng.integers(3, 16))):
                    centre = (int(rng.integers(width_px)), int(rng.integers(height_px)))
                    across, down = rng.uniform(0.006, 0.025, 2) * width_px
                    cv2.ellipse(mask, centre, (int(across), int(down)), 0, 0, 360, (255,), -1)
                self.drops.append(cv2.GaussianBlur(mask, (0, 0), 0.004 * width_px))

    def expose(self, image: np.ndarray, rng: np.random.Generator, camera: int) -> np.ndarray:
        """The final uint8 image of one exposure."""
        if self.weather.wet:
            streaks = np.zeros((self.height, self.width), np.uint8)
            count = int(rng.integers(40, 110))
            start = rng.random((count, 2)) * (self.width, self.height)
            long = rng.uniform(0.01, 0.05, count) * self.height
            slant = rng.normal(0.08, 0.05)
            ends = start + np.stack([slant * long, long], -1)
            cv2.polylines(streaks, list(np.stack([start, ends], 1).astype(np.int32)), False, (70,), 1, cv2.LINE_AA)
            image = cv2.add(image, cv2.merge([streaks] * 3))
            mask = self.drops[camera]
            if mask.any():
                soft = cv2.GaussianBlur(image, (0, 0), 0.012 * self.width)
                weight = cv2.merge([mask.astype(np.float32) / 255] * 3)
                image = (image + (soft.astype(np.float32) - image) * weight).astype(np.uint8)
        image = cv2.multiply(image, self.vignette, dtype=cv2.CV_8U)
        dy, dx = rng.integers(0, 64, 2)
        grain = self.grain[dy : dy + self.height, dx : dx + self.width]
        return cv2.addWeighted(image, 1.0, grain, 1.0, -128.0)

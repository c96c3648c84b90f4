"""Light on faces: sun and sky, lamps at night, haze by distance, and windows on the walls of buildings."""

from __future__ import annotations

import numpy as np

from bevstack.synthetic.shapes import FACADE
from bevstack.synthetic.things import ThingStack
from bevstack.synthetic.view import View, head_lamps
from bevstack.synthetic.weather import Weather


class Shading:
    """Colours of a scene's faces. ``lamp_light`` (rows y, columns x): street lamps' light over the district or None."""

    def __init__(self, stack: ThingStack, weather: Weather, lamp_light: np.ndarray | None, size: float) -> None:
        self.stack, self.weather, self.lamp_light, self.size = stack, weather, lamp_light, size

    def face_colours(
        self, faces: dict[str, np.ndarray], ego: np.ndarray, poses: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Colour and own light (1 + faces, 4) uint8 BGRX of every drawn face; row 0 is unused."""
        weather, stack = self.weather, self.stack
        picked, owner = faces["face"], faces["owner"]
        normal = faces["normal"] @ faces["camera_from_world"]
        middle = faces["corners"][:, :4].mean(1)
        distance = np.linalg.norm(middle, axis=1)
        light = weather.ambient + weather.direct * np.maximum(normal @ weather.sun, 0) + 0.08 * normal[:, 2]
        if weather.night:
            spot = poses[owner, :2]
            if self.lamp_light is not None:
                at = np.clip((spot / self.size * self.lamp_light.shape[0]).astype(int), 0, self.lamp_light.shape[0] - 1)
                light = light * np.minimum(self.lamp_light[at[:, 1], at[:, 0]], 4.0)
            c, s = np.cos(ego[2]), np.sin(ego[2])
            delta = spot - ego[:2]
            beam = head_lamps(c * delta[:, 0] + s * delta[:, 1], -s * delta[:, 0] + c * delta[:, 1])
            toward = np.einsum("ij,ij->i", faces["normal"], -middle / np.maximum(distance, 1e-6)[:, None])
            light = light + 0.7 * beam * np.maximum(toward, 0.1)
        own = stack.colours[picked]
        base = own * np.maximum(light, 0.03)[:, None] * weather.gain
        fade = np.exp(-distance / weather.haze_m)[:, None]
        base = base * fade + weather.haze * weather.gain * (1 - fade)
        power = stack.glow[picked][:, None]
        shine = own * power * np.exp(-distance / 250)[:, None]
        bright = np.maximum(base, shine * (1.0 if weather.night else 0.8 if weather.wet else 0.55))
        palette = np.zeros((len(picked) + 1, 4), np.uint8)
        palette[1:, :3] = np.clip(bright * 255, 0, 255)
        glow = np.zeros_like(palette)
        glow[1:, :3] = np.clip(shine * 255 * (power > 0.3), 0, 255)
        return palette, glow

    def paint_windows(self, view: View, faces: dict[str, np.ndarray], buffer: np.ndarray, packed: np.ndarray) -> None:
        """Windows on walls: each wall pixel's position on its plane, in metres, decides whether it is glass.

        ``packed`` (H, W, 4) uint8 is changed where ``buffer`` (H, W) holds a wall's number.
        """
        k, focal = view.camera.intrinsic, view.camera.intrinsic[0, 0]
        height, width = buffer.shape
        for face in np.flatnonzero(faces["material"] == FACADE):
            corner = faces["corners"][face]
            if faces["clipped"][face]:
                x0, y0, x1, y1 = 0, 0, width, height
            else:
                pixel = faces["pixel"][face]
                x0, y0 = (int(max(v, 0)) for v in np.floor(pixel.min(0)))
                x1, y1 = (int(v) for v in np.minimum(np.ceil(pixel.max(0)) + 1, (width, height)))
            mine = buffer[y0:y1, x0:x1] == face + 1
            if not mine.any():
                continue
            rows, columns = np.nonzero(mine)
            style = self.stack.style[faces["owner"][face]]
            p0, normal = corner[0], faces["normal"][face]
            offset = float(normal @ p0)
            x = ((columns + (x0 + 0.5 - k[0, 2])) / k[0, 0]).astype(np.float32)
            y = ((rows + (y0 + 0.5 - k[1, 2])) / k[1, 1]).astype(np.float32)
            inverse = 1 / (np.float32(normal[0]) * x + np.float32(normal[1]) * y + np.float32(normal[2]))
            place = []
            for edge, spacing in ((corner[1] - p0, 1.6 + 2.6 * style[0]), (corner[3] - p0, 2.8 + 1.2 * style[1])):
                axis = edge / np.sqrt((edge**2).sum())
                a, b, c = ((offset * axis - (p0 @ axis) * normal) / spacing).astype(np.float32)
                place.append((a * x + b * y + c) * inverse)
            iu, iv = np.floor(place[0]), np.floor(place[1])
            fu, fv = place[0] - iu, place[1] - iv
            frame = 0.08 + 0.24 * style[2]
            glass = np.flatnonzero((fu > frame) & (fu < 1 - frame) & (fv > 0.28) & (fv < 0.83))
            distance = np.sqrt((corner.mean(0) ** 2).sum())
            sharp = float(np.clip((focal * (1.6 + 2.6 * style[0]) / distance - 2.0) / 4.0, 0.15, 1.0))
            flicker = np.sin(iu[glass] * 12.9898 + iv[glass] * 78.233 + style[3] * 43.0) * 437.5453
            flicker -= np.floor(flicker)
            at = (rows[glass] + y0) * width + columns[glass] + x0
            pixels = packed.reshape(-1, 4)
            tint = pixels[at] * (1 - sharp * (0.65 - 0.5 * style[4] * flicker))[:, None]
            if self.weather.night:
                lit = flicker < 0.22
                tint[lit, :3] = np.array([95.0, 165.0, 200.0]) * (0.5 + 2.2 * flicker[lit])[:, None]
            pixels[at] = tint

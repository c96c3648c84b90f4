"""Draws what a camera sees: ground by homography, things by painter's order into an index buffer, then light and air.

Every face is drawn once, as its number; colours, haze and identity are looked up from the numbers afterwards, so the
index buffer is the true occlusion. Counting a thing's numbers right after it is drawn (nothing nearer is there yet)
gives its whole outline, counting at the end gives what is left of it.
"""

from __future__ import annotations

import cv2
import numpy as np

from bevstack.synthetic.cameras import Camera, yaw_matrix
from bevstack.synthetic.ground import GroundTexture
from bevstack.synthetic.occlusion import hides, paint_order, part_ranks
from bevstack.synthetic.shading import Shading
from bevstack.synthetic.shapes import FOLIAGE, cross
from bevstack.synthetic.things import ThingStack
from bevstack.synthetic.view import NEAR_M, View
from bevstack.synthetic.weather import PANORAMA_PX, Lens, Weather

_SHIFT = 4
_REACH_PX = 6000.0


class Renderer:
    """Renders one scene. ``lamp_light`` (rows, columns) is the light of street lamps over the district (night), else
    None."""

    def __init__(
        self,
        rig: list[Camera],
        stack: ThingStack,
        texture: GroundTexture,
        panorama: np.ndarray,
        weather: Weather,
        lens: Lens,
        rng: np.random.Generator,
        lamp_light: np.ndarray | None,
        district_size: float,
    ) -> None:
        self.rig, self.stack, self.texture, self.panorama = rig, stack, texture, panorama
        self.weather, self.lens = weather, lens
        self.shading = Shading(stack, weather, lamp_light, district_size)
        self.views = [View(camera, weather) for camera in rig]
        noise = rng.normal(0, 1, (rig[0].height_px // 2 + 40, rig[0].width_px // 2 + 40)).astype(np.float32)
        leaf = cv2.resize(cv2.GaussianBlur(noise, (0, 0), 0.8) * 1.6, (rig[0].width_px + 80, rig[0].height_px + 80))
        self.leaf = np.clip(1 + 0.28 * leaf, 0.4, 1.7)

    def render(
        self, index: int, ego: np.ndarray, poses: np.ndarray, gait: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Draw camera ``index``.

        ego (3,) x, y, yaw; poses (N, 3) of all things; gait (N,) leg phase in radians. Returns the image (H, W, 3)
        uint8, the owners' index buffer (H, W) int32 (-1: ground or sky), each thing's whole outline in pixels (N,) and
        its visible pixels (N,).
        """
        view = self.views[index]
        faces = self._visible_faces(view, ego, poses, gait)
        buffer, whole = self._draw(view, faces)
        image = self._background(view, ego, poses, faces["things"])
        palette, glow = self.shading.face_colours(faces, ego, poses)
        colours = palette.view(np.uint32)[:, 0]
        packed = cv2.cvtColor(image, cv2.COLOR_BGR2BGRA)
        flat = packed.view(np.uint32)[..., 0]
        np.copyto(flat, colours[buffer], where=buffer > 0)
        self.shading.paint_windows(view, faces, buffer, packed)
        self._leaves(faces, buffer, packed, rng)
        image = cv2.cvtColor(packed, cv2.COLOR_BGRA2BGR)
        if self.weather.night:
            light = glow.view(np.uint32)[:, 0][buffer].view(np.uint8).reshape(*buffer.shape, 4)
            small = cv2.resize(light, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)[..., :3]
            spread = 0.008 * view.camera.width_px
            bloom = cv2.addWeighted(
                cv2.GaussianBlur(small, (0, 0), spread / 2), 1.6, cv2.GaussianBlur(small, (0, 0), 2.2 * spread), 2.2, 0
            )
            image = cv2.add(image, cv2.resize(bloom, image.shape[1::-1]))
        owners = np.concatenate([[-1], faces["owner"]])[buffer]
        seen = np.bincount(owners.reshape(-1) + 1, minlength=self.stack.count + 1)[1:]
        return self.lens.expose(image, rng, index), owners, whole, seen

    def _leaves(
        self, faces: dict[str, np.ndarray], buffer: np.ndarray, packed: np.ndarray, rng: np.random.Generator
    ) -> None:
        """Mottle foliage."""
        dx, dy = (int(v) for v in rng.integers(0, 79, 2))
        leafy = np.concatenate([[False], faces["material"] == FOLIAGE])[buffer]
        at = np.flatnonzero(leafy)
        if len(at):
            noise = self.leaf[dy : dy + buffer.shape[0], dx : dx + buffer.shape[1]][leafy]
            pixels = packed.reshape(-1, 4)
            pixels[at] = np.minimum(pixels[at] * noise[:, None], 255)

    def _visible_faces(self, view: View, ego: np.ndarray, poses: np.ndarray, gait: np.ndarray) -> dict[str, np.ndarray]:
        """Project every face that faces the camera, in painter's order."""
        stack, camera = self.stack, view.camera
        turn = yaw_matrix(ego[2])
        eye = turn @ camera.translation + [ego[0], ego[1], 0.0]
        camera_from_world = (turn @ camera.rotation).T
        centres = stack.centres(poses)
        middle = np.concatenate([centres, stack.z.mean(1, keepdims=True)], 1)
        reach = np.hypot(stack.radius, (stack.z[:, 1] - stack.z[:, 0]) / 2)
        local = (middle - eye) @ camera_from_world.T
        distance = np.linalg.norm(local, axis=1)
        slack = reach * np.hypot(1.0, view.tan_half.max()) + 0.1
        inside = (local[:, 2] > -reach) & (np.abs(local[:, 0]) < np.maximum(local[:, 2], 0) * view.tan_half[0] + slack)
        least = np.where(stack.agents >= 0, 0.5, 1.5)  # half its size in pixels
        inside &= camera.intrinsic[0, 0] * reach > least * np.maximum(distance - reach, 0.1)
        things = np.flatnonzero(inside)
        position = np.full(stack.count, -1)
        yaw = poses[things, 2]
        front = hides(centres[things], yaw, stack.half[things], stack.z[things], eye)
        order = paint_order(front, np.hypot(*(centres[things] - eye[:2]).T))
        things = things[order]
        position[things] = np.arange(len(things))
        to_eye = eye[:2] - poses[:, :2]
        c, s = np.cos(poses[:, 2]), np.sin(poses[:, 2])
        eye_local = np.stack(
            [c * to_eye[:, 0] + s * to_eye[:, 1], -s * to_eye[:, 0] + c * to_eye[:, 1], np.full(len(c), eye[2])], -1
        )
        ranks = part_ranks(stack.pairs, stack.pair_owner, stack.part_start, len(stack.boxes), eye_local)
        chosen = np.flatnonzero(position[stack.vertex_owner] >= 0)
        owner = stack.vertex_owner[chosen]
        point = stack.vertices[chosen] + stack.sway[chosen] * np.sin(gait[owner])[:, None]
        co, so = c[owner], s[owner]
        world = np.stack(
            [
                co * point[:, 0] - so * point[:, 1] + poses[owner, 0] - eye[0],
                so * point[:, 0] + co * point[:, 1] + poses[owner, 1] - eye[1],
                point[:, 2] - eye[2],
            ],
            -1,
        )
        seen = np.empty((len(stack.vertices), 3))
        seen[chosen] = world @ camera_from_world.T
        picked = np.flatnonzero(position[stack.face_owner] >= 0)
        corner = seen[stack.faces[picked, :3]]
        normal = cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
        facing = np.einsum("ij,ij->i", normal, corner[:, 0]) < 0
        picked, normal = picked[facing], normal[facing]
        corners = seen[stack.faces[picked]]
        depth = corners[..., 2]
        nearest = depth.min(1)
        ahead = depth.max(1) > NEAR_M
        depth_safe = np.maximum(depth, NEAR_M)
        k = camera.intrinsic
        pixel = np.stack(
            [corners[..., 0] / depth_safe * k[0, 0] + k[0, 2], corners[..., 1] / depth_safe * k[1, 1] + k[1, 2]], -1
        )
        low, high = pixel.min(1), pixel.max(1)
        clipped = nearest < NEAR_M
        on = (high[:, 0] > 0) & (high[:, 1] > 0) & (low[:, 0] < camera.width_px) & (low[:, 1] < camera.height_px)
        keep = ahead & (clipped | (on & ((high - low).prod(1) > 0.3)))
        picked, normal, corners, pixel, clipped = picked[keep], normal[keep], corners[keep], pixel[keep], clipped[keep]
        own = stack.face_owner[picked]
        key = np.argsort(position[own] * 4096 + ranks[stack.face_part[picked]], kind="stable")
        normal = normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
        picked = picked[key]
        return {
            "face": picked,
            "owner": own[key],
            "normal": normal[key],
            "corners": corners[key],
            "pixel": pixel[key],
            "clipped": clipped[key],
            "things": things,
            "material": stack.material[picked],
            "eye": eye,
            "camera_from_world": camera_from_world,
        }

    def _draw(self, view: View, faces: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        height, width = view.camera.height_px, view.camera.width_px
        buffer = np.zeros((height, width), np.int32)
        whole = np.zeros(self.stack.count, np.int64)
        # pixel i covers [i, i + 1): OpenCV's integer coordinates are pixel centres
        pixel = np.clip(faces["pixel"] - 0.5, -_REACH_PX, _REACH_PX)
        polygons = np.round(pixel * (1 << _SHIFT)).astype(np.int32)
        fill = cv2.fillConvexPoly
        owner = faces["owner"]
        starts = np.flatnonzero(np.diff(owner, prepend=-1))
        ends = np.append(starts[1:], len(owner))
        low = np.floor(pixel.min(1)).astype(int)
        high = np.ceil(pixel.max(1)).astype(int) + 2
        agents = self.stack.agents
        clipped = faces["clipped"]
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            near = bool(clipped[start:end].any())
            for number in range(start, end):
                if near and clipped[number]:
                    polygon = self._clip(view.camera, faces["corners"][number])
                    if polygon is not None:
                        fill(buffer, polygon, (number + 1,), cv2.LINE_8, _SHIFT)
                else:
                    fill(buffer, polygons[number], (number + 1,), cv2.LINE_8, _SHIFT)
            if agents[owner[start]] >= 0:
                x0, y0 = (0, 0) if near else np.maximum(low[start:end].min(0), 0)
                x1, y1 = (width, height) if near else high[start:end].max(0)
                whole[owner[start]] += int(np.count_nonzero(buffer[y0 : max(y1, 0), x0 : max(x1, 0)] > start))
        return buffer, whole

    @staticmethod
    def _clip(camera: Camera, corners: np.ndarray) -> np.ndarray | None:
        """A face cut at the near plane, in pixels with ``_SHIFT`` fraction bits."""
        out = []
        for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            if a[2] >= NEAR_M:
                out.append(a)
            if (a[2] >= NEAR_M) != (b[2] >= NEAR_M):
                out.append(a + (b - a) * ((NEAR_M - a[2]) / (b[2] - a[2])))
        if len(out) < 3:
            return None
        points = np.asarray(out)
        pixel = points[:, :2] / points[:, 2:] * camera.intrinsic[[0, 1], [0, 1]] + camera.intrinsic[:2, 2] - 0.5
        return np.round(np.clip(pixel, -_REACH_PX, _REACH_PX) * (1 << _SHIFT)).astype(np.int32)

    def _background(self, view: View, ego: np.ndarray, poses: np.ndarray, things: np.ndarray) -> np.ndarray:
        """Sky and lit, shadowed, hazy ground."""
        camera, weather = view.camera, self.weather
        height, width = camera.height_px, camera.width_px
        image = np.zeros((height, width, 3), np.uint8)
        rows = len(view.sky_x)
        if rows:
            shifted = (view.sky_x + np.float32(np.degrees(ego[2]) % 360 / 360 * PANORAMA_PX[0])) % PANORAMA_PX[0]
            image[:rows] = cv2.remap(
                self.panorama, shifted, view.sky_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
            )
        first = view.first_row
        if first >= height:
            return image
        turn = yaw_matrix(ego[2])
        turn[:2, 2] = ego[:2]
        map_from_pixel = turn @ view.ego_from_pixel
        ground = np.empty((height - first, width, 3), np.uint8)
        edges = np.flatnonzero(np.diff(view.levels)) + 1
        for a, b in zip([0, *edges], [*edges, len(view.levels)], strict=True):
            level = view.levels[a]
            scale = 1 / self.texture.resolutions[level]
            to_texel = np.array([[scale, 0, -0.5], [0, scale, -0.5], [0, 0, 1.0]])
            to_pixel = np.array([[1, 0, 0.5], [0, 1, first + a + 0.5], [0, 0, 1.0]])
            cv2.warpPerspective(
                self.texture.levels[level],
                to_texel @ map_from_pixel @ to_pixel,
                (width, b - a),
                dst=ground[a:b],
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_REPLICATE,
            )
        shade = self._shadows(view, ego, poses, things)[first:]
        top = 64 * weather.gain * (weather.ambient + weather.direct * weather.sun[2] + 0.08)
        light = cv2.multiply(shade, view.clear, scale=-weather.shadow * top / 255)
        light = cv2.add(light, view.clear * np.float32(top))
        if view.beam is not None:
            light = cv2.add(light, view.beam * view.clear * np.float32(64 * 0.62 * weather.gain))
        light = cv2.convertScaleAbs(light)
        lit = cv2.add(cv2.multiply(ground, cv2.merge([light] * 3), scale=1 / 64), view.veil)
        np.copyto(image[first:], lit, where=view.down[first:, :, None])
        return image

    def _shadows(self, view: View, ego: np.ndarray, poses: np.ndarray, things: np.ndarray) -> np.ndarray:
        """Soft shadow mask (H, W) float32 0..255: each thing's footprint swept along the sun's direction."""
        stack, camera, weather = self.stack, view.camera, self.weather
        mask = np.zeros((camera.height_px, camera.width_px), np.uint8)
        distance = np.hypot(*(poses[things, :2] - ego[:2]).T)
        things = things[(stack.z[things, 0] < 3.0) & (distance < 25 + 40 * stack.radius[things])]
        if len(things):
            c, s = np.cos(poses[things, 2]), np.sin(poses[things, 2])
            signs = np.array([(1, 1), (1, -1), (-1, -1), (-1, 1)])
            centres = stack.centres(poses)[things]
            local = signs[None] * stack.half[things][:, None]
            base = centres[:, None] + np.stack(
                [
                    c[:, None] * local[..., 0] - s[:, None] * local[..., 1],
                    s[:, None] * local[..., 0] + c[:, None] * local[..., 1],
                ],
                -1,
            )
            if weather.direct > 0.2:
                reach = -weather.sun[:2] / weather.sun[2]
                low, high = stack.z[things, 0], np.minimum(stack.z[things, 1], 14.0)
                points = np.concatenate([base + low[:, None, None] * reach, base + high[:, None, None] * reach], 1)
            else:
                grow = (base - centres[:, None]) * 1.08 + centres[:, None]
                points = np.concatenate([base, grow], 1)
            turn = yaw_matrix(ego[2])
            eye = turn @ camera.translation + [ego[0], ego[1], 0.0]
            world = np.concatenate([points - eye[:2], np.full((*points.shape[:2], 1), -eye[2])], -1)
            seen = world @ (turn @ camera.rotation)
            k = camera.intrinsic
            for hull3 in seen:
                depth = hull3[:, 2]
                if depth.max() < NEAR_M:
                    continue
                safe = np.maximum(depth, 0.6)
                pixel = np.stack([hull3[:, 0] / safe * k[0, 0] + k[0, 2], hull3[:, 1] / safe * k[1, 1] + k[1, 2]], -1)
                hull = cv2.convexHull(np.round(np.clip(pixel, -_REACH_PX, _REACH_PX)).astype(np.int32))
                cv2.fillConvexPoly(mask, hull, (255,))
        return cv2.GaussianBlur(mask, (0, 0), max(0.6, camera.width_px / 900)).astype(np.float32)

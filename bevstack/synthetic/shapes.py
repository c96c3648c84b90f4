"""Multi-part meshes: convex parts with coloured faces, ready for painter-sorted drawing and for ray casting.

Local frame: x along the length (front at +x), y left, z up, origin at the middle of the footprint on the ground,
metres. Colours are BGR in [0, 1]. A part is convex, so its front faces never cover each other; decals (windows, lamps,
wheels) are extra faces of their part, drawn after the face that they lie on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bevstack.synthetic.occlusion import separations

FACE_CORNERS = 8
PLAIN, FACADE, FOLIAGE = 0, 1, 2
_SIDES = {
    "bottom": (3, 2, 1, 0),
    "front": (0, 1, 5, 4),
    "left": (1, 2, 6, 5),
    "back": (2, 3, 7, 6),
    "right": (3, 0, 4, 7),
    "top": (4, 5, 6, 7),
}

_SIDE_ROWS = np.array(list(_SIDES.values()))

Colour = Sequence[float] | np.ndarray
Point = Sequence[float] | np.ndarray


def cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cross products of (N, 3) rows (several times faster than numpy's general one)."""
    out = np.empty_like(a)
    out[:, 0] = a[:, 1] * b[:, 2] - a[:, 2] * b[:, 1]
    out[:, 1] = a[:, 2] * b[:, 0] - a[:, 0] * b[:, 2]
    out[:, 2] = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
    return out


@dataclass
class Mesh:
    """A finished mesh.

    vertices (V, 3) metres; sway (V, 3) metres added times sin(gait phase) (walking legs); faces (F, 8) vertex indices,
    short ones padded with their last corner; face_part (F,); colours (F, 3); glow (F,) light of its own at night;
    material (F,) PLAIN, FACADE or FOLIAGE; boxes (P, 2, 3) the parts' local extents; planes (P, 6, 4) the half-spaces
    n.x <= c of each part for ray casting; pairs (M, 5): part i, part j, axis, cut, +1 if i lies below the cut.
    """

    vertices: np.ndarray
    sway: np.ndarray
    faces: np.ndarray
    face_part: np.ndarray
    colours: np.ndarray
    glow: np.ndarray
    material: np.ndarray
    boxes: np.ndarray
    planes: np.ndarray
    pairs: np.ndarray
    reflect: np.ndarray

    @property
    def size_lwh(self) -> np.ndarray:
        """Length, width, height of the whole mesh in metres."""
        return self.vertices.max(0) - self.vertices.min(0)


class MeshBuilder:
    """Collects parts and decals; :meth:`build` makes the :class:`Mesh`."""

    def __init__(self) -> None:
        self._vertices: list[np.ndarray] = []
        self._sway: list[np.ndarray] = []
        self._faces: list[list[int]] = []
        self._part: list[int] = []
        self._colours: list[Colour] = []
        self._glow: list[float] = []
        self._material: list[int] = []
        self._boxes: list[np.ndarray] = []
        self._planes: list[np.ndarray] = []
        self._reflect: list[float] = []
        self._count = 0
        self._corners: dict[int, np.ndarray] = {}

    def _add_vertices(self, points: np.ndarray, sway: np.ndarray | None = None) -> int:
        start = self._count
        self._vertices.append(np.asarray(points, float))
        self._sway.append(np.zeros_like(self._vertices[-1]) if sway is None else sway)
        self._count += len(points)
        return start

    def _add_face(
        self, indices: Sequence[int], part: int, colour: Colour, glow: float = 0.0, material: int = PLAIN
    ) -> int:
        indices = list(indices)
        self._faces.append(indices + [indices[-1]] * (FACE_CORNERS - len(indices)))
        self._part.append(part)
        self._colours.append(colour)
        self._glow.append(glow)
        self._material.append(material)
        return len(self._faces) - 1

    def _add_part(self, points: np.ndarray, planes: np.ndarray | None, reflect: float) -> int:
        low, high = points.min(0), points.max(0)
        self._boxes.append(np.stack([low, high]))
        if planes is None:
            planes = np.zeros((6, 4))
            for axis in range(3):
                planes[2 * axis, axis], planes[2 * axis, 3] = 1.0, high[axis]
                planes[2 * axis + 1, axis], planes[2 * axis + 1, 3] = -1.0, -low[axis]
        self._planes.append(planes)
        self._reflect.append(reflect)
        return len(self._boxes) - 1

    def hexahedron(
        self,
        corners: np.ndarray,
        colour: Colour,
        *,
        material: int = PLAIN,
        glow: float = 0.0,
        sides: dict[str, Colour] | None = None,
        sway: np.ndarray | None = None,
        reflect: float = 0.3,
    ) -> dict[str, int]:
        """A part with six quads. ``corners`` (8, 3): bottom (+x-y, +x+y, -x+y, -x-y), then top; returns side name ->
        face."""
        corners = np.asarray(corners, float)
        quads = corners[_SIDE_ROWS]
        normal = cross(quads[:, 2] - quads[:, 0], quads[:, 3] - quads[:, 1])
        norm = np.sqrt((normal * normal).sum(1))
        flat = norm < 1e-9  # a side without area bounds nothing
        normal /= np.where(flat, 1.0, norm)[:, None]
        inward = (normal * (corners.mean(0) - quads[:, 0])).sum(1) > 0
        normal = np.where(inward[:, None], -normal, normal)
        level = (quads * normal[:, None]).sum(-1).max(1)
        planes = np.concatenate([np.where(flat[:, None], 0.0, normal), np.where(flat, 1e3, level)[:, None]], 1)
        part = self._add_part(corners, planes, reflect)
        start = self._add_vertices(corners, sway)
        sides = sides or {}
        out = {}
        for name, side in _SIDES.items():
            if name == "bottom" and corners[:, 2].min() < 1.0:
                continue  # never seen: every camera is higher
            kind = material if name not in ("top", "bottom") else (FOLIAGE if material == FOLIAGE else PLAIN)
            out[name] = self._add_face([start + i for i in side], part, sides.get(name, colour), glow, kind)
            self._corners[out[name]] = corners[list(side)]
        return out

    def box(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        z: tuple[float, float],
        colour: Colour,
        *,
        taper: tuple[float, float, float] = (0.0, 0.0, 0.0),
        material: int = PLAIN,
        glow: float = 0.0,
        sides: dict[str, Colour] | None = None,
    ) -> dict[str, int]:
        """A box; ``taper`` = metres by which the top is drawn in at the front, at the back, and at each side."""
        front, back, side = taper
        bottom = [(x[1], y[0]), (x[1], y[1]), (x[0], y[1]), (x[0], y[0])]
        top = [
            (x[1] - front, y[0] + side),
            (x[1] - front, y[1] - side),
            (x[0] + back, y[1] - side),
            (x[0] + back, y[0] + side),
        ]
        corners = [(*p, z[0]) for p in bottom] + [(*p, z[1]) for p in top]
        return self.hexahedron(np.asarray(corners), colour, material=material, glow=glow, sides=sides)

    def bar(
        self,
        start: Point,
        end: Point,
        thick: float,
        colour: Colour,
        *,
        wide: float | None = None,
        sway_end: Point | None = None,
        reflect: float = 0.3,
    ) -> dict[str, int]:
        """A bar between two points, ``thick`` in the vertical plane's sense and ``wide`` across (default: the same)."""
        a, b = np.asarray(start, float), np.asarray(end, float)
        axis = (b - a) / max(float(np.sqrt(((b - a) ** 2).sum())), 1e-9)
        across = np.array([-axis[2], 0.0, axis[0]]) if abs(axis[1]) < 0.9 else np.array([1.0, 0.0, 0.0])
        across /= np.sqrt((across**2).sum())
        other = cross(axis[None], across[None])[0]
        u, v = across * thick / 2, other * (wide if wide is not None else thick) / 2
        ring = [u - v, u + v, -u + v, -u - v]
        corners = np.asarray([a + r for r in ring] + [b + r for r in ring])
        if cross(u[None], v[None])[0] @ axis < 0:
            corners = corners[[3, 2, 1, 0, 7, 6, 5, 4]]
        sway = None
        if sway_end is not None:
            sway = np.zeros((8, 3))
            sway[4:] = sway_end
        return self.hexahedron(corners, colour, sway=sway, reflect=reflect)

    def drum(
        self,
        centre: Point,
        z: tuple[float, float],
        radii: tuple[float, float],
        colour: Colour,
        *,
        corners: int = 8,
        material: int = PLAIN,
        shades: np.ndarray | None = None,
        top: Colour | None = None,
        wobble: np.ndarray | None = None,
        reflect: float = 0.3,
    ) -> list[int]:
        """An upright frustum with ``corners`` (at most 8) sides; ``shades`` multiplies the colour of each side."""
        angle = np.arange(corners) * 2 * np.pi / corners + np.pi / corners
        ring = np.stack([np.cos(angle), np.sin(angle)], -1)
        spread = np.ones(corners) if wobble is None else wobble
        low = np.concatenate([centre[:2] + ring * radii[0] * spread[:, None], np.full((corners, 1), z[0])], 1)
        high = np.concatenate([centre[:2] + ring * radii[1] * spread[:, None], np.full((corners, 1), z[1])], 1)
        points = np.concatenate([low, high])
        # the ray caster sees a box with the mean section
        mean = 0.5 * (radii[0] + radii[1]) * 0.88
        planes = np.zeros((6, 4))
        for row, (normal, reach) in enumerate(
            (
                ((1, 0, 0), centre[0] + mean),
                ((-1, 0, 0), mean - centre[0]),
                ((0, 1, 0), centre[1] + mean),
                ((0, -1, 0), mean - centre[1]),
                ((0, 0, 1), z[1]),
                ((0, 0, -1), -z[0]),
            )
        ):
            planes[row, :3], planes[row, 3] = normal, reach
        part = self._add_part(points, planes, reflect)
        start = self._add_vertices(points)
        faces = []
        for i in range(corners):
            j = (i + 1) % corners
            shade = 1.0 if shades is None else shades[i]
            tint = np.clip(np.asarray(colour) * shade, 0, 1)
            quad = [i, j, corners + j, corners + i]
            faces.append(self._add_face([start + k for k in quad], part, tint, 0.0, material))
            self._corners[faces[-1]] = points[quad]
        cap = top if top is not None else colour
        self._add_face([start + corners + i for i in range(corners)], part, cap, 0.0, material)
        if z[0] > 1.2:
            self._add_face([start + i for i in range(corners)][::-1], part, np.asarray(colour) * 0.6, 0.0, material)
        return faces

    def wheel(
        self,
        x: float,
        y: float,
        radius: float,
        width: float,
        *,
        hub: Colour = (0.6, 0.6, 0.6),
        tyre: Colour = (0.06, 0.06, 0.06),
    ) -> None:
        """A wheel on the ground whose axle lies along y; ``y`` is its middle."""
        angle = np.arange(8) * np.pi / 4 + np.pi / 8
        scale = radius / np.cos(np.pi / 8)
        ring = np.stack([np.cos(angle) * scale, np.zeros(8), np.sin(angle) * scale + radius], -1)
        ring[:, 2] = np.clip(ring[:, 2], 0.0, 2 * radius)
        ring[:, 0] = np.clip(ring[:, 0], -radius, radius)
        left, right = ring + [x, y + width / 2, 0], ring + [x, y - width / 2, 0]
        part = self._add_part(np.concatenate([left, right]), None, 0.1)
        start = self._add_vertices(np.concatenate([left, right]))
        inner = self._add_vertices(
            np.concatenate(
                [
                    (ring - [0, 0, radius]) * 0.58 + [x, y + width / 2, radius],
                    (ring - [0, 0, radius]) * 0.58 + [x, y - width / 2, radius],
                ]
            )
        )
        order = list(range(8))
        for i in range(8):
            j = (i + 1) % 8
            self._add_face([start + i, start + 8 + i, start + 8 + j, start + j], part, np.asarray(tyre) * 1.4)
        self._add_face([start + i for i in order[::-1]], part, tyre)
        self._add_face([start + 8 + i for i in order], part, tyre)
        self._add_face([inner + i for i in order[::-1]], part, hub)
        self._add_face([inner + 8 + i for i in order], part, hub)

    def hoop(self, x: float, y: float, radius: float, thick: float, colour: Colour) -> None:
        """A spoked wheel of a bicycle: a ring one sees through, drawn from both sides."""
        angle = np.arange(8) * np.pi / 4
        ring = np.stack([np.cos(angle) * radius, np.zeros(8), np.sin(angle) * radius], -1)
        points = np.concatenate([ring, ring * (1 - thick / radius)]) + [x, y, radius]
        part = self._add_part(points + np.array([[0, 0.02, 0]] * 8 + [[0, -0.02, 0]] * 8), None, 0.1)
        start = self._add_vertices(points)
        for i in range(8):
            j = (i + 1) % 8
            quad = [start + i, start + j, start + 8 + j, start + 8 + i]
            self._add_face(quad, part, colour)
            self._add_face(quad[::-1], part, colour)

    def decal(
        self,
        face: int,
        u: tuple[float, float],
        v: tuple[float, float],
        colour: Colour,
        *,
        glow: float = 0.0,
        material: int = PLAIN,
    ) -> None:
        """A quad on a quad face: ``u`` and ``v`` are fractions along its first edge and along its height."""
        corner = self._corners[face]
        points = []
        for a, b in ((u[0], v[0]), (u[1], v[0]), (u[1], v[1]), (u[0], v[1])):
            points.append((1 - b) * ((1 - a) * corner[0] + a * corner[1]) + b * ((1 - a) * corner[3] + a * corner[2]))
        start = self._add_vertices(np.asarray(points))
        self._add_face(range(start, start + 4), self._part[face], colour, glow, material)

    def build(self, size_lwh: Sequence[float] | np.ndarray | None = None) -> Mesh:
        """The mesh; with ``size_lwh`` its extents are stretched to exactly that length, width and height."""
        vertices, sway = np.concatenate(self._vertices), np.concatenate(self._sway)
        boxes, planes = np.asarray(self._boxes), np.asarray(self._planes)
        if size_lwh is not None:
            low, high = vertices.min(0), vertices.max(0)
            scale = np.asarray(size_lwh, float) / (high - low)
            shift = np.array([-(low[0] + high[0]) / 2, -(low[1] + high[1]) / 2, -low[2]])
            vertices, boxes = (vertices + shift) * scale, (boxes + shift) * scale
            planes[..., 3] += planes[..., :3] @ shift
            planes[..., :3] /= scale
            norm = np.maximum(np.linalg.norm(planes[..., :3], axis=-1, keepdims=True), 1e-9)
            planes = np.where(norm > 1e-8, planes / norm, planes)
        faces = np.asarray(self._faces)
        order = np.argsort(self._part, kind="stable")
        return Mesh(
            vertices.astype(np.float32),
            sway.astype(np.float32),
            faces[order],
            np.asarray(self._part)[order],
            np.asarray(self._colours, np.float32)[order],
            np.asarray(self._glow, np.float32)[order],
            np.asarray(self._material, np.int8)[order],
            boxes,
            planes,
            separations(boxes),
            np.asarray(self._reflect, np.float32),
        )

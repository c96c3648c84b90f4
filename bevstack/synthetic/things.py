"""All things of a scene stacked into flat arrays, so that a frame is a few numpy calls and one drawing loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bevstack.synthetic.shapes import FACE_CORNERS, Mesh


@dataclass
class Thing:
    """A mesh somewhere: ``pose`` (x, y, yaw) where it stands still; ``agent`` the row of the traffic it belongs to, or
    -1."""

    mesh: Mesh
    pose: tuple[float, float, float] = (0.0, 0.0, 0.0)
    agent: int = -1


class ThingStack:
    """Flat arrays over all things (N), vertices (V), faces (F), parts (P) and part pairs (M).

    ``agents`` (N,) gives the traffic row of a thing or -1. Local footprint: ``centre`` (N, 2), ``half`` (N, 2), heights
    ``z`` (N, 2), ``radius`` (N,).
    """

    def __init__(self, things: Sequence[Thing], rng: np.random.Generator) -> None:
        meshes = [thing.mesh for thing in things]
        self.count = len(things)
        self.agents = np.array([thing.agent for thing in things], np.int64)
        self.still = np.array([thing.pose for thing in things], float).reshape(-1, 3)
        self.vertices, self.sway = (np.concatenate([getattr(m, k) for m in meshes]) for k in ("vertices", "sway"))
        counts = np.array([len(m.vertices) for m in meshes])
        start = np.concatenate([[0], np.cumsum(counts)[:-1]])
        self.vertex_owner = np.repeat(np.arange(self.count), counts)
        self.faces = np.concatenate([m.faces + s for m, s in zip(meshes, start, strict=True)]).reshape(-1, FACE_CORNERS)
        self.face_owner = np.repeat(np.arange(self.count), [len(m.faces) for m in meshes])
        part_counts = np.array([len(m.boxes) for m in meshes])
        self.part_start = np.concatenate([[0], np.cumsum(part_counts)[:-1]])
        self.part_owner = np.repeat(np.arange(self.count), part_counts)
        self.face_part = np.concatenate([m.face_part + s for m, s in zip(meshes, self.part_start, strict=True)])
        self.colours = np.concatenate([m.colours for m in meshes])
        self.glow = np.concatenate([m.glow for m in meshes])
        self.material = np.concatenate([m.material for m in meshes])
        self.boxes = np.concatenate([m.boxes for m in meshes])
        self.planes = np.concatenate([m.planes for m in meshes])
        self.reflect = np.concatenate([m.reflect for m in meshes])
        self.pairs = np.concatenate([m.pairs for m in meshes])
        self.pair_owner = np.repeat(np.arange(self.count), [len(m.pairs) for m in meshes])
        low = np.array([m.vertices.min(0) for m in meshes])
        high = np.array([m.vertices.max(0) for m in meshes])
        self.centre, self.half = (low[:, :2] + high[:, :2]) / 2, (high[:, :2] - low[:, :2]) / 2
        self.z = np.stack([low[:, 2], high[:, 2]], -1)
        self.radius = np.hypot(*self.half.T)
        self.style = rng.random((self.count, 6))

    def poses(self, agent_poses: np.ndarray) -> np.ndarray:
        """(N, 3) x, y, yaw of every thing, agents' poses (A, 3) filled in."""
        out = self.still.copy()
        moving = self.agents >= 0
        out[moving] = agent_poses[self.agents[moving]]
        return out

    def centres(self, poses: np.ndarray) -> np.ndarray:
        """(N, 2) middles of the footprints."""
        c, s = np.cos(poses[:, 2]), np.sin(poses[:, 2])
        x, y = self.centre.T
        return poses[:, :2] + np.stack([c * x - s * y, s * x + c * y], -1)

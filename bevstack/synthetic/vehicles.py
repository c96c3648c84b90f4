"""Meshes of vehicles on four wheels or more. Sizes are (length, width, height) in metres; every colour is drawn at
random."""

from __future__ import annotations

import numpy as np

from bevstack.synthetic.shapes import Mesh, MeshBuilder

GLASS = (0.16, 0.13, 0.11)
DARK = (0.07, 0.07, 0.07)
WHITE_LAMP, RED_LAMP, AMBER_LAMP = (0.92, 0.97, 1.0), (0.12, 0.10, 0.85), (0.1, 0.5, 0.95)


def paint(rng: np.random.Generator) -> np.ndarray:
    """A colour from the distribution that all classes share (so that colour says nothing about class)."""
    if rng.random() < 0.5:
        return np.clip(np.full(3, rng.choice([0.08, 0.25, 0.45, 0.7, 0.9])) + rng.normal(0, 0.03, 3), 0.03, 0.97)
    hue, saturation, value = rng.random(), rng.uniform(0.35, 0.95), rng.uniform(0.25, 0.95)
    wheel = np.clip(np.abs((hue * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0, 1)
    return np.clip(value * (1 - saturation * (1 - wheel)), 0.02, 0.98)[::-1]


def add_lamps(
    mesh: MeshBuilder, front: int, back: int, height: tuple[float, float], lit: bool, wide: float = 0.2
) -> None:
    """White lamps on face ``front``, red ones on ``back``; ``height`` and ``wide`` are fractions of the faces."""
    glow = 1.0 if lit else 0.0
    for u in ((0.04, 0.04 + wide), (0.96 - wide, 0.96)):
        mesh.decal(front, u, height, WHITE_LAMP, glow=glow)
        mesh.decal(back, u, height, RED_LAMP, glow=0.8 * glow)


def add_windows(
    mesh: MeshBuilder, faces: dict[str, int], sides: tuple[float, float], height: tuple[float, float], panes: int = 2
) -> None:
    """``panes`` windows on the left and right of a part; ``sides`` and ``height`` are fractions of the faces."""
    for name in ("left", "right"):
        edges = np.linspace(*sides, panes + 1)
        for a, b in zip(edges[:-1], edges[1:], strict=True):
            mesh.decal(faces[name], (a + 0.015, b - 0.015), height, GLASS)


def car(rng: np.random.Generator, size: np.ndarray, lit: bool) -> Mesh:
    """A saloon, hatchback, estate, off-roader or van."""
    length, width, height = size
    mesh, colour = MeshBuilder(), paint(rng)
    kind = rng.choice(["saloon", "hatch", "suv", "van"], p=[0.35, 0.25, 0.28, 0.12])
    belt = {"saloon": 0.56, "hatch": 0.56, "suv": 0.58, "van": 0.5}[kind] * height
    low, half = 0.17 * height, length / 2
    radius, thick = {"suv": 0.37}.get(kind, 0.33), 0.24
    axle_front, axle_rear = half - 0.19 * length, -half + 0.2 * length
    for x in (axle_front, axle_rear):
        for side in (1, -1):
            mesh.wheel(x, side * (width / 2 - thick / 2), radius, thick, hub=(0.55, 0.55, 0.55))
    inner = width - 2 * thick - 0.02
    mesh.box((-half + 0.1, half - 0.1), (-inner / 2, inner / 2), (low, 2 * radius), np.multiply(colour, 0.25))
    for x0, x1 in ((-half, axle_rear - radius), (axle_rear + radius, axle_front - radius), (axle_front + radius, half)):
        faces = mesh.box(
            (x0, x1),
            (-width / 2, width / 2),
            (low, 2 * radius + 0.0),
            colour,
            sides={"front": np.multiply(colour, 0.8), "back": np.multiply(colour, 0.8)},
        )
        for name in ("left", "right"):
            mesh.decal(faces[name], (0, 1), (0, 0.22), DARK)
        if x1 == half:
            mesh.decal(faces["front"], (0.1, 0.9), (0.1, 0.75), DARK)
            mesh.decal(faces["front"], (0.38, 0.62), (0.25, 0.5), (0.85, 0.85, 0.85))
        if x0 == -half:
            mesh.decal(faces["back"], (0.0, 1.0), (0.0, 0.35), DARK)
            mesh.decal(faces["back"], (0.36, 0.64), (0.45, 0.8), (0.85, 0.85, 0.85))
    deck = mesh.box((-half, half), (-width / 2, width / 2), (2 * radius, belt), colour, taper=(0.12, 0.06, 0.03))
    add_lamps(mesh, deck["front"], deck["back"], (0.1, 0.85), lit)
    for name in ("left", "right"):
        mesh.decal(deck[name], (0.49, 0.497), (0, 1), np.multiply(colour, 0.5))
    front, back, slope_front, slope_back = {
        "saloon": (0.2, -0.38, 0.15, 0.11),
        "hatch": (0.22, -0.48, 0.16, 0.06),
        "suv": (0.24, -0.49, 0.12, 0.04),
        "van": (0.4, -0.495, 0.14, 0.01),
    }[kind]
    cabin = mesh.box(
        (back * length, front * length),
        (-width / 2 + 0.05, width / 2 - 0.05),
        (belt, height),
        colour,
        taper=(slope_front * length, slope_back * length, 0.14),
    )
    mesh.decal(cabin["front"], (0.06, 0.94), (0.08, 0.9), GLASS)
    mesh.decal(cabin["back"], (0.08, 0.92), (0.15, 0.88), GLASS)
    add_windows(mesh, cabin, (0.06, 0.94) if kind != "van" else (0.05, 0.45), (0.1, 0.85), 3 if kind in ("suv",) else 2)
    return mesh.build(size)

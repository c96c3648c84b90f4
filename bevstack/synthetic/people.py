"""Meshes of pedestrians, bicycles and motorcycles (with or without a rider). Sizes are (length, width, height),
metres."""

from __future__ import annotations

import numpy as np

from bevstack.synthetic.shapes import Mesh, MeshBuilder
from bevstack.synthetic.vehicles import DARK, RED_LAMP, WHITE_LAMP, paint

_SKIN = ((0.62, 0.74, 0.9), (0.45, 0.58, 0.78), (0.3, 0.4, 0.58), (0.17, 0.24, 0.36))


def _skin(rng: np.random.Generator) -> tuple[float, float, float]:
    return _SKIN[rng.integers(len(_SKIN))]


def pedestrian(rng: np.random.Generator, size: np.ndarray, pose: str = "moving") -> Mesh:
    """A person who is ``moving``, ``standing`` or ``sitting``; legs and arms of a moving one swing with the gait."""
    length, width, height = size
    mesh = MeshBuilder()
    shirt, trousers, hair, skin = paint(rng), paint(rng) * rng.uniform(0.4, 1.0), paint(rng) * 0.4, _skin(rng)
    hip, shoulder, neck = 0.48 * height, 0.81 * height, 0.84 * height
    half, leg = width / 2, 0.085 * height
    skirt = rng.random() < 0.15
    if pose == "sitting":
        hip, shoulder, neck = 0.36 * height, 0.74 * height, 0.77 * height
        for side in (1, -1):
            mesh.box((0.02, length / 2), (side * 0.11 - 0.07, side * 0.11 + 0.07), (hip - 0.02, hip + 0.14), trousers)
            mesh.box(
                (length / 2 - 0.15, length / 2), (side * 0.11 - 0.07, side * 0.11 + 0.07), (0.0, hip - 0.02), trousers
            )
        mesh.box((-length / 2, length / 2 - 0.2), (-0.24, 0.24), (0.0, hip - 0.03), paint(rng) * 0.6)
        torso_x = -length / 2 + 0.16
    else:
        swing = 0.42 * length if pose == "moving" else 0.0
        for side in (1, -1):
            mesh.bar(
                (0.0, side * 0.1, hip),
                (0.0, side * 0.1, 0.0),
                leg * 1.9,
                trousers,
                wide=leg * 1.6,
                sway_end=(side * swing, 0, 0),
            )
            mesh.bar(
                (0.0, side * (half - 0.06), shoulder),
                (0.03, side * (half - 0.05), hip + 0.02),
                leg,
                shirt,
                sway_end=(-side * swing * 0.75, 0, 0),
            )
        torso_x = 0.0
    if skirt and pose != "sitting":
        mesh.drum((torso_x, 0.0), (0.28 * height, hip + 0.05), (0.24, 0.16), shirt, corners=6)
        hip += 0.05
    torso_half = half - 0.11 if pose != "sitting" else half - 0.06
    faces = mesh.box(
        (torso_x - 0.13, torso_x + 0.13), (-torso_half, torso_half), (hip, shoulder), shirt, taper=(0.02, 0.02, -0.03)
    )
    if rng.random() < 0.3 and pose != "sitting":
        mesh.box((torso_x - 0.3, torso_x - 0.14), (-0.15, 0.15), (hip + 0.12, shoulder - 0.03), paint(rng))
    elif rng.random() < 0.3:
        mesh.decal(faces["front"], (0.35, 0.65), (0.0, 1.0), paint(rng))
    mesh.box((torso_x - 0.05, torso_x + 0.06), (-0.06, 0.06), (shoulder, neck), skin)
    face = mesh.drum((torso_x + 0.01, 0.0), (neck, 0.94 * height), (0.095, 0.1), skin, corners=6)
    mesh.drum((torso_x - 0.005, 0.0), (0.94 * height, height), (0.11, 0.075), hair, corners=6)
    mesh.decal(face[2], (0.0, 1.0), (0.0, 1.0), hair)
    mesh.decal(face[3], (0.0, 1.0), (0.0, 1.0), hair)
    built = mesh.build()
    scale = np.array(
        [min(1.0, length / max(built.size_lwh[0], 1e-3)), width / built.size_lwh[1], height / built.size_lwh[2]]
    )
    return mesh.build(built.size_lwh * scale)


def _rider(
    mesh: MeshBuilder,
    rng: np.random.Generator,
    seat: tuple[float, float],
    bars: tuple[float, float],
    foot: float,
    helmet: bool,
) -> None:
    shirt, trousers = paint(rng), paint(rng) * 0.7
    x, z = seat
    for side in (1, -1):
        mesh.bar((x, side * 0.1, z + 0.04), (x + 0.33, side * 0.13, z - 0.16), 0.15, trousers)
        mesh.bar((x + 0.33, side * 0.13, z - 0.18), (x + 0.2, side * 0.13, foot), 0.12, trousers)
        mesh.bar((x + 0.16, side * 0.2, z + 0.52), (bars[0], side * 0.25, bars[1] + 0.03), 0.09, shirt)
    mesh.hexahedron(
        np.array(
            [
                (x + 0.13, -0.17, z),
                (x + 0.13, 0.17, z),
                (x - 0.13, 0.17, z),
                (x - 0.13, -0.17, z),
                (x + 0.3, -0.21, z + 0.58),
                (x + 0.3, 0.21, z + 0.58),
                (x + 0.06, 0.21, z + 0.58),
                (x + 0.06, -0.21, z + 0.58),
            ]
        ),
        shirt,
    )
    head = paint(rng) if helmet else _skin(rng)
    mesh.drum((x + 0.22, 0.0), (z + 0.6, z + 0.88), (0.1, 0.09), head, corners=6)


def bicycle(rng: np.random.Generator, size: np.ndarray, lit: bool, rider: bool) -> Mesh:
    """A bicycle: two spoked wheels, a frame, a saddle, a handle bar."""
    mesh, colour = MeshBuilder(), paint(rng)
    length = size[0]
    radius = 0.34
    front, back = length / 2 - radius, -length / 2 + radius
    for x in (front, back):
        mesh.hoop(x, 0.0, radius, 0.06, DARK)
    crank, seat, head = (-0.08, 0.3), (back + 0.25, 0.85), (front - 0.16, 0.85)
    for a, b in (
        (crank, seat),
        (crank, head),
        (seat, head),
        ((back, radius), crank),
        ((back, radius), seat),
        ((front, radius), head),
    ):
        mesh.bar((a[0], 0, a[1]), (b[0], 0, b[1]), 0.05, colour)
    mesh.box((seat[0] - 0.14, seat[0] + 0.12), (-0.08, 0.08), (seat[1], seat[1] + 0.07), DARK)
    mesh.bar((head[0], 0, head[1]), (head[0] - 0.02, 0, 1.0), 0.04, DARK)
    grip = mesh.bar((head[0] - 0.02, -0.27, 1.02), (head[0] - 0.02, 0.27, 1.02), 0.05, DARK)
    del grip, lit
    if rng.random() < 0.3 and not rider:
        mesh.box((front - 0.15, front + 0.2), (-0.18, 0.18), (0.8, 1.0), paint(rng))
    if rider:
        _rider(mesh, rng, (seat[0], 0.92), (head[0] - 0.02, 1.0), 0.2, rng.random() < 0.5)
    return mesh.build(size)


def motorcycle(rng: np.random.Generator, size: np.ndarray, lit: bool, rider: bool) -> Mesh:
    """A motorcycle or scooter: two thick wheels, tank, seat, fork, lamps."""
    mesh, colour = MeshBuilder(), paint(rng)
    length = size[0]
    radius, glow = 0.3, 1.0 if lit else 0.0
    front, back = length / 2 - radius, -length / 2 + radius
    for x in (front, back):
        mesh.wheel(x, 0.0, radius, 0.15, hub=(0.45, 0.45, 0.45))
    scooter = rng.random() < 0.45
    mesh.box(
        (back + 0.33, front - 0.36),
        (-0.16, 0.16),
        (0.2 if scooter else 0.28, 0.6),
        np.multiply(colour, 0.5) if not scooter else colour,
    )
    mesh.bar(
        (front, 0.0, radius),
        (front - 0.22, 0.0, 0.98),
        0.12,
        (0.5, 0.5, 0.5) if not scooter else colour,
        wide=0.3 if scooter else 0.18,
    )
    tank = mesh.box((-0.1, front - 0.34), (-0.17, 0.17), (0.6, 0.86), colour, taper=(0.05, 0.12, 0.04))
    seat = mesh.box((back - 0.22, -0.12), (-0.15, 0.15), (0.62, 0.8), DARK, taper=(0.0, -0.08, 0.0))
    mesh.decal(seat["back"], (0.2, 0.8), (0.2, 0.8), RED_LAMP, glow=0.8 * glow)
    lamp = mesh.box((front - 0.28, front - 0.1), (-0.13, 0.13), (0.87, 1.06), colour)
    mesh.decal(lamp["front"], (0.15, 0.85), (0.15, 0.85), WHITE_LAMP, glow=glow)
    mesh.bar((front - 0.34, -0.36, 1.08), (front - 0.34, 0.36, 1.08), 0.06, DARK)
    if rng.random() < 0.35:
        mesh.box((back - 0.3, back + 0.08), (-0.2, 0.2), (0.82, 1.15), paint(rng))
    del tank
    if rider:
        _rider(mesh, rng, (-0.28, 0.8), (front - 0.34, 1.06), 0.25, True)
    else:
        mesh.box((front - 0.4, front - 0.36), (-0.3, -0.22), (1.08, 1.3), DARK)
        mesh.box((front - 0.4, front - 0.36), (0.22, 0.3), (1.08, 1.3), DARK)
    return mesh.build(size)


def stroller(rng: np.random.Generator, size: np.ndarray) -> Mesh:
    """A pushchair or a wheeled bin: a box on small wheels with a handle."""
    length, width, height = size
    mesh, colour = MeshBuilder(), paint(rng)
    for x in (length / 2 - 0.12, -length / 2 + 0.2):
        for side in (1, -1):
            mesh.wheel(x, side * (width / 2 - 0.03), 0.1, 0.05)
    mesh.box(
        (-length / 2 + 0.1, length / 2),
        (-width / 2 + 0.07, width / 2 - 0.07),
        (0.25 * height, 0.85 * height),
        colour,
        taper=(0.1, 0.0, 0.0),
    )
    mesh.bar((-length / 2, -width / 2 + 0.1, height - 0.03), (-length / 2, width / 2 - 0.1, height - 0.03), 0.05, DARK)
    return mesh.build(size)

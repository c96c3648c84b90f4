"""Meshes of things that stand: barriers, cones, buildings, trees, poles, fences, bins. Metres; colours drawn at
random."""

from __future__ import annotations

import numpy as np

from bevstack.synthetic.shapes import FACADE, FOLIAGE, Mesh, MeshBuilder
from bevstack.synthetic.vehicles import DARK, paint

LAMP = (0.75, 0.92, 1.0)


def barrier(rng: np.random.Generator, size: np.ndarray) -> Mesh:
    """A temporary barrier; as in nuScenes its length axis x is the thin one, its width y the long one."""
    _, width, height = size
    mesh, colour = MeshBuilder(), paint(rng)
    other = paint(rng)
    style, half = rng.integers(3), width / 2
    if style == 0:  # concrete or plastic profile
        mesh.box((-0.25, 0.25), (-half, half), (0.0, 0.3 * height), colour, taper=(0.12, 0.12, 0.0))
        top = mesh.box((-0.13, 0.13), (-half, half), (0.3 * height, height), colour, taper=(0.06, 0.06, 0.0))
        for name in ("front", "back"):
            mesh.decal(top[name], (0.1, 0.9), (0.55, 0.8), other)
    elif style == 1:  # plank on two feet
        for side in (1, -1):
            mesh.box((-0.25, 0.25), (side * half * 0.75 - 0.05, side * half * 0.75 + 0.05), (0.0, 0.12), DARK)
            mesh.box((-0.04, 0.04), (side * half * 0.75 - 0.05, side * half * 0.75 + 0.05), (0.12, 0.6 * height), DARK)
        for low, high in ((0.35, 0.58), (0.7, 1.0)):
            plank = mesh.box((-0.05, 0.05), (-half, half), (low * height, high * height), colour)
            for name in ("front", "back"):
                for u in np.arange(0.05, 0.95, 0.25):
                    mesh.decal(plank[name], (u, u + 0.12), (0.02, 0.98), other)
    else:  # crowd-control fence, water-filled block
        base = mesh.box((-0.22, 0.22), (-half, half), (0.0, 0.55 * height), colour, taper=(0.05, 0.05, 0.05))
        for name in ("front", "back"):
            for u in (0.2, 0.45, 0.7):
                mesh.decal(base[name], (u, u + 0.1), (0.1, 0.35), np.multiply(colour, 0.3))
        mesh.box((-0.12, 0.12), (-half + 0.1, half - 0.1), (0.55 * height, height), other)
    return mesh.build(size)


def cone(rng: np.random.Generator, size: np.ndarray) -> Mesh:
    """A traffic cone or post: a square foot, a cone in bands."""
    length, _, height = size
    mesh, colour, band = MeshBuilder(), paint(rng), paint(rng)
    mesh.box((-length / 2, length / 2), (-length / 2, length / 2), (0.0, 0.06), DARK if rng.random() < 0.5 else colour)
    slim = rng.random() < 0.2
    bottom, top = (0.11, 0.09) if slim else (0.36 * length, 0.09 * length)
    levels = [0.06 / height, 0.4, 0.58, 0.76, 1.0]
    for k, (a, b) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
        radius = [bottom + (top - bottom) * v for v in (a, b)]
        mesh.drum(
            (0.0, 0.0),
            (a * height, b * height),
            (radius[0], radius[1]),
            band if k == 1 or (k == 2 and slim) else colour,
            corners=8,
        )
    return mesh.build(size)


def building(rng: np.random.Generator, size: np.ndarray) -> Mesh:
    """A building: a block with a window pattern (drawn by the renderer's facade shader), perhaps a lower front or a
    set-back top."""
    length, width, height = size
    mesh = MeshBuilder()
    colour = np.clip(np.full(3, rng.uniform(0.3, 0.75)) + rng.normal(0, 0.07, 3), 0.1, 0.9) * rng.uniform(0.7, 1.0)
    roof = np.clip(colour * rng.uniform(0.5, 0.9), 0, 1)
    split = height
    if height > 12 and rng.random() < 0.45:
        split = height * rng.uniform(0.35, 0.75)
    base = mesh.box(
        (-length / 2, length / 2), (-width / 2, width / 2), (0.0, split), colour, material=FACADE, sides={"top": roof}
    )
    for name in ("front", "back", "left", "right"):
        if rng.random() < 0.6:
            mesh.decal(base[name], (0.0, 1.0), (0.0, min(0.9, 3.4 / split)), np.clip(paint(rng) * 0.5 + 0.15, 0, 1))
            for u in np.arange(0.04, 0.94, 0.16):
                mesh.decal(
                    base[name],
                    (u, u + 0.11),
                    (0.02, min(0.7, 2.6 / split)),
                    (0.14, 0.13, 0.12),
                    glow=0.25 if rng.random() < 0.5 else 0.0,
                )
    if split < height:
        inset = rng.uniform(0.05, 0.25)
        mesh.box(
            (-length * (0.5 - inset), length * (0.5 - inset)),
            (-width * (0.5 - inset), width * (0.5 - inset)),
            (split, height),
            np.clip(colour * rng.uniform(0.8, 1.15), 0, 1),
            material=FACADE,
            sides={"top": roof},
        )
    return mesh.build(size)


def tree_crown(rng: np.random.Generator, radius: float, z: tuple[float, float]) -> Mesh:
    """The crown of a tree: three stacked irregular drums, every side in its own shade."""
    mesh = MeshBuilder()
    green = np.array([rng.uniform(0.08, 0.2), rng.uniform(0.28, 0.45), rng.uniform(0.12, 0.3)])
    cuts = np.linspace(z[0], z[1], 4)
    widths = radius * np.array([0.55, 1.0, 0.85, 0.35])
    wobble = rng.uniform(0.82, 1.12, 8)
    for k in range(3):
        mesh.drum(
            rng.normal(0, 0.06 * radius, 2),
            (cuts[k], cuts[k + 1]),
            (widths[k], widths[k + 1]),
            green,
            corners=8,
            material=FOLIAGE,
            shades=rng.uniform(0.75, 1.2, 8),
            top=green * 1.1,
            wobble=wobble,
            reflect=0.4,
        )
    return mesh.build()


def tree_trunk(rng: np.random.Generator, height: float) -> Mesh:
    """A brown drum on the ground, narrower above; height in metres."""
    mesh = MeshBuilder()
    brown = np.array([0.16, 0.22, 0.3]) * rng.uniform(0.6, 1.2)
    thick = rng.uniform(0.1, 0.22)
    mesh.drum((0.0, 0.0), (0.0, height), (thick, thick * 0.75), brown, corners=6, shades=rng.uniform(0.8, 1.2, 6))
    return mesh.build()


def bush(rng: np.random.Generator, radius: float, height: float) -> Mesh:
    """Two stacked drums of leaves on the ground, wider below, in a random green; radius and height in metres."""
    mesh = MeshBuilder()
    green = np.array([rng.uniform(0.08, 0.2), rng.uniform(0.26, 0.42), rng.uniform(0.12, 0.3)])
    for low, high, a, b in ((0.0, 0.55, 0.85, 1.0), (0.55, 1.0, 1.0, 0.5)):
        mesh.drum(
            (0.0, 0.0),
            (low * height, high * height),
            (a * radius, b * radius),
            green,
            material=FOLIAGE,
            shades=rng.uniform(0.75, 1.2, 8),
            top=green * 1.1,
            wobble=rng.uniform(0.85, 1.1, 8),
            reflect=0.4,
        )
    return mesh.build()


def lamp_post(rng: np.random.Generator) -> tuple[Mesh, float]:
    """The pole of a street lamp, and its height."""
    mesh, height = MeshBuilder(), float(rng.uniform(6.0, 8.5))
    mesh.drum((0.0, 0.0), (0.0, height), (0.11, 0.07), np.full(3, rng.uniform(0.2, 0.5)), corners=6)
    return mesh.build(), height


def lamp_arm(height: float, lit: bool) -> Mesh:
    """The arm of a street lamp towards +x, with the lamp; apart from the pole, so that what drives below is ordered by
    height."""
    mesh = MeshBuilder()
    mesh.bar((0.0, 0.0, height + 0.05), (1.9, 0.0, height + 0.25), 0.1, np.full(3, 0.3))
    mesh.box(
        (1.9, 2.6),
        (-0.16, 0.16),
        (height + 0.16, height + 0.32),
        LAMP if lit else np.full(3, 0.5),
        glow=1.0 if lit else 0.0,
    )
    return mesh.build()


def traffic_light(rng: np.random.Generator, state: int) -> Mesh:
    """A signal on a pole that faces +x; ``state`` 0 red, 1 amber, 2 green."""
    mesh = MeshBuilder()
    mesh.drum((0.0, 0.0), (0.0, 2.6), (0.08, 0.08), np.full(3, rng.uniform(0.1, 0.4)), corners=6)
    head = mesh.box((-0.15, 0.15), (-0.2, 0.2), (2.6, 3.7), DARK)
    colours = ((0.1, 0.1, 0.95), (0.1, 0.7, 0.95), (0.35, 0.9, 0.2))
    for k, low in enumerate((0.68, 0.37, 0.06)):
        on = k == state
        mesh.decal(
            head["front"],
            (0.2, 0.8),
            (low, low + 0.25),
            colours[k] if on else np.multiply(colours[k], 0.25),
            glow=0.9 if on else 0.0,
        )
    return mesh.build()


def sign(rng: np.random.Generator) -> Mesh:
    """A road sign or advertising board on a pole."""
    mesh, height = MeshBuilder(), rng.uniform(1.9, 3.0)
    half = rng.uniform(0.25, 0.7)
    mesh.drum((0.0, 0.0), (0.0, height), (0.04, 0.04), np.full(3, 0.45), corners=6)
    board = mesh.box(
        (0.05, 0.1),
        (-half, half),
        (height - rng.uniform(0.5, 1.1), height),
        paint(rng),
        sides={"back": np.full(3, 0.5)},
    )
    mesh.decal(board["front"], (0.12, 0.88), (0.15, 0.85), paint(rng))
    return mesh.build()


def fence(rng: np.random.Generator, length: float, colour: np.ndarray, height: float) -> Mesh:
    """One panel of a fence along x: two posts, rails, or a closed wall."""
    mesh = MeshBuilder()
    if rng.random() < 0.4:
        mesh.box((-length / 2, length / 2), (-0.06, 0.06), (0.0, height), colour)
    else:
        for x in (-length / 2 + 0.05, length / 2 - 0.05):
            mesh.box((x - 0.05, x + 0.05), (-0.05, 0.05), (0.0, height), colour)
        for z in np.linspace(0.25, 0.92, 4) * height:
            mesh.box((-length / 2 + 0.1, length / 2 - 0.1), (-0.025, 0.025), (z - 0.05, z + 0.05), colour)
    return mesh.build()


def street_box(rng: np.random.Generator) -> Mesh:
    """An unlabelled thing on the pavement: bin, cabinet, mail box, bollard, planter, bench."""
    mesh, colour = MeshBuilder(), paint(rng)
    kind = rng.integers(5)
    if kind == 0:
        size = rng.uniform((0.4, 0.4, 0.8), (1.0, 1.6, 1.9))
        faces = mesh.box((-size[0] / 2, size[0] / 2), (-size[1] / 2, size[1] / 2), (0.0, size[2]), colour)
        mesh.decal(faces["front"], (0.15, 0.85), (0.55, 0.9), colour * 0.6)
    elif kind == 1:
        mesh.drum((0.0, 0.0), (0.0, rng.uniform(0.7, 1.2)), (0.28, 0.32), colour, corners=8, top=DARK)
    elif kind == 2:
        mesh.drum((0.0, 0.0), (0.0, rng.uniform(0.7, 1.1)), (0.1, 0.1), colour, corners=6, top=paint(rng))
    elif kind == 3:
        mesh.box((-0.5, 0.5), (-0.5, 0.5), (0.0, 0.55), colour, taper=(-0.08, -0.08, -0.08))
        mesh.drum(
            (0.0, 0.0), (0.56, 1.1), (0.45, 0.25), (0.15, 0.4, 0.2), material=FOLIAGE, shades=rng.uniform(0.7, 1.2, 8)
        )
    else:
        for x in (-0.6, 0.6):
            mesh.box((x - 0.05, x + 0.05), (-0.2, 0.2), (0.0, 0.42), DARK)
        mesh.box((-0.8, 0.8), (-0.22, 0.22), (0.42, 0.5), colour)
        mesh.box((-0.8, 0.8), (-0.26, -0.2), (0.55, 0.9), colour)
    return mesh.build()

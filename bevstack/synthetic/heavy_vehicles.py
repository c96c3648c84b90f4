"""Meshes of trucks, buses, trailers and construction machines. Sizes are (length, width, height) in metres."""

from __future__ import annotations

import numpy as np

from bevstack.synthetic.shapes import Mesh, MeshBuilder
from bevstack.synthetic.vehicles import (
    AMBER_LAMP,
    DARK,
    GLASS,
    RED_LAMP,
    WHITE_LAMP,
    add_lamps,
    add_windows,
    paint,
)


def _axles(mesh: MeshBuilder, xs: list[float], width: float, radius: float) -> None:
    for x in xs:
        for side in (1, -1):
            mesh.wheel(x, side * (width / 2 - 0.16), radius, 0.32, hub=(0.4, 0.4, 0.42))


def truck(rng: np.random.Generator, size: np.ndarray, lit: bool) -> Mesh:
    """A box truck, flatbed, tipper or pick-up: a cab in front of something that carries."""
    length, width, height = size
    mesh, colour, load = MeshBuilder(), paint(rng), paint(rng)
    half = length / 2
    if height < 2.1:  # a pick-up
        radius = 0.4
        _axles(mesh, [half - 0.18 * length, -half + 0.2 * length], width, radius)
        body = mesh.box((-half, half), (-width / 2 + 0.02, width / 2 - 0.02), (2 * radius - 0.1, 0.62 * height), colour)
        add_lamps(mesh, body["front"], body["back"], (0.3, 0.9), lit)
        mesh.decal(body["front"], (0.24, 0.76), (0.2, 0.9), DARK)
        mesh.decal(body["top"], (0.04, 0.96), (0.62, 0.985), np.multiply(colour, 0.3))
        mesh.box((-half + 0.3, half - 0.2), (-width / 2 + 0.35, width / 2 - 0.35), (0.35, 2 * radius - 0.1), DARK)
        cab = mesh.box(
            (-0.08 * length, 0.27 * length),
            (-width / 2 + 0.08, width / 2 - 0.08),
            (0.62 * height, height),
            colour,
            taper=(0.13 * length, 0.03 * length, 0.12),
        )
        mesh.decal(cab["front"], (0.06, 0.94), (0.1, 0.9), GLASS)
        mesh.decal(cab["back"], (0.1, 0.9), (0.15, 0.85), GLASS)
        add_windows(mesh, cab, (0.06, 0.92), (0.12, 0.86))
        return mesh.build(size)
    radius, cab_length = 0.48, float(np.clip(0.28 * length, 1.7, 2.4))
    rear = [-half + 0.2 * length] if length < 7.5 else [-half + 0.14 * length, -half + 0.14 * length + 1.2]
    _axles(mesh, [half - cab_length * 0.6, *rear], width, radius)
    mesh.box((-half + 0.1, half - 0.3), (-width / 2 + 0.4, width / 2 - 0.4), (0.45, 2 * radius), DARK)
    cab_top = min(height, 2.9) * rng.uniform(0.88, 1.0)
    cab = mesh.box(
        (half - cab_length, half),
        (-width / 2 + 0.06, width / 2 - 0.06),
        (2 * radius, cab_top),
        colour,
        taper=(0.25, 0.0, 0.05),
    )
    mesh.decal(cab["front"], (0.05, 0.95), (0.45, 0.9), GLASS)
    mesh.decal(cab["front"], (0.2, 0.8), (0.12, 0.34), DARK)
    for u in ((0.03, 0.18), (0.82, 0.97)):
        mesh.decal(cab["front"], u, (0.04, 0.18), WHITE_LAMP, glow=1.0 if lit else 0.0)
    mesh.decal(cab["left"], (0.15, 0.75), (0.5, 0.88), GLASS)
    mesh.decal(cab["right"], (0.25, 0.85), (0.5, 0.88), GLASS)
    bumper = mesh.box(
        (half - 0.9, half), (-width / 2 + 0.06, width / 2 - 0.06), (0.4, 2 * radius), np.multiply(colour, 0.6)
    )
    mesh.decal(bumper["front"], (0.3, 0.7), (0.2, 0.6), (0.8, 0.8, 0.8))
    end = half - cab_length - 0.12
    kind = rng.choice(["box", "flat", "tipper"], p=[0.6, 0.18, 0.22])
    floor = 2 * radius + 0.08
    if kind == "box":
        cargo = mesh.box((-half, end), (-width / 2, width / 2), (floor, height), load)
        for name in ("left", "right"):
            if rng.random() < 0.5:
                mesh.decal(cargo[name], (0.15, 0.85), (0.3, 0.7), paint(rng))
        mesh.decal(cargo["back"], (0.49, 0.51), (0.03, 0.97), np.multiply(load, 0.4))
        tail = cargo["back"]
    elif kind == "flat":
        cargo = mesh.box((-half, end), (-width / 2, width / 2), (floor, floor + 0.35), load)
        pile = float(rng.uniform(0.4, 1.0)) * (height - floor - 0.35)
        mesh.box(
            (-half + 0.3, end - rng.uniform(0.3, 0.4 * length)),
            (-width / 2 + 0.2, width / 2 - 0.2),
            (floor + 0.35, floor + 0.35 + pile),
            paint(rng),
        )
        mesh.box((end - 0.1, end), (-width / 2 + 0.1, width / 2 - 0.1), (floor + 0.35, height), np.multiply(load, 0.6))
        tail = cargo["back"]
    else:
        cargo = mesh.box((-half, end), (-width / 2, width / 2), (floor, height), load, taper=(-0.0, -0.0, -0.0))
        for name in ("left", "right"):
            for u in np.arange(0.12, 0.95, 0.19):
                mesh.decal(cargo[name], (u, u + 0.035), (0.0, 1.0), np.multiply(load, 0.55))
        mesh.decal(cargo["top"], (0.05, 0.95), (0.03, 0.97), (0.2, 0.28, 0.35))
        tail = cargo["back"]
    for u in ((0.02, 0.12), (0.88, 0.98)):
        mesh.decal(tail, u, (0.01, 0.09), RED_LAMP, glow=0.8 if lit else 0.0)
    return mesh.build(size)


def bus(rng: np.random.Generator, size: np.ndarray, lit: bool, bendy: bool = False) -> Mesh:
    """A city bus: a long body with rows of windows, doors on one side, a sign above the windscreen."""
    length, width, height = size
    mesh, colour = MeshBuilder(), paint(rng)
    stripe, half, radius = paint(rng), length / 2, 0.5
    _axles(mesh, [half - 2.6, -half + 3.0] + ([0.16 * length] if bendy else []), width, radius)
    mesh.box((-half + 0.3, half - 0.3), (-width / 2 + 0.34, width / 2 - 0.34), (0.3, 0.62), DARK)
    spans = [(-half, half)] if not bendy else [(-half, -0.06 * length), (0.04 * length, half)]
    if bendy:
        joint = mesh.box(
            (-0.06 * length, 0.04 * length), (-width / 2 + 0.1, width / 2 - 0.1), (0.45, height - 0.1), DARK
        )
        for name in ("left", "right"):
            for fold in (0.2, 0.4, 0.6, 0.8):
                mesh.decal(joint[name], (fold - 0.03, fold + 0.03), (0, 1), (0.18, 0.18, 0.18))
    for x0, x1 in spans:
        body = mesh.box((x0, x1), (-width / 2, width / 2), (0.62, height), colour, taper=(0.06, 0.02, 0.05))
        panes = max(3, int((x1 - x0) / 1.45))
        for name in ("left", "right"):
            mesh.decal(body[name], (0.0, 1.0), (0.1, 0.22), stripe)
            edges = np.linspace(0.015, 0.985, panes + 1)
            for k, (a, b) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
                is_door = name == "right" and (k == (panes // 2) or (x1 == half and k == panes - 1))
                mesh.decal(
                    body[name],
                    (a + 0.006, b - 0.006),
                    (0.05 if is_door else 0.42, 0.86),
                    GLASS,
                    glow=0.12 if lit else 0.0,
                )
        if x1 == half:
            mesh.decal(body["front"], (0.04, 0.96), (0.32, 0.82), GLASS)
            mesh.decal(body["front"], (0.15, 0.85), (0.86, 0.97), (0.02, 0.05, 0.05))
            mesh.decal(body["front"], (0.25, 0.75), (0.885, 0.945), AMBER_LAMP, glow=0.9)
            for u in ((0.04, 0.18), (0.82, 0.96)):
                mesh.decal(body["front"], u, (0.06, 0.15), WHITE_LAMP, glow=1.0 if lit else 0.0)
            mesh.decal(body["front"], (0.0, 1.0), (0.0, 0.04), DARK)
        if x0 == -half:
            mesh.decal(body["back"], (0.12, 0.88), (0.55, 0.85), GLASS)
            mesh.decal(body["back"], (0.15, 0.85), (0.08, 0.3), np.multiply(colour, 0.45))
            for u in ((0.03, 0.1), (0.9, 0.97)):
                mesh.decal(body["back"], u, (0.12, 0.4), RED_LAMP, glow=0.8 if lit else 0.0)
    return mesh.build(size)


def trailer(rng: np.random.Generator, size: np.ndarray, lit: bool) -> Mesh:
    """A trailer without its tractor: a box, a curtain-sider, a container on a skeleton or a low flat one."""
    length, width, height = size
    mesh, colour = MeshBuilder(), paint(rng)
    half, radius = length / 2, 0.48 if length > 6 else 0.34
    axles = [-half + 0.12 * length + 1.25 * k for k in range(3 if length > 9 else 2 if length > 6 else 1)]
    _axles(mesh, axles, width, radius)
    floor = 2 * radius + 0.12
    mesh.box((-half + 0.2, half - 0.2), (-0.45, 0.45), (0.55 * floor, floor), DARK)
    for side in (1, -1):
        mesh.box(
            (half - 0.26 * length, half - 0.26 * length + 0.15),
            (side * 0.8 - 0.08, side * 0.8 + 0.08),
            (0.0, 0.5 * floor),
            DARK,
        )
    if rng.random() < 0.82 or height > 3:
        body = mesh.box((-half, half), (-width / 2, width / 2), (floor, height), colour)
        style = rng.integers(3)
        for name in ("left", "right"):
            if style == 0:
                mesh.decal(body[name], (0.2, 0.8), (0.3, 0.75), paint(rng))
            elif style == 1:
                for u in np.arange(0.03, 0.97, 0.055):
                    mesh.decal(body[name], (u, u + 0.02), (0.02, 0.98), np.multiply(colour, 0.7))
            mesh.decal(body[name], (0.0, 1.0), (0.0, 0.05), np.multiply(colour, 0.4))
        mesh.decal(body["back"], (0.485, 0.515), (0.02, 0.98), np.multiply(colour, 0.45))
    else:
        body = mesh.box((-half, half), (-width / 2, width / 2), (floor, floor + 0.3), colour)
        mesh.box(
            (-half + 0.1, half * rng.uniform(-0.2, 0.8)),
            (-width / 2 + 0.15, width / 2 - 0.15),
            (floor + 0.3, height),
            paint(rng),
        )
    for u in ((0.03, 0.13), (0.87, 0.97)):
        mesh.decal(body["back"], u, (0.01, 0.1), RED_LAMP, glow=0.8 if lit else 0.0)
    return mesh.build(size)


def construction(rng: np.random.Generator, size: np.ndarray, lit: bool) -> Mesh:
    """An excavator or a wheel loader: tracks or big wheels, a cab, an engine, an arm with a bucket."""
    length, width, height = size
    mesh, colour = MeshBuilder(), paint(rng)
    half = length / 2
    arm_colour = np.multiply(colour, 0.8) if rng.random() < 0.6 else paint(rng)
    if rng.random() < 0.55:  # excavator
        back, front = -half, half - 0.42 * length
        for side in (1, -1):
            track = mesh.box(
                (back, front),
                (side * width / 2 - (0.55 if side > 0 else 0.0), side * width / 2 + (0.55 if side < 0 else 0)),
                (0.0, 0.8),
                (0.1, 0.1, 0.11),
                taper=(0.25, 0.25, 0.0),
            )
            for name in ("left", "right"):
                mesh.decal(track[name], (0.08, 0.92), (0.3, 0.65), (0.24, 0.24, 0.25))
        mesh.box((back + 0.5, front - 0.5), (-width / 2 + 0.6, width / 2 - 0.6), (0.3, 0.95), DARK)
        engine = mesh.box(
            (back, back + 0.3 * length), (-width / 2 + 0.05, width / 2 - 0.05), (1.0, 1.0 + 0.33 * height), colour
        )
        mesh.decal(engine["back"], (0.15, 0.85), (0.25, 0.75), DARK)
        cab = mesh.box(
            (back + 0.31 * length, front - 0.1),
            (0.05, width / 2 - 0.05),
            (1.0, min(height, 2.95)),
            colour,
            taper=(0.2, 0.0, 0.06),
        )
        mesh.decal(cab["front"], (0.08, 0.92), (0.2, 0.93), GLASS)
        mesh.decal(cab["left"], (0.08, 0.92), (0.35, 0.92), GLASS)
        mesh.decal(cab["right"], (0.08, 0.92), (0.35, 0.92), GLASS)
        mesh.decal(cab["back"], (0.1, 0.9), (0.4, 0.9), GLASS)
        pivot = (back + 0.36 * length, -0.4, 1.3)
        elbow = (half - 0.28 * length, -0.4, height - 0.15)
        tip = (half - 0.08 * length, -0.4, 0.9)
        mesh.bar(pivot, elbow, 0.42, arm_colour, wide=0.35)
        mesh.bar((elbow[0] + 0.1, -0.4, elbow[2] - 0.05), tip, 0.3, arm_colour, wide=0.3)
        mesh.box((half - 0.14 * length, half), (-0.95, 0.15), (0.1, 0.95), (0.2, 0.2, 0.21), taper=(0.3, 0.1, 0.05))
    else:  # wheel loader
        radius = 0.24 * height
        for x in (half - 0.36 * length, -half + 0.2 * length):
            for side in (1, -1):
                mesh.wheel(x, side * (width / 2 - 0.25), radius, 0.48, hub=colour)
        mesh.box(
            (-half + 0.3, half - 0.25 * length),
            (-width / 2 + 0.55, width / 2 - 0.55),
            (0.5, 2 * radius * 0.8),
            np.multiply(colour, 0.6),
        )
        engine = mesh.box(
            (-half, -half + 0.36 * length),
            (-width / 2 + 0.5, width / 2 - 0.5),
            (2 * radius * 0.8, 0.72 * height),
            colour,
            taper=(0.0, 0.1, 0.08),
        )
        mesh.decal(engine["back"], (0.15, 0.85), (0.15, 0.85), DARK)
        cab = mesh.box(
            (-half + 0.37 * length, -half + 0.58 * length),
            (-width / 2 + 0.55, width / 2 - 0.55),
            (2 * radius * 0.8, height),
            colour,
            taper=(0.1, 0.05, 0.08),
        )
        for name in ("front", "back", "left", "right"):
            mesh.decal(cab[name], (0.08, 0.92), (0.3, 0.92), GLASS)
        for side in (1, -1):
            mesh.bar(
                (-half + 0.6 * length, side * 0.45, 0.95),
                (half - 0.14 * length, side * 0.45, 0.65),
                0.28,
                arm_colour,
                wide=0.18,
            )
        mesh.box(
            (half - 0.16 * length, half),
            (-width / 2, width / 2),
            (0.05, 1.0),
            (0.22, 0.22, 0.24),
            taper=(0.35, 0.0, 0.0),
        )
    return mesh.build(size)

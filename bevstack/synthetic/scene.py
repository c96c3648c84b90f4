"""One scene from its seed: world, traffic, sensor files, and the rows it adds to the tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from bevstack.synthetic.cameras import (
    build_rig,
)
from bevstack.synthetic.can_bus import write_can_bus
from bevstack.synthetic.ground import paint_ground
from bevstack.synthetic.lanes import Lane, build_lanes
from bevstack.synthetic.layout import draw_district
from bevstack.synthetic.map_expansion import map_records
from bevstack.synthetic.plan import District
from bevstack.synthetic.recorder import KEYFRAME_S, SceneRecorder, SceneTask
from bevstack.synthetic.renderer import Renderer
from bevstack.synthetic.scenery import lamp_light, place_scenery
from bevstack.synthetic.things import Thing, ThingStack
from bevstack.synthetic.traffic import Traffic, populate
from bevstack.synthetic.weather import Lens, draw_weather, paint_panorama

RIGHT_HAND_LOCATION = "boston-seaport"  # where traffic keeps right; it keeps left in the others


@dataclass
class World:
    """A scene before anything is written: its ground plan, its traffic, and what draws it."""

    district: District
    lanes: list[Lane]
    traffic: Traffic
    stack: ThingStack
    renderer: Renderer


def build_world(task: SceneTask, rng: np.random.Generator) -> World:
    """Draw the whole world of a scene: district, traffic with its motion, scenery, light, ground, rig."""
    district = draw_district(rng, 1 if task.location == RIGHT_HAND_LOCATION else -1)
    lanes = build_lanes(district)
    weather = draw_weather(rng, task.condition)
    seconds = (task.frames - 1) * KEYFRAME_S
    traffic = populate(rng, district, lanes, seconds, weather.night or weather.wet, task.rare)
    way = traffic.ego_poses(np.linspace(0, seconds, max(4, int(seconds) * 2)))[:, :2]
    settled = traffic.poses(np.array([0.0]))[0, :, :2]
    scenery, lamps = place_scenery(rng, district, way, settled, weather.night)
    stack = ThingStack([Thing(agent.mesh, agent=k) for k, agent in enumerate(traffic.agents)] + scenery, rng)
    light = lamp_light(lamps, district.size, rng) if weather.night else None
    texture = paint_ground(district, rng, weather.wet, light)
    rig = build_rig(rng, *task.image_size, task.rig, task.cameras)
    renderer = Renderer(
        rig,
        stack,
        texture,
        paint_panorama(rng, weather),
        weather,
        Lens(rng, weather, *task.image_size),
        rng,
        light,
        district.size,
    )
    return World(district, lanes, traffic, stack, renderer)


def make_scene(task: SceneTask) -> dict[str, object]:
    """Render a scene into ``task.root`` and return its table rows (``tables``), map records (``map``) and number of
    ``images``.

    Everything is drawn from ``default_rng([seed, index])``: neither the number of workers nor other scenes matter.
    """
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # one process a core
    try:
        return _make_scene(task)
    finally:
        cv2.setNumThreads(threads)


def _make_scene(task: SceneTask) -> dict[str, object]:
    rng = np.random.default_rng([task.seed, task.index])
    world = build_world(task, rng)
    rows = SceneRecorder(task, world.traffic, world.stack, world.renderer, rng).write()
    rows["map"] = map_records(world.district, world.lanes, task.origin, task.name)
    seconds = (task.frames - 1) * KEYFRAME_S
    write_can_bus(
        Path(task.root) / "can_bus", task.name, world.traffic, np.asarray(task.origin), task.start_us, seconds
    )
    return rows

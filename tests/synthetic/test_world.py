"""The parts of the synthetic world: occlusion, visibility, lidar, motion, layout. Expected values are closed forms or
brute force."""

from __future__ import annotations

import numpy as np
import pytest

from bevstack.synthetic.cameras import LIDAR_TRANSLATION, build_rig, quaternion_of, yaw_matrix
from bevstack.synthetic.ground import GroundTexture
from bevstack.synthetic.layout import draw_district
from bevstack.synthetic.lidar import NOISE_M, Lidar, count_points
from bevstack.synthetic.occlusion import hides, paint_order
from bevstack.synthetic.plan import DISTRICT_SIZE_M, without_holes
from bevstack.synthetic.recorder import SceneTask, visibility_level
from bevstack.synthetic.renderer import Renderer
from bevstack.synthetic.scene import build_world
from bevstack.synthetic.shapes import Mesh, MeshBuilder
from bevstack.synthetic.things import Thing, ThingStack
from bevstack.synthetic.weather import Lens, draw_weather, paint_panorama


def block(size_lwh: tuple[float, float, float]) -> Mesh:
    """A plain box on the ground."""
    mesh = MeshBuilder()
    length, width, height = size_lwh
    mesh.box((-length / 2, length / 2), (-width / 2, width / 2), (0.0, height), (0.5, 0.5, 0.5))
    return mesh.build()


def plain_renderer(things: list[Thing], width: int = 320, height: int = 180) -> Renderer:
    """A renderer of given things on grey ground under a plain sky."""
    rng = np.random.default_rng(0)
    weather = draw_weather(rng, "day")
    levels = [np.full((64, 64, 3), 120, np.uint8)] * 9
    texture = GroundTexture(levels, [DISTRICT_SIZE_M / 64] * 9)
    return Renderer(
        build_rig(rng, width, height),
        ThingStack(things, rng),
        texture,
        paint_panorama(rng, weather),
        weather,
        Lens(rng, weather, width, height),
        rng,
        None,
        DISTRICT_SIZE_M,
    )


def in_order(
    centre: np.ndarray, yaw: np.ndarray, half: np.ndarray, z: np.ndarray, eye: np.ndarray, rng: np.random.Generator
) -> int:
    """Cast random rays; every ray that meets two boxes must meet the one drawn later first. Returns how many such pairs
    there were."""
    order = paint_order(hides(centre, yaw, half, z, eye), np.hypot(*(centre - eye[:2]).T))
    place = np.argsort(order)
    checked = 0
    for _ in range(4000):
        bearing, rise = rng.uniform(-0.8, 0.8), rng.uniform(-0.12, 0.12)
        ray = np.array([np.cos(bearing), np.sin(bearing), rise])
        first, last = np.full(len(yaw), -np.inf), np.full(len(yaw), np.inf)
        c, s = np.cos(yaw), np.sin(yaw)
        delta = eye[:2] - centre
        for d, o, low, high in (
            (c * ray[0] + s * ray[1], c * delta[:, 0] + s * delta[:, 1], -half[:, 0], half[:, 0]),
            (-s * ray[0] + c * ray[1], -s * delta[:, 0] + c * delta[:, 1], -half[:, 1], half[:, 1]),
            (np.full(len(yaw), ray[2]), np.full(len(yaw), eye[2]), z[:, 0], z[:, 1]),
        ):
            t = np.sort(np.stack([(low - o) / d, (high - o) / d]), axis=0)
            first, last = np.maximum(first, t[0]), np.minimum(last, t[1])
        met = np.flatnonzero((first < last) & (first > 0))
        for i in met:
            for j in met:
                if first[i] < first[j] - 1e-6:
                    assert place[i] > place[j], f"box {i} hides box {j} but is drawn before it"
                    checked += 1
    return checked


def test_painter_order_never_hides_the_nearer_box() -> None:
    # expected: brute-force ray casting against random boxes that do not overlap, long walls and raised boxes among them
    rng = np.random.default_rng(5)
    checked = 0
    for _ in range(6):
        centre, yaw, half, z = [], [], [], []
        while len(centre) < 30:
            spot, size = rng.uniform((4, -40), (80, 40)), rng.uniform(0.2, 1.5, 2) * (rng.choice([1, 8]), 1)
            low = rng.choice([0.0, 0.0, 3.0])
            if all(
                np.hypot(*(spot - other)) > np.hypot(*size) + np.hypot(*h)
                for other, h in zip(centre, half, strict=True)
            ):
                centre.append(spot)
                yaw.append(rng.uniform(-np.pi, np.pi))
                half.append(size)
                z.append((low, low + rng.uniform(0.5, 4)))
        checked += in_order(
            np.array(centre), np.array(yaw), np.array(half), np.array(z), np.array([0.0, 0.0, 1.5]), rng
        )
    assert checked > 500


@pytest.mark.parametrize(("share", "level"), [(0.0, "4"), (0.3, "3"), (0.5, "2"), (0.75, "1")])
def test_visibility_is_the_unhidden_share(share: float, level: str) -> None:
    # expected: a screen at half the distance covers exactly the wished share of a flat target's width
    distance, wide = 24.0, 4.0
    ego = np.array([100.0, 100.0, 0.0])
    nose = ego[:2] + [1.7, 0.0]  # about the front camera
    target = Thing(block((0.02, wide, 2.0)), (nose[0] + distance, nose[1], 0.0))
    things = [target]
    if share:
        # by similar triangles, a screen at half the distance that spans y in [a, b] / 2 covers [a, b] of the target
        left = wide / 2
        right = wide / 2 - share * wide
        things.append(
            Thing(
                block((0.02, 12.0 + (left - right) / 2, 6.0)),
                (nose[0] + distance / 2, nose[1] + right / 2 + (12.0 + (left - right) / 2) / 2, 0.0),
            )
        )
    renderer = plain_renderer(things, 640, 360)
    renderer.stack.agents[:] = np.arange(len(things))
    poses = renderer.stack.still
    _, owners, whole, seen = renderer.render(0, ego, poses, np.zeros(len(things)), np.random.default_rng(0))
    assert seen[0] == np.count_nonzero(owners == 0)
    assert seen[0] / whole[0] == pytest.approx(1 - share, abs=0.06)
    assert visibility_level(int(seen[0]), int(whole[0])) == level


def test_visibility_levels_are_those_of_nuscenes() -> None:
    # expected: nuScenes' bins 0-40, 40-60, 60-80, 80-100 %
    assert [visibility_level(n, 100) for n in (0, 39, 40, 59, 60, 79, 80, 100)] == [
        "1",
        "1",
        "2",
        "2",
        "3",
        "3",
        "4",
        "4",
    ]
    assert visibility_level(0, 0) == "1"


def task(condition: str = "day", location: str = "boston-seaport", index: int = 0) -> SceneTask:
    """A small scene."""
    return SceneTask("", index, 11, "scene-2001", location, (20.0, 20.0), condition, 2, (224, 126), False, 0)


@pytest.fixture(scope="module")
def world():  # noqa: ANN201
    """One whole world."""
    return build_world(task(), np.random.default_rng([11, 0]))


def test_projected_boxes_hold_the_rendered_pixels(world) -> None:  # noqa: ANN001
    # expected: the pinhole projection of the annotated box, one pixel of rasterisation aside, contains every pixel of
    # its thing
    ego = world.traffic.ego_poses(np.array([0.0]))[0]
    poses = world.stack.poses(world.traffic.poses(np.array([0.0]))[0])
    found = 0
    for index, camera in enumerate(world.renderer.rig):
        _, owners, _, _ = world.renderer.render(
            index, ego, poses, np.zeros(world.stack.count), np.random.default_rng(0)
        )
        turn = yaw_matrix(ego[2])
        eye = turn @ camera.translation + [ego[0], ego[1], 0.0]
        for k, agent in enumerate(world.traffic.agents):
            rows, columns = np.nonzero(owners == k)
            if not len(rows):
                continue
            signs = np.array([(a, b, c) for a in (-1, 1) for b in (-1, 1) for c in (0, 1)])
            half = agent.size_lwh * (0.5, 0.5, 1.0)
            corners = signs * half @ yaw_matrix(poses[k, 2]).T + [*poses[k, :2], 0.0]
            seen = (corners - eye) @ (turn @ camera.rotation)
            if seen[:, 2].min() < 0.3:
                continue
            pixel = seen[:, :2] / seen[:, 2:] * camera.intrinsic[[0, 1], [0, 1]] + camera.intrinsic[:2, 2]
            low, high = pixel.min(0) - 1.5, pixel.max(0) + 1.5
            assert columns.min() + 0.5 >= low[0] and columns.max() + 0.5 <= high[0], agent.category
            assert rows.min() + 0.5 >= low[1] and rows.max() + 0.5 <= high[1], agent.category
            found += 1
    assert found > 15


def test_meshes_fill_their_boxes(world) -> None:  # noqa: ANN001
    # expected: a mesh stands on the ground, does not leave its annotated box, and reaches at least 85 % of its width
    # and height
    for agent in world.traffic.agents:
        low, high = agent.mesh.vertices.min(0), agent.mesh.vertices.max(0)
        assert low[2] == pytest.approx(0.0, abs=1e-4)
        half = agent.size_lwh / 2
        assert (
            (high[:2] <= half[:2] + 1e-3).all()
            and (low[:2] >= -half[:2] - 1e-3).all()
            and high[2] <= agent.size_lwh[2] + 1e-3
        )
        assert (high - low)[1] > 0.85 * agent.size_lwh[1] and high[2] > 0.85 * agent.size_lwh[2]


def test_class_is_not_readable_from_colour() -> None:
    # expected: one colour distribution for all classes; means of any two differ by less than the spread within one
    from bevstack.synthetic.agents import SIZES, give_shape, make_agent

    def body(mesh: Mesh) -> np.ndarray:  # the colour of the largest face
        corner = mesh.vertices[mesh.faces[:, :4]]
        area = np.linalg.norm(np.cross(corner[:, 2] - corner[:, 0], corner[:, 3] - corner[:, 1]), axis=1)
        return mesh.colours[np.argmax(area)]

    rng = np.random.default_rng(2)
    found = []
    for category in (
        "vehicle.car",
        "vehicle.truck",
        "vehicle.bus.rigid",
        "vehicle.trailer",
        "movable_object.trafficcone",
        "movable_object.barrier",
    ):
        assert category in SIZES
        colours = [body(give_shape(rng, make_agent(rng, category), False).mesh) for _ in range(80)]
        found.append((np.mean(colours, 0), np.std(colours, 0)))
    for mean, spread in found:
        assert (spread > 0.15).all()
        for other, _ in found:
            assert (np.abs(mean - other) < 0.7 * spread).all()


def test_agents_do_not_start_in_one_another(world) -> None:  # noqa: ANN001
    # expected: at the first keyframe no two vehicles' centres are nearer than half the smaller one's width
    vehicles = [k for k, a in enumerate(world.traffic.agents) if a.category.startswith("vehicle")]
    poses = world.traffic.poses(np.array([0.0]))[0][vehicles]
    gaps = np.hypot(*(poses[:, None, :2] - poses[None, :, :2]).transpose(2, 0, 1)) + np.eye(len(vehicles)) * 99
    assert gaps.min() > 0.3


def test_lidar_meets_a_wall_where_it_stands() -> None:
    # expected: closed form: a wall whose near face is 10 m ahead of the sensor returns y = 10 there, ground elsewhere
    ego = np.array([50.0, 60.0, 0.6])
    ahead = np.array([np.cos(ego[2]), np.sin(ego[2])])
    centre = ego[:2] + ahead * (LIDAR_TRANSLATION[0] + 10.0 + 0.5)
    stack = ThingStack([Thing(block((1.0, 8.0, 3.0)), (*centre, ego[2]))], np.random.default_rng(0))
    points, thing = Lidar().scan(ego, stack, stack.still, np.random.default_rng(1))
    wall = points[thing == 0]
    assert len(wall) > 500 and np.abs(wall[:, 1] - 10.0).max() < 6 * NOISE_M * 1.2 and np.abs(wall[:, 0]).max() < 4.1
    assert wall[:, 2].max() < 3.0 - LIDAR_TRANSLATION[2] + 0.1
    ground = points[thing == -1]
    assert np.abs(ground[:, 2] + LIDAR_TRANSLATION[2]).max() < 0.1
    behind = (np.abs(ground[:, 0]) < 2.0) & (ground[:, 1] > 12.0) & (ground[:, 1] < 25.0)
    assert not behind.any()  # in the wall's shadow


def test_count_points_by_brute_force() -> None:
    rng = np.random.default_rng(3)
    points = rng.uniform(-5, 5, (3000, 5)).astype(np.float32)
    centre, size, yaw = rng.uniform(-3, 3, (20, 3)), rng.uniform(0.5, 6, (20, 3)), rng.uniform(-4, 4, 20)
    expected = [
        int((np.abs((points[:, :3] - c) @ yaw_matrix(a)) <= s / 2).all(1).sum())
        for c, s, a in zip(centre, size, yaw, strict=True)
    ]
    assert count_points(points, centre, size, yaw).tolist() == expected


@pytest.mark.parametrize("seed", range(4))
def test_layouts_are_sound(seed: int) -> None:
    # expected: polygons valid, inside the district, walkways and car parks off the road, no holes where the devkit
    # would erase
    district = draw_district(np.random.default_rng(seed), 1)
    area = [
        *district.drivable,
        *district.walkways,
        *(c.polygon for c in district.crossings),
        *(s[0] for s in district.stop_lines),
    ]
    for polygon in area:
        assert polygon.is_valid and min(polygon.bounds) >= -1e-6 and max(polygon.bounds) <= DISTRICT_SIZE_M + 1e-6
    for walkway in district.walkways:
        assert not walkway.interiors
        assert sum(walkway.intersection(d).area for d in district.drivable) < 0.12 * walkway.area
    assert district.road_dividers or all(not road.backward for road in district.roads)


def test_without_holes_keeps_the_area() -> None:
    from shapely.geometry import Point

    ring = Point(0, 0).buffer(10).difference(Point(2, 1).buffer(3))
    pieces = without_holes(ring)
    assert all(not piece.interiors for piece in pieces)
    assert sum(piece.area for piece in pieces) == pytest.approx(ring.area, rel=1e-6)


def test_night_is_dark() -> None:
    # expected: the six images of a night are on average less than 60 % as bright as those of a day
    bright = {}
    for kind in ("day", "night"):
        world = build_world(task(kind), np.random.default_rng([11, 0]))
        ego = world.traffic.ego_poses(np.array([0.0]))[0]
        poses = world.stack.poses(world.traffic.poses(np.array([0.0]))[0])
        images = [
            world.renderer.render(k, ego, poses, np.zeros(world.stack.count), np.random.default_rng(0))[0]
            for k in range(6)
        ]
        bright[kind] = np.mean(images)
    assert bright["night"] < 0.6 * bright["day"]


def test_quaternion_of_against_pyquaternion() -> None:
    from pyquaternion import Quaternion

    for _ in range(50):
        truth = Quaternion.random()
        found = Quaternion(quaternion_of(truth.rotation_matrix))
        assert Quaternion.absolute_distance(truth, found) < 1e-7

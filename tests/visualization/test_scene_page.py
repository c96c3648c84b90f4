"""The page of a clip: what it holds, and what a real browser shows of it when it is clicked."""

from __future__ import annotations

import base64
import json
import re

import cv2
import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData

from bevstack.geometry import BEVGrid
from bevstack.structures import BEVDataSample, BEVRaster
from bevstack.structures.attention import AttendedPlaces
from bevstack.structures.boxes import lidar_boxes
from bevstack.structures.matches import DetectionMatches
from bevstack.visualization.scene_page import ScenePage
from tests.browser import Browser, needs_chromium
from tests.visualization.scenes import view

CLASSES = ("car", "pedestrian", "</script><b>")
GRID = BEVGrid((4, 4), (-10.0, 10.0), (-10.0, 10.0))
# label, x, y, score: found 0.5 m off; a pedestrian seen where a car is; a false alarm; one below every threshold here
PREDICTED = [(0, 0.0, 10.5, 0.9), (1, 5.0, 10.0, 0.8), (0, -20.0, 5.0, 0.6), (0, 30.0, 5.0, 0.01)]
TRUTH = [(0, 0.0, 10.0), (0, 5.0, 11.0), (1, -30.0, -12.0)]
MATCHES = DetectionMatches(
    np.array([0, -1, -1, -1]), np.array([0.5, np.nan, np.nan, np.nan]), np.ones(4, bool), np.ones(3, bool)
)


def instances(rows, **more):
    table = torch.tensor([[row[1], row[2], -1, 4, 2, 1.5, np.pi / 2, 0, 3] for row in rows])
    return InstanceData(bboxes_3d=lidar_boxes(table), labels_3d=torch.tensor([row[0] for row in rows]), **more)


def sample(place: int) -> BEVDataSample:
    made = BEVDataSample(
        metainfo={"classes": CLASSES, "scene_name": "scene-1", "token": f"t{place}", "timestamp_s": 100 + place / 2}
    )
    scores = torch.tensor([row[3] for row in PREDICTED])
    made.pred_instances_3d = instances(PREDICTED, scores_3d=scores, attribute_names=["vehicle.moving", "", "", ""])
    made.gt_instances_3d = instances(TRUTH, instance_ids=["a", "b", "c"])
    made.gt_instances_3d.bboxes_3d.tensor[2, 7:] = torch.nan
    drivable = torch.zeros(1, *GRID.shape)
    drivable[0, :, 2:] = 1  # the half to the right of the car
    # A cell 10 m ahead, which looks at the middle of the front camera (weight 0.75) and of the rear one (0.25).
    lattice = AttendedPlaces(
        torch.tensor([[0.0, 10.0], [0.0, -10.0]]),
        torch.tensor([[0, 1], [-1, -1]]),
        torch.zeros(2, 2, 1, 2),
        torch.tensor([[[0.75], [0.25]], [[0.0], [0.0]]]),
        torch.tensor([[[[3.0, 9.0]], [[0.0, 0.0]]]] * 2),
        torch.tensor([[[0.5], [0.5]]] * 2),
    )
    made.set_field(lattice, "attention_lattice")
    made.set_field({"map": BEVRaster(drivable, ("drivable_area",), GRID)}, "pred_rasters")
    return made


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "clip.html"
    made = ScenePage("a </title> & b", window_px=100)
    for place in range(3):
        made.add(sample(place), [view(), view(-90, "CAM_BACK")], MATCHES if place == 1 else None)
    assert made.write(path) == path.stat().st_size
    return path


def content(path) -> dict:
    text = path.read_text()
    (data,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', text, re.S)
    return json.loads(data)


def test_nothing_is_fetched_from_anywhere(page):
    # Expected: no address in the page but those that hold their content, and the title cannot end its element.
    text = page.read_text()
    assert not re.findall(r"""://|\b(?:src|href)\s*=\s*["']|\burl\(|@import|\bfetch\(|\bimport\(""", text)
    assert set(re.findall(r'"(data:image/\w+)', text)) == {f"data:image/{kind}" for kind in ("png", "jpeg", "webp")}
    assert "<title>a &lt;/title> &amp; b</title>" in text and "{{" not in re.sub(r"\$\{\{?", "", text)
    assert text.count("</script>") == 2


def test_boxes_say_what_is_known_of_them(page):
    first, second, _ = content(page)["moments"]
    assert [box["row"] for box in second["predicted"]] == [0, 1, 2]  # the last one's score is below the slider
    found = second["predicted"][0]
    assert found["found"] == 0 and found["distance_m"] == 0.5 and found["attribute"] == "vehicle.moving"
    assert found["box"] == [0, 10.5, -1, 4, 2, 1.5, 1.571, 0, 3]
    assert "found" not in second["predicted"][1] and second["predicted"][1]["counted"]
    assert second["truth"][2]["box"][7:] == [None, None] and second["truth"][1]["identity"] == "b"
    assert not first["matched"] and "counted" not in first["truth"][0]


def test_masks_lie_where_the_boxes_do(page):
    # Expected: 100 px show 102.4 m; the mask covers x 0..10 m and y -10..10 m, so columns 50..60 and rows 40..60.
    (raster,) = content(page)["moments"][0]["rasters"]
    assert (raster["kind"], raster["name"]) == ("predicted", "map")
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(raster["image"].split(",")[1]), np.uint8), -1)
    rows, columns = np.nonzero(picture[..., 3])
    assert picture.shape == (100, 100, 4)
    np.testing.assert_allclose([rows.min(), rows.max() + 1, columns.min(), columns.max() + 1], [40, 60, 50, 60], atol=1)


@pytest.fixture(scope="module")
def browser(page):
    with Browser(1400, 1000) as opened:
        opened.open(page)
        opened.value("new Promise(done => setTimeout(done, 300))")
        yield opened
        assert opened.errors == []
        assert all(url.startswith(("data:", "file:")) for url in opened.requests)


def set_slider(browser, name, value):
    browser.value(f"(() => {{const s = at('{name}'); s.value = {value}; s.dispatchEvent(new Event('input'))}})()")


@needs_chromium
def test_the_page_projects_as_the_pictures_do(browser):
    # Expected: focal length 200 px and principal point (200, 100): 10 m ahead, 1 m right, 1 m up is 20 px right and up.
    camera = "content.moments[0].cameras[0]"
    point = browser.value(f"pixel({camera}, transformed({camera}.camera_from_bev, [1, 10, 1]))")
    assert point == pytest.approx([220, 80])
    # The front left corner of a 4 x 2 box that looks along +y is 2 m ahead and 1 m left of its middle.
    assert browser.value("corners([0, 10, 0, 4, 2, 1, Math.PI / 2])[0]") == pytest.approx([-1, 12, 0])
    # A segment from 1 m behind to 1 m ahead of a camera is cut at 0.1 m.
    assert browser.value("clipped([[0, 0, -1], [0, 0, 1]], false)") == [[0, 0, pytest.approx(0.1)], [0, 0, 1]]
    # 102.4 m are 720 px wide, forward up: 10 m ahead lies 70.3 px above the middle; turned by a quarter, +x is up.
    assert browser.value("windowPixel(content.window, 720, 0, 10)") == pytest.approx([360, 360 - 720 * 10 / 102.4])
    turned = "windowPixel({...content.window, quarter_turns: 1}, 720, 10, 0)"
    assert browser.value(turned) == pytest.approx([360, 360 - 720 * 10 / 102.4])


@needs_chromium
def test_errors_are_stepped_through_worst_first(browser):
    # Expected, by hand, of the one moment with matches: the car taken for a pedestrian (score 0.8), the false alarm
    # (0.6), the pedestrian missed 32.3 m away (1 - 32.3 / 60 = 0.46).
    set_slider(browser, "score", 0.3)
    listed = "[...document.querySelectorAll('#errors li')].map(line => line.textContent)"
    assert browser.value(listed) == [
        "2  car taken for pedestrian, score 0.80",
        "2  false alarm: car, score 0.60",
        "2  miss: pedestrian, 32 m away",
    ]
    browser.click("#next_error")
    assert browser.value("[state.time, state.chosen]") == [1, 0]
    browser.key("n", 78)
    assert browser.value("[state.time, document.querySelector('#errors .chosen').textContent]") == [
        1,
        "2  false alarm: car, score 0.60",
    ]
    browser.click("#previous_error")
    browser.key("p", 80)
    assert browser.value("state.chosen") == 2  # round the end
    browser.click("#kinds input[name=miss]")
    assert browser.value(f"{listed}.length") == 2
    browser.click("#kinds input[name=miss]")
    # Above 0.85 only the box that found its car is left: two misses, and nothing to confuse.
    set_slider(browser, "score", 0.85)
    assert browser.value(f"{listed}.map(line => line.split(',')[0])") == ["2  miss: car", "2  miss: pedestrian"]
    # Above 0.9 none is left.
    set_slider(browser, "score", 0.95)
    assert browser.value(f"{listed}.length") == 3
    set_slider(browser, "score", 0.3)


@needs_chromium
def test_a_click_from_above_shows_what_the_cell_looks_at(browser):
    # Expected: a magenta disc in the middle of both cameras, in the rear one a third of the area; one from above at
    # (3, 9), where the cell looks back; a second click, and they are gone.
    def magenta(selector):
        data = f"document.querySelector('{selector}').getContext('2d')"
        size = f"document.querySelector('{selector}')"
        pixels = f"{data}.getImageData(0, 0, {size}.width, {size}.height).data"
        count = f"(() => {{const p = {pixels}; let n = 0; for (let i = 0; i < p.length; i += 4)"
        return browser.value(count + " n += p[i] === 230 && p[i + 1] === 0 && p[i + 2] === 126; return n})()")

    cameras = [f"canvas[data-camera={name}]" for name in ("CAM_FRONT", "CAM_BACK")]
    assert [magenta(one) for one in (*cameras, "#bev")] == [0, 0, 0]
    place = browser.value(
        "(() => {const r = at('bev').getBoundingClientRect(), s = r.width / 720;"
        "const p = windowPixel(content.window, 720, 0.5, 8); return [r.left + p[0] * s, r.top + p[1] * s]})()"
    )
    for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
        browser.mouse(kind, *place)
    assert browser.value("state.cell") == pytest.approx([0.5, 8], abs=0.2)
    assert browser.value("askedCell(content.moments[state.time]).at") == [0, 10]
    front, back = (magenta(one) for one in cameras)
    assert front == pytest.approx(3.14 * 5**2, rel=0.4) and back == pytest.approx(front / 3, rel=0.5)
    spot = "windowPixel(content.window, 720, 3, 9).map(Math.round)"
    assert browser.value(f"[...at('bev').getContext('2d').getImageData(...{spot}, 1, 1).data].slice(0, 3)") == [
        230,
        0,
        126,
    ]
    for kind in ("mousePressed", "mouseReleased"):
        browser.mouse(kind, *place)
    assert [magenta(one) for one in (*cameras, "#bev")] == [0, 0, 0]


@needs_chromium
def test_an_address_with_a_token_opens_that_sample(browser):
    # Expected: what the report's pictures link to; a token that the page does not hold changes nothing.
    for token, time in (("t2", 2), ("nowhere", 2), ("t0", 0)):
        heard = "addEventListener('hashchange', () => done(), {once: true});"
        browser.value(f"new Promise(done => {{{heard} location.hash = '{token}'}})")
        assert browser.value("state.time") == time


@needs_chromium
def test_time_heads_and_a_box_under_the_pointer(browser):
    # Expected: what is shown follows slider, keys and boxes ticked; a pointer on the found car tells of it.
    set_slider(browser, "time", 2)
    assert browser.value("at('moment').textContent").split() == ["3", "/", "3", "scene-1", "1.0", "s"]
    browser.value("document.activeElement.blur()")
    browser.key("ArrowLeft", 37)
    assert browser.value("state.time") == 1 and browser.value("drawn.length") == 3 + 3
    browser.click("#heads input[name='true boxes']")
    assert browser.value("drawn.map(entry => entry.box.score)") == pytest.approx([0.9, 0.8, 0.6])
    place = browser.value(
        "(() => {const r = at('bev').getBoundingClientRect(), s = r.width / 720;"
        "const p = windowPixel(content.window, 720, 0, 10.5); return [r.left + p[0] * s, r.top + p[1] * s]})()"
    )
    browser.mouse("mouseMoved", *place)
    assert browser.value("at('told').hidden") is False
    assert browser.value("at('told').textContent").split("\n") == [
        "car  score 0.90",
        "4.0 x 2.0 x 1.5 m, 10.5 m away",
        "speed 3.0 m/s",
        "vehicle.moving",
        "0.50 m from the matched truth",
        "truth: car",
    ]
    browser.mouse("mouseMoved", 5, 5)
    assert browser.value("at('told').hidden") is True
    # The mask: right of the car it is light blue over the ground, and gone when its head is not ticked.
    pixel = "[...at('bev').getContext('2d').getImageData(395, 385, 1, 1).data].slice(0, 3)"
    painted = browser.value(pixel)
    browser.click("#heads input[name='predicted map']")
    assert browser.value(pixel) == [246, 246, 243] and painted != [246, 246, 243]
    for name in ("true boxes", "predicted map"):
        browser.click(f"#heads input[name='{name}']")
    # The box in the camera's image: white truth or the class's orange is on a grey picture.
    canvas = "document.querySelector('canvas[data-camera=CAM_FRONT]')"
    seen = f"[...{canvas}.getContext('2d').getImageData(0, 0, 400, 200).data]"
    assert browser.value(f"{seen}.some((v, i) => i % 4 === 0 && v > 240)")

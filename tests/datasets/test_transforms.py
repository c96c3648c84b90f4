"""Pipeline transforms: what they do to images, cameras, boxes and ego motion, against closed forms."""

import copy
import math
import pickle

import cv2
import numpy as np
import pytest
import torch

from bevstack.datasets import ClipDataset
from bevstack.datasets.base import SceneRecord
from bevstack.datasets.format import SampleTable
from bevstack.datasets.transforms import (
    BEVRotateScaleFlip,
    ImageViews,
    LoadMultiViewImages,
    ObjectNameFilter,
    ObjectRangeFilter,
    PackBEVInputs,
    ResizeCropFlipImages,
    ResizeImages,
)
from bevstack.datasets.transforms.packing import stack_images
from bevstack.errors import InputError
from bevstack.geometry.boxes3d import box_corners
from bevstack.registry import TRANSFORMS

HEIGHT, WIDTH = 90, 160
CLASSES = ("car", "bus", "pedestrian")


def coordinate_image(height=HEIGHT, width=WIDTH):
    """An image that shows its own pixel coordinates: red is u, green is v, each over the side, times 255."""
    u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    image = np.stack([u / width, v / height, np.full_like(u, 0.5)], axis=-1) * 255
    return np.round(image).astype(np.uint8)


def rig(num_cameras=3):
    """Level cameras that look forward, to the left and backward, with (N, 3, 3) and (N, 4, 4) matrices."""
    intrinsics = np.array([[110.0, 0.0, WIDTH / 2], [0.0, 110.0, HEIGHT / 2], [0.0, 0.0, 1.0]])
    camera_from_bev = []
    for n in range(num_cameras):
        cos, sin = math.cos(n * math.pi / 2), math.sin(n * math.pi / 2)
        linear = np.array([[cos, sin, 0.0], [0.0, 0.0, -1.0], [-sin, cos, 0.0]])
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = linear, -linear @ [0.1 * n, 0.5, 1.6]
        camera_from_bev.append(matrix)
    return np.stack([intrinsics] * num_cameras), np.stack(camera_from_bev)


def motion(yaw, forward):
    matrix = np.eye(4)
    matrix[:2, :2] = [[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]]
    matrix[:3, 3] = [0.2, forward, 0.05]
    return matrix


def clip_results(seed=0, num_frames=2, num_objects=6, images=True):
    """The dict a dataset hands to its pipeline, made by hand."""
    rng = np.random.default_rng(7)
    pixels_from_camera, camera_from_bev = rig()
    frames = []
    for t in range(num_frames):
        frames.append(
            {
                "image_paths": [f"cam{n}.jpg" for n in range(3)],
                "pixels_from_camera": pixels_from_camera.copy(),
                "camera_from_bev": camera_from_bev.copy(),
                "image_size_px": np.array([[HEIGHT, WIDTH]] * 3),
                "previous_from_current": motion(0.1 + 0.1 * t, 4.0),
                "has_previous": t > 0,
                "seconds": 0.5,
                "can_bus": None,
                "token": f"frame{t}",
            }
        )
        if images:
            frames[-1]["images"] = [coordinate_image() for _ in range(3)]
    boxes = np.concatenate(
        [rng.uniform(-20, 20, (num_objects, 2)), rng.uniform(-1, 0, (num_objects, 1)),
         rng.uniform(1, 5, (num_objects, 3)), rng.uniform(-3, 3, (num_objects, 3))], axis=1,
    )  # fmt: skip
    return {
        "frames": frames,
        "boxes": boxes,
        "labels": np.arange(num_objects) % 3,
        "classes": CLASSES,
        "attribute_names": [f"attribute{g}" for g in range(num_objects)],
        "instance_ids": np.arange(num_objects) + 100,
        "num_lidar_pts": np.arange(num_objects),
        "num_radar_pts": np.zeros(num_objects, dtype=int),
        "visibility": np.full(num_objects, 4),
        "rasters": {},
        "global_from_bev": motion(0.7, 600.0),
        "augmented_from_bev": np.eye(4),
        "location": "somewhere",
        "prev_token": "frame0",
        "scene_token": "scene",
        "split_mode": "train",
        "rng": np.random.default_rng(seed),
        "stream_rng": np.random.default_rng(seed + 1000),
    }


def project(frame, points):
    """(N, P, 2) pixels and (N, P) depths of (P, 3) points of the frame's BEV frame."""
    camera = points @ frame["camera_from_bev"][:, :3, :3].swapaxes(1, 2) + frame["camera_from_bev"][:, None, :3, 3]
    pixels = camera @ frame["pixels_from_camera"].swapaxes(1, 2)
    return pixels[..., :2] / pixels[..., 2:], camera[..., 2]


def bilinear(image, uv):
    """Read an image at continuous pixel coordinates (centres at + 0.5)."""
    map_uv = (uv - 0.5).astype(np.float32)[None]
    return cv2.remap(image.astype(np.float32), map_uv[..., 0], map_uv[..., 1], cv2.INTER_LINEAR)[0]


def world_points(count=4000, seed=3):
    return np.random.default_rng(seed).uniform([-25, -25, -2], [25, 25, 4], (count, 3))


def assert_same_content(before, after, points_after, points_before, levels=1.1, bias_px=0.15):
    """Points show the same image content through the changed cameras in the changed images as before.

    The source image shows its own coordinates, so what is read at the new place must be the old place: within
    ``levels`` grey levels (half a level from rounding to uint8, twice), and without bias, so that
    half a pixel shows. (At half size every second mean is a tie, and OpenCV rounds ties up: a quarter level of bias.)
    """
    for old, new in zip(before["frames"], after["frames"], strict=True):
        old_uv, old_depth = project(old, points_before)
        new_uv, new_depth = project(new, points_after)
        for n, image in enumerate(new["images"]):
            height, width = image.shape[:2]
            assert tuple(new["image_size_px"][n]) == (height, width)
            margin = 2.0
            seen = (
                (old_depth[n] > 0.5)
                & (new_uv[n] > margin).all(-1)
                & (new_uv[n] < [width - margin, height - margin]).all(-1)
            )
            seen &= (old_uv[n] > margin).all(-1) & (old_uv[n] < [WIDTH - margin, HEIGHT - margin]).all(-1)
            assert seen.sum() >= 50
            assert np.allclose(new_depth[n], old_depth[n])
            read = bilinear(image, new_uv[n][seen])[:, :2] / 255 * [WIDTH, HEIGHT]
            error = read - old_uv[n][seen]
            assert (np.abs(error) < levels * np.array([WIDTH, HEIGHT]) / 255).all()
            assert (np.abs(error.mean(0)) < bias_px).all()


IMAGE_CHAINS = {
    "resize_scale": [ResizeImages(scale=0.73)],
    "resize_size": [ResizeImages(size=(64, 200))],
    "resize_random_per_camera": [ResizeImages(scale=(0.6, 1.4), per_camera=True)],
    "crop": [ResizeCropFlipImages(scale=1.0, size=(60, 100), left=(0, 1), bottom=(0, 0.3))],
    "flip": [ResizeCropFlipImages(scale=1.0, flip_probability=1.0)],
    "chain": [
        ResizeImages(scale=(0.7, 0.9)),
        ResizeCropFlipImages(scale=1.0, size=(50, 90), left=(0, 1), per_camera=True),
        ResizeCropFlipImages(scale=1.0, flip_probability=0.5),
    ],
    "ida_bevdet": [
        ResizeCropFlipImages(scale=(0.6, 0.9), size=(48, 80), bottom=(0, 0.1), left=(0, 1), flip_probability=0.5)
    ],
    "ida_per_camera": [
        ResizeCropFlipImages(scale=(0.6, 0.9), size=(48, 80), left=(0, 1), flip_probability=0.5, per_camera=True)
    ],
    "ida_bevformer_v2": [
        ResizeCropFlipImages(heights_px=(40, 52, 77), source_crop_px=(0, 26, 160, 90), flip_probability=1.0)
    ],
    "ida_over_the_border": [ResizeCropFlipImages(scale=0.5, size=(64, 96), left=0.3, flip_probability=1.0)],
    "area": [ResizeImages(scale=0.4, interpolation="area")],
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", IMAGE_CHAINS)
def test_points_stay_on_their_image_content(name, seed):
    before = clip_results(seed)
    after = copy.deepcopy(before)
    for transform in IMAGE_CHAINS[name]:
        after = transform(after)
    points = world_points()
    assert_same_content(before, after, points, points, bias_px=0.25 if name == "ida_over_the_border" else 0.15)


@pytest.mark.parametrize("seed", range(4))
def test_points_stay_on_their_image_content_under_image_and_bev_augmentation(seed):
    before = clip_results(seed)
    after = copy.deepcopy(before)
    for transform in (
        ResizeCropFlipImages(scale=(0.6, 0.9), size=(48, 80), flip_probability=0.5),
        BEVRotateScaleFlip(),
    ):
        after = transform(after)
    points = world_points()
    matrix = after["augmented_from_bev"]
    points_after = points @ matrix[:3, :3].T + matrix[:3, 3]
    assert_same_content(before, after, points_after, points)


def test_one_resize_equals_resizing_all_and_cutting():
    # Away from the cut's border the fused transform shows the pixels of resizing the whole image and slicing it.
    image = np.random.default_rng(0).integers(0, 256, (200, 400, 3), dtype=np.uint8)
    fused, matrix = ResizeCropFlipImages(scale=0.5, size=(60, 100), left=0.25).apply(image, (0.5, 0.0, 0.25, False))
    whole = cv2.resize(image, (200, 100), interpolation=cv2.INTER_LINEAR)[40:100, 25:125]
    assert np.abs(fused.astype(int) - whole.astype(int))[1:-1, 1:-1].max() <= 1
    assert np.allclose(matrix, [[0.5, 0, -25], [0, 0.5, -40], [0, 0, 1]])


def test_views_of_a_camera_are_cameras_of_their_own():
    # Expected: six cameras of three; the images and matrices of each view alone, in turn, and the poses again.
    results = {**clip_results(), "camera_names": ["a", "b", "c"]}
    small, part = dict(type="ResizeImages", size=(20, 30)), dict(type="ResizeCropFlipImages", scale=1.0, size=(20, 30))
    seen = ImageViews([small, part])(copy.deepcopy(results))
    alone = [ResizeImages(size=(20, 30)), ResizeCropFlipImages(scale=1.0, size=(20, 30))]
    for t in range(2):
        parts = [view(copy.deepcopy(results))["frames"][t] for view in alone]
        frame = seen["frames"][t]
        for key in ("pixels_from_camera", "camera_from_bev", "image_size_px"):
            assert np.array_equal(frame[key], np.concatenate([part[key] for part in parts])), key
        assert len(frame["images"]) == len(frame["image_paths"]) == 6
        for n, image in enumerate(frame["images"]):
            assert np.array_equal(image, parts[n // 3]["images"][n % 3])
    assert seen["camera_names"] == ["a", "b", "c", "a view 2", "b view 2", "c view 2"] and seen["images_changed"]
    assert not ImageViews([small, part]).draws and ImageViews([dict(type="ResizeImages", scale=(0.5, 1.0))]).draws
    results["frames"][0]["sweeps"] = []
    with pytest.raises(InputError, match="no second view of camera sweeps"):
        ImageViews([small])(results)
    for views in ([], [dict(type="ObjectNameFilter", classes=CLASSES)]):
        with pytest.raises(ValueError, match="views: must be one or more"):
            ImageViews(views)


def test_flip_is_u_to_width_minus_u():
    results = clip_results()
    flipped = ResizeCropFlipImages(scale=1.0, flip_probability=1.0)(copy.deepcopy(results))
    points = world_points(100)
    old, new = project(results["frames"][0], points)[0], project(flipped["frames"][0], points)[0]
    assert np.allclose(new[..., 0], WIDTH - old[..., 0]) and np.allclose(new[..., 1], old[..., 1])
    assert np.array_equal(flipped["frames"][1]["images"][2], results["frames"][1]["images"][2][:, ::-1])


def test_one_draw_for_the_clip_or_one_for_each_camera():
    shared = ResizeImages(scale=(0.5, 1.5))(clip_results(num_frames=3))
    assert len({image.shape for frame in shared["frames"] for image in frame["images"]}) == 1
    single = ResizeImages(scale=(0.5, 1.5), per_camera=True)(clip_results(num_frames=3))
    shapes = [[image.shape for image in frame["images"]] for frame in single["frames"]]
    assert len(set(shapes[0])) == 3 and shapes[0] == shapes[1] == shapes[2]


def test_scales_are_drawn_from_their_whole_range():
    drawn = [ResizeImages(scale=(0.5, 1.5)).draw(np.random.default_rng(i)) for i in range(300)]
    assert 0.5 <= min(drawn) < 0.55 and 1.45 < max(drawn) <= 1.5
    heights = {ResizeCropFlipImages(heights_px=(512, 640)).draw(np.random.default_rng(i))[0] for i in range(20)}
    assert heights == {512.0, 640.0}


@pytest.mark.parametrize(
    "make",
    [
        lambda: ResizeImages(),
        lambda: ResizeImages(scale=0.5, size=(10, 10)),
        lambda: ResizeImages(scale=(1.0, 0.5)),
        lambda: ResizeImages(scale=0.0),
        lambda: ResizeCropFlipImages(),
        lambda: BEVRotateScaleFlip(scale_range=(0.0, 1.0)),
        lambda: BEVRotateScaleFlip(rotation_range_deg=(5, -5)),
    ],
)
def test_impossible_arguments_are_refused(make):
    with pytest.raises(ValueError):
        make()


def test_a_window_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="not inside"):
        ResizeCropFlipImages(scale=1.0, source_crop_px=(0, 0, 161, 90))(clip_results())
    with pytest.raises(ValueError, match="outside"):
        ResizeCropFlipImages(scale=1.0, size=(90, 160), left=5.0).apply(
            coordinate_image(90, 400), (1.0, 0.0, 5.0, False)
        )


# BEV augmentation


def everything(results):
    """All numbers of a clip, to compare two of them."""
    frames = results["frames"]
    arrays = [f[k] for f in frames for k in ("pixels_from_camera", "camera_from_bev", "previous_from_current")]
    return [*arrays, *(image for frame in frames for image in frame["images"]), results["boxes"]]


def test_bev_augmentation_moves_boxes_with_the_ground():
    before = clip_results(1)
    after = BEVRotateScaleFlip()(copy.deepcopy(before))
    matrix = after["augmented_from_bev"]
    corners = box_corners(torch.from_numpy(before["boxes"])).numpy() @ matrix[:3, :3].T + matrix[:3, 3]
    moved = box_corners(torch.from_numpy(after["boxes"])).numpy()
    distance = np.linalg.norm(moved[:, :, None] - corners[:, None], axis=-1).min(-1)
    assert distance.max() < 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_ego_motion_stays_rigid_and_consistent(seed):
    before = clip_results(seed, num_frames=3)
    after = BEVRotateScaleFlip()(copy.deepcopy(before))
    matrix = after["augmented_from_bev"]
    point = np.array([3.0, 8.0, 0.5, 1.0])
    for old, new in zip(before["frames"], after["frames"], strict=True):
        # A standing point seen now and before: augmenting both views agrees with the augmented motion.
        previous = old["previous_from_current"] @ point
        assert np.allclose(new["previous_from_current"] @ (matrix @ point), matrix @ previous)
        linear = new["previous_from_current"][:3, :3]
        assert np.allclose(linear @ linear.T, np.eye(3)) and np.isclose(np.linalg.det(linear), 1.0)


def test_known_augmentation_in_closed_form():
    # 90 degrees to the left and doubled: x right -> y forward; a car ahead at (0, 10) lands left at (-20, 0).
    transform = BEVRotateScaleFlip((90, 90), (2, 2), 0.0, 0.0)
    results = clip_results(num_objects=1)
    results["boxes"] = np.array([[0.0, 10.0, -1.0, 4.0, 2.0, 1.5, math.pi / 2, 0.0, 5.0]])
    out = transform(results)
    expected = [[-20.0, 0.0, -2.0, 8.0, 4.0, 3.0, math.pi, -10.0, 0.0]]
    out["boxes"][:, 6] = np.abs(out["boxes"][:, 6])
    assert np.allclose(out["boxes"], expected)
    # 4 m forward becomes 8 m along -x; the turn of 0.1 rad stays.
    moved = out["frames"][0]["previous_from_current"]
    assert np.allclose(moved[:2, 3], [-8.0, 0.4]) and np.isclose(math.atan2(moved[1, 0], moved[0, 0]), 0.1)


def test_mirroring_reverses_turns():
    out = BEVRotateScaleFlip((0, 0), (1, 1), 1.0, 0.0)(clip_results())
    moved = out["frames"][0]["previous_from_current"]
    assert np.isclose(math.atan2(moved[1, 0], moved[0, 0]), -0.1) and np.allclose(moved[:2, 3], [-0.2, 4.0])


def test_augmentations_compose():
    transform = BEVRotateScaleFlip()
    before = clip_results(5)
    after = transform(transform(copy.deepcopy(before)))
    matrix = np.linalg.inv(after["augmented_from_bev"])
    assert np.allclose(after["frames"][0]["camera_from_bev"], before["frames"][0]["camera_from_bev"] @ matrix)


def test_unknown_velocity_stays_unknown_under_augmentation():
    results = clip_results()
    results["boxes"][0, 7:] = np.nan
    boxes = BEVRotateScaleFlip()(results)["boxes"]
    assert np.isnan(boxes[0, 7:]).all() and not np.isnan(boxes[1:]).any() and not np.isnan(boxes[0, :7]).any()


def test_augmenting_after_rasters_is_refused():
    results = clip_results()
    results["rasters"]["map"] = object()
    with pytest.raises(ValueError, match="before"):
        BEVRotateScaleFlip()(results)


def test_a_seed_decides_everything():
    def run(seed):
        results = clip_results(seed)
        for transform in (
            ResizeCropFlipImages(scale=(0.6, 0.9), size=(48, 80), left=(0, 1), flip_probability=0.5, per_camera=True),
            BEVRotateScaleFlip(),
        ):
            results = transform(results)
        return everything(results)

    first, again, other = run(11), run(11), run(12)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_constant_along_a_stream():
    transform = BEVRotateScaleFlip(constant_along_stream=True)
    first, second = clip_results(1), clip_results(2)
    first["stream_rng"], second["stream_rng"] = np.random.default_rng(5), np.random.default_rng(5)
    assert np.array_equal(transform(first)["augmented_from_bev"], transform(second)["augmented_from_bev"])
    assert not np.array_equal(transform(clip_results(1))["augmented_from_bev"], first["augmented_from_bev"])


# Objects


def test_range_filter_keeps_centres_on_the_grid_and_all_their_entries():
    results = clip_results(num_objects=4)
    results["boxes"][:, :2] = [[0, 0], [10.01, 0], [-9.9, 19.9], [0, -20.1]]
    grid = {"shape": (4, 4), "x_range_m": (-10, 10), "y_range_m": (-20, 20)}
    out = ObjectRangeFilter(grid)(results)
    assert out["instance_ids"].tolist() == [100, 102] and out["labels"].tolist() == [0, 2]
    assert out["attribute_names"] == ["attribute0", "attribute2"] and len(out["boxes"]) == len(out["visibility"]) == 2


def test_name_filter_renumbers():
    results = clip_results()  # labels 0 1 2 0 1 2
    results["labels"][3] = -1  # outside the detection classes
    out = ObjectNameFilter(["pedestrian", "car"])(results)
    assert out["instance_ids"].tolist() == [100, 102, 105] and out["labels"].tolist() == [1, 0, 0]
    assert out["classes"] == ("pedestrian", "car")
    with pytest.raises(ValueError, match="tram"):
        ObjectNameFilter(["tram"])(clip_results())


# Loading


def write_images(folder, extension=".png", size=(HEIGHT, WIDTH)):
    paths = []
    for n in range(3):
        path = folder / f"cam{n}{extension}"
        cv2.imwrite(str(path), coordinate_image(*size)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])
        paths.append(str(path))
    return paths


def results_with_files(folder, **kwargs):
    results = clip_results(images=False)
    paths = write_images(folder, **kwargs)
    for frame in results["frames"]:
        frame["image_paths"] = paths
    return results


def test_loading_gives_the_stored_pixels_as_rgb(tmp_path):
    out = LoadMultiViewImages()(results_with_files(tmp_path))
    for frame in out["frames"]:
        for image in frame["images"]:
            assert image.dtype == np.uint8 and np.array_equal(image, coordinate_image())


@pytest.mark.parametrize("extension", [".jpg", ".png"])
def test_half_size_decoding_keeps_points_on_their_content(tmp_path, extension):
    before = clip_results()
    after = LoadMultiViewImages(reduced=True)(results_with_files(tmp_path, extension=extension))
    assert after["frames"][0]["images"][0].shape == (HEIGHT // 2, WIDTH // 2, 3)
    points = world_points()
    assert_same_content(before, after, points, points, levels=2.5, bias_px=0.25)  # JPEG's own rounding comes on top


def exif_rotated(data):
    """A JPEG with an EXIF segment that asks for a turn by 90 degrees (orientation 6), put after its start marker."""
    tiff = b"II*\x00\x08\x00\x00\x00" + b"\x01\x00" + b"\x12\x01\x03\x00\x01\x00\x00\x00\x06\x00\x00\x00" + b"\x00" * 4
    body = b"Exif\x00\x00" + tiff
    return data[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + data[2:]


def test_exif_orientation_is_ignored(tmp_path):
    results = results_with_files(tmp_path, extension=".jpg")
    plain = LoadMultiViewImages()(copy.deepcopy(results))["frames"][0]["images"][0]
    path = tmp_path / "cam0.jpg"
    path.write_bytes(exif_rotated(path.read_bytes()))
    assert cv2.imread(str(path)).shape[:2] == (WIDTH, HEIGHT)  # OpenCV alone would turn it
    assert np.array_equal(LoadMultiViewImages()(results)["frames"][0]["images"][0], plain)


@pytest.mark.parametrize("extension", [".jpg", ".png"])
@pytest.mark.parametrize("fraction", [0.3, 0.9, 0.999])
def test_a_file_that_is_cut_off_is_refused(tmp_path, extension, fraction):
    results = results_with_files(tmp_path, extension=extension)
    path = tmp_path / f"cam1{extension}"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    with pytest.raises(InputError, match=f"cam1{extension}: image: the file is cut off"):
        LoadMultiViewImages()(results)


def test_trailing_bytes_after_an_image_do_no_harm(tmp_path):
    results = results_with_files(tmp_path, extension=".jpg")
    path = tmp_path / "cam1.jpg"
    path.write_bytes(path.read_bytes() + b"\x00" * 100)
    assert LoadMultiViewImages()(results)["frames"][0]["images"][1].shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize(
    "content, reason",
    [(None, "No such file"), (b"", "empty"), (b"hello, this is a text file", "not an image")],
)
def test_what_is_no_image_is_refused(tmp_path, content, reason):
    results = results_with_files(tmp_path)
    path = tmp_path / "cam2.png"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=reason):
        LoadMultiViewImages()(results)


class BrokenFiles(torch.utils.data.Dataset):
    """A dataset whose only sample has a file that is not there."""

    def __init__(self, results):
        self.results = results

    def __len__(self):
        return 1

    def __getitem__(self, i):
        return LoadMultiViewImages()(self.results)


def test_an_error_of_a_worker_is_the_same_one_line(tmp_path):
    results = results_with_files(tmp_path)
    (tmp_path / "cam2.png").unlink()
    with pytest.raises(InputError) as here:
        BrokenFiles(results)[0]
    with pytest.raises(InputError) as there:
        next(iter(torch.utils.data.DataLoader(BrokenFiles(results), num_workers=1, batch_size=None)))
    assert str(there.value) == str(here.value) == f"{tmp_path / 'cam2.png'}: image: No such file or directory"
    assert str(pickle.loads(pickle.dumps(here.value))) == str(here.value)


@pytest.mark.parametrize("reduced", [False, True])
def test_another_size_than_the_table_says_is_refused(tmp_path, reduced):
    results = results_with_files(tmp_path, extension=".jpg", size=(60, 100))
    with pytest.raises(InputError, match="the table says 160x90"):
        LoadMultiViewImages(reduced)(results)


# Packing


def test_packed_shapes_and_values():
    results = clip_results()
    results["frames"][1]["can_bus"] = np.arange(18.0)
    packed = PackBEVInputs()(copy.deepcopy(results))
    inputs, sample = packed["inputs"], packed["data_samples"]
    shapes = {key: (tuple(value.shape), value.dtype) for key, value in inputs.items()}
    assert shapes == {
        "images": ((2, 3, 3, HEIGHT, WIDTH), torch.uint8),
        "pixels_from_camera": ((2, 3, 3, 3), torch.float32),
        "camera_from_bev": ((2, 3, 4, 4), torch.float32),
        "image_size_px": ((2, 3, 2), torch.int64),
        "previous_from_current": ((2, 4, 4), torch.float32),
        "has_previous": ((2,), torch.bool),
        "seconds": ((2,), torch.float32),
        "can_bus": ((2, 18), torch.float32),
    }
    assert inputs["has_previous"].tolist() == [False, True]
    assert inputs["can_bus"][0].isnan().all() and inputs["can_bus"][1].tolist() == list(range(18))
    assert np.array_equal(inputs["images"][1, 2].permute(1, 2, 0).numpy(), coordinate_image())
    gt = sample.gt_instances_3d
    assert torch.equal(gt.bboxes_3d.tensor, torch.from_numpy(results["boxes"]).float())
    assert gt.labels_3d.tolist() == [0, 1, 2, 0, 1, 2] and gt.attribute_names == results["attribute_names"]
    assert gt.num_lidar_pts.tolist() == [0, 1, 2, 3, 4, 5]
    assert sample.token == "frame1" and sample.prev_token == "frame0" and sample.classes == CLASSES
    assert np.array_equal(sample.global_from_bev, results["global_from_bev"])
    for name in ("pixels_from_camera", "camera_from_bev", "image_size_px"):
        assert np.array_equal(getattr(sample, name), results["frames"][1][name])
    assert sample.image_paths == results["frames"][1]["image_paths"]


def test_cameras_of_different_sizes_are_padded_at_the_bottom_and_right():
    results = clip_results()
    for frame in results["frames"]:
        frame["images"][1] = coordinate_image(40, 200)
        frame["image_size_px"] = np.array([[HEIGHT, WIDTH], [40, 200], [HEIGHT, WIDTH]])
    images = PackBEVInputs()(results)["inputs"]["images"]
    assert images.shape == (2, 3, 3, HEIGHT, 200)
    assert np.array_equal(images[0, 1, :, :40].permute(1, 2, 0).numpy(), coordinate_image(40, 200))
    assert (images[:, 1, :, 40:] == 0).all() and (images[:, 0, :, :, WIDTH:] == 0).all()


def test_packed_images_keep_their_pixels_for_as_long_as_they_are_held():
    # Memory is used again only when nothing holds it: a sample that is kept stays as it is beside a later one.
    first, other = (stack_images([[coordinate_image(8, width)] * 3] * 2) for width in (12, 20))
    kept = first[1, 2]
    copied, place = kept.clone(), first.data_ptr()
    del first, other
    again = stack_images([[np.full((8, 12, 3), 9, dtype=np.uint8)] * 3] * 2)
    assert torch.equal(kept, copied) and again.data_ptr() != place
    del kept
    assert stack_images([[coordinate_image(8, 12)] * 3] * 2).data_ptr() == place


class Packed(torch.utils.data.Dataset):
    """Images as a process packs them, whether others can see their memory, and on how many threads it works."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        images = stack_images([[coordinate_image()] * 2])
        return images, images.is_shared(), torch.get_num_threads()


def test_a_worker_packs_into_memory_that_is_sent_without_a_copy():
    for workers in (0, 1):
        loader = torch.utils.data.DataLoader(Packed(), num_workers=workers, batch_size=None)
        ((images, shared, threads),) = list(loader)
        assert shared is (workers == 1) and (workers == 0 or threads == 1)
        assert np.array_equal(images[0, 1].permute(1, 2, 0).numpy(), coordinate_image())


def test_a_sample_without_objects_packs():
    results = ObjectRangeFilter({"shape": (2, 2), "x_range_m": (900, 901)})(clip_results())
    sample = PackBEVInputs()(results)["data_samples"]
    assert sample.gt_instances_3d.bboxes_3d.tensor.shape == (0, 9) and len(sample.gt_instances_3d.labels_3d) == 0


# --- the order of a pipeline ----------------------------------------------------------------------------------------

GRID = {"shape": (8, 8), "x_range_m": (-8.0, 8.0), "y_range_m": (-8.0, 8.0)}


class Clips(ClipDataset):
    """Two samples of one scene without files."""

    def __init__(self, pipeline):
        samples = SampleTable(scene=np.zeros(2, int), timestamp_us=np.arange(2) * 500_000)
        super().__init__(samples, "nowhere", "all", ("car",), pipeline)

    def token(self, row):
        return str(row)

    def scene(self, row):
        return SceneRecord("scene", "scene")

    def global_from_bev(self, row):
        return np.eye(4)

    def cameras(self, row):
        raise NotImplementedError

    def objects(self, row):
        raise NotImplementedError

    def require_sweeps(self):
        """There are some."""


@pytest.mark.parametrize(
    ("pipeline", "said"),
    [
        (["ResizeImages"], "pipeline: ResizeImages: must come after LoadMultiViewImages"),
        (["LoadCameraSweeps", "LoadMultiViewImages"], "LoadCameraSweeps: must come right after LoadMultiViewImages"),
        (["LoadMultiViewImages", "ResizeImages", "LoadCameraSweeps"], "before all that changes images"),
        (["RasteriseBoxes", "BEVRotateScaleFlip"], "BEVRotateScaleFlip: must come before RasteriseBoxes"),
        (["ObjectNameFilter"], "ObjectNameFilter.classes: 'tram' is not there: the dataset has the classes ['car']"),
    ],
)
def test_a_pipeline_that_makes_no_sense_is_refused_where_the_dataset_is_built(pipeline, said):
    # It used to end in a ValueError or KeyError of a data worker, after the model was built.
    options = {"ResizeImages": {"scale": 0.5}, "LoadCameraSweeps": {"num_sweeps": 1}}
    options["RasteriseBoxes"] = {"grid": GRID, "layers": {"cars": ["car"]}}
    options["ObjectNameFilter"] = {"classes": ["tram"]}
    steps = [TRANSFORMS.build({"type": name, **options.get(name, {})}) for name in pipeline]
    with pytest.raises(InputError) as caught:
        Clips(steps)
    assert said in str(caught.value)


def test_a_transform_from_elsewhere_may_read_the_images():
    assert len(Clips([lambda results: results, TRANSFORMS.build({"type": "ResizeImages", "scale": 0.5})])) == 2


@pytest.mark.parametrize(
    ("transform", "draws"),
    [
        (ResizeImages(scale=0.5), False),
        (ResizeImages(size=(40, 60)), False),
        (ResizeImages(scale=(0.5, 0.6)), True),
        (ResizeCropFlipImages(heights_px=(48,), size=(40, 60), bottom=0.1, left=0.5), False),
        (ResizeCropFlipImages(heights_px=(48, 48), size=(40, 60), flip_probability=1.0), False),
        (ResizeCropFlipImages(heights_px=(48, 52), size=(40, 60)), True),
        (ResizeCropFlipImages(scale=(0.9, 1.0), size=(40, 60)), True),
        (ResizeCropFlipImages(scale=1.0, size=(40, 60), left=(0, 1)), True),
        (ResizeCropFlipImages(scale=1.0, size=(40, 60), bottom=(0, 0.1)), True),
        (ResizeCropFlipImages(scale=1.0, size=(40, 60), flip_probability=0.5), True),
    ],
)
def test_what_draws_says_so(transform, draws):
    # Expected: whether twenty draws differ in anything that acts on an image.
    image = np.random.default_rng(0).integers(0, 256, (60, 100, 3), dtype=np.uint8)
    rng = np.random.default_rng(1)
    results = [transform.apply(image, transform.draw(rng))[0] for _ in range(20)]
    assert transform.draws == draws == any(not np.array_equal(results[0], other) for other in results)

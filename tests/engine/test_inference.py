"""The Predictor on a small model: kinds of images, cameras and sizes, streams, and one line for what does not fit."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch

from bevstack import Moment, Motion, Predictor, Rig, Sweeps, load_model
from bevstack.datasets.ego_state import CorrectedCanBus, EgoState
from bevstack.engine.image_steps import ImageSteps
from bevstack.engine.inference import can_bus_vector
from bevstack.errors import InputError
from bevstack.geometry import project_points, visible_points
from bevstack.models.bev import visibility as visibility_module
from bevstack.models.bev.visibility import plan_from_mask
from bevstack.reference.can_bus import ReferenceCanBus
from tests.engine.front_door import (
    CAMERAS,
    EGO_FROM_BEV,
    SIZE_PX,
    drive,
    images_of,
    pose,
    rig_of,
    saved,
    small_config,
    trained,
)

SWIN = dict(embed_dim=16, depths=(1, 1), num_heads=(1, 2), window_size=4, beta=1 / 4, out_indices=(0, 1))
VIDEO = dict(
    backbone=dict(type="SlowFastSwin", fusion="serial", num_sweeps=2, alpha=2, **SWIN),
    neck=dict(type="TopDownNeck", out_channels=8, out_levels=(0,)),
)


def predictor_of(cfg) -> Predictor:
    model = trained(cfg).eval()
    return Predictor(model, cfg)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return Predictor(load_model(saved(tmp_path_factory.mktemp("door") / "model.pth", small_config()), device="cpu"))


def answers(prediction) -> list[torch.Tensor]:
    """All numbers of a prediction."""
    boxes = prediction.sample.pred_instances_3d
    return [boxes.bboxes_3d.tensor, boxes.scores_3d, prediction.rasters["map"].layers]


def assert_same(one, other) -> None:
    for a, b in zip(answers(one), answers(other), strict=True):
        assert torch.equal(a, b)


def differ(one, other) -> bool:
    return not torch.equal(one.rasters["map"].layers, other.rasters["map"].layers)


def test_arrays_tensors_and_files_give_the_same(predictor, tmp_path):
    # Expected: bit for bit; PNG loses nothing.
    images = images_of(0)
    expected, _ = predictor.step(images, rig_of())
    assert len(expected.boxes) > 10 and expected.rasters["map"].layers.std() > 0
    paths = []
    for n, image in enumerate(images):
        paths.append(tmp_path / f"{n}.png")
        cv2.imwrite(str(paths[-1]), image[..., ::-1])
    tensors = [torch.from_numpy(image) for image in images]
    kinds = [
        paths,
        [str(path) for path in paths],
        tensors,
        [tensor.permute(2, 0, 1) for tensor in tensors],
        torch.stack(tensors),
        np.stack(images),
        [image.transpose(2, 0, 1) for image in images],
        [paths[0], images[1], tensors[2]],
    ]
    for kind in kinds:
        assert_same(predictor.step(kind, rig_of())[0], expected)


def test_answers_are_those_of_the_model_itself(tmp_path):
    # Expected: the numbers of the model as it was loaded, from whose form the predictor's come, up to rounding.
    model = load_model(saved(tmp_path / "model.pth", small_config()), device="cpu")
    names = list(model.state_dict())
    predictor = Predictor(model)
    assert predictor.model is not model and list(model.state_dict()) == names
    found, _ = predictor.step(images_of(0), rig_of())
    predictor.model = model
    expected, _ = predictor.step(images_of(0), rig_of())
    for one, other in zip(answers(found), answers(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_freed_memory_is_kept_from_the_first_model_on(tmp_path, monkeypatch):
    # Expected: load_model and a Predictor ask for it; the file is not read before (an import asks for nothing).
    asked = []
    for module in ("models", "inference"):
        monkeypatch.setattr(f"bevstack.engine.{module}.keep_freed_memory", lambda module=module: asked.append(module))
    Predictor(load_model(saved(tmp_path / "model.pth", small_config()), device="cpu"))
    assert asked == ["models", "inference"]


def test_images_decoded_at_half_size(tmp_path):
    # Expected: a file as training decodes it; an array nearly so. Its intrinsics are halved with it: a place of the
    # world stays on what shows it, so the projection in halves of a pixel is the same.
    cfg = small_config()
    cfg.test_dataloader.dataset.pipeline[0].reduced = True
    cfg.test_dataloader.dataset.pipeline[1].scale = 1.0
    steps, rig, images = ImageSteps.of_config(cfg), rig_of(), images_of(1)
    kinds = {}
    for ending in ("jpg", "png"):
        kinds[ending] = [tmp_path / f"{n}.{ending}" for n in range(3)]
        for path, image in zip(kinds[ending], images, strict=True):
            cv2.imwrite(str(path), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])
    frames = {name: steps(kind, rig) for name, kind in {**kinds, "arrays": images}.items()}
    for frame in frames.values():
        assert frame["images"][0].shape == (24, 40, 3) and frame["image_size_px"].tolist() == [[24, 40]] * 3
        np.testing.assert_allclose(frame["pixels_from_camera"], np.diag([0.5, 0.5, 1]) @ rig.pixels_from_camera)
        assert np.abs(frame["images"][0].astype(int) - frames["png"]["images"][0]).mean() < 3


def test_another_image_size_works(predictor):
    # Expected: where the config resizes by a factor, an image of twice the size stays twice as large, its intrinsics
    # with it; where it resizes to a size, pictures whose pixels were doubled become what they were, bit for bit.
    small = images_of(2)
    large, size = [image.repeat(2, axis=0).repeat(2, axis=1) for image in small], (2 * SIZE_PX[0], 2 * SIZE_PX[1])
    prediction, _ = predictor.step(large, rig_of(size))
    info = prediction.sample.metainfo
    assert info["image_size_px"].tolist() == [[72, 120]] * 3 and np.isfinite(prediction.boxes.boxes).all()
    np.testing.assert_allclose(info["pixels_from_camera"], np.diag([1.5, 1.5, 1]) @ rig_of().pixels_from_camera)
    cfg = small_config()
    cfg.test_dataloader.dataset.pipeline[1] = dict(type="ResizeImages", size=SIZE_PX)
    fitting = Predictor(predictor.model, cfg)
    assert_same(fitting.step(large, rig_of(size))[0], fitting.step(small, rig_of())[0])


def test_cameras_of_unlike_sizes_work_together(predictor):
    # Expected: what each alone would be, padded to the largest.
    images = images_of(3)
    images[1] = images[1][:40, :60]
    frame = predictor.steps(images, rig_of())
    assert [image.shape[:2] for image in frame["images"]] == [(36, 60), (30, 45), (36, 60)]
    prediction, _ = predictor.step(images, rig_of())
    assert np.isfinite(prediction.boxes.boxes).all() and len(prediction.boxes)


def test_a_camera_without_an_image_sees_nothing(predictor, monkeypatch):
    # Expected: the encoder with that camera taken out of its visibility by hand, and its image all mean colour; what
    # another image of that camera would show plays no part.
    images, rig = images_of(4), rig_of()
    missing, _ = predictor.step([images[0], None, images[2]], rig)
    blank = [images[0], np.full_like(images[1], 7), images[2]]

    def seen_by_others(rig, pillars, num_slots):
        uv, depth = project_points(rig.pixels_from_bev, pillars.flatten(0, 1))
        seen = visible_points(uv, depth, rig.image_size_px).unflatten(-1, pillars.shape[:2]).any(-1)
        seen[:, 1] = False
        height, width = rig.padded_size_px
        return plan_from_mask(seen, (uv / uv.new_tensor([width, height])).unflatten(2, pillars.shape[:2]))

    whole, _ = predictor.step(images, rig)
    monkeypatch.setattr(visibility_module, "plan_visibility", seen_by_others)
    predictor.model.encoder._plans = visibility_module.PlanCache()  # which has the rig's plan otherwise
    for others in (images, blank):
        assert_same(predictor.step(others, rig)[0], missing)
    assert differ(whole, missing)


def test_a_camera_without_an_image_sees_nothing_in_the_published_encoder_either(monkeypatch):
    # There what falls into the padding counts as seen (docs/reference.md 4.1 N), so that a size of 0 hides nothing.
    cfg = small_config()
    cfg.model.encoder.type = "PaddingSeesEncoder"
    predictor, images = predictor_of(cfg), images_of(4)
    frame = predictor._batch(Moment([images[0], None, images[2]], rig_of()), Motion(), {}, None)["inputs"].frames[0]
    plan = predictor.model.encoder.visibility(frame.rig)
    cameras = set(plan.slots.flatten().tolist())
    assert cameras == {-1, 0, 2} and (frame.images[0, 1] == 0).all()


def test_fewer_cameras_are_the_first_ones(predictor):
    # Expected: as the whole rig whose last camera gives no image.
    images, rig = images_of(5), rig_of()
    two = Rig(rig.pixels_from_camera[:2], rig.camera_from_bev[:2], CAMERAS[:2], EGO_FROM_BEV, [SIZE_PX] * 2)
    prediction, _ = predictor.step(images[:2], two)
    assert_same(prediction, predictor.step([*images[:2], None], rig)[0])


def test_memory_is_handed_out_and_in(predictor):
    # Expected: memory changes the answer; nothing is kept between steps; a new start forgets.
    images, later, rig, (start, motion) = images_of(6), images_of(7), rig_of(), drive(2)
    _, memory = predictor.step(images, rig, start)
    with_memory, after = predictor.step(later, rig, motion, memory)
    without, _ = predictor.step(later, rig, motion)
    assert differ(with_memory, without) and after.features.shape == memory.features.shape
    assert_same(predictor.step(later, rig, motion, memory)[0], with_memory)
    assert_same(predictor.step(later, rig, Motion.start(), memory)[0], predictor.step(later, rig)[0])
    turned = Motion(pose(0, 2, 30), 0.5)
    assert differ(predictor.step(later, rig, turned, memory)[0], with_memory)


def test_a_stream_is_its_steps(predictor):
    # Expected: the steps one by one, with memory between them; anew where a moment says so, as if nothing had been.
    motions = drive(3)
    moments = [Moment(images_of(t), rig_of(), motion) for t, motion in enumerate(motions)]
    moments += [Moment(images_of(9), rig_of()), Moment(images_of(10), rig_of(), motions[1])]
    predictions = list(predictor.stream(moments))
    memory = None
    for moment, prediction in zip(moments, predictions, strict=True):
        memory = memory if moment.motion is not None else None
        expected, memory = predictor.step(moment.images, moment.rig, moment.motion, memory)
        assert_same(prediction, expected)
    assert_same(next(iter(predictor.stream(moments[3:]))), predictions[3])
    # A clip cut out of a drive begins without a memory, whatever its first motion says.
    first, cut = moments[1], next(iter(predictor.stream(moments[1:])))
    assert_same(cut, predictor.step(first.images, first.rig, first.motion)[0])


def test_a_stream_is_lazy(predictor):
    def moments():
        yield Moment(images_of(0), rig_of())
        raise AssertionError("asked for the second moment before the first was taken")

    next(iter(predictor.stream(moments())))


def test_a_stream_knows_places_and_times(predictor):
    # Expected: by hand. Where the motion says where the car is, there; else from where the stream began.
    motions = drive(2)
    known = list(predictor.stream(Moment(images_of(0), rig_of(), motion) for motion in motions))
    np.testing.assert_allclose(known[1].sample.global_from_bev, motions[1].global_from_bev)
    step = Motion(pose(0, 2, 0), 0.25)
    clip = [Moment(images_of(0), rig_of(), motion) for motion in (None, step, step, None)]
    unknown = [prediction.sample for prediction in predictor.stream(clip)]
    assert [sample.timestamp_s for sample in unknown] == [0, 0.25, 0.5, 0]
    assert [sample.scene_token for sample in unknown] == ["stream 0"] * 3 + ["stream 1"]
    np.testing.assert_allclose(unknown[2].global_from_bev, pose(0, 4, 0), atol=1e-12)


def test_boxes_get_identities_along_a_stream():
    # Expected: the same images again and a car that stands still: the same boxes, so the same identities.
    cfg = small_config()
    cfg.tracker = dict(type="CenterPointTracker")
    predictor, still = predictor_of(cfg), Motion(np.eye(4), 0.5)
    moments = [Moment(images_of(0), rig_of(), motion) for motion in (None, still, still)]
    tracked = list(predictor.stream(moments, track=True))
    assert tracked[0].boxes.track_ids is not None and (tracked[0].boxes.track_ids >= 0).any()
    best = [int(prediction.boxes.track_ids[0]) for prediction in tracked[1:]]
    assert best[0] == best[1] >= 0
    assert tracked[0].as_dict()["boxes"][0]["track_id"] == int(tracked[0].boxes.track_ids[0])
    assert predictor.step(images_of(0), rig_of())[0].boxes.track_ids is None
    picture = predictor.draw(tracked[1], images_of(0), rig_of())
    assert picture.dtype == np.uint8 and picture.shape[1] > picture.shape[0]


def test_the_answer_in_plain_values(predictor):
    prediction, _ = predictor.step(images_of(0), rig_of())
    plain = json.loads(json.dumps(prediction.as_dict(), allow_nan=False))
    assert set(plain) == {"frame", "boxes", "rasters"} and plain["frame"] == "bev"
    assert len(plain["boxes"]) == len(prediction.boxes) and plain["boxes"][0]["class"] in ("car", "pedestrian")
    assert np.shape(plain["rasters"]["map"]["layers"]["grass"]) == (12, 10)
    assert plain["rasters"]["map"]["grid"]["x_range_m"] == [-15, 15]
    assert prediction.as_dict(cells=False)["rasters"]["map"]["layers"] == ["road", "grass"]


def test_a_picture(predictor):
    # Expected: two rows of cameras, the prediction's panel; grey where a camera has no image.
    images, rig = images_of(0), rig_of()
    prediction, _ = predictor.step(images, rig)
    picture = predictor.draw(prediction, images, rig, score_thr=0.9)
    lacking = predictor.draw(prediction, [images[0], None, images[2]], rig, score_thr=0.9)
    assert picture.shape == lacking.shape and picture.std() > 10
    grey = (np.abs(lacking.astype(int) - 127).max(-1) < 3).sum() - (np.abs(picture.astype(int) - 127).max(-1) < 3).sum()
    assert grey > 0.5 * 288 * 480  # most of one camera of 288 x 480 px
    tall = predictor.draw(prediction, images, rig, layout="tall")
    assert tall.shape[0] > picture.shape[0] > 0 and tall.shape[1] < picture.shape[1]


def test_sweeps_reach_a_video_backbone():
    # Expected: the order of the sweeps counts, and so does what they show; seen from where the camera stands now they
    # are other pictures; a camera without an image now needs no sweeps.
    cfg = small_config(**VIDEO)
    cfg.test_dataloader.dataset.pipeline.insert(1, dict(type="LoadCameraSweeps", num_sweeps=2))
    predictor, now, before = predictor_of(cfg), images_of(0), [images_of(1), images_of(2)]
    there, _ = predictor.step(now, rig_of(), sweeps=Sweeps(before))
    swapped, _ = predictor.step(now, rig_of(), sweeps=Sweeps(before[::-1]))
    assert differ(there, swapped)
    frame = predictor.steps(now, rig_of(), Sweeps(before))
    assert frame["sweeps"][0][2].shape == (36, 60, 3)
    lacking, _ = predictor.step([now[0], None, now[2]], rig_of(), sweeps=Sweeps([[a, None, c] for a, _, c in before]))
    assert differ(lacking, there)
    cfg.test_dataloader.dataset.pipeline[1]["still_height_m"] = 0.5
    steady, moved = ImageSteps.of_config(cfg), np.tile(np.eye(4), (2, 3, 1, 1))
    assert np.array_equal(steady(now, rig_of(), Sweeps(before, moved))["sweeps"][0][0], frame["sweeps"][0][0])
    moved[..., 2, 3] = 1.0
    assert not np.array_equal(steady(now, rig_of(), Sweeps(before, moved))["sweeps"][0][0], frame["sweeps"][0][0])
    said = {
        "sweeps: images: the model looks at 2 images that each camera took before; none given": None,
        "sweeps: images: the model looks at 2 images that each camera took before; 1 given": Sweeps(before[:1]),
        "sweeps: images[1]: 2 images for the rig's 3 cameras": Sweeps([before[0], before[1][:2]]),
        "sweeps: images[0][1]: absent, though the camera": Sweeps([[before[0][0], None, before[0][2]], before[1]]),
        "sweeps: images[1][2]: 80x40, the image of the moment has 80x48": Sweeps(
            [before[0], [*before[1][:2], before[1][2][:40]]]
        ),
    }
    for line, sweeps in said.items():
        with pytest.raises(InputError) as caught:
            predictor.step(now, rig_of(), sweeps=sweeps)
        assert str(caught.value).startswith(line)
    with pytest.raises(InputError, match="sweeps: sweep_from_camera: absent: the model sees sweeps from where"):
        steady(now, rig_of(), Sweeps(before))


def test_can_bus_vectors_of_poses():
    # Expected: by hand, of the car (the BEV frame is turned in it): it stood at (100, 50) and drove 2 m along a heading
    # of 90 degrees while turning 10 degrees to the left. In BEV axes (y ahead) after the turn it came from 10 degrees
    # right of behind.
    before, now = pose(100, 50, 90), pose(100, 52, 100)
    motion = Motion.from_ego(before, now, EGO_FROM_BEV, 0.5)
    vector = can_bus_vector(CorrectedCanBus(), motion, EGO_FROM_BEV)
    angle = np.radians(10)
    np.testing.assert_allclose(vector[:3], [2 * np.sin(angle), 2 * np.cos(angle), 0], atol=1e-9)
    half = np.radians(50)
    np.testing.assert_allclose(vector[3:7], [np.cos(half), 0, 0, np.sin(half)], atol=1e-9)
    np.testing.assert_allclose(vector[7:], [*[0] * 10, 10], atol=1e-9)
    published = can_bus_vector(ReferenceCanBus(), motion, EGO_FROM_BEV)
    np.testing.assert_allclose(published[[0, 1, 3, 16, 17]], [0, 2, np.cos(half), np.radians(100), 10], atol=1e-9)
    # Without a global pose the moment before stands for it: the same motion, another heading.
    relative = can_bus_vector(CorrectedCanBus(), Motion(motion.previous_from_current, 0.5), EGO_FROM_BEV)
    np.testing.assert_allclose(relative[[0, 1, 2, 17]], vector[[0, 1, 2, 17]], atol=1e-9)
    first = can_bus_vector(CorrectedCanBus(), Motion.start(now @ EGO_FROM_BEV), EGO_FROM_BEV)
    np.testing.assert_allclose(first, [0, 0, 0, *vector[3:7], *[0] * 11], atol=1e-9)
    assert EgoState.of_bev_pose(pose(0, 0, -170) @ EGO_FROM_BEV, EGO_FROM_BEV).raw[3] > 0


def test_models_that_read_can_bus_get_it():
    # Expected: the same motion from another place changes nothing but for the absolute heading, which this model reads.
    cfg = small_config()
    cfg.model.encoder.motion_embedding = dict(type="MotionEmbedding", channels=8)
    cfg.test_dataloader.dataset.can_bus_form = dict(type="ReferenceCanBus", unwrapped_yaw_change=False)
    predictor, images = predictor_of(cfg), images_of(0)
    assert isinstance(predictor.can_bus_form, ReferenceCanBus) and not predictor.can_bus_form.unwrapped_yaw_change
    one, two = (
        Motion.between(turn @ pose(0, 0, 0), turn @ pose(0, 2, 5), 0.5) for turn in (pose(5, 5, 0), pose(5, 5, 45))
    )
    assert differ(predictor.step(images, rig_of(), one)[0], predictor.step(images, rig_of(), two)[0])


IMAGE = np.zeros((*SIZE_PX, 3), np.uint8)
TOO_MANY = dict(images=[IMAGE] * 4, rig=Rig(np.tile(np.eye(3), (4, 1, 1)), np.tile(np.eye(4), (4, 1, 1))))
MISTAKES = [
    (dict(images=[IMAGE] * 2), "images: number: 2 images for the rig's 3 cameras"),
    (dict(images=[None] * 3), "images: number: every camera lacks its image"),
    (TOO_MANY, "rig: cameras: 4 cameras; the model was built for 3 (encoder.num_cameras): leave some out"),
    (dict(images=[IMAGE, IMAGE, IMAGE / 255]), "images: images[2]: is float64; expected uint8 RGB, 0 to 255"),
    (dict(images=[IMAGE, IMAGE[0], IMAGE]), "images: images[1]: has shape (80, 3); expected (H, W, 3) or (3, H, W)"),
    (dict(images=[IMAGE, IMAGE, 5]), "images: images[2]: is a int; expected an array, a tensor or a path"),
    (dict(images=[IMAGE, IMAGE, "absent.jpg"]), "absent.jpg: image: No such file or directory"),
    (dict(sweeps=Sweeps([[IMAGE] * 3])), "sweeps: images: the model takes no earlier images; 1 given"),
    (
        dict(images=[IMAGE, IMAGE[:40], IMAGE], rig=rig_of(image_size_px=[SIZE_PX] * 3)),
        "images: CAM_LEFT: 80x40, its intrinsics are for 80x48; change them as the image was changed",
    ),
]


@pytest.mark.parametrize(("changes", "said"), MISTAKES, ids=[said for _, said in MISTAKES])
def test_a_mistake_is_one_line(predictor, changes, said):
    with pytest.raises(InputError) as caught:
        predictor.step(**{"images": [IMAGE] * 3, "rig": rig_of(), **changes})
    assert str(caught.value) == said


def test_cameras_in_another_order_are_one_line(tmp_path):
    """The checkpoint says in which order it met them; without a name for them nobody knows."""
    told = {"dataset_meta": {"cameras": CAMERAS}}
    predictor = Predictor(load_model(saved(tmp_path / "a.pth", small_config(), **told), device="cpu"))
    assert predictor.model.cameras == CAMERAS
    for names in (CAMERAS, ("a", "b", "c")):
        predictor.step([IMAGE] * 3, rig_of(names=names))
    with pytest.raises(InputError, match="rig: cameras: .*CAM_RIGHT is number 1 instead of 2"):
        predictor.step([IMAGE] * 3, rig_of(names=("CAM_FRONT", "CAM_RIGHT", "CAM_LEFT")))


def test_a_memory_without_a_motion_is_one_line(predictor):
    _, memory = predictor.step(images_of(0), rig_of())
    with pytest.raises(InputError, match="step: motion: absent, though there is a memory"):
        predictor.step(images_of(0), rig_of(), memory=memory)


def test_an_image_that_the_steps_cannot_take_is_one_line():
    cfg = small_config()
    cfg.test_dataloader.dataset.pipeline[1] = dict(
        type="ResizeCropFlipImages", scale=1.0, source_crop_px=(0, 0, 100, 40)
    )
    said = r"images: ResizeCropFlipImages.source_crop_px: \(0, 0, 100, 40\) is not inside an image of 80x48"
    with pytest.raises(InputError, match=said):
        predictor_of(cfg).step(images_of(0), rig_of())


def test_a_backbone_of_one_size_is_one_line():
    # hiera's position embedding belongs to one image size.
    backbone = dict(type="TimmBackbone", name="hiera_tiny_224", out_indices=(1,), image_size=(64, 96))
    cfg = small_config(backbone=backbone, neck=dict(type="TopDownNeck", out_channels=8, out_levels=(0,)))
    cfg.test_dataloader.dataset.pipeline[1] = dict(type="ResizeImages", size=(64, 96))
    cfg.model.encoder.num_levels = 1
    model = trained(cfg).eval()
    Predictor(model, cfg).step(images_of(0), rig_of())
    cfg.test_dataloader.dataset.pipeline[1] = dict(type="ResizeImages", size=(96, 96))
    said = "model: backbone: hiera_tiny_224 was built for images of 64 x 96 and takes none of 96 x 96"
    with pytest.raises(InputError, match=said):
        Predictor(model, cfg).step(images_of(0), rig_of())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda cfg: cfg.pop("test_dataloader"), "config: test_dataloader.dataset.pipeline: absent: nothing says how"),
        (
            lambda cfg: cfg.test_dataloader.dataset.pipeline.append(dict(type="Unheard")),
            "config: test_dataloader.dataset.pipeline.3.type: unknown name 'Unheard'",
        ),
        (
            lambda cfg: cfg.test_dataloader.dataset.pipeline[1].pop("scale"),
            "config: ResizeImages: ResizeImages: give either scale or size",
        ),
        (lambda cfg: cfg.update(test_cfg=dict(dtype="float16")), "config: dtype: float16 needs a GPU"),
    ],
)
def test_a_config_that_does_not_do_is_one_line(predictor, change, said):
    cfg = small_config()
    change(cfg)
    with pytest.raises(InputError) as caught:
        Predictor(predictor.model, cfg)
    assert str(caught.value).startswith(said)


def test_a_config_given_to_the_predictor_wins(predictor):
    # Expected: what it says of the labels; without a word of it, what the model says.
    cfg = small_config()
    assert Predictor(predictor.model).classes == ("car", "pedestrian")
    cfg.test_dataloader.dataset.classes = ("van", "child")
    prediction, _ = Predictor(predictor.model, cfg).step(images_of(0), rig_of())
    assert set(prediction.boxes.names) <= {"van", "child"}


def test_other_models_are_one_line():
    with pytest.raises(InputError, match="Predictor: config: the model carries none"):
        Predictor(torch.nn.Linear(1, 1))
    with pytest.raises(InputError, match="Predictor: model: Linear makes no steps"):
        Predictor(torch.nn.Linear(1, 1), small_config())


def test_tracking_without_a_tracker_is_one_line(predictor):
    with pytest.raises(InputError, match="tracker: absent: nothing to track with"):
        predictor.stream([], track=True)


def test_other_steps_of_the_pipeline_are_left_out(predictor):
    # Expected: targets and labels are no business of images; the same answer with and without them.
    cfg = small_config()
    extra = [dict(type="RasteriseBoxes", grid=cfg.model.encoder.grid), dict(type="LoadSceneLabels")]
    cfg.test_dataloader.dataset.pipeline[2:2] = extra
    prediction, _ = Predictor(predictor.model, cfg).step(images_of(0), rig_of())
    assert_same(prediction, predictor.step(images_of(0), rig_of())[0])

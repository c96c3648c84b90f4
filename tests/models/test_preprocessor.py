"""The preprocessor against formulas, OpenCV, and a plain restatement of the published augmentations."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData

from bevstack.geometry import BEVGrid
from bevstack.models.image_augmentation import (
    GridMask,
    PhotometricDistortion,
    scale_saturation,
    shift_hue_scale_saturation,
)
from bevstack.models.preprocessor import BEVPreprocessor
from bevstack.registry import MODELS
from bevstack.structures import BEVDataSample, BEVRaster
from bevstack.structures.boxes import lidar_boxes

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def packed_sample(seed=0, size=(30, 50), num_frames=2, sizes=None):
    """One sample as the pipeline packs it, two cameras; channels-last memory as there."""
    g = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (num_frames, 2, *size, 3), generator=g, dtype=torch.uint8).permute(0, 1, 4, 2, 3)
    sizes = torch.tensor([size, size] if sizes is None else sizes).expand(num_frames, 2, 2)
    inputs = {
        "images": images,
        "pixels_from_camera": torch.randn(num_frames, 2, 3, 3, generator=g),
        "camera_from_bev": torch.randn(num_frames, 2, 4, 4, generator=g),
        "image_size_px": sizes.clone(),
        "previous_from_current": torch.randn(num_frames, 4, 4, generator=g),
        "has_previous": torch.tensor([False] + [True] * (num_frames - 1)),
        "seconds": torch.rand(num_frames, generator=g),
        "can_bus": torch.randn(num_frames, 18, generator=g),
    }
    sample = BEVDataSample(metainfo={"token": f"token{seed}"})
    sample.gt_instances_3d = InstanceData(bboxes_3d=lidar_boxes(torch.rand(3, 9)), labels_3d=torch.arange(3))
    sample.gt_rasters = {"map": BEVRaster(torch.ones(6, 4, 5, dtype=torch.uint8), tuple("abcdef"), BEVGrid((4, 5)))}
    return {"inputs": inputs, "data_samples": sample}


def test_is_registered_and_builds_from_a_config():
    config = {"type": "BEVPreprocessor", "photometric": {}, "grid_mask": {"prob": 0.5}}
    assert isinstance(MODELS.build(config), BEVPreprocessor)


def test_normalisation_padding_and_the_clip():
    samples = [packed_sample(0), packed_sample(1)]
    out = BEVPreprocessor(MEAN, STD)(pseudo_collate(samples))
    clip = out["inputs"]
    assert len(clip.frames) == 2 and clip.memory is None and clip.batch_size == 2
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    for t, frame in enumerate(clip.frames):
        assert frame.images.shape == (2, 2, 3, 32, 64) and frame.images.dtype == torch.float32
        assert frame.rig.padded_size_px == (32, 64)
        for b, sample in enumerate(samples):
            inputs = sample["inputs"]
            expected = (inputs["images"][t].float() - mean) / std
            torch.testing.assert_close(frame.images[b, :, :, :30, :50], expected, atol=1e-5, rtol=1e-5)
            assert torch.equal(frame.rig.pixels_from_camera[b], inputs["pixels_from_camera"][t])
            assert torch.equal(frame.rig.camera_from_bev[b], inputs["camera_from_bev"][t])
            assert torch.equal(frame.rig.image_size_px[b], inputs["image_size_px"][t])
            assert torch.equal(frame.motion.previous_from_current[b], inputs["previous_from_current"][t])
            assert frame.motion.has_previous[b] == inputs["has_previous"][t]
            assert frame.motion.seconds[b] == inputs["seconds"][t]
            assert torch.equal(frame.motion.can_bus[b], inputs["can_bus"][t])
        assert (frame.images[..., 30:, :] == 0).all() and (frame.images[..., 50:] == 0).all()
        assert frame.images.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    assert [sample.token for sample in out["data_samples"]] == ["token0", "token1"]


def test_bgr_is_the_reversed_order():
    # The small and base configurations: BGR, std 1 (docs/reference.md 5, small, base). Blue comes third.
    data = pseudo_collate([packed_sample()])
    out = BEVPreprocessor((103.53, 116.28, 123.675), (1.0, 1.0, 1.0), channel_order="bgr")(data)
    got = out["inputs"].frames[0].images[0, :, 0, :30, :50]
    torch.testing.assert_close(got, data["inputs"]["images"][0][0, :, 2].float() - 103.53, atol=1e-4, rtol=0)


@pytest.mark.parametrize("divisor, padded", [(1, (30, 50)), (10, (30, 50)), (64, (64, 64))])
def test_padding_to_a_multiple(divisor, padded):
    out = BEVPreprocessor(pad_divisor=divisor)(pseudo_collate([packed_sample()]))
    assert out["inputs"].frames[0].rig.padded_size_px == padded == out["inputs"].frames[0].images.shape[-2:]


@pytest.mark.parametrize("training", [False, True])
def test_pixels_outside_an_images_own_size_are_exactly_zero(training):
    # Cameras and samples of different sizes in one batch; what lies outside is zero though its bytes are not.
    samples = [packed_sample(0, (30, 50), sizes=[(30, 50), (20, 33)]), packed_sample(1, (25, 60))]
    model = BEVPreprocessor(photometric={}, grid_mask={"prob": 1.0})
    for frame in model(pseudo_collate(samples), training)["inputs"].frames:
        assert frame.rig.padded_size_px == (32, 64)
        for b, camera, (height, width) in ((0, 0, (30, 50)), (0, 1, (20, 33)), (1, 0, (25, 60)), (1, 1, (25, 60))):
            image = frame.images[b, camera]
            assert (image[:, height:] == 0).all() and (image[:, :, width:] == 0).all()
            assert image[:, :height, :width].abs().sum() > 0
            assert frame.rig.image_size_px[b, camera].tolist() == [height, width]


def test_a_batch_of_two_is_two_batches_of_one():
    model = BEVPreprocessor()
    samples = [packed_sample(0), packed_sample(1)]
    both = model(pseudo_collate(samples))["inputs"]
    for b, sample in enumerate(samples):
        alone = model(pseudo_collate([sample]))["inputs"]
        for frame, single in zip(both.frames, alone.frames, strict=True):
            assert torch.equal(frame.images[b], single.images[0])
            assert torch.equal(frame.rig.pixels_from_bev[b], single.rig.pixels_from_bev[0])


def test_memory_order_of_the_input_does_not_matter():
    sample = packed_sample()
    plain = BEVPreprocessor()(pseudo_collate([sample]))["inputs"].frames[0].images
    sample["inputs"]["images"] = sample["inputs"]["images"].contiguous()
    assert torch.equal(BEVPreprocessor()(pseudo_collate([sample]))["inputs"].frames[0].images, plain)


def test_augmentation_happens_in_training_alone_and_by_the_seed():
    model = BEVPreprocessor(photometric={}, grid_mask={"prob": 1.0})
    data = pseudo_collate([packed_sample(0), packed_sample(1)])

    def images(training, seed=0):
        torch.manual_seed(seed)
        return torch.stack([frame.images for frame in model(data, training)["inputs"].frames])

    assert torch.equal(images(False, 0), images(False, 1))
    assert torch.equal(images(True, 0), images(True, 0))
    assert not torch.equal(images(True, 0), images(True, 1))
    assert not torch.equal(images(True, 0), images(False))


def test_grid_mask_reaches_the_last_frame_alone():
    data = pseudo_collate([packed_sample(num_frames=3)])
    plain = BEVPreprocessor()(data)["inputs"].frames
    masked = BEVPreprocessor(grid_mask={"prob": 1.0})(data, training=True)["inputs"].frames
    for old, new in zip(plain[:2], masked[:2], strict=True):
        assert torch.equal(old.images, new.images)
    erased = masked[2].images == 0
    assert not torch.equal(plain[2].images, masked[2].images)
    assert torch.equal(masked[2].images[~erased], plain[2].images[~erased])


def test_inputs_are_left_as_they_were():
    data = pseudo_collate([packed_sample()])
    before = data["inputs"]["images"][0].clone()
    BEVPreprocessor(photometric={}, grid_mask={})(data, training=True)
    assert torch.equal(data["inputs"]["images"][0], before)


def test_samples_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match="frames or cameras"):
        BEVPreprocessor()(pseudo_collate([packed_sample(num_frames=1), packed_sample(num_frames=2)]))


@pytest.mark.parametrize(
    "arguments", [{"channel_order": "gbr"}, {"mean": (0.0,)}, {"std": (1.0, 0.0, 1.0)}, {"dtype": "int8"}]
)
def test_wrong_arguments_are_refused(arguments):
    with pytest.raises(ValueError):
        BEVPreprocessor(**arguments)


def test_labels_reach_the_device():
    # The meta device stands for any that is not the CPU: every tensor of a sample must have moved there.
    model = BEVPreprocessor()
    model._device = torch.device("meta")
    sample = model._moved(packed_sample()["data_samples"])
    assert sample.gt_rasters["map"].layers.device.type == "meta" and sample.gt_rasters["map"].classes == tuple("abcdef")
    assert sample.gt_instances_3d.bboxes_3d.tensor.device.type == "meta"
    assert sample.gt_instances_3d.labels_3d.device.type == "meta"


def with_sweeps(sample, moments=2, seed=5):
    images = sample["inputs"]["images"]
    size = (images.shape[0], moments, *images.shape[1:])
    sample["inputs"]["sweeps"] = torch.randint(
        0, 256, size, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )
    return sample


def images_of(model, data, training, seed=3):
    """Images and sweeps of a batch's clip, as they were handed out."""
    torch.manual_seed(seed)
    frames = model(data, training)["inputs"].frames
    return [images for frame in frames for images in (frame.images, frame.sweeps) if images is not None]


@pytest.mark.parametrize("channel_order", ["rgb", "bgr"])
@pytest.mark.parametrize("training", [False, True])
def test_a_cpus_one_pass_is_the_operators_of_other_devices(channel_order, training, monkeypatch):
    # Expected: torch's operators, which are what a GPU computes; cameras and samples of different, odd sizes.
    samples = [packed_sample(0, (31, 53), sizes=[(31, 53), (20, 33)]), packed_sample(1, (25, 61))]
    data = pseudo_collate([with_sweeps(sample) for sample in samples])
    model = BEVPreprocessor(MEAN, STD, channel_order, photometric={}, grid_mask={"prob": 1.0})
    got = images_of(model, data, training)
    monkeypatch.setattr(model, "_normalized", lambda *arguments: model._normalized_by_operators(*arguments[:4]))
    expected = images_of(model, data, training)
    assert len(got) == len(expected) == 4
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.stride() == theirs.stride()
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_what_was_handed_out_is_never_written_to_again():
    # The memory of a clip serves the next one only after the clip is gone: a history frame that is kept stays as it is.
    model = BEVPreprocessor(photometric={}, grid_mask={"prob": 1.0})
    data = pseudo_collate([with_sweeps(packed_sample(0)), with_sweeps(packed_sample(1))])
    kept, copies = [], []
    for seed in range(5):
        images = images_of(model, data, True, seed)
        kept.append([images[0], images[1][:, 1], images[2][0].permute(1, 0, 2, 3)])  # whole, and views of others
        copies.append([image.clone() for image in kept[-1]])
        del images
    for now, then in zip(kept, copies, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(now, then, strict=True))


def test_the_memory_of_a_clip_that_is_gone_serves_the_next():
    model, data = BEVPreprocessor(), pseudo_collate([packed_sample()])
    places = [{images.data_ptr() for images in images_of(model, data, False)} for _ in range(4)]
    assert places[0] == places[1] == places[2] == places[3] and len(places[0]) == 2


@pytest.mark.parametrize("training", [False, True])
def test_images_in_the_format_of_autocast(training):
    # The first convolution under autocast rounds its input; here that is done once, on the way.
    plain = BEVPreprocessor(photometric={}, grid_mask={})
    model = BEVPreprocessor(photometric={}, grid_mask={}, dtype="autocast")
    data = pseudo_collate([with_sweeps(packed_sample())])
    expected = images_of(plain, data, training)
    assert all(torch.equal(*pair) for pair in zip(images_of(model, data, training), expected, strict=True))
    with torch.autocast("cpu", torch.bfloat16):
        assert all(images.dtype == torch.float32 for images in images_of(plain, data, training))
        rounded = images_of(model, data, training)
        convolution = torch.nn.Conv2d(3, 4, 3)
        before = convolution(expected[0].flatten(0, 1))
        assert torch.equal(convolution(rounded[0].flatten(0, 1)), before)
    for images, exact in zip(rounded, expected, strict=True):
        assert images.dtype == torch.bfloat16 and torch.equal(images, exact.bfloat16())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_seed_gives_the_same_images_on_every_device():
    data = pseudo_collate([packed_sample(0), packed_sample(1)])
    images = []
    for device in ("cpu", "cuda"):
        model = BEVPreprocessor(photometric={}, grid_mask={"prob": 1.0}).to(device)
        torch.manual_seed(3)
        images.append([frame.images.cpu() for frame in model(data, training=True)["inputs"].frames])
    for ours, theirs in zip(*images, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


# Photometric distortion


def colourful(count=6, seed=0):
    """Float RGB from below 0 to above 255, with grey, black and one-coloured patches; (M, H, W, 3)."""
    images = torch.rand(count, 40, 60, 3, generator=torch.Generator().manual_seed(seed)) * 330 - 40
    images[:, :5] = 80.0
    images[:, 5:8] = 0.0
    images[:, 8:12] = torch.tensor([200.0, 200.0, 10.0])
    images[:, 12:16] = torch.tensor([3.0, 3.0, 250.0])
    images[:, 16:18] = -7.0
    return images


def opencv_hsv(image, hue_deg, saturation):
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., 1] *= saturation
    hsv[..., 0] += hue_deg
    hsv[..., 0][hsv[..., 0] > 360] -= 360
    hsv[..., 0][hsv[..., 0] < 0] += 360
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def test_hue_and_saturation_are_those_of_opencv():
    images = colourful(8)
    hue, saturation = torch.linspace(-18, 18, 8), torch.linspace(0.5, 1.5, 8)
    got = shift_hue_scale_saturation(images.permute(0, 3, 1, 2), hue, saturation).permute(0, 2, 3, 1)
    for m in range(8):
        expected = opencv_hsv(images[m].numpy(), float(hue[m]), float(saturation[m]))
        np.testing.assert_allclose(got[m].numpy(), expected, atol=2e-3)


def test_saturation_alone_is_that_of_opencv():
    images, saturation = colourful(4), torch.tensor([0.5, 0.9, 1.1, 1.5])
    got = scale_saturation(images.permute(0, 3, 1, 2), saturation).permute(0, 2, 3, 1)
    for m in range(4):
        expected = opencv_hsv(images[m].numpy(), 0.0, float(saturation[m]))
        np.testing.assert_allclose(got[m].numpy(), expected, atol=2e-3)


def published_order(image, drawn, m):
    """PhotoMetricDistortionMultiViewImage step by step on one (H, W, 3) RGB image, with drawn parameters."""
    image = (image + float(drawn["brightness"][m])) * float(drawn["contrast_first"][m])
    image = opencv_hsv(image.astype(np.float32), float(drawn["hue_deg"][m]), float(drawn["saturation"][m]))
    return (image * float(drawn["contrast_last"][m]))[..., drawn["order"][m].numpy()]


def test_distortion_is_the_published_sequence():
    torch.manual_seed(5)
    distortion, images = PhotometricDistortion(), colourful(24)
    drawn = distortion.draw(24)
    got = distortion.apply(images.permute(0, 3, 1, 2), drawn).permute(0, 2, 3, 1).numpy()
    # A GPU takes the images as one batch, a CPU one by one.
    batched = distortion._apply(images.permute(0, 3, 1, 2), drawn).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(got, batched, atol=1e-4)
    for m in range(24):
        expected = published_order(images[m].numpy(), drawn, m)
        # A trip through HSV that changes neither hue nor saturation is left out; it alters all-negative pixels only.
        stays = drawn["hue_deg"][m] == 0 and drawn["saturation"][m] == 1
        compared = (images[m] + drawn["brightness"][m]).amax(-1).numpy() >= (0 if stays else -np.inf)
        assert compared.mean() > 0.8
        np.testing.assert_allclose(got[m][compared], expected[compared], atol=5e-3)


def test_draws_have_the_published_ranges_and_frequencies():
    # Every step happens to half of the images (five standard deviations of 4000 coins are 0.04).
    torch.manual_seed(0)
    drawn = PhotometricDistortion().draw(4000)
    contrast = drawn["contrast_first"] * drawn["contrast_last"]
    happened = {
        "brightness": drawn["brightness"] != 0,
        "contrast": contrast != 1,
        "saturation": drawn["saturation"] != 1,
        "hue": drawn["hue_deg"] != 0,
    }
    for name, flags in happened.items():
        assert abs(flags.float().mean() - 0.5) < 0.04, name
    # An order drawn from six is the plain one in one case of six: changed in 5/12 of all images.
    changed = (drawn["order"] != torch.arange(3)).any(1).float().mean()
    assert abs(changed - 5 / 12) < 0.04
    first, last = drawn["contrast_first"] != 1, drawn["contrast_last"] != 1
    assert not (first & last).any() and abs(first.float().mean() - 0.25) < 0.04
    saturation = drawn["saturation"]
    ranges = ((drawn["brightness"], -32, 32), (contrast, 0.5, 1.5), (saturation, 0.5, 1.5), (drawn["hue_deg"], -18, 18))
    for values, low, high in ranges:
        span = high - low
        assert low <= values.min() < low + 0.05 * span and high - 0.05 * span < values.max() <= high


def test_images_of_a_batch_are_drawn_one_by_one():
    torch.manual_seed(0)
    out = PhotometricDistortion()(torch.full((12, 3, 2, 2), 100.0))
    assert len(torch.unique(out.flatten(1), dim=0)) > 6


def test_channels_stay_in_place_on_request():
    torch.manual_seed(0)
    assert torch.equal(PhotometricDistortion(swap_channels=False).draw(50)["order"], torch.arange(3).expand(50, 3))


# GridMask


def published_mask(size, period, first_row, first_column, ratio, mode):
    """The published construction with loops on a canvas of one and a half times the image, cut in its middle."""
    height, width = size
    rows, columns = int(1.5 * height), int(1.5 * width)
    stripe = min(max(int(period * ratio + 0.5), 1), period - 1)
    canvas = np.ones((rows, columns))
    for i in range(rows // period):
        canvas[period * i + first_row : min(period * i + first_row + stripe, rows)] = 0
    for i in range(columns // period):
        canvas[:, period * i + first_column : min(period * i + first_column + stripe, columns)] = 0
    top, left = (rows - height) // 2, (columns - width) // 2
    canvas = canvas[top : top + height, left : left + width]
    return canvas == 0 if mode == 1 else canvas == 1


@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.parametrize("size", [(32, 64), (45, 31)])
def test_masks_are_the_published_ones(size, mode):
    torch.manual_seed(1)
    grid_mask = GridMask(mode=mode, prob=1.0)
    drawn = grid_mask.draw(40, size)
    masks = grid_mask.mask(drawn, size)
    for mask, (masked, period, row, column) in zip(masks, drawn.tolist(), strict=True):
        assert masked and 2 <= period < min(size) and 0 <= row < period and 0 <= column < period
        np.testing.assert_array_equal(mask.numpy(), published_mask(size, period, row, column, 0.5, mode))
    assert len(torch.unique(masks.flatten(1), dim=0)) > 20


def test_mask_probability():
    torch.manual_seed(0)
    masked = GridMask(prob=0.7).draw(4000, (64, 64))[:, 0].float().mean()
    assert abs(masked - 0.7) < 0.04
    images = torch.randn(4, 3, 16, 16)
    assert torch.equal(GridMask(prob=0.0)(images), images)


def test_rows_or_columns_alone():
    drawn = torch.tensor([[1, 4, 0, 0]])
    rows = GridMask(use_w=False).mask(drawn, (8, 12))[0]
    assert (rows == rows[:, :1]).all() and rows[:, 0].sum() == 4
    columns = GridMask(use_h=False).mask(drawn, (8, 12))[0]
    assert (columns == columns[:1]).all() and columns[0].sum() == 6


@pytest.mark.parametrize("arguments", [{"rotate": 2}, {"mode": 2}])
def test_unknown_mask_settings_are_refused(arguments):
    with pytest.raises(ValueError):
        GridMask(**arguments)

"""The one pass over bytes against torch's operators, OpenCV and plain formulas (no number here comes from the pass)."""

import cv2
import numba
import numpy as np
import pytest
import torch

from bevstack.models.image_augmentation import GridMask, PhotometricDistortion
from bevstack.ops.image_kernels import compiled, erased
from bevstack.ops.image_normalization import erase_pixels, normalize_images

SCALE, BIAS = torch.tensor([0.017, 0.0175, 0.0174]), torch.tensor([-2.1, -2.0, -1.8])
NEUTRAL = PhotometricDistortion.nothing(1)
CASES = {
    "nothing": {},
    "brightness and contrast first": {"brightness": -31.0, "contrast_first": 1.4},
    "contrast last": {"brightness": 12.0, "contrast_last": 0.6},
    "order": {"order": [2, 0, 1]},
    "saturation": {"saturation": 1.5, "brightness": -31.0},
    "less saturation, order": {"saturation": 0.5, "contrast_last": 1.3, "order": [1, 0, 2]},
    "hue": {"hue_deg": 18.0},
    "hue the other way": {"hue_deg": -17.5, "saturation": 1.49, "brightness": -30.0, "contrast_first": 0.7},
    "hue half around": {"hue_deg": 180.0},
    "hue almost around": {"hue_deg": -350.0, "saturation": 0.8},
    "all": {"hue_deg": 9.0, "saturation": 1.2, "brightness": 25.0, "contrast_last": 1.4, "order": [0, 2, 1]},
}


def drawn(name, count=1):
    """Parameters of ``count`` images that are all distorted as the case says."""
    given = {key: torch.tensor([value], dtype=NEUTRAL[key].dtype) for key, value in CASES[name].items()}
    return {key: value.expand(count, *value.shape[1:]) for key, value in (NEUTRAL | given).items()}


def random_image(height, width, seed=0):
    """(H, W, 3) bytes, with grey, black, white and one-coloured parts."""
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    for row, colour in enumerate([(0, 0, 0), (255, 255, 255), (90, 90, 90), (200, 200, 3), (5, 250, 250), (9, 0, 9)]):
        image[row : row + 1, ::2] = colour
    return torch.from_numpy(image)


def by_operators(image, parameters):
    """(H, W, 3) bytes to normalised numbers, by the operators that a GPU takes."""
    values = PhotometricDistortion._apply(image.permute(2, 0, 1)[None].float(), parameters)[0].permute(1, 2, 0)
    return values * SCALE + BIAS


def normalized(image, parameters, padded=None, size=None, dtype=torch.float32):
    """The pass on one image, into memory full of other numbers."""
    out = torch.full((1, *(padded or image.shape[:2]), 3), 77.0, dtype=dtype)
    normalize_images([image], [size or image.shape[:2]], SCALE, BIAS, parameters, out)
    return out[0]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [(40, 64), (7, 1), (9, 33)])
def test_one_pass_is_the_operators_one_by_one(name, size):
    image, parameters = random_image(*size), drawn(name)
    # A hundredth of a grey level is 2e-4 here; sums of large numbers differ in their last bits.
    torch.testing.assert_close(normalized(image, parameters), by_operators(image, parameters), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_one_pass_is_opencvs_hsv_to_a_hundredth_of_a_grey_level(name):
    image, parameters = random_image(40, 64), {key: value[0] for key, value in drawn(name).items()}
    values = (image.numpy().astype(np.float32) + float(parameters["brightness"])) * float(parameters["contrast_first"])
    hsv = cv2.cvtColor(values.astype(np.float32), cv2.COLOR_RGB2HSV)
    hsv[..., 1] *= float(parameters["saturation"])
    hsv[..., 0] = (hsv[..., 0] + float(parameters["hue_deg"])) % 360
    expected = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * float(parameters["contrast_last"])
    got = ((normalized(image, drawn(name)) - BIAS) / SCALE).numpy()
    # Where no channel is positive and neither hue nor saturation changes, the trip through HSV is left out.
    stays = parameters["hue_deg"] == 0 and parameters["saturation"] == 1
    compared = values.max(-1) > (0 if stays else -np.inf)
    np.testing.assert_allclose(got[compared], expected[..., parameters["order"].numpy()][compared], atol=1e-2)


def test_without_parameters_nothing_is_distorted():
    image = random_image(21, 13)
    torch.testing.assert_close(normalized(image, None), image.float() * SCALE + BIAS, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("name", ["nothing", "order", "saturation", "hue"])
@pytest.mark.parametrize("size", [(20, 30), (19, 1), (1, 29), (0, 0)])
def test_outside_an_images_own_size_stands_exactly_zero(name, size):
    # Bytes beyond the own size are padding of the collation, whatever their value.
    image, parameters, (height, width) = random_image(20, 30), drawn(name), size
    out = normalized(image, parameters, padded=(32, 64), size=size)
    assert (out[height:] == 0).all() and (out[:, width:] == 0).all()
    whole = normalized(image, parameters)
    torch.testing.assert_close(out[:height, :width], whole[:height, :width], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["nothing", "order", "saturation", "hue"])
@pytest.mark.parametrize("rows", [32, 70, 5])
def test_bfloat16_is_the_rounded_float32(name, rows):
    # Rounding as torch rounds, also where a block of rows ends in the middle of the image.
    image = random_image(rows, 23)
    whole = normalized(image, drawn(name), padded=(rows + 3, 32))
    assert torch.equal(normalized(image, drawn(name), (rows + 3, 32), dtype=torch.bfloat16), whole.bfloat16())


def test_images_of_different_sizes_strides_and_colours():
    images = [random_image(12, 17), random_image(9, 40, 1).transpose(0, 1), random_image(16, 16, 2)[2:, 3:]]
    sizes = [image.shape[:2] for image in images]
    names = ["hue", "nothing", "saturation"]
    parameters = {key: torch.cat([drawn(name)[key] for name in names]) for key in NEUTRAL}
    out = torch.full((3, 48, 48, 3), float("nan"))
    before = [image.clone() for image in images]
    normalize_images(images, sizes, SCALE, BIAS, parameters, out)
    for m, (image, (height, width)) in enumerate(zip(images, sizes, strict=True)):
        expected = by_operators(image, drawn(names[m]))
        torch.testing.assert_close(out[m, :height, :width], expected, atol=1e-4, rtol=1e-5)
        assert torch.equal(image, before[m])
    assert not out.isnan().any()


def test_threads_change_nothing():
    images, parameters = [random_image(30, 40, seed) for seed in range(7)], drawn("hue", 7)
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            out = torch.empty(7, 32, 64, 3)
            normalize_images(images, [(30, 40)] * 7, SCALE, BIAS, parameters, out)
            results.append(out)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_erasing_is_multiplying_with_the_mask(dtype):
    torch.manual_seed(0)
    images = torch.randn(4, 21, 34, 3).to(dtype)
    grid_mask = GridMask(prob=0.8)
    keep = grid_mask.mask(grid_mask.draw(4, (21, 34)), (21, 34))
    assert 0 < keep.float().mean() < 1
    expected = images * keep.unsqueeze(-1)
    erase_pixels(keep, images)
    assert torch.equal(images, expected)


def test_loops_are_compiled_where_nothing_can_be_kept(monkeypatch):
    # What numba does where neither the package's folder nor the user's cache can be written to.
    compile_for_this_processor = numba.njit

    def without_a_folder(cache=False, **rules):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return compile_for_this_processor(**rules)

    monkeypatch.setattr(numba, "njit", without_a_folder)
    out = np.ones((2, 6), dtype=np.int32)
    compiled(erased.py_func)(np.array([[True, False], [False, True]]), out)
    assert out.tolist() == [[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]]

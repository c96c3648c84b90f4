"""Photometric distortion and GridMask on batches of images, on whatever device they live.

Random numbers come from torch's CPU generator, so a seed gives the same images on every device and no draw waits for
the device. Both read their inputs and return new tensors.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def scale_saturation(images: Tensor, saturation: Tensor) -> Tensor:
    """Scale the saturation of RGB images as :func:`shift_hue_scale_saturation` does, in a few passes.

    Each channel moves along the line to the pixel's largest one: c' = V - sign(V) * factor * (V - c).
    """
    value = images.amax(1, keepdim=True)
    return torch.addcmul(value, value - images, value.sign() * saturation.view(-1, 1, 1, 1), value=-1.0)


def shift_hue_scale_saturation(images: Tensor, hue_deg: Tensor, saturation: Tensor) -> Tensor:
    """Turn the hue and scale the saturation of RGB images as HSV does.

    Equal to OpenCV's float32 ``RGB2HSV``, ``H += hue_deg``, ``S *= saturation``, ``HSV2RGB`` (V is the largest channel,
    S = (V - smallest) / |V|), values below 0 and saturations above 1 included.

    Args:
        images: (M, 3, H, W) float RGB, any range.
        hue_deg: (M,) degrees.
        saturation: (M,) factors.

    Returns:
        (M, 3, H, W).
    """
    red, green, blue = images.unbind(1)
    value = images.amax(1)
    chroma = value - images.amin(1)
    inverse = chroma.clamp_min(torch.finfo(images.dtype).tiny).reciprocal_()
    # Hue in sixths of a turn: 0 at red, 2 at green, 4 at blue.
    around_green = torch.addcmul(torch.full_like(inverse, 2.0), blue - red, inverse)
    around_blue = torch.addcmul(torch.full_like(inverse, 4.0), red - green, inverse)
    hue = torch.where(value == green, around_green, around_blue)
    hue = torch.where(value == red, (green - blue) * inverse, hue)
    hue = hue.add_(hue_deg.view(-1, 1, 1) / 60.0).remainder_(6.0)
    # Where all channels are negative, V * S = V * chroma / |V| changes its sign, as it does in OpenCV.
    chroma = chroma.mul_(value.sign()).mul_(saturation.view(-1, 1, 1))
    # How far each channel lies below V: nothing within a sixth of its own hue, all of it two sixths away.
    below = (2.0 - (hue - 3.0).abs_(), (hue - 2.0).abs_() - 1.0, (hue - 4.0).abs_() - 1.0)
    return torch.stack([torch.addcmul(value, chroma, share.clamp_(0.0, 1.0), value=-1.0) for share in below], dim=1)


class PhotometricDistortion:
    """BEVFormer's photometric distortion (docs/reference.md 5, Augmentation), every image drawn on its own.

    Brightness, contrast (before or after the next two, by a coin), saturation, hue, contrast, an order of the channels;
    each happens with probability one half. Values are neither rounded nor clipped, as published.
    One thing is left out: an image whose hue and saturation stay does not travel through HSV, which in the published
    code changes only pixels whose three channels are all below 0.

    Args:
        brightness_delta: largest shift on the scale 0 ... 255.
        contrast_range, saturation_range: factors.
        hue_delta: largest turn in degrees.
        swap_channels: whether the channels may be put into another order.
    """

    def __init__(
        self,
        brightness_delta: float = 32.0,
        contrast_range: tuple[float, float] = (0.5, 1.5),
        saturation_range: tuple[float, float] = (0.5, 1.5),
        hue_delta: float = 18.0,
        swap_channels: bool = True,
    ) -> None:
        self.brightness_delta, self.hue_delta = float(brightness_delta), float(hue_delta)
        self.contrast_range, self.saturation_range = tuple(contrast_range), tuple(saturation_range)
        self.swap_channels = swap_channels

    def draw(self, count: int) -> dict[str, Tensor]:
        """Parameters of ``count`` images on the CPU; what does not happen to an image is neutral.

        Keys, each (count,) but the last: ``brightness``, ``contrast_first`` and ``contrast_last`` (factors),
        ``saturation`` (factor), ``hue_deg``, ``order`` (count, 3) channel indices.
        """

        def within(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(count)

        happens = torch.rand(6, count) < 0.5
        contrast = torch.where(happens[1], within(*self.contrast_range), 1.0)
        order = torch.rand(count, 3).argsort(dim=1)
        unchanged = torch.arange(3).expand(count, 3)
        return {
            "brightness": torch.where(happens[0], within(-self.brightness_delta, self.brightness_delta), 0.0),
            "contrast_first": torch.where(happens[2], contrast, 1.0),
            "contrast_last": torch.where(happens[2], 1.0, contrast),
            "saturation": torch.where(happens[3], within(*self.saturation_range), 1.0),
            "hue_deg": torch.where(happens[4], within(-self.hue_delta, self.hue_delta), 0.0),
            "order": torch.where(happens[5].unsqueeze(1), order, unchanged) if self.swap_channels else unchanged,
        }

    @staticmethod
    def nothing(count: int) -> dict[str, Tensor]:
        """Parameters (count,) and (count, 3), as those of :meth:`draw`, that leave every image as it is."""
        neutral = {"brightness": 0.0, "contrast_first": 1.0, "contrast_last": 1.0, "saturation": 1.0, "hue_deg": 0.0}
        drawn = {name: torch.full((count,), value) for name, value in neutral.items()}
        return {**drawn, "order": torch.arange(3).expand(count, 3)}

    def __call__(self, images: Tensor) -> Tensor:
        """(M, 3, H, W) float RGB on the scale 0 ... 255 -> distorted, same shape."""
        return self.apply(images, self.draw(len(images)))

    def apply(self, images: Tensor, drawn: Mapping[str, Tensor]) -> Tensor:
        """Distort (M, 3, H, W) images by the parameters of :meth:`draw`."""
        if images.device.type != "cpu":
            return self._apply(images, drawn)
        # On a CPU one image at a time: it stays in the cache through all passes, which halves the time.
        out = torch.empty_like(images)
        for m in range(len(images)):
            out[m : m + 1] = self._apply(images[m : m + 1], {key: value[m : m + 1] for key, value in drawn.items()})
        return out

    @staticmethod
    def _apply(images: Tensor, drawn: Mapping[str, Tensor]) -> Tensor:
        def on_device(values: Tensor) -> Tensor:
            return values.to(images.device, non_blocking=True)

        def per_image(name: str) -> Tensor:
            return on_device(drawn[name].to(images.dtype)).view(-1, 1, 1, 1)

        # In this order: where the sum is 0, HSV has a jump that a product and a sum in one step could miss.
        images = (images + per_image("brightness")).mul_(per_image("contrast_first"))
        turned = drawn["hue_deg"] != 0
        for chosen, with_hue in ((turned, True), (~turned & (drawn["saturation"] != 1), False)):
            where = on_device(torch.nonzero(chosen).flatten())
            if not len(where):
                continue
            saturation = per_image("saturation").flatten()[where]
            if with_hue:
                hue = per_image("hue_deg").flatten()[where]
                images[where] = shift_hue_scale_saturation(images[where], hue, saturation)
            else:
                images[where] = scale_saturation(images[where], saturation)
        images *= per_image("contrast_last")
        swapped = torch.nonzero((drawn["order"] != torch.arange(3)).any(1)).flatten()
        for m in swapped.tolist():
            images[m] = images[m, on_device(drawn["order"][m])]
        return images


class GridMask:
    """GridMask (arXiv 2001.04086) with the parameters that BEVFormer uses, one mask per image.

    A lattice of period d, drawn from [2, min(H, W)), is laid over a canvas 1.5 times the image; stripes of
    ``ratio`` * d rows and columns start at a drawn offset. With ``mode`` 1 what lies on no stripe is erased, with 0
    what lies on one.
    The published code draws one mask for a whole batch; here every image gets its own, so that a batch is as varied as
    its samples one by one. ``rotate`` = 1 is the published setting and means no rotation; others are refused.

    Args:
        use_h, use_w: stripes of rows, of columns.
        rotate: must be 1.
        ratio: width of a stripe in periods.
        mode: 1 keeps the stripes, 0 erases them.
        prob: probability of a mask for each image.
    """

    def __init__(
        self,
        use_h: bool = True,
        use_w: bool = True,
        rotate: int = 1,
        ratio: float = 0.5,
        mode: int = 1,
        prob: float = 0.7,
    ) -> None:
        if rotate != 1:
            raise ValueError(f"GridMask: rotate must be 1 (no rotation), not {rotate}")
        if mode not in (0, 1):
            raise ValueError(f"GridMask: mode must be 0 or 1, not {mode}")
        self.use_h, self.use_w, self.ratio, self.mode, self.prob = use_h, use_w, ratio, mode, prob

    def draw(self, count: int, size: tuple[int, int]) -> Tensor:
        """(count, 4) int64 on the CPU: masked at all, period d, first row and first column of the lattice."""
        shortest = min(size)
        masked = torch.rand(count) < self.prob
        period = 2 + (torch.rand(count) * max(shortest - 2, 1)).long()
        rows, columns = ((torch.rand(count) * period).long() for _ in range(2))
        return torch.stack([masked.long(), period, rows, columns], dim=1)

    def mask(self, drawn: Tensor, size: tuple[int, int]) -> Tensor:
        """(M, H, W) bool on the device of ``drawn``, True where pixels stay."""
        masked, period, first_row, first_column = (column.unsqueeze(1) for column in drawn.unbind(1))
        stripe = (period * self.ratio + 0.5).long().clamp_min(1).minimum(period - 1)

        def on_stripe(length: int, first: Tensor, used: bool) -> Tensor:
            canvas = int(1.5 * length)
            # Only whole periods of the canvas carry a stripe, as published.
            place = torch.arange(length, device=drawn.device) + (canvas - length) // 2 - first
            index = torch.div(place, period, rounding_mode="floor")
            return (place - index * period < stripe) & (index >= 0) & (index < canvas // period) & used

        rows = on_stripe(size[0], first_row, self.use_h)
        columns = on_stripe(size[1], first_column, self.use_w)
        striped = rows.unsqueeze(2) | columns.unsqueeze(1)
        return (striped == bool(self.mode)) | (masked == 0).unsqueeze(2)

    def __call__(self, images: Tensor) -> Tensor:
        """(M, 3, H, W) normalised images -> the same with the erased pixels 0, the mean colour."""
        size = (images.shape[-2], images.shape[-1])
        drawn = self.draw(len(images), size).to(images.device, non_blocking=True)
        return images * self.mask(drawn, size).unsqueeze(1)

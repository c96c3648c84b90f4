"""From collated samples to the model's clip: photometric work, normalisation and padding on the model's device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from mmengine.model import BaseDataPreprocessor
from torch import Tensor

from bevstack.buffers import ReusedBuffers
from bevstack.models.image_augmentation import GridMask, PhotometricDistortion
from bevstack.ops.image_normalization import erase_pixels, normalize_images
from bevstack.registry import MODELS
from bevstack.structures import BEVDataSample, BEVRaster, CameraRig, Clip, EgoMotion, Frame


@MODELS.register_module()
class BEVPreprocessor(BaseDataPreprocessor):
    """Collated uint8 images and matrices -> :class:`Clip` of normalised images, batched on the device.

    In training, in the published order: photometric distortion (every image of every frame), normalisation, GridMask
    (the last frame alone: history frames of the reference run in evaluation mode). Pixels outside an image's own size
    are exactly 0 after all that, and so is the padding to a multiple of ``pad_divisor``. Images are channels-last in
    memory. Camera sweeps go the same way; the distortion and the mask of an image are also those of its sweeps, so that
    what moves between them is the scene.

    On a CPU all of it is one pass from bytes to memory that earlier clips have left
    (:mod:`bevstack.ops.image_normalization`); elsewhere it is a few of torch's operators, with the same numbers up to
    rounding. A clip that was handed out stays as it is for as long as anything holds it.

    Args:
        mean, std: of the channels in ``channel_order``, on the scale 0 ... 255.
        channel_order: what the backbone was trained on; the pipeline's images are RGB.
        pad_divisor: (H, W) of the tensor are multiples of this.
        photometric: arguments of :class:`PhotometricDistortion`, None for none.
        grid_mask: arguments of :class:`GridMask`, None for none.
        dtype: of the images: "float32", or "autocast" for what autocast computes in around the call. The latter spares
            memory and a conversion, and changes no number where the backbone begins with a convolution.

    Raises:
        ValueError: unknown channel order or dtype, not three means and deviations, or samples of one batch that differ
            in their number of frames or cameras.
    """

    def __init__(
        self,
        mean: Sequence[float] = (123.675, 116.28, 103.53),
        std: Sequence[float] = (58.395, 57.12, 57.375),
        channel_order: str = "rgb",
        pad_divisor: int = 32,
        photometric: Mapping | None = None,
        grid_mask: Mapping | None = None,
        dtype: str = "float32",
    ) -> None:
        super().__init__(non_blocking=True)
        if channel_order not in ("rgb", "bgr"):
            raise ValueError(f"channel_order: must be 'rgb' or 'bgr', not {channel_order!r}")
        if dtype not in ("float32", "autocast"):
            raise ValueError(f"dtype: must be 'float32' or 'autocast', not {dtype!r}")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean, std: expected three values each, std positive, not {mean}, {std}")
        self.channel_order, self.follows_autocast = channel_order, dtype == "autocast"
        self.pad_divisor = int(pad_divisor)
        self.photometric = None if photometric is None else PhotometricDistortion(**photometric)
        self.grid_mask = None if grid_mask is None else GridMask(**grid_mask)
        scale = 1.0 / torch.tensor(std, dtype=torch.float64)
        self.register_buffer("scale", scale.float(), persistent=False)
        self.register_buffer("bias", (-torch.tensor(mean, dtype=torch.float64) * scale).float(), persistent=False)
        self._memory = ReusedBuffers()

    def forward(self, data: Mapping, training: bool = False) -> dict:
        """``dict(inputs=dict of lists of B tensors, data_samples=list)`` -> ``dict(inputs=Clip, data_samples=list)``.

        The tensors are those of :class:`bevstack.datasets.transforms.PackBEVInputs`; ``data_samples`` may be missing.
        """
        inputs = data["inputs"]
        images = list(inputs["images"])
        if len({tuple(image.shape[:2]) for image in images}) != 1:
            raise ValueError(f"samples of a batch differ in frames or cameras: {[tuple(i.shape[:2]) for i in images]}")
        num_frames = images[0].shape[0]
        sizes = torch.stack([size.cpu() for size in inputs["image_size_px"]])  # (B, T, N, 2)
        divisor = self.pad_divisor
        height, width = (-(-int(length) // divisor) * divisor for length in sizes.amax(dim=(0, 1, 2)))
        padded = (height, width)
        images = [image.to(self.device, non_blocking=True) for image in images]
        sweeps = [sweep.to(self.device, non_blocking=True) for sweep in inputs.get("sweeps", ())]
        one_by_one = ("images", "image_size_px", "sweeps", "features", "sample_identity")
        batched = {key: self._batched(inputs[key]) for key in inputs if key not in one_by_one}
        sizes_on_device = sizes.to(self.device, non_blocking=True)
        autocast = self.follows_autocast and torch.is_autocast_enabled(self.device.type)
        dtype = torch.get_autocast_dtype(self.device.type) if autocast else torch.float32
        with torch.autocast(self.device.type, enabled=False):
            frames = []
            for t in range(num_frames):
                drawn = self.photometric.draw(sizes[:, t, :, 0].numel()) if training and self.photometric else None
                now = self._normalized([image[t] for image in images], sizes[:, t], padded, drawn, dtype)
                before = self._sweeps([sweep[t] for sweep in sweeps], sizes[:, t], padded, drawn, dtype)
                if training and self.grid_mask is not None and t == num_frames - 1:
                    now, before = self._masked(self.grid_mask, now, before)
                frames.append(replace(self._frame(now, batched, sizes_on_device, t, padded), sweeps=before))
        samples = data.get("data_samples")
        samples = None if samples is None else [self._moved(sample) for sample in samples]
        return {"inputs": Clip(tuple(frames)), "data_samples": samples}

    def _batched(self, values: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(values)).to(self.device, non_blocking=True)

    def _normalized(
        self,
        images: list[Tensor],
        sizes: Tensor,
        padded: tuple[int, int],
        drawn: Mapping[str, Tensor] | None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """B times (N, 3, h, w) uint8 -> (B, N, 3, H, W) of the padded size, channels-last in memory; ``drawn``
        is the distortion of the B * N images, None for none."""
        if self.device.type != "cpu":
            return self._normalized_by_operators(images, sizes, padded, drawn).to(dtype)
        shape = (len(images), images[0].shape[0], *padded, 3)
        out = self._memory.empty(shape, dtype)
        if self.channel_order == "bgr":
            drawn = PhotometricDistortion.nothing(shape[0] * shape[1]) if drawn is None else drawn
            drawn = {**drawn, "order": drawn["order"].flip(1)}
        pixels = [image for cameras in images for image in cameras.permute(0, 2, 3, 1)]
        own = sizes.flatten(0, 1).tolist()
        normalize_images(pixels, own, self.scale, self.bias, drawn, out.flatten(0, 1))
        return out.permute(0, 1, 4, 2, 3)

    def _normalized_by_operators(
        self, images: list[Tensor], sizes: Tensor, padded: tuple[int, int], drawn: Mapping[str, Tensor] | None
    ) -> Tensor:
        """:meth:`_normalized` in float32 by torch's operators, on any device."""
        batch, cameras, (height, width) = len(images), images[0].shape[0], padded
        if not any(image.numel() for image in images):  # the backbone's features are there instead
            return self.bias.new_zeros(()).expand(batch, cameras, 3, height, width)
        out = torch.empty((batch, cameras, height, width, 3), device=self.device, dtype=torch.float32)
        for b, image in enumerate(images):
            # Whatever the tensor holds beyond the images' own size is padding of the collation and is cut away.
            image = image[..., : sizes[b, :, 0].max(), : sizes[b, :, 1].max()].permute(0, 2, 3, 1)
            out[b, :, : image.shape[1], : image.shape[2]].copy_(image)
            out[b, :, image.shape[1] :] = 0
            out[b, :, : image.shape[1], image.shape[2] :] = 0
        if drawn is not None and self.photometric is not None:
            flat = self.photometric.apply(out.flatten(0, 1).permute(0, 3, 1, 2), drawn).permute(0, 2, 3, 1)
            out = flat.contiguous().unflatten(0, (batch, cameras))
        if self.channel_order == "bgr":
            out = out.flip(-1)
        # One row of pixels at a time: a long vector of (scale, bias) is much faster than broadcasting over 3 channels.
        rows = out.view(batch, cameras, height, width * 3)
        rows.mul_(self.scale.repeat(width)).add_(self.bias.repeat(width))
        self._clear_padding(out, sizes)
        return out.permute(0, 1, 4, 2, 3)

    def _sweeps(
        self,
        sweeps: list[Tensor],
        sizes: Tensor,
        padded: tuple[int, int],
        drawn: Mapping[str, Tensor] | None,
        dtype: torch.dtype,
    ) -> Tensor | None:
        """B times (S, N, 3, h, w) uint8 -> (B, S, N, 3, H, W) as :meth:`_normalized`, distorted as the images are."""
        if not sweeps:
            return None
        moments, (batch, cameras) = sweeps[0].shape[0], sizes.shape[:2]
        if drawn is not None:
            image_of = torch.arange(batch * cameras).view(batch, 1, cameras).expand(-1, moments, -1).flatten()
            drawn = {name: values[image_of] for name, values in drawn.items()}
        flat = [sweep.flatten(0, 1) for sweep in sweeps]
        normalized = self._normalized(flat, sizes.repeat(1, moments, 1), padded, drawn, dtype)
        return normalized.unflatten(1, (moments, cameras))

    @staticmethod
    def _masked(grid_mask: GridMask, images: Tensor, sweeps: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """GridMask on (B, N, 3, H, W) images, in place where they are on a CPU; the same mask on their sweeps
        (B, S, N, 3, H, W)."""
        size = (images.shape[-2], images.shape[-1])
        drawn = grid_mask.draw(images.shape[:2].numel(), size).to(images.device, non_blocking=True)
        keep = grid_mask.mask(drawn, size).unflatten(0, images.shape[:2])
        if images.device.type == "cpu":
            erase_pixels(keep.flatten(0, 1), images.permute(0, 1, 3, 4, 2).flatten(0, 1))
            if sweeps is not None:
                masks = keep.unsqueeze(1).expand(*sweeps.shape[:3], *size)
                erase_pixels(masks.flatten(0, 2), sweeps.permute(0, 1, 2, 4, 5, 3).flatten(0, 2))
            return images, sweeps
        keep = keep.unsqueeze(2)
        return images * keep, None if sweeps is None else sweeps * keep.unsqueeze(1)

    @staticmethod
    def _clear_padding(out: Tensor, sizes: Tensor) -> None:
        """Set what lies outside each image's own (height, width) to 0; ``out`` (B, N, H, W, 3), ``sizes`` (B, N, 2)."""
        flat_sizes = sizes.flatten(0, 1).tolist()
        if len({tuple(size) for size in flat_sizes}) == 1:
            height, width = flat_sizes[0]
            out[:, :, height:] = 0
            out[:, :, :height, width:] = 0
            return
        for image, (height, width) in zip(out.flatten(0, 1), flat_sizes, strict=True):
            image[height:] = 0
            image[:height, width:] = 0

    @staticmethod
    def _frame(images: Tensor, batched: Mapping, sizes: Tensor, t: int, padded: tuple[int, int]) -> Frame:
        rig = CameraRig(
            pixels_from_camera=batched["pixels_from_camera"][:, t],
            camera_from_bev=batched["camera_from_bev"][:, t],
            image_size_px=sizes[:, t],
            padded_size_px=padded,
        )
        motion = EgoMotion(
            previous_from_current=batched["previous_from_current"][:, t],
            has_previous=batched["has_previous"][:, t],
            seconds=batched["seconds"][:, t],
            can_bus=batched["can_bus"][:, t] if "can_bus" in batched else None,
        )
        return Frame(images, rig, motion)

    def _moved(self, sample: BEVDataSample) -> BEVDataSample:
        """The sample with its boxes and rasters on the device."""
        sample = sample.to(self.device)
        if "gt_rasters" in sample:
            sample.gt_rasters = {
                name: BEVRaster(raster.layers.to(self.device, non_blocking=True), raster.classes, raster.grid)
                for name, raster in sample.gt_rasters.items()
            }
        return sample

"""``tools/pretrain_motion.py``: teach a video backbone to see motion, from single images that are moved at known speed.

The fast path of a video backbone starts from nothing, and a few object centres a sample teach it little. Here each
lateral connection, from the fast path to the slow one, learns to tell how many pixels a frame everything moves, on
:class:`bevstack.experiments.moving_patches.MovingPatches` of the training images. Neither labels nor sweeps are needed.
The clips are small: it runs on the CPU, in minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import hsv_to_rgb
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track
from torch import Tensor, nn
from torch.nn import functional as F

from bevstack.engine.checkpoint import load_weights, read_checkpoint, write_checkpoint
from bevstack.engine.config import building, check_components, load_config
from bevstack.engine.models import build_model
from bevstack.errors import InputError
from bevstack.experiments.arguments import pretrain_motion_parser
from bevstack.experiments.moving_patches import MovingPatches
from bevstack.models.backbones import SlowFast, SlowFastSwin
from bevstack.registry import DATASETS
from bevstack.visualization.files import write_png


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point: train, write the model's weights and a picture, and say how well motion is seen."""
    args = pretrain_motion_parser().parse_args(arguments)
    least = (("--steps", args.steps, 20), ("--batch-size", args.batch_size, 1), ("--samples", args.samples, 1))
    for flag, value, bound in least:
        if value < bound:
            raise InputError("pretrain_motion", flag, f"{value} must be at least {bound}")
    if args.patch_px < 32 or args.patch_px % 32:
        raise InputError("pretrain_motion", "--patch-px", f"{args.patch_px} must be a multiple of 32")
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(args.out, "--out", f"cannot be written: {error.strerror}") from None
    cfg = load_config(args.config, args.cfg_options)
    check_components(cfg)
    torch.manual_seed(args.seed)
    model = started_model(cfg)
    images = training_images(cfg, model, args.samples, args.seed)
    if min(images.shape[-2:]) < args.patch_px:
        size = f"{images.shape[-1]}x{images.shape[-2]}"
        raise InputError("pretrain_motion", "--patch-px", f"{args.patch_px} is more than the images have, {size}")
    patches = MovingPatches(images, model.backbone.num_sweeps + 1, args.patch_px)
    reader = MotionReader(model.backbone)
    generator = torch.Generator().manual_seed(args.seed)
    held_out = patches.draw(64, torch.Generator().manual_seed(args.seed + 1))
    learn(reader, patches, args.steps, args.batch_size, args.lr, generator)
    found, errors = evaluate(reader, *held_out)
    write_checkpoint({"state_dict": model.state_dict(), "meta": {}}, args.out)
    picture = args.out.with_suffix(".png")
    draw(picture, held_out[0], held_out[1], (found[0], found[-1]))
    still = held_out[1].norm(dim=1).mean().item()
    told = ", ".join(f"{error:.2f} at stride {stride}" for stride, error in zip(reader.strides, errors, strict=True))
    print(f"error of motion {told} px a frame (saying that nothing moves: {still:.2f}); {args.out}; {picture}")
    return 0


def started_model(cfg: Config) -> BaseModel:
    """The config's model with the weights of its ``load_from``, the backbone's parameters among them frozen.

    Raises:
        InputError: the backbone is no video backbone with lateral connections, or ``load_from`` does not fit.
    """
    model = build_model(cfg, "cpu")
    if not MMLogger.check_instance_created("pretrain_motion"):  # init_weights would tell of every parameter
        MMLogger.get_instance("pretrain_motion", log_level="WARNING")
    model.init_weights()
    if not getattr(model.backbone, "num_sweeps", 0) or not hasattr(model.backbone, "laterals"):
        reason = f"{type(model.backbone).__name__} has no sweeps and `laterals`; take SlowFast or SlowFastSwin"
        raise InputError(cfg.filename or "config", "model.backbone", reason)
    if cfg.get("load_from"):
        weights = read_checkpoint(cfg["load_from"])["state_dict"]
        message = load_weights(model, weights, cfg["load_from"], strict=False)
        print(f"{cfg['load_from']}: {message or 'loaded'}")
        for name, parameter in model.backbone.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and f"backbone.{name}" not in weights)
    return model


def training_images(cfg: Config, model: BaseModel, num_samples: int, seed: int) -> Tensor:
    """(M, 3, H, W) normalised float images of all cameras of some training samples, as the config's training sees them.

    Raises:
        InputError: the config has no training data.
    """
    if cfg.get("train_dataloader") is None:
        raise InputError(cfg.filename or "config", "train_dataloader", "absent: no images to learn from")
    with building(cfg):
        dataset = DATASETS.build(cfg["train_dataloader"]["dataset"])
    chosen = np.random.default_rng(seed).permutation(len(dataset))[:num_samples]
    images = [
        model.data_preprocessor({"inputs": one_by_one(dataset[int(i)]["inputs"])}, False)["inputs"].frames[-1].images[0]
        for i in track(chosen, description="reading images")
    ]
    return torch.cat(images).contiguous()


def one_by_one(inputs: dict[str, Tensor]) -> dict[str, list[Tensor]]:
    """One packed sample (tensors of any shape) as a batch of one for the preprocessor, without its sweeps."""
    return {key: [value] for key, value in inputs.items() if key != "sweeps"}


class MotionReader(nn.Module):
    """A linear reading of motion from what each lateral connection of a backbone gives at the keyframe.

    Args:
        backbone: with ``laterals``, which it calls in their order and which give (B, C, T_slow, h, w).
    """

    def __init__(self, backbone: SlowFast | SlowFastSwin) -> None:
        super().__init__()
        self.backbone = backbone
        self._given: list[Tensor] = []
        for lateral in backbone.laterals:
            lateral.register_forward_hook(lambda module, inputs, output: self._given.append(output[:, :, -1]))
        with torch.no_grad():
            backbone.eval()
            size = 64
            backbone(torch.zeros(1, backbone.num_sweeps + 1, 3, size, size))
        given = self._taken()
        self.strides = [size // level.shape[-1] for level in given]
        self.read = nn.ModuleList(nn.Conv2d(level.shape[1], 2, 1) for level in given)

    def _taken(self) -> list[Tensor]:
        given, self._given = self._given, []
        return given

    def forward(self, clips: Tensor) -> list[Tensor]:
        """(B, T, 3, H, W) to (B, 2, h, w) of each lateral connection: (u, v) pixels of the image a frame."""
        self.backbone(clips)
        return [read(level.float()) for read, level in zip(self.read, self._taken(), strict=True)]


def deviations(found: Sequence[Tensor], motion: Tensor) -> list[Tensor]:
    """What each reading (B, 2, h, w) adds to the motion (B, 2, H, W) averaged over its cells."""
    return [level - F.adaptive_avg_pool2d(motion, (level.shape[-2], level.shape[-1])) for level in found]


def learn(
    reader: MotionReader, patches: MovingPatches, steps: int, batch_size: int, lr: float, generator: torch.Generator
) -> None:
    """AdamW on the sum of the readings' mean errors |u| + |v|, one cycle of the learning rate; shows progress."""
    parameters = [p for p in reader.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    reader.train()
    columns = (TextColumn("learning motion"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[error]}")) as bar:
        task = bar.add_task("", total=steps, error="")
        for step in range(steps):
            clips, motion = patches.draw(batch_size, generator)
            errors = [deviation.abs().sum(1).mean() for deviation in deviations(reader(clips), motion)]
            optimizer.zero_grad()
            torch.stack(errors).sum().backward()
            nn.utils.clip_grad_norm_(parameters, 5.0)
            optimizer.step()
            schedule.step()
            if step % 20 == 0:
                bar.update(task, error=" ".join(f"{error.item():.2f}" for error in errors))
            bar.advance(task)


@torch.no_grad()
def evaluate(reader: MotionReader, clips: Tensor, motion: Tensor) -> tuple[list[Tensor], list[float]]:
    """Readings of unseen clips, (B, 2, h, w) each, and the mean length of each one's error, pixels a frame.

    Args:
        reader: as trained.
        clips: (B, T, 3, H, W).
        motion: (B, 2, H, W) pixels a frame.
    """
    reader.eval()
    found = reader(clips)
    return found, [deviation.norm(dim=1).mean().item() for deviation in deviations(found, motion)]


def draw(path: Path, clips: Tensor, motion: Tensor, readings: Sequence[Tensor], rows: int = 6) -> None:
    """First and last frame of some clips, the true motion and readings of it: hue is the direction, brightness the
    speed.

    Args:
        path: of the PNG.
        clips: (B, T, 3, H, W).
        motion: (B, 2, H, W) pixels a frame.
        readings: each (B, 2, h, w).
        rows: how many clips.
    """
    fastest = motion[:rows].norm(dim=1).max().clamp_min(1e-3)
    lines = []
    for row, (clip, true) in enumerate(zip(clips[:rows], motion[:rows], strict=True)):
        low, high = clip.min(), clip.max()
        pictures = [((frame.permute(1, 2, 0) - low) / (high - low) * 255).byte().numpy() for frame in clip[[0, -1]]]
        for flow in (true[None], *(reading[row : row + 1] for reading in readings)):
            pictures.append(motion_colors(F.interpolate(flow, size=true.shape[-2:])[0] / fastest))
        lines.append(np.concatenate(pictures, axis=1))
    write_png(path, np.concatenate(lines).repeat(3, 0).repeat(3, 1))


def motion_colors(motion: Tensor) -> np.ndarray:
    """(2, H, W) motion, 1 for the fastest, to (H, W, 3) uint8 RGB."""
    direction = (torch.atan2(motion[1], motion[0]) / (2 * torch.pi)) % 1.0
    speed = motion.norm(dim=0).clamp(0, 1)
    hsv = torch.stack([direction, torch.ones_like(speed), speed], dim=-1)
    return (hsv_to_rgb(hsv.numpy()) * 255).astype(np.uint8)

"""What a config's model costs: parameters and counted multiply-adds, in total and by part."""

from __future__ import annotations

import torch
from mmengine.config import Config

from bevstack.engine.models import build_model
from bevstack.errors import InputError
from bevstack.experiments.multiply_adds import DEFORMABLE_CONVOLUTION, count_multiply_adds, count_operators


def cost_of(config: Config) -> dict[str, float]:
    """Parameters and multiply-adds of one frame (all cameras, batch 1), in total and by part.

    Keys: ``parameters``, ``parameters/<part>``, ``multiply_adds``, ``multiply_adds/<part>``; parts are backbone, neck,
    encoder, bev_neck and heads.<name>. The images' size is that of the test pipeline.
    """
    model = build_model(config, "cpu").eval()
    cost: dict[str, float] = {"parameters": float(sum(p.numel() for p in model.parameters()))}
    for name, part in [*model.named_children(), *((f"heads.{name}", head) for name, head in model.heads.items())]:
        cost[f"parameters/{name}"] = float(sum(p.numel() for p in part.parameters()))
    height, width = image_size(config)
    counts = count_multiply_adds(model.to("meta"), (height, width))
    if DEFORMABLE_CONVOLUTION in counts:
        counts["backbone"] += counts.pop(DEFORMABLE_CONVOLUTION)
    else:
        sweeps = getattr(model.backbone, "num_sweeps", 0)
        shape = (model.encoder.num_cameras, *([sweeps + 1] if sweeps else []), 3, height, width)
        counts["backbone"] = count_operators(model.backbone, torch.empty(shape, device="meta"))
    return cost | {"multiply_adds": sum(counts.values())} | {f"multiply_adds/{key}": v for key, v in counts.items()}


def image_size(config: Config) -> tuple[int, int]:
    """(H, W) of the padded image tensor that the test pipeline's last resizing and the preprocessor make."""
    sizes = [step["size"] for step in config.test_dataloader.dataset.pipeline if step.get("size")]
    if not sizes:
        raise InputError(config.filename or "config", "test_dataloader.dataset.pipeline", "no step gives images a size")
    divisor = config.model.get("data_preprocessor", {}).get("pad_divisor", 32)
    return tuple(-(-int(length) // divisor) * divisor for length in sizes[-1])

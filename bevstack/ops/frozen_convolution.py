"""Convolution and activation in one pass over memory, for weights that get no gradient.

On a CPU an activation after a convolution in bfloat16 costs as much as the convolution (it is one more pass over
memory); oneDNN applies it to each value before it is written. The fused call has no gradient, hence frozen weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_ACTIVATIONS = {nn.ReLU: ("relu", []), nn.ReLU6: ("hardtanh", [0.0, 6.0]), nn.Identity: ("none", [])}


class FrozenConvolution(nn.Module):
    """A frozen convolution with its activation; exactly the two modules one after the other.

    Args:
        convolution: its weights must not require a gradient; subclasses that pad by themselves keep doing so.
        activation: ReLU, ReLU6 or none.

    Raises:
        ValueError: the weights are not frozen, or the activation is another one.
    """

    def __init__(self, convolution: nn.Conv2d, activation: nn.Module | None = None) -> None:
        super().__init__()
        activation = activation or nn.Identity()
        if any(parameter.requires_grad for parameter in convolution.parameters()):
            raise ValueError("FrozenConvolution: the convolution's weights require gradients")
        if type(activation) not in _ACTIVATIONS:
            raise ValueError(f"FrozenConvolution: no fused form of {type(activation).__name__}")
        self.convolution, self.activation = convolution, activation

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H', W')."""
        if not self._fuses(features):
            return self.activation(self.convolution(features))
        convolution = self.convolution
        padding = convolution.padding
        if type(convolution) is not nn.Conv2d:  # timm's convolution with TensorFlow's padding
            from timm.layers.padding import pad_same

            kernel, stride, dilation = map(list, (convolution.kernel_size, convolution.stride, convolution.dilation))
            features = pad_same(features, kernel, stride, dilation)
            padding = (0, 0)
        name, scalars = _ACTIVATIONS[type(self.activation)]
        bias = None if convolution.bias is None else convolution.bias.to(torch.bfloat16)
        return torch.ops.mkldnn._convolution_pointwise(
            features.to(torch.bfloat16).contiguous(memory_format=torch.channels_last),
            convolution.weight.to(torch.bfloat16),
            bias,
            padding,
            convolution.stride,
            convolution.dilation,
            convolution.groups,
            name,
            scalars,
            "",
        )

    def _fuses(self, features: Tensor) -> bool:
        """On a CPU with oneDNN, under bfloat16 autocast, for an input that needs no gradient."""
        return (
            features.device.type == "cpu"
            and not (features.requires_grad and torch.is_grad_enabled())
            and torch.is_autocast_enabled("cpu")
            and torch.get_autocast_dtype("cpu") == torch.bfloat16
            and torch.backends.mkldnn.is_available()
            and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
            and (type(self.convolution) is nn.Conv2d or type(self.convolution).__name__ == "Conv2dSame")
        )

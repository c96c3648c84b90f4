"""A step of mmengine's average of the weights, in one pass over what learns instead of one call a weight."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.model import BaseAveragedModel, ExponentialMovingAverage, MomentumAnnealingEMA
from torch import nn


class AverageUpdate:
    """Updates an average as its own ``update_parameters`` does, to the bit, for less than half of its time.

    Weights that do not learn when it is made are left out, since an average of equal values is that value. Kinds of
    averages other than mmengine's ``ExponentialMovingAverage`` and ``MomentumAnnealingEMA``, and those of buffers,
    update themselves.

    Args:
        average: of mmengine.
        model: whose weights are averaged, with the same parts.
    """

    def __init__(self, average: BaseAveragedModel, model: nn.Module) -> None:
        self.average, self.model = average, model
        one_rule = type(average) in (ExponentialMovingAverage, MomentumAnnealingEMA)
        self.in_one_pass = one_rule and not average.update_buffers
        pairs = zip(average.module.parameters(), model.parameters(), strict=True)
        learning = [(own, other) for own, other in pairs if other.requires_grad]
        self._weights: list[tuple[Any, nn.Parameter]] = learning
        self._buffers = list(zip(average.module.buffers(), model.buffers(), strict=True))

    @torch.no_grad()
    def step(self) -> None:
        """Take the model's weights into the average, and its buffers as they are."""
        average = self.average
        steps = int(average.steps)
        if not self.in_one_pass or steps == 0:  # the first step copies all
            average.update_parameters(self.model)
            return
        if steps % average.interval == 0 and self._weights:
            share = average.momentum
            if isinstance(average, MomentumAnnealingEMA):
                share = max(share, average.gamma / (average.gamma + steps))
            own = [mine for mine, _ in self._weights]
            torch._foreach_lerp_(own, [other.to(mine.device) for mine, other in self._weights], share)
        if self._buffers:
            kept, others = zip(*self._buffers, strict=True)
            torch._foreach_copy_(kept, others)
        average.steps += 1

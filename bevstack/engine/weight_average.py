"""A step of mmengine's average of the weights, in one pass over what learns instead of one call a weight."""

from __future__ import annotations

import torch
from mmengine.model import BaseAveragedModel, ExponentialMovingAverage, MomentumAnnealingEMA
from torch import Tensor, nn


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
        self._weights: list[tuple[Tensor, Tensor]] = [(own, other) for own, other in pairs if other.requires_grad]
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
            torch._foreach_copy_([mine for mine, _ in self._buffers], [other for _, other in self._buffers])
        average.steps += 1

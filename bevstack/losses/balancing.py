"""One weight a task: how the losses of many heads become one number to descend.

A task is a head; its loss is the sum of the head's losses. What is descended is

    sum over tasks of  prior_i * w_i * L_i  +  what the rule itself adds,

with ``prior_i`` the config's ``loss_weights`` and ``w_i`` of the rule. All state of a rule is in its parameters and
buffers, so that checkpoints hold it; it changes in training mode with gradients enabled only. A forward pass is a step:
with accumulated gradients each of the passes is one. Priors of 0 take no part.
"""

from __future__ import annotations

import difflib
import fnmatch
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from bevstack.losses.functional import mean_across_ranks
from bevstack.registry import MODELS


class LossBalancing(nn.Module, ABC):
    """The contract of every rule.

    Args:
        priors: fixed weight of each task, by name; the names are the tasks.
        logged: whether to give ``weight.<task>`` (prior times the rule's weight) and ``task.<task>`` (the task's loss
            before any weight) beside the losses.

    Attributes:
        needs_shared_weight: whether :meth:`forward` needs a weight that the tasks share.
        shared_weight: where it does, the weight's name or a pattern; None leaves the choice to the model.

    Raises:
        ValueError: a task's name contains "loss", by which logged values are told from losses.
    """

    needs_shared_weight = False
    shared_weight: str | None = None
    priors: Tensor

    def __init__(self, priors: Mapping[str, float], logged: bool = True) -> None:
        super().__init__()
        for task in priors:
            if logged and "loss" in task:
                raise ValueError(f"a head whose losses are balanced cannot be named '{task}': leave 'loss' out of it")
        self.tasks, self.logged = tuple(priors), logged
        self.register_buffer("priors", torch.tensor([float(prior) for prior in priors.values()]), persistent=False)

    def forward(self, losses: Mapping[str, Mapping[str, Tensor]], shared_weight: Tensor | None = None) -> dict:
        """Weigh the losses of every task.

        Args:
            losses: per task what its head gave; scalars whose names contain "loss" are summed to L_i, others pass.
            shared_weight: a parameter that every task's loss depends on, where the rule needs one.

        Returns:
            ``<task>.<name>`` of everything given, losses weighted; ``weight.<task>`` and ``task.<task>``; losses that
            the rule adds, as ``balancing.loss_...``.
        """
        sums = torch.stack([self._sum(losses[task]) for task in self.tasks])
        weights, own = self.weigh(self.priors * sums, shared_weight)
        factors = dict(zip(self.tasks, (self.priors * weights).unbind(), strict=True))
        result = {}
        for task in self.tasks:
            for name, value in losses[task].items():
                result[f"{task}.{name}"] = factors[task] * value if "loss" in name else value
        if self.logged:
            result |= {f"weight.{task}": factor.detach() for task, factor in factors.items()}
            result |= {f"task.{task}": value for task, value in zip(self.tasks, sums.detach().unbind(), strict=True)}
        return result | own

    @abstractmethod
    def weigh(self, losses: Tensor, shared_weight: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The rule itself.

        Args:
            losses: (tasks,) float32, prior_i * L_i, with their graphs.
            shared_weight: see :meth:`forward`.

        Returns:
            (tasks,) weights w_i, and losses to add by name.
        """

    @property
    def active(self) -> Tensor:
        """(tasks,) bool: tasks whose prior is not 0."""
        return self.priors != 0

    @property
    def learning(self) -> bool:
        """Whether this pass may change the rule's state."""
        return self.training and torch.is_grad_enabled()

    def _sum(self, losses: Mapping[str, Tensor]) -> Tensor:
        values = [value.float().mean() for name, value in losses.items() if "loss" in name]
        return torch.stack(values).sum() if values else self.priors.new_zeros(())


@MODELS.register_module()
class FixedWeights(LossBalancing):
    """w_i = 1: the priors alone.

    Args:
        priors, logged: see :class:`LossBalancing`.
    """

    def weigh(self, losses: Tensor, shared_weight: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """(tasks,) ones, whatever the losses, and no loss of its own."""
        return torch.ones_like(self.priors), {}


@MODELS.register_module()
class UncertaintyWeights(LossBalancing):
    """Homoscedastic uncertainty (Kendall et al. 2018, eq. 7) with learnt s_i = log sigma_i^2.

    The total is the sum of ``exp(-s_i) / 2 * L_i + s_i / 2``: w_i = exp(-s_i) / 2, whose optimum for a loss that stays
    L_i is s_i = log L_i, w_i = 1 / (2 L_i). s_i starts at -log 2, so that w_i starts at 1. The model's optimizer moves
    s; weight decay would pull w_i towards 1/2, so leave it out in the config:
    ``optim_wrapper = dict(paramwise_cfg=dict(custom_keys={"balancing.log_variance": dict(decay_mult=0.0)}), ...)``.

    Args:
        priors, logged: see :class:`LossBalancing`.
    """

    def __init__(self, priors: Mapping[str, float], logged: bool = True) -> None:
        super().__init__(priors, logged)
        self.log_variance = nn.Parameter(torch.full((len(self.tasks),), -math.log(2)))

    def weigh(self, losses: Tensor, shared_weight: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """(tasks,) exp(-s) / 2, and the sum of s / 2 as a loss (negative while uncertainties are below 1)."""
        own = (self.log_variance * self.active).sum() / 2
        return (-self.log_variance).exp() / 2, {"balancing.loss_log_variance": own}


@MODELS.register_module()
class DynamicWeightAverage(LossBalancing):
    """Dynamic weight average (Liu et al. 2019, eq. 7): a task whose loss falls more slowly weighs more.

    w_i = T exp(r_i / temperature) / sum_k exp(r_k / temperature) with r_i the ratio of the task's mean losses in the
    last two windows and T the number of tasks; 1 until there are two. The paper's window is an epoch; here it is a
    number of steps, so that short runs have windows, too.

    Args:
        priors, logged: see :class:`LossBalancing`.
        window: steps.
        temperature: the larger, the more even the weights.

    Raises:
        ValueError: window or temperature is not positive.
    """

    sums: Tensor
    means: Tensor
    steps: Tensor

    def __init__(
        self, priors: Mapping[str, float], window: int = 100, temperature: float = 2.0, logged: bool = True
    ) -> None:
        super().__init__(priors, logged)
        if window < 1 or not temperature > 0:
            raise ValueError(f"window and temperature must be positive, not {window} and {temperature}")
        self.window, self.temperature = window, temperature
        self.register_buffer("sums", torch.zeros(len(self.tasks)))
        self.register_buffer("means", torch.zeros(2, len(self.tasks)))  # of the last window and the one before
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def weigh(self, losses: Tensor, shared_weight: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """(tasks,) weights of this window, and no loss of its own; then the step is counted."""
        last, before = self.means
        ratio = torch.where((before > 0) & (last > 0), last / before, 1.0)
        share = (ratio / self.temperature).masked_fill(~self.active, -torch.inf).softmax(0)
        weights = torch.where(self.active, share * self.active.sum(), 1.0)
        if self.learning:
            self._count(losses.detach())
        return weights, {}

    def _count(self, losses: Tensor) -> None:
        self.sums += losses
        self.steps += 1
        if int(self.steps) % self.window == 0:
            mean = mean_across_ranks(self.sums / self.window, self.sums.device)
            self.means.copy_(torch.stack([mean, self.means[0]]))
            self.sums.zero_()


@MODELS.register_module()
class GradNorm(LossBalancing):
    """GradNorm (Chen et al. 2018): weights under which every task pulls as hard at the shared weights, by its pace.

    With G_i the norm of the gradient of w_i L_i with respect to a shared weight, and r_i the task's L_i(t) / L_i(0)
    relative to the mean over tasks, the weights descend ``sum_i |G_i - mean(G) r_i^alpha|``, the second term held
    constant. That loss is never added to the model's: its gradient is known in closed form, and the steps (Adam's) are
    taken here. They are taken on log w, so that weights stay positive over any ratio of scales, and are followed by a
    scaling that keeps the sum of all weights at the number of tasks. The weights of a pass are those from before its
    step. A task without gradient in a pass (no object of its kind, or it does not read the shared trunk) keeps its
    weight in that pass and counts in no mean. Losses and norms are means over all processes.

    Args:
        priors, logged: see :class:`LossBalancing`.
        alpha: how strongly a task that learns more slowly is pushed; 0 makes the norms equal.
        learning_rate: of log w.
        initial_steps: L_i(0) is the mean over so many first steps; weights move after them.
        interval: steps from one update of the weights to the next; each costs one more backward pass through every
            head. The number of accumulated passes is a good choice with gradient accumulation.
        shared_weight: name of the parameter, or a pattern ("bev_neck.*.weight": its last match); by default the last
            weight matrix of the last part that all heads share, in the order of construction.

    Raises:
        ValueError: a number that makes no sense; in use: no shared weight is given, or no task's loss depends on it.
    """

    needs_shared_weight = True
    betas, eps = (0.9, 0.999), 1e-12
    steps: Tensor
    log_weights: Tensor
    initial_losses: Tensor
    gradient_mean: Tensor
    gradient_square: Tensor
    updates: Tensor

    def __init__(
        self,
        priors: Mapping[str, float],
        alpha: float = 1.5,
        learning_rate: float = 0.025,
        initial_steps: int = 10,
        interval: int = 1,
        shared_weight: str | None = None,
        logged: bool = True,
    ) -> None:
        super().__init__(priors, logged)
        if initial_steps < 1 or interval < 1 or not learning_rate > 0:
            given = f"{initial_steps}, {interval} and {learning_rate}"
            raise ValueError(f"initial_steps, interval and learning_rate must be positive, not {given}")
        self.alpha, self.learning_rate = alpha, learning_rate
        self.initial_steps, self.interval, self.shared_weight = initial_steps, interval, shared_weight
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        for name in ("log_weights", "initial_losses", "gradient_mean", "gradient_square", "updates"):
            self.register_buffer(name, torch.zeros(len(self.tasks)))

    def weigh(self, losses: Tensor, shared_weight: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """(tasks,) weights so far, and no loss of its own; then they take a step."""
        weights = self.log_weights.exp()
        if self.learning:
            now = mean_across_ranks(losses.detach(), losses.device)
            if int(self.steps) < self.initial_steps:
                self.initial_losses += now / self.initial_steps
            self.steps += 1
            if int(self.steps) >= self.initial_steps and int(self.steps) % self.interval == 0:
                if shared_weight is None:
                    raise ValueError("GradNorm: forward needs a weight that the heads share")
                norms = self.gradient_norms(losses, shared_weight)
                self._step(now, mean_across_ranks(norms, losses.device))
        return weights, {}

    def gradient_norms(self, losses: Tensor, shared_weight: Tensor) -> Tensor:
        """(tasks,) norms of the gradients of unweighted losses (tasks,), 0 where there is none; the graph stays.

        Raises:
            ValueError: no loss depends on the shared weight.
        """
        # float16 has no room below 6e-8; no other format needs this.
        half = torch.is_autocast_enabled(losses.device.type) and (
            torch.get_autocast_dtype(losses.device.type) == torch.float16
        )
        scale = 1024.0 if half else 1.0
        norms, found = torch.zeros_like(self.priors), False
        for task in self.active.nonzero().flatten().tolist():
            gradient = None
            if losses.requires_grad:
                (gradient,) = torch.autograd.grad(
                    losses[task] * scale, shared_weight, retain_graph=True, allow_unused=True
                )
            if gradient is not None:
                norms[task], found = gradient.float().norm() / scale, True
        if not found:
            raise ValueError("GradNorm: no head's loss depends on the shared weight; name another as shared_weight")
        return norms

    @torch.no_grad()
    def _step(self, losses: Tensor, norms: Tensor) -> None:
        """One step of Adam on log w, and the scaling; ``losses`` and ``norms`` (tasks,) are without w."""
        taking = (norms > 0) & (self.initial_losses > 0) & norms.isfinite() & losses.isfinite()
        if int(taking.sum()) < 2:
            return
        weights = self.log_weights.exp()
        pull = (weights * norms)[taking]
        pace = (losses / self.initial_losses)[taking]
        target = pull.mean() * (pace / pace.mean()).clamp_min(0).pow(self.alpha)
        gradient = (pull - target).sign() * pull  # of |w |g| - target| with respect to log w
        first, second = self.betas
        self.updates[taking] += 1
        self.gradient_mean[taking] = first * self.gradient_mean[taking] + (1 - first) * gradient
        self.gradient_square[taking] = second * self.gradient_square[taking] + (1 - second) * gradient.square()
        mean = self.gradient_mean[taking] / (1 - first ** self.updates[taking])
        square = self.gradient_square[taking] / (1 - second ** self.updates[taking])
        moved = weights[taking] * (-self.learning_rate * mean / (square.sqrt() + self.eps)).exp()
        self.log_weights[taking] = (moved * (weights[taking].sum() / moved.sum())).log()


def shared_weight_name(model: nn.Module, parts: Sequence[str], pattern: str | None = None) -> str:
    """The parameter by which GradNorm measures.

    Args:
        model: its parameters are looked through; frozen ones are passed over.
        parts: names of the parts that all tasks share, the last one first; those that are None are passed over.
        pattern: see :class:`GradNorm`.

    Raises:
        ValueError: nothing matches the pattern (the nearest name is given), or no part has a weight to train.
    """
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if pattern is not None:
        matching = fnmatch.filter(trained, pattern)
        if not matching:
            near = difflib.get_close_matches(pattern, trained, n=1, cutoff=0.0)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise ValueError(f"shared_weight: no trained parameter is named '{pattern}'{hint}")
        return matching[-1]
    for part in parts:
        names = [name for name in trained if name.startswith(f"{part}.") and name.endswith("weight")]
        matrices = [name for name in names if model.get_parameter(name).ndim > 1]
        if matrices:
            return matrices[-1]
    raise ValueError(f"GradNorm needs a weight that the heads share, but none of {', '.join(parts)} is trained")

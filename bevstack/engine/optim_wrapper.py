"""Mixed precision on any device, and a stop at the first gradient that is not finite."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from bevstack.engine.faults import NonFiniteError
from bevstack.precision import choose_precision
from bevstack.registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """mmengine's ``OptimWrapper`` (accumulation, clipping) with autocast on CPU or CUDA.

    The loss is scaled for float16 only. A gradient that is not finite raises :class:`NonFiniteError` with the names of
    the parameters, before the optimizer steps (float16: the scaler skips such a step and lowers its scale instead).

    Args:
        dtype: "auto", "float32", "bfloat16" or "float16"; see :func:`bevstack.precision.choose_precision`.
        **kwargs: of mmengine's ``OptimWrapper``: optimizer, accumulative_counts, clip_grad.
    """

    def __init__(self, dtype: str = "auto", **kwargs) -> None:
        super().__init__(**kwargs)
        self.dtype = dtype
        self._model: nn.Module | None = None
        self.choose_precision_for(None)

    def choose_precision_for(self, model: nn.Module | None) -> None:
        """Choose the format again, now that the model is known that will compute in it; before the first step."""
        device = self.optimizer.param_groups[0]["params"][0].device
        self.precision = choose_precision(self.dtype, device, model)
        self.loss_scaler = torch.amp.GradScaler(device.type, enabled=self.precision.needs_loss_scaling)

    @contextmanager
    def optim_context(self, model: nn.Module):
        """Forward under autocast; without gradient synchronisation while gradients accumulate."""
        self._model = model
        with super().optim_context(model), self.precision.autocast():
            yield

    def backward(self, loss: Tensor, **kwargs) -> None:
        """Backward of the scalar loss, which is scaled for float16."""
        self.loss_scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs) -> None:
        """Check, clip and step."""
        if self.loss_scaler.is_enabled():
            self.loss_scaler.unscale_(self.optimizer)
            if self.clip_grad_kwargs:
                self._clip_grad()
            self.loss_scaler.step(self.optimizer, **kwargs)
            self.loss_scaler.update()
            return
        self._check_gradients()
        super().step(**kwargs)

    def _check_gradients(self) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not parameters:
            return
        norms = torch.stack(torch._foreach_norm([p.grad for p in parameters]))
        if torch.isfinite(norms).all():
            return
        broken = {id(p) for p, ok in zip(parameters, torch.isfinite(norms).tolist(), strict=True) if not ok}
        named = () if self._model is None else self._model.named_parameters()
        names = [name.removeprefix("module.") for name, parameter in named if id(parameter) in broken]
        raise NonFiniteError(f"gradient is not finite in {len(broken)} parameters, first: {', '.join(names[:3])}")

    def state_dict(self) -> dict:
        """State of the optimizer and, for float16, of the loss scaler."""
        state = super().state_dict()
        if self.loss_scaler.is_enabled():
            state["loss_scaler"] = self.loss_scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        """Counterpart of :meth:`state_dict`; a scaler's state is ignored where none is in use."""
        state = dict(state_dict)
        scaler = state.pop("loss_scaler", None)
        if scaler is not None and self.loss_scaler.is_enabled():
            self.loss_scaler.load_state_dict(scaler)
        super().load_state_dict(state)

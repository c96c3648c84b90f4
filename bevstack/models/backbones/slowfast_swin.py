"""SlowFast x Swin: window attention on few wide frames, a light fast path on all, three ways of joining them.

Swin's stages are timm's (Liu et al. 2021, arXiv 2103.14030); two paths and lateral connections are SlowFast's
(Feichtenhofer et al. 2019, arXiv 1812.03982).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

from bevstack.models.backbones.slowfast import LateralConnection, check_frames, part_of, slow_frames
from bevstack.models.backbones.slowfast_paths import (
    FrameExchange,
    LightConvolutionPath,
    PathJoin,
    TemporalConvolution,
    ThinSwinPath,
    frames_of,
    swin_stages,
    tokens_of,
)
from bevstack.registry import MODELS

FUSIONS = ("none", "parallel", "serial", "cross")
JOINS = ("concat", "weights")


@MODELS.register_module()
class SlowFastSwin(BaseModule):
    """Swin on a camera's keyframes (slow path), joined at every stage with a fast path on all its sweeps.

    Fusions:

    - ``parallel``: the fast path is a Swin, too, of ``beta`` times the channels.
    - ``serial``: the fast path is a light CNN with temporal convolutions, ``beta`` times the channels.
    - ``cross``: both paths run through the same Swin blocks, the fast one at ``1 / fast_reduction`` of the resolution;
      at every stage the fast path gives to the slow one and the slow one to the fast one (``beta`` times the channels).
    - ``none``: the slow path on the keyframe alone, (B, 3, H, W): what the others are compared with.

    Fast to slow goes by a :class:`bevstack.models.backbones.slowfast.LateralConnection` of ``2 * beta`` times the slow
    path's channels. In its last two stages the slow path, too, is convolved over time, as SlowFast's is. A level is the
    slow path at the keyframe after the join of its stage.

    Args:
        fusion: see above.
        num_sweeps: S older images of each camera; the keyframe is one more. ``none`` takes 0, whatever is said.
        alpha: frames of the fast path per frame of the slow one; 6 for 12 Hz sweeps and 2 Hz keyframes.
        beta: channels of the fast path per channel of the slow one, 1/8 or 1/4.
        join: ``concat`` or ``weights``, see :class:`PathJoin`.
        embed_dim, depths, num_heads, window_size: of the slow path's Swin. Small ones (48, (1, 1, 2)) train on a CPU.
        fast_depths: blocks of the fast path's stages, as many as ``depths`` where not given (not for ``cross``).
        fast_reduction: of the fast path's image sides, for ``cross``.
        out_indices: stages whose levels are returned; 0 has stride 4. Stages after the last one are not built.
        drop_path_rate: of the slow path's Swin.
        pretrained: path of a state dict with the slow path's weights in timm's Swin key names.

    Attributes:
        channels, strides: of the returned levels; num_sweeps.

    Raises:
        ValueError: unknown fusion or join, ``beta`` leaves no whole number of channels, weights are missing; in use:
            not S + 1 frames.
    """

    def __init__(
        self,
        fusion: str = "parallel",
        num_sweeps: int = 6,
        alpha: int = 6,
        beta: float = 1 / 8,
        join: str = "concat",
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        fast_depths: Sequence[int] | None = None,
        fast_reduction: int = 2,
        out_indices: Sequence[int] = (1, 2, 3),
        drop_path_rate: float = 0.0,
        pretrained: str | None = None,
        init_cfg: Mapping | None = None,
    ) -> None:
        super().__init__(init_cfg)
        for name, value, known in (("fusion", fusion, FUSIONS), ("join", join, JOINS)):
            if value not in known:
                raise ValueError(f"{name}: {value!r} is none of {', '.join(known)}")
        self.fusion, self.alpha, self.fast_reduction = fusion, alpha, fast_reduction
        self.num_sweeps = 0 if fusion == "none" else num_sweeps
        self.out_indices = tuple(out_indices)
        stages = max(self.out_indices) + 1
        widths = [embed_dim * 2**stage for stage in range(stages)]
        depths, num_heads = tuple(depths)[:stages], tuple(num_heads)[:stages]
        self.slow = swin_stages(embed_dim, depths, num_heads, window_size, drop_path_rate)
        if pretrained is not None:
            self._load(pretrained)
        self.norms = nn.ModuleDict({str(i): nn.LayerNorm(widths[i]) for i in self.out_indices})
        self.channels: tuple[int, ...] = tuple(widths[i] for i in self.out_indices)
        self.strides: tuple[int, ...] = tuple(4 * 2**i for i in self.out_indices)
        if fusion == "none":
            return
        thin = [part_of(width, beta) for width in widths]
        fast_depths = depths if fast_depths is None else tuple(fast_depths)[:stages]
        if fusion == "parallel":
            heads = [_divisor(width, heads * beta) for width, heads in zip(thin, num_heads, strict=True)]
            self.fast: ThinSwinPath | LightConvolutionPath = ThinSwinPath(thin[0], fast_depths, heads, window_size)
        elif fusion == "serial":
            self.fast = LightConvolutionPath(thin[0], fast_depths)
        else:
            self.fast_temporal = nn.ModuleList(map(TemporalConvolution, widths, thin))
            self.exchanges = nn.ModuleList(map(FrameExchange, widths[:-1], thin[:-1], [alpha] * (stages - 1)))
        fast_widths = widths if fusion == "cross" else self.fast.channels
        self.laterals = nn.ModuleList(
            LateralConnection(fast, 2 * part, alpha) for fast, part in zip(fast_widths, thin, strict=True)
        )
        self.joins = nn.ModuleList(PathJoin(width, 2 * part, join) for width, part in zip(widths, thin, strict=True))
        late = [stage >= stages - 2 for stage in range(stages)]
        self.slow_temporal = nn.ModuleList(
            TemporalConvolution(width, width // 2) if is_late else nn.Identity()
            for width, is_late in zip(widths, late, strict=True)
        )

    def _load(self, path: str) -> None:
        state = torch.load(path, map_location="cpu", weights_only=True)
        missing = set(self.slow.state_dict()) - set(state)
        if missing:
            raise ValueError(f"{path}: lacks {len(missing)} weights of the slow path, the first is {min(missing)}")
        self.slow.load_state_dict(state, strict=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, S + 1, 3, H, W), oldest first, keyframe last, to the levels' (B, C_l, H / s_l, W / s_l)."""
        if self.fusion == "none":
            tokens, levels = self.slow.patch_embed(images), []
            for stage in self.slow.layers:
                tokens = stage(tokens)
                levels.append(tokens)
            return self._levels(levels, len(images))
        check_frames(images, self.num_sweeps)
        slow = self.slow.patch_embed(images[:, slow_frames(images.shape[1], self.alpha)].flatten(0, 1))
        return self._crossed(images, slow) if self.fusion == "cross" else self._side_by_side(images, slow)

    def _side_by_side(self, images: Tensor, slow: Tensor) -> list[Tensor]:
        """The fast path runs by itself; the slow one takes from it at every stage."""
        batch, levels = len(images), []
        fast_levels = self.fast(images)
        for stage, (swin_stage, fast) in enumerate(zip(self.slow.layers, fast_levels, strict=True)):
            slow = self._over_time(stage, swin_stage(slow), batch)
            slow = self.joins[stage](slow, tokens_of(self.laterals[stage](fast)))
            levels.append(slow)
        return self._levels(levels, batch)

    def _crossed(self, images: Tensor, slow: Tensor) -> list[Tensor]:
        """Both paths go through the same blocks and give to each other after each stage."""
        batch, levels = len(images), []
        fast = self.slow.patch_embed(F.avg_pool2d(images.flatten(0, 1), self.fast_reduction))
        for stage, swin_stage in enumerate(self.slow.layers):
            slow, fast = swin_stage(slow), swin_stage(fast)
            slow, fast = self._over_time(stage, slow, batch), self.fast_temporal[stage](fast, batch)
            lateral = self.laterals[stage](frames_of(fast, batch))
            lateral = F.interpolate(lateral.transpose(1, 2).flatten(0, 1), size=slow.shape[1:3], mode="bilinear")
            if stage < len(self.exchanges):
                fast = self.exchanges[stage](fast, slow, batch)
            slow = self.joins[stage](slow, lateral.permute(0, 2, 3, 1))
            levels.append(slow)
        return self._levels(levels, batch)

    def _over_time(self, stage: int, slow: Tensor, batch: int) -> Tensor:
        temporal = self.slow_temporal[stage]
        return temporal(slow, batch) if isinstance(temporal, TemporalConvolution) else slow

    def _levels(self, tokens: Sequence[Tensor], batch: int) -> list[Tensor]:
        """Per stage (B * T_slow, h, w, C) tokens to the returned levels (B, C, h, w) of the last frame."""
        last = {i: tokens[i].unflatten(0, (batch, -1))[:, -1] for i in self.out_indices}
        return [self.norms[str(i)](last[i]).permute(0, 3, 1, 2) for i in self.out_indices]


def _divisor(channels: int, wanted: float) -> int:
    """The largest number of heads that divides ``channels`` and is at most ``wanted``, at least 1."""
    return max(heads for heads in range(1, max(int(wanted), 1) + 1) if channels % heads == 0)

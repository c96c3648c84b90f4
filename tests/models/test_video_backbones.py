"""Video backbones: the contract of all of them, and which frames each path sees."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from bevstack.models.backbones.slowfast import LateralConnection, SlowFast, slow_frames
from bevstack.models.backbones.slowfast_paths import FrameExchange, PathJoin
from bevstack.models.backbones.slowfast_swin import SlowFastSwin
from bevstack.registry import MODELS

HEIGHT, WIDTH, SWEEPS = 64, 96, 6
SWIN = dict(type="SlowFastSwin", embed_dim=16, depths=(1, 1, 2), num_heads=(1, 2, 2), window_size=4, beta=1 / 4)
BACKBONES = {
    "slowfast": dict(type="SlowFast", width=8, layers=(1, 1, 1, 1), beta=1 / 4),
    "slowfast, two levels of an eighth": dict(type="SlowFast", width=8, layers=(1, 1, 1), out_indices=(0, 2)),
    "parallel": dict(fusion="parallel", out_indices=(1, 2), **SWIN),
    "parallel, weights": dict(fusion="parallel", join="weights", out_indices=(0, 2), **SWIN),
    "serial": dict(fusion="serial", out_indices=(0, 1, 2), **SWIN),
    "serial, weights": dict(fusion="serial", join="weights", out_indices=(2,), fast_depths=(2, 1, 1), **SWIN),
    "cross": dict(fusion="cross", out_indices=(1, 2), **SWIN),
    "cross, weights": dict(fusion="cross", join="weights", out_indices=(0, 1, 2), **SWIN),
}


def built(case: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS.build(BACKBONES[case])


def clip(batch: int = 2, frames: int = SWEEPS + 1, height: int = HEIGHT, width: int = WIDTH) -> torch.Tensor:
    return torch.randn(batch, frames, 3, height, width, generator=torch.Generator().manual_seed(1))


class ConvolvedDimensions(TorchDispatchMode):
    """Collects how many dimensions the inputs of torch's convolutions have."""

    def __init__(self) -> None:
        super().__init__()
        self.dimensions: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.convolution.default:
            self.dimensions.add(args[0].dim())
        return function(*args, **(kwargs or {}))


@pytest.fixture(params=BACKBONES)
def case(request) -> str:
    return request.param


def test_declared_is_measured(case):
    # Expected: channels and strides measured on the outputs.
    backbone = built(case).eval()
    assert backbone.num_sweeps == SWEEPS
    with torch.no_grad():
        levels = backbone(clip())
    assert [tuple(level.shape) for level in levels] == [
        (2, channels, HEIGHT // stride, WIDTH // stride)
        for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
    ]
    assert len(levels) == len(backbone.out_indices)


def test_every_parameter_learns(case):
    # Expected: a finite gradient that is not all zero for every parameter (the biases of LayerNorms among them).
    backbone = built(case).train()
    g = torch.Generator().manual_seed(2)
    # Random weights: the plain mean of what a LayerNorm gives would not depend on anything before it.
    loss = sum((level * torch.randn(level.shape, generator=g)).sum() for level in backbone(clip()))
    loss.backward()
    silent = [
        name
        for name, p in backbone.named_parameters()
        if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()
    ]
    assert silent == []


def test_a_batch_of_two_is_two_batches_of_one(case):
    backbone = built(case).eval()
    images = clip()
    with torch.no_grad():
        both, alone = backbone(images), [backbone(images[b : b + 1]) for b in range(2)]
    for level, together in enumerate(both):
        expected = torch.cat([one[level] for one in alone])
        torch.testing.assert_close(together, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_save_and_load(case, tmp_path):
    # Expected: the same features, bit by bit, from a model that was drawn otherwise and then loaded.
    backbone = built(case).eval()
    torch.save(backbone.state_dict(), tmp_path / "backbone.pth")
    other = MODELS.build(BACKBONES[case]).eval()
    other.load_state_dict(torch.load(tmp_path / "backbone.pth", weights_only=True))
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(backbone(clip(1)), other(clip(1)), strict=True))


def test_bfloat16(case):
    # Expected: the float32 features, within the 8 bits of bfloat16's mantissa gathered over some ten layers.
    backbone = built(case).eval()
    with torch.no_grad():
        exact = backbone(clip(1))
        with torch.autocast("cpu", torch.bfloat16):
            rough = backbone(clip(1))
    for a, b in zip(exact, rough, strict=True):
        assert b.isfinite().all()
        assert (a - b.float()).norm() < 0.05 * a.norm()


def test_slowfast_trains_in_bfloat16(threads):
    # Expected: a gradient; at this size torch's own convolution in 3 dimensions ended the process in the slow path's
    # stem (AMX), and left out the weights of the third stage, which sees two frames (AVX512-BF16).
    backbone = SlowFast(num_sweeps=SWEEPS, width=16, layers=(1, 1, 1), out_indices=(1, 2))
    with torch.autocast("cpu", torch.bfloat16):
        levels = backbone(clip(1, height=96, width=256))
    sum(level.float().square().mean() for level in levels).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters() if p.requires_grad)


def test_nothing_is_convolved_in_three_dimensions(case):
    # Expected: every convolution that runs, forward, sees images (TimeConvolution says why).
    backbone = built(case).eval()
    with torch.no_grad(), ConvolvedDimensions() as convolved:
        backbone(clip(1))
    assert convolved.dimensions == {4}


def test_features_depend_on_every_frame(case):
    # Expected: each frame's gradient is not zero; nor do the features stay if the order of the sweeps is turned.
    backbone = built(case).eval()
    images = clip(1).requires_grad_()
    backbone(images)[-1].square().sum().backward()
    assert (images.grad.abs().sum(dim=(0, 2, 3, 4)) > 0).all()
    with torch.no_grad():
        turned = torch.cat([images[:, :-1].flip(1), images[:, -1:]], dim=1)
        level, other = backbone(images)[-1], backbone(turned)[-1]
    assert (level - other).norm() > 1e-3 * level.norm()


def test_another_size_and_number_of_frames():
    # Expected: 12 frames of 96 x 160 pixels, sizes that no window divides; slow frames are 5 and 11.
    for name in ("slowfast", "parallel", "serial", "cross"):
        backbone = MODELS.build({**BACKBONES[name], "num_sweeps": 11}).eval()
        with torch.no_grad():
            levels = backbone(clip(1, 12, 96, 160))
        assert [level.shape[-2:] for level in levels] == [(96 // s, 160 // s) for s in backbone.strides]


def test_a_wrong_number_of_frames_is_refused(case):
    with pytest.raises(ValueError, match=r"expected \(B, 7, 3, H, W\)"):
        built(case)(clip(1, 5))


# --- the slow path's frames, the paths' widths -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "alpha", "expected"),
    # By hand: the keyframe is the last one; 12 Hz and 2 Hz make every sixth.
    [(7, 6, [0, 6]), (12, 6, [5, 11]), (13, 6, [0, 6, 12]), (4, 6, [3]), (7, 3, [0, 3, 6]), (8, 4, [3, 7])],
)
def test_which_frames_are_slow(frames, alpha, expected):
    assert slow_frames(frames, alpha) == expected


@pytest.mark.parametrize("case", ["slowfast", "parallel", "serial", "cross"])
def test_the_slow_path_gets_exactly_its_frames(case):
    # Expected: of frames that hold their own number, every alpha-th and the keyframe reach the slow path's first layer.
    backbone = MODELS.build({**BACKBONES[case], "num_sweeps": 11}).eval()
    seen = []
    first = backbone.slow_stem if case == "slowfast" else backbone.slow.patch_embed
    first.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.arange(12.0).view(1, 12, 1, 1, 1).expand(1, 12, 3, HEIGHT, WIDTH).contiguous()
    with torch.no_grad():
        backbone(images)
    time = 2 if case == "slowfast" else 0
    assert seen[0].movedim(time, 0).flatten(1).mean(dim=1).tolist() == [5.0, 11.0]


@pytest.mark.parametrize("beta", [1 / 8, 1 / 4])
def test_ratios_of_channels(beta):
    # Expected: SlowFast's table 1: the fast path has beta, the lateral connection 2 * beta times the slow path's.
    model = SlowFast(width=16, layers=(1, 1, 1, 1), beta=beta)
    for stage, lateral in enumerate(model.laterals[1:]):
        slow = 4 * 16 * 2**stage
        assert lateral[0].in_channels == beta * slow and lateral[0].out_channels == 2 * beta * slow
    assert model.channels == tuple(round((1 + 2 * beta) * 64 * 2**i) for i in (1, 2, 3))
    sizes = dict(embed_dim=32, depths=(1, 1), num_heads=(2, 4), out_indices=(0, 1), beta=beta)
    for fusion in ("parallel", "serial"):
        model = SlowFastSwin(fusion, **sizes)
        assert model.channels == (32, 64) and model.fast.channels == tuple(round(beta * c) for c in model.channels)
        assert [lateral.out_channels for lateral in model.laterals] == [round(2 * beta * c) for c in model.channels]
        assert {lateral.stride[0] for lateral in model.laterals} == {6}


def test_published_slowfast_fast_path_is_light():
    # Expected: "the fast pathway ... ~20% of the total computation" (section 3.2) at beta = 1/8, alpha = 8; here of the
    # multiply-adds of convolutions, with the paper's 4 and 32 frames.
    with torch.device("meta"):
        model = SlowFast(num_sweeps=31, alpha=8)
    work = {"slow": 0, "fast": 0}

    def count(path):
        def hook(module, inputs, output):
            work[path] += output.numel() * module.in_channels * module.kernel_size[0] * module.kernel_size[1] ** 2

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv3d) and name.startswith(("slow", "fast")):
            module.register_forward_hook(count(name[:4]))
    model(torch.empty(1, 32, 3, 224, 224, device="meta"))
    assert 0.1 < work["fast"] / sum(work.values()) < 0.25


@pytest.mark.parametrize(("frames", "alpha"), [(7, 6), (12, 6), (9, 4)])
def test_lateral_connection_is_centred_on_the_slow_frames(frames, alpha):
    # Expected: with weights k[d] of one channel, sum over d of k[d] * fast[slow + d - 2], zero outside the clip.
    lateral = LateralConnection(1, 1, alpha)
    fast = torch.randn(1, 1, frames, 1, 1, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        result = lateral(fast).flatten()
    kernel, values = lateral.weight.detach().flatten(), fast.flatten()
    expected = [
        sum(kernel[d] * values[slow + d - 2] for d in range(5) if 0 <= slow + d - 2 < frames)
        for slow in slow_frames(frames, alpha)
    ]
    torch.testing.assert_close(result, torch.stack(expected))


def test_exchange_gives_the_newest_slow_frame():
    # Expected: of 9 frames with alpha 3 the slow ones are 2, 5, 8; frames before the first get the first.
    exchange = FrameExchange(1, 1, alpha=3)
    exchange.project = nn.Identity()
    slow = torch.tensor([20.0, 50.0, 80.0]).view(3, 1, 1, 1)
    result = exchange(torch.zeros(9, 1, 1, 1), slow, 1).flatten().tolist()
    assert result == [20.0, 20.0, 20.0, 20.0, 20.0, 50.0, 50.0, 50.0, 80.0]


def test_joins_start_from_the_slow_path():
    # Expected: concat is slow + a projection (zero lateral weights leave slow alone); weights start at one half each.
    slow, lateral = torch.randn(2, 3, 3, 8), torch.randn(2, 3, 3, 4)
    concat, weights = PathJoin(8, 4, "concat"), PathJoin(8, 4, "weights")
    with torch.no_grad():
        concat.both.weight[:, 8:] = 0
        concat.both.bias.zero_()
        torch.testing.assert_close(concat(slow, lateral), slow)
        torch.testing.assert_close(weights(slow, lateral), (slow + weights.project(weights.norm(lateral))) / 2)


def test_cross_shares_its_blocks():
    # Expected: each Swin stage runs twice, the second time at half the resolution.
    backbone, sizes = built("cross").eval(), []
    for stage in backbone.slow.layers:
        stage.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[:3])))
    with torch.no_grad():
        backbone(clip(1))
    assert sizes == [(2, 16, 24), (7, 8, 12), (2, 8, 12), (7, 4, 6), (2, 4, 6), (7, 2, 3)]


def test_none_is_swin_on_the_keyframe():
    # Expected: timm's Swin stages with the same weights, LayerNorm behind; no sweeps asked for.
    backbone = MODELS.build({**BACKBONES["parallel"], "fusion": "none"}).eval()
    assert backbone.num_sweeps == 0
    with torch.no_grad():
        tokens, expected = backbone.slow.patch_embed(clip()[:, -1]), []
        for stage in backbone.slow.layers:
            tokens = stage(tokens)
            expected.append(tokens)
        levels = backbone(clip()[:, -1])
    for level, index in zip(levels, backbone.out_indices, strict=True):
        torch.testing.assert_close(level, backbone.norms[str(index)](expected[index]).permute(0, 3, 1, 2))
    silent = dict(backbone.named_parameters()).keys() - dict(built("parallel").named_parameters()).keys()
    assert silent == set()  # the twin has no part of its own


def test_weights_of_a_single_frame_swin_start_the_slow_path(tmp_path):
    single = MODELS.build({**BACKBONES["parallel"], "fusion": "none"})
    torch.save(single.slow.state_dict(), tmp_path / "swin.pth")
    video = MODELS.build({**BACKBONES["serial"], "pretrained": str(tmp_path / "swin.pth")})
    own = video.slow.state_dict()
    assert all(torch.equal(own[name], value) for name, value in single.slow.state_dict().items())
    torch.save({"patch_embed.proj.weight": torch.zeros(1)}, tmp_path / "part.pth")
    with pytest.raises(ValueError, match="part.pth: lacks .* weights of the slow path"):
        MODELS.build({**BACKBONES["serial"], "pretrained": str(tmp_path / "part.pth")})


@pytest.mark.parametrize(
    ("change", "message"),
    [(dict(fusion="paralel"), "is none of none, parallel"), (dict(join="sum"), "is none of concat, weights"),
     (dict(beta=0.3), "no whole number")],
)  # fmt: skip
def test_bad_arguments_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build({**BACKBONES["parallel"], **change})


def test_norm_eval():
    backbone = SlowFast(width=8, layers=(1, 1), out_indices=(0, 1), beta=1 / 4, norm_eval=True).train()
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm3d)]
    assert backbone.training and norms and not any(norm.training for norm in norms)


# --- what it is for --------------------------------------------------------------------------------------------------


def moving_squares(count: int, g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """(count, 7, 3, 32, 32) frames of a square that moves by up to 2 px a frame, and its (count, 2) px a frame."""
    velocity = torch.randint(-3, 4, (count, 2), generator=g) / 1.5
    end = torch.randint(12, 20, (count, 2), generator=g)
    squares = torch.rand(count, 3, 4, 4, generator=g).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    frames = 0.15 * torch.rand(count, 1, 3, 32, 32, generator=g).repeat(1, 7, 1, 1, 1)
    for b in range(count):
        for t in range(7):
            row, column = (end[b] + (velocity[b] * (t - 6)).round() - 4).long().clamp(0, 24).tolist()
            frames[b, t, :, row : row + 8, column : column + 8] = 3 * squares[b] - 1.5
    return frames, velocity


def test_velocity_is_read_from_the_sweeps():
    # Expected: the keyframe does not tell the velocity, so that its twin cannot beat the mean, 0: an error of
    # mean(|-3 ... 3|) / 1.5 = 8 / 7 px a frame; with sweeps a few hundred steps are enough for less than half of it.
    torch.manual_seed(0)
    sizes = dict(embed_dim=16, depths=(1, 1), num_heads=(1, 2), window_size=4, beta=1 / 4, out_indices=(1,))
    model = SlowFastSwin("serial", **sizes)
    head = nn.Linear(32, 2)
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], 3e-3)
    steps, g = 200, torch.Generator().manual_seed(1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        frames, velocity = moving_squares(16, g)
        loss = (head(model(frames)[0].amax(dim=(2, 3))) - velocity).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        frames, velocity = moving_squares(64, torch.Generator().manual_seed(9))
        error = (head(model.eval()(frames)[0].amax(dim=(2, 3))) - velocity).abs().mean()
    assert velocity.abs().mean() > 1 and error < 4 / 7

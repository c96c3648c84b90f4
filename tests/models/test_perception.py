"""The whole model on a tiny configuration: batches, clips, streams, options, and what it says about mistakes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from bevstack.engine.optim_wrapper import AutocastOptimWrapper
from bevstack.engine.streaming import Streams
from bevstack.geometry import BEVGrid
from bevstack.models.bev import plan_visibility
from bevstack.models.heads import BEVHead
from bevstack.models.perception import BEVPerception
from bevstack.registry import MODELS
from bevstack.structures import Clip, Frame
from tests.models.scenes import CLASSES, LAYERS, aligned, labels_of, motion_of, only, pushed, rig_of, two_samples

GRID = BEVGrid(shape=(6, 10), x_range_m=(-15, 15), y_range_m=(-9, 9))
CAMERAS, SIZE_PX = 3, (32, 64)


def config(**changes) -> dict:
    """Two levels, two encoder layers, three heads."""
    raster = dict(type="SemanticSegmentationHead", in_channels=12, grid=GRID, channels=6, num_convs=1)
    settings = dict(
        type="BEVPerception",
        backbone=dict(type="mmdet.ResNet", depth=18, base_channels=8, out_indices=(1, 2), norm_eval=False),
        neck=dict(type="TopDownNeck", in_channels=(16, 32), out_channels=16, out_levels=(0, 1)),
        encoder=dict(
            type="BEVFormerEncoder",
            grid=GRID,
            channels=16,
            num_cameras=CAMERAS,
            num_levels=2,
            num_layers=2,
            num_heads=2,
            num_points=4,
            num_heights=2,
            feed_forward_channels=16,
            dropout=0.0,
        ),
        bev_neck=dict(type="BEVUNet", in_channels=16, widths=(12, 16), blocks=1, out_channels=12),
        heads=dict(
            detection=dict(
                type="DenseDetectionHead", in_channels=12, grid=GRID, classes=CLASSES, channels=6,
                decoding=dict(score_threshold=0.0),
            ),
            map=dict(raster, raster="map", classes=LAYERS),
            vehicle=dict(raster, raster="vehicle", classes=("vehicle",)),
        ),
    )
    return {**settings, **changes}


# How history enters: through the encoder's temporal attention, or joined to what the encoder made of each frame.
HISTORIES = {
    "attention": {},
    "concatenation": dict(
        temporal_fusion=dict(type="TemporalConcatenation", channels=16, num_frames=2, blocks=1),
        encoder={**config()["encoder"], "temporal_points": 0},
    ),
}


def build(seed: int = 0, **changes) -> BEVPerception:
    """A model none of whose linear layers starts at zero, so that every path counts."""
    torch.manual_seed(seed)
    model = MODELS.build({**config(**changes), "_scope_": "bevstack"})
    for module in model.encoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.1)
    for module in model.modules():  # statistics as after some training, so that evaluation mode does something
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2.0)
    return model


def frames_of(number: int, seed: int = 0, first=None) -> list[Frame]:
    """So many moments of two samples on the move; the first has no predecessor unless told."""
    torch.manual_seed(seed)
    frames = []
    for t in range(number):
        motion = motion_of([None, None] if t == 0 and first is None else [(0.3 * t, 1.5, 4.0), (-1.0, 2.0 + t, -9.0)])
        frames.append(replace(two_samples(CAMERAS, SIZE_PX), motion=motion))
    return frames


def norms_in_evaluation(model: nn.Module) -> nn.Module:
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def total(losses: dict) -> torch.Tensor:
    return sum(value for key, value in losses.items() if "loss" in key)


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], rtol=1e-3, atol=1e-5) -> None:
    assert set(one) == set(other)
    for name, value in one.items():
        assert value.numel(), f"{name}: nothing to compare"
        scale = value.abs().max().item()
        torch.testing.assert_close(other[name], value, rtol=rtol, atol=atol + 1e-4 * scale, msg=name)


def predicted(sample) -> dict[str, torch.Tensor]:
    boxes = sample.pred_instances_3d
    tensors = {"boxes": boxes.bboxes_3d.tensor, "scores": boxes.scores_3d, "labels": boxes.labels_3d}
    return {**tensors, **{name: raster.layers for name, raster in sample.pred_rasters.items()}}


@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("number", [1, 3], ids=["single-frame", "clip"])
def test_training_on_two_equals_training_on_one_and_one(number, history):
    # Expected: losses are means over boxes (as many in both) and cells, so the batch's gradient is the mean of the two.
    model = norms_in_evaluation(build(**HISTORIES[history]))
    clip, samples = Clip(tuple(frames_of(number))), labels_of(GRID, [3, 3])
    together = model(clip, samples, mode="loss")
    whole = gradients(model, total(together))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(whole) == trained - never_used(model), "DDP wants a gradient for every parameter"
    parts = []
    for b in range(2):
        alone = model(only(clip, b), samples[b : b + 1], mode="loss")
        parts.append((alone, gradients(model, total(alone))))
    for key, value in together.items():
        torch.testing.assert_close(value, (parts[0][0][key] + parts[1][0][key]) / 2, rtol=1e-4, atol=1e-5)
    assert_same(whole, {name: (parts[0][1][name] + parts[1][1][name]) / 2 for name in whole})


def never_used(model: nn.Module) -> set[str]:
    """ResNet's stage after the last of ``out_indices``, which mmdet builds all the same."""
    return {name for name, _ in model.named_parameters() if name.startswith("backbone.layer4")}


@pytest.mark.parametrize("history", HISTORIES)
def test_streams_of_two_equal_two_streams(history):
    # Sample 1 starts a new scene at the second step; expected: what each stream predicts when it runs alone.
    model, frames = build(**HISTORIES[history]).eval(), frames_of(3)
    tokens = [("a0", "b0"), ("a1", "c0"), ("a2", "c1")]
    previous = [("", ""), ("a0", ""), ("a1", "c0")]
    frames[1] = replace(frames[1], motion=motion_of([(0.0, 2.0, 5.0), None]))

    def run(slots: list[int]) -> list[list[dict]]:
        streams, steps = Streams(), []
        for frame, names, before in zip(frames, tokens, previous, strict=True):
            samples = labels_of(GRID, [1, 1])
            for b, sample in enumerate(samples):
                sample.set_metainfo(dict(token=names[b], prev_token=before[b]))
            samples = [samples[b] for b in slots]
            clip = Clip((frame,)) if len(slots) == 2 else only(Clip((frame,)), slots[0])
            with torch.no_grad():
                results, streams = streams.step(model, {"inputs": clip, "data_samples": samples}, "predict")
            assert streams.tokens == tuple(names[b] for b in slots)
            steps.append([predicted(result) for result in results])
        return steps

    together = run([0, 1])
    for b in range(2):
        for step, (both, alone) in enumerate(zip(together, run([b]), strict=True)):
            assert_same(alone[0], both[b])
            # the history counts (and a reset forgets it): without memory the later steps come out otherwise
            with torch.no_grad():
                fresh = predicted(model(only(Clip((frames[step],)), b), labels_of(GRID, [1]), mode="predict")[0])
            has_history = previous[step][b] != ""
            assert torch.allclose(fresh["map"], both[b]["map"], atol=1e-5) != has_history


@pytest.mark.parametrize("history", HISTORIES)
def test_a_clip_is_history_without_gradient_and_then_one_frame(history):
    # Expected: the gradient of the last frame alone, given the memory that evaluation mode made of the earlier ones.
    model, frames, samples = build(**HISTORIES[history]).train(), frames_of(3), labels_of(GRID, [2, 3])
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    whole = gradients(model, total(model(Clip(tuple(frames)), samples, mode="loss")))
    model.load_state_dict(statistics, strict=False)
    model.eval()
    with torch.no_grad():
        memory = model(Clip(tuple(frames[:2])))[1]
    model.train()
    alone = gradients(model, total(model(Clip((frames[2],), memory), samples, mode="loss")))
    assert_same(alone, whole)


def test_modes_are_restored_and_history_runs_in_evaluation_mode():
    model = build().train()
    model.backbone.layer1.eval()  # as frozen stages are
    model.heads["map"].eval()
    before = {name: module.training for name, module in model.named_modules()}
    assert set(before.values()) == {True, False}
    seen = []
    model.encoder.register_forward_hook(
        lambda *_: seen.append((torch.is_grad_enabled(), any(m.training for m in model.modules())))
    )
    model(Clip(tuple(frames_of(3))), labels_of(GRID, [1, 1]), mode="loss")
    assert seen == [(False, False), (False, False), (True, True)]
    assert {name: module.training for name, module in model.named_modules()} == before

    def fail(*_):
        raise RuntimeError("broken")

    handle = model.encoder.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="broken"):
        model(Clip(tuple(frames_of(2))), labels_of(GRID, [1, 1]), mode="loss")
    handle.remove()
    assert {name: module.training for name, module in model.named_modules()} == before


def test_features_that_are_there_already_stand_for_the_images():
    # Expected: what the model makes of the images, from the backbone's own levels of them; the images do not matter.
    model = build().eval()
    frame = frames_of(1)[0]
    batch = frame.images.shape[:2]
    with torch.no_grad():
        levels = tuple(level.unflatten(0, batch) for level in model.backbone_features(frame.images.flatten(0, 1)))
        expected, _ = model.step(frame)
        found, _ = model.step(replace(frame, images=torch.zeros_like(frame.images), features=levels))
    assert torch.equal(found.features, expected.features)


def test_memory_is_a_value():
    # M = 2 (a fusion of three frames): the frame just done first, no graph; inputs stay as they were; nothing is kept.
    fusion = dict(type="TemporalConcatenation", channels=16, num_frames=3, blocks=1)
    model, frames = build(**{**HISTORIES["concatenation"], "temporal_fusion": fusion}).eval(), frames_of(3)
    assert model.memory_frames == 2
    with torch.no_grad():
        first, memory = model.step(frames[0])
        kept = memory.features.clone()
        second, later = model.step(frames[1], memory)
        again, _ = model.step(frames[1], memory)
    assert torch.equal(memory.features, kept) and torch.equal(second.features, again.features)
    assert memory.features.shape == (2, 1, 16, 6, 10) and later.features.shape == (2, 2, 16, 6, 10)
    assert torch.equal(later.features[:, 0], second.encoded.features)
    assert torch.equal(later.features[:, 1], memory.features[:, 0])
    assert later.valid.all() and later.grid is model.encoder.grid
    assert first.history is None and second.history.features.shape == (2, 1, 16, 6, 10)
    model.train()
    _, memory = model(Clip((frames[0],)), labels_of(GRID, [1, 1]), mode="stream_loss")
    assert not memory.features.requires_grad


def test_the_memory_holds_what_is_read():
    # By the parts' own arguments: temporal attention reads one past frame, a fusion of T frames T - 1, a head its own.
    assert build().memory_frames == 1
    assert build(encoder={**config()["encoder"], "temporal_points": 0}).memory_frames == 0
    assert build(**HISTORIES["concatenation"]).memory_frames == 1
    behaviour = dict(type="BehaviourHead", in_channels=12, grid=GRID, classes=CLASSES, channels=8, num_frames=4)
    model = build(heads={**config()["heads"], "behaviour": behaviour})
    assert model.memory_frames == 3 and model.heads["behaviour"].history_frames == 3
    with torch.no_grad():
        static = build(encoder={**config()["encoder"], "temporal_points": 0}).eval()
        assert static.step(frames_of(1)[0])[1] is None


def test_a_step_knows_no_samples():
    # What the adapter gives in mode "tensor" is the step's, of the last frame; losses and predictions come from it.
    model, frames, samples = build().eval(), frames_of(2), labels_of(GRID, [1, 2])
    with torch.no_grad():
        bev, memory = model.step(frames[1], model.history(model, frames[:1], None))
        clip = Clip(tuple(frames))
        adapted, after = model(clip)
        assert torch.equal(bev.features, adapted.features) and torch.equal(memory.features, after.features)
        losses, expected = model.losses(bev, samples), model(clip, samples, mode="loss")
        assert all(torch.equal(value, expected[name]) for name, value in losses.items())
        for one, other in zip(model.predictions(bev, samples), model(clip, samples, mode="predict"), strict=True):
            assert_same(predicted(one), predicted(other))


@pytest.mark.parametrize("kept", [["detection"], ["map"], ["vehicle", "detection"]], ids="-".join)
def test_heads_can_be_left_out(kept):
    everything, samples = build().eval(), labels_of(GRID, [2, 2])
    for sample in samples:
        del sample.pred_instances_3d
    model = build(heads={name: config()["heads"][name] for name in kept}).eval()
    model.load_state_dict({k: v for k, v in everything.state_dict().items() if k in model.state_dict()})
    clip = Clip(tuple(frames_of(1)))
    losses, all_losses = model(clip, samples, mode="loss"), everything(clip, samples, mode="loss")
    assert set(losses) == {key for key in all_losses if key.partition(".")[0] in kept}
    assert all(torch.equal(losses[key], all_losses[key]) for key in losses)
    result = model(clip, samples, mode="predict")[0]
    assert ("pred_instances_3d" in result) == ("detection" in kept)
    assert set(result.get("pred_rasters", {})) == {"map", "vehicle"} & set(kept)
    assert "pred_instances_3d" not in samples[0] and "pred_rasters" not in samples[0], "the samples are copied"


def test_losses_are_weighted_by_head():
    clip, samples = Clip(tuple(frames_of(1))), labels_of(GRID, [2, 2])
    plain = build().eval()(clip, samples, mode="loss")
    weighted = build(loss_weights=dict(map=3.0, vehicle=0.0)).eval()(clip, samples, mode="loss")
    factor = {"detection": 1.0, "map": 3.0, "vehicle": 0.0}
    for key, value in plain.items():
        torch.testing.assert_close(weighted[key], value * factor[key.partition(".")[0]])


def test_frozen_stages_get_no_gradient():
    backbone = {**config()["backbone"], "frozen_stages": 1, "norm_eval": True}
    model = build(backbone=backbone).train()
    found = gradients(model, total(model(Clip(tuple(frames_of(1))), labels_of(GRID, [2, 2]), mode="loss")))
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert {name.split(".")[1] for name in frozen} == {"conv1", "bn1", "layer1"}
    assert not frozen & set(found) and any(name.startswith("backbone.layer2") for name in found)
    assert not any(m.training for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d))


def test_gradient_checkpointing_changes_nothing():
    settings = config()
    saving = build(
        backbone={**settings["backbone"], "with_cp": True}, encoder={**settings["encoder"], "with_checkpoint": True}
    )
    clip, samples = Clip(tuple(frames_of(2))), labels_of(GRID, [2, 1])
    results = [
        gradients(model, total(model(clip, samples, mode="loss")))
        for model in (norms_in_evaluation(build()), norms_in_evaluation(saving))
    ]
    assert_same(*results)


def test_accumulated_gradients_equal_a_larger_batch():
    # Expected: one step of SGD on the batch of two.
    clip, samples, ends = Clip(tuple(frames_of(1))), labels_of(GRID, [2, 2]), []
    for parts in (1, 2):
        model = norms_in_evaluation(build())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        wrapper = AutocastOptimWrapper(dtype="float32", optimizer=optimizer, accumulative_counts=parts)
        wrapper.initialize_count_status(model, 0, parts)
        for b in range(parts):
            part = (clip, samples) if parts == 1 else (only(clip, b), samples[b : b + 1])
            with wrapper.optim_context(model):
                losses = model(*part, mode="loss")
            wrapper.update_params(total(losses))
        ends.append({name: p.detach() for name, p in model.named_parameters()})
    assert_same(*ends)
    start = dict(build().named_parameters())
    assert any(not torch.equal(start[name], value) for name, value in ends[0].items())


def test_bfloat16_autocast():
    # Expected: the float32 losses, to bfloat16's precision; finite gradients for the same parameters.
    model, clip, samples = norms_in_evaluation(build()), Clip(tuple(frames_of(2))), labels_of(GRID, [2, 3])
    exact = model(clip, samples, mode="loss")
    expected = gradients(model, total(exact))
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(clip, samples, mode="loss")
        results, memory = model(clip, samples, mode="stream_predict")
    for key, value in losses.items():
        torch.testing.assert_close(value.float(), exact[key], rtol=0.05, atol=0.05)
    found = gradients(model, total(losses))
    assert set(found) == set(expected) and all(gradient.isfinite().all() for gradient in found.values())
    assert all(value.isfinite().all() for result in results for value in predicted(result).values())
    assert memory.features.isfinite().all()


def test_geometry_is_exact_under_autocast():
    # Places in metres and pixels need more than bfloat16's 8 bits: at 50 m these are 0.25 m.
    grid, frame = BEVGrid(shape=(32, 32)), frames_of(2)[1]
    rig = rig_of([[0.0, 100.0], [10.0, -70.0]], (256, 704), focal_px=371.3)
    memory = pushed(None, torch.randn(2, 4, *grid.shape), frame.motion, grid)

    def compute() -> list[torch.Tensor]:
        plan = plan_visibility(rig, grid.pillar_points(2).flatten(0, 1))
        older = pushed(memory, memory.features[:, 0], frame.motion, grid, 2).now_from_frame
        return [plan.slots, plan.references, aligned(memory, frame.motion).features, older]

    exact = compute()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = compute()
    for one, other in zip(exact, rounded, strict=True):
        assert torch.equal(one, other)


def test_channels_last_changes_nothing():
    model, clip, samples = build().eval(), Clip(tuple(frames_of(1))), labels_of(GRID, [2, 2])
    expected = [predicted(result) for result in model(clip, samples, mode="predict")]
    frame = clip.frames[0]
    images = frame.images.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (2, CAMERAS))
    results = model.to(memory_format=torch.channels_last)(
        Clip((replace(frame, images=images),)), samples, mode="predict"
    )
    for one, other in zip(expected, results, strict=True):
        assert_same(one, predicted(other))


def test_saved_and_loaded(tmp_path):
    model, clip, samples = build().eval(), Clip(tuple(frames_of(2))), labels_of(GRID, [1, 1])
    torch.save(model.state_dict(), tmp_path / "model.pth")
    other = build(seed=1).eval()
    other.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True))
    with torch.no_grad():
        assert torch.equal(model(clip, samples)[0].features, other(clip, samples)[0].features)


@MODELS.register_module(force=True)
class _Reader(BEVHead):
    """Notes what it finds on the samples when its turn to predict comes."""

    def __init__(self, in_channels, grid, requires=()):
        super().__init__(in_channels, grid)
        self.requires, self.found = tuple(requires), None

    def forward(self, bev):
        return {}

    def loss(self, raw, samples):
        return {}

    def predict(self, raw, samples):
        self.found = ["pred_instances_3d" in sample for sample in samples]
        return [{} for _ in samples]


def reader(*requires: str, in_channels: int = 12) -> dict:
    return dict(type="_Reader", in_channels=in_channels, grid=GRID, requires=requires)


def test_a_head_predicts_after_those_it_requires():
    model = build(heads=dict(first=reader("detection"), detection=config()["heads"]["detection"])).eval()
    model(Clip(tuple(frames_of(1))), labels_of(GRID, [1, 1]), mode="predict")
    assert model.heads["first"].found == [True, True]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(heads=dict(a=reader("b"))), "head 'a' requires head 'b', which is not there; add it to the config, or"),
        (
            dict(heads=dict(a=reader("maps"), map=reader())),
            "head 'a' requires head 'maps', which is not there; did you mean 'map'?",
        ),
        (dict(heads=dict(a=reader("b"), b=reader("a"))), "heads ['a', 'b'] require each other in a circle"),
        (dict(heads=dict(a=reader(in_channels=16))), "is 16, but BEVUNet gives 12 channels; set in_channels=12"),
        (dict(heads=dict(a=reader()), bev_neck=None), "in_channels is 12, but BEVFormerEncoder gives 16 channels; set"),
        (dict(heads=dict(a=config()["neck"])), "head 'a': TopDownNeck is no head; derive it from bevstack"),
        (dict(image_heads=dict(a=config()["neck"])), "image head 'a': TopDownNeck is no head on images; derive"),
        (dict(loss_weights=dict(maps=1.0)), "loss_weights names ['maps']; the heads are ['detection',"),
    ],
    ids=["absent", "misspelt", "circle", "channels-of-neck", "channels-of-encoder", "no-head", "image-head", "prior"],
)
def test_mistakes_are_told_when_the_model_is_built(changes, said):
    with pytest.raises((ValueError, TypeError)) as caught:
        build(**changes)
    assert said in str(caught.value)


def test_an_unknown_mode_is_told():
    with pytest.raises(ValueError, match="unknown mode 'train'"), torch.no_grad():
        build().eval()(Clip(tuple(frames_of(1))), labels_of(GRID, [1, 1]), mode="train")

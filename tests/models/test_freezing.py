"""A head is added to a trained trunk, and training leaves everything else as it was, to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bevstack.structures import Clip
from tests.models.scenes import labels_of
from tests.models.test_perception import GRID, build, config, frames_of, predicted, total

TRUNK = ("backbone", "neck", "encoder", "bev_neck")
SCENE = dict(type="SceneHead", in_channels=12, grid=GRID, image_channels=16, channels=8)
DROPOUT = {"encoder": {**config()["encoder"], "dropout": 0.3}}


def with_scene(**changes):
    return build(heads={**config()["heads"], "scene": SCENE}, **DROPOUT, **changes)


def steps(model: nn.Module, number: int) -> None:
    """So many steps of AdamW with weight decay on other batches each."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    for step in range(number):
        model.train()
        optimizer.zero_grad()
        total(model(Clip(tuple(frames_of(2, seed=step))), labels_of(GRID, [2, 2], seed=step), mode="loss")).backward()
        optimizer.step()


def test_only_what_is_not_frozen_moves():
    model = with_scene(frozen=(*TRUNK, "heads.detection", "heads.map", "heads.vehicle"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    clip, samples = Clip(tuple(frames_of(2))), labels_of(GRID, [2, 2])
    model.eval()
    outputs = [predicted(result) for result in model(clip, samples, mode="predict")]
    steps(model, 3)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) != name.startswith("heads.scene."), name
    model.eval()
    for one, other in zip(outputs, model(clip, samples, mode="predict"), strict=True):
        again = predicted(other)
        assert set(one) == set(again) and all(torch.equal(one[name], again[name]) for name in one)


def test_a_frozen_head_still_teaches_the_trunk():
    model = with_scene(frozen=("heads.detection",)).train()
    losses = model(Clip(tuple(frames_of(1))), labels_of(GRID, [2, 2]), mode="loss")
    sum(value for name, value in losses.items() if name.startswith("detection.loss")).backward()
    assert all(parameter.grad is None for parameter in model.heads["detection"].parameters())
    assert model.bev_neck.stages[0][0].body[1].weight.grad.abs().sum() > 0


def test_modes():
    # Frozen parts stay in evaluation mode through every train(); the rest follows.
    model = with_scene(frozen=("encoder", "heads.map"))
    for mode in (True, False, True):
        model.train(mode)
        assert not any(module.training for name in model.frozen for module in model.get_submodule(name).modules())
        others = (model.backbone, model.neck, model.bev_neck, model.heads["detection"])
        assert all(module.training == mode for module in others)


@pytest.mark.parametrize(
    ("frozen", "said"),
    [
        (("bev_nek",), "frozen: the model has no part 'bev_nek'; did you mean 'bev_neck'?"),
        (("heads.detektion",), "frozen: the model has no part 'heads.detektion'; did you mean 'heads.detection'?"),
        (("temporal",), "frozen: the model has no part 'temporal'; there are alignment, backbone, balancing,"),
    ],
    ids=["part", "head", "nothing-near"],
)  # fmt: skip
def test_mistakes_are_told_when_the_model_is_built(frozen, said):
    with pytest.raises(ValueError) as caught:
        build(frozen=frozen)
    assert said in str(caught.value)


@pytest.mark.parametrize("rule", ["FixedWeights", "UncertaintyWeights", "DynamicWeightAverage", "GradNorm"])
def test_the_whole_model_with_every_rule(rule):
    # Losses times logged weights, by head, against the unweighted model's.
    settings = {"GradNorm": dict(initial_steps=1), "DynamicWeightAverage": dict(window=1)}.get(rule, {})
    clip, samples = Clip(tuple(frames_of(1))), labels_of(GRID, [2, 2])
    model = build(loss_balancing=dict(type=rule, **settings), loss_weights=dict(map=3.0))
    if rule == "GradNorm":
        assert model.shared_weight == "bev_neck.lateral.0.0.weight"
    for _ in range(3):
        model.train()
        total(model(clip, samples, mode="loss")).backward()
    losses = model.eval()(clip, samples, mode="loss")
    reference = build()
    reference.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("balancing.")})
    plain = reference.eval()(clip, samples, mode="loss")
    for key, value in plain.items():
        head = key.partition(".")[0]
        torch.testing.assert_close(losses[key], value * losses[f"weight.{head}"])
    for head in model.heads:
        parts = [value for key, value in plain.items() if key.startswith(f"{head}.loss")]
        torch.testing.assert_close(losses[f"task.{head}"], sum(parts))
    loss, logged = model.parse_losses(losses)
    own = losses.get("balancing.loss_log_variance", torch.zeros(()))
    expected = sum(losses[f"weight.{head}"] * losses[f"task.{head}"] for head in model.heads) + own
    torch.testing.assert_close(loss, expected)
    assert {f"weight.{head}" for head in model.heads} <= set(logged)


def test_gradnorm_needs_a_trunk_that_learns():
    with pytest.raises(ValueError, match="needs a weight that the heads share, but none of bev_neck, temporal_fusion"):
        build(frozen=TRUNK, loss_balancing=dict(type="GradNorm"))

"""From recorded image features to losses and back: B_t, outputs and the gradient of every parameter (case f_head).

Weights go in through the conversion that serves checkpoints. The head alone is judged in test_f_head.
Everything runs in float64, so that only the recording's own rounding is left: up to 1.8e-4 on boxes and 4.5e-4 on large
gradients (tests/golden/README.md), and twice as much would not pass.
"""

import pytest
import torch
from torch import nn

from bevstack.interop.reference_keys import our_names, our_weights
from bevstack.structures import BEVFeatures
from tests.parity.golden import ATOL, RTOL, assert_matches, load_case, recordings
from tests.parity.reference import (
    HEAD,
    encoder_in_float64,
    encoder_of,
    head_of,
    history_of,
    in_float64,
    motion_of,
    rig_of,
)


@pytest.fixture(scope="module", params=recordings("f_head"))
def case(request):
    return in_float64(load_case(request.param))


@pytest.fixture(scope="module")
def model(case):
    config = case.config
    encoder = encoder_of(
        config,
        num_cameras=len(case.info["img_metas"][0]["lidar2img"]),
        motion_embedding={"type": "bevstack.MotionEmbedding", "channels": config["dim"]},
    )
    code_weights = case["weights.code_weights"].tolist()
    head = head_of(config, criterion={"code_weights": code_weights, "unknown_targets": "row"})
    model = nn.ModuleDict({"encoder": encoder, "heads": nn.ModuleDict({"detection": head})})
    model.load_state_dict(our_weights({HEAD + name: tensor for name, tensor in case.group("weights").items()}))
    encoder_in_float64(encoder)
    return model.double().eval()


def _forward(case, model, samples, previous):
    """(Q, B, C) B_t as recorded, and the head's raw outputs; the batch holds the given samples."""
    encoder, head = model["encoder"], model["heads"]["detection"]
    metas = [case.info["img_metas"][sample] for sample in samples]
    levels = [case[f"in.feat{level}"][samples] for level in range(len(case.config["feat_hw"]))]
    tokens, shapes = encoder.image_tokens(levels)
    motion = motion_of(metas, torch.float64)
    query = encoder.initial_queries(motion)
    history = history_of(case["in.prev_bev"][samples] if previous else None, motion, encoder.grid, case.config)
    context = encoder.temporal_context(query, history)
    bev = encoder.run_layers(query, tokens, shapes, encoder.visibility(rig_of(metas, torch.float64)), context)
    features = BEVFeatures(bev.transpose(1, 2).unflatten(2, encoder.grid.shape), encoder.grid)
    return bev.transpose(0, 1), head(features)


def _assert_sample(case, run, bev, raw, ours, theirs):
    one, other = slice(ours, ours + 1), slice(theirs, theirs + 1)
    assert_matches(bev[:, one], case[f"out.{run}.bev_embed"][:, other], f"{run} B_t")
    assert_matches(raw["logits"][:, one], case[f"out.{run}.all_cls_scores"][:, other], f"{run} scores")
    assert_matches(raw["boxes"][:, one], case[f"out.{run}.all_bbox_preds"][:, other], f"{run} boxes")


def test_every_sample_of_a_batch(case, model):
    samples = list(range(len(case.info["img_metas"])))
    with torch.no_grad():
        bev, raw = _forward(case, model, samples, previous=True)
    for sample in samples:
        _assert_sample(case, f"bs1_prev_{sample}", bev, raw, sample, 0)


def test_without_history(case, model):
    with torch.no_grad():
        bev, raw = _forward(case, model, list(range(len(case.info["img_metas"]))), previous=False)
    _assert_sample(case, "bs2_noprev", bev, raw, 0, 0)  # the batch's first sample is right


def test_losses_and_the_gradient_of_every_parameter(case, model):
    model.zero_grad()
    _, raw = _forward(case, model, [0], previous=True)
    losses = model["heads"]["detection"].loss_of_boxes(raw, [case["in.gt_boxes_0"]], [case["in.gt_labels_0"]])
    total = sum(value for name, value in losses.items() if "loss_" in name)
    assert_matches(total, case["out.loss_bs1_0.total"], "total loss")
    total.backward()
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}

    compared = set()
    for published, norm in case.group("out.param_grad_norm").items():
        names = our_names(HEAD + published)
        assert_matches(torch.stack([ours[name].norm() for name in names]).norm(), norm, published)
        compared.update(names)
    assert compared == set(ours)
    gradients = {HEAD + name: tensor for name, tensor in case.group("out.param_grad").items()}
    assert gradients
    for name, recorded in our_weights(gradients).items():
        # relative to the tensor's largest value, as tests/golden/README.md measures it: 4.5e-4 of 60
        difference = (ours[name] - recorded).abs().max()
        assert difference <= ATOL + RTOL * recorded.abs().max(), f"{name}: {difference:.1e}"

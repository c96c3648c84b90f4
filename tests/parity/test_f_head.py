"""The detection head against the recorded reference: outputs, decoding, assignment, losses, gradients.

Every expected value is a recorded tensor of case f_head. B_t is the recorded one, so that the head is judged alone;
the whole way from image features to losses is judged in the tests of the encoder. What is computed:
docs/reference.md 4.6, Queries, Branches, Matching, Losses, Decoding.
"""

import re
from dataclasses import replace

import pytest
import torch

from bevstack.geometry import BEVGrid
from bevstack.interop.reference_keys import our_weights
from bevstack.models.heads.detection3d_query import QueryDetectionHead
from bevstack.structures import BEVDataSample, BEVFeatures
from tests.parity.golden import assert_matches, load_case, recordings

HEAD = "heads.detection."


def head_weights_from_reference(reference):
    """Head and decoder weights under the reference's names to our ``state_dict``, as a checkpoint's are converted."""
    ours = our_weights({f"pts_bbox_head.{name}": tensor for name, tensor in reference.items()})
    return {name.removeprefix(HEAD): tensor for name, tensor in ours.items() if name.startswith(HEAD)}


def code_to_lwh(code):
    """Last dimension of a box code (or of the branch that gives it) from mmdet3d 0.17's convention to 1.x's."""
    code = code[..., [0, 1, 3, 2, 4, 5, 7, 6, 8, 9]].clone()
    code[..., 6:8] *= -1
    return code


def boxes_to_lwh(boxes):
    """Boxes (..., 9) with (w, l, h) and yaw = -rotation - pi / 2 to (l, w, h) and yaw = rotation."""
    boxes = boxes[..., [0, 1, 2, 4, 3, 5, 6, 7, 8]].clone()
    boxes[..., 6] = -boxes[..., 6] - torch.pi / 2
    return boxes


@pytest.fixture(scope="module", params=recordings("f_head"))
def case(request):
    return load_case(request.param)


@pytest.fixture(params=["old_boxes", "new_boxes"])
def convention(request):
    return request.param


def _head(case, convention="old_boxes", score_threshold=None):
    config = case.config
    x0, y0, z0, x1, y1, z1 = config["pc_range"]
    grid = BEVGrid(tuple(config["bev_hw"]), (x0, x1), (y0, y1), (z0, z1))
    arguments = {
        "in_channels": config["dim"],
        "grid": grid,
        "classes": [f"class_{k}" for k in range(config["num_classes"])],
        "num_queries": config["num_query"],
        "decoder": {
            "num_layers": config["dec_layers"],
            "num_heads": config["heads"],
            "num_points": config["dec_points"],
            "feed_forward_channels": config["ffn"],
        },
        "criterion": {"code_weights": case["weights.code_weights"].tolist(), "unknown_targets": "row"},
        "decoding": {"max_num": config["max_num"], "score_threshold": score_threshold},
    }
    head = QueryDetectionHead(**arguments)
    # The recording keeps less than its volume, so that boxes are dropped; a head is not built so.
    head.decoding = replace(head.decoding, post_center_range_m=config["post_center_range"])
    state = head_weights_from_reference(case.group("weights"))
    if convention == "new_boxes":
        for key in list(state):
            if re.fullmatch(r"reg_branches\.\d+\.4\.(weight|bias)", key):
                state[key] = code_to_lwh(state[key].movedim(0, -1)).movedim(-1, 0)
    head.load_state_dict(state)
    return head.eval()


def _bev(case, run):
    embed = case[f"out.{run}.bev_embed"].permute(1, 2, 0)
    config = case.config
    x0, y0, z0, x1, y1, z1 = config["pc_range"]
    grid = BEVGrid(tuple(config["bev_hw"]), (x0, x1), (y0, y1), (z0, z1))
    return BEVFeatures(embed.unflatten(2, grid.shape), grid)


def _recorded_raw(case, run):
    return {
        "logits": case[f"out.{run}.all_cls_scores"].clone().requires_grad_(),
        "boxes": case[f"out.{run}.all_bbox_preds"].clone().requires_grad_(),
    }


def _runs(case):
    return sorted({key.split(".")[1] for key in case.tensors if key.endswith(".all_cls_scores")})


def test_outputs(case, convention):
    head = _head(case, convention)
    assert _runs(case)
    for run in _runs(case):
        raw = head(_bev(case, run))
        expected = case[f"out.{run}.all_bbox_preds"]
        assert_matches(raw["logits"], case[f"out.{run}.all_cls_scores"], run)
        assert_matches(raw["boxes"], code_to_lwh(expected) if convention == "new_boxes" else expected, run)


@pytest.mark.parametrize("computed", [False, True], ids=["recorded_raw", "own_raw"])
def test_decoding_and_bottom_centre(case, computed):
    head = _head(case)
    threshold = _head(case, score_threshold=case.config["score_threshold"])
    recordings = sorted(key for key in case.tensors if re.fullmatch(r"out\.\w+\.decode\d+\.scores", key))
    assert recordings
    for key in recordings:
        run, name = key.split(".")[1:3]
        sample = int(name.removeprefix("decode"))
        decoder, source = (threshold, "bs2_prev") if run == "thr" else (head, run)
        raw = decoder(_bev(case, source)) if computed else _recorded_raw(case, source)
        boxes, scores, labels = decoder.decode(raw["logits"][-1, sample], raw["boxes"][-1, sample])
        assert_matches(labels, case[f"out.{run}.decode{sample}.labels"], key)
        assert_matches(scores, case[f"out.{run}.decode{sample}.scores"], key)
        centres = torch.cat([boxes[:, :2], boxes[:, 2:3] + boxes[:, 5:6] / 2, boxes[:, 3:]], dim=1)
        assert_matches(centres, case[f"out.{run}.decode{sample}.bboxes"], key)
        assert_matches(boxes, case[f"out.{run}.get_bboxes{sample}.boxes"], key)


def test_predict_in_the_current_box_convention(case):
    head = _head(case, "new_boxes")
    results = head.predict(head(_bev(case, "bs2_prev")), [BEVDataSample(), BEVDataSample()])
    for sample, result in enumerate(results):
        instances = result["pred_instances_3d"]
        boxes, expected = (
            instances.bboxes_3d.tensor,
            boxes_to_lwh(case[f"out.bs2_prev.get_bboxes{sample}.boxes"]),
        )
        turns = (boxes[:, 6] - expected[:, 6]) / (2 * torch.pi)
        expected[:, 6] += turns.round() * 2 * torch.pi
        assert_matches(boxes, expected)
        assert_matches(instances.scores_3d, case[f"out.bs2_prev.get_bboxes{sample}.scores"])
        assert_matches(instances.labels_3d, case[f"out.bs2_prev.get_bboxes{sample}.labels"])


# Recorded losses: predictions they were computed from and the samples whose boxes they were held against.
_LOSSES = {
    "loss_bs1_0": ("bs1_prev_0", [0]),
    "loss_bs2": ("bs2_prev", [0, 1]),
    "loss_bs2_zero_gt": ("bs2_prev", [0, 2]),
}


def _targets(case, samples, convention):
    boxes = [case[f"in.gt_boxes_{i}"] for i in samples]
    if convention == "new_boxes":
        boxes = [boxes_to_lwh(box) for box in boxes]
    return boxes, [case[f"in.gt_labels_{i}"] for i in samples]


@pytest.mark.parametrize("name", _LOSSES)
def test_assignment_losses_and_their_gradients(case, name, convention):
    run, samples = _LOSSES[name]
    recorded, head = _recorded_raw(case, run), _head(case)
    raw = dict(recorded)
    if convention == "new_boxes":
        raw["boxes"] = code_to_lwh(raw["boxes"])
    boxes, labels = _targets(case, samples, convention)
    expected = case.group(f"out.{name}")

    matched = head.match(raw, boxes, labels)
    for sample in range(len(samples)):
        for layer in range(len(raw["logits"])):
            assert_matches(matched[sample, layer] + 1, expected[f"assigned_gt_inds.l{layer}.b{sample}"], name)

    losses = head.loss_of_boxes(raw, boxes, labels)
    terms = {key for key in expected if "loss_" in key}
    assert terms == {key for key in losses if "loss_" in key}
    for term in terms:
        assert_matches(losses[term], expected[term].reshape(()), f"{name} {term}")
    total = sum(losses[term] for term in terms)
    assert_matches(total, expected["total"], name)
    total.backward()
    assert_matches(recorded["logits"].grad, expected["grad_all_cls_scores"], name)
    assert_matches(recorded["boxes"].grad, expected["grad_all_bbox_preds"], name)


def test_parameter_gradients(case):
    """Of the head and its decoder; those of the encoder have their own test."""
    head = _head(case)
    raw = head(_bev(case, "bs1_prev_0"))
    losses = head.loss_of_boxes(raw, *_targets(case, [0], "old_boxes"))
    sum(value for key, value in losses.items() if "loss_" in key).backward()
    ours = {name: parameter.grad for name, parameter in head.named_parameters()}

    compared = set()
    for key, expected in case.group("out.param_grad_norm").items():
        parts = head_weights_from_reference({key: case[f"weights.{key}"]})
        if parts:
            assert_matches(torch.stack([ours[name].norm() for name in parts]).norm(), expected, key)
            compared.update(parts)
    assert compared == set(ours)
    for key, gradient in case.group("out.param_grad").items():
        for name, expected in head_weights_from_reference({key: gradient}).items():
            assert_matches(ours[name], expected, key)

"""Names of the published BEVFormer's weights, and where each belongs in :class:`bevstack.models.BEVPerception`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

_LINEAR = r"(weight|bias)"
_ENCODER_PARTS = {
    "attentions.0.sampling_offsets": "temporal.sampling_offsets",
    "attentions.0.attention_weights": "temporal.attention_weights",
    "attentions.0.value_proj": "temporal.value_proj",
    "attentions.0.output_proj": "temporal.output_proj",
    "attentions.1.deformable_attention.sampling_offsets": "spatial.sampling_offsets",
    "attentions.1.deformable_attention.attention_weights": "spatial.attention_weights",
    "attentions.1.deformable_attention.value_proj": "spatial.value_proj",
    "attentions.1.output_proj": "spatial.output_proj",
    "ffns.0.layers.0.0": "feed_forward.0",
    "ffns.0.layers.1": "feed_forward.3",
    "norms.0": "temporal_norm",
    "norms.1": "spatial_norm",
    "norms.2": "feed_forward_norm",
}
_DECODER_PARTS = {
    "attentions.0.attn.out_proj": "self_attention.output_proj",
    "attentions.1.sampling_offsets": "cross_attention.sampling_offsets",
    "attentions.1.attention_weights": "cross_attention.attention_weights",
    "attentions.1.value_proj": "cross_attention.value_proj",
    "attentions.1.output_proj": "cross_attention.output_proj",
    "ffns.0.layers.0.0": "feed_forward.0",
    "ffns.0.layers.1": "feed_forward.3",
    "norms.0": "norms.0",
    "norms.1": "norms.1",
    "norms.2": "norms.2",
}
# Published name -> ours; {head} is the name of the detection head in the model's ``heads``.
_RULES = (
    (r"img_backbone\.(.+)", r"backbone.\1"),
    (r"img_neck\.(.+)", r"neck.\1"),
    (r"pts_bbox_head\.bev_embedding\.weight", r"encoder.queries.weight"),
    (r"pts_bbox_head\.positional_encoding\.row_embed\.weight", r"encoder.position.row_embed.weight"),
    (r"pts_bbox_head\.positional_encoding\.col_embed\.weight", r"encoder.position.column_embed.weight"),
    (r"pts_bbox_head\.transformer\.level_embeds", r"encoder.level_embedding"),
    (r"pts_bbox_head\.transformer\.cams_embeds", r"encoder.camera_embedding"),
    (rf"pts_bbox_head\.transformer\.can_bus_mlp\.([02])\.{_LINEAR}", r"encoder.motion_embedding.mlp.\1.\2"),
    (rf"pts_bbox_head\.transformer\.can_bus_mlp\.norm\.{_LINEAR}", r"encoder.motion_embedding.norm.\1"),
    (rf"pts_bbox_head\.transformer\.reference_points\.{_LINEAR}", r"{head}.reference_points.\1"),
    (rf"pts_bbox_head\.cls_branches\.(\d+\.\d+)\.{_LINEAR}", r"{head}.cls_branches.\1.\2"),
    (rf"pts_bbox_head\.reg_branches\.(\d+\.\d+)\.{_LINEAR}", r"{head}.reg_branches.\1.\2"),
)
# What the file holds and the model keeps as settings: the weights of the box values in the loss.
_SETTINGS = ("pts_bbox_head.code_weights",)
_LAST_OF_REG_BRANCH = re.compile(r"(?:^|.*\.)reg_branches\.\d+\.4\.(weight|bias)")

# Place of each value of a code of mmdet3d 1.x in a code of mmdet3d 0.17, and its sign there (docs/reference.md 4.7).
OLD_PLACES = (0, 1, 3, 2, 4, 5, 7, 6, 8, 9)
OLD_SIGNS = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, -1.0, -1.0, 1.0, 1.0)


def code_from_old_code(code: Tensor) -> Tensor:
    """(..., 10) code with sizes (w, l) and yaw = -rotation - pi / 2 of mmdet3d 0.17 to one of mmdet3d 1.x.

    Also turns weight (transposed) and bias of the layer that gives the code. It is its own inverse.
    """
    return code[..., OLD_PLACES] * code.new_tensor(OLD_SIGNS)


def our_names(published: str, head: str = "detection") -> tuple[str, ...] | None:
    """Names under which one published tensor lives here: two where it is cut in two, none for a setting.

    Returns:
        None where the published model has no such tensor.
    """
    if published in _SETTINGS:
        return ()
    if published == "pts_bbox_head.query_embedding.weight":
        return f"heads.{head}.query_positions.weight", f"heads.{head}.query_contents.weight"
    start = r"pts_bbox_head\.transformer\."
    if match := re.fullmatch(rf"{start}encoder\.(layers\.\d+)\.(.+)\.{_LINEAR}", published):
        part = _ENCODER_PARTS.get(match[2])
        return None if part is None else (f"encoder.{match[1]}.{part}.{match[3]}",)
    if match := re.fullmatch(rf"{start}decoder\.(layers\.\d+)\.attentions\.0\.attn\.in_proj_{_LINEAR}", published):
        stem = f"heads.{head}.{match[1]}.self_attention"
        return f"{stem}.query_key_proj.{match[2]}", f"{stem}.value_proj.{match[2]}"
    if match := re.fullmatch(rf"{start}decoder\.(layers\.\d+)\.(.+)\.{_LINEAR}", published):
        part = _DECODER_PARTS.get(match[2])
        return None if part is None else (f"heads.{head}.{match[1]}.{part}.{match[3]}",)
    for pattern, ours in _RULES:
        if match := re.fullmatch(pattern, published):
            return (match.expand(ours).replace("{head}", f"heads.{head}"),)
    return None


def our_weights(published: Mapping[str, Tensor], head: str = "detection") -> dict[str, Tensor]:
    """Published weights (tensors of any shape) under our names; :func:`unknown_names` are left out."""
    converted: dict[str, Tensor] = {}
    for name, tensor in published.items():
        names = our_names(name, head) or ()
        if len(names) < 2:
            converted.update(dict.fromkeys(names, tensor))
        elif "in_proj" in name:  # queries and keys are projected together here, values alone
            pieces = tensor.split([len(tensor) // 3 * 2, len(tensor) // 3])
            converted.update(zip(names, pieces, strict=True))
        else:  # positions and contents of the object queries
            converted.update(zip(names, tensor.chunk(2, dim=1), strict=True))
    return converted


def unknown_names(published: Iterable[str]) -> list[str]:
    """Names that the published model does not have."""
    return [name for name in published if our_names(name) is None]


def with_current_boxes(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights with the box convention of mmdet3d 0.17 turned into that of 1.x in every last regression layer.

    Only weights (10, C) and biases (10,) of these layers change; the others, of any shape, are passed on. Exact: output
    channels 2 and 3 change places, 6 and 7 change places and sign (docs/reference.md 4.7).
    """
    turned = dict(weights)
    for name, tensor in weights.items():
        if _LAST_OF_REG_BRANCH.fullmatch(name):
            turned[name] = code_from_old_code(tensor.movedim(0, -1)).movedim(-1, 0).contiguous()
    return turned


def is_published(names: Iterable[str]) -> bool:
    """Whether these are names of a published BEVFormer."""
    return any(name.startswith("pts_bbox_head.transformer.encoder.") for name in names)


def whole(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights (of any shape), each with memory of its own, as safetensors asks for."""
    layout = torch.contiguous_format
    return {name: tensor.detach().cpu().clone(memory_format=layout) for name, tensor in weights.items()}

"""Writing a step as an ONNX file of standard operators, or as torch's own ``.pt2``, with a description of itself."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bevstack.errors import InputError
from bevstack.ops.modulated_deform_conv import one_node

OPSET = 20
MOST_AXES = 5
"""What phone and car compilers take."""
METADATA = "bevstack"
"""Name under which a file carries its description: an entry of ONNX's metadata, a file in a ``.pt2``."""


def traced(step: nn.Module, inputs: Sequence[Tensor]) -> torch.export.ExportedProgram:
    """A step as a graph for inputs (1, ...) of these shapes, without what has no counterpart elsewhere (an inverse)."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's own, of its own parts
        return torch.export.export(step, tuple(inputs), strict=False).run_decompositions(
            {torch.ops.aten.linalg_inv.default: inverse_of_affine, torch.ops.aten.hypot.default: _hypotenuse}
        )


def write_onnx(
    program: torch.export.ExportedProgram,
    path: Path,
    names: tuple[Sequence[str], Sequence[str]],
    description: Mapping[str, Any],
) -> dict[str, int]:
    """Write a traced step as one ONNX file.

    Args:
        program: of :func:`traced`.
        path: of the file.
        names: of its inputs and of its outputs. An input that nothing reads is left out.
        description: written into the file's metadata as JSON.

    Returns:
        How often each operator stands in the file.

    Raises:
        InputError: the extra ``export`` is not installed, or the graph has what other runtimes do not take: an operator
            that ONNX does not have, a shape that depends on values, a tensor of more than five axes.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 - torch's exporter writes with it
    except ImportError as error:
        raise InputError(path, "onnx", f"{error.name} is not installed: pip install 'bevstack[export]'") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written = torch.onnx.export(
            program,
            (),
            input_names=list(names[0]),
            output_names=list(names[1]),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
            custom_translation_table={one_node._opoverload: _deform_conv},
        )
    if written is None:  # torch says so of its other exporter, which is not asked
        raise RuntimeError("torch.onnx.export returned no program")
    model = written.model_proto
    graph = model.graph
    read = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    for entry in [entry for entry in graph.input if entry.name not in read]:
        graph.input.remove(entry)
    for node in graph.node:
        del node.metadata_props[:]  # the exporter's notes: where in the source each operator comes from
        node.doc_string = ""
    del graph.value_info[:]
    require_portable(model, path)
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA, json.dumps(description)
    onnx.save(model, str(path))
    return dict(Counter(node.op_type for node in graph.node).most_common())


def _deform_conv(x, offset, mask, weight, bias, stride, padding, dilation, groups, deform_groups):
    """ONNX's deformable convolution of the arguments of :func:`bevstack.ops.modulated_deform_conv.one_node`."""
    from onnxscript import opset20

    return opset20.DeformConv(
        x,
        weight,
        offset,
        bias,
        mask,
        strides=list(stride),
        pads=[*padding, *padding],
        dilations=list(dilation),
        kernel_shape=list(weight.shape[2:]),
        group=groups,
        offset_group=deform_groups,
    )


def require_portable(model: Any, path: Path) -> None:
    """Refuse a graph that asks more of a runtime than it may.

    Args:
        model: an ``onnx.ModelProto``.
        path: for the message.

    Raises:
        InputError: see :func:`write_onnx`.
    """
    import onnx

    own = sorted({f"{node.domain}.{node.op_type}" for node in model.graph.node if node.domain not in ("", "ai.onnx")})
    if own or model.functions:
        raise InputError(path, "operators", f"not of the standard: {', '.join(own) or 'functions'}")
    found = {node.op_type for node in model.graph.node}
    moving = sorted({"NonZero", "Loop", "If", "Scan", "Unique", "Compress"} & found)
    if moving:
        raise InputError(path, "operators", f"{', '.join(moving)}: shapes depend on values")
    inferred = onnx.shape_inference.infer_shapes(model).graph
    for value in [*inferred.value_info, *inferred.input, *inferred.output]:
        shape = value.type.tensor_type.shape.dim
        if len(shape) > MOST_AXES:
            reason = f"has {len(shape)} axes ({'x'.join(str(size.dim_value) for size in shape)}), at most {MOST_AXES}"
            raise InputError(path, value.name, reason)


def write_pt2(
    program: torch.export.ExportedProgram, path: Path, description: Mapping[str, Any], machine_code: bool = False
) -> None:
    """Write a traced step as torch's own archive: ``torch.export.load(path).module()(*inputs)`` runs it.

    Args:
        program: of :func:`traced`.
        path: of the file.
        description: written into it as JSON.
        machine_code: compile it (AOTInductor); ``torch._inductor.aoti_load_package(path)(*inputs)`` runs that.

    Raises:
        InputError: no C++ compiler, or a step that it cannot compile.
    """
    if not machine_code:
        torch.export.save(program, path, extra_files={f"{METADATA}.json": json.dumps(description)})
        return
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        raise InputError(path, "--machine-code", "no C++ compiler (g++, or what CXX names): AOTInductor needs one")
    from torch._inductor import aoti_compile_and_package  # only here: it takes seconds to import

    metadata = {"aot_inductor.metadata": {METADATA: json.dumps(description)}}
    try:
        aoti_compile_and_package(program, package_path=str(path), inductor_configs=metadata)
    except Exception as error:  # noqa: BLE001 - compilers fail in many ways, without a common class
        reason = str(error).strip().partition("\n")[0][:300] or type(error).__name__
        raise InputError(path, "--machine-code", reason) from error


def inverse_of_affine(dst_from_src: Tensor) -> Tensor:
    """Inverse of (..., 4, 4) affine transforms, of sums and products alone: ONNX has no inverse."""
    (a, b, c), (d, e, f), (g, h, i) = (row.unbind(-1) for row in dst_from_src[..., :3, :3].unbind(-2))
    adjugate = [
        e * i - f * h, c * h - b * i, b * f - c * e,
        f * g - d * i, a * i - c * g, c * d - a * f,
        d * h - e * g, b * g - a * h, a * e - b * d,
    ]  # fmt: skip
    determinant = a * adjugate[0] + b * adjugate[3] + c * adjugate[6]
    linear = torch.stack(adjugate, dim=-1).unflatten(-1, (3, 3)) / determinant[..., None, None]
    top = torch.cat([linear, -(linear @ dst_from_src[..., :3, 3:])], dim=-1)
    return torch.cat([top, dst_from_src[..., 3:, :]], dim=-2)


def _hypotenuse(one: Tensor, other: Tensor) -> Tensor:
    return (one * one + other * other).sqrt()

"""The triton backend without a GPU: what its kernels compute, in an interpreter, and that they compile for a GPU."""

import os
import re
import sys
from pathlib import Path

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from bevstack.ops import backends
from bevstack.ops.backends import triton_kernels
from tests.processes import run_captured

FOLDER = Path(__file__).parent
CASES = {"test_deformable_attention.py": 9, "interpreted_triton.py": 12}
"""Files, and how many of their tests, at least, are about this backend."""


@pytest.mark.parametrize("file", CASES)
def test_what_it_computes(file):
    # expected values: those of the tests for all backends (definition, reference, NaN, one node) and of its own
    chosen = "triton or second_derivatives"
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "-k", chosen, str(FOLDER / file)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = run_captured(command, 500, env=environment, cwd=FOLDER.parents[1])
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|skipped|failed)", done.stdout)}
    assert set(counts) == {"passed"} and counts["passed"] >= CASES[file], done.stdout[-1000:]


def compiled(kernel, value: str, capability: int, **constants):
    """A kernel compiled for an NVIDIA GPU, as a call with tensors at multiples of 16 bytes would; no GPU is needed."""
    integers = ("rows", "map_stride", "token_stride", "offset_row", "offset_group", "offset_head")
    integers += ("logit_row", "logit_group", "logit_head")
    sizes = dict(SIZES=(15, 25, 8, 13), TOKENS=479, LEVELS=2, POINTS=8, ANCHORS=4, SLOTS=2, GROUPS=1, HEADS=8)
    sizes |= dict(CHANNELS=32, BLOCK=32, BLOCK_CHANNELS=32, BLOCK_SAMPLES=16)
    if "BLOCK_SLOTS" in kernel.arg_names:
        sizes |= dict(BLOCK_SLOTS=2, BLOCK_ANCHORS=8)
    constants = sizes | constants
    kinds = {"value": f"*{value}", "slots": "*i64", **dict.fromkeys(integers, "i32")}
    signature = {
        name: "constexpr" if name in constants else kinds.get(name, "*fp32") for name in kernel.arg_names
    }
    if constants.get("unit", 0) is not None and "unit" in signature:
        signature["to_value"] = "*i64"
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if name not in constants and name != "rows"
    }
    return compile(ASTSource(kernel, signature, constants, aligned), target=GPUTarget("cuda", capability, 32))


@pytest.mark.parametrize("value", ["fp32", "bf16", "fp16"])
def test_the_forward_pass_compiles_for_a_gpu(value):
    # expected: code for the processor, pixels read 16 bytes a thread at a time
    kernel = compiled(triton_kernels.forward_kernel, value, 90)
    assert len(kernel.asm["cubin"]) > 1000
    assert re.search(r"ld\.global[.\w]*\.v4\.b32", kernel.asm["ptx"])


@pytest.mark.parametrize(("constants", "added"), [
    (dict(unit=None, to_references=None, to_slot_weights=None), r"v4\.f32"),
    (dict(unit=None, GROUPS=2, CHANNELS=24), r"f32"),
    (dict(), r"u64"),
], ids=["as in training", "all gradients, a group a slot", "deterministic"])  # fmt: skip
def test_the_backward_pass_compiles_for_a_gpu(constants, added):
    # expected: code for the processor; sums in memory of floats, four at a time where they fit, or of whole numbers
    kernel = compiled(triton_kernels.backward_kernel, "bf16", 90, **constants)
    assert len(kernel.asm["cubin"]) > 1000
    # triton 3.7 writes atom for what 3.9 writes red; the assembler makes one of the other where nobody reads the result
    assert re.search(rf"(red|atom)\.global[.\w]*add\.[.\w]*{added}", kernel.asm["ptx"])


def test_it_says_why_it_cannot_run(monkeypatch):
    # expected: a reason for doctor and for BEVSTACK_OPS=triton, on a machine without a GPU
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    backends.unavailable.cache_clear()
    assert backends.unavailable("triton") == (None if torch.cuda.is_available() else "no CUDA device")

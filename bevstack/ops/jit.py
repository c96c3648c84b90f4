"""Kernels for the CPU without a compiler at install: numba compiles them at first use, torch's own threads run them.

A kernel is a C function of one pointer, to a table of integers: addresses of tensors, sizes, strides, and a counter
from which the threads draw their work. :func:`run_parallel` calls it on every thread of the OpenMP runtime that torch
has loaded, so that there is one pool of threads, sized by ``torch.set_num_threads``; where torch runs on another
runtime the calling thread does all the work. What a piece of work computes does not depend on who does it: results are
deterministic as long as the pieces do not overlap.

Machine code is kept in numba's cache (beside this file, or in the user's cache folder), keyed by source and processor.
"""

from __future__ import annotations

import ctypes
import re
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

# What may be reordered in sums: everything but infinities and NaN, which must come through as they are.
FLOAT_RULES = {"contract", "reassoc", "nsz", "arcp"}
TABLE_SIZE = 48
# Of this file's text: a kernel that closes over it is compiled anew when what it takes from here has changed.
SOURCE_STAMP = zlib.crc32(Path(__file__).read_bytes()) | 1


def _pointer_to(numba_type: types.Type) -> Callable:
    """An intrinsic ``address -> pointer`` to elements of a numba type."""

    @intrinsic
    def pointer(typing_context, address):  # noqa: ARG001  # numba's signature
        def generate(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(numba_type)(types.int64), generate

    return pointer


float_pointer = _pointer_to(types.float32)
int_pointer = _pointer_to(types.int64)


@intrinsic(prefer_literal=True)
def value_pointer(typing_context, address, half):  # noqa: ARG001
    """The address as a pointer to float32, or to the 16 bits of a bfloat16 where ``half`` (a literal) is 1."""
    element = types.uint16 if half.literal_value else types.float32

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(element)(types.int64, half), generate


@intrinsic
def as_float(typing_context, number):  # noqa: ARG001
    """A float32 as it is, the 16 bits of a bfloat16 as the float32 that they stand for."""

    def same(context, builder, signature, arguments):
        return arguments[0]

    def widened(context, builder, signature, arguments):
        bits = builder.zext(arguments[0], ir.IntType(32))
        return builder.bitcast(builder.shl(bits, ir.Constant(ir.IntType(32), 16)), ir.FloatType())

    return types.float32(number), widened if number == types.uint16 else same


def _stack_of(numba_type: types.Type, element: ir.Type) -> Callable:
    """An intrinsic ``count (a literal) -> pointer`` to so many elements on the stack, aligned to 64 bytes."""

    @intrinsic(prefer_literal=True)
    def on_the_stack(typing_context, count):  # noqa: ARG001
        def generate(context, builder, signature, arguments):
            place = cgutils.alloca_once(builder, element, size=count.literal_value)
            place.align = 64
            return place

        return types.CPointer(numba_type)(count), generate

    return on_the_stack


stack_floats = _stack_of(types.float32, ir.FloatType())  # of a small loop, these become registers
stack_ints = _stack_of(types.int32, ir.IntType(32))


@intrinsic(prefer_literal=True)
def add_scaled(typing_context, target, place, row, factor, count):  # noqa: ARG001
    """``target[place + k] += factor * row[k]`` for k below ``count`` (a literal), as one vector operation.

    A loop would do, but is not made vector code where the row lies in registers.
    """
    vector = ir.VectorType(ir.FloatType(), count.literal_value)

    def generate(context, builder, signature, arguments):
        first, offset, values, scale, _ = arguments
        where = builder.bitcast(builder.gep(first, [offset]), vector.as_pointer())
        scales = ir.Constant(vector, ir.Undefined)
        scales = builder.insert_element(scales, scale, ir.Constant(ir.IntType(32), 0))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
        scales = builder.shuffle_vector(scales, scales, mask)
        added = builder.load(builder.bitcast(values, vector.as_pointer()), align=64)
        before = builder.load(where, align=4)
        flags = ("contract",)
        product = builder.fmul(added, scales, flags=flags)
        builder.store(builder.fadd(before, product, flags=flags), where, align=4)
        return context.get_dummy_value()

    pointer = types.CPointer(types.float32)
    return types.void(pointer, types.int64, pointer, types.float32, count), generate


@intrinsic
def bits_to_float(typing_context, bits):  # noqa: ARG001
    """The float32 that has these 32 bits."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic
def draw_number(typing_context, counter):  # noqa: ARG001
    """The number under a pointer to int64, which then counts one further: no two threads get the same."""

    def generate(context, builder, signature, arguments):
        one = ir.Constant(ir.IntType(64), 1)
        return builder.atomic_rmw("add", arguments[0], one, "monotonic")

    return types.int64(types.CPointer(types.int64)), generate


@numba.njit(inline="always", fastmath=FLOAT_RULES, error_model="numpy")
def fast_exp(x):
    """e to the power of a float32 that is not positive, to 2e-7 of it; loops over it become vector code.

    The argument is split as n ln 2 + r and e^r taken from a polynomial (coefficients of Cephes' ``expf``, S. Moshier).
    """
    x = max(x, np.float32(-87.0))
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    r = x - n * np.float32(0.693359375)
    r = r + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1.0)
    return p * bits_to_float((np.int32(n) + np.int32(127)) << np.int32(23))


def compiled(function: Callable) -> Callable:
    """A kernel ``(pointer to the table) -> None`` as machine code, from the cache where it is there.

    What the function closes over must be plain numbers, by which the cache knows it; :data:`SOURCE_STAMP` is one.
    """
    return kept(partial(numba.cfunc, types.void(types.voidptr), fastmath=FLOAT_RULES, error_model="numpy"), function)


def kept(decorator: Callable, function: Callable) -> Any:
    """What a numba decorator makes of a function: kept on disk where there is a place, else made in each process.

    Args:
        decorator: takes ``cache`` and gives what decorates.
        function: to be compiled.
    """
    try:
        return decorator(cache=True)(function)
    except RuntimeError:  # numba finds no folder that it may write to: "no locator available"
        return decorator(cache=False)(function)


@lru_cache(maxsize=1)
def openmp_call() -> Callable | None:
    """``GOMP_parallel`` of the OpenMP runtime that torch runs on, None where it is of another kind.

    Other packages bring runtimes of their own (scikit-learn's wheel does). Theirs would be a second pool, whose waiting
    threads take the cores from torch's.
    """
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return None
    loaded = set(re.findall(r"(/\S*libgomp[^/\s]*\.so\S*)", maps.read_text()))
    folder = Path(torch.__file__).resolve().parent
    own = [path for path in loaded if Path(path).is_relative_to(folder) or Path(path).parent.name == "torch.libs"]
    if not own and len(loaded) == 1:  # a torch that uses the system's
        own = list(loaded)
    if not own:
        return None
    call = ctypes.CDLL(own[0]).GOMP_parallel
    call.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    call.restype = None
    return call


def run_parallel(kernel, numbers: Sequence[int]) -> None:
    """Call a :func:`compiled` kernel on torch's threads.

    Args:
        kernel: what :func:`compiled` returned.
        numbers: the table, without the counter that the kernel finds before it, at place 0.

    Raises:
        ValueError: more numbers than a table holds.
    """
    if len(numbers) >= TABLE_SIZE:
        raise ValueError(f"a kernel's table holds {TABLE_SIZE - 1} numbers, not {len(numbers)}")
    table = np.zeros(TABLE_SIZE, np.int64)
    table[1 : len(numbers) + 1] = numbers
    call = openmp_call()
    threads = torch.get_num_threads()
    if call is None or threads == 1:
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(kernel.address)(table.ctypes.data)
    else:
        call(kernel.address, table.ctypes.data, threads, 0)

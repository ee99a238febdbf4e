"""Repairs Triton's interpreter for half precision; imported by the tests that run kernels in it, before they do.

The interpreter keeps bfloat16 as its bit pattern in 16-bit integers. Loads, stores and selects are right; casts from
float32 cut instead of rounding to nearest even, and arithmetic and products act on the integers. Here casts round as
the hardware does, products are computed in float32, and all other arithmetic on bfloat16 is refused: kernels convert to
float32 first. float16 is numpy's own and right, but overflow and NaN make numpy warn where a GPU is silent.
"""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import triton
import triton.language as tl
from triton.runtime import interpreter

CHECKED = ("3.5", "3.6", "3.7", "3.8", "3.9")


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The bit patterns (uint16) of float32 ``values`` rounded to the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))) >> 16
    quiet = (bits >> 16) | 0x40
    return np.where(np.isnan(values), quiet, rounded).astype(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def is_bfloat16(handle) -> bool:
    return handle.dtype.scalar == tl.bfloat16 and handle.data.dtype == np.uint16


def repair() -> None:
    """Change the interpreter of this process; once is enough, twice does no harm."""
    version = ".".join(triton.__version__.split(".")[:2])
    if version not in CHECKED:
        raise RuntimeError(
            f"Triton {version}: tests/support/interpreter.py knows the interpreters of {', '.join(CHECKED)}. "
            "See whether this one still needs the repair and fits it, then add it to CHECKED."
        )
    if hasattr(interpreter, "_eidetic_repaired"):
        return
    interpreter._eidetic_repaired = True
    _repair_casts()
    _repair_products()
    _repair_bounds()
    _refuse_arithmetic()
    _silence_numpy()
    _patch_once()


def _repair_casts():
    convert = interpreter._convert_float

    def convert_float(values, source, target, rounding):
        if source == tl.float32 and target == tl.bfloat16:
            return to_bfloat16(values).reshape(values.shape)
        if source == tl.bfloat16 and target == tl.float32:
            return from_bfloat16(values).reshape(values.shape)
        return convert(values, source, target, rounding)

    interpreter._convert_float = convert_float


def _repair_products():
    builder = interpreter.InterpreterBuilder
    dot = builder.create_dot

    def create_dot(self, a, b, *rest):
        a, b = (self.cast_impl(side, tl.float32) if is_bfloat16(side) else side for side in (a, b))
        return dot(self, a, b, *rest)

    builder.create_dot = create_dot


def _repair_bounds():
    """Older interpreters make a loop's bound of an array of one element by ``int``, which numpy 2.4 refuses."""
    patch = interpreter._patch_lang_tensor

    def patch_lang_tensor(tensor, *scope):
        patch(tensor, *scope)
        tensor.__index__ = lambda self: self.handle.data.item()

    interpreter._patch_lang_tensor = patch_lang_tensor


def _refuse_arithmetic():
    def refusing(method):
        def checked(self, *operands):
            if any(isinstance(o, interpreter.TensorHandle) and is_bfloat16(o) for o in operands):
                raise NotImplementedError("arithmetic on bfloat16 in the interpreter; convert to float32 first")
            return method(self, *operands)

        return checked

    builder = interpreter.InterpreterBuilder
    for name in ("binary_op", "unary_op", "create_fma", "create_fabs"):
        setattr(builder, name, refusing(getattr(builder, name)))

    reduce = interpreter.ReduceOps.apply_impl

    def apply_impl(self, input):
        for operand in input if isinstance(input, tuple) else (input,):
            if is_bfloat16(operand.handle):
                raise NotImplementedError("a reduction of bfloat16 in the interpreter; convert to float32 first")
        return reduce(self, input)

    interpreter.ReduceOps.apply_impl = apply_impl


def _silence_numpy():
    run = interpreter.GridExecutor.__call__

    def call(self, *args, **kwargs):
        _patched.clear()
        with np.errstate(all="ignore"):
            return run(self, *args, **kwargs)

    interpreter.GridExecutor.__call__ = call


_patched: set[tuple[bool, ...]] = set()  # the modules that were patched for calls in the launch now running


def _patch_once():
    """The interpreter patches the language again for every call of a function, which takes most of its time; here once
    for each way (``tl`` or ``tl.core``) that functions see it."""

    def call(self, *args, **kwargs):
        sees = tuple(any(value is module for value in self.fn.__globals__.values()) for module in (tl, tl.core))
        if sees not in _patched:
            interpreter._patch_lang(self.fn)
            _patched.add(sees)
        return self.rewrite()(*args, **kwargs)

    interpreter.InterpretedFunction.__call__ = call


@contextmanager
def programs_reversed():
    """The programs of a launch run last to first: on a GPU their order is anybody's guess."""
    builder = interpreter.InterpreterBuilder
    set_index = builder.set_grid_idx

    def set_reversed(self, *index):
        set_index(self, *(size - 1 - i for size, i in zip(self.grid_dim, index)))

    builder.set_grid_idx = set_reversed
    try:
        yield
    finally:
        builder.set_grid_idx = set_index


if triton.knobs.runtime.interpret:
    repair()

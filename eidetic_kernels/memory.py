"""How tensors lie in memory: formats, alignment, and memory for results that lie as something else does."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format


def memory_format(x: Tensor) -> torch.memory_format:
    """channels_last where the images ``x`` lie so, else contiguous."""
    if x.dim() != 4 or x.stride(3) < x.stride(1):  # as torch has it, which takes longer to say so
        return torch.contiguous_format
    return suggest_memory_format(x)


def is_unit_major(x: Tensor) -> bool:
    """Whether the units of ``x`` [N, C] lie one after the other in memory, each with all its samples."""
    return x.dim() == 2 and x.stride(0) == 1 and x.stride(1) == x.shape[0] > 1


def arranged_as(y: Tensor, x: Tensor) -> Tensor:
    """``y`` in memory as ``x`` lies: unit-major, channels_last or contiguous."""
    return y.t().contiguous().t() if is_unit_major(x) else y.contiguous(memory_format=memory_format(x))


def new_as(x: Tensor, units: int) -> Tensor:
    """Memory for ``units`` units in place of those of ``x`` [N, C, *], lying as they do."""
    if is_unit_major(x):
        return x.new_empty(units, x.shape[0]).t()
    shape = x.shape[0], units, *x.shape[2:]
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


def canonical(x: Tensor) -> Tensor:
    """``x`` in memory of its own, aligned to a cache line; ``x`` itself where it is that already.

    A library product's bits depend on where its input lies: of 4,000 random products on a CPU, 17 % changed bits when
    the input was a slice of something wider, and 22 % when it began off a 64-byte line (mostly small batches). Frozen
    segments therefore read a copy wherever it could matter; it costs one pass over the input, the product hundreds.
    The first units of a unit-major input are no slice: nothing is copied for them.
    """
    if is_unit_major(x):
        return x if x.data_ptr() % 64 == 0 else x.t().clone().t()
    layout = torch.contiguous_format
    if x.dim() == 4 and x.stride(1) == 1 and x.shape[1] > 1:
        layout = torch.channels_last
    if x.is_contiguous(memory_format=layout) and x.data_ptr() % 64 == 0:
        return x
    return x.clone(memory_format=layout)


def bytes_of(x: Tensor) -> bytes:
    """The bytes of the numbers of ``x``, in order, however they lie in memory."""
    flat = x.detach().cpu().contiguous().flatten()
    if flat.stride() != (1,):  # a single number counts as contiguous whatever its strides say
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).numpy().tobytes()

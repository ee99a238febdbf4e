"""Whether Triton runs here at all: it needs a C compiler, the driver's library and an assembler when first used."""

# Triton's types take a kernel for the function that was decorated: without a launch's options, its constants constexpr.
# pyright: reportCallIssue=false, reportArgumentType=false, reportAssignmentType=false

from __future__ import annotations

from textwrap import shorten

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import OPTIONS, on_device

SIZE = 32


@triton.jit
def trial_kernel(x, SIZE: tl.constexpr):
    """x[i] = x[i] + i, the least that shows a launch."""
    i = tl.arange(0, SIZE)
    tl.store(x + i, tl.load(x + i) + i)


def launch(x: Tensor) -> None:
    """Run the kernel on ``x`` [SIZE] float32."""
    with on_device(x):
        trial_kernel[(1,)](x, SIZE=SIZE, num_warps=1, **OPTIONS)


def what_fails(device: torch.device) -> str | None:
    """What goes wrong when a kernel is compiled and launched on ``device``; None: nothing. Waits for the device."""
    try:
        x = torch.zeros(SIZE, device=device)
        launch(x)
        if x.tolist() == list(range(SIZE)):
            return None
        return "the kernel ran and did not compute what it should"
    except Exception as error:  # whatever a compiler, a linker or a driver says; torch can run in its place
        return shorten(f"{type(error).__name__}: {error}", 400)

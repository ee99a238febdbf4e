"""What can compute (torch, compiled C++, Triton, CUDA), and which of them runs an op."""

from .dispatch import (
    IMPLEMENTATIONS,
    NAMES,
    PREFERENCE,
    choice,
    choices,
    devices,
    forced,
    implementation,
    using,
    why_missing,
)

__all__ = [
    "IMPLEMENTATIONS",
    "NAMES",
    "PREFERENCE",
    "choice",
    "choices",
    "devices",
    "forced",
    "implementation",
    "using",
    "why_missing",
]

"""Which backends there are, why one is missing, and which of them runs an op.

    torch    plain PyTorch: every op, everywhere
    cpu      compiled C++, for CPU tensors
    triton   Triton, for CUDA tensors; in its interpreter (TRITON_INTERPRET=1, for tests: slow) for CPU tensors
    cuda     compiled CUDA C++, for CUDA tensors

An op asks :func:`implementation` at each call. Left alone, CPU tensors run on ``cpu`` where that is built and CUDA
tensors on the op's preferred backend; whatever a backend does not take runs on torch. ``EIDETIC_BACKEND=name`` (read
once), or :func:`using`, forces one: then ops that it implements run there or raise BackendError, and ops that it does
not implement run on torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from types import ModuleType

from .errors import BackendError

NAMES = ("torch", "cpu", "triton", "cuda")

# By op and backend, the module with the functions <op>_supports, <op>_forward and so on.
IMPLEMENTATIONS = {
    "staircase_linear": {"triton": "triton_kernels.linear"},
    "staircase_linear_norm": {"triton": "triton_kernels.linear"},
    "staircase_conv2d": {"triton": "triton_kernels.conv2d"},
    "staircase_conv2d_norm": {"triton": "triton_kernels.conv2d"},
    "segmented_batch_norm": {"cpu": "cpu", "triton": "triton_kernels.batch_norm", "cuda": "cuda"},
}

# The normalisation after a product takes whatever the product takes; of a convolution only frozen segments have a twin.
_ASKED = {
    "staircase_linear_norm": "staircase_linear",
    "staircase_conv2d": "staircase_conv2d_frozen",
    "staircase_conv2d_norm": "staircase_conv2d_frozen",
}

# What runs unasked, by op and device, the first that takes the inputs. Nothing here was measured on a GPU yet: there
# the normalisation, bound by memory, is left to its one-pass kernels, and products to the library.
PREFERENCE = {
    ("segmented_batch_norm", "cpu"): ("cpu",),
    ("segmented_batch_norm", "cuda"): ("cuda", "triton"),
}


def implementation(op: str, *inputs) -> ModuleType | None:
    """The module that runs ``op`` on ``inputs`` (what its ``<op>_supports`` takes, a tensor first); None: torch.

    Raises BackendError when the backend that is forced implements the op but does not take the inputs, is unknown,
    or is not here.
    """
    device = inputs[0].device.type
    for module in _candidates(op, device, forced()):
        reason = getattr(module, f"{_ASKED.get(op, op)}_supports")(*inputs)
        if reason is None:
            return module
        if forced() is not None:
            raise BackendError(
                f"backend {forced()!r} was asked for, and cannot run {op} on these inputs: {reason.rstrip('.')}. "
                "Give it others, leave the choice open (unset EIDETIC_BACKEND), or take 'torch', which runs everything."
            )
    return None


def forced() -> str | None:
    """The backend that EIDETIC_BACKEND or :func:`using` names; None while the choice is open."""
    if _choice.name is False:
        name = os.environ.get("EIDETIC_BACKEND") or None
        _check(name)
        _choice.name = name
    return _choice.name


@contextmanager
def using(name: str | None) -> Iterator[None]:
    """Force backend ``name`` for a while, for all threads; None leaves the choice open."""
    _check(name)
    before = _choice.name
    _choice.name = name
    try:
        yield
    finally:
        _choice.name = before


@cache
def why_missing(name: str) -> str | None:
    """Why backend ``name`` cannot run here, and what to do; None: it can."""
    if name == "torch":
        return None
    if name == "triton":
        return _why_no_triton()
    from . import extensions

    return extensions.why_missing(f"_{name}")


def devices(name: str) -> tuple[str, ...]:
    """The types of device whose tensors backend ``name`` takes."""
    if name == "triton":
        return ("cuda", "cpu") if _interpreting() else ("cuda",)
    return {"torch": ("cpu", "cuda"), "cpu": ("cpu",), "cuda": ("cuda",)}[name]


def choices(op: str, device: str) -> tuple[str, ...]:
    """The backends that are asked to run ``op`` for tensors on ``device``, in order; torch takes what they do not."""
    name = forced()
    if name is None:
        names = PREFERENCE.get((op, device), ())
        return tuple(name for name in names if why_missing(name) is None)
    return (name,) if name in IMPLEMENTATIONS.get(op, ()) else ()


def choice(device: str) -> str:
    """Everything asked to run ops for tensors on ``device``, in words: part of what bits depend on."""
    names = {name for op in IMPLEMENTATIONS for name in choices(op, device)}
    return " ".join([*(name for name in NAMES if name in names and name != "torch"), "torch"])


@cache
def _candidates(op: str, device: str, only: str | None) -> tuple[ModuleType, ...]:
    names = choices(op, device)
    if only in names and device not in devices(only):
        raise BackendError(
            f"backend {only!r} was asked for, and takes tensors on {' or '.join(devices(only))}; {op} was given "
            f"one on {device}. Move the network and its input, or leave the choice open (unset EIDETIC_BACKEND)."
        )
    return tuple(import_module(f"{__package__}.{IMPLEMENTATIONS[op][name]}") for name in names)


class _Choice:
    """The backend that is forced; False until the environment has been read."""

    name: str | bool | None = False


_choice = _Choice()


def _check(name: str | None) -> None:
    if name is None:
        return
    if name not in NAMES:
        raise BackendError(f"backend {name!r} is unknown (EIDETIC_BACKEND); there are: {', '.join(NAMES)}.")
    reason = why_missing(name)
    if reason is not None:
        raise BackendError(f"backend {name!r} was asked for and is not here: {reason}")


def _why_no_triton() -> str | None:
    import torch

    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"Triton cannot be imported ({error}); it is an extra: pip install 'eidetic-kernels[triton]' (Linux)."
    if torch.cuda.is_available() or _interpreting():
        return None
    return "there is no GPU. TRITON_INTERPRET=1 runs its kernels on the CPU, slowly, for tests."


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")

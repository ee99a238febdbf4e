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
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from types import ModuleType

from ..errors import BackendError

NAMES = ("torch", "cpu", "triton", "cuda")

# By op and backend, the module with the functions <op>_supports, <op>_forward and so on.
IMPLEMENTATIONS = {
    "staircase_linear": {"triton": "triton.linear"},
    "staircase_linear_norm": {"triton": "triton.linear"},
    "staircase_conv2d": {"triton": "triton.conv2d"},
    "staircase_conv2d_norm": {"triton": "triton.conv2d"},
    "segmented_batch_norm": {"cpu": "cpu", "triton": "triton.batch_norm", "cuda": "cuda"},
}

# The normalisation after a product takes whatever the product takes. Of a convolution only the frozen segments have an
# implementation.
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
    only = forced()
    for module, supports in _candidates(op, device, only):
        reason = supports(*inputs)
        if reason is None:
            return module
        if only is not None:
            raise BackendError(
                f"backend {only!r} was asked for, and cannot run {op} on these inputs: {reason.rstrip('.')}. "
                "Give it others, leave the choice open (unset EIDETIC_BACKEND), or take 'torch', which runs everything."
            )
    return None


def forced() -> str | None:
    """The backend that EIDETIC_BACKEND or :func:`using` names; None while the choice is open."""
    if not _choice.read:
        name = os.environ.get("EIDETIC_BACKEND") or None
        _check(name)
        _choice.name, _choice.read = name, True
    return _choice.name


@contextmanager
def using(name: str | None) -> Iterator[None]:
    """Force backend ``name`` for a while, for all threads; None leaves the choice open."""
    _check(name)
    before = _choice.name, _choice.read
    _choice.name, _choice.read = name, True
    try:
        yield
    finally:
        _choice.name, _choice.read = before


@cache
def why_missing(name: str) -> str | None:
    """Why backend ``name`` cannot run here, and what to do; None: it can."""
    if name == "torch":
        return None
    if name == "triton":
        return _triton()[0]
    from . import extensions

    return extensions.why_missing(f"_{name}")


def devices(name: str) -> tuple[str, ...]:
    """The types of device whose tensors backend ``name`` takes."""
    if name == "triton":
        return ("cpu",) if _interpreting() else ("cuda",)
    return {"torch": ("cpu", "cuda"), "cpu": ("cpu",), "cuda": ("cuda",)}[name]


def choices(op: str, device: str) -> tuple[str, ...]:
    """The backends that are asked to run ``op`` for tensors on ``device``, in order; torch takes what they do not."""
    name = forced()
    if name is None:
        names = [name for name in PREFERENCE.get((op, device), ()) if device in devices(name)]
        here = tuple(name for name in names if why_missing(name) is None)
        if not here and "triton" in names:
            _say_if_triton_failed()
        return here
    return (name,) if name in IMPLEMENTATIONS.get(op, ()) else ()


def choice(device: str) -> str:
    """The backends that may run ops for tensors on ``device``, in words. Bits depend on them, so records name them."""
    names = {name for op in IMPLEMENTATIONS for name in choices(op, device)}
    return " ".join([*(name for name in NAMES if name in names and name != "torch"), "torch"])


@cache
def _candidates(op: str, device: str, only: str | None) -> tuple[tuple[ModuleType, Callable[..., str | None]], ...]:
    """The modules that may run ``op``, in order, each with the function that says why it does not take its inputs."""
    names = choices(op, device)
    if only in names and device not in devices(only):
        raise BackendError(
            f"backend {only!r} was asked for, and takes tensors on {' or '.join(devices(only))}; {op} was given "
            f"one on {device}. Move the network and its input, or leave the choice open (unset EIDETIC_BACKEND)."
        )
    modules = [import_module(f"{__package__}.{IMPLEMENTATIONS[op][name]}") for name in names]
    return tuple((module, getattr(module, f"{_ASKED.get(op, op)}_supports")) for module in modules)


class _Choice:
    """The backend that is forced, once the environment was read."""

    name: str | None = None
    read = False


_choice = _Choice()


def _check(name: str | None) -> None:
    if name is None:
        return
    if name not in NAMES:
        raise BackendError(f"backend {name!r} is unknown (EIDETIC_BACKEND); there are: {', '.join(NAMES)}.")
    reason = why_missing(name)
    if reason is not None:
        raise BackendError(f"backend {name!r} was asked for and is not here: {reason}")


@cache
def _triton() -> tuple[str | None, bool]:
    """(why Triton cannot run here, None: it can; whether it was tried on a GPU to know that)."""
    import torch

    try:
        import triton  # noqa: F401
    except ImportError as error:
        reason = f"Triton cannot be imported ({error}); it is an extra: pip install 'eidetic-kernels[triton]' (Linux)."
        return reason, False
    if _interpreting():
        return None, False
    if not torch.cuda.is_available():
        return "there is no GPU. TRITON_INTERPRET=1 runs its kernels on the CPU, slowly, for tests.", False
    from .triton.launch import too_old
    from .triton.trial import what_fails

    gpus = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    reasons = [too_old(gpu) for gpu in gpus]
    if all(reasons):
        return reasons[0], False
    gpu = gpus[reasons.index(None)]
    if (failure := what_fails(gpu)) is None:
        return None, True
    return (
        f"it is installed and cannot compile and launch a kernel on {torch.cuda.get_device_name(gpu)} ({failure}); it "
        "needs a C compiler (gcc, or what CC names), this Python's headers and the driver's libcuda.so.1."
    ), True


@cache
def _say_if_triton_failed() -> None:
    """Warn once: users assume that an installed Triton is in use."""
    reason, tried = _triton()
    if reason is not None and tried:
        warnings.warn(f"Triton cannot be used, torch runs in its place: {reason}", RuntimeWarning, stacklevel=2)


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")

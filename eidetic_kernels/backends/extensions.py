"""Loads the compiled modules ``_cpu`` and ``_cuda``, or says why one cannot be used and what to do about it."""

from __future__ import annotations

import warnings
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch  # before our modules: its OpenMP runtime is then theirs too, one pool of threads for both

from .gpu_code import version, why_not_on

PACKAGE = __name__.removesuffix(".backends.extensions")  # setup.py puts the compiled modules into it

_BUILD = {
    "_cpu": "build it with a C++ compiler (g++) and this Python's headers at hand: pip install -v -e . in a checkout.",
    "_cuda": "install a wheel whose version names CUDA, such as 0.1.0+cu130, or build it where there is nvcc: "
    "EIDETIC_FORCE_CUDA=1 pip install -v -e . in a checkout.",
}


def load(name: str) -> ModuleType | None:
    """The compiled module ``name``, "_cpu" or "_cuda", if it can be used on this machine, else None.

    A module that is there and fails to load is warned of once.
    """
    return _loaded(name)[0]


def why_missing(name: str) -> str | None:
    """Why :func:`load` gives no module ``name`` here, and what to do; None: it gives one."""
    return _loaded(name)[1]


@cache
def why_no_code(device: int) -> str | None:
    """Why the CUDA module, where there is one, cannot run on GPU ``device``, and what to do; None: it can."""
    module = load("_cuda")
    return None if module is None else why_not_on(device, module)


@cache
def _loaded(name: str) -> tuple[ModuleType | None, str | None]:
    full = f"{PACKAGE}.{name}"
    try:
        module = import_module(full)
    except ModuleNotFoundError as error:
        if error.name != full:
            return None, _broken(full, error)
        return None, _not_built(name)
    except Exception as error:  # whatever a damaged or foreign file raises, torch can run in its place
        return None, _broken(full, error)
    reason = _unusable(module) if name == "_cuda" else None
    return (module, None) if reason is None else (None, reason)


def _not_built(name: str) -> str:
    others = sorted(path.name for path in Path(__file__).parents[1].glob(f"{name}.*.so"))
    found = f" for this Python (there is {', '.join(others)}, for another)" if others else ""
    return f"it is not built{found}; {_BUILD[name]}"


def _broken(full: str, error: Exception) -> str:
    name = full.rpartition(".")[2]
    reason = f"it is there and fails to load ({type(error).__name__}: {error}); {_BUILD[name]}"
    warnings.warn(f"{full} cannot be used, torch runs in its place: {reason}", RuntimeWarning, stacklevel=4)
    return reason


def _unusable(cuda: ModuleType) -> str | None:
    """Why the CUDA module, which loads anywhere, cannot run on this machine; None: it can."""
    built, driver = cuda.built_for(), cuda.driver_supports()
    here = f"it is built for CUDA {version(built)}"
    if driver == 0:
        return f"{here}, and there is no NVIDIA driver; install one, or use the CPU."
    if driver // 1000 < built // 1000:
        return (
            f"{here}, and this machine's driver supports CUDA {version(driver)} at most; "
            f"update the driver, or install a build for CUDA {driver // 1000}."
        )

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA and knows no GPU; install a build of it for CUDA."
    if int(torch.version.cuda.split(".")[0]) != built // 1000:
        return (
            f"{here}, and torch {torch.__version__} runs CUDA {torch.version.cuda}; "
            f"install builds of both for the same CUDA (CUDA_HOME names the toolkit to build with)."
        )

    count, error = cuda.device_count()
    if not count:
        return f"it finds no GPU: {error}"
    reasons = [why_not_on(device, cuda) for device in range(torch.cuda.device_count())]
    return reasons[0] if reasons and all(reasons) else None

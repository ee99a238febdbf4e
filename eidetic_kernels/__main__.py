"""``python -m eidetic_kernels``: the backends on this machine, why others are missing, and a check of each.

Exit status 1 when a backend computes something wrong, or when EIDETIC_BACKEND names one that is not here.
"""

from __future__ import annotations

import platform
import sys

import torch

from . import backends
from .backends import extensions, gpu_code
from .errors import BackendError
from .ops import self_check
from .version import __version__


def main() -> int:
    """Print all of it; the exit status."""
    print(f"eidetic_kernels {__version__}, torch {torch.__version__}, Python {platform.python_version()}")
    print(f"devices: {', '.join(_devices())}\n")

    for name in backends.NAMES:
        reason = backends.why_missing(name)
        print(f"{name:8}" + (f"available  {_about(name)}" if reason is None else f"missing    {reason}"))
    try:
        _print_choices()
    except BackendError as error:  # EIDETIC_BACKEND names one that is not here
        print(f"\n{error}")
        return 1

    print("\nchecked against the definition, largest error relative to the largest value:")
    right = True
    for name in backends.NAMES:
        if backends.why_missing(name) is None:
            for outcome in self_check.check(name):
                right &= outcome.ok
                print(_line(outcome))
    print("\nall right." if right else "\nNOT right: see FAILED above; EIDETIC_BACKEND=torch does without the others.")
    return 0 if right else 1


def _print_choices() -> None:
    kinds = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for kind in kinds:
        print(f"\n{kind} tensors, in order of trial:")
        for op in self_check.OPS:
            print(f"  {op:24}{', '.join((*backends.choices(op, kind), 'torch'))}")


def _line(outcome: self_check.Outcome) -> str:
    dtype = str(outcome.dtype).removeprefix("torch.")
    where = f"  {outcome.backend:8}{outcome.op:24}{outcome.device:6}{dtype:10}"
    return where + (f"{outcome.error:.1e}" if outcome.ok else f"FAILED: {outcome.problem}")


def _devices() -> list[str]:
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return [f"{platform.machine()} ({torch.backends.cpu.get_cpu_capability()})", *gpus]


def _about(name: str) -> str:
    if name == "torch":
        return torch.__version__
    if name == "triton":
        import triton

        interpreted = "" if torch.cuda.is_available() else ", in its interpreter (slow, for tests)"
        return triton.__version__ + interpreted
    if name == "cuda" and (module := extensions.load("_cuda")) is not None:
        none = [extensions.why_no_code(device) for device in range(torch.cuda.device_count())]
        return "".join([gpu_code.in_words(module), *(f"\n{'':19}but {reason}" for reason in none if reason)])
    return "compiled with this package"


if __name__ == "__main__":
    sys.exit(main())

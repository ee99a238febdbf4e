"""Which GPUs the code in the compiled CUDA module runs on.

Machine code (sm_86) runs on its own generation: the same major number, the same minor one or a later. The driver
compiles PTX (compute_86) for any GPU as new or newer, if it knows the CUDA version that made the PTX.
"""

from __future__ import annotations

from types import ModuleType

import torch


def why_not_on(device: int, cuda: ModuleType) -> str | None:
    """Why the module ``cuda`` has no code for GPU ``device``, and what to do; None: it has."""
    capability = torch.cuda.get_device_capability(device)
    sm, ptx = _capabilities(cuda)
    if any(major == capability[0] and minor <= capability[1] for major, minor in sm):
        return None
    number = "{}{}".format(*capability)
    here = f"it holds {in_words(cuda)}, and {torch.cuda.get_device_name(device)} is sm_{number}"
    build = f"EIDETIC_CUDA_ARCHS={number} pip install -v -e . in a checkout"
    if not any(known <= capability for known in ptx):
        return f"{here}; build it for that: {build}."
    built, driver = cuda.built_for(), cuda.driver_supports()
    if driver < built:
        return (
            f"{here}, for which the driver would have to compile the PTX, of CUDA {version(built)}; it knows CUDA "
            f"{version(driver)} at most. Update the driver, or build for this GPU: {build}."
        )
    return None


def in_words(cuda: ModuleType) -> str:
    """ "machine code for sm_80, sm_90 and PTX for sm_90 and newer"."""
    sm, ptx = (", ".join("sm_{}{}".format(*capability) for capability in some) for some in _capabilities(cuda))
    return f"machine code for {sm} and PTX for {ptx} and newer"


def version(number: int) -> str:
    """ "13.0" for 13000, as CUDA counts."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _capabilities(cuda: ModuleType) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The capabilities that the machine code is for, and those of the PTX: (8, 0) for sm_80."""
    found: dict[str, list[tuple[int, int]]] = {"sm": [], "compute": []}
    for name in cuda.code().split(":"):
        kind, digits = name.split("_")
        found[kind].append((int(digits[:-1]), int(digits[-1])))
    return found["sm"], found["compute"]

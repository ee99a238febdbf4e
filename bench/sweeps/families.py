"""The families of models that are at hand; each is a file with the same four names.

``PACKAGE`` is the name of the package that they are from, None for our own; ``names()`` are all models, the smallest
first where that is known; ``sample()`` the few that continuous integration takes; ``build(name)`` makes the
:class:`.Subject`.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from conversions import load_torchvision

from . import huggingface, segmentation, timm_models, topologies_family, torchvision_models

FAMILIES: dict[str, ModuleType] = {
    "topologies": topologies_family,
    "huggingface": huggingface,
    "smp": segmentation,
    "torchvision": torchvision_models,
    "timm": timm_models,
}

load_torchvision()  # before a package that needs it


def source(family: str) -> str | None:
    """The package that a family is from, and its version; None where it is not installed."""
    package = FAMILIES[family].PACKAGE
    if package is None:
        return family
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return None


def chosen(family: str) -> list[str]:
    """The families that ``family`` names, ``all`` or one."""
    return list(FAMILIES) if family == "all" else [family]

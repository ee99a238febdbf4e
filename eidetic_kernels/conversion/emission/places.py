"""Where modules and units lie: paths in a module, dimensions of a map."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from ..graphs.nodes import concrete
from ..owners.maps import Owners


def narrowed(x: Owners, dim: int, pick: int) -> Owners:
    """``x`` at one place of a dimension, which stays with size 1."""
    shape = (*x.shape[:dim], 1, *x.shape[dim + 1 :])
    units, samples = (each.narrow(dim, pick if each.shape[dim] > 1 else 0, 1) for each in (x.units, x.samples))
    return Owners(shape, units, samples, x.coarse)


def concrete_of(value: Any) -> Any:
    """An argument in the example: sizes as they were."""
    if isinstance(value, fx.Node):
        return concrete(value.meta["val"])
    if isinstance(value, (list, tuple)):
        return [concrete_of(each) for each in value]
    if isinstance(value, dict):
        return {name: concrete_of(each) for name, each in value.items()}
    return value


def one_dim(units: Tensor, dim: int) -> Tensor:
    for d in range(units.dim()):
        if d != dim:
            units = units.narrow(d, 0, 1)
    return units.flatten()


def set_module(module: nn.Module, path: str, layer: nn.Module) -> None:
    owner, _, name = path.rpartition(".")
    module.get_submodule(owner).add_module(name, layer)


def at_path(module: nn.Module, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name)
    return module


def has(module: nn.Module, path: str) -> bool:
    try:
        for name in path.split("."):
            module = getattr(module, name)
        return True
    except AttributeError:
        return False

"""Modules and parameters of no task: plain layers inside a network wired by hand, and what users add to our layers.

Their units have no owner, so training them for one task would change the answers of all others. They are frozen when
the network is wired: no optimizer sees their parameters, they stay in evaluation mode, and certificates fingerprint
them. A frozen backbone in front of eidetic layers is such a module. So is a plain module inside a layer of ours, and a
parameter that a subclass of a layer adds; the layer itself learns on.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from ..checking import shown
from ..errors import ConversionError, InputError
from ..layers import SegmentedLayer
from ..modes import FROZEN_MARK, is_frozen


def frozen(module: nn.Module) -> nn.Module:
    """Freeze ``module`` for good, and return it: a pre-trained backbone in front of layers that learn.

    Its parameters need no gradient any more, and inside a network it stays in evaluation mode for ever, statistics and
    dropout included. Its numbers belong to no task, so layers that follow read them like the network's input. Wiring
    says nothing about it, :func:`.convert` keeps it as it is, and certificates fingerprint it.

    Raises InputError for what is no plain module: layers of this package are frozen by ``net.finish_task``.
    """
    given = cast(object, module)
    if not isinstance(given, nn.Module) or any(isinstance(each, SegmentedLayer) for each in module.modules()):
        raise InputError(
            f"frozen takes a plain torch.nn.Module; got {shown(module)}. Layers of this package are frozen when a task "
            "is finished (net.finish_task)."
        )
    module.requires_grad_(False)
    module.eval()
    setattr(module, FROZEN_MARK, True)
    return module


def frozen_inside(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """(path, module) of what below ``module`` was frozen for good, what lies inside of these included."""
    found: list[tuple[str, nn.Module]] = []
    for path, each in cast("Iterator[tuple[str, nn.Module]]", module.named_modules()):
        if is_frozen(each):
            inside = cast("Iterator[tuple[str, nn.Module]]", each.named_modules())
            found += [(f"{path}.{name}".strip("."), inner) for name, inner in inside]
    return found


@dataclass(frozen=True)
class Foreign:
    """What of a network belongs to no task.

    Args:
        modules: the largest modules that hold parameters or statistics, and no layer whose units have owners.
        added: (module, name) of parameters that modules with such layers inside hold themselves.
    """

    modules: tuple[nn.Module, ...] = ()
    added: tuple[tuple[nn.Module, str], ...] = ()

    def parameters(self) -> Iterator[nn.Parameter]:
        for module in self.modules:
            yield from module.parameters()
        for module, name in self.added:
            parameter = module._parameters.get(name)  # pyright: ignore[reportPrivateUsage]
            if parameter is not None:
                yield parameter

    def eval(self) -> None:
        """Put the modules in evaluation mode. A layer of ours that holds a parameter of no task trains on."""
        for module in self.modules:
            module.eval()


def freeze_foreign(network: nn.Module, skipped: frozenset[str]) -> Foreign:
    """Freeze what of ``network`` belongs to no task, its own parameters included, and return it.

    ``skipped`` names children that are the network's own. Warns of what would have been trained. Raises ConversionError
    for parameters that have no size yet, and for layers whose weight something else computes.
    """
    _check(network, skipped)
    modules = dict(_foreign_modules(network, "", skipped))
    inside = {each for module in modules.values() for each in module.modules()}
    added = [
        (path, module, name)
        for path, module in _named_modules(network, skipped)
        if module not in inside
        for name, tensor in _foreign_tensors(module)
        if isinstance(tensor, nn.Parameter)
    ]

    found = [(path, p) for path, module in modules.items() for p in module.parameters()]
    found += [(f"{path}.{name}".lstrip("."), module.get_parameter(name)) for path, module, name in added]
    trainable = [(path, parameter) for path, parameter in found if parameter.requires_grad]
    for _, parameter in trainable:
        parameter.requires_grad_(False)
    foreign = Foreign(tuple(modules.values()), tuple((module, name) for _, module, name in added))
    foreign.eval()
    if trainable:
        paths = ", ".join(repr(path) for path in dict.fromkeys(path for path, _ in trainable))
        warnings.warn(
            f"{paths}: {sum(p.numel() for _, p in trainable)} parameters belong to no task and are frozen from now on, "
            "since training them would change finished tasks. Use this package's layers for what is to learn; for a "
            "frozen backbone say so, ek.frozen(module), and this warning does not come.",
            stacklevel=2,
        )
    return foreign


def shared_tensors(network: nn.Module, skipped: frozenset[str]) -> Iterator[tuple[str, list[Tensor]]]:
    """(path, tensors) of every module below ``network`` whose parameters and buffers belong to no task."""
    for path, module in _named_modules(network, skipped):
        tensors = [tensor for _, tensor in _foreign_tensors(module)]
        if tensors and path:
            yield path, tensors


def refuse_lazy(module: nn.Module) -> None:
    """Raise ConversionError for modules at or below ``module`` whose parameters or buffers have no size yet."""
    for path, each in cast("Iterator[tuple[str, nn.Module]]", module.named_modules()):
        if any(is_lazy(tensor) for _, tensor in _held(each)):
            raise ConversionError(
                f"{path!r} is a {type(each).__name__}, whose parameters have no size yet. Run it once on an example "
                "first, or build it with its sizes (nn.Linear for nn.LazyLinear)."
            )


def _named_modules(network: nn.Module, skipped: frozenset[str]) -> Iterator[tuple[str, nn.Module]]:
    for path, module in cast("Iterator[tuple[str, nn.Module]]", network.named_modules()):
        if path.split(".")[0] not in skipped:
            yield path, module


def _foreign_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of parameters and buffers that ``module`` itself holds, and that are not those of units."""
    own = {*module.live_names, *module.frozen_names} if isinstance(module, SegmentedLayer) else set[str]()
    for name, tensor in _held(module):
        if name not in own:
            yield name, tensor


def _held(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of what ``module`` itself holds: a network's own named_parameters hides some."""
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):  # pyright: ignore[reportPrivateUsage]
        if tensor is not None:
            yield name, tensor


def _foreign_modules(module: nn.Module, path: str, skipped: frozenset[str]) -> Iterator[tuple[str, nn.Module]]:
    """The largest modules below ``module`` that hold parameters or statistics, and no layer whose units have owners."""
    for name, child in module.named_children():
        if not path and name in skipped:
            continue
        here = f"{path}.{name}".lstrip(".")
        if any(isinstance(each, SegmentedLayer) for each in child.modules()):
            yield from _foreign_modules(child, here, skipped)
        elif any(True for _ in itertools.chain(child.parameters(), child.buffers())):
            yield here, child


def _check(network: nn.Module, skipped: frozenset[str]) -> None:
    """Raise ConversionError where a module's parameters cannot be known, or be cut and frozen."""
    refuse_lazy(network)
    for path, module in _named_modules(network, skipped):
        if isinstance(module, SegmentedLayer) and _computed(module):
            raise ConversionError(
                f"{path!r} is a {type(module).__name__} whose weight is computed from other tensors (weight_norm, "
                "spectral_norm, torch.nn.utils.prune or another parametrization), which cannot be cut and frozen with "
                "its units. Remove that (torch.nn.utils.parametrize.remove_parametrizations), and use net.prune."
            )


def _computed(layer: SegmentedLayer) -> bool:
    """Whether something else than a parameter or buffer stands where ``layer`` has its tensors."""
    return is_parametrized(layer) or any(isinstance(vars(layer).get(name), Tensor) for name in layer.live_names)

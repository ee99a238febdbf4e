"""The plain torch network that methods without segments train, and benchmarks time: an eidetic network's twin."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eidetic_kernels import EideticNetwork
from eidetic_kernels.errors import InputError
from eidetic_kernels.layers import (
    EideticBatchNorm1d,
    EideticBatchNorm2d,
    EideticConv2d,
    EideticDropout,
    EideticLinear,
)


class PlainNetwork(nn.Module):
    """The body of ``net`` in torch's own layers with the same weights, and a linear head for each task.

    ``net`` must be fresh, and is used up: its modules become the twin's. Its ``forward`` is run over the plain layers,
    so both compute the same. ``tied`` says whether an addition ties several layers' units together.

    Raises InputError for a layer that has no plain twin here.
    """

    def __init__(self, net: EideticNetwork):
        super().__init__()
        self.columns = sum(source.columns(None) for source in net.wiring.features)
        self.tied = any(len(group.producers) > 1 for group in net.groups)
        with next(net.parameters()).device:
            self.body = _Body(net)
        self.task_heads = nn.ModuleList()

    def add_head(self, num_classes: int) -> nn.Linear:
        device = next(self.parameters()).device
        self.task_heads.append(nn.Linear(self.columns, num_classes, device=device))
        return self.task_heads[-1]

    def features(self, x: Tensor) -> Tensor:
        """[N, columns]"""
        return self.body(x)

    def forward(self, x: Tensor, task: int = -1) -> Tensor:
        """Logits of ``task``; of the latest, when it is left out."""
        return self.task_heads[task](self.features(x))

    def body_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Everything but the heads, by name: what tasks share."""
        return [(f"body.{name}", p) for name, p in self.body.named_parameters()]


class _Body(nn.Module):
    """What a network's author wrote of it: its layers, its own attributes and its ``forward``."""

    def __init__(self, net: EideticNetwork):
        super().__init__()
        own = vars(net).keys() - vars(EideticNetwork()).keys()
        self.__dict__.update({name: vars(net)[name] for name in own})
        for name, child in list(net.named_children()):
            if name != "heads":
                setattr(self, name, plain(child))
        self._forward = type(net).forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


def plain(module: nn.Module) -> nn.Module:
    """``module`` with this package's layers replaced by torch's; fresh layers only, their weights are taken over.

    A layer that owns its norm becomes torch's layer with torch's norm as its child ``norm``.
    """
    if isinstance(module, EideticLinear):
        twin = _layer(nn.Linear, module, module.in_features, module.out_features, module.bias is not None)
    elif isinstance(module, EideticConv2d):
        twin = _layer(
            nn.Conv2d,
            module,
            module.in_channels,
            module.out_channels,
            module.kernel_size,
            module.stride,
            module.padding,
            module.dilation,
            bias=module.bias is not None,
            padding_mode=module.padding_mode,
        )
    elif isinstance(module, (EideticBatchNorm1d, EideticBatchNorm2d)):
        kind = _BatchNorm1d if isinstance(module, EideticBatchNorm1d) else _BatchNorm2d
        twin = kind(module.num_features, module.eps, module.momentum, module.affine)
        twin.activation = module.activation
    elif isinstance(module, EideticDropout):
        return (nn.Dropout2d if module.channels else nn.Dropout)(module.p)
    elif type(module).__module__.startswith("eidetic_kernels."):
        raise InputError(f"{type(module).__name__} has no plain twin here: compare on a network without it.")
    else:
        for name, child in list(module.named_children()):
            setattr(module, name, plain(child))
        return module
    twin.load_state_dict(module.state_dict())
    return twin.train(module.training)


def _layer(kind: type[nn.Module], module: nn.Module, *args, **kwargs) -> nn.Module:
    if module.norm is None:
        return kind(*args, **kwargs)
    twin = {nn.Linear: _NormedLinear, nn.Conv2d: _NormedConv2d}[kind](*args, **kwargs)
    twin.norm = plain(module.norm)
    return twin


class _Normed:
    """Torch's product, then its norm, which may be given a residual."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.norm(super().forward(x), residual)


class _NormedLinear(_Normed, nn.Linear):
    pass


class _NormedConv2d(_Normed, nn.Conv2d):
    pass


# In place, as torchvision's networks have them.
_ACTIVATIONS = {
    "none": lambda y: y,
    "relu": partial(F.relu, inplace=True),
    "relu6": partial(F.relu6, inplace=True),
    "silu": partial(F.silu, inplace=True),
    "gelu": F.gelu,
    "hardswish": partial(F.hardswish, inplace=True),
}


class _Activated:
    """Torch's norm, then the residual, then the activation."""

    activation = "none"

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = super().forward(x)
        if residual is not None:
            y += residual
        return _ACTIVATIONS[self.activation](y)


class _BatchNorm1d(_Activated, nn.BatchNorm1d):
    pass


class _BatchNorm2d(_Activated, nn.BatchNorm2d):
    pass


def norms(module: nn.Module) -> list[nn.Module]:
    """The BatchNorm layers in ``module``."""
    return [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


class NormStatistics:
    """Running statistics by task, for methods that train BatchNorm anew on every task.

    Shared statistics would be the last task's: every method without this forgets by its normalisation alone.
    """

    def __init__(self, network: nn.Module):
        self.layers = norms(network)
        self.kept: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def keep(self, task: int) -> None:
        """Remember the statistics as they stand as ``task``'s."""
        self.kept[task] = [(m.running_mean.clone(), m.running_var.clone()) for m in self.layers]

    @torch.no_grad()
    def use(self, task: int) -> None:
        """Put ``task``'s statistics in place."""
        for layer, (mean, var) in zip(self.layers, self.kept[task]):
            layer.running_mean.copy_(mean)
            layer.running_var.copy_(var)

    def numbers(self) -> int:
        """How many numbers are kept."""
        return sum(mean.numel() + var.numel() for kept in self.kept.values() for mean, var in kept)


def count(parameters) -> int:
    """Numbers in ``parameters``."""
    return sum(p.numel() for p in parameters)

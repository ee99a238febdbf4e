"""All that training a task changes in a network and its optimizer: copied, and put back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from eidetic_kernels import EideticNetwork, Snapshot
from eidetic_kernels.layers import SegmentedLayer
from eidetic_kernels.tasks import snapshots
from eidetic_kernels.tasks.base import OWN_MODULES


class Buffer(NamedTuple):
    """A copy of a buffer that belongs to no unit, and the tensor and version that it was copied from."""

    values: Tensor
    written: tuple[int, int] | None


class TrainingState(NamedTuple):
    """A copy of what training a task changes.

    Args:
        snapshot: everything live, with the optimizer's state of it.
        options: of each of the optimizer's parameter groups, all but parameters and learning rate. Some optimizers
            count their steps there.
        others: the optimizer's parameters that are not the network's (a loss may have some), with their state, by their
            place: "0.3" is the first group's fourth.
        buffers: the network's buffers that belong to no unit, by path.
    """

    snapshot: Snapshot
    options: list[dict[str, Any]]
    others: dict[str, tuple[Tensor, dict[str, Any]]]
    buffers: dict[str, Buffer]

    @classmethod
    def of(cls, network: EideticNetwork, optimizer: Optimizer, earlier: TrainingState | None = None) -> TrainingState:
        """The present state. Buffers that were not written since the ``earlier`` one share its copies.

        Raises TaskError where no task is in training.
        """
        known = {} if earlier is None else earlier.buffers
        return cls(
            snapshots.take(network, optimizer),
            [{k: _copy(v) for k, v in group.items() if k not in ("params", "lr")} for group in optimizer.param_groups],
            {
                place: (
                    parameter.detach().clone(),
                    {k: _copy(v) for k, v in optimizer.state.get(parameter, {}).items()},
                )
                for place, parameter in other_parameters(network, optimizer)
            },
            {path: _buffer(buffer, known.get(path)) for path, _, buffer in own_buffers(network)},
        )

    def as_plain(self) -> dict[str, Any]:
        """The state as plain values and tensors, which :meth:`from_plain` reads."""
        return {
            "snapshot": {name: getattr(self.snapshot, name) for name in ("task", "live", "tensors", "optimizer")},
            "options": self.options,
            "others": self.others,
            "buffers": {path: buffer.values for path, buffer in self.buffers.items()},
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> TrainingState:
        """The state that :meth:`as_plain` gave."""
        buffers = {path: Buffer(values, None) for path, values in plain["buffers"].items()}
        return cls(Snapshot(**plain["snapshot"]), plain["options"], plain["others"], buffers)

    def put_back(self, network: EideticNetwork, optimizer: Optimizer) -> None:
        """Let the network and the optimizer be in this state; learning rates and gradients are left alone.

        Raises TaskError where another task is in training. May be called again if it was cut off.
        """
        snapshots.restore(network, self.snapshot, optimizer)
        for group, options in zip(optimizer.param_groups, self.options):
            group.update({name: _copy(value) for name, value in options.items()})

        with torch.no_grad():
            for place, parameter in other_parameters(network, optimizer):
                values, state = self.others[place]
                parameter.copy_(values)
                optimizer.state.pop(parameter, None)
                if state:
                    optimizer.state[parameter] = {name: _copy(value) for name, value in state.items()}
            for path, module, buffer in own_buffers(network):
                saved = self.buffers[path].values
                if buffer.shape == saved.shape:
                    buffer.copy_(saved)
                else:
                    module.register_buffer(path.rpartition(".")[2], saved.clone())


def written_tensors(network: EideticNetwork, optimizer: Optimizer | None) -> list[Tensor]:
    """Every tensor whose values a training step may write."""
    tensors = [tensor for _, _, _, tensor in snapshots.all_live(network)]
    tensors += [buffer for _, _, buffer in own_buffers(network)]
    if optimizer is not None:
        tensors += [parameter for _, parameter in other_parameters(network, optimizer)]
        entries = optimizer.state.values()
        tensors += [value for entry in entries for value in entry.values() if isinstance(value, Tensor)]
    return tensors


def own_buffers(network: EideticNetwork) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """(path, module, buffer) of the buffers that belong to no unit, such as an input's running mean."""
    for path, module in network.named_modules():
        if path.split(".")[0] not in OWN_MODULES and not isinstance(module, SegmentedLayer):
            for name, buffer in module.named_buffers(recurse=False):
                yield f"{path}.{name}" if path else name, module, buffer


def other_parameters(network: EideticNetwork, optimizer: Optimizer) -> Iterator[tuple[str, Tensor]]:
    """(place, parameter) of the optimizer's parameters that are not the network's."""
    own = {id(parameter) for parameter in network.parameters()}
    for number, group in enumerate(optimizer.param_groups):
        for index, parameter in enumerate(group["params"]):
            if id(parameter) not in own:
                yield f"{number}.{index}", parameter


def _buffer(buffer: Tensor, known: Buffer | None) -> Buffer:
    # Every write in place raises a tensor's version; inference tensors have none.
    written = None if buffer.is_inference() else (id(buffer), buffer._version)
    if known is not None and written is not None and known.written == written:
        return known
    return Buffer(buffer.detach().clone(), written)


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value

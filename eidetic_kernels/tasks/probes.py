"""The inputs by which certificates compare answers: a few samples of each task's first training batch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .inputs import Inputs, each_of

MOST = 8  # samples kept of each task


class Probes(nn.Module):
    """For each task the first samples [n, ...], n <= ``MOST``, that the network was trained on.

    Buffers, named by task; of several inputs by task and name ("0/mask") or place ("0/1"). Samples of an evaluation
    pass will do until training begins. A saved network holds them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._trained: set[int] = set()  # the tasks whose samples were trained on

    def note(self, task: int, x: Inputs, training: bool) -> None:
        """Keep samples of ``x``, a batch of the task in training, unless there are such already."""
        if task in self._trained or not (training or self.of(task) is None):
            return
        self.put(task, each_of(x, lambda tensor: tensor[:MOST].detach().clone(memory_format=torch.contiguous_format)))
        if training:
            self._trained.add(task)

    def put(self, task: int, samples: Inputs) -> None:
        """Let ``samples`` [n, ...] be those of ``task``."""
        for name in self._names(task):
            del self._buffers[name]
        if isinstance(samples, Tensor):
            self.register_buffer(str(task), samples)
            return
        named = samples.items() if isinstance(samples, Mapping) else enumerate(samples)
        for name, tensor in named:
            self.register_buffer(f"{task}/{name}", tensor)

    def hold(self, buffers: Mapping[str, Tensor]) -> None:
        """Let ``buffers`` by name, as a saved network has them, be all that is held."""
        self._buffers.clear()
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor)

    def of(self, task: int) -> Inputs | None:
        """The samples of ``task``, as the network was given them; None where it never saw any."""
        found = {name.partition("/")[2]: self.get_buffer(name) for name in self._names(task)}
        if not found or "" in found:
            return found.get("")
        return tuple(found[str(place)] for place in range(len(found))) if "0" in found else found

    def tensors_of(self, task: int) -> tuple[Tensor, ...]:
        """The tensors of the samples of ``task``, by name; none where it never saw any."""
        return tuple(self.get_buffer(name) for name in sorted(self._names(task)))

    def _names(self, task: int) -> list[str]:
        return [name for name in self._buffers if name.partition("/")[0] == str(task)]

"""The inputs by which certificates compare answers: a few samples of each task's first training batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

MOST = 8  # samples kept of each task


class Probes(nn.Module):
    """For each task the first samples [n, ...], n <= ``MOST``, that the network was trained on; buffers named by task.

    Samples of an evaluation pass will do until training begins. A saved network holds them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._trained: set[int] = set()  # the tasks whose samples were trained on

    def note(self, task: int, x: Tensor, training: bool) -> None:
        """Keep samples of ``x`` [N, ...], a batch of the task in training, unless there are such already."""
        if task in self._trained or not (training or self.of(task) is None):
            return
        self.put(task, x[:MOST].detach().clone(memory_format=torch.contiguous_format))
        if training:
            self._trained.add(task)

    def put(self, task: int, samples: Tensor) -> None:
        """Let ``samples`` [n, ...] be those of ``task``."""
        self.register_buffer(str(task), samples)

    def of(self, task: int) -> Tensor | None:
        """The samples of ``task``; None where it never saw any."""
        return self._buffers.get(str(task))

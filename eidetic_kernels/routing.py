"""Inference without a task id: the router reads the features once, and the chosen task's head answers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Prediction:
    """What a routed forward pass says about a batch of N samples.

    task: [N] int64, the task each sample was routed to.
    label: [N] int64, the class within that task.
    logits: [N, most classes of any task], that task's head; -inf beyond its classes.
    router_logits: [N, tasks], the task classifier's own scores.
    """

    task: Tensor
    label: Tensor
    logits: Tensor
    router_logits: Tensor


class Router(nn.Module):
    """The task classifier (paper, section 3.4): a linear map from features [N, columns] to task scores [N, tasks].

    Its tensors are buffers, so that training the next task cannot move them.
    """

    def __init__(self, weight: Tensor, bias: Tensor):
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    @property
    def tasks(self) -> int:
        return self.weight.shape[0]

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(features[:, : self.weight.shape[1]], self.weight, self.bias)


def route(router_logits: Tensor, logits: list[Tensor]) -> Prediction:
    """Pick each sample's task by the highest score, and that task's logits ([N, classes] a task)."""
    task = router_logits.argmax(1)
    chosen = router_logits.new_full((len(task), max(each.shape[1] for each in logits)), -torch.inf)
    for index, each in enumerate(logits):
        rows = task == index
        chosen[rows, : each.shape[1]] = each[rows].to(chosen.dtype)
    return Prediction(task, chosen.argmax(1), chosen, router_logits)

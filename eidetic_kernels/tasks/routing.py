"""Inference without a task id: the router reads the features once, and the chosen task's head answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..wiring.groups import Group
from .router_convolutions import RouterConvolutions

# How a sample's task is chosen. "learned" is the paper's task classifier; "joint" adds to its log-probability the log-
# probability of the best class of that task's head. The others need no router and no data: the task whose head is the
# surest, by the entropy of its softmax (negated), by the log of the sum of its exponentials (the negative free energy,
# Liu et al., 2020), or by its largest logit.
RULES = ("learned", "joint", "entropy", "energy", "max_logit")
NEED_ROUTER = ("learned", "joint")


@dataclass(frozen=True)
class Prediction:
    """What a routed forward pass says about a batch of N samples.

    task: [N] int64, the task each sample was routed to.
    label: [N] int64, the class within that task.
    logits: [N, most classes of any task], that task's head; -inf beyond its classes.
    router_logits: [N, tasks], the scores by which tasks were chosen (the task classifier's own, for "learned").
    """

    task: Tensor
    label: Tensor
    logits: Tensor
    router_logits: Tensor

    @property
    def confidence(self) -> Tensor:
        """[N] in (0, 1]: the chosen task's share in the softmax of the scores; abstain where it is low."""
        return self.router_logits.softmax(1).amax(1)


class Router(nn.Module):
    """The task classifier (paper, section 3.4): from features [N, columns] to task scores [N, tasks].

    A linear map as in the paper, or with one hidden layer of ReLU units between: ``hidden_weight`` [hidden, columns]
    and ``hidden_bias`` [hidden]. Its tensors are buffers, so that training the next task cannot move them.

    layers: whether it reads what every unit group computes, and not the features alone (see :func:`listening`).
    inputs: whether it reads the network's input, too.
    convolutions: those of its own over the input, whose columns come before the features; a first map with no more
        columns than these reads no features.
    mirrored: whether scores are the mean over the image and its mirror image, as convolutions see it.
    classes: how many each task has, where the map scores them and not tasks (``weight`` [all classes, columns]): a
        task's score is then the log of the sum of its classes' exponentials.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        hidden_weight: Tensor | None = None,
        hidden_bias: Tensor | None = None,
        layers: bool = False,
        inputs: bool = False,
        convolutions: RouterConvolutions | None = None,
        mirrored: bool = False,
        classes: Sequence[int] | None = None,
    ):
        super().__init__()
        self.layers, self.inputs, self.convolutions, self.mirrored = layers, inputs, convolutions, mirrored
        self.classes = None if classes is None else tuple(classes)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.register_buffer("hidden_weight", hidden_weight)
        self.register_buffer("hidden_bias", hidden_bias)

    @property
    def tasks(self) -> int:
        return self.weight.shape[0] if self.classes is None else len(self.classes)

    def forward(self, features: Tensor, x: Tensor | None = None) -> Tensor:
        """Task scores; ``x``, the network's input, is looked at by convolutions alone. Raises InputError where it is no
        image that they can read."""
        if self.convolutions is None:
            scores = self._scores(features)
        else:
            scores = self._scores(torch.cat([self.convolutions(x), features], 1))
            if self.mirrored:
                scores = (scores + self._scores(torch.cat([self.convolutions(x.flip(-1)), features], 1))) / 2
        return of_tasks(scores, self.classes)

    def _scores(self, features: Tensor) -> Tensor:
        if self.hidden_weight is not None:
            features = features[:, : self.hidden_weight.shape[1]]
            features = F.linear(features, self.hidden_weight, self.hidden_bias).relu()
        return F.linear(features[:, : self.weight.shape[1]], self.weight, self.bias)


def of_tasks(scores: Tensor, classes: Sequence[int] | None) -> Tensor:
    """Task scores [N, tasks] from those of all ``classes``, so many a task (None: they are the tasks')."""
    if classes is None:
        return scores
    return torch.stack([each.logsumexp(1) for each in scores.split(list(classes), 1)], 1)


@contextmanager
def capturing(groups: Iterable[Group]) -> Iterator[list[Tensor]]:
    """Hear what each unit group computes in the forward pass inside: a list that fills with [N, units] a group.

    The last of a group's layers that runs is heard, through a ReLU; images and tokens by their mean over positions.
    """
    captured: dict[str, Tensor] = {}

    def hook(name: str):
        def capture(layer: nn.Module, inputs: tuple, output: Tensor) -> None:
            units_second = output.relu().movedim(layer.unit_dim, 1)
            captured[name] = units_second if output.dim() == 2 else units_second.flatten(2).mean(2)

        return capture

    handles = [layer.register_forward_hook(hook(group.name)) for group in groups for layer in group.layers]
    values: list[Tensor] = []
    try:
        yield values
        values += captured.values()
    finally:
        for handle in handles:
            handle.remove()


def task_scores(rule: str, logits: list[Tensor], router_logits: Tensor | None) -> Tensor:
    """Scores [N, tasks] by one of ``RULES``, from every task's logits ([N, classes] a task) and the router's.

    Raises InputError for a rule that is none.
    """
    if rule == "learned":
        return router_logits
    if rule == "joint":
        best = torch.stack([each.log_softmax(1).amax(1) for each in logits], 1)
        return router_logits.log_softmax(1) + best
    if rule == "entropy":
        return torch.stack([(each.softmax(1) * each.log_softmax(1)).sum(1) for each in logits], 1)
    if rule == "energy":
        return torch.stack([each.logsumexp(1) for each in logits], 1)
    if rule == "max_logit":
        return torch.stack([each.amax(1) for each in logits], 1)
    raise InputError(f"a routing rule is one of {', '.join(RULES)}; got {rule!r}.")


def route(router_logits: Tensor, logits: list[Tensor]) -> Prediction:
    """Pick each sample's task by the highest score, and that task's logits ([N, classes] a task)."""
    task = router_logits.argmax(1)
    chosen = router_logits.new_full((len(task), max(each.shape[1] for each in logits)), -torch.inf)
    for index, each in enumerate(logits):
        rows = task == index
        chosen[rows, : each.shape[1]] = each[rows].to(chosen.dtype)
    return Prediction(task, chosen.argmax(1), chosen, router_logits)

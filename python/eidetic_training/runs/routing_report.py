"""How well tasks are told apart: every routing rule beside the oracle, confusion between tasks, and abstaining."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eidetic_kernels import EideticNetwork
from eidetic_kernels.checking import a_list, instance, require
from eidetic_kernels.errors import InputError
from eidetic_kernels.tasks.base import device_of
from eidetic_kernels.tasks.routing import NEED_ROUTER, RULES

from ..data import Task
from ..training.epoch import evaluate
from .report import aligned, percent

BATCH = 500
COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.5)


@dataclass(frozen=True)
class RuleResult:
    """One rule on all tasks' test samples. All numbers lie in [0, 1].

    Args:
        confusion: float32 [tasks, tasks]; row t has the fractions of task t's samples that were routed to each task.
        correct: accuracy of each task if the rule names the task.
        selective: accuracy on the most confident fraction of all samples, for each of ``COVERAGES``: what abstaining
            gains.
    """

    rule: str
    confusion: Tensor
    correct: tuple[float, ...]
    selective: tuple[float, ...]

    @property
    def named(self) -> float:
        """Mean, over tasks, of the fraction of samples whose task was named rightly."""
        return float(self.confusion.diagonal().mean())

    @property
    def accuracy(self) -> float:
        """Mean accuracy over tasks."""
        return sum(self.correct) / len(self.correct)


@dataclass(frozen=True)
class RoutingReport:
    """Every rule's result, and ``oracle``: accuracy of each task if the task is given. Prints as tables."""

    oracle: tuple[float, ...]
    rules: tuple[RuleResult, ...]

    def __str__(self) -> str:
        tasks = range(len(self.oracle))
        rows = [["", "task named", "accuracy", *(f"task {t}" for t in tasks)]]
        rows.append(["oracle", "", percent(sum(self.oracle) / len(self.oracle)), *map(percent, self.oracle)])
        rows += [[r.rule, percent(r.named), percent(r.accuracy), *map(percent, r.correct)] for r in self.rules]

        best = max(self.rules, key=lambda r: r.accuracy)
        confusion = [[f"routed by {best.rule} to", *(f"task {t}" for t in tasks)]]
        confusion += [[f"of task {t}", *map(percent, best.confusion[t].tolist())] for t in tasks]

        abstain = [["accuracy when answering", *map(percent, COVERAGES)]]
        abstain += [[r.rule, *map(percent, r.selective)] for r in self.rules]
        return "\n\n".join(aligned(table, rules=(0,)) for table in (rows, confusion, abstain))


@torch.no_grad()
def routing_report(network: EideticNetwork, tasks: Sequence[Task], rules: Sequence[str] | None = None) -> RoutingReport:
    """Try ``rules`` on the test sets of the network's finished tasks; None is every rule that the network can use.

    For each batch, all rules together take one pass of the body, and the oracle takes another.

    Raises InputError if the number of tasks differs from the number of finished tasks.
    """
    instance("network", network, EideticNetwork, "an EideticNetwork")
    count, tasks = network.finished_tasks, a_list("tasks", tasks, "a list of tasks, one for each finished one")
    for task in tasks:
        require(callable(getattr(task, "test_loader", None)), "a task must be a Task, with a test_loader", task)
    if len(tasks) != count:
        raise InputError(f"{len(tasks)} tasks were given for {count} finished ones; expected the test set of each.")

    if rules is None:
        routed = network.router is not None and network.router.tasks == count
        rules = [rule for rule in RULES if routed or rule not in NEED_ROUTER]

    device = device_of(network)
    oracle, kept = [], {rule: ([], [], []) for rule in rules}
    truth = []
    for t, task in enumerate(tasks):
        oracle.append(evaluate(network, task.test_loader(BATCH, device), t).accuracy)
        for x, y in task.test_loader(BATCH, device):
            answers = network.predictions(x, rules)
            truth.append(torch.full((len(y),), t))
            for rule, answer in answers.items():
                chosen, correct, sure = kept[rule]
                chosen.append(answer.task.cpu())
                correct.append(((answer.task == t) & (answer.label == y)).cpu())
                sure.append(answer.confidence.cpu())

    true = torch.cat(truth)
    return RoutingReport(tuple(oracle), tuple(_result(rule, true, *map(torch.cat, kept[rule])) for rule in rules))


def _result(rule: str, true: Tensor, chosen: Tensor, correct: Tensor, sure: Tensor) -> RuleResult:
    tasks = int(true.max()) + 1
    confusion = torch.zeros(tasks, tasks)
    for t in range(tasks):
        confusion[t] = torch.bincount(chosen[true == t], minlength=tasks) / (true == t).sum()
    by_task = tuple(float(correct[true == t].float().mean()) for t in range(tasks))
    order = sure.argsort(descending=True, stable=True)
    ranked = correct[order].float()
    selective = tuple(float(ranked[: max(1, round(share * len(ranked)))].mean()) for share in COVERAGES)
    return RuleResult(rule, confusion, by_task, selective)

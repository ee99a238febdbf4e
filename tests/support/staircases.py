"""What the tests of ops and layers share: staircases of every kind, and comparisons (tolerances.py).

The dense masked network here is written from the paper's definition (who owns a row, who owns a column) and uses
neither the package's spans nor its mask, so that an op and its oracle cannot be wrong together.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from tolerances import assert_close, assert_same_bits

from eidetic_kernels.layout import Fixed, Segments, Source, Staircase, staircase
from eidetic_kernels.ops import Weights

__all__ = [
    "CASES",
    "DTYPES",
    "Case",
    "Layer",
    "assert_close",
    "assert_same_bits",
    "assert_same_results",
    "inside_poison",
    "random_case",
]

DTYPES = (torch.float64, torch.float32)

INPUT = -1  # the owner of columns that belong to no task


@dataclass(frozen=True)
class Case:
    """A layer's structure in plain words: who owns what, and which segments read nested."""

    reads: tuple[tuple[tuple[int, ...], int, int] | int, ...]  # (frozen sizes, live, block) a group; n input columns
    frozen: tuple[int, ...]  # rows by task
    live: int
    nested: tuple[bool, ...]  # by task, the live segment last
    task: int | None = None  # recalled, or None in training

    def staircase(self, task: int | str | None = "own") -> Staircase:
        task = self.task if task == "own" else task
        sources = tuple(
            Source(Fixed(read))
            if isinstance(read, int)
            else Source(Segments(sum(read[0]) + read[1], read[1], read[0]), read[2])
            for read in self.reads
        )
        output = Segments(sum(self.frozen) + self.live, self.live, self.frozen)
        return staircase(output, sources, self.nested, task)

    def column_owners(self, task: int | str | None = "own") -> torch.Tensor:
        """The task owning each present input column; the task in training is number len(frozen)."""
        task = self.task if task == "own" else task
        owners: list[int] = []
        for read in self.reads:
            if isinstance(read, int):
                owners += [INPUT] * read
                continue
            frozen, live, block = read
            for owner, size in enumerate((*frozen, live)):
                if task is None or owner <= task:
                    owners += [owner] * size * block
        return torch.tensor(owners, dtype=torch.long)

    def row_owners(self, task: int | str | None = "own") -> torch.Tensor:
        task = self.task if task == "own" else task
        sizes = (*self.frozen, self.live)
        return torch.tensor(
            [owner for owner, size in enumerate(sizes) if task is None or owner <= task for _ in range(size)],
            dtype=torch.long,
        )

    def mask(self, task: int | str | None = "own") -> torch.Tensor:
        """The paper's rule: a row reads the input, its own task, and if nested every earlier task."""
        rows, columns = self.row_owners(task).view(-1, 1), self.column_owners(task).view(1, -1)
        nested = torch.tensor(self.nested)[rows]
        return (columns == INPUT) | (columns == rows) | (nested & (columns < rows))

    @property
    def live_task(self) -> int:
        return len(self.frozen)


CASES = {
    "nothing frozen": Case((7,), (), 5, (True,)),
    "one row, one column": Case((1,), (), 1, (True,)),
    "first layer, two tasks frozen": Case((6,), (2, 3), 4, (True, True, True)),
    "nested": Case((((3, 2, 5), 4, 1),), (2, 4, 3), 3, (True, True, True, True)),
    "disjoint": Case((((3, 2, 5), 4, 1),), (2, 4, 3), 3, (False, False, False, False)),
    "mixed by segment": Case((((3, 2, 5), 4, 1),), (2, 4, 3), 3, (True, False, True, False)),
    "empty segments": Case((((3, 0, 5), 4, 1),), (0, 4, 0), 3, (True, True, False, True)),
    "reading nothing": Case((((3, 0), 0, 1),), (2, 4), 3, (True, False, False)),
    "single rows": Case((((1, 1), 1, 1),), (1, 1), 1, (True, True, True)),
    "no live row": Case((((3, 2), 4, 1),), (2, 4), 0, (True, True, True)),
    "no live column": Case((((3, 2), 0, 1),), (2, 4), 3, (True, True, True)),
    "all frozen": Case((((3, 2), 0, 1),), (2, 4), 0, (True, False, True)),
    "nothing at all": Case((((0,), 0, 1),), (0,), 0, (True, True)),
    "flattened blocks": Case((((2, 1), 2, 4),), (2, 3), 3, (True, False, True)),
    "concatenated": Case((3, ((2, 1), 2, 1), ((1, 0), 3, 2)), (2, 3), 4, (True, False, False)),
    "recall of the first": Case((((3, 2, 5), 4, 1),), (2, 4, 3), 3, (True, False, True, True), task=0),
    "recall of the last": Case((((3, 2, 5), 4, 1),), (2, 4, 3), 3, (True, False, True, True), task=2),
}


def random_case(generator: random.Random, widest: int) -> Case:
    """Any number of tasks, segments of 0 to ``widest`` units, every mixture of nested and disjoint."""
    tasks = generator.randint(1, 4)

    def sizes():
        return tuple(0 if generator.random() < 0.1 else generator.randint(1, widest) for _ in range(tasks + 1))

    *into, live_in = sizes()
    *out, live_out = sizes()
    nested = tuple(generator.random() < 0.7 for _ in range(tasks + 1))
    reads = generator.randint(1, widest) if generator.random() < 0.2 else (tuple(into), live_in, 1)
    return Case((reads,), tuple(out), live_out, nested)


class Layer:
    """Random weights for a case: dense ones for the definition by hand, and the same cut as the ops hold them."""

    def __init__(self, case: Case, kernel=(), bias=True, dtype=torch.float64):
        self.case = case
        rows, columns = case.row_owners(None), case.column_owners(None)
        fan_in = max(1, len(columns)) ** 0.5
        self.dense = (torch.randn(len(rows), len(columns), *kernel, dtype=torch.float64) / fan_in).to(dtype)
        self.dense_bias = torch.randn(len(rows), dtype=torch.float64).to(dtype) if bias else None
        mask = case.mask(None)
        blocks = []
        for task in range(case.live_task):
            for row in (rows == task).nonzero().flatten():
                blocks.append(self.dense[row, mask[row]].flatten())
        live = rows == case.live_task
        reads = mask[live][0] if live.any() else self._live_reads(columns)
        self.weight = self.dense[live][:, reads].contiguous()
        self.frozen_weight = torch.cat(blocks) if blocks else torch.empty(0, dtype=dtype)
        self.bias = self.dense_bias[live].contiguous() if bias else None
        self.frozen_bias = self.dense_bias[~live].contiguous() if bias else None

    def _live_reads(self, columns):
        nested, task = self.case.nested[-1], self.case.live_task
        return (columns == INPUT) | (columns == task) | (nested & (columns < task))

    def weights(self, convert=lambda tensor: tensor) -> Weights:
        """The layer's tensors as ops take them, each converted."""
        tensors = self.weight, self.bias, self.frozen_weight, self.frozen_bias
        return Weights(*(None if tensor is None else convert(tensor) for tensor in tensors))

    def run(self, op, x, *options, full_input_grad=False, dy=None, task="own") -> dict[str, torch.Tensor | None]:
        """The op's output and its gradients for an upstream gradient ``dy``."""
        x, weight = x.detach().requires_grad_(), self.weight.detach().requires_grad_()
        bias = None if self.bias is None else self.bias.detach().requires_grad_()
        weights = Weights(weight, bias, self.frozen_weight, self.frozen_bias)
        y = op(x, weights, self.case.staircase(task), *options, full_input_grad)
        if y.requires_grad:
            y.backward(torch.ones_like(y) if dy is None else dy)
        return {"y": y.detach(), "dx": x.grad, "dweight": weight.grad, "dbias": None if bias is None else bias.grad}

    def by_hand(self, product, x, full_input_grad=False, dy=None) -> dict[str, torch.Tensor | None]:
        """The paper's dense masked layer: ``product(x, weight * mask, bias)`` in plain autograd.

        Without ``full_input_grad`` the input's gradient is what the contract owes: that of the live rows alone, at the
        columns of the task in training.
        """
        case = self.case
        rows, columns, mask = case.row_owners(), case.column_owners(), case.mask()
        kept_rows, kept_columns = slice(0, len(rows)), self._present_columns()
        weight = self.dense[kept_rows][:, kept_columns].clone().requires_grad_()
        bias = None if self.dense_bias is None else self.dense_bias[kept_rows].clone().requires_grad_()

        x = x.detach().clone().requires_grad_()
        wide = mask.view(*mask.shape, *[1] * (weight.dim() - 2))
        y = product(x, weight * wide, bias)
        live = rows == case.live_task
        dy = torch.ones_like(y) if dy is None else dy
        y.backward(dy, retain_graph=True)

        dx = x.grad
        if not full_input_grad:
            cut = dy * live.view(1, -1, *[1] * (dy.dim() - 2))
            (dx,) = torch.autograd.grad(y, x, cut, allow_unused=True)
            dx = torch.zeros_like(x) if dx is None else dx
            trainable = (columns == case.live_task) & (case.task is None)
            dx = dx * trainable.view(1, -1, *[1] * (dx.dim() - 2))

        reads = self._live_reads(case.column_owners())
        return {
            "y": y.detach(),
            "dx": dx,
            "dweight": weight.grad[live][:, reads] if case.task is None else torch.zeros_like(self.weight),
            "dbias": None if bias is None else bias.grad[live] if case.task is None else torch.zeros_like(self.bias),
        }

    def _present_columns(self):
        present = torch.ones(len(self.case.column_owners(None)), dtype=torch.bool)
        return present if self.case.task is None else self.case.column_owners(None) <= self.case.task


def assert_same_results(results: dict, expected: dict, label: str = "") -> None:
    """Every entry close to the expected; a gradient that is not there must be expected to be zero."""
    for name, tensor in expected.items():
        given = results[name]
        if given is None or tensor is None:
            assert all(t is None or not t.any() for t in (given, tensor)), f"{label}{name} is missing on one side"
        else:
            assert_close(label + name, given, tensor)


def inside_poison(x: torch.Tensor) -> torch.Tensor:
    """``x`` as a strided slice of a larger buffer whose every other value is NaN."""
    shape = list(x.shape)
    big = x.new_full([shape[0] * 2 + 1, shape[1] + 5, *[side + 3 for side in shape[2:]]], float("nan"))
    view = big[(slice(1, None, 2), slice(3, 3 + shape[1]), *[slice(2, 2 + side) for side in shape[2:]])]
    view.copy_(x)
    return view

"""Pruning: which live units go, as a plan to look at, and the plan carried out.

Units are chosen by the importance scores of :mod:`.importance` (paper, sections 3 and 4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..checking import function, instance, one_of, share, shown
from ..errors import InputError, TaskError
from ..layout import Segments
from ..wiring.groups import Group
from .base import BaseNetwork
from .checks import count_or_share, pairs_of_inputs
from .importance import Batches, Loss, grain_scores, scores_of
from .optimizer_state import adopt, check_current

# "hybrid" takes between half and twice the fraction from a layer that a uniform cut would take.
HYBRID_FLOOR, HYBRID_CEILING = 0.5, 2.0
COUNTED = ("live", "present", "width")


class Amount(NamedTuple):
    """How much is removed: ``fraction`` of what ``of`` counts, but ``keep_at_least`` stays; see ``plan_pruning``."""

    fraction: float
    of: str
    keep_at_least: int | float

    def counted(self, segments: Segments) -> float:
        """The number of units that ``fraction`` is of a group."""
        base = {"live": segments.live, "present": segments.total, "width": segments.width}[self.of]
        return self.fraction * base


@dataclass(frozen=True)
class GroupPlan:
    """What one unit group would lose.

    Args:
        name: the group's name.
        live: how many live units the group has.
        keep: int64 [kept], the indices of the live units that stay, ascending.
    """

    name: str
    live: int
    keep: Tensor

    @property
    def removed(self) -> int:
        """How many units would go."""
        return self.live - len(self.keep)


@dataclass(frozen=True)
class PruningPlan:
    """Units to remove, by unit group. Print it to look before ``net.apply_plan`` changes anything."""

    importance: str
    groups: tuple[GroupPlan, ...]

    @property
    def removed(self) -> int:
        """How many units would go, over all groups."""
        return sum(group.removed for group in self.groups)

    def __str__(self) -> str:
        width = max([len(group.name) for group in self.groups] + [5])
        lines = [f"{'group':{width}}  live  remove  keep   (importance {self.importance})"]
        for group in self.groups:
            lines.append(f"{group.name:{width}}  {group.live:4}  {group.removed:6}  {len(group.keep):4}")
        return "\n".join(lines)


def plan(
    network: BaseNetwork,
    amount: Amount,
    importance: str | int | Mapping[str, Tensor],
    across_layers: bool | None,
    *,
    data: Batches | None,
    loss: Loss,
    generator: torch.Generator | None,
) -> PruningPlan:
    """See :meth:`EideticNetwork.plan_pruning`."""
    if network.current_task is None:
        raise TaskError("only the live units of a task in training can be pruned: call prepare_for_task first.")
    amount = Amount(
        share("fraction", amount.fraction),
        one_of("of", amount.of, COUNTED),
        count_or_share("keep_at_least", amount.keep_at_least),
    )
    one_of("across_layers", across_layers, (None, True, False))
    function("loss", loss, "a function of logits and labels")
    if data is not None:
        data = pairs_of_inputs("data", data)
    if generator is not None:
        instance("generator", generator, torch.Generator, "a torch.Generator")

    name, scores = scores_of(network, importance, data, loss, generator)
    if across_layers is not None and name == "hybrid":
        raise InputError('"hybrid" compares layers within bounds of its own: leave across_layers out.')
    return make_plan(network.groups, scores, name, amount, across_layers)


def apply(network: BaseNetwork, plan: PruningPlan, optimizer: Optimizer | None = None) -> None:
    """See :meth:`EideticNetwork.apply_plan`."""
    instance("plan", plan, PruningPlan, "a PruningPlan, made by net.plan_pruning(...)")
    by_name = {group.name: group for group in network.groups}
    if optimizer is not None:
        check_current(optimizer, network.parameters())
    for part in plan.groups:
        if part.name not in by_name or by_name[part.name].segments.live != part.live:
            raise TaskError(
                f"the plan is out of date: {part.name} no longer has {part.live} live units. Make a new one "
                "(net.plan_pruning)."
            )
        segments = by_name[part.name].segments
        keep = _kept(part)
        if not segments.keeps_whole(keep):
            raise InputError(
                f"the plan keeps parts of grains: {part.name} has units that live together in runs of "
                f"{segments.grain} (a grouped convolution reads them); keep whole runs."
            )

    for part in plan.groups:
        if part.removed:
            network.cut_group(by_name[part.name], part.keep)
    if optimizer is not None:
        adopt(network, optimizer)


def _kept(part: GroupPlan) -> list[int]:
    """The indices that a plan keeps. Raises InputError for what are no live units in ascending order."""
    right = isinstance(part.keep, Tensor) and part.keep.dtype == torch.long and part.keep.dim() == 1  # pyright: ignore[reportUnnecessaryIsInstance]
    keep = cast("list[int]", part.keep.tolist()) if right else [-1]  # pyright: ignore[reportUnknownMemberType]  torch lacks its type
    if any(a >= b for a, b in zip([-1, *keep], [*keep, part.live])):
        raise InputError(
            f"the plan must keep live units of {part.name} by their indices, int64 in 0..{part.live - 1}, ascending; "
            f"it has {shown(part.keep)}."
        )
    return keep


def make_plan(
    groups: Sequence[Group],
    scores: Mapping[str, Tensor],
    importance: str,
    amount: Amount,
    across_layers: bool | None = None,
) -> PruningPlan:
    """Choose the units with the lowest scores.

    Grains go as a whole (see :func:`.grain_scores`). Where a group's sizes change by more than one unit at a time, the
    group loses at least one such step, and otherwise what comes nearest to the fraction.

    Args:
        groups: the unit groups.
        scores: for each group's name, a score [live] for each unit; higher means more important.
        importance: the scores' name.
        amount: how much to remove. At least one unit goes from each group where the fraction is not zero. One grain at
            least stays, unless all units are to go (fraction 1).
        across_layers: whether units are compared over the whole network; None: as the importance does.
    """
    least_kept = 0 if amount.fraction == 1 else 1
    floors = [_floor(amount.keep_at_least, group.segments.width, least_kept) for group in groups]
    ladders = [
        [group.segments.live] if group.spared else group.segments.ladder(floor) for group, floor in zip(groups, floors)
    ]
    grains = [grain_scores(scores[group.name], group.segments.grain, importance) for group in groups]
    uniform = [_rung(amount.counted(group.segments), ladder) for group, ladder in zip(groups, ladders)]
    lowest = [len(ladder) - 1 for ladder in ladders]

    if across_layers is None:
        across_layers = importance == "taylor"
    if across_layers:
        rungs = _global_rungs(grains, ladders, uniform, [0] * len(groups), lowest)
    elif importance == "hybrid":
        least = [int(HYBRID_FLOOR * rung) for rung in uniform]
        most = [min(ceil(HYBRID_CEILING * rung), limit) for rung, limit in zip(uniform, lowest)]
        rungs = _global_rungs(grains, ladders, uniform, least, most)
    else:
        rungs = uniform

    plans: list[GroupPlan] = []
    for group, grain_score, ladder, rung in zip(groups, grains, ladders, rungs):
        grain, live = group.segments.grain, group.segments.live
        removed = (live - ladder[rung]) // grain
        kept_grains = torch.argsort(grain_score, stable=True)[removed:].sort().values
        keep = (kept_grains.view(-1, 1) * grain + torch.arange(grain)).flatten()
        plans.append(GroupPlan(group.name, live, keep))
    return PruningPlan(importance, tuple(plans))


def _floor(keep_at_least: int | float, width: int, least: int) -> int:
    """``keep_at_least`` as a count, ``least`` at least."""
    if isinstance(keep_at_least, float):
        keep_at_least = ceil(keep_at_least * width - 1e-9)  # 0.1 of 30 units are 3, whatever its last bit says
    return max(keep_at_least, least)


def _rung(count: float, ladder: Sequence[int]) -> int:
    """The rung of ``ladder`` (sizes, descending) that a group goes down to when it loses ``count`` units."""
    if count == 0 or len(ladder) == 1:
        return 0
    kept = ladder[0] - max(1, round(count))
    return min(range(1, len(ladder)), key=lambda rung: abs(ladder[rung] - kept))


def _global_rungs(
    grains: Sequence[Tensor],
    ladders: Sequence[Sequence[int]],
    uniform: Sequence[int],
    least: Sequence[int],
    most: Sequence[int],
) -> list[int]:
    """The rungs that groups go down to when the lowest-scored grains of the whole network go.

    As many units go as with the rungs ``uniform``. Each group goes down between ``least`` and ``most`` rungs.

    Args:
        grains: a score for each grain, by group.
        ladders: the sizes that each group can have, descending.
    """
    rungs = list(least)
    candidates: list[tuple[float, int, int]] = []  # mean score of the grains in one step down, group, units in it
    left = sum(ladder[0] - ladder[rung] for ladder, rung in zip(ladders, uniform))
    for index, (scores, ladder) in enumerate(zip(grains, ladders)):
        grain = ladder[0] // len(scores) if len(scores) else 1
        ordered = scores.sort().values
        gone = [(ladder[0] - kept) // grain for kept in ladder]
        left -= ladder[0] - ladder[least[index]]
        candidates += [
            (ordered[gone[rung] : gone[rung + 1]].mean().item(), index, ladder[rung] - ladder[rung + 1])
            for rung in range(least[index], most[index])
        ]

    for _, index, units in sorted(candidates):
        if left <= 0:
            break
        rungs[index] += 1
        left -= units
    return rungs

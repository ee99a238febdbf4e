"""Which live units to remove: importance scores, and the plan made of them.

Scores are per unit group, so tied producers (a residual addition) are scored together. Sources: `l1`, `l2` are the
row norms of the paper's section 3.1; `taylor` is Molchanov et al. (2017), mean |activation x gradient|; `hybrid` is
the paper's future work, Taylor bounded per layer, since Taylor alone empties late layers first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import InputError, TaskError
from ..modes import evaluating
from ..wiring.groups import Group
from .base import BaseNetwork
from .checks import check_names
from .optimizer_state import adopt, check_current

IMPORTANCES = ("l1", "l2", "taylor", "random", "hybrid")

# hybrid: a layer loses between half and twice the share that a uniform cut would take from it.
HYBRID_FLOOR, HYBRID_CEILING = 0.5, 2.0


@dataclass(frozen=True)
class GroupPlan:
    """What one unit group would lose: of ``live`` units, those with the indices ``keep`` (ascending) stay."""

    name: str
    live: int
    keep: Tensor

    @property
    def removed(self) -> int:
        return self.live - len(self.keep)


@dataclass(frozen=True)
class PruningPlan:
    """Units to remove, a group each; print it to look before ``net.apply_plan`` changes anything."""

    importance: str
    groups: tuple[GroupPlan, ...]

    @property
    def removed(self) -> int:
        return sum(group.removed for group in self.groups)

    def __str__(self) -> str:
        width = max([len(group.name) for group in self.groups] + [5])
        lines = [f"{'group':{width}}  live  remove  keep   (importance {self.importance})"]
        for group in self.groups:
            lines.append(f"{group.name:{width}}  {group.live:4}  {group.removed:6}  {len(group.keep):4}")
        return "\n".join(lines)


def plan(
    network: BaseNetwork,
    fraction: float,
    importance: str | Mapping[str, Tensor],
    *,
    of: str,
    data: Iterable | None,
    loss: Callable[[Tensor, Tensor], Tensor],
    keep_at_least: int | float,
    generator: torch.Generator | None,
) -> PruningPlan:
    """See :meth:`EideticNetwork.plan_pruning`."""
    if network.current_task is None:
        raise TaskError("only the live units of a task in training can be pruned: call prepare_for_task first.")
    if not isinstance(fraction, (int, float)) or not 0 <= fraction <= 1:
        raise InputError(f"fraction must lie in [0, 1], got {fraction!r}.")
    if of not in ("live", "width"):
        raise InputError(f'of must be "live" or "width", got {of!r}.')
    share = isinstance(keep_at_least, float)
    if isinstance(keep_at_least, bool) or keep_at_least < 0 or (share and keep_at_least > 1):
        raise InputError(f"keep_at_least must be a count or a share in [0, 1], got {keep_at_least!r}.")
    name, scores = scores_of(network, importance, data, loss, generator)
    return make_plan(network.groups, scores, name, fraction, of, keep_at_least)


def apply(network: BaseNetwork, plan: PruningPlan, optimizer: Optimizer | None = None) -> None:
    """See :meth:`EideticNetwork.apply_plan`."""
    by_name = {group.name: group for group in network.groups}
    if optimizer is not None:
        check_current(optimizer, network.parameters())
    for part in plan.groups:
        if part.name not in by_name or by_name[part.name].segments.live != part.live:
            raise TaskError(f"the plan is out of date: {part.name} no longer has {part.live} live units.")
        if not by_name[part.name].segments.keeps_whole(part.keep.tolist()):
            raise InputError(
                f"the plan keeps parts of grains: {part.name} has units that live together in runs of "
                f"{by_name[part.name].segments.grain} (a grouped convolution reads them); keep whole runs."
            )
    for part in plan.groups:
        if part.removed:
            network.cut_group(by_name[part.name], part.keep)
    if optimizer is not None:
        adopt(network, optimizer)


def scores_of(
    network: BaseNetwork,
    importance: str | Mapping[str, Tensor],
    data: Iterable | None,
    loss: Callable[[Tensor, Tensor], Tensor],
    generator: torch.Generator | None,
) -> tuple[str, dict[str, Tensor]]:
    """The importance's name, and every group's scores [live] by it."""
    groups = network.groups
    if isinstance(importance, Mapping):
        return "given", _checked(groups, importance)
    if importance in ("l1", "l2"):
        norm = int(importance[1])
        return importance, {group.name: weight_scores(group, norm) for group in groups}
    if importance == "random":
        return importance, {group.name: random_scores(group, generator) for group in groups}
    if importance in ("taylor", "hybrid"):
        if data is None:
            raise InputError(f'importance "{importance}" needs data: an iterable of (x, y) batches of the task.')
        scores = taylor_scores(network, groups, data, loss)
        return importance, layer_normalised(scores) if importance == "hybrid" else scores
    raise InputError(f"importance must be one of {', '.join(IMPORTANCES)}; got {importance!r}.")


def make_plan(
    groups: Iterable[Group],
    scores: Mapping[str, Tensor],
    importance: str,
    fraction: float,
    of: str,
    keep_at_least: int | float,
) -> PruningPlan:
    """Choose the units with the lowest scores.

    Args:
        scores: for each group's name, a score [live] per unit; higher means more important.
        fraction: how much to remove, in [0, 1], of the live units now present (``of="live"``) or of the layer's
            width (``of="width"``, as the paper counts). At least one unit where the fraction is not zero.
        keep_at_least: units that each group keeps at least, where it has them: a count, or a share of its width.

    Grains go as a whole, by the norm of their scores (``l2``) or their mean. Where the step of a group's sizes is more
    than one unit, what it loses is the nearest that leaves a multiple of it, and one step at least.
    """
    groups = list(groups)
    floors = [
        round(keep_at_least * group.segments.width) if isinstance(keep_at_least, float) else keep_at_least
        for group in groups
    ]
    ladders = [group.segments.ladder(floor) for group, floor in zip(groups, floors)]
    grains = [grain_scores(scores[group.name], group.segments.grain, importance) for group in groups]
    uniform = [
        _rung(fraction, group.segments.live if of == "live" else group.segments.width, ladder)
        for group, ladder in zip(groups, ladders)
    ]
    last = [len(ladder) - 1 for ladder in ladders]
    if importance == "taylor":
        rungs = _global(grains, ladders, uniform, [0] * len(groups), last)
    elif importance == "hybrid":
        low = [int(HYBRID_FLOOR * rung) for rung in uniform]
        high = [min(ceil(HYBRID_CEILING * rung), limit) for rung, limit in zip(uniform, last)]
        rungs = _global(grains, ladders, uniform, low, high)
    else:
        rungs = uniform
    plans = []
    for group, each, ladder, rung in zip(groups, grains, ladders, rungs):
        grain, live = group.segments.grain, group.segments.live
        order = torch.argsort(each, stable=True)[(live - ladder[rung]) // grain :].sort().values
        keep = (order.view(-1, 1) * grain + torch.arange(grain)).flatten()
        plans.append(GroupPlan(group.name, live, keep))
    return PruningPlan(importance, tuple(plans))


def grain_scores(scores: Tensor, grain: int, importance: str) -> Tensor:
    """Scores [live / grain] of units that can only live together, from each unit's [live]: their norm, as for tied
    producers, divided so that grains of any size compare."""
    power = 2 if importance == "l2" else 1
    return scores.cpu().view(-1, grain).pow(power).mean(1).pow(1 / power)


def weight_scores(group: Group, norm: int) -> Tensor:
    """Norm [live] of each live unit's weights, over all layers that produce the unit."""
    total = 0
    for layer in group.producers.values():
        total = total + layer.weight.detach().flatten(1).abs().pow(norm).sum(1)
    return total ** (1 / norm)


def random_scores(group: Group, generator: torch.Generator | None) -> Tensor:
    return torch.rand(group.segments.live, generator=generator)


def taylor_scores(
    network: nn.Module, groups: Iterable[Group], data: Iterable, loss: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, Tensor]:
    """Mean over samples (and pixels) of |activation x gradient| [live] of every live unit, over ``data``.

    Runs in evaluation mode, so live statistics stay as they are, and leaves no gradient behind.
    Raises InputError when ``data`` is empty.
    """
    groups = list(groups)
    scores = {group.name: torch.zeros(group.segments.live) for group in groups}
    samples = batch = 0

    def hook(group: Group):
        def forward(layer, inputs, output):
            dim, first = layer.unit_dim, group.segments.frozen_total
            frozen, live = output.split([first, output.shape[dim] - first], dim)
            if live.requires_grad and live.shape[dim]:
                activation = live.detach()
                live.register_hook(lambda gradient: accumulate(group, dim, (activation * gradient).abs()))
                # The slice itself must lie on the path of the gradient.
                return torch.cat([frozen, live], dim)
            return None

        return forward

    def accumulate(group: Group, dim: int, products: Tensor) -> None:
        # The loss is a mean over the batch: undo that, so that batches of any size count sample by sample. A layer's
        # own first dimension need not be the batch: it may hold windows of images, or tokens.
        products = products.movedim(dim, 0).flatten(1)
        scores[group.name] += (products.mean(1) * batch * batch).cpu()

    handles = [layer.register_forward_hook(hook(group)) for group in groups for layer in group.producers.values()]
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    device = parameters[0].device
    try:
        with evaluating(network), torch.enable_grad():
            for x, y in data:
                batch = len(x)
                value = loss(network(x.to(device)), y.to(device))
                torch.autograd.grad(value, parameters, allow_unused=True)
                samples += batch
    finally:
        for handle in handles:
            handle.remove()
    if not samples:
        raise InputError("taylor importance needs data: an iterable of (x, y) batches; the one given was empty.")
    return {name: score / samples for name, score in scores.items()}


def layer_normalised(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scores divided by their group's mean, so that layers can be compared (Molchanov et al., section 2.2)."""
    return {name: score / score.mean().clamp_min(1e-30) if len(score) else score for name, score in scores.items()}


def _checked(groups: Iterable[Group], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    check_names(given, [group.name for group in groups], "unit group")
    for group in groups:
        live, scores = group.segments.live, given.get(group.name)
        if not isinstance(scores, Tensor) or scores.shape != (live,) or not torch.isfinite(scores).all():
            raise InputError(
                f"scores for {group.name} must be a tensor of finite numbers, one for each of its {live} live units."
            )
    return dict(given)


def _rung(fraction: float, base: int, ladder: Sequence[int]) -> int:
    """Down to which of the sizes in ``ladder`` a group goes that is to lose ``fraction`` of ``base`` units."""
    if fraction == 0 or len(ladder) == 1:
        return 0
    kept = ladder[0] - max(1, round(fraction * base))
    return min(range(1, len(ladder)), key=lambda rung: abs(ladder[rung] - kept))


def _global(grains: list[Tensor], ladders: list[Sequence[int]], uniform: list[int], low: list[int], high: list[int]):
    """Down to which size each group goes, between ``low`` and ``high``, when the lowest-scored grains of the network
    go, as many units as in ``uniform``. All are places in the groups' ladders."""
    rungs, candidates = list(low), []
    left = sum(ladder[0] - ladder[rung] for ladder, rung in zip(ladders, uniform))
    for index, (scores, ladder) in enumerate(zip(grains, ladders)):
        grain = ladder[0] // len(scores) if len(scores) else 1
        ordered = scores.sort().values
        gone = [(ladder[0] - kept) // grain for kept in ladder]
        left -= ladder[0] - ladder[low[index]]
        candidates += [
            (ordered[gone[rung] : gone[rung + 1]].mean().item(), index, ladder[rung] - ladder[rung + 1])
            for rung in range(low[index], high[index])
        ]
    for _, index, units in sorted(candidates):
        if left <= 0:
            break
        rungs[index] += 1
        left -= units
    return rungs

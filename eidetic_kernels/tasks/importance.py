"""Importance scores: how much each live unit matters, by one of several measures.

Scores are per unit group, so producers that are tied (by a residual addition) are scored together. ``l1`` and ``l2``
are norms of weight rows, and ``taylor`` is the mean of |activation x gradient| over samples (Molchanov et al., 2017):
the paper's scores (section 4). ``hybrid`` is Taylor with bounds for each layer, since Taylor alone empties late layers
first; the paper leaves such hybrids to future work (section 5).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..checking import known_names, one_of, shown
from ..errors import InputError
from ..layers import StaircaseLayer
from ..modes import evaluating, outside_inference
from ..wiring.groups import Group
from .base import BaseNetwork
from .checks import mean_loss
from .inputs import Inputs, each_of, samples_of

IMPORTANCES = ("l1", "l2", "taylor", "random", "hybrid")
NORMS = {1: "l1", 2: "l2", "1": "l1", "2": "l2"}  # norms may be given by number

Batches = Iterable[tuple[Inputs, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]


def an_importance(name: str, value: object) -> str:
    """The name of an importance that is given by name, or by the number of its norm. Raises InputError."""
    if isinstance(value, (int, str)) and not isinstance(value, bool):
        value = NORMS.get(value, value)
    return str(one_of(name, value, IMPORTANCES))


def scores_of(
    network: BaseNetwork,
    importance: str | int | Mapping[str, Tensor],
    data: Batches | None,
    loss: Loss,
    generator: torch.Generator | None,
) -> tuple[str, dict[str, Tensor]]:
    """The importance's name, and by it each group's scores [live].

    Raises InputError for an unknown importance, for given scores that do not fit, and where ``data`` is missing.
    """
    groups = network.groups
    if isinstance(importance, Mapping):
        return "given", _checked(groups, importance)

    importance = an_importance("importance", importance)
    if importance in ("l1", "l2"):
        norm = int(importance[1])
        return importance, {group.name: weight_scores(group, norm) for group in groups}
    if importance == "random":
        return importance, {group.name: random_scores(group, generator) for group in groups}
    if data is None:
        raise InputError(f'importance "{importance}" needs data: an iterable of (x, y) batches of the task.')
    scores = taylor_scores(network, groups, data, loss)
    return importance, layer_normalised(scores) if importance == "hybrid" else scores


def weight_scores(group: Group, norm: int) -> Tensor:
    """Norm [live] of each live unit's weights, over all layers that produce the unit (paper, section 4)."""
    rows = [
        layer.live_weight().detach().abs().pow(norm).reshape(group.segments.live, -1).sum(1)
        if layer.weight.numel()
        else layer.weight.new_zeros(group.segments.live)
        for layer in group.producers.values()
    ]
    total = rows[0]
    for row in rows[1:]:
        total = total + row
    return total ** (1 / norm)


def random_scores(group: Group, generator: torch.Generator | None) -> Tensor:
    """Uniform random scores [live]."""
    return torch.rand(group.segments.live, generator=generator)


@outside_inference()
def taylor_scores(network: nn.Module, groups: Sequence[Group], data: Batches, loss: Loss) -> dict[str, Tensor]:
    """Mean over samples and pixels of |activation x gradient| for each live unit [live], over ``data``.

    Runs in evaluation mode, so live statistics stay as they are, and leaves no gradient behind. Raises InputError when
    ``data`` is empty.
    """
    scores = {group.name: torch.zeros(group.segments.live) for group in groups}
    samples = batch = 0

    def hook(group: Group) -> Callable[[StaircaseLayer, tuple[Tensor, ...], Tensor], Tensor | None]:
        def forward(layer: StaircaseLayer, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            dim, first = layer.unit_dim, layer.segments.frozen_total
            frozen, live = torch.split(output, [first, output.shape[dim] - first], dim)
            if not live.requires_grad or not live.shape[dim]:
                return None
            activation = live.detach()

            def backward(gradient: Tensor) -> None:
                accumulate(group, dim, (activation * gradient).abs())

            live.register_hook(backward)  # pyright: ignore[reportUnknownMemberType]  torch does not annotate it
            # The layer's output is put together from the slice, so that the gradient flows through the slice.
            return torch.cat([frozen, live], dim)

        return forward

    def accumulate(group: Group, dim: int, products: Tensor) -> None:
        # The loss is a mean over the batch. Undo that, so that batches of any size count sample by sample. A layer's
        # first dimension need not be the batch: it may hold windows of images, or tokens.
        products = products.movedim(dim, 0).flatten(1)
        by_unit = products.mean(1).view(group.segments.live, -1).sum(1)
        scores[group.name] += (by_unit * batch * batch).cpu()

    handles = [layer.register_forward_hook(hook(group)) for group in groups for layer in group.producers.values()]
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not parameters:
        raise InputError("taylor importance needs gradients, and no live parameter requires one: use importance='l2'.")
    device = parameters[0].device
    try:
        with evaluating(network), torch.enable_grad():
            for x, y in data:
                batch = samples_of(x)
                value = mean_loss(loss, network(each_of(x, lambda tensor: tensor.to(device))), y.to(device))
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


def grain_scores(scores: Tensor, grain: int, importance: str) -> Tensor:
    """One score [live / grain] for each grain, from each unit's score [live].

    A grain's score is the norm of its units' scores, as for tied producers, divided so that grains of any size compare.
    """
    power = 2 if importance == "l2" else 1
    return scores.cpu().view(-1, grain).pow(power).mean(1).pow(1 / power)


def _checked(groups: Sequence[Group], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scores by group name that a user gave. Raises InputError where they do not fit the groups."""
    known_names(given, [group.name for group in groups], "unit group", "the network")
    for group in groups:
        live, scores = group.segments.live, given.get(group.name)
        if not isinstance(scores, Tensor) or scores.shape != (live,) or not torch.isfinite(scores).all():
            raise InputError(
                f"scores for {group.name} must be a tensor of finite numbers, one for each of its {live} live units; "
                f"got {shown(scores)}."
            )
    return dict(given)

"""A routed forward pass: one pass of the body, the router, and the head of each sample's task."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..checking import flag, one_of, shown
from ..errors import InputError, RouterError
from ..layout import prefix
from ..modes import evaluating
from ..ops.staircase import read
from . import routing
from .base import BaseNetwork
from .inputs import Inputs, samples_of, tensors_of
from .routing import RULES, Prediction, Router


@torch.no_grad()
def predictions(network: BaseNetwork, x: Inputs, rules: Iterable[str]) -> dict[str, Prediction]:
    """See :meth:`EideticNetwork.predictions`."""
    with network.recalling():
        return _predictions(network, x, _known_rules(rules))


def _predictions(network: BaseNetwork, x: Inputs, rules: tuple[str, ...]) -> dict[str, Prediction]:
    tasks = network.finished_tasks
    if tasks == 0:
        raise RouterError("no task is finished, so there is nothing to route to: train a task first.")
    router = _router(network, rules)

    with evaluating(network):
        reads = (router.layers, router.inputs) if router is not None else ()
        features, read_by_router = routing_features(network, x, *reads)
        logits: list[Tensor] = []
        for task in range(tasks):
            with network.running(task):
                spans = prefix(network.wiring.features, task, tasks - 1)
                logits.append(network.heads[task](read(features, spans)))
        # With one finished task there is nothing to choose, whatever the rule.
        image = x if isinstance(x, Tensor) else None
        learned = features.new_zeros(len(features), tasks) if router is None else router(read_by_router, image)
        return {rule: routing.route(routing.task_scores(rule, logits, learned), logits) for rule in rules}


def routing_features(
    network: BaseNetwork, x: Inputs, layers: bool = False, inputs: bool = False
) -> tuple[Tensor, Tensor]:
    """See :meth:`EideticNetwork.routing_features`."""
    features, captured = _features_and_layers(network, x, flag("layers", layers))
    if flag("inputs", inputs):
        captured += [tensor.flatten(1).to(features.dtype) for tensor in tensors_of(x)]
    return features, torch.cat([features, *captured], 1) if captured else features


def _known_rules(rules: Iterable[str]) -> tuple[str, ...]:
    """The rules' names. Raises InputError for what is none."""
    if not isinstance(rules, Iterable) or isinstance(rules, (str, Tensor)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"rules must be a list of rules, each one of {', '.join(RULES)}; got {shown(rules)}.")
    return tuple(one_of("rule", rule, RULES) for rule in rules)


def _router(network: BaseNetwork, rules: tuple[str, ...]) -> Router | None:
    """The router, if one of the ``rules`` needs it. Raises RouterError where it does not know every finished task."""
    tasks, router = network.finished_tasks, network.router
    if tasks == 1 or not any(rule in routing.NEED_ROUTER for rule in rules):
        return None
    known = 0 if router is None else router.tasks
    if known != tasks:
        raise RouterError(
            f"the router knows {known} of {tasks} finished tasks: call net.train_router(loaders) with a loader for "
            "each finished task, or route without one (rule='entropy')."
        )
    return router


def _features_and_layers(network: BaseNetwork, x: Inputs, layers: bool) -> tuple[Tensor, list[Tensor]]:
    """The features [N, units] of all finished tasks and, with ``layers``, what every other group computes."""
    last = network.finished_tasks - 1
    if not layers:
        return network.compute_features(x, last), []

    in_features = {source.group for source in network.wiring.features}
    others = [group for group in network.groups if group.segments not in in_features]
    with routing.capturing(others) as captured:
        features = network.compute_features(x, last, compiled=False)  # compiled code calls no hooks
    if any(len(each) != samples_of(x) for each in captured):
        raise RouterError(
            "a router cannot read every layer of this network: some compute on parts of a sample (windows). Train it "
            "on the features alone, train_router(layers=False)."
        )
    return features, captured

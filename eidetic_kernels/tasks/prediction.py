"""A routed forward pass: one pass of the body, the router, and the head of each sample's task."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..errors import RouterError
from ..layout import prefix
from ..modes import evaluating, uncompiled
from ..ops.staircase import read
from . import routing
from .base import BaseNetwork
from .routing import Prediction


@torch.no_grad()
def predictions(network: BaseNetwork, x: Tensor, rules: Iterable[str]) -> dict[str, Prediction]:
    """See :meth:`EideticNetwork.predictions`."""
    tasks, rules = network.finished_tasks, tuple(rules)
    if tasks == 0:
        raise RouterError("no task is finished, so there is nothing to route to.")
    needed = tasks > 1 and any(rule in routing.NEED_ROUTER for rule in rules)
    if needed and (network.router is None or network.router.tasks != tasks):
        known = 0 if network.router is None else network.router.tasks
        raise RouterError(
            f"the router knows {known} of {tasks} finished tasks: call net.train_router(loaders) with a loader for "
            "each finished task, or route without one (rule='entropy')."
        )
    with evaluating(network):
        reads = (network.router.layers, network.router.inputs) if needed else ()
        features, read_by_router = routing_features(network, x, *reads)
        logits = []
        for task in range(tasks):
            with network.running(task):
                spans = prefix(network.wiring.features, task, tasks - 1)
                logits.append(network.heads[task](read(features, spans)))
        learned = network.router(read_by_router, x) if needed else features.new_zeros(len(features), tasks)
        return {rule: routing.route(routing.task_scores(rule, logits, learned), logits) for rule in rules}


def routing_features(
    network: BaseNetwork, x: Tensor, layers: bool = False, inputs: bool = False
) -> tuple[Tensor, Tensor]:
    """The features of all finished tasks' units [N, units], and what a router reads: those, with ``layers`` what
    every other unit group computes, and with ``inputs`` the input itself, side by side."""
    features, captured = _features_and_layers(network, x, layers)
    if inputs:
        captured.append(x.flatten(1).to(features.dtype))
    return features, torch.cat([features, *captured], 1) if captured else features


def _features_and_layers(network: BaseNetwork, x: Tensor, layers: bool) -> tuple[Tensor, list[Tensor]]:
    last = network.finished_tasks - 1
    if not layers:
        return network.compute_features(x, last), []
    given = {source.group for source in network.wiring.features}
    others = [group for group in network.groups if group.segments not in given]
    with uncompiled(network), routing.capturing(others) as captured:  # compiled code calls no hooks
        features = network.compute_features(x, last)
    if any(len(each) != len(x) for each in captured):
        raise RouterError(
            "a router cannot read every layer of this network, since some compute on parts of a sample (windows) "
            "or without samples (parameters): train it on the features alone, train_router(layers=False)."
        )
    return features, captured

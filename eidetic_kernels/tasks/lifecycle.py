"""The life of a task: it begins with fresh live units and ends with frozen ones (paper, section 3)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.optim import Optimizer

from ..checking import LARGEST, known_names, whole_number
from ..errors import CapacityError, TaskError
from ..layers.succession import retire
from ..layout import Segments
from . import checks
from .base import BaseNetwork, head_of
from .optimizer_state import HeadWatch, check_current, watch_head
from .snapshots import live_tensors
from .transfer import transferring


@dataclass(frozen=True)
class Beginning:
    """What the next task gets, checked before anything changes.

    Args:
        task: the task's index.
        live: how many new units each unit group gets, in the order of ``network.groups``.
        transfer: whether each layer's new units may read earlier tasks' units, by path; "head" is the task's head.
    """

    task: int
    live: tuple[int, ...]
    transfer: dict[str, bool]


def plan_next(
    network: BaseNetwork,
    t: int,
    num_classes: int | None,
    forward_transfer: bool | Mapping[str, bool],
    max_units: int | float | Mapping[str, int | float] | None,
    optimizer: Optimizer | None,
) -> Beginning:
    """Check what :meth:`EideticNetwork.prepare_for_task` is given. Nothing changes: :func:`begin` does that."""
    training = network.current_task is not None
    expected, t = network.finished_tasks + training, whole_number("t", t, -LARGEST)
    if t != expected:
        raise TaskError(
            f"prepare_for_task({t}) is out of order: "
            + (f"task {network.current_task} is in training and " if training else "")
            + f"the next task is {expected}."
        )
    if num_classes is not None:
        whole_number("num_classes", num_classes, 1)
    checks.trainable(network)
    if optimizer is not None:
        check_current(checks.an_optimizer(optimizer), network.parameters())

    transfer = checks.choices(forward_transfer, [*transferring(network.segmented_layers()), "head"])
    freed = [group.segments.live if t == 0 else group.segments.free for group in network.groups]
    if training:
        freed = [group.segments.free - group.segments.live for group in network.groups]
    known_names(max_units, [group.name for group in network.groups], "unit group", "the network")
    live = tuple(checks.cap_units(group, free, max_units) for group, free in zip(network.groups, freed))
    _check_disjoint(network, transfer, live)

    if training:
        check_finishable(network)
    if not any(live):
        warnings.warn(
            f"no layer has a free unit for task {t}: only its head will learn, on frozen features. "
            "Widen the network, or cap what earlier tasks take (max_units).",
            stacklevel=3,
        )
    return Beginning(t, live, transfer)


def begin(network: BaseNetwork, plan: Beginning) -> None:
    """Create the live units of the next task (paper, section 3, step IV). No task may be in training."""
    for group, units in zip(network.groups, plan.live):
        if plan.task == 0:  # the weights at hand (torch's initialisation, or pre-trained ones) are task 0's
            network.cut_group(group, torch.arange(units))
        else:
            group.segments.recycle(units)

    layers = network.segmented_layers()
    choosing = transferring(layers)
    for path, layer in layers:
        if path in plan.transfer:  # parts of a layer that was divided since are not; they read nested
            if plan.task == 0:
                choosing[path].forward_transfer = (plan.transfer[path],)
            else:
                choosing[path].renew_live(plan.transfer[path])
        elif plan.task:
            layer.renew_live()
    network.current_task = plan.task
    network.head_forward_transfer = plan.transfer["head"]


def add_head(network: BaseNetwork, num_classes: int) -> None:
    """See :meth:`EideticNetwork.add_head`."""
    t = network.current_task
    if t is None or len(network.heads) > t:
        raise TaskError("a head can be added once, to a task that is in training.")
    num_classes = whole_number("num_classes", num_classes, 1)

    segments = Segments(num_classes, frozen=(0,) * t)
    head = network.make_head(segments, (True,) * t + (network.head_forward_transfer,))
    head.train(network.training)
    if t:  # an optimizer that is kept finds the new head where it held the last one
        last = head_of(network, t - 1)
        retire(last.weight, head.weight)
        retire(last.bias, head.bias)
    network.heads.append(head)
    watch_head(network)


def freeze(network: BaseNetwork) -> int:
    """Turn the live units, statistics and head into buffers (Persistence, paper section 3). Returns the task.

    Raises TaskError when no task is in training, or when a live tensor is not finite.
    """
    if network.current_task is None:
        raise TaskError("no task is in training: call prepare_for_task first.")
    check_finishable(network)

    head = network.live_head
    for _, layer in network.segmented_layers():
        layer.freeze_live()
    head.freeze_live()
    for group in network.groups:
        group.segments.freeze()
    head.segments.freeze()

    for _, layer in network.segmented_layers():
        layer.renew_live()
    head.close_live()

    task, network.current_task = network.current_task, None
    return task


def check_finishable(network: BaseNetwork) -> None:
    """Raise TaskError where a live tensor is not finite, StaleOptimizerError where optimizers left the head out."""
    watch: HeadWatch | None = getattr(network.live_head.weight, HeadWatch.name, None)
    if watch is not None and watch.untrained:
        raise watch.error()
    for path, layer in [*network.segmented_layers(), ("the head", network.live_head)]:
        for name, tensor in live_tensors(layer):
            if not torch.isfinite(tensor).all():
                raise TaskError(
                    f"{path}.{name} holds NaN or infinity; task {network.current_task} would be frozen with it. "
                    "Restore a snapshot (net.restore) and train with a lower learning rate."
                )


def align(network: BaseNetwork, multiple: int | Mapping[str, int]) -> None:
    """See :meth:`EideticNetwork.align`."""
    known_names(multiple, [group.name for group in network.groups], "unit group", "the network")
    given = multiple if isinstance(multiple, Mapping) else {group.name: multiple for group in network.groups}
    wanted = {name: whole_number(f"multiple for {name}", units, 1, unit="units") for name, units in given.items()}
    for group in network.groups:
        if group.name in wanted:
            group.segments.align(wanted[group.name])


def widen(network: BaseNetwork, width: int | Mapping[str, int]) -> None:
    """See :meth:`EideticNetwork.widen`."""
    known_names(width, [group.name for group in network.groups], "unit group", "the network")
    given = [
        width.get(group.name, group.segments.width) if isinstance(width, Mapping) else width for group in network.groups
    ]
    wanted = [whole_number(f"width for {group.name}", each, unit="units") for group, each in zip(network.groups, given)]
    for group, units in zip(network.groups, wanted):
        if units < group.segments.width:
            raise CapacityError(
                f"{group.name} cannot shrink from {group.segments.width} to {units} units; give a larger width."
            )
    for group, units in zip(network.groups, wanted):
        group.segments.widen(-(-units // group.segments.grain) * group.segments.grain)


def _check_disjoint(network: BaseNetwork, transfer: Mapping[str, bool], live: tuple[int, ...]) -> None:
    """Raise CapacityError where a layer may read the new units of its input only, and there are none."""
    units = {group.segments: count for group, count in zip(network.groups, live)}
    for path, sources in [*network.wiring.sources.items(), ("head", network.wiring.features)]:
        counts = [units[s.group] for s in sources if isinstance(s.group, Segments)]
        if not transfer[path] and counts and not any(counts):
            raise CapacityError(
                f"{path} is to read this task's own units only (forward_transfer=False), but its input has no free "
                "unit left. Allow forward transfer there, widen the network, or cap what tasks take (max_units)."
            )

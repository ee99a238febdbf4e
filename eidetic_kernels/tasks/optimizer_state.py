"""Keeps a user's optimizer up to date with parameters that are cut, replaced and added."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ..checking import explained, real_number, shown
from ..errors import StaleOptimizerError
from ..layers import EideticLinear
from ..layers.succession import select, succession
from .base import BaseNetwork


def adopt(network: BaseNetwork, optimizer: Optimizer) -> None:
    """See :meth:`EideticNetwork.adopt`."""
    check_current(optimizer, network.parameters())
    has_head = len(network.heads) > (network.current_task or 0)
    follow(optimizer, network.live_head.parameters() if has_head else ())


def follow(optimizer: Optimizer, newcomers: Iterable[nn.Parameter]) -> None:
    """Bring ``optimizer`` up to date.

    Each retired parameter is replaced by its successor in the same parameter group, and its state is cut along with it.
    Those of ``newcomers`` (a new head's parameters) that the optimizer does not hold yet join the first group.
    Everything else is left alone.
    """
    before = _held(optimizer)
    held: set[int] = set()
    for group in optimizer.param_groups:
        followed: list[nn.Parameter] = []
        for old in group["params"]:
            new = _successor(optimizer, old)
            if new is not None and id(new) not in held:
                held.add(id(new))
                followed.append(new)
        group["params"][:] = followed  # in place: LBFGS keeps the list itself
    optimizer.param_groups[0]["params"].extend(p for p in newcomers if id(p) not in held)
    if isinstance(optimizer, torch.optim.LBFGS) and _held(optimizer) != before:
        optimizer._numel_cache = None  # pyright: ignore[reportPrivateUsage]  LBFGS counts its numbers only once
        if optimizer.state:  # which is that of all parameters in one vector, kept for the first one
            optimizer.state.clear()
            _reset("of LBFGS", "one vector of all parameters")


def _held(optimizer: Optimizer) -> list[int]:
    return [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]


def check_current(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Raise StaleOptimizerError unless ``optimizer`` holds, or can be brought to hold, one of ``parameters``."""
    current = {id(p) for p in parameters}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            last: nn.Parameter | None = parameter
            while last is not None and (record := succession(last)) is not None:
                last = record.successor
            if id(last) in current:
                return
    raise StaleOptimizerError(
        "the optimizer holds none of this network's current parameters, so training it would change nothing. "
        "Create it from net.parameters() after prepare_for_task, or pass the one that trained the task before."
    )


def default_optimizer(parameters: Iterable[nn.Parameter], lr: float = 1e-3) -> torch.optim.Adam:
    """Adam with its fused kernel, which is 9 times faster on a CPU than the unfused default and no slower elsewhere.

    Raises InputError for what are no parameters, and a learning rate that is no finite number of 0 or more.
    """
    lr = real_number("lr", lr, 0.0)
    with explained(f"parameters must be those of a network, such as net.parameters(); got {shown(parameters)}"):
        return torch.optim.Adam(parameters, lr=lr, fused=True)


def _successor(optimizer: Optimizer, parameter: nn.Parameter) -> nn.Parameter | None:
    """What replaces ``parameter`` by now; None if nothing does. Its optimizer state is moved and cut on the way."""
    while (record := succession(parameter)) is not None:
        state = optimizer.state.pop(parameter, None)
        if state and record.cut is not None and record.successor is not None:
            kept = _cut_state(state, parameter, *record.cut)
            if kept is not None:
                optimizer.state[record.successor] = kept
        if record.successor is None:
            return None
        parameter = record.successor
    return parameter


def _cut_state(
    state: Mapping[str, Any], parameter: nn.Parameter, rows: Tensor | None, columns: Tensor | None
) -> dict[str, Any] | None:
    """The state of ``parameter`` for what was kept of it; None, with a warning, where it cannot be cut.

    Tensors of the parameter's shape are cut as the parameter was. Scalars are kept.
    """
    kept: dict[str, Any] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            if isinstance(value, (list, tuple, dict)):
                return _reset(name, type(value).__name__)  # pyright: ignore[reportUnknownArgumentType]
            kept[name] = value
        elif value.dim() == 0:
            kept[name] = value
        elif value.shape == parameter.shape:
            kept[name] = select(value, rows, columns)
        else:
            return _reset(name, f"shape {tuple(value.shape)} for a parameter of shape {tuple(parameter.shape)}")
    return kept


def _reset(name: str, found: str) -> None:
    warnings.warn(
        f"optimizer state {name!r} ({found}) cannot be cut along with a pruned parameter; the state of that "
        "parameter starts afresh.",
        stacklevel=5,
    )


class HeadWatch:
    """Whether any optimizer that steps holds the head in training.

    The head is made by ``prepare_for_task``, so an optimizer made before it does not hold it and would leave it
    untrained without a word. Several optimizers may share a network: one of them must hold the head.
    """

    name = "eidetic_watch"  # the attribute by which live parameters know it

    def __init__(self, head: EideticLinear):
        self._head, self._held, self._missed = weakref.ref(head), False, 0

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()  # a network that is copied or unpickled makes a watch of its own

    def is_of(self, parameter: nn.Parameter) -> bool:
        """Whether ``parameter`` is the head's weight."""
        head = self._head()
        return head is not None and parameter is head.weight

    @property
    def untrained(self) -> bool:
        """Whether optimizers stepped while the head had a gradient, and none of them held it."""
        return self._missed > 0 and not self._held

    def note_step(self, held: bool) -> None:
        """An optimizer of the body's parameters steps. Raises StaleOptimizerError when the head was left out twice."""
        head = self._head()
        self._held = self._held or held
        if not self._held and head is not None and head.weight.grad is not None:
            self._missed += 1
            if self._missed > 1:  # with several optimizers the one that holds the head may step second
                raise self.error()

    def error(self) -> StaleOptimizerError:
        return StaleOptimizerError(
            "no optimizer that stepped holds the head of the task in training, so the head would stay untrained: it "
            "was made after the optimizer. Create the optimizer from net.parameters() after prepare_for_task, or call "
            "net.adopt(optimizer), which adds the head. A head that is to stay as it is: "
            "net.live_head.requires_grad_(False)."
        )


def watch_head(network: BaseNetwork) -> None:
    """From now on, optimizers of the live parameters must not leave out the head in training, if there is one.

    A head that is watched stays so. One of a copied, unpickled or loaded network is not watched yet.
    """
    if network.current_task is None or len(network.heads) <= network.current_task:
        return
    if getattr(network.live_head.weight, HeadWatch.name, None) is not None:
        return
    watch = HeadWatch(network.live_head)
    for parameter in network.parameters():
        setattr(parameter, HeadWatch.name, watch)


def _refuse_stale(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise StaleOptimizerError before a step that holds a parameter no network uses, or leaves a head out."""
    watches: dict[HeadWatch, bool] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            watch: HeadWatch | None = getattr(parameter, HeadWatch.name, None)
            if watch is not None:
                watches[watch] = watches.get(watch, False) or watch.is_of(parameter)
            if succession(parameter) is not None:
                raise StaleOptimizerError(
                    f"this {type(optimizer).__name__} holds a parameter (now replaced, shape "
                    f"{tuple(parameter.shape)}) of a network that was pruned, restored or prepared for another task "
                    "since: its step would train nothing. Pass optimizer=... to net.prune, net.restore and "
                    "net.prepare_for_task, or create a new one from net.parameters()."
                )
    for watch, held in watches.items():
        watch.note_step(held)


register_optimizer_step_pre_hook(_refuse_stale)

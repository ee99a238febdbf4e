"""Where training goes back to when anything is raised: a task's last good state, and the modes of the call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.optim import Optimizer

from eidetic_kernels import EideticNetwork
from eidetic_kernels.tasks.base import device_of
from eidetic_kernels.tasks.transaction import State

from .training_state import TrainingState, written_tensors


class Modes:
    """The mode of every module of a network, what its passes run in this thread, and torch's own modes.

    Leaving a block puts them back, but Ctrl-C can hit just before Python gets there.
    """

    def __init__(self, network: EideticNetwork):
        self._modules = [(module, module.training) for module in network.modules()]
        self._passes = vars(network._scope)  # pyright: ignore[reportPrivateUsage]  of this thread
        self._running = dict(self._passes)
        self._device = device_of(network).type
        self._gradients, self._autocast = torch.is_grad_enabled(), torch.is_autocast_enabled(self._device)

    def put_back(self) -> None:
        """Let all be as it was."""
        for module, training in self._modules:
            module.training = training
        self._passes.update(self._running)
        torch.set_grad_enabled(self._gradients)
        torch.set_autocast_enabled(self._device, self._autocast)


@contextmanager
def modes_put_back(network: EideticNetwork) -> Iterator[None]:
    """Put modes back if anything is raised inside."""
    modes = Modes(network)
    try:
        yield
    except BaseException:
        modes.put_back()
        raise


class LastGood:
    """The last good state of a task's training, and the way back to it.

    Until the first state is kept, this is the state at the beginning, without the head that training may add. A task
    that is finished stays finished. Learning rates always go back to what they were at the beginning, and every module
    to the mode that it was in.

    Attributes:
        state: the state that was kept last; None before the first.
    """

    def __init__(self, network: EideticNetwork, optimizer: Optimizer | None):
        self.network, self.optimizer, self.task = network, optimizer, network.current_task
        self.state: TrainingState | None = None
        self._modes = Modes(network)
        self._rates = [] if optimizer is None else [group["lr"] for group in optimizer.param_groups]
        self._beginning: State | None = State(network, optimizer, written_tensors(network, optimizer))

    def begin(self, optimizer: Optimizer) -> None:
        """Name the optimizer, where training makes its own."""
        if self.optimizer is None:
            self.optimizer, self._rates = optimizer, [group["lr"] for group in optimizer.param_groups]

    def keep(self, state: TrainingState) -> None:
        """Let ``state`` be the one to go back to."""
        self.state = state
        self._beginning = None  # frees its copies

    def put_rates_back(self) -> None:
        """Let the learning rates be what they were at the beginning."""
        if self.optimizer is not None:
            for group, rate in zip(self.optimizer.param_groups, self._rates):
                group["lr"] = rate

    def put_back(self) -> None:
        """Go back to the last good state."""
        self._modes.put_back()
        if self.network.current_task == self.task:
            for parameter in self.network.parameters():
                parameter.grad = None  # frees what a step that was cut off left: memory may be short
            if self.state is not None and self.optimizer is not None:
                self.state.put_back(self.network, self.optimizer)
            elif self._beginning is not None:
                self._beginning.put_back()

        self.put_rates_back()


@contextmanager
def going_back(network: EideticNetwork, optimizer: Optimizer | None) -> Iterator[LastGood]:
    """Go back to the last good state if anything is raised inside, Ctrl-C and a lack of memory included."""
    good = LastGood(network, optimizer)
    try:
        yield good
    except BaseException:
        try:
            good.put_back()
        except BaseException:  # Ctrl-C was pressed again
            good.put_back()
            raise
        raise

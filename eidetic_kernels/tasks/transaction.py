"""All or nothing: a call that changes a network's structure and fails leaves the network as it was.

Structural calls replace tensors and never resize them, so references are enough to go back. :func:`atomic` notes what
every module and every unit group holds, and puts it back when anything is raised inside, KeyboardInterrupt and
MemoryError included.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import BusyError
from ..layers import SegmentedLayer
from ..modes import outside_inference


class OneThread:
    """Lets one thread at a time train a network or change its structure. Recall does not ask for it.

    A network in training mode belongs to the thread that trains it, between its steps, too: another thread must not
    change the mode.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._trainer: threading.Thread | None = None
        self._changes = 0  # odd while structure is changed

    def __deepcopy__(self, memo: dict[int, Any]) -> OneThread:
        return OneThread()

    def __reduce__(self) -> tuple[type[OneThread], tuple[()]]:
        return OneThread, ()

    @contextmanager
    def held(self) -> Generator[None, None, None]:
        """Raise BusyError where another thread is inside."""
        if not self._lock.acquire(blocking=False):
            raise BusyError(
                "another thread trains or changes this network at this moment. Training is one thread's; any number "
                "of threads may recall and predict in evaluation mode (net.eval())."
            )
        try:
            yield
        finally:
            self._lock.release()

    def begin_training(self) -> None:
        """The calling thread trains the network from now on. Called where it is held."""
        self._trainer = threading.current_thread()

    def end_training(self) -> None:
        """No thread trains the network any more."""
        self._trainer = None

    @contextmanager
    def changing(self) -> Generator[None, None, None]:
        """As :meth:`held`, for what changes structure; recalls that fail meanwhile name the reason."""
        with self.held():
            self._changes += 1
            try:
                yield
            finally:
                self._changes += 1

    @contextmanager
    def recalling(self) -> Generator[None, None, None]:
        """Raise BusyError in place of what was raised inside while another thread changed structure."""
        before = self._changes
        try:
            yield
        except Exception as error:
            if self._changes == before and not (before % 2 and self._held_elsewhere()):
                raise
            raise BusyError(
                "another thread changed this network at this moment (prepare_for_task, prune, finish_task, widen ...), "
                "so it could not answer. Call again."
            ) from error

    def _held_elsewhere(self) -> bool:
        if self._lock.acquire(blocking=False):
            self._lock.release()
            return False
        return True

    def check_mode_may_change(self) -> None:
        """Raise BusyError where another thread that lives trains the network."""
        trainer = self._trainer
        trains = trainer is not None and trainer is not threading.current_thread() and trainer.is_alive()
        if trains or self._held_elsewhere():
            raise BusyError(
                "another thread trains this network. To predict, certify, evaluate or extract would change the mode "
                "between two of its steps. Wait until that thread has finished the task or has called net.eval(), or "
                "use a copy that was made before (copy.deepcopy)."
            )


@contextmanager
def atomic(network: nn.Module, optimizer: Optimizer | None = None, *written: Tensor) -> Generator[None, None, None]:
    """Put ``network`` and ``optimizer`` back to what they are now if anything is raised inside, and raise it again.

    ``written``: tensors that are written in place inside; their values are copied first. All others must be replaced.
    What is made inside can be trained, also where the caller is in ``torch.inference_mode()``.
    """
    with outside_inference():
        before = State(network, optimizer, written)
        try:
            yield
        except BaseException:
            before.put_back()
            raise


class State:
    """References to all that structural calls change, and copies of the containers that hold them.

    ``written``: tensors whose values are copied too.
    """

    def __init__(self, network: nn.Module, optimizer: Optimizer | None, written: Sequence[Tensor]):
        self.objects: list[tuple[object, dict[str, Any]]] = []
        self.containers: list[tuple[Any, Any]] = []
        self.gradients: list[tuple[nn.Parameter, Tensor | None]] = []
        for module in network.modules():
            self._note(module)
            for parameter in module._parameters.values():  # pyright: ignore[reportPrivateUsage]
                if parameter is not None:
                    self._note(parameter)
                    self.gradients.append((parameter, parameter.grad))

        layers = [module for module in network.modules() if isinstance(module, SegmentedLayer)]
        self.segments = list({id(layer.segments.units): layer.segments.units for layer in layers}.values())
        for segments in self.segments:
            self._note(segments)
        if optimizer is not None:
            self._note_container(optimizer.param_groups)
            for group in optimizer.param_groups:
                self._note_container(group)
                self._note_container(group["params"])
            self._note_container(optimizer.state)
            for entry in optimizer.state.values():
                self._note_container(entry)
        self.values = [(tensor, tensor.detach().clone()) for tensor in written]

    def put_back(self) -> None:
        """Let everything be as it was noted. May be called again if it was cut off."""
        later = [segments.version for segments in self.segments]
        for each, attributes in self.objects:
            vars(each).clear()
            vars(each).update(attributes)
        for container, content in self.containers:
            container.clear()
            if isinstance(container, list):
                cast("list[Any]", container).extend(content)
            else:
                container.update(content)
        for parameter, gradient in self.gradients:
            parameter.grad = gradient
        for tensor, value in self.values:
            tensor.data.copy_(value)
        for segments, version in zip(self.segments, later):
            segments.version = version + 1  # what was derived from the sizes in between is out of date

    def _note(self, each: object) -> None:
        self.objects.append((each, dict(vars(each))))
        for value in vars(each).values():
            if isinstance(value, (list, dict, set)):
                self._note_container(value)

    def _note_container(self, container: Any) -> None:
        self.containers.append((container, container.copy()))

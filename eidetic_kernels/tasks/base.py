"""What a network of tasks is: its wiring, its heads, and the forward pass of any of its tasks."""

from __future__ import annotations

import functools
from collections.abc import Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

# What torch itself uses, in its optimizers.
from torch._compile import _disable_dynamo  # pyright: ignore[reportPrivateUsage]
from torch.optim import Optimizer

from ..checking import REFUSALS, first_line, shown
from ..errors import InputError, TaskError
from ..layers import CONVOLUTIONS, EideticLinear, Scope, SegmentedLayer, StaircaseLayer
from ..layout import LIVE, Segments
from ..modes import evaluating, outside_inference
from ..wiring import tracing
from ..wiring.declared import SAMPLES, check_declared
from ..wiring.groups import Group, Wiring
from .checks import an_optimizer
from .foreign import Foreign, freeze_foreign
from .inputs import Inputs, arguments_of, each_of, tensors_of
from .joining import check_joining, join_layers
from .probes import Probes
from .record import TaskRecord
from .routing import Router
from .transaction import OneThread, atomic

# Children of a network that hold no body: users cannot give these names to layers.
OWN_MODULES = frozenset({"heads", "router", "probes"})


class BaseNetwork(nn.Module):
    """A body whose units belong to tasks, one head for each task, and a router.

    Users subclass :class:`~eidetic_kernels.EideticNetwork`, which adds the calls that change a network.

    Attributes:
        heads: one :class:`~eidetic_kernels.EideticLinear` for each task that has classes, in task order.
        router: the task classifier; None until it is trained.
        router_fingerprint: SHA-256 of the router's tensors and settings when it became this network's; None without.
        probes: samples of each task, by which certificates compare its answers.
        records: one for each finished task, see :meth:`~eidetic_kernels.EideticNetwork.certify`.
        current_task: the task in training; None between tasks.
        inputs: of a converted network, whether each input is floating point, by name; empty: one tensor, which is.
        input_shape: the shape of one sample that the network was given last; None before the first. With several inputs
            that of the first one.
    """

    # Why a saved network of this class cannot be built from its arguments, and what to do; None: it can.
    rebuilt_by: str | None = None
    # What the network was constructed with: positional arguments, and those given by name.
    constructor_arguments: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any):
        network = super().__new__(cls)
        network.__dict__["constructor_arguments"] = (args, kwargs)
        return network

    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList()
        self.router_fingerprint: str | None
        self.router: Router | None = None
        self.probes = Probes()
        self.records: list[TaskRecord] = []
        self.current_task: int | None = None
        self.head_forward_transfer = True
        self.input_shape: tuple[int, ...] | None = None
        self._scope = Scope()
        self._one_thread = OneThread()
        self._wiring: Wiring | None = None
        self.inputs: dict[str, bool] = {}
        self._shapes: tuple[torch.Size, ...] | None = None  # of what went through last
        self._foreign = Foreign()
        self._declared_unchecked = False

    def __setattr__(self, name: str, value: Any) -> None:
        own = isinstance(value, (Router, nn.ModuleList, Probes)) and name in OWN_MODULES
        if isinstance(value, (nn.Module, Tensor)) and name in _reserved(type(self)) and not own:
            raise InputError(
                f"{name!r} is a name of EideticNetwork itself and cannot name a layer: call it something else, such as "
                f"{name}_layer."
            )
        super().__setattr__(name, value)
        if name == "router":
            self.router_fingerprint = value.fingerprint() if isinstance(value, Router) else None

    def connections(self) -> dict[str, str | tuple[str, ...]] | None:
        """Override where ``forward`` cannot be traced: which layer reads which.

        Returns a mapping from each layer's path, in order of execution, to what the layer reads: "input", another
        layer's path, or a tuple of paths that are added together. "output" names the features. For a residual block::

            {"conv1": "input", "bn1": "conv1", "conv2": "bn1", "bn2": "conv2", "output": ("bn1", "bn2")}

        None (the default) traces ``forward`` with torch.fx.
        """
        return None

    @property
    def wiring(self) -> Wiring:
        """The unit groups and who reads them, found when first needed.

        Raises ConversionError where they cannot be found, TaskError for a layer that is not fresh.
        """
        if self._wiring is None:
            with atomic(self):
                self._wire(self._find_wiring())
        return cast(Wiring, self._wiring)

    @property
    def unchecked(self) -> bool:
        """Whether the wiring was declared by hand, and the pass that it is held against is still to come."""
        return self._declared_unchecked

    @property
    def groups(self) -> tuple[Group, ...]:
        """The unit groups, in order of execution."""
        return self.wiring.groups

    @property
    def finished_tasks(self) -> int:
        """How many tasks are finished."""
        return len(self.heads) - (self.current_task is not None and len(self.heads) > self.current_task)

    @property
    def num_classes(self) -> list[int]:
        """The number of classes of each task that has a head."""
        return [head_of(self, task).out_features for task in range(len(self.heads))]

    @property
    def live_head(self) -> EideticLinear:
        """The head of the task in training. Raises TaskError where there is none."""
        if self.current_task is None or len(self.heads) <= self.current_task:
            raise TaskError("no head is in training: call prepare_for_task(t, num_classes=...) first.")
        return head_of(self, self.current_task)

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Live parameters and the head in training: all that an optimizer may see (Persistence, paper section 3).

        Parameters of layers without live units are empty tensors. They are listed too, so that an optimizer that holds
        them finds their successors.
        """
        finished = (self.heads[task] for task in range(self.finished_tasks))
        fixed = {id(p) for part in (*finished, self._foreign) for p in part.parameters()}
        if self._wiring is not None:
            fixed.update(id(p) for p in self._parameters.values())
        for name, parameter in super().named_parameters(prefix, recurse, remove_duplicate):
            if id(parameter) not in fixed:
                yield name, parameter

    def train(self, mode: bool = True):
        """As torch has it, but that modules of no task stay in evaluation mode for ever; see :mod:`.foreign`.

        Raises BusyError for evaluation mode where another thread trains the network.
        """
        if not mode:
            self.check_mode_may_change()
        super().train(mode)
        self._foreign.eval()
        if not mode:
            self._one_thread.end_training()
        return self

    def make_head(self, segments: Segments, forward_transfer: tuple[bool, ...]) -> EideticLinear:
        """A head for ``segments`` on the features, which does not join ``heads`` yet.

        ``forward_transfer`` says of each segment, the live one last, whether it reads earlier tasks' features.
        """
        columns = sum(source.columns(None) for source in self.wiring.features)
        like = next(layer for _, layer in self.segmented_layers() if isinstance(layer, StaircaseLayer)).weight
        head = EideticLinear(columns, segments.width, device=like.device, dtype=like.dtype)
        head.answers = True
        head.wire(segments, self.wiring.features, self._scope)
        head.forward_transfer = forward_transfer
        if not forward_transfer[-1]:
            head.renew_live(False)
        return head

    # torch.compile compiles forward. Checks and the choice of what runs stay in Python. The decorator is
    # torch.compiler.disable, but it imports the compiler (900 modules, as long as torch itself) at the first call only.
    @_disable_dynamo(recursive=False)
    def __call__(self, x: Inputs, task: int | None = None) -> Tensor:
        """Logits [N, classes] of the task in training or, in evaluation mode, of any task.

        Recalling finished task k runs only the units that k may read, with the same shapes for ever. The same batch
        therefore gives the same bits on the same device, whatever was learned since (P1).

        Args:
            x: the input [N, ...]; floating point, if it is no converted network's that takes whole numbers. Where
                forward takes several, a tuple of them, or a mapping from its parameters' names.
            task: whose head answers; None is the task in training.

        Raises:
            TaskError: the task is unknown, or it is finished and the network is in training mode.
            BusyError: another thread trains the network or changes its structure at this moment. In evaluation mode
                any number of threads may call.
            InputError: an input that the network cannot take.
        """
        with self._one_thread.held() if self.training else self._one_thread.recalling():
            task, scope = self._resolve(task)
            if self.training:
                self._one_thread.begin_training()
            features = self.compute_features(x, scope)
            with self._scope.running(scope, features.requires_grad and _requires_grad(x)):
                head = self.heads[task]
                return head(features) if self._may_be_compiled(scope) else _as_python(head, features)

    @_disable_dynamo(recursive=False)
    def compute_features(self, x: Inputs, task: int | None = None, compiled: bool = True) -> Tensor:
        """What ``forward`` returns, from all units present (``task`` None) or from the prefix of finished ``task``.

        ``compiled=False``: as Python, also where the network was compiled (``net.compile()``). A finished task always
        runs so: compiled code rounds otherwise, and otherwise again when it is compiled again. So does a task that took
        none of a convolution's units: torch.compile does not take images without channels.

        Returns features [N, columns]. Raises TaskError for a task that is not finished, InputError for an input that
        the network cannot take.
        """
        tensors = self._check_input(x)
        wiring = self.wiring
        live_only = self._scope.live_only and type(task) is int and task == LIVE
        if task is not None and not live_only and (type(task) is not int or not 0 <= task < self.finished_tasks):
            raise TaskError(f"task {shown(task)} is not one of the {self.finished_tasks} finished tasks.")
        if live_only and _requires_grad(x):
            raise InputError(
                "the input requires grad, but cached frozen features have none. Turn the cache off or detach the input."
            )

        if self._declared_unchecked and task is None:
            self._check_declared(x)
        self._derive(task)
        with self._scope.running(task, _requires_grad(x)), self._refusals_explained(tensors):
            compiled = compiled and self._may_be_compiled(task)
            args, kwargs = arguments_of(x)
            run = super().__call__ if compiled else functools.partial(_as_python, self)  # pyright: ignore[reportUnknownMemberType]
            features = cast(Tensor, run(*args, **kwargs))
        columns = sum(source.columns(task) for source in wiring.features)
        if not isinstance(features, Tensor) or features.dim() != 2 or features.shape[1] != columns:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(
                f"forward must return features, a tensor [N, {columns}]; it returned {shown(features)}. "
                "Does the input have the size the network was built for?"
            )

        self.input_shape, self._shapes = tuple(tensors[0].shape[1:]), _sample_shapes(tensors)
        if self.current_task is not None and task in (None, LIVE):
            self.probes.note(self.current_task, x, self.training)
        return features

    def _may_be_compiled(self, task: int | None) -> bool:
        """Whether a pass may run compiled code: in training, unless a convolution makes no units in it."""
        if task not in (None, LIVE):
            return False
        empty = (group for group in self.groups if not group.segments.present(task))
        return not any(isinstance(layer, CONVOLUTIONS) for group in empty for layer in group.producers.values())

    def _check_declared(self, x: Inputs) -> None:
        """Hold the wiring that ``connections()`` declares against what forward does with a few samples, once."""
        self._declared_unchecked = False
        try:
            with outside_inference(), evaluating(self), torch.enable_grad():
                layers = dict(self.segmented_layers())
                samples = each_of(x, lambda tensor: tensor[:SAMPLES].detach().clone())
                check_declared(layers, self.wiring, lambda: self.compute_features(samples, compiled=False))
        except BaseException:
            self._declared_unchecked = True
            raise

    @contextmanager
    def changing(self, optimizer: Optimizer | None = None, *written: Tensor) -> Generator[None, None, None]:
        """For calls that change structure: one thread at a time, all or nothing; see :func:`~.transaction.atomic`."""
        if optimizer is not None:
            an_optimizer(optimizer)
        with self._one_thread.changing(), atomic(self, optimizer, *written):
            yield

    @contextmanager
    def training_here(self) -> Generator[None, None, None]:
        """The calling thread trains the network inside. Raises BusyError where another one is about it."""
        with self._one_thread.held():
            self._one_thread.begin_training()
            yield

    def recalling(self) -> AbstractContextManager[None]:
        """Raises BusyError for what fails inside because another thread changes the network's structure meanwhile."""
        return self._one_thread.recalling()

    def check_mode_may_change(self) -> None:
        """Raise BusyError where another thread trains the network."""
        if self.current_task is not None:
            self._one_thread.check_mode_may_change()

    def running(self, task: int | None) -> AbstractContextManager[None]:
        """Layers called inside run the prefix of finished task ``task``; for heads called apart from the body."""
        return self._scope.running(task, False)

    def running_live(self) -> AbstractContextManager[None]:
        """Passes of the task in training run live units alone inside; see :class:`~.frozen_features.FrozenFeatures`."""
        return self._scope.running_live()

    def traced(self) -> tuple[fx.Graph, nn.Module]:
        """The graph of ``forward`` and the module that its paths start from. Raises ConversionError."""
        return tracing.graph_of(self), self

    def as_architecture(self) -> None:
        """Undo what construction did beyond building layers. Called on a copy that will be filled from a file."""

    def segmented_layers(self) -> list[tuple[str, SegmentedLayer]]:
        """(path, layer) of the body's segmented layers, without the heads."""
        heads = set(self.heads)
        named = cast("Iterator[tuple[str, nn.Module]]", self.named_modules())
        return [(path, module) for path, module in named if isinstance(module, SegmentedLayer) and module not in heads]

    def cut_group(self, group: Group, keep: Tensor) -> None:
        """Keep only the live units ``keep`` (int64 [kept], ascending) of ``group``.

        Every layer that produces, normalises or reads the others is cut.
        """
        if len(keep) == group.segments.live:
            return
        for layer in group.layers:
            layer.cut_live(layer.kept(keep))
        named = self.segmented_layers()
        readers = [cast(StaircaseLayer, layer) for path, layer in named if path in self.wiring.sources]
        if self.current_task is not None and len(self.heads) > self.current_task:
            readers.append(self.live_head)
        for layer in readers:
            layer.cut_columns({group.segments: keep})
        group.segments.prune(len(keep))

    def _find_wiring(self) -> Wiring:
        connections = self.connections()
        self._declared_unchecked = connections is not None
        wiring = tracing.trace(self) if connections is None else tracing.declare(self, connections)
        check_joining(wiring, self.segmented_layers())
        return wiring

    def _wire(self, wiring: Wiring) -> None:
        join_layers(self, wiring, self._scope)
        self._wiring = wiring
        self._foreign = freeze_foreign(self, OWN_MODULES)

    def _resolve(self, task: int | None) -> tuple[int, int | None]:
        """Which head answers, and which prefix runs (None: everything present; LIVE: live units alone)."""
        current, finished = self.current_task, self.finished_tasks
        if task is None:
            if current is None:
                raise TaskError(
                    f"no task is in training: name one of the {finished} finished tasks (net(x, task=k)), let the "
                    "router choose (net.predict(x)), or call prepare_for_task first."
                )
            task = current
        if type(task) is int and task == current:
            self.live_head  # noqa: B018  raises while the task has no head
            return task, LIVE if self._scope.live_only else None

        if type(task) is not int or not 0 <= task < finished:
            raise TaskError(
                f"task {shown(task)} is unknown: finished tasks are 0..{finished - 1}."
                if finished
                else f"task {shown(task)} is unknown: no task is finished."
            )
        if self.training:
            raise TaskError(f"task {task} is finished; recalling it needs evaluation mode: call net.eval() first.")
        return task, task

    def _check_input(self, x: Inputs) -> tuple[Tensor, ...]:
        """The tensors of ``x``. Raises InputError for what is none, and for other inputs than the network takes."""
        tensors = tensors_of(x)
        takes = self.inputs or dict.fromkeys(x if isinstance(x, Mapping) else map(str, range(len(tensors))), True)
        if (set(x) != set(takes)) if isinstance(x, Mapping) else (len(tensors) != len(takes)):
            given = ", ".join(map(repr, x)) if isinstance(x, Mapping) else f"{len(tensors)} without names"
            raise InputError(
                f"the network takes {', '.join(map(repr, takes))}; got {given}. Give net a tuple of all of them, or a "
                "mapping from these names."
            )
        for name, tensor in zip(x if isinstance(x, Mapping) else takes, tensors, strict=True):
            what = f"the input {name!r}" if len(takes) > 1 else "the input"
            if tensor.is_floating_point() and not takes[name]:
                raise InputError(f"{what} must be whole numbers (indices of an embedding, a mask); got {tensor.dtype}.")
            if takes[name] and not tensor.is_floating_point():
                raise InputError(
                    f"{what} must be floating point, got {tensor.dtype}: convert it, x.float() (and / 255 for pixels)."
                )
        return tensors

    @_disable_dynamo
    def _derive(self, task: int | None) -> None:
        """Let every layer derive what it needs for this pass; see :meth:`SegmentedLayer.derived`."""
        for group in self.groups:
            for layer in group.layers:
                layer.derived(task)

    @contextmanager
    def _refusals_explained(self, tensors: tuple[Tensor, ...]) -> Generator[None, None, None]:
        """If the pass refuses the input: put running statistics back, and say in words of the input what torch says.

        The layers before the one that refuses it have already moved theirs. Only an input unlike the last one that went
        through can be refused, so only then is a copy taken.
        """
        known = self._shapes == _sample_shapes(tensors) and len(tensors[0]) > 1
        norms = [] if known or not self.training else [norm for group in self.groups for norm in group.norms.values()]
        copies = [(buffer, buffer.clone()) for norm in norms for _, buffer in norm.named_buffers(recurse=False)]
        try:
            yield
        except Exception as error:
            for buffer, copy in copies:
                buffer.copy_(copy)
            if type(error) in REFUSALS and not self._takes(tensors):
                given = ", ".join(f"{shown(tensor)} on {tensor.device}" for tensor in tensors)
                raise InputError(
                    f"forward cannot compute on {given} ({type(error).__name__}: {first_line(error)}). {self._taken()}"
                ) from error
            raise

    def _takes(self, tensors: tuple[Tensor, ...]) -> bool:
        """Whether an input's ``tensors`` are like those that went through, in all but their numbers."""
        like = next(layer for _, layer in self.segmented_layers() if isinstance(layer, StaircaseLayer)).weight
        placed = all((x.device, x.layout) == (like.device, torch.strided) for x in tensors)
        typed = all(x.dtype == like.dtype for x in tensors if x.is_floating_point())
        known = self._shapes or (None if self.input_shape is None else (torch.Size(self.input_shape),))
        return placed and typed and known == _sample_shapes(tensors)

    def _taken(self) -> str:
        """What is known of the inputs that the network takes, as a sentence."""
        like = next(layer for _, layer in self.segmented_layers() if isinstance(layer, StaircaseLayer)).weight
        shape = "..." if self.input_shape is None else ", ".join(map(str, self.input_shape))
        return f"The network takes [N, {shape}] of {like.dtype} on {like.device}."


@_disable_dynamo
def _as_python(module: nn.Module, *args: Tensor, **kwargs: Tensor) -> Tensor:
    """``module(*args, **kwargs)``, not compiled, also where it was compiled or is called inside of what was."""
    return cast(Tensor, module._call_impl(*args, **kwargs))  # pyright: ignore[reportPrivateUsage, reportUnknownMemberType]


def _requires_grad(x: Inputs) -> bool:
    return any(tensor.requires_grad for tensor in tensors_of(x))


def _sample_shapes(tensors: tuple[Tensor, ...]) -> tuple[torch.Size, ...]:
    return tuple(tensor.shape[1:] for tensor in tensors)


def device_of(network: BaseNetwork) -> torch.device:
    """The device of the network's tensors."""
    return next(network.buffers()).device


def head_of(network: BaseNetwork, task: int) -> EideticLinear:
    """The head of ``task``, which must have one."""
    return cast(EideticLinear, network.heads[task])


@functools.cache
def _reserved(cls: type[BaseNetwork]) -> frozenset[str]:
    """Names that a subclass cannot give to its layers, since the network's own attributes would hide them."""
    ours = [kind for kind in cls.__mro__ if kind is BaseNetwork or BaseNetwork in kind.__bases__]
    public = {name for kind in ours for name in vars(kind) if not name.startswith("__")}
    return frozenset(public | OWN_MODULES | {"records"})

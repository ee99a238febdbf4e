"""EideticNetwork: the life of tasks in one network."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.optim import Optimizer

from .errors import CapacityError, ConversionError, InputError, RouterError, TaskError
from .extraction import extract as extraction
from .layers import EideticLinear, Scope, SegmentedLayer, aware_of_segments
from .layers.succession import retire
from .layout import LIVE, Segments, prefix
from .modes import evaluating, uncompiled
from .ops.staircase import read
from .records import certificate, checkpoint
from .tasks import capacity, checks, pruning, routing, snapshots
from .tasks import optimizer_state as optimizers
from .wiring import builder as graph
from .wiring import tracing


class EideticNetwork(nn.Module):
    """A network that learns task after task and forgets nothing. Subclass it and write a normal forward.

    ``forward`` takes one input [N, ...] and returns features, a tensor whose dimension 1 holds units; the task
    heads are the network's own. Layers with weights must be this package's. The paper's Listing 1 is the pattern::

        for t, loader in enumerate(loaders):
            net.prepare_for_task(t, num_classes=10)
            net.train_task(loader, optimizer=torch.optim.AdamW(net.parameters()))
        net.train_router(loaders)
        net.predict(x)
    """

    # Why a saved network of this class cannot be built from its arguments, and what to do; None: it can.
    rebuilt_by: str | None = None

    def __new__(cls, *args, **kwargs):
        network = super().__new__(cls)
        network.__dict__["constructor_arguments"] = (args, kwargs)
        return network

    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList()
        self.router: routing.Router | None = None
        self.register_buffer("probe", None)
        self.records: list[certificate.TaskRecord] = []
        self.current_task: int | None = None
        self.head_forward_transfer = True
        self.input_shape: tuple[int, ...] | None = None
        self._scope = Scope()
        self._wiring: graph.Wiring | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        own = isinstance(value, (routing.Router, nn.ModuleList)) and name in ("router", "heads")
        if isinstance(value, (nn.Module, Tensor)) and name in _reserved() and not own and name != "probe":
            raise InputError(
                f"{name!r} is a name of EideticNetwork itself and cannot name a layer: call it something else, such as "
                f"{name}_layer."
            )
        super().__setattr__(name, value)

    # ---- what is there

    def connections(self) -> dict[str, str | tuple[str, ...]] | None:
        """Override where ``forward`` cannot be traced: which layer reads which.

        Returns a mapping from each layer's path, in order of execution, to what it reads: "input", another layer's
        path, or a tuple of paths that are added together; "output" names the features. For a residual block::

            {"conv1": "input", "bn1": "conv1", "conv2": "bn1", "bn2": "conv2", "output": ("bn1", "bn2")}

        None (the default) traces ``forward`` with torch.fx.
        """
        return None

    @property
    def wiring(self) -> graph.Wiring:
        """The unit groups and who reads them; found when first needed. Raises ConversionError."""
        if self._wiring is None:
            connections = self.connections()
            wiring = tracing.trace(self) if connections is None else tracing.declare(self, connections)
            named = {*wiring.sources, *wiring.split, *(path for group in wiring.groups for path in group.norms)}
            for path, layer in self.segmented_layers():
                if path not in named:
                    raise ConversionError(
                        f"{path!r} is not on the way from the input to the features, so its units have no readers: "
                        "use it in forward (or name it in connections()), or remove it."
                    )
                if layer.owned or layer.segments.tasks or layer.segments.live != layer.segments.width:
                    raise TaskError(f"{path!r} already has a life of its own; only fresh layers can join a network.")
            self._wire(wiring)
        return self._wiring

    @property
    def groups(self) -> tuple[graph.Group, ...]:
        return self.wiring.groups

    @property
    def finished_tasks(self) -> int:
        return len(self.heads) - (self.current_task is not None and len(self.heads) > self.current_task)

    @property
    def num_classes(self) -> list[int]:
        """Classes of each task that has a head."""
        return [head.out_features for head in self.heads]

    @property
    def live_head(self) -> EideticLinear:
        """The head of the task in training."""
        if self.current_task is None or len(self.heads) <= self.current_task:
            raise TaskError("no head is in training: call prepare_for_task(t, num_classes=...) first.")
        return self.heads[self.current_task]

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Live parameters and the head in training: all that an optimizer may see.

        Segments without live units are among them as empty tensors, so that an optimizer finds their successors.
        """
        finished = {id(p) for task in range(self.finished_tasks) for p in self.heads[task].parameters()}
        for name, parameter in super().named_parameters(prefix, recurse, remove_duplicate):
            if id(parameter) not in finished:
                yield name, parameter

    def capacity(self) -> capacity.Capacity:
        """Units frozen by task, live and free, a unit group a row; prints as a table."""
        return capacity.capacity_of(self.groups)

    # ---- the life of a task

    def prepare_for_task(
        self,
        t: int,
        num_classes: int | None = None,
        forward_transfer: bool | Mapping[str, bool] = True,
        max_units: int | float | Mapping[str, int | float] | None = None,
        optimizer: Optimizer | None = None,
    ) -> None:
        """Make task ``t`` the one in training, finishing the task before it if need be.

        Args:
            t: the next task's index; tasks come in order, from 0.
            num_classes: size of the task's head; None leaves it to ``train_task``, which reads it off the labels.
            forward_transfer: whether new units may read earlier tasks' (nested) or not (disjoint), for all layers or
                by layer path, "head" being the task's head; layers not named may.
            max_units: caps each unit group's new units: a count, a share of the width (a float up to 1.0), or either
                by group name. None: all free units. Where units come in grains or are aligned, a count is rounded
                down to a multiple, a share to the nearest.
            optimizer: an optimizer to carry over; it is pointed to the new parameters.

        Raises:
            TaskError: ``t`` is out of order.
            CapacityError: a count over what is free, or a disjoint layer with no free units to read.
        """
        expected = self.finished_tasks + (self.current_task is not None)
        if t != expected:
            raise TaskError(
                f"prepare_for_task({t}) is out of order: "
                + (f"task {self.current_task} is in training and " if self.current_task is not None else "")
                + f"the next task is {expected}."
            )
        if num_classes is not None:
            checks.check_classes(num_classes)
        if optimizer is not None:
            optimizers.check_current(optimizer, self.parameters())
        choosing = [path for path, layer in self.segmented_layers() if hasattr(layer, "forward_transfer")]
        transfer = checks.choices(forward_transfer, [*choosing, "head"])
        freed = [group.segments.live if t == 0 else group.segments.free for group in self.groups]
        if self.current_task is not None:
            freed = [group.segments.free - group.segments.live for group in self.groups]
        checks.check_names(max_units, [group.name for group in self.groups], "unit group")
        live = [checks.cap_units(group, free, max_units) for group, free in zip(self.groups, freed)]
        self._check_disjoint(transfer, live)
        if self.current_task is not None:
            self._check_finishable()
        if not any(live):
            warnings.warn(
                f"no layer has a free unit for task {t}: only its head will learn, on frozen features. "
                "Widen the network, or cap what earlier tasks take (max_units).",
                stacklevel=2,
            )
        if self.current_task is not None:
            self.finish_task()
        for group, units in zip(self.groups, live):
            if t == 0:  # the weights at hand (torch's initialisation, or pre-trained ones) are task 0's
                self._cut_group(group, torch.arange(units))
            else:
                group.segments.recycle(units)
        for path, layer in self.segmented_layers():
            if path in transfer:
                if t == 0:
                    layer.forward_transfer = (transfer[path],)
                else:
                    layer.renew_live(transfer[path])
            elif t:
                layer.renew_live()
        self.current_task = t
        self.head_forward_transfer = transfer["head"]
        if num_classes is not None:
            self.add_head(num_classes)
        if optimizer is not None:
            self.adopt(optimizer)

    def add_head(self, num_classes: int) -> None:
        """Create the head of the task in training, where ``prepare_for_task`` was not told its classes."""
        t = self.current_task
        if t is None or len(self.heads) > t:
            raise TaskError("a head can be added once, to a task that is in training.")
        checks.check_classes(num_classes)
        segments = Segments(num_classes, frozen=(0,) * t)
        head = self.make_head(segments, (True,) * t + (self.head_forward_transfer,))
        head.train(self.training)
        if t:  # an optimizer that is kept finds the new head where it held the last one
            retire(self.heads[-1].weight, head.weight)
            retire(self.heads[-1].bias, head.bias)
        self.heads.append(head)

    def make_head(self, segments: Segments, forward_transfer: tuple[bool, ...]) -> EideticLinear:
        """A head for ``segments`` on the features, not yet among ``heads``; used by ``add_head`` and by loading."""
        columns = sum(source.columns(None) for source in self.wiring.features)
        like = next(layer for _, layer in self.segmented_layers() if hasattr(layer, "frozen_weight")).weight
        head = EideticLinear(columns, segments.width, device=like.device, dtype=like.dtype)
        head.answers = True
        head.wire(segments, self.wiring.features, self._scope)
        head.forward_transfer = forward_transfer
        if not forward_transfer[-1]:
            head.renew_live(False)
        return head

    def finish_task(self) -> None:
        """Freeze the task in training: its units, statistics and head become buffers, for ever (Persistence).

        Raises TaskError when no task is in training, or when a live tensor is not finite.
        """
        if self.current_task is None:
            raise TaskError("no task is in training: call prepare_for_task first.")
        self._check_finishable()
        head = self.live_head
        for _, layer in self.segmented_layers():
            layer.freeze_live()
        head.freeze_live()
        for group in self.groups:
            group.segments.freeze()
        head.segments.freeze()
        for _, layer in self.segmented_layers():
            layer.renew_live()
        head.close_live()
        task, self.current_task = self.current_task, None
        self.records.append(certificate.record(self, task))

    def align(self, multiple: int | Mapping[str, int]) -> None:
        """Keep what tasks take at multiples of ``multiple`` units (of all unit groups, or by group name).

        A GPU's products run at full speed on sizes that are multiples of 8 or 16. From now on pruning and new live
        segments keep to them wherever units allow: a group narrower than ``multiple`` is left alone, and the last
        remainder of a width that is no multiple can be taken as it is. 1 takes it back; a saved network knows it.
        """
        checks.check_names(multiple, [group.name for group in self.groups], "unit group")
        given = multiple if isinstance(multiple, Mapping) else {group.name: multiple for group in self.groups}
        for name, units in given.items():
            if isinstance(units, bool) or not isinstance(units, int) or units < 1:
                raise InputError(f"multiple must be a whole number of units, 1 or more; got {units!r} for {name}.")
        for group in self.groups:
            if group.name in given:
                group.segments.align(given[group.name])

    def widen(self, width: int | Mapping[str, int]) -> None:
        """Let unit groups hold ``width`` units (all groups, or by group name); used from the next task on.

        Where units come in grains (a grouped convolution reads them), it is rounded up to whole ones.
        """
        checks.check_names(width, [group.name for group in self.groups], "unit group")
        wanted = [
            width.get(group.name, group.segments.width) if isinstance(width, Mapping) else width
            for group in self.groups
        ]
        for group, units in zip(self.groups, wanted):
            if isinstance(units, bool) or not isinstance(units, int):
                raise InputError(f"a width is a whole number of units; got {units!r} for {group.name}.")
            if units < group.segments.width:
                raise CapacityError(
                    f"{group.name} cannot shrink from {group.segments.width} to {units} units; give a larger width."
                )
        for group, units in zip(self.groups, wanted):
            group.segments.widen(-(-units // group.segments.grain) * group.segments.grain)

    # ---- forward

    # torch.compile compiles forward, and leaves to Python the checks, and which part of the network runs.
    @torch.compiler.disable(recursive=False)
    def __call__(self, x: Tensor, task: int | None = None) -> Tensor:
        """Logits [N, classes]: of the task in training, or in evaluation mode of any task.

        Recalling finished task k runs only the units that k may read, with the same shapes for ever, so the same
        batch gives the same bits on the same device, whatever was learned since (P1).

        Raises TaskError for a task that is not there, InputError for an input the network cannot take.
        """
        task, scope = self._resolve(task)
        features = self.compute_features(x, scope)
        with self._scope.running(scope, features.requires_grad and x.requires_grad):
            return self.heads[task](features)

    @torch.compiler.disable(recursive=False)
    def compute_features(self, x: Tensor, task: int | None = None) -> Tensor:
        """What ``forward`` returns: of everything present (None), or the prefix of finished task ``task``."""
        self._check_input(x)
        wiring = self.wiring
        live_only = task == LIVE and self._scope.live_only
        if task is not None and not live_only and not 0 <= task < self.finished_tasks:
            raise TaskError(f"task {task!r} is not one of the {self.finished_tasks} finished tasks.")
        if live_only and x.requires_grad:
            raise InputError("the input asks for a gradient, which frozen units have a part in: keep no features then.")
        self._derive(task)
        with self._scope.running(task, x.requires_grad), self._statistics_kept_on_error(x):
            features = super().__call__(x)
        columns = sum(source.columns(task) for source in wiring.features)
        if features.dim() != 2 or features.shape[1] != columns:
            raise InputError(
                f"forward returned features of shape {list(features.shape)} where [N, {columns}] was expected. "
                "Does the input have the size the network was built for?"
            )
        self.input_shape = tuple(x.shape[1:])
        return features

    @torch.no_grad()
    def predict(self, x: Tensor, rule: str = "learned") -> routing.Prediction:
        """Route each sample to a task and answer with that task's head: one pass of the body, no task id needed.

        Runs in evaluation mode and leaves the mode as it was.

        Args:
            rule: how the task is chosen, one of ``eidetic_kernels.routing.RULES``: the "learned" router, that and the
                heads' own certainty ("joint"), or without any router "entropy", "energy" or "max_logit" of the heads.

        Raises RouterError when the rule needs a router and there is none, or it does not know every finished task.
        """
        return self.predictions(x, (rule,))[rule]

    @torch.no_grad()
    def predictions(self, x: Tensor, rules: Iterable[str]) -> dict[str, routing.Prediction]:
        """As :meth:`predict`, by several rules at once: still one pass of the body."""
        tasks, rules = self.finished_tasks, tuple(rules)
        if tasks == 0:
            raise RouterError("no task is finished, so there is nothing to route to.")
        needed = tasks > 1 and any(rule in routing.NEED_ROUTER for rule in rules)
        if needed and (self.router is None or self.router.tasks != tasks):
            known = 0 if self.router is None else self.router.tasks
            raise RouterError(
                f"the router knows {known} of {tasks} finished tasks: call net.train_router(loaders) with a loader for "
                "each finished task, or route without one (rule='entropy')."
            )
        with evaluating(self):
            reads = (self.router.layers, self.router.inputs) if needed else ()
            features, read_by_router = self.routing_features(x, *reads)
            logits = []
            for task in range(tasks):
                with self._scope.running(task, False):
                    spans = prefix(self.wiring.features, task, tasks - 1)
                    logits.append(self.heads[task](read(features, spans)))
            learned = self.router(read_by_router, x) if needed else features.new_zeros(len(features), tasks)
            return {rule: routing.route(routing.task_scores(rule, logits, learned), logits) for rule in rules}

    def routing_features(self, x: Tensor, layers: bool = False, inputs: bool = False) -> tuple[Tensor, Tensor]:
        """The features of all finished tasks' units [N, units], and what a router reads: those, with ``layers`` what
        every other unit group computes, and with ``inputs`` the input itself, side by side."""
        features, heard = self._features_and_layers(x, layers)
        if inputs:
            heard.append(x.flatten(1).to(features.dtype))
        return features, torch.cat([features, *heard], 1) if heard else features

    def _features_and_layers(self, x: Tensor, layers: bool) -> tuple[Tensor, list[Tensor]]:
        last = self.finished_tasks - 1
        if not layers:
            return self.compute_features(x, last), []
        given = {source.group for source in self.wiring.features}
        others = [group for group in self.groups if group.segments not in given]
        with uncompiled(self), routing.listening(others) as heard:  # compiled code calls no hooks
            features = self.compute_features(x, last)
        if any(len(each) != len(x) for each in heard):
            raise RouterError(
                "a router cannot read every layer of this network, since some compute on parts of a sample (windows) "
                "or without samples (parameters): train it on the features alone, train_router(layers=False)."
            )
        return features, heard

    # ---- pruning

    def plan_pruning(
        self,
        fraction: float,
        importance: str | Mapping[str, Tensor] = "l2",
        *,
        of: str = "live",
        data: Iterable | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        keep_at_least: int | float = 0,
        generator: torch.Generator | None = None,
    ) -> pruning.PruningPlan:
        """Which live units would go. Nothing changes until the plan is applied.

        Args:
            fraction: in [0, 1], of the live units present (``of="live"``) or of each layer's width (``of="width"``,
                as the paper counts).
            importance: "l1", "l2", "taylor", "hybrid" (these two need ``data``), "random", or scores [live] by group
                name.
            data: (x, y) batches of the task in training.
            keep_at_least: units each group keeps at least: a count, or a share of its width (a float up to 1.0).
        """
        if self.current_task is None:
            raise TaskError("only the live units of a task in training can be pruned: call prepare_for_task first.")
        if not isinstance(fraction, (int, float)) or not 0 <= fraction <= 1:
            raise InputError(f"fraction must lie in [0, 1], got {fraction!r}.")
        if of not in ("live", "width"):
            raise InputError(f'of must be "live" or "width", got {of!r}.')
        share = isinstance(keep_at_least, float)
        if isinstance(keep_at_least, bool) or keep_at_least < 0 or (share and keep_at_least > 1):
            raise InputError(f"keep_at_least must be a count or a share in [0, 1], got {keep_at_least!r}.")
        name, scores = pruning.scores_of(self, importance, data, loss, generator)
        return pruning.make_plan(self.groups, scores, name, fraction, of, keep_at_least)

    def apply_plan(self, plan: pruning.PruningPlan, optimizer: Optimizer | None = None) -> None:
        """Remove the plan's units: rows of their producers, their normalisation, and the columns of their readers.

        Parameters are replaced by smaller ones; ``optimizer`` follows, its state cut along with them.
        """
        by_name = {group.name: group for group in self.groups}
        if optimizer is not None:
            optimizers.check_current(optimizer, self.parameters())
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
                self._cut_group(by_name[part.name], part.keep)
        if optimizer is not None:
            self.adopt(optimizer)

    def prune(self, fraction: float, importance: str | Mapping[str, Tensor] = "l2", *,
              optimizer: Optimizer | None = None, **options) -> pruning.PruningPlan:  # fmt: skip
        """Plan and apply in one call; arguments as :meth:`plan_pruning`. Returns the plan that was applied."""
        plan = self.plan_pruning(fraction, importance, **options)
        self.apply_plan(plan, optimizer)
        return plan

    def snapshot(self, optimizer: Optimizer | None = None) -> snapshots.Snapshot:
        """A copy of everything live (and of ``optimizer``'s state), for :meth:`restore`."""
        return snapshots.take(self, optimizer)

    def restore(self, snapshot: snapshots.Snapshot, optimizer: Optimizer | None = None) -> None:
        """Bring back everything live as it was, undoing pruning and training since.

        ``optimizer`` follows; its per-parameter state comes back too if it was part of the snapshot. Raises TaskError
        for a snapshot of another task.
        """
        snapshots.bring_back(self, snapshot, optimizer)

    def adopt(self, optimizer: Optimizer) -> None:
        """Point ``optimizer`` to the current parameters, moving and cutting the state it holds for earlier ones.

        Of parameters it never held only the head's are added, since a head is made after many an optimizer. Raises
        StaleOptimizerError when it holds nothing of this network.
        """
        optimizers.check_current(optimizer, self.parameters())
        optimizers.follow(optimizer, self.live_head.parameters() if len(self.heads) > (self.current_task or 0) else ())

    # ---- training (one line each: the driver is imported when it is called)

    def train_task(self, loader: Iterable, optimizer: Optimizer | None = None, **settings):
        """Train, prune and finish the task in training; see :func:`eidetic_training.train_task`."""
        from eidetic_training import train_task

        return train_task(self, loader, optimizer, **settings)

    def train_router(self, loaders: Iterable[Iterable], **settings):
        """Train the task classifier on a loader a task; see :func:`eidetic_training.train_router`."""
        from eidetic_training import train_router

        return train_router(self, loaders, **settings)

    # ---- keeping and proving

    def save(self, path: str | Path) -> None:
        """Write the network to one safetensors file, its structure as JSON in the header; atomic."""
        checkpoint.save(self, path)

    @classmethod
    def load(cls, path: str | Path, network: EideticNetwork | None = None) -> EideticNetwork:
        """Read a network written by :meth:`save`.

        The saved class must be defined (imported) already, since no code is ever taken from the file; or pass a fresh
        ``network`` of the same architecture. Raises CheckpointError for a damaged or foreign file.
        """
        return checkpoint.load(cls, path, network)

    def certify(self) -> certificate.Certificate:
        """Check every finished task: structure, fingerprints of frozen tensors, and logits of stored probe inputs."""
        return certificate.certify(self)

    def extract(self, task: int) -> nn.Module:
        """Finished task ``task`` as a plain torch module: inputs [N, ...] to logits [N, classes], no task id.

        It is made of torch.nn layers and torch.fx graphs of them, holds copies of the units that the task reads and of
        its head, and needs this package neither to run nor to be pickled, exported (``torch.export.export``,
        ``torch.onnx.export``) or trained further. The logits are those of ``net(x, task=task)``: of task 0 bit for bit
        on a CPU, for a contiguous input of fewer than 32 samples and the torch backend; of later tasks and in larger
        batches up to rounding, since a library may round by where weights lie in memory (single samples on a CPU), by
        which operand of a product is transposed (few units) and by how many channels lie side by side (units that
        nothing reads are left out), and on a GPU chooses its algorithms by such things.

        A network whose forward cannot be traced (wired by ``connections()``) keeps its own forward on plain layers; it
        can be exported where torch can follow that forward, and pickled only so.

        Functions of other packages stay as they are called (Swin's patch merging is torchvision's): a pickle needs
        them, an exported program does not.

        Raises TaskError for a task that is not finished, and ConversionError for a module that has no plain twin, as
        some of this package's in a network wired by hand.
        """
        return extraction.extract(self, task)

    # ---- inside

    def running_live(self) -> AbstractContextManager:
        """Passes of the task in training run live units alone; see :class:`.frozen_features.FrozenFeatures`."""
        return self._scope.running_live()

    def traced(self) -> tuple[fx.Graph, nn.Module]:
        """The graph of ``forward`` and the module that its paths start from. Raises ConversionError."""
        return tracing.graph_of(self), self

    def as_architecture(self) -> None:
        """Undo what construction did beyond building layers; called on a copy that is to be filled from a file."""

    def segmented_layers(self) -> list[tuple[str, SegmentedLayer]]:
        """The body's segmented layers by path; heads are apart."""
        heads = set(self.heads)
        return [
            (path, module)
            for path, module in self.named_modules()
            if isinstance(module, SegmentedLayer) and module not in heads
        ]

    def _wire(self, wiring: graph.Wiring) -> None:
        modules = dict(self.named_modules())
        for path, parts in wiring.split.items():
            self.set_submodule(path, parts)
        for path in wiring.last:
            self.get_submodule(path).unit_dim = -1
        for group in wiring.groups:
            for path, layer in group.producers.items():
                layer.wire(group.segments, wiring.sources[path], self._scope)
            for layer in group.norms.values():
                layer.join(group.segments, self._scope)
        for path, order in wiring.orders.items():
            self.get_submodule(path).reorder(order)
        for path, (sources, pieces) in wiring.pieces.items():
            self.get_submodule(path).wire(sources, pieces, self._scope)
        for path in wiring.shuffles:
            self.get_submodule(path).wire()
        for path, sources in wiring.dropouts.items():
            aware = aware_of_segments(modules[path])
            if path in wiring.last:
                aware.unit_dim = -1
            if aware is not modules[path]:
                self.set_submodule(path, aware)
            aware.wire(sources, self._scope)
        self._wiring = wiring

    def _cut_group(self, group: graph.Group, keep: Tensor) -> None:
        """Keep only the live units ``keep`` of a group, in every layer that produces, normalises or reads them."""
        if len(keep) == group.segments.live:
            return
        for layer in group.layers:
            layer.cut_live(keep)
        readers = [layer for path, layer in self.segmented_layers() if path in self.wiring.sources]
        if self.current_task is not None and len(self.heads) > self.current_task:
            readers.append(self.live_head)
        for layer in readers:
            layer.cut_columns({group.segments: keep})
        group.segments.prune(len(keep))

    def _resolve(self, task: int | None) -> tuple[int, int | None]:
        """Which head answers, and which prefix runs (None: everything present)."""
        current, finished = self.current_task, self.finished_tasks
        if task is None:
            if current is None:
                raise TaskError(
                    f"no task is in training: name one of the {finished} finished tasks (net(x, task=k)), let the "
                    "router choose (net.predict(x)), or call prepare_for_task first."
                )
            task = current
        if task == current:
            self.live_head  # noqa: B018  raises while the task has no head
            return task, LIVE if self._scope.live_only else None
        if not isinstance(task, int) or not 0 <= task < finished:
            raise TaskError(f"task {task!r} is unknown: finished tasks are 0..{finished - 1}" if finished else
                            f"task {task!r} is unknown: no task is finished.")  # fmt: skip
        if self.training:
            raise TaskError(f"task {task} is finished; recalling it needs evaluation mode: call net.eval() first.")
        return task, task

    def _check_input(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise InputError(f"the input must be a tensor, got {type(x).__name__}.")
        if x.dim() == 0 or not len(x):
            raise InputError(f"the input must hold at least one sample, [N, ...]; got shape {list(x.shape)}.")
        if not x.is_floating_point():
            raise InputError(
                f"the input must be floating point, got {x.dtype}: convert it, x.float() (and / 255 for pixels)."
            )

    @torch.compiler.disable
    def _derive(self, task: int | None) -> None:
        """Let every layer derive what it needs for this pass; see :meth:`SegmentedLayer.derived`."""
        for group in self.groups:
            for layer in group.layers:
                layer.derived(task)

    @contextmanager
    def _statistics_kept_on_error(self, x: Tensor) -> Iterator[None]:
        """An input that some layer refuses must not leave the running statistics of the layers before it moved.

        Only an input unlike the last one that went through can be refused, so only then is a copy taken.
        """
        known = self.input_shape == tuple(x.shape[1:]) and len(x) > 1
        norms = [] if known or not self.training else [norm for group in self.groups for norm in group.norms.values()]
        copies = [(buffer, buffer.clone()) for norm in norms for _, buffer in norm.named_buffers(recurse=False)]
        try:
            yield
        except Exception:
            for buffer, copy in copies:
                buffer.copy_(copy)
            raise

    def _check_finishable(self) -> None:
        for path, layer in [*self.segmented_layers(), ("the head", self.live_head)]:
            for name, tensor in snapshots.live_tensors(layer):
                if not torch.isfinite(tensor).all():
                    raise TaskError(
                        f"{path}.{name} holds NaN or infinity; task {self.current_task} would be frozen with it. "
                        "Restore a snapshot (net.restore) and train with a lower learning rate."
                    )

    def _check_disjoint(self, transfer: dict[str, bool], live: list[int]) -> None:
        units = {group.segments: count for group, count in zip(self.groups, live)}
        for path, sources in [*self.wiring.sources.items(), ("head", self.wiring.features)]:
            counts = [units[s.group] for s in sources if isinstance(s.group, Segments)]
            if not transfer[path] and counts and not any(counts):
                raise CapacityError(
                    f"{path} is to read this task's own units only (forward_transfer=False), but its input has no free "
                    "unit left. Allow forward transfer there, widen the network, or cap what tasks take (max_units)."
                )


@functools.cache
def _reserved() -> frozenset[str]:
    """Names that a subclass cannot give to its layers, since the network's own attributes would hide them."""
    public = {name for name in vars(EideticNetwork) if not name.startswith("__")}
    return frozenset(public | {"heads", "router", "probe", "records"})

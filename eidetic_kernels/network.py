"""EideticNetwork: what users subclass and call. Each call is a line here, and its work is done where it belongs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from .extraction.extract import extract
from .records import certificate, checkpoint
from .records.certificate import Certificate
from .tasks import lifecycle, optimizer_state, prediction, pruning, snapshots
from .tasks.base import BaseNetwork
from .tasks.capacity import Capacity, capacity_of
from .tasks.pruning import PruningPlan
from .tasks.routing import Prediction
from .tasks.snapshots import Snapshot


class EideticNetwork(BaseNetwork):
    """A network that learns task after task and forgets nothing. Subclass it and write a normal forward.

    ``forward`` takes one input [N, ...] and returns features, a tensor whose dimension 1 holds units; the task
    heads are the network's own. Layers with weights must be this package's. The paper's Listing 1 is the pattern::

        for t, loader in enumerate(loaders):
            net.prepare_for_task(t, num_classes=10)
            net.train_task(loader, optimizer=torch.optim.AdamW(net.parameters()))
        net.train_router(loaders)
        net.predict(x)
    """

    def capacity(self) -> Capacity:
        """Units frozen by task, live and free, a unit group a row; prints as a table."""
        return capacity_of(self.groups)

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
        plan = lifecycle.plan_next(self, t, num_classes, forward_transfer, max_units, optimizer)
        with self.changing(optimizer):
            if self.current_task is not None:
                self.finish_task()
            lifecycle.begin(self, plan)
            if num_classes is not None:
                self.add_head(num_classes)
            if optimizer is not None:
                self.adopt(optimizer)

    def add_head(self, num_classes: int) -> None:
        """Create the head of the task in training, where ``prepare_for_task`` was not told its classes."""
        with self.changing():
            lifecycle.add_head(self, num_classes)

    def finish_task(self) -> None:
        """Freeze the task in training: its units, statistics and head become buffers, for ever (Persistence).

        Raises TaskError when no task is in training, or when a live tensor is not finite.
        """
        with self.changing():
            task = lifecycle.freeze(self)
            self.records.append(certificate.record(self, task))

    def align(self, multiple: int | Mapping[str, int]) -> None:
        """Keep what tasks take at multiples of ``multiple`` units (of all unit groups, or by group name).

        A GPU's products run at full speed on sizes that are multiples of 8 or 16. From now on pruning and new live
        segments keep to them wherever units allow: a group narrower than ``multiple`` is left alone, and the last
        remainder of a width that is no multiple can be taken as it is. 1 takes it back; a saved network knows it.
        """
        with self.changing():
            lifecycle.align(self, multiple)

    def widen(self, width: int | Mapping[str, int]) -> None:
        """Let unit groups hold ``width`` units (all groups, or by group name); used from the next task on.

        Where units come in grains (a grouped convolution reads them), it is rounded up to whole ones.
        """
        with self.changing():
            lifecycle.widen(self, width)

    # ---- answers without a task id

    def predict(self, x: Tensor, rule: str = "learned") -> Prediction:
        """Route each sample to a task and answer with that task's head: one pass of the body, no task id needed.

        Runs in evaluation mode and leaves the mode as it was.

        Args:
            rule: how the task is chosen, one of ``eidetic_kernels.routing.RULES``: the "learned" router, that and the
                heads' own certainty ("joint"), or without any router "entropy", "energy" or "max_logit" of the heads.

        Raises RouterError when the rule needs a router and there is none, or it does not know every finished task.
        """
        return self.predictions(x, (rule,))[rule]

    def predictions(self, x: Tensor, rules: Iterable[str]) -> dict[str, Prediction]:
        """As :meth:`predict`, by several rules at once: still one pass of the body."""
        return prediction.predictions(self, x, rules)

    def routing_features(self, x: Tensor, layers: bool = False, inputs: bool = False) -> tuple[Tensor, Tensor]:
        """The features of all finished tasks' units [N, units], and what a router reads: those, with ``layers`` what
        every other unit group computes, and with ``inputs`` the input itself, side by side."""
        return prediction.routing_features(self, x, layers, inputs)

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
    ) -> PruningPlan:
        """Which live units would go. Nothing changes until the plan is applied.

        Args:
            fraction: in [0, 1], of the live units present (``of="live"``) or of each layer's width (``of="width"``,
                as the paper counts).
            importance: "l1", "l2", "taylor", "hybrid" (these two need ``data``), "random", or scores [live] by group
                name.
            data: (x, y) batches of the task in training.
            keep_at_least: units each group keeps at least: a count, or a share of its width (a float up to 1.0).
        """
        return pruning.plan(
            self, fraction, importance, of=of, data=data, loss=loss, keep_at_least=keep_at_least, generator=generator
        )

    def apply_plan(self, plan: PruningPlan, optimizer: Optimizer | None = None) -> None:
        """Remove the plan's units: rows of their producers, their normalisation, and the columns of their readers.

        Parameters are replaced by smaller ones; ``optimizer`` follows, its state cut along with them.
        """
        with self.changing(optimizer):
            pruning.apply(self, plan, optimizer)

    def prune(
        self,
        fraction: float,
        importance: str | Mapping[str, Tensor] = "l2",
        *,
        optimizer: Optimizer | None = None,
        **options,
    ) -> PruningPlan:
        """Plan and apply in one call; arguments as :meth:`plan_pruning`. Returns the plan that was applied."""
        plan = self.plan_pruning(fraction, importance, **options)
        self.apply_plan(plan, optimizer)
        return plan

    def snapshot(self, optimizer: Optimizer | None = None) -> Snapshot:
        """A copy of everything live (and of ``optimizer``'s state), for :meth:`restore`."""
        return snapshots.take(self, optimizer)

    def restore(self, snapshot: Snapshot, optimizer: Optimizer | None = None) -> None:
        """Bring back everything live as it was, undoing pruning and training since.

        ``optimizer`` follows; its per-parameter state comes back too if it was part of the snapshot. Raises TaskError
        for a snapshot of another task.
        """
        live = [tensor for _, _, _, tensor in snapshots.all_live(self)] if self.current_task is not None else []
        with self.changing(optimizer, *live):
            snapshots.restore(self, snapshot, optimizer)

    def adopt(self, optimizer: Optimizer) -> None:
        """Point ``optimizer`` to the current parameters, moving and cutting the state it holds for earlier ones.

        Of parameters it never held only the head's are added, since a head is made after many an optimizer. Raises
        StaleOptimizerError when it holds nothing of this network.
        """
        with self.changing(optimizer):
            optimizer_state.adopt(self, optimizer)

    # ---- training: the driver is imported when it is called

    def train_task(self, loader: Iterable, optimizer: Optimizer | None = None, **settings):
        """Train, prune and finish the task in training; see :func:`eidetic_training.train_task`."""
        from eidetic_training import train_task

        return train_task(self, loader, optimizer, **settings)

    def train_router(self, loaders: Iterable[Iterable], **settings):
        """Train the task classifier on a loader a task; see :func:`eidetic_training.train_router`."""
        from eidetic_training import train_router

        return train_router(self, loaders, **settings)

    # ---- keeping and certifying

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

    def certify(self) -> Certificate:
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
        return extract(self, task)

"""EideticNetwork, which users subclass and call. Each method hands over to the room that does its work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from .extraction.extract import extract
from .records import certificate, checkpoint, recording
from .records.certificate import Certificate
from .records.signature import Key
from .tasks import checks, lifecycle, optimizer_state, prediction, pruning, snapshots
from .tasks.base import BaseNetwork
from .tasks.capacity import Capacity, capacity_of
from .tasks.inputs import Inputs
from .tasks.pruning import PruningPlan
from .tasks.routing import Prediction
from .tasks.snapshots import Snapshot

Network = TypeVar("Network", bound="EideticNetwork")


class EideticNetwork(BaseNetwork):
    """A network that learns task after task and forgets nothing. Subclass it and write a normal forward.

    ``forward`` takes one input [N, ...] and returns features, a tensor [N, columns] whose columns are units. The
    network adds the task heads itself. Layers with weights must be this package's. The pattern is that of the paper's
    Listing 1::

        for t, loader in enumerate(loaders):
            net.prepare_for_task(t, num_classes=10)
            net.train_task(loader, optimizer=torch.optim.AdamW(net.parameters()))
        net.train_router(loaders)
        net.predict(x)
    """

    def __setstate__(self, state: dict[str, Any]) -> None:  # of a copy, or from a pickle
        super().__setstate__(state)
        optimizer_state.watch_head(self)

    def capacity(self) -> Capacity:
        """Units frozen by task, live and free, with a row for each unit group. It prints as a table."""
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
        """Begin task ``t`` with fresh units (paper, section 3, steps III to V); finish the task before it if need be.

        Args:
            t: the next task's index; tasks come in order, from 0.
            num_classes: size of the task's head. None leaves it to ``train_task``, which reads it off the labels, or to
                :meth:`add_head`.
            forward_transfer: whether new units may read earlier tasks' units (nested) or not (disjoint): one choice for
                all layers, or one for each layer's path, where "head" is the task's head. Layers not named are nested.
            max_units: how many new units each unit group gets at most: a count (int), a share of the width (a float in
                [0, 1]), or either by group name. None gives all free units. Where units come in grains or are aligned,
                a count is rounded down to a multiple and a share to the nearest one.
            optimizer: an optimizer to carry over; it is pointed to the new parameters.

        Raises:
            TaskError: ``t`` is out of order, or the task before cannot be finished.
            CapacityError: a count by name is more than is free, or a disjoint layer has no free units to read.
            InputError: an argument is of the wrong kind, or names an unknown layer or unit group.
            StaleOptimizerError: ``optimizer`` holds no parameter of this network.
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
        """Create the head of the task in training, if ``prepare_for_task`` was not given ``num_classes``.

        Raises TaskError when there is a head already or no task is in training, InputError for a wrong count.
        """
        with self.changing():
            lifecycle.add_head(self, num_classes)

    def finish_task(self) -> None:
        """Freeze the task in training: its units, statistics and head become buffers for ever.

        This is Persistence (paper, section 3, step II). What the task is by now is recorded for :meth:`certify`.

        Raises TaskError when no task with a head is in training, or when a live tensor is not finite.
        """
        with self.changing():
            task = lifecycle.freeze(self)
            self.records.append(recording.record(self, task))

    def align(self, multiple: int | Mapping[str, int]) -> None:
        """Round unit counts to multiples of ``multiple`` where possible, from now on; GPUs run 8 or 16 faster.

        Pruning and new live segments keep to these multiples. A group narrower than ``multiple`` is left alone, and the
        remainder of a width that is no multiple can be taken as it is. The choice is saved with the network.

        Args:
            multiple: for all unit groups, or by group name; 1 switches it off.

        Raises InputError for a multiple that is no positive whole number, or an unknown group.
        """
        with self.changing():
            lifecycle.align(self, multiple)

    def widen(self, width: int | Mapping[str, int]) -> None:
        """Let unit groups hold ``width`` units, for the tasks to come (paper, section 1: maintainability).

        Args:
            width: for all unit groups, or by group name. Where units come in grains (a grouped convolution reads
                them), it is rounded up to whole grains.

        Raises:
            CapacityError: a group would shrink.
            InputError: a width that is no whole number, or an unknown group.
        """
        with self.changing():
            lifecycle.widen(self, width)

    # ---- answers without a task id

    def predict(self, x: Inputs, rule: str = "learned") -> Prediction:
        """Route each sample to a task and answer with that task's head: one pass of the body (paper, section 1).

        No task id is needed. Runs in evaluation mode and leaves the mode as it was.

        Args:
            x: the input [N, ...], or several, as ``net`` takes them.
            rule: how the task is chosen, one of ``eidetic_kernels.tasks.routing.RULES``. "learned" asks the router;
                "joint" the router and the heads' own certainty; "entropy", "energy" and "max_logit" ask the heads
                alone and need no router.

        Returns:
            Task, class and logits of each sample. The logits are those of ``net(x, task=k)`` for the chosen task k: the
            same bits on a CPU, but up to rounding in networks that average over tokens [N, tokens, channels] or have
            depthwise convolutions: libraries round there by the number of channels, and this pass has those of all
            tasks.

        Raises:
            RouterError: no task is finished; or the rule needs a router, and there is none or it does not know every
                finished task.
            InputError: an unknown rule, or an input that the network or the router cannot take.
            BusyError: another thread trains the network.
        """
        return self.predictions(x, (rule,))[rule]

    def predictions(self, x: Inputs, rules: Iterable[str]) -> dict[str, Prediction]:
        """As :meth:`predict`, by several rules in one pass of the body: a prediction for each rule's name."""
        return prediction.predictions(self, x, rules)

    def routing_features(self, x: Inputs, layers: bool = False, inputs: bool = False) -> tuple[Tensor, Tensor]:
        """The features [N, units] of all finished tasks, and what a router reads [N, columns].

        A router reads the features, then with ``layers`` what every other unit group computes, and with ``inputs`` the
        input itself, flattened. Raises RouterError for ``layers`` in a network where they cannot be read.
        """
        return prediction.routing_features(self, x, layers, inputs)

    # ---- pruning

    def plan_pruning(
        self,
        fraction: float,
        importance: str | int | Mapping[str, Tensor] = "l2",
        *,
        of: str = "live",
        data: Iterable | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        keep_at_least: int | float = 0,
        across_layers: bool | None = None,
        generator: torch.Generator | None = None,
    ) -> PruningPlan:
        """Plan which live units to remove (paper, section 4). Nothing changes until the plan is applied.

        Args:
            fraction: how much to remove, in [0, 1].
            importance: the score of a unit: "l1" or "l2" norm of its weights (or 1, 2), "taylor", "hybrid" (these two
                need ``data``), "random", or your own scores [live] by group name.
            of: what ``fraction`` counts: "live", the live units present; "present", these and the frozen ones; or
                "width", each layer's width, as the paper does.
            data: (x, y) batches of the task in training.
            loss: for "taylor" and "hybrid": from logits and labels to the mean loss of a batch.
            keep_at_least: how many units each group keeps at least: a count, or a share of its width (a float in
                [0, 1]).
            across_layers: True compares units over the whole network, so that layers lose as many as their scores say;
                False takes the same fraction from each layer. None does what suits the importance: True for "taylor",
                False for the others but "hybrid", which compares within bounds.
            generator: random numbers for "random".

        Raises:
            TaskError: no task is in training.
            InputError: an argument is out of range or of the wrong kind, or ``data`` is missing or empty.
        """
        amount = pruning.Amount(fraction, of, keep_at_least)
        return pruning.plan(self, amount, importance, across_layers, data=data, loss=loss, generator=generator)

    def apply_plan(self, plan: PruningPlan, optimizer: Optimizer | None = None) -> None:
        """Remove the plan's units: rows of the layers that produce them, their normalisation, and columns of readers.

        Parameters are replaced by smaller ones. ``optimizer`` is pointed to them, and its state is cut along.

        Raises:
            TaskError: the plan is out of date.
            InputError: the plan keeps parts of grains.
            StaleOptimizerError: ``optimizer`` holds no parameter of this network.
        """
        with self.changing(optimizer):
            pruning.apply(self, plan, optimizer)

    def prune(
        self,
        fraction: float,
        importance: str | int | Mapping[str, Tensor] = "l2",
        *,
        optimizer: Optimizer | None = None,
        **options,
    ) -> PruningPlan:
        """Plan and apply in one call, with the arguments of :meth:`plan_pruning`. Returns the plan that was applied."""
        plan = self.plan_pruning(fraction, importance, **options)
        self.apply_plan(plan, optimizer)
        return plan

    def snapshot(self, optimizer: Optimizer | None = None) -> Snapshot:
        """A copy of everything live, and of ``optimizer``'s state if it is given, for :meth:`restore`.

        Raises TaskError when no task is in training.
        """
        return snapshots.take(self, optimizer)

    def restore(self, snapshot: Snapshot, optimizer: Optimizer | None = None) -> None:
        """Bring everything live back to what it was at the snapshot, which undoes pruning and training since.

        ``optimizer`` is pointed to the parameters. Its state comes back too, if it was part of the snapshot.

        Raises TaskError for a snapshot of another task, StaleOptimizerError for a foreign optimizer.
        """
        live = [tensor for _, _, _, tensor in snapshots.all_live(self)] if self.current_task is not None else []
        with self.changing(optimizer, *live):
            snapshots.restore(self, snapshot, optimizer)

    def adopt(self, optimizer: Optimizer) -> None:
        """Point ``optimizer`` to the current parameters, moving and cutting the state it holds for earlier ones.

        The head's parameters are added if it never held them, since an optimizer is often made before the head. Other
        parameters that it never held are left out. Raises StaleOptimizerError when it holds nothing of this network.
        """
        with self.changing(checks.an_optimizer(optimizer)):
            optimizer_state.adopt(self, optimizer)

    # ---- training: eidetic_training is imported when one of these is called

    def train_task(self, loader: Iterable, optimizer: Optimizer | None = None, **settings):
        """Train, prune and finish the task in training; see :func:`eidetic_training.train_task`."""
        from eidetic_training import train_task

        return train_task(self, loader, optimizer, **settings)

    def train_router(self, loaders: Iterable[Iterable], **settings):
        """Train the task classifier on one loader for each task; see :func:`eidetic_training.train_router`."""
        from eidetic_training import train_router

        return train_router(self, loaders, **settings)

    # ---- keeping and certifying

    def save(self, path: str | Path) -> None:
        """Write the network to one safetensors file, with its structure as JSON in the header.

        The file is replaced as a whole: on an error the old one stays. Folders on the way are created.
        """
        checkpoint.save(self, path)

    @classmethod
    def load(cls: type[Network], path: str | Path, network: EideticNetwork | None = None) -> Network:
        """Read a network written by :meth:`save`, by this version or an earlier one.

        No code is taken from the file, so the saved class must be imported already.

        Args:
            path: the file.
            network: a fresh network of the same architecture, for a class that cannot be built from what the file
                holds. It is not changed.

        Raises:
            CheckpointError: the file is damaged or no such file, its class is not imported, or it does not fit
                ``network``.
        """
        return cast(Network, checkpoint.load(cls, path, network))

    def certify(self, against: str | Path | None = None, key: Key | None = None) -> Certificate:
        """Check that no finished task was forgotten (P6).

        Structure, fingerprints of frozen tensors and logits of stored probe inputs are compared with what was recorded
        when each task was finished. Whatever differs is named by task and layer. What is certified is each task's
        answer with the task given; of routed answers the router is, with its settings.

        Args:
            against: a file that :meth:`Certificate.write` wrote of this network, now or when it had fewer tasks. It is
                compared with in place of the network's own records, which whoever can write a saved network can
                rewrite.
            key: the file must be signed by the private key of this Ed25519 public key: a PEM file, or an
                ``Ed25519PublicKey`` of the package ``cryptography`` (the extra ``sign``).

        Raises:
            CheckpointError: ``against`` is no such file, is damaged, not signed, or not by that key.
            InputError: ``key`` is no such key, the network is in another precision than the file's, or is on the meta
                device.
            BusyError: another thread trains the network. Nothing else is raised; see :meth:`Certificate.check`.
        """
        return certificate.certify(self, against, key)

    def extract(self, task: int) -> nn.Module:
        """Finished task ``task`` as a plain torch module: inputs [N, ...] to logits [N, classes], without a task id.

        It is made of torch.nn layers and torch.fx graphs of them, and holds copies of the units that the task reads and
        of its head. It needs this package neither to run nor to be pickled, exported (``torch.export.export``,
        ``torch.onnx.export``) or trained further.

        The logits are those of ``net(x, task=task)``. For task 0 they have the same bits on a CPU, with a contiguous
        input of fewer than 32 samples and the torch backend. For later tasks and larger batches they agree up to
        rounding, since a library may round by where weights lie in memory (single samples on a CPU), by which operand
        of a product is transposed (few units), and by how many channels lie side by side (units that nothing reads are
        left out). A GPU's library chooses its algorithms by such things.

        A network whose forward cannot be traced (wired by ``connections()``) keeps its own forward on plain layers. It
        can be exported if torch can follow that forward, and pickled only that way. Functions of other packages stay as
        they are called (Swin's patch merging is torchvision's): a pickle needs the package, an exported program does
        not.

        Raises:
            TaskError: the task is not finished.
            ConversionError: a module has no plain version, such as some of this package's in a network wired by hand.
        """
        return extract(self, task)

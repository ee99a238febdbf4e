"""The progress of a task's training: what its file holds, and how a fresh process goes on from it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch.optim import Optimizer

from eidetic_kernels import EideticNetwork, FrozenFeatures
from eidetic_kernels.tasks.base import device_of

from .features import Numbered
from .last_good import LastGood
from .progress import CountsEpochs, ProgressFile, identity_of
from .random_state import put_random_state_back, random_state
from .settings import TaskSettings
from .training_state import TrainingState


class TaskProgress:
    """Writes after every epoch all that the rest of a task's training depends on, and puts it back.

    Made where the task begins: its file is then compared with what is there.

    Args:
        loader: must count its epochs; see :class:`~.progress.CountsEpochs`.
        generator: of the pruning's random numbers.
        good: where training goes back to. What it holds is written, and put back into it.

    Raises CheckpointError for a damaged file, InputError for one of this task's that was trained otherwise.
    """

    def __init__(
        self,
        path: str | Path,
        network: EideticNetwork,
        loader: Iterable,
        optimizer: Optimizer,
        settings: TaskSettings,
        generator: torch.Generator,
        good: LastGood,
    ):
        self.network, self.optimizer, self.settings = network, optimizer, settings
        self.generator, self.good, self.device = generator, good, device_of(network)
        self.loader, self.task = cast(CountsEpochs, loader), len(network.heads) - 1
        self._file = ProgressFile(path, self._identity(loader))
        self.saved = self._file.load()

    def save(self, run: dict[str, Any], events: int, recovering: bool) -> None:
        """Write the present state beside ``run``, what the run itself must know again.

        ``events``: how many callbacks were told of. ``recovering``: the present state is not the last good one.

        Raises InputError where the optimizer's state is made of more than plain values and tensors.
        """
        good, network = self.good.state, self.network
        if good is None:  # before the first epoch's end
            return
        present = TrainingState.of(network, self.optimizer, good).as_plain() if recovering else None
        state = {
            "run": run,
            "good": good.as_plain(),
            "present": present,
            "rates": [group["lr"] for group in self.optimizer.param_groups],
            "loader": self.loader.epoch,
            "generator": self.generator.get_state(),
            "random": random_state(self.device),
            "probe": network.probes.of(self.task),
            "input_shape": network.input_shape,
        }
        self._file.save(state, events)

    def put_back(self, saved: dict[str, Any], features: FrozenFeatures | None, passes: list[int]) -> None:
        """Let all be as it was when ``saved`` was written, frozen ``features`` included.

        ``passes``: which of the loader's epochs trained the task by then.
        """
        network = self.network
        if saved["probe"] is not None:
            network.probes.note(self.task, saved["probe"], training=True)
        network.train()
        if features is not None:
            self._fill(features, passes)

        good = TrainingState.from_plain(saved["good"])
        present = good if saved["present"] is None else TrainingState.from_plain(saved["present"])
        present.put_back(network, self.optimizer)
        self.good.keep(good)
        for group, rate in zip(self.optimizer.param_groups, saved["rates"]):
            group["lr"] = rate
        network.input_shape = saved["input_shape"]

        self.loader.set_epoch(saved["loader"])
        self.generator.set_state(saved["generator"])
        put_random_state_back(saved["random"], self.device)

    def _fill(self, features: FrozenFeatures, passes: list[int]) -> None:
        """Cache frozen features from the same batches, beside the same number of units, as the task's first epochs.

        What is cached then has the same bits as in the process that was stopped: products of few units may round
        differently beside others. Live units are passed as they are at the beginning, which changes nothing here.
        """
        if not features.reads:
            return
        autocast = self.settings.autocast
        for epoch in passes:
            self.loader.set_epoch(epoch)
            for rows, x, _ in cast(Numbered, self.loader).numbered():
                if features.settled:
                    return
                with torch.autocast(self.device.type, torch.bfloat16) if autocast else nullcontext():
                    with features.batch(rows):
                        self.network(x.to(self.device))

    def _identity(self, loader: Iterable) -> dict[str, Any]:
        """All that must be the same in the process that continues."""
        groups = self.network.groups
        return {
            "kind": "task",
            "task": self.task,
            "settings": asdict(self.settings),
            "optimizer": type(self.optimizer).__name__,
            "units": {group.name: [*group.segments.frozen, group.segments.live] for group in groups},
            "classes": self.network.live_head.out_features,
            "data": identity_of(loader),
        }

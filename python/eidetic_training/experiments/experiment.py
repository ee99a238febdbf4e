"""A whole run from a configuration: every task in turn, the router, and the check that nothing was forgotten."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from eidetic_kernels import EideticNetwork
from eidetic_kernels.checking import path
from eidetic_kernels.errors import InputError
from eidetic_kernels.tasks.checks import choices
from eidetic_kernels.tasks.router_convolutions import check_images
from eidetic_kernels.tasks.transfer import transferring

from .. import models
from ..data import Task
from ..devices import find_device
from ..runs.answers import Recorded
from ..runs.callbacks import Progress, Recorder
from ..runs.folder import RunFolder
from ..runs.report import duration
from ..training.accuracy import Accuracy, ClassCounter
from ..training.epoch import evaluate
from ..training.even_share import even_share
from ..training.events import Callback, checked_callbacks
from ..training.optimizers import make_optimizer
from ..training.router import train_router
from ..training.settings import TaskSettings
from ..training.trainer import train_task
from ..training.widening import widen_by
from . import config as configuration
from .proof import answers, check_past, loader_of, summed_up, verify
from .rehearsal import rehearse_router
from .resuming import resume
from .tasks import make_tasks, planned

ALIGNED = 16  # units; kernels and tensor cores load and multiply 16 half-precision numbers at once


def run_experiment(
    config: dict[str, Any],
    folder: str | Path,
    callbacks: tuple[Callback, ...] = (),
    say: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> RunFolder:
    """Learn the configuration's tasks one after another, then train the router; everything is kept in ``folder``.

    An interrupted run continues after the last epoch that was trained to its end. It ends with the same weights as an
    undisturbed run (on the same machine).

    Args:
        config: a complete configuration (see :func:`eidetic_training.experiments.config.complete`).
        callbacks: called with every event of training.
        say: prints the result of the final check.
        progress: called with every event, and told of every finished task; None is a progress bar.

    Raises:
        InputError: the configuration does not fit the data or the folder, another process writes to the folder, or what
            is needed there is missing or damaged.
        ForgettingError: a finished task's test logits are not those taken when it was learned: in a single bit, or in
            another environment by more than that explains.
    """
    started = time.perf_counter()
    config, folder = configuration.complete(config), path("folder", folder, "a run folder")
    callbacks = tuple(checked_callbacks(callbacks))
    tasks = make_tasks(config["data"], config["seed"])
    routed = _ends_with_router(config, tasks)
    network = build(config, tasks)  # before the folder is made, so that a refused configuration leaves none

    with RunFolder.writing(folder, config) as run:
        network, done, inside, notes = resume(run, network, tasks, routed)
        network.to(find_device(config["device"])).align(_multiple(config))
        progress, recorder = progress or Progress(len(tasks), done), Recorder(run, started)
        for note in notes:
            progress.say(note)
        if inside:
            where = f"in task {done}" if done < len(tasks) else "in the router's training"
            progress.say(f"{run.path}: continuing {where}")
        elif done:
            progress.say(f"{run.path}: continuing after task {done - 1}")

        try:
            for t in range(done, len(tasks)):
                _learn(config, run, network, tasks, t, (progress, recorder, *callbacks))
                scores = [row for row in run.tests if row.learned == t]
                progress.task_done(_line(run, network, tasks[t], t, scores[-1].accuracy))
            if routed and run.router is None:
                _route(config, run, network, tasks, (progress, recorder, *callbacks))
        finally:
            progress.close()
        say(summed_up(len(tasks), verify(run, network, tasks)))
        return run


def build(config: dict[str, Any], tasks: list[Task]) -> EideticNetwork:
    """The fresh network of a configuration whose tasks these are.

    Raises InputError for a model, optimizer, router or device that cannot be.
    """
    find_device(config["device"])
    share, length = config["capacity"]["share"], planned(config["data"])
    if isinstance(share, list) and len(share) != length:
        raise InputError(f"capacity.share must have a fraction for each of {length} tasks; got {len(share)}.")

    torch.manual_seed(config["seed"])
    network = models.build(config["model"]["name"], tasks[0].train.shape, **_arguments(config["model"]))
    network.wiring  # noqa: B018  raises if it cannot be wired
    choices(config["capacity"]["forward_transfer"], [*transferring(network.segmented_layers()), "head"])
    make_optimizer(config["optimizer"]["name"], network.parameters(), **_arguments(config["optimizer"]))

    if _ends_with_router(config, tasks):
        stages, shape = config["router"]["convolutions"], tasks[0].train.shape
        if stages:
            check_images((1, *shape), (shape[0], *stages))
        rehearse_router(_router_options(config), network, tasks)
    return network


def _learn(
    config: dict[str, Any],
    run: RunFolder,
    network: EideticNetwork,
    tasks: list[Task],
    t: int,
    callbacks: tuple[Callback, ...],
) -> None:
    """Learn task ``t``, and record its capacity, its checkpoint and the test accuracy of all tasks so far."""
    data, optimizer = config["data"], config["optimizer"]
    torch.manual_seed((config["seed"] << 16) + t)
    settings = dict(config["task"])
    left = planned(data) - t
    if left == 1 and not config["capacity"]["prune_last"]:
        settings["search"] = "none"

    if t and config["capacity"]["widen"] is not None:
        widen_by(network, config["capacity"]["widen"])
    network.prepare_for_task(
        t,
        tasks[t].num_classes,
        forward_transfer=config["capacity"]["forward_transfer"],
        max_units=_units(config["capacity"]["share"], network, t, left),
    )
    train_task(
        network,
        tasks[t].train_loader(data["batch_size"], config["seed"], find_device(config["device"])),
        make_optimizer(optimizer["name"], network.parameters(), **_arguments(optimizer)),
        settings=TaskSettings.of_dict(settings),
        callbacks=callbacks,
        progress=run.progress_path,
    )

    run.record_capacity(t, network.capacity())
    for past in range(t + 1):
        now = answers(network, tasks, past)
        run.record_test(t, past, now.accuracy)
        if past == t:
            network.save(run.checkpoint_path(t))
            run.record_classes(t, now.classes)
            run.record_answers(t, Recorded.of(now, tasks[t]), now.sample)
        else:
            check_past(run, past, now, tasks[past], learned=t)
    network.save(run.network_path)
    run.progress_path.unlink(missing_ok=True)


def _route(
    config: dict[str, Any],
    run: RunFolder,
    network: EideticNetwork,
    tasks: list[Task],
    callbacks: tuple[Callback, ...],
) -> None:
    """Train the router, and record its accuracy on the test sets beside the oracle's."""
    options, size = _router_options(config), config["router"]["batch_size"]
    loaders = [task.train_loader(size, config["seed"], find_device(config["device"])) for task in tasks]
    torch.manual_seed((config["seed"] << 16) + len(tasks))
    train_router(network, loaders, seed=config["seed"], callbacks=callbacks, progress=run.progress_path, **options)

    named = Accuracy()
    oracle, routed, by_class = [], [], []
    for t, task in enumerate(tasks):
        answered, classes = Accuracy(), ClassCounter(task.num_classes)
        for x, y in loader_of(network, task):
            guess = network.predict(x)
            right = (guess.task == t) & (guess.label == y)
            named.add(guess.task == t)
            answered.add(right)
            classes.add(right, y)
        by_class.append([each.accuracy for each in classes.counts])
        oracle.append(evaluate(network, loader_of(network, task), t).accuracy)
        routed.append(answered.value)

    network.save(run.network_path)  # before the router's record, since a run that has one counts as complete
    run.record_routed_classes(by_class)
    run.record_router(named.value, oracle, routed)
    run.progress_path.unlink(missing_ok=True)


def _units(
    share: float | list[float] | str | None, network: EideticNetwork, task: int, remaining: int
) -> dict[str, int] | float | None:
    """The cap on a task's new units: None, a fraction of the width, or an even share of the free units by group."""
    if isinstance(share, str):  # "even" is the only one
        return even_share(network, remaining)
    return share[task] if isinstance(share, list) else share


def _multiple(config: dict[str, Any]) -> int:
    """The number whose multiples a task's units are kept at, if possible."""
    multiple = config["capacity"]["multiple"]
    return multiple if multiple != "auto" else ALIGNED if find_device(config["device"]).type == "cuda" else 1


def _ends_with_router(config: dict[str, Any], tasks: list[Task]) -> bool:
    return config["router"]["train"] and len(tasks) > 1


def _router_options(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config["router"].items() if key != "train"}


def _line(run: RunFolder, network: EideticNetwork, task: Task, t: int, accuracy: float) -> str:
    """What is printed once task ``t`` is finished."""
    kept = ", ".join(str(row.frozen[t]) for row in network.capacity().rows[:6])
    more = ", ..." if len(network.capacity().rows) > 6 else ""
    so_far = duration(run.seconds)
    return f"task {t} ({task.name}): test accuracy {accuracy:.2%}, kept {kept}{more} units, {so_far} so far"


def _arguments(table: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key != "name"}

"""A made-up run, small enough to know all its numbers."""

import pytest

from eidetic_kernels.tasks.capacity import Capacity, CapacityRow
from eidetic_training import models
from eidetic_training.cli import main
from eidetic_training.runs.answers import Recorded
from eidetic_training.runs.folder import RunFolder
from eidetic_training.runs.inputs import Inputs
from eidetic_training.training.accuracy import ClassCount

CONFIG = {"seed": 0, "model": {"name": "mlp", "width": 20}}
WIDTH = 30  # of both layers together: "first" has 20 units, "second" 10
KEPT = ((5, 3), (4, 0), (6, 2))  # by task: units kept in the first and the second layer
LEARNED = (0.9, 0.75, 0.8)
ROUTER_SECONDS = 5.0


def capacity_after(task):
    """What a network's ``capacity()`` says once `task` is finished."""
    return Capacity(
        tuple(
            CapacityRow(name, width, frozen=tuple(kept[layer] for kept in KEPT[: task + 1]), live=0)
            for layer, (name, width) in enumerate((("first", 20), ("second", 10)))
        )
    )


def network_after(task):
    """An untrained network of the configuration, 4 of its 20 units frozen for each task up to ``task``."""
    network = models.build("mlp", (1, 2, 2), width=20)
    for t in range(task + 1):
        network.prepare_for_task(t, 2, max_units=4)
        network.finish_task()
    return network


def record_task(run, task):
    """Six rows, ten seconds: three epochs, a pruning step, one epoch of recovery, the end."""
    frozen = sum(map(sum, KEPT[:task]))
    kept = sum(KEPT[task])
    history = [
        # seconds, phase, accuracy, live units, frozen units
        (2.0, "train", 0.5, WIDTH - frozen, frozen),
        (4.0, "train", 0.7, WIDTH - frozen, frozen),
        (6.0, "settle", 0.9, WIDTH - frozen, frozen),
        (6.5, "prune", None, kept, frozen),
        (9.5, "recover", 0.85, kept, frozen),
        (10.0, "finish", None, 0, frozen + kept),
    ]

    for epoch, (seconds, phase, accuracy, live, units) in enumerate(history):
        run.append_metric(
            seconds=10.0 * task + seconds,
            task=task,
            phase=phase,
            epoch=epoch,
            step=16 * epoch,
            loss=None if accuracy is None else 1 - accuracy,
            train_accuracy=accuracy,
            live_units=live,
            frozen_units=units,
            width=WIDTH,
        )

    for earlier in range(task + 1):
        run.record_test(learned=task, task=earlier, accuracy=LEARNED[earlier])
    counts = [ClassCount(round(100 * (LEARNED[task] + more)), 100) for more in (0.04, -0.06)]
    run.record_classes(task, counts)
    run.record_capacity(task, capacity_after(task))
    run.record_answers(task, Recorded(f"{task:064x}"))
    network_after(task).save(run.checkpoint_path(task))


def record_router(run):
    run.append_metric(
        seconds=10.0 * len(KEPT) + ROUTER_SECONDS,
        task=len(KEPT),
        phase="router",
        epoch=0,
        step=0,
        loss=0.1,
        train_accuracy=0.95,
        live_units=0,
        frozen_units=20,
        width=WIDTH,
    )
    run.record_routed_classes([[0.8, 0.8], [0.7, 0.69], [0.75, 0.7]])
    run.record_router(0.875, oracle=LEARNED, routed=[0.8, 0.7, 0.75])


@pytest.fixture
def new_run(tmp_path):
    """A run that has recorded nothing."""
    return RunFolder.create(tmp_path / "run", CONFIG)


@pytest.fixture
def made_up_run(new_run):
    """Three tasks and the router."""
    new_run.record_inputs(Inputs((1, 2, 2), (0.5,), (0.5,), ((0, 1),) * len(KEPT)))
    for task in range(len(KEPT)):
        record_task(new_run, task)
    record_router(new_run)
    return new_run


@pytest.fixture
def eidetic(capsys):
    """eidetic(*arguments) -> (exit status, standard output, standard error)."""

    def eidetic(*arguments):
        capsys.readouterr()
        status = main([str(each) for each in arguments])
        return status, *capsys.readouterr()

    return eidetic

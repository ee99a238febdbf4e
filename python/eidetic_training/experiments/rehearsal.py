"""What comes last in a run, tried before it begins."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from eidetic_kernels import EideticNetwork
from eidetic_kernels.checking import first_line
from eidetic_kernels.errors import EideticError, InputError

from ..data import Task, TensorLoader
from ..training.router import train_router

IMAGES = 4  # of each task


def rehearse_router(options: dict[str, Any], network: EideticNetwork, tasks: Sequence[Task]) -> None:
    """Train a router for an epoch on a few images, on a copy of a ``network`` that has learned nothing.

    Options that it cannot be trained with would be found only after all tasks were learned otherwise.

    Args:
        options: those of :func:`~eidetic_training.train_router`.

    Raises InputError for such options.
    """
    trial, loaders = copy.deepcopy(network), []
    short = {**options, "max_epochs": 1, "polish_epochs": min(1, options["polish_epochs"])}

    try:
        for t, task in enumerate(tasks[:2]):
            whole = task.train_loader(options["batch_size"])
            few = TensorLoader(
                whole.x[:IMAGES],
                whole.y[:IMAGES],
                whole.batch_size,
                preparation=whole.preparation,
                num_classes=task.num_classes,
            )

            trial.prepare_for_task(t, task.num_classes, max_units=0.4)
            for x, _ in TensorLoader(few.x, few.y, IMAGES, preparation=few.preparation):
                trial.train()(x)
            trial.finish_task()
            loaders.append(few)
        train_router(trial, loaders, **short)
    except EideticError as error:
        raise InputError(f"the router cannot be trained: {error}") from error
    except (RuntimeError, ValueError) as error:  # of torch
        raise InputError(
            f"the router cannot be trained with these options: {first_line(error).rstrip('.')}."
        ) from error

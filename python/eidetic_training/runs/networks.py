"""The networks of a run, read back from its folder."""

from __future__ import annotations

from os import PathLike

from eidetic_kernels import EideticNetwork
from eidetic_kernels.checking import whole_number
from eidetic_kernels.errors import InputError

from .. import models
from .folder import RunFolder, open_run


def load_network(run: RunFolder | str | PathLike[str], learned: int | None = None) -> EideticNetwork:
    """The latest network of a run folder, or the one after task ``learned``, on the CPU.

    Raises InputError before the run has begun a task, CheckpointError for a file that is missing or damaged.
    """
    run = open_run(run)
    if learned is not None:
        learned = whole_number("learned", learned)
    path = run.network_path if learned is None else run.checkpoint_path(learned)
    model = run.config.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("name"), str):
        raise InputError(
            f"{run.path / 'config.json'} is damaged: it names no model. Restore it from a copy of the run."
        )
    arguments = {key: value for key, value in model.items() if key != "name"}
    fresh = models.build(model["name"], run.inputs.shape, **arguments)
    return EideticNetwork.load(path, network=fresh)

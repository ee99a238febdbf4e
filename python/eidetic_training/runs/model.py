"""A network that a command is given: that of a run, or one saved to a file."""

from __future__ import annotations

from pathlib import Path

from eidetic_kernels import EideticNetwork
from eidetic_kernels.errors import CheckpointError
from eidetic_kernels.records.checkpoint import NeedsClass

from .folder import RunFolder
from .networks import load_network


def open_model(path: Path) -> tuple[EideticNetwork, RunFolder | None]:
    """The network in a run folder and the run, or the network in a file and None.

    A file's network must be of a class of ``eidetic_training.models``. No code is imported that a file names. Raises
    CheckpointError for another, which says how to do it in Python, and for a damaged file; InputError for a folder that
    is no run.
    """
    if not path.is_file():
        run = RunFolder(path)
        return load_network(run), run
    try:
        return EideticNetwork.load(path), None
    except NeedsClass as error:
        raise CheckpointError(
            f"{error} This command knows networks of eidetic_training alone. In Python: "
            "ek.EideticNetwork.load(path).certify(against=..., key=...).check(), where the class is imported, or with "
            "network= for load."
        ) from error

"""Whole files or none: what is written replaces what was there at once, and survives a crash."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from .errors import CheckpointError, InputError

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path to write to; on leaving, it takes the place of ``path``. On an error, ``path`` stays as it was.

    Readers see the old file or the new one, never a part of either, and after a crash of the machine too: the file and
    its folder are flushed to disk. A link is followed, so that it still points where it did; the mode of an existing
    file is kept. Folders on the way are created.

    Raises InputError where ``path`` is there and is no file: a folder, a device, a pipe or a socket. Errors of the
    system inside (OSError) name ``path``, and not the temporary one.
    """
    target = Path(os.path.realpath(path))
    check_file(path)
    with naming(path):
        target.parent.mkdir(parents=True, exist_ok=True)
        with _replacing(target) as temporary:
            yield temporary


def check_file(path: str | Path) -> None:
    """Raise InputError if ``path``, or what it links to, is there and is no file."""
    target = Path(path)
    if target.exists() and not target.is_file():
        mode = target.stat().st_mode
        what = next((name for is_one, name in _KINDS if is_one(mode)), "no file")
        raise InputError(f"{path} is {what}, which no file can take the place of. Name a file, new or old.")


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Inside, errors of the system name ``path``: those of writing to a full disk name no file of their own."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def write_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write dense ``tensors`` that share no memory as one file of safetensors, whole or not at all.

    Raises CheckpointError where the file cannot be written, InputError where ``path`` is there and is no file.
    """
    try:
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata=None if metadata is None else dict(metadata))
    except (OSError, SafetensorError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{path} cannot be written ({said}); what was there before is as it was.") from error


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        temporary.touch()
        # Some writers make files that only their owner may read: the mode is that of the old file, or of any new one.
        like = target if target.exists() else temporary
        mode = stat.S_IMODE(like.stat().st_mode)
        yield temporary
        temporary.chmod(mode)
        _flush(temporary)
        os.replace(temporary, target)
        _flush(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

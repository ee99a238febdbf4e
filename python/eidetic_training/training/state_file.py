"""A tree of plain values and tensors in one file of safetensors and JSON, whole or not at all."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from eidetic_kernels.errors import CheckpointError, InputError
from eidetic_kernels.files import write_tensors
from eidetic_kernels.tasks.record import digest

FORMAT = 1
_PLAIN = (type(None), bool, int, float, str)


def write(path: str | Path, tree: Any) -> None:
    """Write ``tree``, made of None, booleans, numbers, text, lists, tuples, dictionaries and dense tensors.

    A reader sees the old file or the new one, never a part of either. Numbers read back as the same bits, tensors also
    with their strides and on their device.

    Raises InputError for anything else in ``tree``, CheckpointError where the file cannot be written.
    """
    tensors, storages = dict[str, Tensor](), set[int]()
    text = json.dumps({"format": FORMAT, "tree": _described(tree, tensors, storages)})
    write_tensors(path, tensors, {"state": text, "sha256": _content(text, tensors)})


def read(path: str | Path) -> Any:
    """What was written to ``path``. Raises CheckpointError where there is no such file, or it is damaged."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            # Clones, since a mapped file could change under the training, and its tensors may be unaligned.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        text = metadata["state"]
        if metadata["sha256"] != _content(text, tensors):
            raise CheckpointError(f"{path} is damaged: its contents are not what was saved. Delete it to begin anew.")
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise CheckpointError(f"{path} has format {content['format']!r}; this version reads format {FORMAT}.")
        return _restored(content["tree"], tensors)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} does not hold the progress of training, or is damaged ({type(error).__name__}: {error}). Delete "
            "it to begin anew."
        ) from error


def _described(value: Any, tensors: dict[str, Tensor], storages: set[int]) -> Any:
    """``value`` as JSON; its tensors are added to ``tensors``, none of which share their ``storages``."""
    if isinstance(value, Tensor):
        name, tensor = str(len(tensors)), value.detach()
        order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
        flat = tensor.permute(order).cpu().contiguous()
        shared = flat.untyped_storage().data_ptr() in storages
        tensors[name] = flat.clone() if shared else flat
        storages.add(tensors[name].untyped_storage().data_ptr())
        return {"tensor": name, "order": order, "device": str(tensor.device)}

    if isinstance(value, list):
        return [_described(each, tensors, storages) for each in value]
    if isinstance(value, tuple):
        return {"tuple": [_described(each, tensors, storages) for each in value]}
    if isinstance(value, dict):
        return {
            "dict": [
                [_described(key, tensors, storages), _described(each, tensors, storages)] for key, each in value.items()
            ]
        }
    if type(value) in _PLAIN:
        return value
    raise InputError(f"a {type(value).__name__} cannot be written; expected plain values and tensors.")


def _restored(described: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(described, list):
        return [_restored(each, tensors) for each in described]
    if not isinstance(described, dict):
        return described
    if "tuple" in described:
        return tuple(_restored(each, tensors) for each in described["tuple"])
    if "dict" in described:
        return {_restored(key, tensors): _restored(each, tensors) for key, each in described["dict"]}
    order = described["order"]
    back = sorted(range(len(order)), key=order.__getitem__)
    return tensors[described["tensor"]].to(described["device"]).permute(back)


def _content(text: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256 over the description and every tensor with its name."""
    sha = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        sha.update(f"{name} {digest(tensors[name])}".encode())
    return sha.hexdigest()

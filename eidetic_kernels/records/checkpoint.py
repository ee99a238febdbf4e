"""Saving and loading: one safetensors file with the network's structure as JSON in its header, and no pickle."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from .. import checking
from ..checking import first_line
from ..errors import CheckpointError, EideticError, InputError
from ..files import write_tensors
from ..layers import StaircaseLayer
from ..layout import Segments
from ..modes import outside_inference
from ..tasks.base import BaseNetwork, head_of
from ..tasks.optimizer_state import watch_head
from ..tasks.record import digest
from ..tasks.routing import Router
from ..tasks.transfer import TransferringLayer, transferring
from ..version import __version__
from ..wiring.groups import Group
from . import recording
from .header import read_header

FORMAT = 1


class NeedsClass(CheckpointError):
    """The file does not say by itself how to build its network: give its class, or a fresh network."""


# Modules that were moved, by their old names. Saved files name a class by its module, so old names must be understood
# for ever.
_MOVED = {
    "eidetic_kernels.convert": "eidetic_kernels.conversion.convert",
    "eidetic_kernels.published_networks": "eidetic_kernels.published.networks",
}


def save(network: BaseNetwork, path: str | Path) -> None:
    """See :meth:`EideticNetwork.save`. A reader sees the old file or the new one, never half of one."""
    path = checking.path("path", path)
    if Path(path).is_dir():
        raise InputError(f"{path} is a folder; name a file in it, such as {Path(path) / 'network.safetensors'}.")
    recording.check_numbers(network, "save")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    header = json.dumps(_structure(network))
    write_tensors(path, tensors, {"eidetic": header, "sha256": _content(header, tensors)})


@outside_inference()
def load(cls: type[BaseNetwork], path: str | Path, network: BaseNetwork | None = None) -> BaseNetwork:
    """See :meth:`EideticNetwork.load`. A ``network`` that is given serves as the architecture and is not changed."""
    path = Path(checking.path("path", path))
    if network is not None:
        checking.instance("network", network, BaseNetwork, "a fresh EideticNetwork of the same architecture")
    header, tensors = _read(path)
    if "probe" in tensors:  # earlier versions had the same inputs for all tasks
        probe = tensors.pop("probe")
        tensors |= {f"probes.{entry['task']}": probe for entry in header["records"]}
    fresh = _construct(cls, header, path) if network is None else _copied(network)
    if fresh.current_task is not None or fresh.finished_tasks:
        raise CheckpointError(
            f"load needs a fresh network, one that has not begun a task; got one with {fresh.finished_tasks} finished "
            f"tasks and task {fresh.current_task} in training. Construct a new one."
        )

    recording.check_numbers(fresh, "load into")
    expected = {group.name: group.built_width for group in fresh.groups}
    saved = {entry["name"]: entry["built_width"] for entry in header["groups"]}
    if expected != saved:
        raise CheckpointError(
            f"{path} holds another architecture: its unit groups and widths are {saved}, the network's {expected}."
        )

    try:
        fresh.to(getattr(torch, header["dtype"]))
        _build(fresh, header, tensors)
        fresh.load_state_dict(tensors, strict=True)
    except (EideticError, *_MISFITS) as error:
        raise CheckpointError(f"{path} does not fit {type(fresh).__name__}: {error}") from error
    watch_head(fresh)
    return fresh


# What a header that contradicts its tensors, or the network's class, may end in.
_MISFITS = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)


def _structure(network: BaseNetwork) -> dict[str, Any]:
    """What the header says: everything of a network but its tensors."""
    args, kwargs = network.constructor_arguments
    heads = [head_of(network, task) for task in range(len(network.heads))]
    return {
        "format": FORMAT,
        "version": __version__,
        "class": _class_name(type(network)),
        "arguments": _json_or_none({"args": list(args), "kwargs": kwargs}),
        "current_task": network.current_task,
        "head_forward_transfer": network.head_forward_transfer,
        "input_shape": network.input_shape,
        "dtype": str(_first_layer(network).weight.dtype).removeprefix("torch."),
        "groups": [
            {
                "name": group.name,
                "built_width": group.built_width,
                "width": group.segments.width,
                "frozen": group.segments.frozen,
                "live": group.segments.live,
                "multiple": group.segments.multiple,
            }
            for group in network.groups
        ],
        "forward_transfer": {
            path: layer.forward_transfer for group in network.groups for path, layer in _choosing(group).items()
        },
        "heads": [{"classes": head.out_features, "forward_transfer": head.forward_transfer} for head in heads],
        **({"router_tasks": None} if network.router is None else network.router.header()),
        "router_fingerprint": network.router_fingerprint,
        "records": [recording.to_json(entry) for entry in network.records],
    }


def _build(network: BaseNetwork, header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Give a fresh ``network`` the saved structure. Its tensors are allocated, but not filled yet."""
    _check_counts(network, header, tensors)
    transfer = header["forward_transfer"]
    for group, saved in zip(network.groups, header["groups"], strict=True):
        group.segments.widen(saved["width"])
        group.segments.assign(tuple(saved["frozen"]), saved["live"])
        group.segments.align(saved.get("multiple", 1))
    for group in network.groups:
        for path, layer in _choosing(group).items():
            layer.forward_transfer = tuple(transfer[path])
    for group in network.groups:
        choosing = _choosing(group)
        for path, layer in group.producers.items():
            _check_sizes(path, layer, tensors)
        for path, layer in [*group.producers.items(), *group.norms.items()]:
            layer.allocate_frozen()
            if path in choosing:
                choosing[path].renew_live(transfer[path][-1])
            else:
                layer.renew_live()

    network.current_task = header["current_task"]
    for task, saved in enumerate(header["heads"]):
        _build_head(network, task, saved)
    network.head_forward_transfer = header["head_forward_transfer"]
    network.input_shape = None if header["input_shape"] is None else tuple(header["input_shape"])
    if header["router_tasks"] is not None:
        of_router = {name.removeprefix("router."): t for name, t in tensors.items() if name.startswith("router.")}
        network.router = Router.from_header(header, of_router)
        network.router_fingerprint = header.get("router_fingerprint")
    probes = {name.removeprefix("probes."): t for name, t in tensors.items() if name.startswith("probes.")}
    network.probes.hold({name: torch.empty_like(tensor) for name, tensor in probes.items()})
    network.records = [recording.from_json(entry) for entry in header["records"]]


def _check_counts(network: BaseNetwork, header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Raise CheckpointError for more units or heads than the file has tensors for, before any are made."""
    numbers = sum(tensor.numel() for tensor in tensors.values())
    for group, saved in zip(network.groups, header["groups"], strict=True):
        if sum(saved["frozen"]) + saved["live"] > numbers + group.built_width:
            raise CheckpointError(f"{group.name} is said to hold more units than the file has numbers.")
    for task, saved in enumerate(header["heads"]):
        bias = tensors.get(f"heads.{task}.{'bias' if task == header['current_task'] else 'frozen_bias'}")
        if bias is None or len(bias) != saved["classes"]:
            raise CheckpointError(f"the head of task {task} is said to have {saved['classes']} classes; it has not.")


def _check_sizes(path: str, layer: StaircaseLayer, tensors: dict[str, torch.Tensor]) -> None:
    """Raise CheckpointError where the file's weights do not fill the layer's staircase, before it is allocated."""
    stairs, kernel = layer.staircase(), layer.weight.shape[2:].numel()
    frozen = sum(stair.rows * stair.columns for stair in stairs.frozen) * kernel
    live = 0 if stairs.live is None else stairs.live.rows * stairs.live.columns * kernel
    for name, needed in ((f"{path}.frozen_weight", frozen), (f"{path}.weight", live)):
        found = tensors[name].numel() if name in tensors else 0
        if found != needed:
            raise CheckpointError(f"{name} has {found} numbers, and its staircase {needed}.")


def _build_head(network: BaseNetwork, task: int, saved: dict[str, Any]) -> None:
    """Add the head of ``task``, which has no frozen rows while the task is in training, and no live ones afterwards."""
    segments = Segments(saved["classes"], frozen=(0,) * task)
    head = network.make_head(segments, (*(True,) * task, saved["forward_transfer"][task]))
    if task != network.current_task:
        segments.assign((*(0,) * task, saved["classes"]), 0)
        head.forward_transfer = tuple(saved["forward_transfer"])
        head.close_live()
    head.allocate_frozen()
    network.heads.append(head)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Header and tensors of a file. Raises CheckpointError where it is damaged, or no such file."""
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}.")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            # Clones, since a mapped file could change under the network, and its tensors may be unaligned.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        intact = metadata["sha256"] == _content(metadata["eidetic"], tensors)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} is not a network saved by this package, or is damaged ({type(error).__name__}: {error})."
        ) from error
    if not intact:
        raise CheckpointError(f"{path} is damaged: its contents are not what was saved. Use another copy.")
    return read_header(metadata["eidetic"], str(path), FORMAT), tensors


def _copied(network: BaseNetwork) -> BaseNetwork:
    fresh = copy.deepcopy(network)
    fresh.as_architecture()
    return fresh


def _construct(cls: type[BaseNetwork], header: dict[str, Any], path: Path) -> BaseNetwork:
    """A fresh network of the saved class (or of ``cls``, if it has a forward), built with the saved arguments."""
    if _is_abstract(cls):
        name = _present_name(header["class"])
        found = next((each for each in _subclasses(BaseNetwork) if _class_name(each) == name), None)
        if found is None:
            raise NeedsClass(
                f"{path} holds a network of class {name!r}, which is not defined here. Import it first (no code "
                "is taken from the file), call load on the class itself, or pass a fresh instance: "
                "load(path, network=...)."
            )
        cls = found

    if cls.rebuilt_by is not None:
        raise NeedsClass(f"{path} cannot be read alone, since {cls.rebuilt_by}.")
    if header["arguments"] is None:
        raise NeedsClass(
            f"{cls.__name__} was built with arguments that JSON cannot hold. Pass a fresh instance: "
            "load(path, network=...)."
        )

    try:
        fresh = cls(*header["arguments"]["args"], **header["arguments"]["kwargs"])
        fresh.as_architecture()
        fresh.wiring  # noqa: B018  raises where these arguments make no network
        return fresh
    except (EideticError, *_MISFITS) as error:
        raise CheckpointError(
            f"{cls.__name__} cannot be built with the saved arguments ({type(error).__name__}: {first_line(error)}). "
            "Pass a fresh instance: load(path, network=...)."
        ) from error


def _content(header: str, tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 over the header and every tensor with its name."""
    sha = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        sha.update(f"{name} {digest(tensors[name])}".encode())
    return sha.hexdigest()


def _json_or_none(value: Any) -> Any:
    """``value`` as JSON reads it back; None where JSON cannot hold it."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError):
        return None


def _subclasses(cls: type[BaseNetwork]) -> Iterator[type[BaseNetwork]]:
    for each in cls.__subclasses__():
        yield each
        yield from _subclasses(each)


def _choosing(group: Group) -> dict[str, TransferringLayer]:
    """The layers on ``group`` that choose, segment by segment, between nested and disjoint reading, by path."""
    return transferring([*group.producers.items(), *group.norms.items()])


def _first_layer(network: BaseNetwork) -> StaircaseLayer:
    return next(iter(network.groups[0].producers.values()))


def _present_name(saved: str) -> str:
    """Today's name of a saved class, whose module may have been moved since."""
    module, _, name = saved.partition(":")
    return f"{_MOVED.get(module, module)}:{name}"


def _is_abstract(cls: type[BaseNetwork]) -> bool:
    """Whether ``cls`` has no forward of its own, so that the file must name the class."""
    return cls.forward is nn.Module.forward


def _class_name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"

"""What is recorded of a finished task: fingerprints, and its logits for a few inputs (P6)."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError
from ..layers import SegmentedLayer
from ..modes import evaluating, uncompiled
from ..tasks.base import OWN_MODULES, BaseNetwork, head_of
from ..tasks.foreign import shared_tensors
from ..tasks.inputs import each_of
from ..tasks.record import Environment, TaskRecord, digest
from .environment import environment


def record(network: BaseNetwork, task: int) -> TaskRecord:
    """The record of ``task``, which was just finished."""
    logits, samples = probe_logits(network, task), network.probes.tensors_of(task)
    return TaskRecord(
        task,
        {group.name: group.segments.size(task) for group in network.groups},
        {path: digest(*tensors) for path, tensors in frozen_tensors(network, task)},
        None if logits is None else digest(logits),
        environment_of(network),
        shared_fingerprints(network),
        None if logits is None else encoded(logits),
        digest(*samples) if samples else None,
    )


def to_json(entry: TaskRecord) -> dict[str, Any]:
    """A record as a checkpoint's header holds it."""
    return asdict(entry)


def from_json(values: dict[str, Any]) -> TaskRecord:
    """The reverse of :func:`to_json`."""
    return TaskRecord(**values)


def check_numbers(network: BaseNetwork, to_do: str) -> None:
    """Raise InputError where tensors lie on torch's meta device, which holds no numbers, before ``to_do`` begins."""
    tensors = itertools.chain(nn.Module.named_parameters(network), network.named_buffers())
    missing = [name for name, tensor in tensors if tensor.is_meta]
    if missing:
        more = f" and {len(missing) - 1} more tensors lie" if len(missing) > 1 else " lies"
        raise InputError(
            f"{missing[0]}{more} on the meta device, which holds no numbers: {to_do} a network on a CPU or GPU, which "
            "was built or loaded outside torch.device('meta')."
        )


def frozen_tensors(network: BaseNetwork, task: int) -> Iterator[tuple[str, list[Tensor]]]:
    """(layer's path, its tensors that belong to ``task``), for every layer and the task's head."""
    for group in network.groups:
        for path, layer in group.producers.items():
            yield path, [tensor for tensor in layer.frozen_rows_of(task) if tensor is not None]
        for path, norm in group.norms.items():
            start, stop = norm.segments.start(task), norm.segments.stop(task)
            slices = slice(start // norm.shared, stop // norm.shared)
            yield path, [tensor[slices] for _, tensor in frozen_of(norm)]
    yield f"heads.{task}", [tensor for tensor in head_of(network, task).frozen_rows_of(task) if tensor is not None]


def frozen_of(layer: SegmentedLayer) -> list[tuple[str, Tensor]]:
    """(name, tensor) of a normalisation's frozen tensors: one row for every ``layer.shared`` frozen units."""
    tensors = [(name, getattr(layer, name)) for name in layer.frozen_names]
    return [(name, tensor) for name, tensor in tensors if tensor is not None]


def shared_fingerprints(network: BaseNetwork) -> dict[str, str]:
    """SHA-256 of the tensors that belong to no task, by module; the network's own are under ""."""
    prints = {path: digest(*tensors) for path, tensors in shared_tensors(network, OWN_MODULES)}
    # Not network.parameters(), which lists what may be trained.
    own = nn.Module.named_parameters(network, recurse=False), network.named_buffers(recurse=False)
    tensors = [tensor for named in own for _, tensor in named]
    return {**prints, "": digest(*tensors)} if tensors else prints


@torch.no_grad()
def probe_logits(network: BaseNetwork, task: int) -> Tensor | None:
    """Finished ``task``'s logits [n, classes] for its probe inputs; None without these.

    They are computed in evaluation mode, without autocast (a certificate is about the network's own precision), and as
    Python, also where the network is compiled.
    """
    samples = network.probes.of(task)
    if samples is None:
        return None
    head = head_of(network, task)
    # net.to(memory_format=...) changes the samples' strides. With one channel, contiguous() would not undo that.
    dtype = head.frozen_weight.dtype

    def plain(tensor: Tensor) -> Tensor:
        tensor = tensor.clone(memory_format=torch.contiguous_format)
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    samples = each_of(samples, plain)
    with evaluating(network), uncompiled(network), torch.autocast(head.frozen_weight.device.type, enabled=False):
        return network(samples, task=task)


def encoded(logits: Tensor) -> str:
    return base64.b64encode(logits.double().cpu().contiguous().numpy().tobytes()).decode()


def decoded(values: str, shape: torch.Size) -> Tensor:
    """The reverse of :func:`encoded`; NaN, which equals nothing, where the numbers do not fill ``shape``."""
    try:
        numbers = np.frombuffer(base64.b64decode(values, validate=True), dtype=np.float64)
    except ValueError:
        numbers = np.empty(0)
    if numbers.size != shape.numel():
        return torch.full(shape, torch.nan, dtype=torch.float64)
    return torch.from_numpy(numbers.copy()).view(shape)


def environment_of(network: BaseNetwork) -> Environment:
    return environment(head_of(network, 0).frozen_weight)

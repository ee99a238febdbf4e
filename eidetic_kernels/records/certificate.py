"""Certificates: each finished task is compared with its record, to prove that nothing was forgotten (P6)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ForgettingError
from ..layers import SegmentedLayer
from ..modes import evaluating
from ..tasks.base import BaseNetwork, head_of
from ..tasks.record import Environment, TaskRecord
from .environment import differences, environment

PROBES = 8
PROBE_SEED = 20250213


@dataclass(frozen=True)
class Certificate:
    """The outcome of checking every finished task. It prints as a report.

    Args:
        tasks: how many finished tasks were checked.
        problems: what differs from the records, by task and layer; empty when nothing was forgotten.
        notes: what could not be checked, and why.
    """

    tasks: int
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every finished task is what it was."""
        return not self.problems

    def check(self) -> None:
        """Raise ForgettingError unless every finished task is what it was."""
        if self.problems:
            raise ForgettingError(str(self))

    def __str__(self) -> str:
        verdict = f"{self.tasks} finished tasks: " + ("nothing was forgotten." if self.ok else "NOT what they were.")
        return "\n".join([verdict, *self.problems, *self.notes])


def digest(*tensors: Tensor) -> str:
    """SHA-256 over dtype, shape and bytes of the tensors."""
    sha = hashlib.sha256()
    for tensor in tensors:
        values = tensor.detach().cpu().contiguous()
        sha.update(f"{values.dtype}{tuple(values.shape)}".encode())
        sha.update(values.flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def record(network: BaseNetwork, task: int) -> TaskRecord:
    """The record of ``task``, which was just finished. The first record with a known input shape makes the probe."""
    if network.probe is None and network.input_shape is not None:
        generator = torch.Generator().manual_seed(PROBE_SEED)
        like = head_of(network, task).frozen_weight
        probe = torch.randn(PROBES, *network.input_shape, generator=generator)
        network.probe = probe.to(device=like.device, dtype=like.dtype)

    return TaskRecord(
        task,
        {group.name: group.segments.size(task) for group in network.groups},
        {path: digest(*tensors) for path, tensors in _frozen_tensors(network, task)},
        _probe_digest(network, task),
        _environment(network),
    )


def certify(network: BaseNetwork) -> Certificate:
    """See :meth:`EideticNetwork.certify`."""
    problems: list[str] = []
    notes: list[str] = []
    if len(network.records) != network.finished_tasks:
        problems.append(f"- {len(network.records)} records for {network.finished_tasks} finished tasks.")
    problems += _structure_problems(network)
    if not problems:  # a structure that is damaged has no fingerprints and no logits
        for entry in network.records:
            problems += _task_problems(network, entry, notes)
    return Certificate(network.finished_tasks, tuple(problems), tuple(dict.fromkeys(notes)))


def to_json(entry: TaskRecord) -> dict[str, Any]:
    """A record as a checkpoint's header holds it."""
    return asdict(entry)


def from_json(values: dict[str, Any]) -> TaskRecord:
    """The reverse of :func:`to_json`."""
    return TaskRecord(**values)


def _task_problems(network: BaseNetwork, entry: TaskRecord, notes: list[str]) -> Iterator[str]:
    """Differences in frozen tensors and logits; what cannot be compared is added to ``notes``."""
    for path, tensors in _frozen_tensors(network, entry.task):
        if entry.fingerprints.get(path) != digest(*tensors):
            yield f"- task {entry.task}: {path}: its frozen tensors are not the ones that were recorded."

    if entry.logits is None:
        notes.append(
            f"- task {entry.task}: the network had seen no input when it was finished; no logits were recorded."
        )
    elif entry.environment != (here := _environment(network)):
        notes.append(
            f"- logits were recorded with {differences(entry.environment, here)} and cannot be compared bit for bit; "
            "structure and fingerprints were checked."
        )
    elif entry.logits != _probe_digest(network, entry.task):
        yield f"- task {entry.task}: its logits of the probe inputs are not the ones that were recorded."


def _structure_problems(network: BaseNetwork) -> list[str]:
    """Differences in the numbers of units, and tensors whose sizes do not fit them."""
    problems: list[str] = []
    for group in network.groups:
        for entry in network.records:
            size = group.segments.frozen[entry.task] if entry.task < group.segments.tasks else None
            if size != entry.units.get(group.name):
                problems.append(
                    f"- task {entry.task}: {group.name} has {size} units where {entry.units.get(group.name)} were kept."
                )

    producers = [(path, layer) for group in network.groups for path, layer in group.producers.items()]
    producers += [(f"heads.{task}", head_of(network, task)) for task in range(network.finished_tasks)]
    for path, layer in producers:
        kernel = layer.weight.shape[2:].numel()
        needed = sum(stair.rows * stair.columns for stair in layer.staircase().frozen) * kernel
        if layer.frozen_weight.numel() != needed:
            problems.append(f"- {path}: {layer.frozen_weight.numel()} frozen weights, but its staircase has {needed}.")

    for group in network.groups:
        for path, norm in group.norms.items():
            for name, tensor in _frozen_of(norm):
                if len(tensor) * norm.shared != group.segments.frozen_total:
                    what = name.replace("_", " ") + "s"
                    problems.append(f"- {path}: {len(tensor)} {what} for {group.segments.frozen_total} frozen units.")
    return problems


def _frozen_tensors(network: BaseNetwork, task: int) -> Iterator[tuple[str, list[Tensor]]]:
    """(layer's path, its tensors that belong to ``task``), for every layer and the task's head."""
    for group in network.groups:
        rows = slice(group.segments.start(task), group.segments.stop(task))
        for path, layer in group.producers.items():
            yield path, [tensor for tensor in layer.frozen_rows_of(task) if tensor is not None]
        for path, norm in group.norms.items():
            slices = slice(rows.start // norm.shared, rows.stop // norm.shared)
            yield path, [tensor[slices] for _, tensor in _frozen_of(norm)]
    yield f"heads.{task}", [tensor for tensor in head_of(network, task).frozen_rows_of(task) if tensor is not None]


def _frozen_of(layer: SegmentedLayer) -> list[tuple[str, Tensor]]:
    """(name, tensor) of a normalisation's frozen tensors: one row for every ``layer.shared`` frozen units."""
    tensors = [(name, getattr(layer, name)) for name in layer.frozen_names]
    return [(name, tensor) for name, tensor in tensors if tensor is not None]


@torch.no_grad()
def _probe_digest(network: BaseNetwork, task: int) -> str | None:
    """SHA-256 of the task's logits for the probe inputs; None without probe inputs."""
    if network.probe is None:
        return None
    # Outside autocast: a certificate is about the network's own precision.
    with evaluating(network), torch.autocast(network.probe.device.type, enabled=False):
        # net.to(memory_format=...) changes the probe's strides. With one channel, contiguous() would not undo that.
        probe = network.probe.clone(memory_format=torch.contiguous_format)
        return digest(network(probe, task=task))


def _environment(network: BaseNetwork) -> Environment:
    return environment(head_of(network, 0).frozen_weight)

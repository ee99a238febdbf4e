"""Certificates: each finished task is compared with its record, to prove that nothing was forgotten (P6)."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import EideticError, ForgettingError
from ..layers import SegmentedLayer
from ..modes import evaluating, uncompiled
from ..tasks.base import OWN_MODULES, BaseNetwork, head_of
from ..tasks.foreign import shared_tensors
from ..tasks.record import Environment, TaskRecord, digest
from .environment import differences, environment

# In another environment logits are compared as numbers: how far they may lie apart, in units of the largest recorded
# one. Threads, memory formats, attention kernels and compilation were seen to change float32 logits by 5e-7 at most.
TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
REDUCED = 1e-2  # where float32 products may run in TF32 or bfloat16


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


def record(network: BaseNetwork, task: int) -> TaskRecord:
    """The record of ``task``, which was just finished."""
    logits = probe_logits(network, task)
    return TaskRecord(
        task,
        {group.name: group.segments.size(task) for group in network.groups},
        {path: digest(*tensors) for path, tensors in _frozen_tensors(network, task)},
        None if logits is None else digest(logits),
        _environment(network),
        shared_fingerprints(network),
        None if logits is None else _encoded(logits),
    )


def certify(network: BaseNetwork) -> Certificate:
    """See :meth:`EideticNetwork.certify`."""
    problems: list[str] = []
    notes: list[str] = []
    if len(network.records) != network.finished_tasks:
        problems.append(f"- {len(network.records)} records for {network.finished_tasks} finished tasks.")
    problems += _structure_problems(network)
    if not problems and network.records:  # a structure that is damaged has no fingerprints and no logits
        here, shared = _environment(network), shared_fingerprints(network)
        for entry in network.records:
            problems += _fingerprint_problems(network, entry, shared, here, notes)
            problems += _logit_problems(network, entry, here, notes)
    problems += _router_problems(network, notes)
    return Certificate(network.finished_tasks, tuple(problems), tuple(dict.fromkeys(notes)))


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
    samples = samples.clone(memory_format=torch.contiguous_format)
    if samples.is_floating_point():
        samples = samples.to(head.frozen_weight.dtype)
    with evaluating(network), uncompiled(network), torch.autocast(samples.device.type, enabled=False):
        return network(samples, task=task)


def to_json(entry: TaskRecord) -> dict[str, Any]:
    """A record as a checkpoint's header holds it."""
    return asdict(entry)


def from_json(values: dict[str, Any]) -> TaskRecord:
    """The reverse of :func:`to_json`."""
    return TaskRecord(**values)


def _fingerprint_problems(
    network: BaseNetwork, entry: TaskRecord, shared: dict[str, str], here: Environment, notes: list[str]
) -> Iterator[str]:
    """Frozen and shared tensors whose bits are not the recorded ones."""
    if entry.environment.get("dtype") != here["dtype"]:
        notes.append(
            f"- the network was finished in {entry.environment.get('dtype')} and is {here['dtype']} now: fingerprints "
            "cannot be compared, logits were compared as numbers. Load the saved file to compare bits."
        )
        return
    for path, tensors in _frozen_tensors(network, entry.task):
        if entry.fingerprints.get(path) != digest(*tensors):
            yield f"- task {entry.task}: {path}: its frozen tensors are not the ones that were recorded."
    if entry.shared is None:
        notes.append("- tensors that belong to no task were not recorded by the version that finished these tasks.")
        return
    for path in dict.fromkeys([*entry.shared, *shared]):
        if entry.shared.get(path) != shared.get(path):
            where = f"{path}: tensors" if path else "the network's own tensors"
            yield f"- task {entry.task}: {where} that belong to no task are not the ones that were recorded."


def _logit_problems(network: BaseNetwork, entry: TaskRecord, here: Environment, notes: list[str]) -> Iterator[str]:
    """Logits of the probe inputs that are not the recorded ones; in another environment, as numbers."""
    if entry.logits is None:
        notes.append(
            f"- task {entry.task}: the network had seen no input when it was finished; no logits were recorded."
        )
        return
    try:
        logits = probe_logits(network, entry.task)
    except (EideticError, IndexError, RuntimeError, TypeError, ValueError) as error:
        yield f"- task {entry.task}: it does not answer its probe inputs ({type(error).__name__}: {error})."
        return
    if logits is None:
        yield f"- task {entry.task}: its probe inputs are gone, so its logits cannot be compared."
        return

    elsewhere = differences(entry.environment, here)
    if not elsewhere:
        if entry.logits != digest(logits):
            yield f"- task {entry.task}: its logits of the probe inputs are not the ones that were recorded."
        return
    if entry.values is None:
        notes.append(
            f"- logits were recorded with {elsewhere} and cannot be compared bit for bit; structure and fingerprints "
            "were checked."
        )
        return
    expected, now = _decoded(entry.values, logits.shape), logits.double().cpu()
    allowed = max(tolerance(entry.environment), tolerance(here))
    apart = float((now - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
    if not apart <= allowed:
        yield (
            f"- task {entry.task}: its logits differ from the recorded ones by {apart:.1e} of the largest, where "
            f"{elsewhere} explains {allowed:.0e} at most."
        )
        return
    notes.append(
        f"- logits were recorded with {elsewhere}: they were compared as numbers, not bit for bit, and agree within "
        f"{allowed:.0e} of the largest."
    )


def tolerance(environment: Environment) -> float:
    """How far logits computed in ``environment`` may lie from the same computed elsewhere, in units of the largest."""
    reduced = any(key.endswith("fp32_precision") and value != "ieee" for key, value in environment.items())
    return max(TOLERANCE.get(str(environment.get("dtype")), 0.0), REDUCED if reduced else 0.0)


def _router_problems(network: BaseNetwork, notes: list[str]) -> Iterator[str]:
    """A router whose tensors are not those that were trained."""
    router, recorded = network.router, network.router_fingerprint
    if router is None:
        if recorded is not None:
            yield "- the router is gone."
        return
    if recorded is None:
        notes.append("- the router was not recorded by the version that saved it.")
        return
    dtype, now = recorded.split(" ")[0], router.fingerprint()
    if now.split(" ")[0] != dtype:
        notes.append(f"- the router was trained in {dtype} and is {now.split(' ')[0]} now: it cannot be compared.")
    elif now != recorded:
        yield "- the router's tensors are not the ones that were trained."


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


def _encoded(logits: Tensor) -> str:
    return base64.b64encode(logits.double().cpu().contiguous().numpy().tobytes()).decode()


def _decoded(values: str, shape: torch.Size) -> Tensor:
    """The reverse of :func:`_encoded`; NaN, which equals nothing, where the numbers do not fill ``shape``."""
    try:
        numbers = np.frombuffer(base64.b64decode(values, validate=True), dtype=np.float64)
    except ValueError:
        numbers = np.empty(0)
    if numbers.size != shape.numel():
        return torch.full(shape, torch.nan, dtype=torch.float64)
    return torch.from_numpy(numbers.copy()).view(shape)


def _environment(network: BaseNetwork) -> Environment:
    return environment(head_of(network, 0).frozen_weight)

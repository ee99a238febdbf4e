"""``ek.from_eideticnet``: a checkpoint of the published implementation becomes an EideticNetwork.

The published code keeps dense weights, with a mask and an owner tensor as large as each. Here its units are sorted by
owner, and its tasks are prepared and finished once more, one after the other, with the final weights. Weights that do
not lie on the staircase must be zero.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checking import instance, real_number, shown, whole_number
from ..errors import ConversionError, EideticError, InputError
from ..layers import SegmentedLayer, StaircaseLayer
from ..layout import Fixed, Segments
from ..network import EideticNetwork
from ..tasks.probes import MOST
from ..wiring.groups import Group
from .networks import PublishedConvNet, PublishedMLP, PublishedResNet

_PARAMETERS = ("orig", "mask", "excess_capacity")
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_SCORES = ("raw_scores", "normalized_scores")  # left behind by Taylor pruning
NOBODY = -1


def from_eideticnet(
    state_dict: Mapping[str, Tensor],
    tasks: int | None = None,
    *,
    dropout: float = 0.0,
    input_shape: tuple[int, ...] | None = None,
) -> EideticNetwork:
    """An EideticNetwork with the finished tasks, and in evaluation the logits, of a published network.

    Reads the ``state_dict()`` of an ``MLP``, ``ConvNet`` or ``ResNet`` of ``eideticnet_training``, on which
    ``prepare_for_task`` was called. Each layer gives ``weight_orig``, ``weight_mask``, ``weight_excess_capacity`` (the
    owners), the same three of ``bias``, and ``running_mean`` and ``running_var``. A unit belongs to the task that owns
    its BatchNorm's weight, or its bias where there is no BatchNorm. ``classifiers.k`` becomes task k's head. The task
    classifier is a task like the others there, and so it is here. Logits agree up to rounding, since sums run in
    another order. Units that no task owns are free again.

    Args:
        state_dict: tensors by name, as ``torch.load(path, weights_only=True)`` gives them.
        tasks: how many tasks were learned. It is needed where the tensors do not tell, since a last task that was not
            pruned leaves no trace. None counts the tasks that own units, and one more that was pruned last.
        dropout: the rate in the network's blocks, for tasks that are learned later; the file does not hold it.
        input_shape: the shape of one sample, for the probe inputs of ``certify``; an MLP's is known.

    Returns:
        A network between tasks; ``prepare_for_task(tasks, ...)`` goes on. Its saved files load without the original.

    Raises:
        ConversionError: the tensors are not such a network's, hold NaN or infinity, or do not lie on a staircase: a
            finished task's unit reads a later task's. (In the published code, optimizers with weight decay or momentum
            move frozen weights.) The message names the layer.
        InputError: ``tasks`` contradicts the tensors, or an argument is of the wrong kind.
    """
    state = _tensors(state_dict)
    if input_shape is not None:
        instance("input_shape", input_shape, (tuple, list), "the shape of one sample, such as (3, 32, 32)")
        input_shape = tuple(whole_number("input_shape", size, 1) for size in input_shape)
    network = _build(state, real_number("dropout", dropout, 0.0, 1.0))
    if input_shape is not None or isinstance(network, PublishedMLP):
        network.input_shape = input_shape or (network.wiring.sources["blocks.0.0"][0].columns(None),)
    heads = len({name.split(".")[1] for name in state if name.startswith("classifiers.")})
    learned, in_training = _tasks_learned(state, heads, tasks)
    owners = {group.segments: _owners(state, group, in_training) for group in network.groups}
    replay = _Replay(network, _effective(state), owners)

    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="no layer has a free unit")
        for task in range(learned):
            if network.input_shape is not None:  # no batch was seen; these networks take any numbers
                noise = torch.randn(MOST, *network.input_shape, generator=torch.Generator().manual_seed(task))
                network.probes.put(task, noise.to(next(iter(state.values())).device))
            try:
                replay.task(task)
            except EideticError as error:
                raise ConversionError(f"task {task} of the published network cannot be taken over: {error}") from error
    return network


# ---- what the file holds


def _tensors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a state_dict by name. Raises InputError for what is none."""
    instance("state_dict", state_dict, Mapping, "tensors by name, as torch.load(path, weights_only=True) gives them")
    for name, tensor in state_dict.items():
        instance("a name in state_dict", name, str, "text")
        instance(f"state_dict[{name!r}]", tensor, Tensor, "a tensor")
    return {name: tensor.detach() for name, tensor in state_dict.items()}


def _build(state: dict[str, Tensor], dropout: float) -> EideticNetwork:
    """A fresh network with the architecture that names and shapes describe."""
    if not any(name.endswith("_excess_capacity") for name in state):
        raise ConversionError(
            "the state_dict holds no ..._excess_capacity: it is not that of a network of eideticnet_training on which "
            "prepare_for_task was called. A plain module is converted by ek.convert."
        )
    numbers = sorted({int(found[1]) for name in state if (found := re.match(r"blocks\.(\d+)\.0\.weight_orig$", name))})
    if not numbers or numbers != list(range(len(numbers))) or "classifiers.0.weight_orig" not in state:
        names = sorted({name.rpartition(".")[0] for name in state})
        raise ConversionError(
            "only MLP, ConvNet and ResNet of eideticnet_training are known (blocks.0, blocks.1, ... and classifiers); "
            f"this network has the layers {', '.join(names)}."
        )

    first = [state[f"blocks.{number}.0.weight_orig"] for number in numbers]
    widths, columns, last = [len(weight) for weight in first], first[0].shape[1], len(numbers) - 1
    bn = "blocks.0.1.weight_orig" in state
    if first[0].dim() == 2:
        network = PublishedMLP(columns, widths, bn, dropout)
    elif "res.0.weight_orig" in state:
        pairs = [(width, len(_tensor(state, f"blocks.{i}.3.weight_orig"))) for i, width in enumerate(widths)]
        outer = [pair[1] for pair in pairs]
        # The published network halves the image where it doubles the channels, and at its end only widens.
        pooled = [i for i in range(1, last) if outer[i] != outer[i - 1]]
        network = PublishedResNet(columns, pairs, pooled, first[0].shape[2], bn)
    else:
        each, rest = divmod(last, 3)  # a first block, then three stages of equal depth; all stages but the second pool
        if rest or not each:
            raise ConversionError(f"a published ConvNet has 1 + 3n blocks, this one has {len(numbers)}.")
        network = PublishedConvNet(columns, widths, [0, 1 + each, 1 + 2 * each], bn, dropout)
    network.to(device=first[0].device, dtype=first[0].dtype)
    _check_names(state, network)
    return network


def _check_names(state: dict[str, Tensor], network: EideticNetwork) -> None:
    """Raise ConversionError unless every tensor belongs to a layer of ``network`` and has its shape."""
    expected: dict[str, torch.Size] = {}
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    columns = sum(source.columns(None) for source in network.wiring.features)
    for name in state:
        if found := re.match(r"classifiers\.\d+\.", name):
            classes = len(_tensor(state, f"{found[0]}bias_orig"))
            shapes |= {f"{found[0]}weight": torch.Size([classes, columns]), f"{found[0]}bias": torch.Size([classes])}
    for name, shape in shapes.items():
        parts = _PARAMETERS if name.endswith(("weight", "bias")) else ()
        expected |= {f"{name}_{part}": shape for part in parts} or {name: shape}

    unknown = sorted(name for name in state if name not in expected and not name.endswith(_SCORES))
    missing = sorted(name for name in expected if name not in state and not name.endswith("num_batches_tracked"))
    if unknown or missing:
        raise ConversionError(
            f"the tensors are not those of a published {type(network).__name__.removeprefix('Published')}: "
            + "; ".join(
                f"{what} {', '.join(names[:6])}"
                for what, names in (("unknown", unknown), ("missing", missing))
                if names
            )
            + "."
        )
    for name, shape in expected.items():
        if name in state and state[name].shape != shape:
            raise ConversionError(f"{name} has shape {list(state[name].shape)}, expected {list(shape)}.")


def _tensor(state: dict[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise ConversionError(f"the state_dict holds no {name}.")
    return state[name]


def _tasks_learned(state: dict[str, Tensor], heads: int, tasks: int | None) -> tuple[int, int | None]:
    """(how many tasks are taken over, the one of them that was in training and owns nothing yet; None if none was)."""
    finished = 1 + int(max(tensor.max() for name, tensor in state.items() if name.endswith("_excess_capacity")))
    pruning = any(not t.all() for name, t in state.items() if name.endswith("_mask") and "classifiers" not in name)
    if tasks is None:
        if finished < heads and not pruning:
            raise ConversionError(
                f"the tensors do not tell whether task {finished} was learned or only prepared, since nothing is "
                f"pruned: pass tasks={finished} for the tasks that are finished, or tasks={finished + 1} to take over "
                f"everything that no task owns as task {finished}'s."
            )
        tasks = min(finished + pruning, heads)
    possible = [count for count in (finished, finished + 1) if 0 < count <= heads]
    if type(tasks) is not int or tasks not in possible:
        counts = " or ".join(map(str, possible))
        raise InputError(f"tasks={shown(tasks)} contradicts the tensors, which hold {counts} tasks.")
    return tasks, finished if tasks > finished else None


def _effective(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Parameters as the published forward pass uses them, multiplied by their masks; and running statistics."""
    made = {name: tensor for name, tensor in state.items() if name.endswith(_STATISTICS)}
    for name in state:
        if name.endswith("_orig"):
            stem = name.removesuffix("_orig")
            made[stem] = state[name] * state[f"{stem}_mask"]
    return made


def _owners(state: dict[str, Tensor], group: Group, in_training: int | None) -> Tensor:
    """The task that owns each unit of a group, int64 [width]; NOBODY for units that are free or pruned."""
    path = next(iter(group.norms), None)
    stem = f"{path}.weight" if path else f"{next(iter(group.producers))}.bias"
    owners = state[f"{stem}_excess_capacity"].long()
    if in_training is not None:
        owners = torch.where((owners == NOBODY) & (state[f"{stem}_mask"] != 0), in_training, owners)
    return owners


# ---- its tasks, once more


@dataclass
class _Replay:
    """Takes units and weights over, one task at a time, through the network's own calls.

    Args:
        network: the fresh network.
        tensors: effective parameters and statistics by name.
        owners: each unit's task, by unit group.
    """

    network: EideticNetwork
    tensors: dict[str, Tensor]
    owners: dict[Segments, Tensor]

    def task(self, task: int) -> None:
        """Prepare ``task``, give its units the final weights, and finish it."""
        network, wiring = self.network, self.network.wiring
        head = f"classifiers.{task}"
        sources = {**wiring.sources, "head": wiring.features}
        rows = {
            path: self._units(layer.segments, task)
            for group in network.groups
            for path, layer in group.producers.items()
        }

        nested: dict[str, bool] = {}
        for path, (source,) in sources.items():
            weight = self.tensors[f"{head if path == 'head' else path}.weight"]
            weight = weight[rows[path]] if path in rows else weight
            nested[path] = self._reads_earlier(path, weight, source.group, task)
        units = {group.name: len(self._units(group.segments, task)) for group in network.groups}
        network.prepare_for_task(task, len(self.tensors[f"{head}.bias"]), nested, units)
        for group in network.groups:
            for path, layer in group.producers.items():
                self._fill(layer, path, rows[path], task, nested[path])
            for path, norm in group.norms.items():
                self._fill_norm(norm, path, self._units(group.segments, task))
        self._fill(network.live_head, head, slice(None), task, nested["head"])
        network.finish_task()

    def _units(self, segments: Segments, task: int) -> Tensor:
        return (self.owners[segments] == task).nonzero().flatten()

    def _reads_earlier(self, path: str, weight: Tensor, group: Segments | Fixed, task: int) -> bool:
        """Whether the layer's segment of ``task`` reads earlier tasks' units.

        Raises ConversionError where it reads units of later tasks, or free ones.
        """
        if not isinstance(group, Segments) or group not in self.owners:
            return True
        owners = self.owners[group]
        forbidden = weight[:, (owners > task) | (owners == NOBODY)]
        if forbidden.any():
            raise ConversionError(
                f"in {path}, units of task {task} read units that later tasks own or will, with weights up to "
                f"{forbidden.abs().max():.1e}; on a staircase they are zero. Was a frozen weight moved, by weight "
                "decay or by an optimizer that was kept across tasks? Then this task had been forgotten in part."
            )
        earlier = weight[:, (owners >= 0) & (owners < task)]
        return bool(earlier.any()) or not bool((owners == task).any())

    def _fill(self, layer: StaircaseLayer, path: str, rows: Tensor | slice, task: int, nested: bool) -> None:
        weight = self.tensors[f"{path}.weight"][rows]
        (source,) = layer.sources
        group = source.group
        if isinstance(group, Segments) and group in self.owners:
            read = range(task + 1) if nested else (task,)
            weight = weight[:, torch.cat([self._units(group, each) for each in read])]
        layer.weight.copy_(weight)
        if layer.bias is not None:
            layer.bias.copy_(self.tensors[f"{path}.bias"][rows])

    def _fill_norm(self, norm: SegmentedLayer, path: str, rows: Tensor) -> None:
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(norm, name).copy_(self.tensors[f"{path}.{name}"][rows])

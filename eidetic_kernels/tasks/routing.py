"""Inference without a task id: the router, and the rules by which a sample's task is chosen."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError, RouterError
from ..layers import SegmentedLayer
from ..wiring.groups import Group
from .record import digest
from .router_convolutions import RouterConvolutions

# How a sample's task is chosen. "learned" is the paper's task classifier (section 1). "joint" adds to its
# log-probability the log-probability of the best class of that task's head. The others need neither router nor data.
# They choose the task whose head is the surest: by the negative entropy of its softmax, by the log of the sum of its
# exponentials (the negative free energy, Liu et al., 2020), or by its largest logit.
RULES = ("learned", "joint", "entropy", "energy", "max_logit")
NEED_ROUTER = ("learned", "joint")


@dataclass(frozen=True)
class Prediction:
    """What a routed forward pass says about a batch of N samples.

    A routed answer is not for ever. Promises and certificates are about a task's answer with the task given,
    ``net(x, task=k)``, and ``logits`` are those of the task that was chosen. Which one is chosen may change as tasks
    come: the router is trained anew, and has more tasks to tell apart.

    Args:
        task: [N] int64, the task each sample was routed to.
        label: [N] int64, the class within that task.
        logits: [N, most classes of any task], the logits of that task's head; -inf beyond its classes.
        router_logits: [N, tasks], the scores by which tasks were chosen (the task classifier's own, for "learned").
    """

    task: Tensor
    label: Tensor
    logits: Tensor
    router_logits: Tensor

    @property
    def confidence(self) -> Tensor:
        """[N] in (0, 1]: the softmax of the scores at the chosen task. Abstain where it is low."""
        return self.router_logits.softmax(1).amax(1)


class RouterInput(NamedTuple):
    """What a router reads beside the features of the finished tasks.

    Args:
        layers: whether it also reads what every other unit group computes (see :func:`capturing`).
        inputs: whether it also reads the network's input, flattened.
        convolutions: the router's own convolutions over the input. Their columns come before the features; a first map
            with no more columns than these reads no features.
        mirrored: whether scores are the mean over the image and its mirror image. Only the convolutions see the mirror
            image; the body does not.
    """

    layers: bool = False
    inputs: bool = False
    convolutions: RouterConvolutions | None = None
    mirrored: bool = False


FEATURES_ALONE = RouterInput()


class Router(nn.Module):
    """The task classifier (paper, section 1): from features [N, columns] to task scores [N, tasks].

    Its tensors are buffers, so that training the next task cannot move them.

    Args:
        weight: [tasks, columns], or [all classes, columns] with ``classes``. With a hidden layer, its columns are the
            hidden units.
        bias: [tasks] or [all classes].
        hidden_weight: [hidden, columns] of one hidden layer of ReLU units; None is the paper's linear map.
        hidden_bias: [hidden], together with ``hidden_weight``.
        reads: what the router reads beside the features.
        classes: how many classes each task has, if the map scores classes and not tasks. A task's score is then the log
            of the sum of its classes' exponentials.

    Raises InputError for shapes that do not fit each other.
    """

    weight: Tensor
    bias: Tensor
    hidden_weight: Tensor | None
    hidden_bias: Tensor | None
    convolutions: RouterConvolutions | None

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        hidden_weight: Tensor | None = None,
        hidden_bias: Tensor | None = None,
        reads: RouterInput = FEATURES_ALONE,
        classes: Sequence[int] | None = None,
    ):
        super().__init__()
        self.layers, self.inputs, self.convolutions, self.mirrored = reads
        self.classes = None if classes is None else tuple(int(each) for each in classes)
        _check_shapes(weight, bias, hidden_weight, hidden_bias, self.classes)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.register_buffer("hidden_weight", hidden_weight)
        self.register_buffer("hidden_bias", hidden_bias)

    @property
    def tasks(self) -> int:
        """How many tasks the router knows."""
        return self.weight.shape[0] if self.classes is None else len(self.classes)

    def forward(self, features: Tensor, x: Tensor | None = None) -> Tensor:
        """Task scores [N, tasks] from what the router reads of the network, ``features`` [N, columns or more].

        ``x`` is the network's input; only convolutions look at it. Raises InputError where it is no image that they can
        read, and for fewer columns than the router was trained on. Columns of later features are left out.
        """
        if self.convolutions is None:
            return of_tasks(self._scores(features), self.classes)
        if x is None:
            raise InputError(
                "this router has convolutions, which read the network's input: give it, router(features, x)."
            )

        scores = self._scores(torch.cat([self.convolutions(x), features], 1))
        if self.mirrored:
            scores = (scores + self._scores(torch.cat([self.convolutions(x.flip(-1)), features], 1))) / 2
        return of_tasks(scores, self.classes)

    def fingerprint(self) -> str:
        """The dtype, the SHA-256 of the router's tensors, and that of its settings, which change answers as much.

        Earlier versions wrote the first two alone. Settings are those of the header without the ones that are off, so
        that a setting of a later version, where it is off, changes nothing.
        """
        settings = {name: value for name, value in self.header().items() if value not in (None, False)}
        of_settings = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        dtype = str(self.weight.dtype).removeprefix("torch.")
        return f"{dtype} {digest(*self.state_dict().values())} {of_settings}"

    def header(self) -> dict[str, Any]:
        """What a saved network's JSON header says of its router; the tensors are in the network's ``state_dict``."""
        return {
            "router_tasks": self.tasks,
            "router_layers": self.layers,
            "router_inputs": self.inputs,
            "router_convolutions": None if self.convolutions is None else self.convolutions.channels,
            "router_mirrored": self.mirrored,
            "router_classes": self.classes,
        }

    @classmethod
    def from_header(cls, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Router:
        """The router that wrote ``header``, with the ``tensors`` of its ``state_dict``.

        Headers of earlier versions lack some of the entries. Raises InputError, KeyError or RuntimeError where tensors
        and header do not fit each other.
        """
        weight, bias = tensors["weight"], tensors["bias"]
        channels = header.get("router_convolutions")
        convolutions = None if channels is None else RouterConvolutions(channels).to(weight.dtype)
        layers, inputs, mirrored = (header.get(f"router_{name}", False) for name in ("layers", "inputs", "mirrored"))

        reads = RouterInput(layers, inputs, convolutions, mirrored)
        hidden = tensors.get("hidden_weight"), tensors.get("hidden_bias")
        router = cls(weight, bias, *hidden, reads, header.get("router_classes"))
        router.load_state_dict(tensors)
        if router.tasks != header["router_tasks"]:
            raise InputError(f"router_tasks is {header['router_tasks']}, and the router scores {router.tasks} tasks.")
        return router

    def _scores(self, features: Tensor) -> Tensor:
        reads = self.weight.shape[1] if self.hidden_weight is None else self.hidden_weight.shape[1]
        if features.shape[1] < reads or (features.shape[1] > reads and (self.layers or self.inputs)):
            raise InputError(
                f"the router reads {reads} columns and was given {features.shape[1]}: is the input of the size that it "
                "was trained on?"
            )
        features = features[:, :reads]
        if self.hidden_weight is not None:
            features = F.linear(features, self.hidden_weight, self.hidden_bias).relu()
        return F.linear(features, self.weight, self.bias)


def _check_shapes(
    weight: Tensor,
    bias: Tensor,
    hidden_weight: Tensor | None,
    hidden_bias: Tensor | None,
    classes: tuple[int, ...] | None,
) -> None:
    """Raise InputError where a router's maps, or the classes that they score, do not fit each other."""
    maps = {"weight": (weight, bias)}
    if hidden_weight is not None and hidden_bias is not None:
        maps["hidden_weight"] = (hidden_weight, hidden_bias)
    elif hidden_weight is not None or hidden_bias is not None:
        raise InputError("a router's hidden layer needs hidden_weight and hidden_bias: give both, or neither.")
    for name, (of_map, of_rows) in maps.items():
        if of_map.dim() != 2 or of_rows.shape != of_map.shape[:1]:
            shapes = f"{list(of_map.shape)}, and its bias {list(of_rows.shape)}"
            raise InputError(f"the router's {name} has shape {shapes}: [rows, columns] and [rows] were expected.")

    if hidden_weight is not None and weight.shape[1] != len(hidden_weight):
        raise InputError(
            f"the router's weight reads {weight.shape[1]} hidden units, and hidden_weight makes {len(hidden_weight)}."
        )
    if classes is not None and (min(classes, default=0) < 1 or sum(classes) != len(weight)):
        raise InputError(
            f"the router's classes are {list(classes)}, and its weight scores {len(weight)}: give each task's number "
            f"of classes, {len(weight)} in all."
        )


def of_tasks(scores: Tensor, classes: Sequence[int] | None) -> Tensor:
    """Task scores [N, tasks] from class scores [N, all classes], where ``classes`` counts each task's.

    ``classes`` None: the scores are those of tasks already.
    """
    if classes is None:
        return scores
    return torch.stack([each.logsumexp(1) for each in torch.split(scores, list(classes), 1)], 1)


@contextmanager
def capturing(groups: Iterable[Group]) -> Generator[list[Tensor], None, None]:
    """Capture what each unit group computes in the forward pass inside: a list that fills on leaving.

    Each entry is [N, units], after a ReLU; images and tokens are averaged over their positions. Several layers may work
    on one group: the last one that runs is captured. Passes in other threads are not captured.
    """
    captured: dict[str, Tensor] = {}
    thread = threading.get_ident()

    def hook(name: str) -> Callable[[SegmentedLayer, tuple[Tensor, ...], Tensor], None]:
        def capture(layer: SegmentedLayer, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if threading.get_ident() != thread or not inputs:  # parameters compute nothing of samples
                return
            units_second = output.relu().movedim(layer.unit_dim, 1)
            captured[name] = units_second if output.dim() == 2 else units_second.flatten(2).mean(2)

        return capture

    handles = [layer.register_forward_hook(hook(group.name)) for group in groups for layer in group.layers]
    values: list[Tensor] = []
    try:
        yield values
        values += captured.values()
    finally:
        for handle in handles:
            handle.remove()


def task_scores(rule: str, logits: Sequence[Tensor], router_logits: Tensor | None) -> Tensor:
    """Scores [N, tasks] by one of ``RULES``.

    Args:
        rule: the rule's name.
        logits: [N, classes] of each task.
        router_logits: [N, tasks] of the task classifier; None will do for rules that need none.

    Raises:
        RouterError: the rule needs ``router_logits``, and there are none.
    """
    if rule in NEED_ROUTER:
        if router_logits is None:
            raise RouterError(f"the rule {rule!r} needs the router's scores; got none. Use rule='entropy' instead.")
        if rule == "learned":
            return router_logits
        best = torch.stack([each.log_softmax(1).amax(1) for each in logits], 1)
        return router_logits.log_softmax(1) + best

    if rule == "entropy":
        return torch.stack([(each.softmax(1) * each.log_softmax(1)).sum(1) for each in logits], 1)
    if rule == "energy":
        return torch.stack([each.logsumexp(1) for each in logits], 1)
    return torch.stack([each.amax(1) for each in logits], 1)


def route(router_logits: Tensor, logits: Sequence[Tensor]) -> Prediction:
    """Choose each sample's task by the highest score [N, tasks], and answer with that task's logits [N, classes]."""
    task = router_logits.argmax(1)
    chosen = router_logits.new_full((len(task), max(each.shape[1] for each in logits)), -torch.inf)
    for index, each in enumerate(logits):
        rows = task == index
        chosen[rows, : each.shape[1]] = each[rows].to(chosen.dtype)
    return Prediction(task, chosen.argmax(1), chosen, router_logits)

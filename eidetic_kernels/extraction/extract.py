"""``net.extract``: one finished task's prefix as a plain torch module, which needs this package no more.

A layer with one segment becomes a torch.nn layer. A layer with several becomes a torch.fx.GraphModule that holds a
torch.nn layer for each segment and one concatenation, so no product with zeros is computed. A frozen BatchNorm becomes
a multiply-add, beside the layer that it belongs to and with the residual that it is given. Dropout goes, since it
leaves frozen units alone. A prefix LayerNorm becomes a torch.nn.LayerNorm for each segment, over what the segment may
see. Attention has the heads of all segments at once, and the network's own tensors are parameters again. Segments that
the task's head reads neither directly nor through others (of earlier tasks, where a task is disjoint) are left out.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..checking import first_line, shown, whole_number
from ..errors import ConversionError, InputError, TaskError
from ..layers import (
    EideticMultiheadAttention,
    EideticParameter,
    EideticScaledDotProduct,
    SegmentedLayer,
)
from ..layers.attention import PROJECTIONS
from ..layers.fixed import FixedTensor
from ..layers.no_channels import NO_CHANNEL_REFUSALS
from ..modes import evaluating, outside_inference
from ..tasks.base import BaseNetwork, head_of
from ..tasks.inputs import Inputs, each_of, tensors_of
from ..wiring import rules
from .layers import NO_PLAIN_VERSION, plain_layer
from .memory import Reading, emit_copy, ends_moves, moves, reading
from .modules import plain_module, plain_values, takes_residual
from .no_channels import lend_channels
from .prefix import Prefix


@outside_inference()
def extract(network: BaseNetwork, task: int) -> nn.Module:
    """See :meth:`.EideticNetwork.extract`."""
    finished = network.finished_tasks
    try:
        task = whole_number("task", task, most=finished - 1)
    except InputError:
        known = f"finished tasks are 0..{finished - 1}" if finished else "no task is finished"
        raise TaskError(
            f"task {shown(task)} cannot be extracted: {known}. A task is finished by finish_task (train_task)."
        ) from None

    prefix = Prefix(network, task)
    head = plain_layer(prefix, [head_of(network, task)])
    name = f"Task{task}Of{type(network).__name__}"
    try:
        with evaluating(network):
            graph, root = network.traced()
    except ConversionError:  # wired by hand, since forward cannot be traced
        plain = _around(_with_own_forward(network, prefix), head, name)
    else:
        plain = _PlainGraph(root, prefix).build(graph, head, name)

    samples = _samples(network, task)
    if prefix.lacks_channels and samples is not None:
        _let_run(plain, samples)
    for path, module in plain.named_modules():
        if type(module).__module__.split(".")[0] == rules.OURS:
            raise ConversionError(f"{path!r}: {NO_PLAIN_VERSION.format(type(module).__name__)}")
    return plain


def _samples(network: BaseNetwork, task: int) -> Inputs | None:
    """Inputs [N, ...] of ``task``, made up if need be; None where their shape is not known."""
    like, samples = head_of(network, task).get_buffer("frozen_weight"), network.probes.of(task)
    if samples is not None:
        return each_of(samples, lambda tensor: tensor.to(like.dtype) if tensor.is_floating_point() else tensor)
    if network.input_shape is None or len(network.inputs) > 1:
        return None
    dtype = like.dtype if all(network.inputs.values()) else torch.long
    return like.new_zeros(2, *network.input_shape, dtype=dtype)


def _let_run(plain: fx.GraphModule, samples: Inputs) -> None:
    """Let ``plain`` run where the task has units of some layers only. Raises ConversionError where it cannot."""
    try:
        lend_channels(plain, _in_order(plain, samples))
    except NO_CHANNEL_REFUSALS as error:
        raise ConversionError(
            "the task took no unit of some layer, and forward calls a function that refuses images without channels "
            f"({first_line(error)}). Recall goes on answering (net(x, task=k)). Where torch.fx can trace forward, such "
            "a task can be extracted."
        ) from error


def _in_order(plain: fx.GraphModule, samples: Inputs) -> tuple[Tensor, ...]:
    """The tensors of ``samples`` in the order of the placeholders of ``plain``."""
    if isinstance(samples, Mapping):
        return tuple(samples[str(node.target)] for node in plain.graph.nodes if node.op == "placeholder")
    return tensors_of(samples)


class _PlainGraph:
    """A network's graph, rewritten node by node with every layer's plain version in the layer's place."""

    def __init__(self, root: nn.Module, prefix: Prefix):
        self.root, self.prefix = root, prefix
        self.graph = fx.Graph()
        self.values: dict[fx.Node, fx.Node] = {}
        self.modules: dict[str, Any] = {}  # and parameters, by path
        self.moved: set[fx.Node] = set()  # nodes whose values lie in another's memory, in another order
        self.copies: dict[tuple[fx.Node, Reading], fx.Node] = {}  # of their values

    def build(self, graph: fx.Graph, head: nn.Module, name: str) -> fx.GraphModule:
        """The plain module called ``name``: ``graph``, and ``head`` on its end."""
        for node in graph.nodes:
            module = self.root.get_submodule(node.target) if node.op == "call_module" else None
            if node.op == "output":
                path = "head"
                while any(target.split(".")[0] == path for target in self.modules):
                    path += "_"
                self.modules[path] = head
                self.graph.output(self.graph.call_module(path, (self._given(node.args[0], "contiguous"),)))
                break
            self.values[node] = self._rewritten(node, module)
            if moves(node, module) or (not ends_moves(module) and self.moved.intersection(node.all_input_nodes)):
                self.moved.add(node)
        return fx.GraphModule(_tree(self.modules), self.graph, name).eval()

    def _given(self, read: fx.Node, how: Reading) -> fx.Node:
        """What a node reads of ``read``: a copy where a product's bits would depend on how that lies in memory."""
        if how is None or read not in self.moved:
            return self.values[read]
        if (read, how) not in self.copies:
            self.copies[read, how] = emit_copy(self.graph, self.values[read], how)
        return self.copies[read, how]

    def _rewritten(self, node: fx.Node, module: nn.Module | None) -> fx.Node:
        """The node of the plain graph that stands for ``node``, which calls ``module`` if it calls one."""
        target = cast(str, node.target)
        if module is not None and rules.module_rule(module) is rules.drops:
            return self.values[node.all_input_nodes[0]]
        if isinstance(module, FixedTensor):
            self.modules[target] = module().clone()
            return self.graph.get_attr(target)
        if isinstance(module, EideticParameter):
            self.modules[target] = nn.Parameter(plain_values(module, self.prefix))
            return self.graph.get_attr(target)
        if isinstance(module, EideticScaledDotProduct):
            return self._scaled_dot_product(node, module)
        if isinstance(module, EideticMultiheadAttention):
            self.modules[target] = plain_module(module, self.prefix)
            given = _arguments(node, PROJECTIONS)
            return self.graph.call_module(target, tuple(self._given(given[name], "contiguous") for name in PROJECTIONS))

        if module is not None:
            given = takes_residual(module) and (*node.args[1:], node.kwargs.get("residual"))[0] is not None
            residual = {"residual": None} if given else {}
            self.modules[target] = plain_module(module, self.prefix, **residual)
        elif node.op == "get_attr":
            self.modules[target] = copy.deepcopy(operator.attrgetter(target)(self.root))
        copied = self.graph.node_copy(node, lambda read: self._given(read, reading(module)))
        copied.meta.clear()
        return copied

    def _scaled_dot_product(self, node: fx.Node, module: EideticScaledDotProduct) -> fx.Node:
        """torch's function of the heads of all tasks at once; without heads, what it is given."""
        given = _arguments(node, ("q", "k", "v", "is_causal", "scale"))
        heads = [self.values[given.pop(name)] for name in ("q", "k", "v")]
        if not self.prefix.kept_of(module.sources[0].group).present(self.prefix.task):
            return heads[0]
        heads = [self.graph.call_method("contiguous", (each,)) for each in heads]  # in memory of their own
        return self.graph.call_function(F.scaled_dot_product_attention, tuple(heads), given)


def _arguments(node: fx.Node, names: tuple[str, ...]) -> dict[str, Any]:
    """What a node is called with, by name."""
    return dict(zip(names, node.args)) | dict(node.kwargs)


def _tree(modules: dict[str, Any]) -> nn.Module:
    """A module that holds ``modules`` at their paths; a GraphModule takes them from it in the order of its graph."""
    root = nn.Module()
    for path, each in modules.items():
        *above, name = path.split(".")
        parent = root
        for step in above:
            if not hasattr(parent, step):
                parent.add_module(step, nn.Module())
            parent = getattr(parent, step)
        setattr(parent, name, each)
    return root


def _with_own_forward(network: BaseNetwork, prefix: Prefix) -> nn.Module:
    """A module with the network's own forward, methods and attributes, and plain layers."""
    changed = copy.deepcopy(network)
    changed.heads = nn.ModuleList()
    for path, module in network.named_modules():
        if isinstance(module, SegmentedLayer) and module not in set(network.heads) and not module.attached:
            # Whether its forward gives a residual is not known here. The default adds what leaves every bit alone.
            residual = {"residual": -0.0} if takes_residual(module) else {}
            changed.set_submodule(path, plain_layer(prefix, [module], **residual))
        elif rules.module_rule(module) is rules.drops:
            changed.set_submodule(path, nn.Identity())

    kinds = type(network).__mro__
    facade = next(kind for kind in kinds if BaseNetwork in kind.__bases__)
    skipped = ("__dict__", "__weakref__", "__init__", "__new__", "connections")
    members = {
        name: value
        for kind in reversed(kinds[: kinds.index(facade)])
        for name, value in vars(kind).items()
        if name not in skipped
    }
    body = type(f"Plain{type(network).__name__}", (nn.Module,), members)()
    ours = vars(facade())
    for name, value in vars(changed).items():
        if name in ("_modules", "_parameters", "_buffers"):
            vars(body)[name].update({key: each for key, each in value.items() if key not in ours[name]})
        elif name not in ours:
            vars(body)[name] = value
    return body


def _around(body: nn.Module, head: nn.Module, name: str) -> fx.GraphModule:
    """A module called ``name`` that runs ``body``, then ``head``."""
    graph = fx.Graph()
    graph.output(graph.call_module("head", (graph.call_module("body", (graph.placeholder("x"),)),)))
    return fx.GraphModule({"body": body, "head": head}, graph, name).eval()

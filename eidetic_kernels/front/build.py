from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..checking import first_line, shown
from ..conversion.convert import _begin
from ..conversion.verify import answers_of, verify
from ..errors import ConversionError, InputError
from ..wiring.diagnostics import at_node
from ..modes import outside_inference
from ..network import EideticNetwork
from ..tasks.foreign import refuse_lazy
from ..wiring.groups import Wiring
from .analysis import Analysis, operation
from .capture import SAMPLES, Captured, capture, shape_of
from .compare import in_training
from .emit import PRODUCERS, Emitter
from .folding import fold
from .functional import functionalize
from .groups import group_units
from .head import cut_at, ends_of, find_head
from .marks import drops, marked, own_rule
from .owners import Owners
from .pieces import cut_parameters
from .products import leave_out_nothing, rewrite_products
from .prove import prove
from .refusals import (
    refuse_forward_hooks,
    refuse_gradient_hooks,
    refuse_shared_memory,
    refuse_ties,
)
from .watching import changed_in_place, refuse_changes, watched


class ConvertedNetwork(EideticNetwork):
    """What :func:`convert` makes: the captured ``body``, with the original's last layer as task 0's head."""

    rebuilt_by = (
        "it was made by ek.convert from a module that the file does not hold: convert the same module again (with or "
        "without its weights) and pass it, load(path, network=ek.convert(module, example_input))"
    )

    def __init__(self, body: fx.GraphModule, wiring: Wiring):
        super().__init__()
        self.__dict__["constructor_arguments"] = ((), {})
        self.body = body
        self._wire(wiring)
        body.recompile()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)

    def traced(self) -> tuple[fx.Graph, nn.Module]:
        return self.body.graph, self.body

    def as_architecture(self) -> None:
        """Give up task 0, if it is as ``convert`` began it, so that a saved network can be loaded into this one."""
        whole = all(group.segments.live == group.segments.width == group.built_width for group in self.groups)
        if self.current_task == 0 and whole:
            self.heads, self.current_task = nn.ModuleList(), None


@outside_inference()
def convert(module: nn.Module, example_input: Tensor, head: str | bool | None = None) -> ConvertedNetwork:
    if not isinstance(module, nn.Module) or isinstance(module, EideticNetwork):
        raise InputError(f"convert takes a plain torch.nn.Module; got {shown(module)}.")
    if not isinstance(example_input, Tensor) or example_input.dim() < 2:
        given = shown(example_input)
        raise InputError(f"example_input must be a batch that the module accepts, a tensor [N, ...]; got {given}.")
    refuse_lazy(module)
    refuse_gradient_hooks(module)
    refuse_forward_hooks(module, kept_whole)
    refuse_shared_memory(module)
    plain = _copy(module)
    modes = {path: each.training for path, each in plain.named_modules()}
    answers = answers_of(module, example_input, head)
    example = example_input
    with marked(plain, kept_whole), steady(plain):
        trained = captured_in(plain.train(), example)
        captured = captured_in(plain.eval(), example)
    for each in (captured, trained):
        rewrite_products(each, plain)
        cut_parameters(each, plain)
        leave_out_nothing(each)
    fixed = fold(captured, plain)
    functionalize(captured.graph, fixed)
    try:
        functionalize(trained.graph, fold(trained, plain))
    except ConversionError as error:
        raise ConversionError(f"in training mode, {error}") from error
    captured, trained = refreshed(captured), refreshed(trained)
    found = find_head(plain, captured, head)
    end, features, classifier = found.end, found.features, found.classifier
    pairs = in_training(captured, end, trained, ends_of(plain, trained, head))
    refuse_ties(captured, end, found.layer)
    captured = cut_at(captured, features)

    analysis = Analysis(plain, captured, fixed)
    analysis.run()
    layers = analysis.layers
    reads = settled_features(analysis, features)
    parts = [(layer.options["columns"], layer.reads.coarse) for layer in layers if "columns" in layer.options]
    parts += [(layer.units, layer.reads.coarse) for layer in layers if layer.kind not in PRODUCERS]
    parts.append((reads, False))
    for node, value in analysis.values.items():  # pieces of what is cut
        if node.op == "call_function" and operation(node) in _CUTTING:
            for each in value if isinstance(value, (list, tuple)) else [value]:
                if hasattr(each, "units"):
                    parts.append((each.units.flatten(), each.coarse))
    grouped = group_units(analysis.constraints, parts)
    refuse_mixed(analysis, grouped)
    emitter = Emitter(analysis, grouped, plain, pairs)
    emitter.run(features)
    prove(emitter)
    wiring = Wiring(
        tuple(group for group in emitter.groups if group.producers), emitter.sources, emitter.dropouts,
        _features(emitter, features, reads), emitter.split, emitter.orders, emitter.pieces, (), frozenset(emitter.last),
    )
    body = fx.GraphModule(plain, emitter.graph, type(module).__name__)
    for path, each in body.named_modules():
        each.training = modes.get(path, module.training)
    network = ConvertedNetwork(body, wiring)
    network.takes_integers = not example.is_floating_point()
    network.training = module.training
    if classifier is None and head is not False:
        for source in wiring.features:
            next(group for group in wiring.groups if group.segments is source.group).spared = True
    if head is not False:
        _begin(network, classifier, torch.empty(1, shape_of(end)[1]))
    verify(network if head is not False else body, answers)
    return network


def captured_in(plain: nn.Module, example: Tensor) -> Captured:
    """The captured forward of ``plain`` in its mode. Raises ConversionError where it changes the module itself."""
    try:
        with watched(plain) as changed:
            captured = capture(plain, (example,), {})
    except ConversionError:
        raise
    except Exception as error:
        raise ConversionError(
            f"{type(plain).__name__}.forward cannot be captured by torch.export in "
            f"{'training' if plain.training else 'evaluation'} mode ({type(error).__name__}: {first_line(error)}). Does "
            "it depend on values, or on random numbers of Python? Make that part a module of its own with a rule "
            "(ek.register_rule). Does an auxiliary output need a larger example_input?"
        ) from error
    refuse_changes(plain, [*changed, *changed_in_place(captured)])
    return captured


def _copy(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except (RuntimeError, TypeError) as error:
        raise ConversionError(
            f"{type(module).__name__} cannot be copied, and a conversion leaves the module as it is: {error}\nIs a "
            "weight made of others in a hook (torch.nn.utils.weight_norm, spectral_norm, prune)? Make it a weight "
            "again first: remove_weight_norm, remove_spectral_norm, prune.remove."
        ) from error


def refuse_mixed(analysis: Analysis, grouped) -> None:
    """Raise ConversionError where a mean or the like is taken over all units of a group, frozen and live ones alike."""
    for node, units, _, kind in analysis.mixed:
        if kind not in ("refuse", "softmax"):
            continue
        for number in torch.unique(grouped.group[units[units >= 0]]).tolist():
            if number >= 0 and grouped.grains[number] == grouped.widths[number] and len(units.unique()) > 1:
                raise at_node(node).refused("it mixes all units of a layer, frozen and live ones.")


def _features(emitter: Emitter, node: fx.Node, reads: Tensor):
    if emitter.order_of(node, reads, -1) is not None:
        raise ConversionError(
            "the head reads units in another order than that in which they were made (flip, roll, a shuffle before the "
            "last layer). Leave the shuffle out, and put the columns of the last layer's weight in that order instead."
        )
    return emitter.sources_of(reads, "the head")


_CUTTING = ("split", "split_with_sizes", "chunk", "slice", "tensor_split", "unbind", "select", "unsafe_split")


@contextmanager
def steady(module: nn.Module) -> Iterator[None]:
    """Inside, BatchNorms that average over all batches take a number for it: theirs depends on how many there were."""
    norms = [each for each in module.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
    unsteady = [each for each in norms if each.momentum is None]
    for each in unsteady:
        each.momentum = 0.1
    try:
        yield
    finally:
        for each in unsteady:
            each.momentum = None


def settled_features(analysis: Analysis, node: fx.Node) -> Tensor:
    owners = analysis.values[node]
    if not isinstance(owners, Owners) or owners.samples.flatten().tolist() != list(range(SAMPLES)):
        raise ConversionError("the logits have no row for each sample: forward mixes samples, or changes their order.")
    if len(owners.shape) != 2:
        raise ConversionError(f"forward must return logits [N, classes] or features [N, units]; got {owners.shape}.")
    return owners.units[0].expand(owners.shape[1]) if owners.units.shape[1] == 1 else owners.units.flatten()


def refreshed(captured: Captured) -> Captured:
    return dataclasses.replace(captured, outputs=next(reversed(captured.graph.nodes)).args[0])


def kept_whole(module: nn.Module) -> bool:
    """Whether a capture does not look into ``module``: it drops, or its class has a rule of the user's."""
    return drops(module) or own_rule(module) is not None

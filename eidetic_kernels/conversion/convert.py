"""``ek.convert``: a plain torch module becomes an EideticNetwork with the same weights and the same outputs."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from ..checking import first_line, shown
from ..errors import ConversionError, InputError
from ..modes import outside_inference
from ..network import EideticNetwork
from ..tasks.foreign import frozen_inside, refuse_lazy
from ..wiring.diagnostics import at_node
from ..wiring.groups import Wiring
from .emission.emitter import Emitter
from .emission.prove import prove
from .emission.reading import columns_of, order_of, sources_of
from .emission.run import emit_graph
from .example import Given, given_to
from .graphs.capture import SAMPLES, Captured, capture
from .graphs.compare import in_training
from .graphs.folding import fold
from .graphs.functional import functionalize
from .graphs.marks import drops, marked, own_rule
from .graphs.nodes import shape_of
from .graphs.pieces import cut_parameters
from .graphs.products import leave_out_nothing, rewrite_products, take_gates_apart
from .graphs.refusals import refuse_forward_hooks, refuse_gradient_hooks, refuse_shared_memory, refuse_ties
from .graphs.watching import changed_in_place, refuse_changes, watched
from .head import cut_at, ends_of, find_head
from .network import ConvertedNetwork
from .owners.analysis import Analysis
from .owners.maps import Owners
from .owners.parts import grouped_units, refuse_mixed
from .owners.step import PRODUCERS
from .verify import answers_of, verify


@outside_inference()
def convert(
    module: nn.Module, *example_input: Any, head: str | bool | None = None, **example_inputs: Any
) -> ConvertedNetwork:
    """An EideticNetwork that computes what ``module`` computes; its weights belong to task 0, which is in training.

    ``module`` is copied and captured by :func:`torch.export.export`, in evaluation and in training mode; it is not
    modified. Layers with parameters (linear, convolution, normalisation, embedding) become layers that know segments,
    at the original's paths in ``net.body``; everything else runs as it was captured. Weights, running statistics,
    dtype, device, memory format, ``requires_grad`` and training mode are kept. What all units share (a scalar, the
    parameters of a norm over positions, learned queries) is frozen: ``net.shared`` names it.

    In evaluation mode the outputs are the original's, bit for bit on a CPU, until something is pruned or frozen. They
    are so but for rounding, and a warning says so, where torch computes a part of the module in a kernel of its own
    while no gradient is wanted (the self-attention of ``nn.MultiheadAttention``), and where a last convolution becomes
    the head.

    What would be lost is refused: other behaviour in training than in evaluation, but for dropout and BatchNorm;
    changes in place that cannot be followed; tied parameters; state that ``forward`` keeps; whatever mixes samples. A
    forward hook runs while forward is captured: what it does to numbers is kept, what it notes elsewhere is not.

    Args:
        module: takes a tensor [N, ...] or several, and returns one tensor, the logits [N, classes]. Outputs that it has
            in training mode only (auxiliary classifiers) are left out.
        example_input, example_inputs: a batch that ``module`` accepts, in both modes, as its forward is called, by
            place or by name; one sample will do. The network takes one tensor as it is, and several in a tuple or by
            name: ``net({"input_ids": ids, "attention_mask": mask})``. Numbers, texts and None stay what they are.
            Images keep their height and width; sequences may have any length where ``module`` allows it. The network's
            outputs for the example and one more sample, of random numbers, are compared with those of a copy of
            ``module`` in evaluation mode.
        head: the linear layer that becomes task 0's head.

            - None: the layer whose output ``module`` returns, or a convolution by kernels of one pixel whose output is
              averaged. Where there is neither, the output becomes the features, task 0's head is the identity and stays
              so, and pruning spares the features' units, since they are classes perhaps.
            - A path ("classifier.6"): that layer; whatever follows it is left out.
            - False: no head. ``module`` returns features, and ``prepare_for_task(0, num_classes)`` begins task 0 with
              its weights.

    Returns:
        A network with task 0 in training. ``net.finish_task()`` keeps a pre-trained module as it is; prune or train
        before that if you like.

    Raises:
        ConversionError: an operation has no rule or would mix units; the message names it and the ways out.
        InputError: ``module`` or an input is of the wrong kind.
    """
    _check(module)
    given = given_to(module, example_input, example_inputs)
    plain = _copy(module)
    modes = {path: each.training for path, each in plain.named_modules()}
    answers = answers_of(module, given, head)

    captured, trained, fixed = _captures(plain, given)
    found = find_head(plain, captured, head)
    pairs = in_training(captured, found.end, trained, ends_of(plain, trained, head))
    refuse_ties(captured, found.end, found.layer)
    captured = cut_at(captured, found.features)

    analysis = Analysis(plain, captured, fixed)
    analysis.run()
    if not any(layer.kind in PRODUCERS for layer in analysis.layers):
        reason = "no layer before the head makes units, so there is nothing that a task could own."
        raise at_node(found.features).refused(reason)
    reads = _units_of_features(analysis, found.features)
    grouped = grouped_units(analysis, reads)
    refuse_mixed(analysis, grouped)

    emitter = Emitter(analysis, grouped, plain, pairs)
    emit_graph(emitter, found.features)
    prove(emitter)
    order = order_of(emitter, found.features, reads, -1)
    if order is not None and head is False:
        raise at_node(found.features).refused("features are returned in another order than that of the units.")
    network = _network(module, emitter, _wiring(emitter, reads, found.features), modes)
    network.inputs = {name: tensor.is_floating_point() for name, tensor in given.named.items()}
    if found.classifier is None and head is not False:
        network.spare_features()
    if head is not False:
        _begin(network, found.classifier, shape_of(found.end)[1])
        if order is not None:
            network.live_head.reorder(order)
    mixing = any(own_rule(each) is not None and not drops(each) for each in module.modules())
    verify(network if head is not False else network.body, answers, mixing)
    return network


def _check(module: nn.Module) -> None:
    if not isinstance(module, nn.Module) or isinstance(module, EideticNetwork):
        raise InputError(f"convert takes a plain torch.nn.Module; got {shown(module)}.")
    refuse_lazy(module)
    refuse_gradient_hooks(module)
    refuse_forward_hooks(module, _kept_whole)
    refuse_shared_memory(module)


def _copy(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except (RuntimeError, TypeError) as error:
        raise ConversionError(
            f"{type(module).__name__} cannot be copied, and a conversion leaves the module as it is: {error}\nIs a "
            "weight made of others in a hook (torch.nn.utils.weight_norm, spectral_norm, prune)? Make it a weight "
            "again first: remove_weight_norm, remove_spectral_norm, prune.remove."
        ) from error


def _captures(plain: nn.Module, given: Given) -> tuple[Captured, Captured, dict[fx.Node, Any]]:
    """``plain`` in evaluation and in training mode, and the values of what in evaluation is made of fixed tensors."""
    asleep = {each for _, each in frozen_inside(plain)}
    with marked(plain, lambda each: each not in asleep and _kept_whole(each)), _steady(plain):
        plain.train()
        for _, each in frozen_inside(plain):
            each.eval()
        trained = _captured_in(plain, given)
        captured = _captured_in(plain.eval(), given)
    for each in (captured, trained):
        rewrite_products(each, plain)
        cut_parameters(each, plain)
        leave_out_nothing(each)
        take_gates_apart(each)
    fixed = fold(captured, plain)
    functionalize(captured.graph, fixed)
    try:
        functionalize(trained.graph, fold(trained, plain))
    except ConversionError as error:
        raise ConversionError(f"in training mode, {error}") from error
    return _refreshed(captured), _refreshed(trained), fixed


def _captured_in(plain: nn.Module, given: Given) -> Captured:
    """The captured forward of ``plain`` in its mode. Raises ConversionError where it changes the module itself."""
    try:
        with watched(plain) as changed:
            captured = capture(plain, given)
    except ConversionError:
        raise
    except Exception as error:
        mode = "training" if plain.training else "evaluation"
        raise ConversionError(
            f"{type(plain).__name__}.forward cannot be captured by torch.export in {mode} mode. {_why(error)}"
        ) from error
    refuse_changes(plain, [*changed, *changed_in_place(captured)])
    return captured


def _why(error: Exception) -> str:
    """What torch.export's refusal means for the user's code."""
    if "specialized it to be a constant" in str(error):
        return (
            "It takes batches of one size only: the batch's size became a number. Write x.shape[0] in place of len(x), "
            "int(x.shape[0]) or a number."
        )
    return (
        f"{type(error).__name__}: {first_line(error)}\nDoes it depend on values, or on random numbers of Python? Make "
        "that part a module of its own with a rule (ek.register_rule). Does an auxiliary output need a larger "
        "example_input?"
    )


def _kept_whole(module: nn.Module) -> bool:
    """Whether a capture does not look into ``module``: it drops, or its class has a rule of the user's."""
    return drops(module) or own_rule(module) is not None


@contextmanager
def _steady(module: nn.Module) -> Iterator[None]:
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


def _refreshed(captured: Captured) -> Captured:
    """``captured`` with the outputs that its graph has now."""
    return replace(captured, outputs=captured.graph.output_node().args[0])


def _units_of_features(analysis: Analysis, node: fx.Node) -> Tensor:
    """The unit of each column of the features [N, units]."""
    owners = analysis.values[node]
    if not isinstance(owners, Owners) or owners.samples.flatten().tolist() != list(range(SAMPLES)):
        reason = "the logits have no row for each sample: forward mixes samples, or changes their order."
        raise at_node(node).refused(reason)
    if len(owners.shape) != 2:
        raise ConversionError(f"forward must return logits [N, classes] or features [N, units]; got {owners.shape}.")
    return owners.units[0].expand(owners.shape[1]) if owners.units.shape[1] == 1 else owners.units.flatten()


def _wiring(emitter: Emitter, reads: Tensor, features: fx.Node) -> Wiring:
    sources = sources_of(emitter, columns_of(emitter, features, reads, -1), "the head")
    groups = tuple(group for group in emitter.groups if group.producers)
    return Wiring(
        groups, emitter.sources, emitter.dropouts, sources, emitter.split, emitter.orders, emitter.pieces,
        frozenset(emitter.last),
    )  # fmt: skip


def _network(module: nn.Module, emitter: Emitter, wiring: Wiring, modes: dict[str, bool]) -> ConvertedNetwork:
    body = fx.GraphModule(emitter.module, emitter.graph, type(module).__name__)
    network = ConvertedNetwork(body, wiring, tuple(emitter.frozen))
    network.training = module.training
    for path, each in network.body.named_modules():  # a layer that was made takes the mode of what it stands in
        while path not in modes:
            path = path.rpartition(".")[0]
        each.training = modes[path]
    network._foreign.eval()
    return network


def _begin(network: ConvertedNetwork, classifier: nn.Linear | None, classes: int) -> None:
    """Begin task 0 with ``classifier`` as its head; with the identity, which stays so, if that is None."""
    network.prepare_for_task(0, classes)
    head = network.live_head
    bias = cast(nn.Parameter, head.bias)
    with torch.no_grad():
        if classifier is None:
            head.weight.copy_(torch.eye(classes, dtype=head.weight.dtype, device=head.weight.device))
            bias.zero_()
            for each in (head.weight, bias):  # training would make of the module what it is not
                each.requires_grad_(False)
            return
        head.weight.copy_(classifier.weight)
        head.weight.requires_grad_(classifier.weight.requires_grad)
        if classifier.bias is None:
            bias.zero_()
            bias.requires_grad_(False)
        else:
            bias.copy_(classifier.bias)
            bias.requires_grad_(classifier.bias.requires_grad)

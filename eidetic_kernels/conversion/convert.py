"""``ek.convert``: a plain torch module becomes an EideticNetwork with the same weights and the same outputs."""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, fx, nn

from ..checking import shown
from ..errors import ConversionError, InputError
from ..modes import outside_inference
from ..network import EideticNetwork
from ..tasks.foreign import refuse_lazy
from ..wiring import tracing
from .attention_calls import replace_attention_calls
from .decompose import decompose
from .dropout_calls import replace_dropout_calls, unshare_dropouts
from .example import Example
from .functionalize import functionalize, remove_unused
from .head import find_head
from .layer_replacement import replace_layer
from .own_parameters import refuse_ties, replace_parameters
from .splits_and_shuffles import replace_splits_and_shuffles, separate_heads
from .trace import refuse_gradient_hooks, trace
from .train_vs_eval import check_training
from .verify import answers_of, verify


@outside_inference()
def convert(module: nn.Module, example_input: Tensor, head: str | bool | None = None) -> EideticNetwork:
    """An EideticNetwork that computes what ``module`` computes; its weights belong to task 0, which is in training.

    ``module`` is copied and traced with torch.fx; it is not modified. Its layers (linear, convolution, normalisation,
    attention, dropout) and its splits and shuffles of channels are replaced by layers that know segments. Weights,
    running statistics, dtype, device, memory format, ``requires_grad`` and training mode are kept. In evaluation mode
    the outputs are the original's, bit for bit on a CPU, until something is pruned or frozen.

    What would be lost is refused: code under ``if self.training``, changes in place that cannot be followed, tied
    parameters, hooks, and state that ``forward`` keeps.

    Args:
        module: takes one tensor [N, ...] and returns one tensor, the logits [N, classes]. Outputs that it has in
            training mode only (auxiliary classifiers) are left out.
        example_input: a batch that ``module`` accepts; one sample will do. The network's outputs for it, and for
            random numbers in a batch of another size, are compared with those of a copy of ``module`` in evaluation
            mode.
        head: the linear layer that becomes task 0's head.

            - None: the layer whose output ``module`` returns. Where that is no linear layer (SqueezeNet ends with a
              convolution), the output becomes the features, and task 0's head starts as the identity.
            - A path ("classifier.6"): that layer; whatever follows it is left out.
            - False: no head. ``module`` returns features, and ``prepare_for_task(0, num_classes)`` begins task 0 with
              its weights.

    Returns:
        A network with task 0 in training. ``net.finish_task()`` keeps a pre-trained module as it is; prune or train
        before that if you like. Layers are in ``net.body`` under the original's paths.

    Raises:
        ConversionError: an operation has no rule or would mix units; the message names it and the ways out.
        InputError: ``module`` or ``example_input`` is of the wrong kind.
    """
    if not isinstance(module, nn.Module) or isinstance(module, EideticNetwork):
        raise InputError(f"convert takes a plain torch.nn.Module; got {shown(module)}.")
    if not isinstance(example_input, Tensor) or example_input.dim() < 2:
        given = shown(example_input)
        raise InputError(f"example_input must be a batch that the module accepts, a tensor [N, ...]; got {given}.")
    refuse_lazy(module)
    refuse_gradient_hooks(module)

    plain = decompose(_copy(module))
    modes = {path: each.training for path, each in plain.named_modules()}
    graph, trained = trace(plain.eval()), trace(plain.train())
    plain.eval()  # the graph is evaluation's: extras of training (auxiliary classifiers) stay outside of it
    answers = answers_of(module, example_input, head)
    _run(plain, graph, example_input)
    functionalize(graph)
    features, end, classifier = find_head(plain, graph, head)
    check_training(plain, graph, end, trained, example_input)

    graph.erase_node(next(reversed(graph.nodes)))
    graph.output(features)
    remove_unused(graph)
    refuse_ties(module, [*graph.nodes, end])

    separate_heads(plain, graph)
    replace_splits_and_shuffles(plain, graph)
    remove_unused(graph)
    replace_dropout_calls(plain, graph)
    unshare_dropouts(plain, graph)
    replace_parameters(plain, graph)
    replace_attention_calls(plain, graph)
    for node in graph.nodes:
        if node.op == "call_module":
            replace_layer(plain, node)

    body = fx.GraphModule(plain, graph, type(module).__name__)
    for path, each in body.named_modules():
        each.training = modes.get(path, module.training)
    network = ConvertedNetwork(body)
    network.training = module.training
    if head is not False:
        _begin(network, classifier, answers[-1][1])
    verify(network if head is not False else body, answers)
    return network


def _copy(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except (RuntimeError, TypeError) as error:
        raise ConversionError(
            f"{type(module).__name__} cannot be copied, and a conversion leaves the module as it is: {error}\nIs a "
            "weight made of others in a hook (torch.nn.utils.weight_norm, spectral_norm, prune)? Make it a weight "
            "again first: remove_weight_norm, remove_spectral_norm, prune.remove."
        ) from error


def _run(plain: nn.Module, graph: fx.Graph, example: Tensor) -> None:
    """Note on the graph's nodes what their values are for ``example``."""
    try:
        Example(plain, graph).run(example)
    except (RuntimeError, ValueError, IndexError, AssertionError, TypeError) as error:
        raise ConversionError(
            f"the trace of {type(plain).__name__}.forward does not run on example_input, which forward takes: {error}\n"
            "Does forward depend on values, or on what an earlier batch left behind?"
        ) from error


class ConvertedNetwork(EideticNetwork):
    """What :func:`convert` makes: the traced ``body``, with the original's last layer as task 0's head."""

    rebuilt_by = (
        "it was made by ek.convert from a module that the file does not hold: convert the same module again (with or "
        "without its weights) and pass it, load(path, network=ek.convert(module, example_input))"
    )

    def __init__(self, body: fx.GraphModule):
        super().__init__()
        self.__dict__["constructor_arguments"] = ((), {})
        self.body = body
        self._wire(tracing.wire(self, body.graph, "body.", editable=True))
        body.recompile()
        for node in body.graph.nodes:
            node.meta.clear()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)

    def traced(self) -> tuple[fx.Graph, nn.Module]:
        return self.body.graph, self.body

    def as_architecture(self) -> None:
        """Give up task 0, if it is as ``convert`` began it, so that a saved network can be loaded into this one."""
        whole = all(group.segments.live == group.segments.width == group.built_width for group in self.groups)
        if self.current_task == 0 and whole:
            self.heads, self.current_task = nn.ModuleList(), None


def _begin(network: ConvertedNetwork, classifier: nn.Linear | None, expected: Tensor) -> None:
    """Begin task 0 with ``classifier`` as its head; with the identity, if that is None."""
    network.prepare_for_task(0, expected.shape[1])
    head = network.live_head
    bias = cast(nn.Parameter, head.bias)
    with torch.no_grad():
        if classifier is None:
            head.weight.copy_(torch.eye(expected.shape[1], dtype=head.weight.dtype, device=head.weight.device))
            bias.zero_()
            return
        head.weight.copy_(classifier.weight)
        head.weight.requires_grad_(classifier.weight.requires_grad)
        if classifier.bias is None:
            bias.zero_()
            bias.requires_grad_(False)
        else:
            bias.copy_(classifier.bias)
            bias.requires_grad_(classifier.bias.requires_grad)

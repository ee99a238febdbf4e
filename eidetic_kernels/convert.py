"""``ek.convert``: a plain torch module becomes an EideticNetwork with the same weights and the same outputs."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from . import rearranging, rules, tracing
from .errors import ConversionError, InputError
from .layers import (
    EideticBatchNorm1d,
    EideticBatchNorm2d,
    EideticConv2d,
    EideticDepthwiseConv2d,
    EideticGroupedConv2d,
    EideticLayerNorm,
    EideticLinear,
    EideticMultiheadAttention,
    EideticParameter,
    EideticPReLU,
    EideticRelativeAttention,
    EideticScaledDotProduct,
    EideticWindowAttention,
    EideticWindowAttentionV2,
    HeadedAttention,
    SegmentedLayer,
)
from .modes import evaluating
from .network import EideticNetwork
from .written_out import write_out

# How far the converted network's outputs may lie from the original's on the example, where bits cannot be compared
# (on a GPU the library may choose another algorithm for memory that lies elsewhere).
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-3}


def convert(module: nn.Module, example_input: Tensor, head: str | bool | None = None) -> EideticNetwork:
    """An EideticNetwork that computes what ``module`` computes, its weights being task 0's live units.

    ``module`` is traced with torch.fx in evaluation mode and copied; Linear, Conv2d, BatchNorm1d/2d, Dropout,
    StochasticDepth, and what cuts or shuffles channels are replaced by layers that know segments. Weights, running
    statistics, dtype, device, memory format, ``requires_grad`` and training mode are kept; ``module`` is not modified.
    In evaluation mode the outputs are the original's, bit for bit on a CPU, until something is pruned or frozen.

    Args:
        module: takes one tensor [N, ...] and returns one tensor, the logits [N, classes]. Outputs of its training
            mode only (auxiliary classifiers) are left out.
        example_input: a batch that ``module`` accepts; one sample will do. It goes through twice, and the outputs are
            compared.
        head: the linear layer that becomes task 0's head. None: the layer whose output ``module`` returns; where that
            is no linear layer (SqueezeNet ends with a convolution), what it returns becomes the features, and task 0's
            head starts as the identity. A path names the layer ("classifier.6"); whatever follows it is left out.
            False: no head; ``module`` returns features, and ``prepare_for_task(0, num_classes)`` begins task 0 with
            its weights.

    Returns:
        A network with task 0 in training: ``net.finish_task()`` keeps a pre-trained module as it is; prune or train
        before that if you like. Its layers are in ``net.body`` under the original's paths.

    Raises:
        ConversionError: a node has no rule or would mix units; the message names it and the ways out.
        InputError: ``module`` or ``example_input`` is of the wrong kind.
    """
    if not isinstance(module, nn.Module) or isinstance(module, EideticNetwork):
        raise InputError(f"convert takes a plain torch.nn.Module, got {type(module).__name__}.")
    if not isinstance(example_input, Tensor) or example_input.dim() < 2:
        raise InputError("example_input must be a batch that the module accepts, a tensor [N, ...].")
    plain = write_out(copy.deepcopy(module))
    modes = {path: each.training for path, each in plain.named_modules()}
    plain.eval()  # training-mode extras (auxiliary classifiers) stay outside of the graph
    graph = _one_input(tracing.graph_of(plain, _defaults(plain)), plain)
    try:
        _Shapes(plain, graph).run(example_input)
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:
        raise InputError(
            f"{type(module).__name__} cannot take example_input of shape {list(example_input.shape)} and "
            f"{example_input.dtype}: {error}"
        ) from error
    node, end, classifier = _head(plain, graph, head)
    expected = end.meta["value"]
    graph.erase_node(_output(graph))
    graph.output(node)
    rearranging.separate_heads(plain, graph)
    rearranging.rearrange(plain, graph)
    graph.eliminate_dead_code(_changes_in_place)
    _unshare_dropouts(plain, graph)
    _hold_parameters(plain, graph)
    _attend_by_module(plain, graph, module)
    for node in graph.nodes:
        node.meta.pop("value", None)
        if node.op == "call_module":
            _replace(plain, node)
    body = fx.GraphModule(plain, graph, type(module).__name__)
    for path, each in body.named_modules():
        each.training = modes.get(path, module.training)
    network = ConvertedNetwork(body)
    network.training = module.training
    if head is not False:
        _begin(network, classifier, expected)
        _compare(network, example_input, expected)
    return network


class ConvertedNetwork(EideticNetwork):
    """What :func:`convert` makes: the traced ``body``, and the original's last layer as task 0's head."""

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
        """Give up task 0 where it is as ``convert`` began it, so that a saved network can be read into this one."""
        whole = all(group.segments.live == group.segments.width == group.built_width for group in self.groups)
        if self.current_task == 0 and whole:
            self.heads, self.current_task = nn.ModuleList(), None


# ---- the graph


def _defaults(module: nn.Module) -> dict[str, Any] | None:
    """Arguments of forward after the first, at their defaults."""
    first, *others = inspect.signature(module.forward).parameters.values()
    named = [p for p in others if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    missing = [p.name for p in named if p.default is p.empty]
    if missing:
        raise ConversionError(
            f"{type(module).__name__}.forward takes several inputs ({first.name}, {', '.join(missing)}); a network has "
            "one. Wrap the module in one that takes a single tensor."
        )
    return {p.name: p.default for p in named} or None


def _one_input(graph: fx.Graph, module: nn.Module) -> fx.Graph:
    """``graph`` without the placeholders that torch.fx makes for defaults, and the assertions about them."""
    for node in [node for node in graph.nodes if node.op == "placeholder"][1:]:
        for user in list(node.users):
            for last in list(user.users):
                graph.erase_node(last)
            graph.erase_node(user)
        graph.erase_node(node)
    return graph


class _Shapes(fx.Interpreter):
    """Runs the graph on an example and notes each tensor's shape, for the rules; and its value, where asked later."""

    def __init__(self, module: nn.Module, graph: fx.Graph):
        super().__init__(module, graph=graph)
        self.extra_traceback = False

    @torch.no_grad()
    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        if isinstance(result, Tensor):
            node.meta["shape"] = tuple(result.shape)
            if result.dim() <= 2:  # logits, if anything; kept before something changes them in place
                node.meta["value"] = result.clone()
        elif isinstance(result, (tuple, list)) and all(isinstance(each, Tensor) for each in result):
            node.meta["shapes"] = tuple(tuple(each.shape) for each in result)
        elif isinstance(result, int):
            node.meta["number"] = result
        return result


def _output(graph: fx.Graph) -> fx.Node:
    return next(reversed(graph.nodes))


def _head(module: nn.Module, graph: fx.Graph, head: str | bool | None) -> tuple[fx.Node, fx.Node, nn.Linear | None]:
    """The node whose value are the features, the node whose value are the logits, and the layer between them."""
    name = type(module).__name__
    end = _output(graph).args[0]
    if isinstance(head, str):
        calls = [node for node in graph.nodes if node.op == "call_module" and node.target == head]
        if len(calls) != 1 or not isinstance(module.get_submodule(head), nn.Linear):
            linear = [path for path, each in module.named_modules() if isinstance(each, nn.Linear)]
            raise ConversionError(
                f"head={head!r} must name a linear layer that {name}.forward calls once. Linear layers: "
                f"{', '.join(linear) or 'none'}."
            )
        end = calls[0]
    elif head not in (None, False):
        raise InputError(f"head must be a layer's path, None (the last layer) or False (none); got {head!r}.")
    shape = end.meta.get("shape") if isinstance(end, fx.Node) else None
    if shape is None or len(shape) != 2:
        what = type(end).__name__ if shape is None else f"a tensor of shape {list(shape)}"
        raise ConversionError(
            f"{name}.forward must return one tensor, logits [N, classes] or features [N, units]; it returned {what}. "
            "Name the layer that makes the logits (head=\"path\"), or wrap the module in one that returns one tensor."
        )
    if head is False or end.op != "call_module" or not _plain(module.get_submodule(end.target), nn.Linear):
        return end, end, None
    if len(end.users) > 1:
        raise ConversionError(f"node {end.name!r}: the head's output is used in other places too.")
    return end.args[0], end, module.get_submodule(end.target)


def _changes_in_place(node: fx.Node) -> bool:
    """What must stay in the graph although nothing uses its result: it changes its argument."""
    in_place = node.op == "call_method" and node.target.endswith("_")
    return in_place or bool(node.kwargs.get("inplace")) or node.op in ("placeholder", "output")


def _unshare_dropouts(module: nn.Module, graph: fx.Graph) -> None:
    """One dropout module called in several places becomes one a place: each has frozen units of its own."""
    seen: set[str] = set()
    for node in graph.nodes:
        if node.op == "call_module" and rules.module_rule(module.get_submodule(node.target)) is rules.drops:
            path = node.target
            while path in seen:
                path += "_again"
            if path != node.target:
                module.set_submodule(path, copy.deepcopy(module.get_submodule(node.target)))
                node.target = path
            seen.add(path)


def _hold_parameters(module: nn.Module, graph: fx.Graph) -> None:
    """Parameters that the graph uses directly become layers, a part a unit."""
    for node in list(graph.nodes):
        if node.op != "get_attr":
            continue
        owner, _, name = node.target.rpartition(".")
        owner = module.get_submodule(owner)
        held = getattr(owner, name)
        if isinstance(held, nn.Parameter) and held.dim():
            delattr(owner, name)
            owner.add_module(name, EideticParameter(held, dim=None))
        if isinstance(getattr(owner, name), EideticParameter):
            with graph.inserting_before(node):
                call = graph.call_module(node.target)
            call.meta = node.meta
            node.replace_all_uses_with(call)
            graph.erase_node(node)


def _attend_by_module(module: nn.Module, graph: fx.Graph, original: nn.Module) -> None:
    """Calls of F.scaled_dot_product_attention become modules, which know whose heads they are given."""
    calls = _calls_of_attention(graph)
    if not calls:
        return
    dropouts = [_attention_options(node)["dropout_p"] for node in _calls_of_attention(_trained(original))]
    for number, node in enumerate(calls):
        options = _attention_options(node)
        q, k, v, mask, gqa = (options[name] for name in ("query", "key", "value", "attn_mask", "enable_gqa"))
        where = f"node {node.name!r} [{node.op} {node.target.__name__}]"
        fixed = not any(isinstance(options[name], fx.Node) for name in ("is_causal", "scale"))
        known = len(dropouts) == len(calls) and isinstance(dropouts[number], (int, float))
        if mask is not None or gqa or not fixed or not known:
            raise ConversionError(
                f"{where}: attention with a mask (is_causal is understood), with fewer keys than queries (enable_gqa), "
                "with a scale made of sizes, which pruning changes, or whose dropout in training cannot be read off a "
                "trace has no rule."
            )
        path = f"scaled_dot_product_attention_{number}"
        module.add_module(path, EideticScaledDotProduct(dropouts[number]))
        node.op, node.target, node.args = "call_module", path, (q, k, v, options["is_causal"])
        node.kwargs = {"scale": options["scale"]}


def _calls_of_attention(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.target is F.scaled_dot_product_attention]


def _attention_options(node: fx.Node) -> dict[str, Any]:
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
    defaults = dict.fromkeys(names) | {"dropout_p": 0.0, "is_causal": False, "enable_gqa": False}
    return defaults | dict(zip(names, node.args)) | node.kwargs


def _trained(original: nn.Module) -> fx.Graph:
    """The graph of training: its dropouts are not those of evaluation."""
    training = write_out(copy.deepcopy(original)).train()
    return tracing.graph_of(training, _defaults(training))


# ---- the layers


def _plain(module: nn.Module, cls: type) -> bool:
    """Whether ``module`` is what ``cls`` computes, and nothing more."""
    twin = isinstance(module, (SegmentedLayer, HeadedAttention))
    return isinstance(cls, type) and isinstance(module, cls) and type(module).forward is cls.forward and not twin


def _replace(module: nn.Module, node: fx.Node) -> None:
    """Put the twin that knows segments in the place of the layer that ``node`` calls."""
    old = module.get_submodule(node.target)
    name = f"{type(old).__module__}.{type(old).__qualname__}"
    twin = TWINS.get(name) or next((make for cls, make in TWINS.items() if _plain(old, cls)), None)
    if twin is None:
        return
    hooks = [*old._forward_hooks, *old._forward_pre_hooks, *old._backward_hooks]
    if hooks or parametrize.is_parametrized(old):
        raise ConversionError(
            f"node {node.name!r}: {node.target!r} has hooks or parametrizations (weight or spectral normalisation), "
            "which would be lost. Remove them first (torch.nn.utils.parametrize.remove_parametrizations)."
        )
    new = twin(old, f"node {node.name!r} [{node.op} {node.target}]")
    if isinstance(new, SegmentedLayer):  # an attention is made of several, and has taken over their parameters
        for name, parameter in old.named_parameters(recurse=False):
            setattr(new, name, parameter)  # a copy already, in its dtype, device and memory format
        for name, buffer in old.named_buffers(recurse=False):
            new.register_buffer(name, buffer)
    new.train(old.training)
    module.set_submodule(node.target, new)


def _factory(old: nn.Module) -> dict[str, Any]:
    tensor = next(iter(old.state_dict().values()))
    return {"device": tensor.device, "dtype": tensor.dtype if tensor.is_floating_point() else None}


def _linear(old: nn.Linear, where: str) -> EideticLinear:
    return EideticLinear(old.in_features, old.out_features, old.bias is not None, **_factory(old))


def _conv2d(old: nn.Conv2d, where: str) -> SegmentedLayer:
    window = (old.kernel_size, old.stride, old.padding, old.dilation)
    rest = (old.bias is not None, old.padding_mode)
    if old.groups == 1:
        return EideticConv2d(old.in_channels, old.out_channels, *window, 1, *rest, **_factory(old))
    if old.in_channels != old.out_channels:
        raise ConversionError(
            f"{where}: a convolution of {old.in_channels} into {old.out_channels} channels with groups={old.groups} "
            "has no rule: each group of channels must make as many as it reads, so that they are the same units. Let "
            "it make as many, and put a 1x1 convolution behind it."
        )
    if old.groups == old.in_channels:
        return EideticDepthwiseConv2d(old.in_channels, *window, *rest, **_factory(old))
    return EideticGroupedConv2d(old.in_channels, old.groups, *window, *rest, **_factory(old))


def _batch_norm(twin: type) -> Any:
    def make(old: nn.BatchNorm1d | nn.BatchNorm2d, where: str) -> SegmentedLayer:
        if not old.track_running_stats or old.running_mean is None:
            raise ConversionError(
                f"{where}: without running statistics (track_running_stats=False) there is nothing to freeze: a "
                "finished task's answers would depend on the test batch."
            )
        return twin(old.num_features, old.eps, old.momentum, old.affine, **_factory(old))

    return make


def _layer_norm(old: nn.LayerNorm, where: str) -> EideticLayerNorm:
    if len(old.normalized_shape) != 1:
        raise ConversionError(
            f"{where}: LayerNorm over the dimensions {list(old.normalized_shape)} mixes units and positions; only one "
            "over the units alone can be kept task by task."
        )
    first = f"{type(old).__module__}.{type(old).__qualname__}" in rules.LAYER_NORMS_2D
    factory = _factory(old) if old.elementwise_affine else {}
    return EideticLayerNorm(
        old.normalized_shape, old.eps, old.elementwise_affine, old.bias is not None, **factory, channels_first=first
    )


def _prelu(old: nn.PReLU, where: str) -> EideticPReLU:
    return EideticPReLU(old.num_parameters, old.init, **_factory(old))


def _attention(old: nn.MultiheadAttention, where: str) -> EideticMultiheadAttention:
    if not old._qkv_same_embed_dim or old.bias_k is not None or old.add_zero_attn:
        raise ConversionError(
            f"{where}: attention with keys or values of another size (kdim, vdim), with biases of its own for them "
            "(add_bias_kv) or with an added zero (add_zero_attn) has no rule."
        )
    bias = old.in_proj_bias is not None
    new = EideticMultiheadAttention(
        old.embed_dim, old.num_heads, old.dropout, bias, old.batch_first, **_factory(old)
    )
    new.adopt(old.in_proj_weight, old.in_proj_bias, old.out_proj)
    return new


def _window_attention(old: nn.Module, where: str) -> EideticWindowAttention:
    new = EideticWindowAttention(
        old.qkv.in_features, old.window_size, old.shift_size, old.num_heads, old.qkv.bias is not None,
        old.proj.bias is not None, old.attention_dropout, old.dropout, **_factory(old.qkv),
    )  # fmt: skip
    new.adopt_window(old)
    return new


def _window_attention_v2(old: nn.Module, where: str) -> EideticWindowAttentionV2:
    return EideticWindowAttentionV2(old, **_factory(old.qkv))


def _relative_attention(old: nn.Module, where: str) -> EideticRelativeAttention:
    factory = _factory(old.to_qkv)
    new = EideticRelativeAttention(old.to_qkv.in_features, old.head_dim, old.max_seq_len, **factory)
    new.adopt_relative(old)
    return new


TWINS = {
    rules.RELATIVE_ATTENTION: _relative_attention,
    f"{rules.WINDOW_ATTENTION}V2": _window_attention_v2,
    rules.WINDOW_ATTENTION: _window_attention,
    nn.MultiheadAttention: _attention,
    **dict.fromkeys(rules.LAYER_NORMS_2D, _layer_norm),
    nn.LayerNorm: _layer_norm,
    nn.PReLU: _prelu,
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
    nn.BatchNorm1d: _batch_norm(EideticBatchNorm1d),
    nn.BatchNorm2d: _batch_norm(EideticBatchNorm2d),
}


# ---- task 0


def _begin(network: ConvertedNetwork, classifier: nn.Linear | None, expected: Tensor) -> None:
    """Task 0 is in training, ``classifier`` (or the identity) being its head."""
    network.prepare_for_task(0, expected.shape[1])
    head = network.live_head
    with torch.no_grad():
        if classifier is None:
            head.weight.copy_(torch.eye(expected.shape[1], dtype=head.weight.dtype, device=head.weight.device))
            head.bias.zero_()
            return
        head.weight.copy_(classifier.weight)
        head.weight.requires_grad_(classifier.weight.requires_grad)
        if classifier.bias is None:
            head.bias.zero_()
            head.bias.requires_grad_(False)
        else:
            head.bias.copy_(classifier.bias)
            head.bias.requires_grad_(classifier.bias.requires_grad)


def _compare(network: ConvertedNetwork, example: Tensor, expected: Tensor) -> None:
    with torch.no_grad(), evaluating(network):
        given = network(example)
    tolerance = TOLERANCE.get(given.dtype, 3e-2)
    scale = expected.abs().max().clamp_min(1e-30)
    if given.shape != expected.shape or not torch.allclose(given / scale, expected / scale, 0, tolerance, True):
        raise ConversionError(
            "the converted network's outputs for example_input are not the module's. Does its forward do something "
            "that depends on the values, is random in evaluation, or changes tensors behind torch.fx's back?"
        )

"""What a capture would lose of a module, and what is refused therefore."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from torch import fx, nn

from ...errors import ConversionError
from ...wiring.diagnostics import at_node
from .capture import Captured
from .nodes import module_path, needed, operation


def refuse_gradient_hooks(module: nn.Module) -> None:
    """Raise ConversionError for hooks that neither a trace nor a copy of ``module`` would hold."""
    hooked = [path for path, each in module.named_parameters() if _hooks(each)]
    hooked += [path for path, each in module.named_modules() if each._backward_hooks or each._backward_pre_hooks]
    if module._forward_hooks or module._forward_pre_hooks:
        hooked.append("")
    if hooked:
        raise ConversionError(
            f"{', '.join(repr(path) if path else 'the module itself' for path in hooked)}: hooks (register_hook, "
            "register_full_backward_hook, a forward hook of the whole module) would be lost. Remove them; they can be "
            "registered on the converted network."
        )


def _hooks(parameter: nn.Parameter) -> bool:
    return bool(parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None))


def refuse_forward_hooks(module: nn.Module, whole: Callable[[nn.Module], bool]) -> None:
    """Raise ConversionError for hooks of modules that are kept ``whole``. Others are looked into, hooks and all."""
    for path, each in module.named_modules():
        if whole(each) and (each._forward_hooks or each._forward_pre_hooks or "forward" in vars(each)):
            raise ConversionError(
                f"{path!r} has hooks, or a forward of its own beside its class's, which would be lost: "
                f"{type(each).__name__} is kept as it is, and not looked into. Remove them; hooks can be registered on "
                "the converted network."
            )


def refuse_shared_memory(module: nn.Module) -> None:
    """Raise ConversionError where parameters lie in each other's memory without being one parameter."""
    seen: list[tuple[int, int, str]] = []
    for path, each in module.named_parameters():
        if each.numel() and each.device.type != "meta":
            start = each.data_ptr()
            seen.append((start, start + each.numel() * each.element_size(), path))
    seen.sort()
    for (_, end, first), (start, _, second) in itertools.pairwise(seen):
        if start < end:
            tied, to = sorted((first, second), reverse=True)
            raise ConversionError(
                f"{tied!r} is tied to {to!r}: they lie in the same memory, so training one trains the other, which a "
                "conversion would lose. Make them one parameter, or copies (clone())."
            )


def refuse_ties(captured: Captured, end: fx.Node, classifier: fx.Node | None) -> None:
    """Raise ConversionError where a layer's parameter is read in another way as well.

    A layer that is called several times reads the same parameters each time. Only nodes that ``end`` is made of count.
    ``classifier`` is the node of the layer that becomes task 0's head: nothing else may read its parameters.
    """
    readers = _parameter_readers(captured, end)
    layers = {node: paths for node, paths in readers.items() if operation(node) in _LAYERS}
    for node, paths in layers.items():
        for other, others in readers.items():
            shared = set(paths).intersection(others)
            if other is node or not shared or (layers.get(other) == paths and classifier not in (node, other)):
                continue
            path = min(shared)
            if other in layers:
                first, second = sorted(module_path(each) for each in (other, node))
                raise at_node(other).refused(
                    f"{path!r} is tied: {first!r} and {second!r} both read it, and their units are different ones. "
                    "Give each a parameter of its own (a copy)."
                )
            raise at_node(other).refused(
                f"{path!r} is used both by its layer and beside it. Give what reads it a parameter of its own (a copy)."
            )


_LAYERS = (
    *("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "embedding"),
    *("batch_norm", "layer_norm", "rms_norm", "group_norm", "prelu"),
)


def _parameter_readers(captured: Captured, end: fx.Node) -> dict[fx.Node, tuple[str, ...]]:
    found: dict[fx.Node, tuple[str, ...]] = {}
    wanted = needed(end)
    for node in captured.graph.nodes:
        held = [captured.held.get(each.name, "") for each in node.all_input_nodes if each.op == "placeholder"]
        paths = tuple(path for path in held if path in captured.parameters)
        if paths and node in wanted:
            found[node] = paths
    return found

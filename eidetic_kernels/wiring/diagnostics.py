"""How a refusal says where in a network it happened, and what can be done."""

from __future__ import annotations

import os
import re

from torch import fx

from ..errors import ConversionError

WAYS_OUT = (
    "Ways out: use a layer that keeps units apart, register a rule for the operation (ek.register_rule), or declare "
    "the wiring by hand (connections() on the network)."
)


class Place:
    """Where in a network something is refused: the place's ``name``, and what can be done about it."""

    def __init__(self, name: str, ways_out: str = ""):
        self.name, self.ways_out = name, ways_out

    def __str__(self) -> str:
        return self.name

    def refused(self, reason: str) -> ConversionError:
        """The error to raise: what was given, what was expected, what to do."""
        return ConversionError(f"{self.name}: {reason}" + (f"\n{self.ways_out}" if self.ways_out else ""))


def at_node(node: fx.Node) -> Place:
    """The place of a traced graph's node, with the innermost line of the user's that made it (or else of torch's)."""
    if node.op == "placeholder" and node.users:  # a tensor of the network: where it is read
        node = next(iter(node.users))
    frames = re.findall(r'(File "([^"]+)".*\n.*)', node.stack_trace or "")
    frames = [(frame, file) for frame, file in frames if not file.startswith(_HERE)]
    own = [frame for frame, file in frames if f"{os.sep}torch{os.sep}" not in file]
    line = own[-1] if own else frames[-1][0] if frames else ""

    place = f" ({' '.join(line.split())})" if line else ""
    if str(node.target).startswith("eidetic_kernels.mark"):  # a module that is kept whole
        return Place(f"module {node.args[1]!r}{place}", WAYS_OUT)
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target)
    stack = node.meta.get("nn_module_stack") or {}
    module = f" of {list(stack.values())[-1][0]!r}" if stack and list(stack.values())[-1][0] else ""
    return Place(f"node {node.name!r} [{node.op} {target}]{module}{place}", WAYS_OUT)


# The package's own folder.
_HERE = os.path.dirname(os.path.dirname(__file__)) + os.sep

"""How a refusal says where in a network it happened, and the ways out: one place for all of them."""

from __future__ import annotations

import os
import re

from torch import fx

from ..errors import ConversionError

WAYS_OUT = (
    "Ways out: use a layer that keeps units apart, tell what the operation does (ek.register_rule), or declare the "
    "wiring by hand (connections() on the network)."
)


class Place:
    """Where something is refused: ``name`` it and, where they are not ``WAYS_OUT``, what can be done."""

    def __init__(self, name: str, ways_out: str = ""):
        self.name, self.ways_out = name, ways_out

    def __str__(self) -> str:
        return self.name

    def refused(self, reason: str) -> ConversionError:
        """The error to raise: what was given, what was expected, what to do."""
        return ConversionError(f"{self.name}: {reason}" + (f"\n{self.ways_out}" if self.ways_out else ""))


def at_node(node: fx.Node) -> Place:
    """A node of a traced graph and its line: the innermost frame that is the user's; torch's, where none is."""
    frames = re.findall(r'(File "([^"]+)".*\n.*)', node.stack_trace or "")
    frames = [(frame, file) for frame, file in frames if not file.startswith(_HERE)]
    own = [frame for frame, file in frames if f"{os.sep}torch{os.sep}" not in file]
    line = own[-1] if own else frames[-1][0] if frames else ""
    place = f" ({' '.join(line.split())})" if line else ""
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target)
    return Place(f"node {node.name!r} [{node.op} {target}]{place}", WAYS_OUT)


_HERE = os.path.dirname(os.path.dirname(__file__)) + os.sep

"""The network that a conversion makes."""

from __future__ import annotations

from torch import Tensor, fx, nn

from ..network import EideticNetwork
from ..wiring.groups import Wiring


class ConvertedNetwork(EideticNetwork):
    """What :func:`.convert` makes: the captured ``body``, with the original's last layer as task 0's head.

    Attributes:
        shared: paths of the original's parameters that all units share (a scalar, learned queries, a norm's over
            positions). No task trains them.
    """

    rebuilt_by = (
        "it was made by ek.convert from a module that the file does not hold: convert the same module again (with or "
        "without its weights) and pass it, load(path, network=ek.convert(module, example_input))"
    )

    def __init__(self, body: fx.GraphModule, wiring: Wiring, shared: tuple[str, ...] = ()):
        super().__init__()
        self.shared = shared
        self.__dict__["constructor_arguments"] = ((), {})
        self.body = body
        self._wire(wiring)
        body.recompile()
        for node in body.graph.nodes:
            node.meta.clear()

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return self.body(*args, **kwargs)

    def traced(self) -> tuple[fx.Graph, nn.Module]:
        return self.body.graph, self.body

    def spare_features(self) -> None:
        """Let pruning leave the units of the features alone."""
        for source in self.wiring.features:
            next(group for group in self.groups if group.segments is source.group).spared = True

    def as_architecture(self) -> None:
        """Give up task 0, if it is as ``convert`` began it, so that a saved network can be loaded into this one."""
        whole = all(group.segments.live == group.segments.width == group.built_width for group in self.groups)
        if self.current_task == 0 and whole:
            self.heads, self.current_task = nn.ModuleList(), None

"""Random small networks of every kind of layer, as Hypothesis draws them."""

import copy
import functools
from dataclasses import dataclass

import torch
from conversions import lived_in
from fused_networks import Images, Small
from hypothesis import strategies as st
from plain_modules import Halves
from small_networks import MLP, Backboned, ConvNet, FlatResidual, Grouped, Joined, Residual
from small_transformers import ByHand, ConvNeXtLike, Encoder, OneLayer
from window_modules import InParts, InWindows

import eidetic_kernels as ek

NETWORKS = {
    "mlp": MLP,
    "convolutions": ConvNet,
    "residual": Residual,
    "flat residual": FlatResidual,
    "grouped": Grouped,
    "joined": Joined,
    "by hand, on a frozen backbone": Backboned,
    "fused": Small,
    "fused images": Images,
}
# Made by ek.convert, with the shape of a sample.
CONVERTED = {
    "encoder": (functools.partial(Encoder, dropout=0.3), (3, 4)),
    "encoder, norm last": (functools.partial(Encoder, norm_first=False), (3, 4)),
    "encoder, tokens first": (functools.partial(Encoder, batch_first=False), (3, 4)),
    "heads by hand": (ByHand, (3, 5)),
    "packed heads by hand": (functools.partial(ByHand, packed=True), (3, 5)),
    "heads of one layer": (OneLayer, (3, 5)),
    "depthwise": (ConvNeXtLike, (3, 4, 4)),
    "windows": (InWindows, InWindows.example),
    "windows, second version": (functools.partial(InWindows, second=True), InWindows.example),
    "parts": (InParts, InParts.example),
    "split and shuffled": (Halves, Halves.example),
}
# These average over tokens, or convolve each channel by itself. Libraries round there by the number of channels beside,
# and the one pass of ``predict`` has the channels of all tasks.
ROUNDS_BY_CHANNELS = {
    *("heads by hand", "packed heads by hand", "heads of one layer", "depthwise", "split and shuffled"),
    *("windows", "windows, second version", "parts"),
}


@dataclass(frozen=True)
class Recipe:
    """A kind of network and its constructor's arguments."""

    kind: str
    arguments: tuple

    def build(self):
        """A fresh network, wired; what ``ek.convert`` made has task 0 in training. ``example``: a sample's shape."""
        return copy.deepcopy(_built(self))

    @property
    def architecture(self):
        """What loading a network of this kind must be given; None where the file says all."""
        return _built(self) if self.kind in CONVERTED else None


@functools.lru_cache(maxsize=1024)
def _built(recipe):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if recipe.kind in NETWORKS:
            net = NETWORKS[recipe.kind](*recipe.arguments)
            net.wiring  # noqa: B018  found once, for all copies
            return net
        make, example = CONVERTED[recipe.kind]
        module = lived_in(make(*recipe.arguments))
        net = ek.convert(module, torch.randn(1, *example))
        net.example = example
        return net


def _recipes(kind, *arguments):
    return st.builds(Recipe, st.just(kind), st.tuples(*arguments))


_width, _dropout, _norm = st.integers(1, 6), st.sampled_from([0.0, 0.5]), st.booleans()
_encoder = st.just(6), st.just(3), st.sampled_from([1, 4]), st.just(4), st.just(3), st.just(3), st.just(1)
recipes = st.one_of(
    _recipes("mlp", st.lists(_width, min_size=1, max_size=3).map(tuple), _norm, _dropout),
    _recipes("convolutions", st.tuples(_width, _width, _width), _norm, _dropout),
    _recipes("residual", _width, _width, _norm, _dropout),
    _recipes("flat residual", _width, _width, _norm, _dropout),
    _recipes("grouped", st.sampled_from([3, 6, 9]), st.sampled_from([2, 4, 6]), _norm, _dropout),
    _recipes("joined", st.integers(2, 6), st.integers(2, 6), _width, _dropout),
    _recipes("by hand, on a frozen backbone", _width, _width, _dropout),
    _recipes("fused"),
    _recipes("fused images"),
    *(_recipes(kind, *_encoder) for kind in CONVERTED if kind.startswith("encoder")),
    *(_recipes(kind, st.just(6), st.just(2), st.just(2), _dropout) for kind in CONVERTED if kind.endswith("by hand")),
    _recipes("heads of one layer", _norm, st.just(6), st.just(3)),
    _recipes("depthwise", st.integers(2, 4), st.just(3)),
    _recipes("windows", st.just(3), st.just(2), st.just(False), _dropout),
    _recipes("windows, second version", st.just(3), st.just(2)),
    _recipes("parts", st.just(3), st.just(2)),
    _recipes("split and shuffled", st.sampled_from([2, 4]), _dropout),
)

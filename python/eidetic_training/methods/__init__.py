"""Eidetic Learning and the methods that it is compared with, under equal conditions."""

from __future__ import annotations

from collections.abc import Callable

from .base import Conditions, Method
from .clnp import CLNP
from .hat import HAT
from .packnet import PackNet
from .penalties import EWC, SynapticIntelligence
from .piggyback import Piggyback
from .segmented import Eidetic
from .simple import Joint, Sequential, SingleTask
from .superposition import Superposition

METHODS: dict[str, Callable[..., Method]] = {
    "eidetic": Eidetic,
    "single": SingleTask,
    "joint": Joint,
    "sequential": Sequential,
    "ewc": EWC,
    "si": SynapticIntelligence,
    "superposition": Superposition,
    "clnp": CLNP,
    "packnet": PackNet,
    "piggyback": Piggyback,
    "hat": HAT,
}

__all__ = [
    "CLNP",
    "EWC",
    "HAT",
    "METHODS",
    "Conditions",
    "Eidetic",
    "Joint",
    "Method",
    "PackNet",
    "Piggyback",
    "Sequential",
    "SingleTask",
    "Superposition",
    "SynapticIntelligence",
]

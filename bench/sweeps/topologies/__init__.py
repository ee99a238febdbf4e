"""Small networks, each with one way in which people wire layers. Written for the sweep."""

from __future__ import annotations

from . import attention, branches, convolutions, gates, norms, sequences, sharing, tokens  # noqa: F401  they register
from .registry import TOPOLOGIES

__all__ = ["TOPOLOGIES"]

"""The sweep's own small networks."""

from __future__ import annotations

from .subject import Subject
from .topologies import TOPOLOGIES

PACKAGE = None


def names() -> list[str]:
    return list(TOPOLOGIES)


def sample() -> list[str]:
    return names()


def build(name: str) -> Subject:
    found = TOPOLOGIES[name]
    return Subject(found.build(), found.shape, found.other, found.vocabulary)

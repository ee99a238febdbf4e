"""Values that a rule may meet beside units and the input (:mod:`..graph` has these): numbers that count units, and
tensors that belong to none."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Count:
    """A number made of how many units there are: right in a shape, wrong as a factor, since pruning changes it.

    ``name``: whose units, for messages.
    """

    name: str


@dataclass(frozen=True)
class Sizes:
    """A tensor's shape; ``counts`` says of each dimension whether its size counts units."""

    name: str
    counts: tuple[bool, ...]

    def at(self, index: int | slice) -> Count | Sizes | None:
        """One of the sizes, or some of them; None where no unit is counted."""
        counts = self.counts[index]
        if isinstance(index, int):
            return Count(self.name) if counts else None
        return Sizes(self.name, counts) if any(counts) else None


@dataclass(frozen=True)
class Fixed:
    """A tensor of no task: a buffer (at ``path``), or one made on the way (``path`` is empty).

    The input may be combined with it before the first layer. Units may not: its slices would not follow theirs. One
    number (``scalar``) is the same for all.
    """

    path: str
    scalar: bool

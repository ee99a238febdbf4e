"""Where layers are cut, so that their units form several groups.

How many groups a layer's units form is known only once it is seen who reads them. So a builder raises :class:`Cut` when
some units turn out to be a group of their own, and the network is wired again from the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .values import Units


class Cut(Exception):
    """The units of some layers must form several groups: wire the network again, with these layers cut there.

    ``places`` are (layer, unit) pairs: the layer's path, and the unit before which it is cut.
    """

    def __init__(self, places: set[tuple[str, int]]):
        super().__init__(places)
        self.places = places


def take(value: Units, places: Sequence[int]) -> tuple[Units, tuple[int, ...]]:
    """The units of ``value`` that lie at ``places``, and the numbers of the groups they are. Raises Cut unless these
    are whole groups."""
    wanted, cuts, numbers, left, offset = set(places), set(), [], [], 0
    for number, part in enumerate(value.parts):
        inside = [offset + unit in wanted for unit in range(part.width)]
        cuts |= part.cuts(unit for unit in range(1, part.width) if inside[unit] != inside[unit - 1])
        if inside[0]:
            numbers.append(number)
            left += range(offset, offset + part.width)
        offset += part.width
    if cuts:
        raise Cut(cuts)

    rank = {place: number for number, place in enumerate(left)}
    piece = replace(value, drafts=tuple(value.parts[number] for number in numbers))
    return piece.ordered(rank[place] for place in places), tuple(numbers)


def cut_alike(a: Units, b: Units) -> None:
    """Raise Cut unless the groups of ``a`` and ``b`` begin at the same places."""
    starts = [[sum(part.width for part in value.parts[:n]) for n in range(len(value.parts))] for value in (a, b)]
    cuts: set[tuple[str, int]] = set()
    for value, own, others in ((a, *starts), (b, *reversed(starts))):
        for part, start in zip(value.parts, own):
            cuts |= part.cuts(place - start for place in others if start < place < start + part.width)
    if cuts:
        raise Cut(cuts)

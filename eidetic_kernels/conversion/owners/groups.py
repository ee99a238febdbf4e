"""From what ties units together to groups: runs of units that layers make side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import gcd

import torch
from torch import Tensor

from ...errors import ConversionError
from .constraints import Constraints, Made, components, signatures

MOST_GROUPS = 512  # of one layer


@dataclass(frozen=True)
class Run:
    """Rows of one layer that are in one group: ``width`` rows from its row ``start`` on."""

    group: int
    start: int
    width: int


@dataclass
class Grouped:
    """Units sorted into groups.

    Args:
        group: for each row its group; -1 for elements of tensors that meet no unit.
        place: for each row its unit's place in the group; for what belongs to a grain that of the grain's first unit.
        widths: of the groups.
        grains: of the groups: how many neighbouring units live and go together.
        runs: of what makes units, by path.
        shared: paths of tensors that all units share.
    """

    group: Tensor
    place: Tensor
    widths: list[int]
    grains: list[int]
    runs: dict[str, list[Run]]
    shared: set[str] = field(default_factory=set)


def group_units(constraints: Constraints, parts: Iterable[tuple[Tensor, bool]]) -> Grouped:
    """Sort units into groups, cut so that each of ``parts`` (units that are met together) is some groups whole.

    Each part says whether it is coarse: then its units stand for their grains.

    Raises ConversionError where units are tied that do not run in parallel.
    """
    parts = list(parts)
    solved = constraints.solved()
    layers = [made for made in constraints.made.values() if made.kind != "tensor"]
    roots, together = solved.same, solved.together
    starts = torch.zeros(len(roots), dtype=torch.bool)
    _cut_parts(starts, roots, together, layers, parts)
    while True:
        _cut_breaks(starts, roots, layers)
        grouped = _numbered(roots, layers, starts)
        units = _first_units(constraints, grouped)
        if _cut_grains(starts, roots, together, units):
            continue
        pairs = _alike(together, units)
        if pairs is None:
            break
        merged = components(
            len(roots), torch.stack([torch.cat([roots, pairs[0]]), torch.cat([torch.arange(len(roots)), pairs[1]])])
        )
        if bool((merged == roots).all()):
            break
        begun = starts.nonzero().flatten()
        roots = merged
        starts = torch.zeros_like(starts)
        starts[roots[begun]] = True

    for number, own in enumerate(units):
        grouped.grains[number] = int((together[own] == together[own[0]]).sum())
    grouped = _of_one_width(grouped, units, together, _taken_apart(grouped, roots, units, parts))
    _place_tensors(grouped, constraints, together)
    grouped.shared = solved.shared
    return grouped


def _taken_apart(
    grouped: Grouped, roots: Tensor, units: Sequence[Tensor], parts: Iterable[tuple[Tensor, bool]]
) -> set[int]:
    """The groups whose grains are met in part: a head's query without its values, which lie beside it."""
    found: set[int] = set()
    member = torch.zeros(len(roots), dtype=torch.bool)
    for part, coarse in parts:
        met = torch.unique(roots[part[part >= 0]])
        member[met] = not coarse
        for number in torch.unique(grouped.group[met]).tolist():
            count = member[roots[units[number]]].view(-1, grouped.grains[number]).sum(1)
            if bool(((count > 0) & (count < grouped.grains[number])).any()):
                found.add(number)
        member[met] = False
    return found


def _of_one_width(grouped: Grouped, units: Sequence[Tensor], together: Tensor, apart: set[int]) -> Grouped:
    """Groups of the same grains as one group: where one layer's grain has 16 rows and another's 64, a unit is 4."""
    classes: dict[int, list[int]] = {}
    for number, own in enumerate(units):
        classes.setdefault(int(together[own[0]]), []).append(number)
    group, per = torch.zeros(len(units), dtype=torch.long), torch.ones(len(units), dtype=torch.long)
    widths, grains = [], []
    for numbers in classes.values():
        first = numbers[0]
        grain = 1 if apart.intersection(numbers) else gcd(*(grouped.grains[number] for number in numbers))
        for number in numbers:
            group[number], per[number] = len(widths), grouped.grains[number] // grain
        widths.append(grouped.widths[first] // grouped.grains[first] * grain)
        grains.append(grain)
    runs = {
        path: [Run(int(group[run.group]), run.start, run.width) for run in own] for path, own in grouped.runs.items()
    }
    owned = grouped.group >= 0
    old = grouped.group.clamp_min(0)
    return Grouped(
        torch.where(owned, group[old], -1), torch.where(owned, grouped.place // per[old], 0), widths, grains, runs
    )


def _cut_parts(
    starts: Tensor, roots: Tensor, together: Tensor, layers: Sequence[Made], parts: Iterable[tuple[Tensor, bool]]
) -> None:
    """Cut layers where some of their units are met without their neighbours."""
    seen: set[bytes] = set()
    member = torch.zeros(len(roots), dtype=torch.bool)
    for part, _ in parts:
        met = torch.unique(together[part[part >= 0]])
        key = met.numpy().tobytes()
        if key in seen:
            continue
        seen.add(key)
        member[met] = True
        for made in layers:
            own = member[together[made.first : made.first + made.count]]
            changes = (own[1:] != own[:-1]).nonzero().flatten() + 1
            starts[roots[made.first + changes]] = True
        member[met] = False


def _cut_breaks(starts: Tensor, roots: Tensor, layers: Sequence[Made]) -> None:
    """Cut layers where neighbours are not tied to neighbours, or are tied to other layers."""
    signature = signatures(roots, layers)
    for made in layers:
        own = roots[made.units]
        broken = (own[1:] != own[:-1] + 1) | (signature[own[1:]] != signature[own[:-1]])
        starts[own[1:][broken]] = True
        starts[own[0]] = True


def _numbered(roots: Tensor, layers: Sequence[Made], starts: Tensor) -> Grouped:
    """The groups that begin at ``starts``."""
    total = len(roots)
    group, place = torch.full((total,), -1), torch.zeros(total, dtype=torch.long)
    numbers: dict[int, int] = {}
    widths: list[int] = []
    runs: dict[str, list[Run]] = {}
    for made in layers:
        own = roots[made.units]
        begins = starts[own].nonzero().flatten().tolist()
        if len(begins) > MOST_GROUPS:
            raise ConversionError(f"the units of {made.path!r} are tied across one another: {len(begins)} runs.")
        runs[made.path] = []
        for begin, end in zip(begins, [*begins[1:], made.count]):
            number = numbers.setdefault(int(own[begin]), len(widths))
            if number == len(widths):
                widths.append(end - begin)
            if widths[number] != end - begin:
                raise ConversionError(f"the units of {made.path!r} are tied to others in another order.")
            runs[made.path].append(Run(number, begin, end - begin))
            group[own[begin:end]] = number
            place[own[begin:end]] = torch.arange(end - begin)
    return Grouped(group[roots], place[roots], widths, [1] * len(widths), runs)


def _first_units(constraints: Constraints, grouped: Grouped) -> list[Tensor]:
    """The units of each group, as the first layer has them."""
    units: dict[int, Tensor] = {}
    for path, runs in grouped.runs.items():
        first = constraints.made[path].first
        for run in runs:
            units.setdefault(run.group, torch.arange(first + run.start, first + run.start + run.width))
    return [units[number] for number in range(len(grouped.widths))]


def _cut_grains(starts: Tensor, roots: Tensor, together: Tensor, units: Sequence[Tensor]) -> bool:
    """Cut groups where grains come again, and where another group with the same grains begins or ends."""
    cut = False
    begins, ends = set(), set()
    for own in units:
        begins.add(int(together[own[0]]))
        ends.add(int(together[own[-1]]))
    for own in units:
        grains = together[own]
        changes = torch.cat([torch.zeros(1, dtype=torch.long), (grains[1:] != grains[:-1]).nonzero().flatten() + 1])
        seen: set[int] = set()
        previous = None
        for at, grain in zip(changes.tolist(), grains[changes].tolist()):
            if at and (grain in seen or grain in begins or previous in ends):
                if grain in seen:
                    seen = set()
                cut |= not bool(starts[roots[own[at]]])
                starts[roots[own[at]]] = True
            seen.add(grain)
            previous = grain
    return cut


def _alike(together: Tensor, units: Sequence[Tensor]) -> Tensor | None:
    """Pairs of units of groups that have the same grains, which are one group therefore."""
    first: dict[int, Tensor] = {}
    pairs = []
    for own in units:
        grains = together[own]
        other = first.setdefault(int(grains[0]), own)
        if other is own:
            continue
        if torch.unique_consecutive(together[other]).equal(torch.unique_consecutive(grains)) and len(other) != len(own):
            continue
        if len(other) != len(own) or not bool((together[other] == grains).all()):
            raise ConversionError(f"heads of several sizes: groups of {len(other)} and {len(own)} units live together.")
        pairs.append(torch.stack([other, own]))
    for own in units:
        grains = together[own]
        sizes = torch.unique_consecutive(grains, return_counts=True)[1]
        if len(torch.unique(sizes)) > 1:
            raise ConversionError(f"a group's units live together in runs of several lengths: {sizes.tolist()[:8]}.")
    return torch.cat(pairs, 1) if pairs else None


def _place_tensors(grouped: Grouped, constraints: Constraints, together: Tensor) -> None:
    """Place elements of tensors that belong to grains."""
    first = torch.full((len(together),), -1)
    layer_units = constraints.makers(torch.arange(len(together))) >= 0
    numbers = torch.arange(len(together))[layer_units].flip(0)
    first[together[numbers]] = numbers  # the smallest comes last
    for made in constraints.made.values():
        if made.kind == "tensor":
            own = made.units
            lost = own[grouped.group[own] < 0]
            unit = first[together[lost]]
            known = unit >= 0
            grouped.group[lost[known]] = grouped.group[unit[known]]
            grain = torch.tensor(grouped.grains)[grouped.group[unit[known]]]
            grouped.place[lost[known]] = grouped.place[unit[known]] // grain * grain

"""How many units each layer has, who owns them, and how long they will last."""

from __future__ import annotations

from dataclasses import dataclass

from ..wiring.groups import Group


@dataclass(frozen=True)
class CapacityRow:
    """The units of one unit group.

    Args:
        name: the group's name, the path of its first layer.
        width: how many units the group may hold.
        frozen: how many units each finished task owns.
        live: how many units are in training.
    """

    name: str
    width: int
    frozen: tuple[int, ...]
    live: int

    @property
    def free(self) -> int:
        """Units that no finished task owns."""
        return self.width - sum(self.frozen)


@dataclass(frozen=True)
class Capacity:
    """One row for each unit group; prints as a table."""

    rows: tuple[CapacityRow, ...]

    @property
    def frozen_share(self) -> float:
        """Frozen units over all units, in [0, 1]."""
        width = sum(row.width for row in self.rows)
        return sum(sum(row.frozen) for row in self.rows) / width if width else 0.0

    def forecast(self) -> int | None:
        """How many more tasks would get new units in every group, at the average that tasks took so far.

        None before the first task is finished, or when tasks took no units.
        """
        fits = [
            row.free // max(1, round(sum(row.frozen) / len(row.frozen)))
            for row in self.rows
            if row.frozen and sum(row.frozen)
        ]
        return min(fits) if fits else None

    def __str__(self) -> str:
        tasks = max((len(row.frozen) for row in self.rows), default=0)
        table = [["layer", "width", *[f"task {t}" for t in range(tasks)], "live", "free"]]
        for row in self.rows:
            table.append([row.name, *map(str, (row.width, *row.frozen, row.live, row.free))])
        widths = [max(map(len, column)) for column in zip(*table)]

        lines: list[str] = []
        for name, *counts in table:
            cells = [f"{name:<{widths[0]}}", *(f"{count:>{w}}" for count, w in zip(counts, widths[1:]))]
            lines.append("  ".join(cells))

        forecast = self.forecast()
        used = f"{100 * self.frozen_share:.1f} % of the units are frozen"
        lines.append(used + (f"; about {forecast} more tasks of this size fit." if forecast is not None else "."))
        return "\n".join(lines)


def capacity_of(groups: tuple[Group, ...]) -> Capacity:
    """See :meth:`EideticNetwork.capacity`."""
    return Capacity(tuple(CapacityRow(g.name, g.segments.width, g.segments.frozen, g.segments.live) for g in groups))

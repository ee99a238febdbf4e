"""A cap on a task's new units where the number of tasks is known."""

from __future__ import annotations

import math

from eidetic_kernels.tasks.base import BaseNetwork


def even_share(network: BaseNetwork, tasks: int) -> dict[str, int]:
    """How many new units a task may take, by unit group: the free ones, shared evenly among ``tasks`` tasks to come.

    Shares are rounded up. ``prepare_for_task`` takes the result as ``max_units``.
    """
    return {group.name: math.ceil(group.segments.free / tasks) for group in network.groups}

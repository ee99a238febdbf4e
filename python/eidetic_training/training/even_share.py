"""A cap on a task's new units where the number of tasks is known."""

from __future__ import annotations

import math

from eidetic_kernels.tasks.base import BaseNetwork


def even_share(network: BaseNetwork, tasks: int) -> dict[str, int]:
    """How many new units of each group a task may take, by the group's name: an even share for ``tasks`` to come.

    It is rounded up, and is what ``prepare_for_task`` takes as ``max_units``.
    """
    return {group.name: math.ceil(group.segments.free / tasks) for group in network.groups}

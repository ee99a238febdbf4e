"""How many weights a network holds, so that the share that pruning removes can be bounded."""

from __future__ import annotations

from eidetic_kernels.tasks.base import BaseNetwork


def weights_present(network: BaseNetwork) -> int:
    """The elements of the weight matrices that are present: units times all columns of the input, and kernel positions.

    They are counted whole, as a dense masked network holds them, with the head in training, if there is one. The share
    that pruning removed of them is what the published implementation calls the ratio of masked parameters.
    """
    producers = [layer for group in network.groups for layer in group.producers.values()]
    heads = [network.live_head] if len(network.heads) > network.finished_tasks else []
    present = 0
    for layer in [*producers, *heads]:
        columns = sum(source.columns(None) for source in layer.sources)
        present += layer.segments.total * columns * layer.weight.shape[2:].numel()
    return present

"""A model to convert, and the batches that it takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

CLASSES = 10


class Subject(NamedTuple):
    """A model with random weights.

    Args:
        module: takes a batch [N, *shape] and gives logits [N, CLASSES].
        shape: the shape of a sample.
        other: another shape to try, if the model may take one.
        vocabulary: inputs are whole numbers from 1 to below this; 0 for floating-point inputs.
    """

    module: nn.Module
    shape: Sequence[int]
    other: Sequence[int] | None = None
    vocabulary: int = 0

    def batch(self, samples: int, shape: Sequence[int] | None = None) -> Tensor:
        """Random inputs [samples, *shape], the same at every call."""
        generator = torch.Generator().manual_seed(samples)
        size = samples, *(shape or self.shape)
        if self.vocabulary:
            return torch.randint(1, self.vocabulary, size, generator=generator)
        return torch.randn(size, generator=generator)


def logits_of(returned: object) -> Tensor:
    """The logits in what a model returns: a tensor, a tuple that begins with it, or an output of Hugging Face's."""
    if isinstance(returned, Tensor):
        return returned
    return returned[0] if isinstance(returned, (tuple, list)) else returned.logits


@torch.no_grad()
def takes(module: nn.Module, shape: Sequence[int]) -> bool:
    """Whether ``module`` takes images of that shape, one in evaluation and two in training."""
    try:
        module.eval()(torch.randn(1, *shape))
        module.train()(torch.randn(2, *shape))
    except Exception:  # each library says it in its own way
        return False
    return True


def smallest(module: nn.Module, sizes: Iterable[int]) -> int | None:
    """The first of ``sizes`` of which ``module`` takes square images."""
    return next((size for size in sizes if takes(module, (3, size, size))), None)

"""EideticEmbedding: torch.nn.Embedding whose units (the numbers of each entry) belong to tasks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checking import shown, whole_number
from ..errors import InputError
from .staircase import StaircaseLayer


class EideticEmbedding(StaircaseLayer):
    """Drop-in for :class:`torch.nn.Embedding`: a table of entries, of which each unit holds one number of every entry.

    Args:
        num_embeddings: how many entries there are.
        embedding_dim: the layer's width: how many units all tasks together may own.
        padding_idx: the entry that gets no gradient, as in torch.
        device, dtype: as in torch.

    ``weight`` [L, num_embeddings] has a row for each live unit, where torch's has one for each entry. Input: whole
    numbers [N, *]; output [N, *, units]. Raises InputError for other inputs.
    """

    unit_dim = -1

    def __init__(
        self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None, device=None, dtype=None
    ):
        self.num_embeddings = whole_number("num_embeddings", num_embeddings, 1)
        self.embedding_dim = whole_number("embedding_dim", embedding_dim, unit="units")
        self.padding_idx = padding_idx
        super().__init__(self.num_embeddings, self.embedding_dim, (), False, device, dtype, None)

    def reset_parameters(self) -> None:
        """Live units start as torch's: drawn from a normal distribution."""
        if self.weight.numel():
            nn.init.normal_(self.weight)
            if self.padding_idx is not None:
                with torch.no_grad():
                    self.weight[:, self.padding_idx] = 0

    def forward(self, index: Tensor, computed: Tensor | None = None) -> Tensor:
        if computed is not None:  # by all parts of a divided layer together
            return computed
        if not isinstance(index, Tensor) or index.dtype not in (torch.int32, torch.int64):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(f"{self} expects whole numbers, int64 or int32; got {shown(index)}.")
        stairs = self.derived(self.scope.task)
        rows = stairs.frozen_rows
        frozen = self.frozen_weight[: rows * self.num_embeddings].view(rows, self.num_embeddings)
        tables = [table for table in (frozen, self.weight if stairs.live else frozen[:0]) if len(table)]
        table = torch.cat(tables) if len(tables) > 1 else tables[0] if tables else frozen
        return F.embedding(index, table.t(), self.padding_idx)

    def _dense(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.embedding(x, weight.t(), self.padding_idx)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, padding_idx={self.padding_idx}"

"""EideticRelativeAttention: attention among the tokens of each part of an image, whose heads belong to tasks."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checking import require, whole_number
from ..errors import InputError
from .attention import Biases, HeadedAttention, heads_divide
from .inputs import check_dtype, check_tensor
from .parameter import EideticParameter
from .window_attention import relative_positions


class EideticRelativeAttention(HeadedAttention):
    """Drop-in for torchvision's ``RelativePositionalMultiHeadAttention`` (MaxViT, Tu et al., 2022).

    [N, G, P, C] in and out: P tokens, a square of positions, attend to each other in each of G parts. Each head has its
    own column of the table of relative position biases, which is pruned and frozen with it.

    Args:
        feat_dim, head_dim, max_seq_len: as in torchvision.

    Raises InputError when ``head_dim`` does not divide ``feat_dim``, and for an input of another shape.
    """

    positions: Tensor

    def __init__(self, feat_dim: int, head_dim: int, max_seq_len: int, device=None, dtype=None):
        feat_dim = heads_divide("feat_dim", feat_dim, "head_dim", head_dim)
        side = math.isqrt(whole_number("max_seq_len", max_seq_len, 1))
        require(side**2 == max_seq_len, "max_seq_len must be the positions of a square, such as 49", max_seq_len)
        super().__init__(feat_dim, feat_dim // head_dim, head_dim, 0.0, Biases(True, True), device, dtype)
        self.feat_dim, self.max_seq_len, self.scale = feat_dim, max_seq_len, feat_dim**-0.5
        table = torch.empty((2 * side - 1) ** 2, self.num_heads, device=device, dtype=dtype)
        self.position_bias = EideticParameter(nn.init.trunc_normal_(table, std=0.02), 1, head_dim)
        self.register_buffer("positions", relative_positions(side, side).to(device), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        check_tensor(self, x, self.query.weight)
        check_dtype(self, x, self.query.weight)
        if x.dim() != 4 or x.shape[2] != self.max_seq_len:
            raise InputError(f"{self} expects [N, G, {self.max_seq_len}, C], got {list(x.shape)}.")
        if self.whole() and x.shape[-1] == self.feat_dim:
            q, k, v = F.linear(x, *self.packed()).chunk(3, -1)  # one product, as torchvision has it: its bits
        else:
            q, k, v = (layer(x) for layer in self.projections())
        bias = self.position_bias()[self.positions].movedim(-1, 0)

        def attend(q: Tensor, k: Tensor, v: Tensor, first: int, live: bool) -> Tensor:
            weights = torch.einsum("nghid,nghjd->nghij", q, k * self.scale) + bias[first : first + q.shape[2]]
            return torch.einsum("nghij,nghjd->nghid", weights.softmax(-1), v)

        return self.out_proj(self.attended(q, k, v, attend))

    def extra_repr(self) -> str:
        return f"{self.feat_dim}, head_dim={self.head_dim}, max_seq_len={self.max_seq_len}"

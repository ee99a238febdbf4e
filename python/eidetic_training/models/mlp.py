"""The multilayer perceptron of the paper's permuted-MNIST experiments (section 6.1)."""

from torch import Tensor, nn

import eidetic_kernels as ek
from eidetic_kernels.checking import real_number, whole_number

DEEPEST = 1000  # layers; deeper ones learn nothing


class MLP(ek.EideticNetwork):
    """``depth`` hidden layers of ``width`` units: linear, BatchNorm, ReLU and, with ``dropout`` above 0, dropout.

    Each linear layer owns its BatchNorm, which applies the ReLU in the same pass. The linear layers have no bias,
    since BatchNorm's shift follows. The paper's network has two hidden layers of 2,000 units.

    Input [N, ...], floating point, ``in_features`` numbers in each sample; it is flattened. Features [N, width].

    Raises InputError for an argument of the wrong kind or out of its range.
    """

    def __init__(self, in_features: int = 784, width: int = 2000, depth: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        in_features, width = whole_number("in_features", in_features, 1), whole_number("width", width, 1, unit="units")
        depth, dropout = whole_number("depth", depth, 1, DEEPEST), real_number("dropout", dropout, 0.0, 1.0)
        layers: list[nn.Module] = [nn.Flatten()]
        for fan_in in [in_features] + [width] * (depth - 1):
            norm = ek.EideticBatchNorm1d(width, activation="relu")
            layers.append(ek.EideticLinear(fan_in, width, bias=False, norm=norm))
            if dropout:
                layers.append(ek.EideticDropout(dropout))
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)

"""The plain convolutional network of the paper's experiments (section 6.1)."""

from torch import Tensor, nn

import eidetic_kernels as ek
from eidetic_kernels.checking import real_number, whole_number

DEEPEST = 1000  # blocks of a stage


class ConvNet(ek.EideticNetwork):
    """Blocks of 3x3 convolution, BatchNorm, ReLU and dropout, in stages that are 1, 4, 8 and 32 times ``width`` wide.

    The first stage has one block, each of the others ``num_layers``. A 2x2 max pooling follows the first block of every
    stage but the second, so the sides of an image need 8 pixels or more. Each convolution owns its BatchNorm, which
    applies the ReLU in the same pass; dropout before the ReLU, as in the paper, would give the same numbers.

    Input [N, in_channels, H, W], floating point. Features [N, 32 * width], each the maximum of a channel over the
    image.

    Raises InputError for an argument of the wrong kind or out of its range.
    """

    def __init__(self, in_channels: int = 3, width: int = 32, num_layers: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        in_channels, width = whole_number("in_channels", in_channels, 1), whole_number("width", width, 1, unit="units")
        num_layers = whole_number("num_layers", num_layers, 1, DEEPEST)
        dropout = real_number("dropout", dropout, 0.0, 1.0)
        blocks = _block(in_channels, width, dropout, pool=True)
        channels = width
        for factor, pool in ((4, False), (8, True), (32, True)):
            for index in range(num_layers):
                blocks += _block(channels, factor * width, dropout, pool=pool and index == 0)
                channels = factor * width
        self.body = nn.Sequential(*blocks, nn.AdaptiveMaxPool2d(1), nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def _block(in_channels: int, out_channels: int, dropout: float, pool: bool) -> list[nn.Module]:
    norm = ek.EideticBatchNorm2d(out_channels, activation="relu")
    layers: list[nn.Module] = [
        ek.EideticConv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False, norm=norm)
    ]
    if dropout:
        layers.append(ek.EideticDropout(dropout))
    if pool:
        layers.append(nn.MaxPool2d(2))
    return layers

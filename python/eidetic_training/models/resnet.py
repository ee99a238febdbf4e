"""Residual networks (He et al., 2016) for small and for 224-pixel images (the paper's section 6.1)."""

from collections.abc import Sequence

from torch import Tensor, nn

import eidetic_kernels as ek
from eidetic_kernels.checking import a_list, flag, whole_number


class ResNet(ek.EideticNetwork):
    """Four stages of residual blocks. Stage i has ``blocks[i]`` of them, ``width * 2**i`` units wide.

    Skips are identities, and 1x1 convolutions with BatchNorm where the shape changes. All blocks of a stage then add to
    the same units, which are kept or pruned together. Each convolution owns its BatchNorm, which applies the ReLU in
    the same pass; a block's last BatchNorm adds the skip before that.

    Input [N, in_channels, H, W], floating point. Features [N, 8 * width], or [N, 32 * width] with bottlenecks.

    Args:
        blocks: how many each stage has.
        bottleneck: blocks of a 1x1, a 3x3 and a 1x1 convolution, the last one four times as wide, instead of two 3x3.
        small: begin with a 3x3 convolution of stride 1, for images around 32 pixels. False begins with a 7x7
            convolution of stride 2 and a max pooling, for images around 224 pixels.
        skip_convolution: put the 1x1 convolution on every block, as the paper does (section 6.1). Each block's units
            are then kept or pruned on their own.

    Raises InputError for an argument of the wrong kind or out of its range.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        bottleneck: bool,
        in_channels: int = 3,
        width: int = 64,
        small: bool = True,
        skip_convolution: bool = False,
    ) -> None:
        super().__init__()
        blocks = [whole_number("a stage's blocks", count, 1) for count in a_list("blocks", blocks, "a list of numbers")]
        in_channels, width = whole_number("in_channels", in_channels, 1), whole_number("width", width, 1, unit="units")
        bottleneck, skip_convolution = flag("bottleneck", bottleneck), flag("skip_convolution", skip_convolution)
        if flag("small", small):
            self.stem = nn.Sequential(_conv(in_channels, width, kernel=3))
        else:
            self.stem = nn.Sequential(
                _conv(in_channels, width, kernel=7, stride=2),
                nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
            )

        stages, channels = [], width
        for index, count in enumerate(blocks):
            middle = width * 2**index
            out = 4 * middle if bottleneck else middle
            for position in range(count):
                stride = 2 if index > 0 and position == 0 else 1
                if bottleneck:
                    layers = _bottleneck(channels, middle, out, stride)
                else:
                    layers = _basic(channels, out, stride)
                project = skip_convolution or stride != 1 or channels != out
                skip = _conv(channels, out, kernel=1, stride=stride, activation="none") if project else nn.Identity()
                stages.append(_Residual(layers, skip))
                channels = out
        self.blocks = nn.Sequential(*stages)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.blocks(self.stem(x)))


def resnet18(in_channels: int = 3, small: bool = True, width: int = 64, skip_convolution: bool = False) -> ResNet:
    """ResNet-18. Features [N, 8 * width]; arguments as :class:`ResNet`."""
    return ResNet([2, 2, 2, 2], False, in_channels, width, small, skip_convolution)


def resnet34(in_channels: int = 3, small: bool = True, width: int = 64, skip_convolution: bool = False) -> ResNet:
    """ResNet-34. Features [N, 8 * width]; arguments as :class:`ResNet`."""
    return ResNet([3, 4, 6, 3], False, in_channels, width, small, skip_convolution)


def resnet50(in_channels: int = 3, small: bool = True, width: int = 64, skip_convolution: bool = False) -> ResNet:
    """ResNet-50. Features [N, 32 * width]; arguments as :class:`ResNet`."""
    return ResNet([3, 4, 6, 3], True, in_channels, width, small, skip_convolution)


def resnet101(in_channels: int = 3, small: bool = True, width: int = 64, skip_convolution: bool = False) -> ResNet:
    """ResNet-101. Features [N, 32 * width]; arguments as :class:`ResNet`."""
    return ResNet([3, 4, 23, 3], True, in_channels, width, small, skip_convolution)


class _Residual(nn.Module):
    """Convolutions and a skip that read the same input. The last convolution adds the skip before its ReLU."""

    def __init__(self, layers: list[ek.EideticConv2d], skip: nn.Module) -> None:
        super().__init__()
        *body, last = layers
        self.body, self.last, self.skip = nn.Sequential(*body), last, skip

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(x), residual=self.skip(x))


def _basic(in_channels: int, out_channels: int, stride: int) -> list[ek.EideticConv2d]:
    return [
        _conv(in_channels, out_channels, kernel=3, stride=stride),
        _conv(out_channels, out_channels, kernel=3),
    ]


def _bottleneck(in_channels: int, middle: int, out_channels: int, stride: int) -> list[ek.EideticConv2d]:
    # The 3x3 convolution has the stride, as in torchvision's ResNet-50.
    return [
        _conv(in_channels, middle, kernel=1),
        _conv(middle, middle, kernel=3, stride=stride),
        _conv(middle, out_channels, kernel=1),
    ]


def _conv(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, activation: str = "relu"
) -> ek.EideticConv2d:
    """A convolution with its BatchNorm and activation."""
    norm = ek.EideticBatchNorm2d(out_channels, activation=activation)
    return ek.EideticConv2d(
        in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False, norm=norm
    )

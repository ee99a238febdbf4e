"""Geometries of convolutions, inputs for them, and the dense convolution they are held against."""

import torch
import torch.nn.functional as F

from eidetic_kernels.ops import Geometry

PLAIN = (3, 3), Geometry((1, 1), (1, 1), (1, 1))
GEOMETRIES = {
    "1x1": ((1, 1), Geometry((1, 1), (0, 0), (1, 1))),
    "3x3 padded": PLAIN,
    "stride 2": ((3, 3), Geometry((2, 2), (1, 1), (1, 1))),
    "uneven everything": ((2, 3), Geometry((2, 1), (0, 2), (1, 2))),
    "dilated": ((3, 3), Geometry((1, 1), (2, 2), (2, 2))),
    "as large as the image": ((6, 7), Geometry((1, 1), (0, 0), (1, 1))),
    "stride beyond the kernel": ((1, 1), Geometry((3, 3), (0, 0), (1, 1))),
}


def inputs(case, kernel, geometry, samples=2, dtype=torch.float64, size=(6, 7)):
    x = torch.randn(samples, len(case.column_owners()), *size, dtype=dtype)
    y = F.conv2d(torch.zeros(1, 1, *size), torch.zeros(1, 1, *kernel), None, *geometry)
    return x, torch.randn(samples, len(case.row_owners()), *y.shape[2:], dtype=dtype)


def product(geometry):
    """The dense convolution, of inputs without channels too, as a sum over shifted products (unfold)."""

    def convolve(x, weight, bias):
        y = F.unfold(x, weight.shape[2:], geometry.dilation, geometry.padding, geometry.stride)
        side = F.conv2d(x[:1, :1].detach() * 0, weight[:1, :1].detach() * 0, None, *geometry).shape[2:]
        y = (weight.flatten(1) @ y).unflatten(2, side)
        return y if bias is None else y + bias.view(-1, 1, 1)

    def any_convolve(x, weight, bias):
        if not x.shape[1] or not weight.shape[0]:  # one silent channel and row more, so the library sees a shape
            x = torch.cat([x, x.new_zeros(x.shape[0], 1, *x.shape[2:])], 1)
            weight = F.pad(weight, (0, 0, 0, 0, 0, 1, 0, 1))
            bias = None if bias is None else F.pad(bias, (0, 1))
            return convolve(x, weight, bias)[:, :-1]
        return convolve(x, weight, bias)

    return any_convolve

"""Activations inside a kernel, by the names of :data:`eidetic_kernels.ops.ACTIVATIONS`, values and kinks as torch's.

Arguments are float32 blocks. Comparisons instead of ``tl.maximum``: a maximum turns NaN into a number, torch keeps it.
"""

import triton
import triton.language as tl


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    """act(z)"""
    if ACTIVATION == "relu":
        return tl.where(z <= 0, 0.0, z)
    elif ACTIVATION == "relu6":
        return tl.where(z <= 0, 0.0, tl.where(z >= 6, 6.0, z))
    elif ACTIVATION == "silu":
        return z / (1 + tl.exp(-z))
    elif ACTIVATION == "gelu":
        return z * _normal_cdf(z)
    elif ACTIVATION == "hardswish":
        return z * tl.where(z <= -3, 0.0, tl.where(z >= 3, 6.0, z + 3)) / 6
    else:
        tl.static_assert(ACTIVATION == "none")
        return z


@triton.jit
def activation_gradient(z, dy, ACTIVATION: tl.constexpr):
    """dy * act'(z), with ``z`` the value before the activation"""
    if ACTIVATION == "relu":
        return tl.where(z <= 0, 0.0, dy)
    elif ACTIVATION == "relu6":
        return tl.where((z <= 0) | (z >= 6), 0.0, dy)
    elif ACTIVATION == "silu":
        s = 1 / (1 + tl.exp(-z))
        return dy * s * (1 + z * (1 - s))
    elif ACTIVATION == "gelu":
        density = tl.exp(-0.5 * z * z) * 0.3989422804014327  # 1 / sqrt(2 pi)
        return dy * (_normal_cdf(z) + z * density)
    elif ACTIVATION == "hardswish":
        return tl.where(z <= -3, 0.0, tl.where(z < 3, dy * (z / 3 + 0.5), dy))
    else:
        tl.static_assert(ACTIVATION == "none")
        return dy


@triton.jit
def _normal_cdf(z):
    return 0.5 * (1 + tl.erf(z * 0.7071067811865476))  # z / sqrt(2)

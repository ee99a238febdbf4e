"""The ops, one file each: contract, oracle, implementation by torch, gradients and registration."""

from ..backends.activations import ACTIVATIONS
from ..backends.arguments import Norm, Weights
from ..layout import Geometry
from .batch_norm import segmented_batch_norm, segmented_batch_norm_oracle
from .conv2d import staircase_conv2d, staircase_conv2d_oracle
from .conv2d_norm import staircase_conv2d_norm, staircase_conv2d_norm_oracle
from .linear import staircase_linear, staircase_linear_oracle
from .linear_norm import staircase_linear_norm, staircase_linear_norm_oracle
from .staircase import dense_weight

__all__ = [
    "ACTIVATIONS",
    "Geometry",
    "Norm",
    "Weights",
    "dense_weight",
    "segmented_batch_norm",
    "segmented_batch_norm_oracle",
    "staircase_conv2d",
    "staircase_conv2d_norm",
    "staircase_conv2d_norm_oracle",
    "staircase_conv2d_oracle",
    "staircase_linear",
    "staircase_linear_norm",
    "staircase_linear_norm_oracle",
    "staircase_linear_oracle",
]

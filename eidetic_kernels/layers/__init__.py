"""Drop-in layers whose units belong to tasks."""

from .batch_norm import EideticBatchNorm, EideticBatchNorm1d, EideticBatchNorm2d
from .conv2d import EideticConv2d
from .dropout import EideticDropout
from .linear import EideticLinear
from .scope import Scope
from .segmented import SegmentedLayer
from .staircase import StaircaseLayer

__all__ = [
    "EideticBatchNorm",
    "EideticBatchNorm1d",
    "EideticBatchNorm2d",
    "EideticConv2d",
    "EideticDropout",
    "EideticLinear",
    "Scope",
    "SegmentedLayer",
    "StaircaseLayer",
]

"""Drop-in layers whose units belong to tasks."""

from .batch_norm import EideticBatchNorm, EideticBatchNorm1d, EideticBatchNorm2d
from .conv2d import EideticConv2d
from .dropout import EideticDropout, EideticStochasticDepth, aware_of_segments
from .grouped import EideticDepthwiseConv2d, EideticGroupedConv2d
from .linear import EideticLinear
from .parts import Parts, Shared
from .rearrange import Shuffle, Split
from .scope import Scope
from .segmented import SegmentedLayer
from .staircase import StaircaseLayer

__all__ = [
    "EideticBatchNorm",
    "EideticBatchNorm1d",
    "EideticBatchNorm2d",
    "EideticConv2d",
    "EideticDepthwiseConv2d",
    "EideticDropout",
    "EideticGroupedConv2d",
    "EideticLinear",
    "EideticStochasticDepth",
    "Parts",
    "Scope",
    "SegmentedLayer",
    "Shared",
    "Shuffle",
    "Split",
    "StaircaseLayer",
    "aware_of_segments",
]

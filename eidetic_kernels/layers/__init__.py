"""Drop-in layers whose units belong to tasks."""

from .attention import EideticMultiheadAttention, EideticScaledDotProduct, HeadedAttention
from .batch_norm import EideticBatchNorm, EideticBatchNorm1d, EideticBatchNorm2d, EideticBatchNorm3d
from .conv2d import EideticConv2d
from .convolutions import (
    EideticConv1d,
    EideticConv3d,
    EideticConvolution,
    EideticConvTranspose,
    EideticConvTranspose1d,
    EideticConvTranspose2d,
    EideticConvTranspose3d,
)
from .dropout import EideticDropout, EideticStochasticDepth, aware_of_segments
from .embedding import EideticEmbedding
from .group_norm import EideticGroupNorm
from .grouped import (
    CONVOLUTIONS,
    EideticDepthwiseConv2d,
    EideticGroupedConv1d,
    EideticGroupedConv2d,
    EideticGroupedConv3d,
)
from .layer_norm import EideticLayerNorm, EideticRMSNorm, LayerNormParts
from .linear import EideticLinear
from .parameter import EideticParameter
from .parts import Parts, Shared
from .position_network import EideticPositionNetwork
from .prelu import EideticPReLU
from .rearrange import Split
from .relative_attention import EideticRelativeAttention
from .scope import Scope
from .segmented import SegmentedLayer
from .staircase import StaircaseLayer
from .window_attention import EideticWindowAttention, EideticWindowAttentionV2

__all__ = [
    "CONVOLUTIONS",
    "EideticBatchNorm",
    "EideticBatchNorm1d",
    "EideticBatchNorm2d",
    "EideticBatchNorm3d",
    "EideticConv1d",
    "EideticConv2d",
    "EideticConv3d",
    "EideticConvTranspose",
    "EideticConvTranspose1d",
    "EideticConvTranspose2d",
    "EideticConvTranspose3d",
    "EideticConvolution",
    "EideticDepthwiseConv2d",
    "EideticDropout",
    "EideticEmbedding",
    "EideticGroupNorm",
    "EideticGroupedConv1d",
    "EideticGroupedConv2d",
    "EideticGroupedConv3d",
    "EideticLayerNorm",
    "EideticLinear",
    "EideticMultiheadAttention",
    "EideticPReLU",
    "EideticParameter",
    "EideticPositionNetwork",
    "EideticRMSNorm",
    "EideticRelativeAttention",
    "EideticScaledDotProduct",
    "EideticStochasticDepth",
    "EideticWindowAttention",
    "EideticWindowAttentionV2",
    "HeadedAttention",
    "LayerNormParts",
    "Parts",
    "Scope",
    "SegmentedLayer",
    "Shared",
    "Split",
    "StaircaseLayer",
    "aware_of_segments",
]

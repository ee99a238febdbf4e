"""Drop-in layers and networks that learn task after task and forget nothing."""

from . import rules
from .capacity import Capacity, CapacityRow
from .certificate import Certificate
from .convert import ConvertedNetwork, convert
from .errors import (
    BackendError,
    CapacityError,
    CheckpointError,
    ConversionError,
    EideticError,
    ForgettingError,
    InputError,
    NonFiniteLossError,
    RouterError,
    StaleOptimizerError,
    TaskError,
)
from .from_eideticnet import from_eideticnet
from .layers import (
    EideticBatchNorm1d,
    EideticBatchNorm2d,
    EideticConv2d,
    EideticDepthwiseConv2d,
    EideticDropout,
    EideticGroupedConv2d,
    EideticLayerNorm,
    EideticLinear,
    EideticMultiheadAttention,
    EideticParameter,
    EideticPReLU,
    EideticRelativeAttention,
    EideticStochasticDepth,
    EideticWindowAttention,
)
from .network import EideticNetwork
from .optimizers import default_optimizer
from .pruning import PruningPlan
from .routing import Prediction
from .rules import register_rule
from .snapshots import Snapshot
from .version import __version__

__all__ = [
    "BackendError",
    "Capacity",
    "CapacityError",
    "CapacityRow",
    "Certificate",
    "CheckpointError",
    "ConversionError",
    "ConvertedNetwork",
    "EideticBatchNorm1d",
    "EideticBatchNorm2d",
    "EideticConv2d",
    "EideticDepthwiseConv2d",
    "EideticDropout",
    "EideticError",
    "EideticLayerNorm",
    "EideticGroupedConv2d",
    "EideticLinear",
    "EideticMultiheadAttention",
    "EideticNetwork",
    "EideticPReLU",
    "EideticParameter",
    "EideticRelativeAttention",
    "EideticStochasticDepth",
    "EideticWindowAttention",
    "ForgettingError",
    "InputError",
    "NonFiniteLossError",
    "Prediction",
    "PruningPlan",
    "RouterError",
    "Snapshot",
    "StaleOptimizerError",
    "TaskError",
    "__version__",
    "convert",
    "default_optimizer",
    "from_eideticnet",
    "register_rule",
    "rules",
]

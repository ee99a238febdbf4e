"""Drop-in layers and networks that learn task after task and forget nothing."""

from .conversion.convert import convert
from .conversion.network import ConvertedNetwork
from .errors import (
    BackendError,
    BusyError,
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
from .published.from_eideticnet import from_eideticnet
from .records.certificate import Certificate
from .tasks.capacity import Capacity, CapacityRow
from .tasks.foreign import frozen
from .tasks.frozen_features import FrozenFeatures
from .tasks.optimizer_state import default_optimizer
from .tasks.pruning import PruningPlan
from .tasks.routing import Prediction
from .tasks.snapshots import Snapshot
from .version import __version__
from .wiring import rules
from .wiring.rules import register_rule

__all__ = [
    "BackendError",
    "BusyError",
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
    "EideticGroupedConv2d",
    "EideticLayerNorm",
    "EideticLinear",
    "EideticMultiheadAttention",
    "EideticNetwork",
    "EideticPReLU",
    "EideticParameter",
    "EideticRelativeAttention",
    "EideticStochasticDepth",
    "EideticWindowAttention",
    "ForgettingError",
    "FrozenFeatures",
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
    "frozen",
    "register_rule",
    "rules",
]

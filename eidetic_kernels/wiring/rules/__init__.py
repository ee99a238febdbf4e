"""What each operation does to unit groups: one small rule for each kind of operation, open to users.

A rule is a function of a :class:`Step`, one node of the traced graph. It returns the value that the node makes
(:mod:`..values`: units, ``INPUT``, or None for what is no tensor of units), or refuses. A silent guess would let tasks
mix. So an operation without a rule is refused, and so is every tensor that a rule was given and did not ask for
(:mod:`.nodes`).

The rules are in one file for each kind; :mod:`.known` is the table that says which operation has which.
"""

from .attention import attends, attends_in_parts, attends_in_windows
from .elementwise import casts, passes, refuses, ties, unknown
from .joins import concatenates, divides, merges_patches, separates
from .known import DROP_PATH, DROPOUTS, IMAGE_MODULES, LAYER_NORMS_2D, RELATIVE_ATTENTION, WINDOW_ATTENTION
from .layers import drops, filters, follows, holds, normalises, produces, slopes
from .nodes import value_of
from .numbers import measures
from .positions import averages, indexes, pads, passes_images, rolls
from .registry import FUNCTIONS, METHODS, MODULES, leaves, module_rule, register_rule, wrapped_functions
from .shapes import expands, flattens, permutes, reshapes, squeezes
from .step import Rule, Step

OURS = __name__.split(".")[0]

__all__ = [
    "DROPOUTS",
    "DROP_PATH",
    "FUNCTIONS",
    "IMAGE_MODULES",
    "LAYER_NORMS_2D",
    "METHODS",
    "MODULES",
    "OURS",
    "RELATIVE_ATTENTION",
    "WINDOW_ATTENTION",
    "Rule",
    "Step",
    "attends",
    "attends_in_parts",
    "attends_in_windows",
    "averages",
    "casts",
    "concatenates",
    "divides",
    "drops",
    "expands",
    "filters",
    "flattens",
    "follows",
    "holds",
    "indexes",
    "leaves",
    "measures",
    "merges_patches",
    "module_rule",
    "normalises",
    "pads",
    "passes",
    "passes_images",
    "permutes",
    "produces",
    "refuses",
    "register_rule",
    "reshapes",
    "rolls",
    "separates",
    "slopes",
    "squeezes",
    "ties",
    "unknown",
    "value_of",
    "wrapped_functions",
]

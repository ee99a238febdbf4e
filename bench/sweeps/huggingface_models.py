"""What the lists of Hugging Face's models are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Tiny(NamedTuple):
    """A classifier of Hugging Face's, by its names there.

    Args:
        kind: the classes are {kind}Config and {kind}For{task}.
        settings: of the configuration, without the number of classes.
        shape: of a sample.
        other: another shape that it may take.
        task: what it classifies.
        words: samples are numbers below settings["vocab_size"].
    """

    kind: str
    settings: Mapping[str, Any]
    shape: Sequence[int]
    other: Sequence[int] | None
    task: str = "ImageClassification"
    words: bool = False

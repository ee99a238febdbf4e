"""Hugging Face's classifiers, tiny ones of random weights; they return dictionaries of outputs."""

from __future__ import annotations

from . import huggingface_images, huggingface_sequences
from .subject import Subject

PACKAGE = "transformers"

MODELS = {**huggingface_images.MODELS, **huggingface_sequences.MODELS}


def names() -> list[str]:
    return list(MODELS)


def sample() -> list[str]:
    return ["vit", "bert"]


def build(name: str) -> Subject:
    import transformers

    found = MODELS[name]
    config = getattr(transformers, f"{found.kind}Config")(num_labels=10, **found.settings)
    module = getattr(transformers, f"{found.kind}For{found.task}")(config)
    return Subject(module, found.shape, found.other, found.settings.get("vocab_size", 0) if found.words else 0)

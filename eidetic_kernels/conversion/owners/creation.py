"""Rules of what is made of nothing, and belongs to nobody."""

from __future__ import annotations

import torch

from .maps import NOBODY, Owners, nobodys
from .step import Step, rule


@rule("one_hot")
def enters_classes(step: Step) -> Owners:
    x = step.owners(step.arg(0))
    if x.owned:
        step.refuse("units as indices")
    samples = x.samples.unsqueeze(-1)
    return Owners(step.shape, torch.full([1] * len(step.shape), NOBODY), samples)


CREATING = (
    "zeros ones full arange new_zeros new_ones new_full zeros_like ones_like full_like eye linspace scalar_tensor "
    "new_empty empty empty_like new_tensor"
).split()


@rule(*CREATING)
def creates(step: Step) -> Owners:
    return nobodys(step.shape)


DRAWING = (
    "bernoulli rand rand_like randn randn_like randint randint_like randperm normal normal_functional uniform "
    "multinomial"
).split()


@rule(*DRAWING)
def draws(step: Step) -> Owners:
    step.refuse(
        "it draws random numbers in evaluation, so outputs would never repeat. Draw them in training alone, in a "
        "module of its own with a rule (ek.register_rule(module, ek.rules.drops)), or outside of the network."
    )


@rule("zero", "fill", "fill_", "zero_")
def fills(step: Step) -> Owners:
    return nobodys(step.shape)

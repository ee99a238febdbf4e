"""The original module's outputs, and whether the converted network gives the same."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..checking import first_line
from ..errors import ConversionError, InputError
from ..modes import evaluating, seeded
from .example import Given

Answers = tuple[Given, Any]

# How far the network's outputs may be from the original's, relative to the largest output. On a CPU they had the same
# bits wherever this was tried. On a GPU the library may choose another algorithm for memory that lies elsewhere. The
# fused kernel for inference of torch's encoder differs by some 1e-7 from what the encoder computes otherwise.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
TOLERANCE_ON_GPU = {torch.float64: 1e-10, torch.float32: 1e-3}
TOLERANCE_OF_HALF = 3e-2
# A library may sum in another order for another number of samples.
TOLERANCE_ALONE = {torch.float64: 1e-7, torch.float32: 1e-2}


_WAYS_OUT = (
    "Write that part with tensors alone, make it a module of its own with a rule (ek.register_rule), or declare the "
    "wiring by hand (connections() on an EideticNetwork)."
)


def answers_of(original: nn.Module, given: Given, head: str | bool | None) -> Answers:
    """(batch, output) of a copy of ``original`` in evaluation mode, which was run with ``given`` before.

    So a module that keeps something from one batch to the next gives itself away. The batch is ``given`` and one more
    sample, of random numbers. The output is that of the layer ``head``, if this is a path.

    Raises InputError when ``original`` cannot take ``given``, ConversionError when it cannot take the batch.
    """
    module = copy.deepcopy(original).eval()
    captured: list[Tensor] = []
    if isinstance(head, str) and head in dict(module.named_modules()):
        module.get_submodule(head).register_forward_hook(lambda _, inputs, output: captured.append(output.clone()))
    with torch.inference_mode(False), torch.no_grad(), seeded(0, given.device):
        try:
            given.call(module)
        except Exception as error:
            raise InputError(
                f"{type(original).__name__} cannot take example_input of {given} ({type(error).__name__}: "
                f"{first_line(error)}). Give an input that its forward takes."
            ) from error
        batch = given.changed(lambda tensor: torch.cat([tensor, _another(tensor)]))
        try:
            returned = batch.call(module)
        except Exception as error:
            raise ConversionError(
                f"{type(original).__name__} takes example_input, but not a batch of one sample more, of {batch} "
                f"({type(error).__name__}: {first_line(error)}). Write x.shape[0] where its forward has a batch's size "
                "as a number."
            ) from error
    return batch, captured[-1] if captured else _only_tensor(returned)


def _only_tensor(returned: Any) -> Any:
    """The tensor in what forward returned, where there is one alone."""
    leaves = (
        returned
        if isinstance(returned, Tensor)
        else tree_leaves(dict(returned) if isinstance(returned, Mapping) else returned)
    )
    tensors = [leaves] if isinstance(leaves, Tensor) else [each for each in leaves if isinstance(each, Tensor)]
    return tensors[0] if len(tensors) == 1 else returned


def verify(network: nn.Module, answers: Answers, mixing: bool = False) -> None:
    """Raise ConversionError unless ``network``, in evaluation mode, gives the same ``answers``.

    ``mixing``: whether samples may be mixed where no graph shows it, so that one is asked alone, too.
    """
    batch, expected = answers
    what = f"a batch of {batch}"
    with torch.inference_mode(False), torch.no_grad(), evaluating(network):
        try:
            with seeded(1, batch.device):  # other random numbers than the original had: none may matter
                given = network(batch.tensors)
        except Exception as error:
            raise ConversionError(
                f"the converted network cannot take {what}, which the module takes: {error}\nIs a size of "
                f"example_input built into its graph? {_WAYS_OUT}"
            ) from error

    tolerances = TOLERANCE if given.device.type == "cpu" else TOLERANCE_ON_GPU
    tolerance = tolerances.get(given.dtype, TOLERANCE_OF_HALF)
    same = isinstance(expected, Tensor) and given.shape == expected.shape and given.dtype == expected.dtype
    if not same or not _close(given, expected, tolerance):
        raise ConversionError(
            f"the converted network's outputs for {what} are not the module's. Does its forward do something that "
            "depends on values, is random in evaluation, keeps something from one batch to the next, or changes "
            f"tensors behind the capture's back? {_WAYS_OUT}"
        )
    if mixing:
        _check_alone(network, batch, given)
    furthest = _apart(given, expected)
    if furthest and given.device.type == "cpu":
        warnings.warn(
            f"the converted network's outputs are the module's but for rounding (up to {furthest:.1e} of the largest): "
            "torch computes a part of the module in one fused kernel, or the last convolution became a linear layer.",
            stacklevel=4,
        )


def _check_alone(network: nn.Module, batch: Given, answers: Tensor) -> None:
    """Raise ConversionError where the answer for a sample depends on the others in its batch (P8)."""
    last = batch.changed(lambda tensor: tensor[-1:])
    with torch.inference_mode(False), torch.no_grad(), evaluating(network):
        alone = network(last.tensors)
    if not _close(alone, answers[-1:], TOLERANCE_ALONE.get(alone.dtype, TOLERANCE_OF_HALF)):
        raise ConversionError(
            f"the answer for a sample of a batch of {batch} is another when it is asked alone: "
            "forward mixes samples (a mean, softmax or roll over dimension 0), so what a finished task answers would "
            f"depend on the test batch. Normalise the data instead. {_WAYS_OUT}"
        )


def _apart(given: Tensor, expected: Tensor) -> float:
    """How far two outputs are from each other, relative to the largest; 0.0 for the same bits."""
    if torch.equal(given, expected):
        return 0.0
    scale = expected[expected.isfinite()].abs().max().clamp_min(1e-30)
    return float((given - expected).abs().nan_to_num(0.0, 0.0, 0.0).max() / scale)


def _close(given: Tensor, expected: Tensor, tolerance: float) -> bool:
    finite = expected[expected.isfinite()]
    scale = finite.abs().max().clamp_min(1e-30) if finite.numel() else 1
    return torch.allclose(given / scale, expected / scale, 0, tolerance, True)


def _another(example: Tensor) -> Tensor:
    """A random sample like those of ``example``; of what are no real numbers, the last one backwards."""
    if example.is_floating_point():
        return torch.randn_like(example[:1])
    return example[-1:].flip(-1)

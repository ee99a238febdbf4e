"""Every backend on this machine, held to the oracle on small inputs: forward, backward and running statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import backends, ops
from ..layout import Geometry, Segments, Source, Staircase, staircase

SAMPLES = 9
GEOMETRY = Geometry((1, 1), (1, 1), (1, 1))
# The largest error allowed, relative to the largest expected value; products of a GPU's units may round more.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


@dataclass(frozen=True)
class Outcome:
    """The worst error of one op on one backend, device and dtype; ``problem`` says what went wrong, if anything."""

    op: str
    backend: str
    device: str
    dtype: torch.dtype
    error: float
    problem: str | None

    @property
    def ok(self) -> bool:
        return self.problem is None


def check(backend: str) -> Iterator[Outcome]:
    """Run every op that ``backend`` implements, on every kind of device it takes that is here."""
    for op, call in _CALLS.items():
        if backend != "torch" and backend not in backends.IMPLEMENTATIONS.get(op, ()):
            continue
        for device in backends.devices(backend):
            if device == "cuda" and not torch.cuda.is_available():
                continue
            for dtype in (torch.float32, torch.bfloat16) if device == "cuda" else (torch.float32,):
                yield _outcome(op, call, backend, device, dtype)


@contextmanager
def full_precision() -> Iterator[None]:
    """float32 is computed in float32: a GPU's convolutions are otherwise in TF32, unless torch is told not to."""
    cudnn: Any = torch.backends.cudnn  # conv and rnn are set on it at run time
    products = torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn
    before = [each.fp32_precision for each in products]
    try:
        for each in products:
            each.fp32_precision = "ieee"
        yield
    finally:
        for each, precision in zip(products, before):
            each.fp32_precision = precision


def _outcome(op, call, backend, device, dtype) -> Outcome:
    try:
        with backends.using(backend), full_precision():
            given = _results(call, op, device, dtype)
    except Exception as error:  # a backend that breaks is what this is here to find
        return Outcome(op, backend, device, dtype, float("nan"), f"{type(error).__name__}: {error}")
    expected = _results(call, f"{op}_oracle", "cpu", torch.float64)
    worst, problem = 0.0, None
    for name, tensor in expected.items():
        error = (given[name].double().cpu() - tensor).abs().max().item() / max(tensor.abs().max().item(), 1e-30)
        worst = max(worst, error) if error == error else error
        if not error <= TOLERANCE[dtype]:
            problem = f"{name} is off by {error:.1e} of its largest value, {TOLERANCE[dtype]:.0e} being allowed"
    return Outcome(op, backend, device, dtype, worst, problem)


def _results(call, name: str, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Output, gradients and statistics of one call on tensors that are the same for every device and dtype."""
    generator = torch.Generator().manual_seed(0)
    half = dtype in (torch.bfloat16, torch.float16)

    def random(*shape: int, big: bool = False, leaf: bool = False, least: float | None = None) -> Tensor:
        values = torch.randn(*shape, generator=generator, dtype=torch.float64)
        values = values if least is None else values.abs() + least
        # Rounded to bfloat16 for all, so that every dtype is given the same numbers.
        values = values.bfloat16().to(device, dtype if big or not half else torch.float32)
        return values.requires_grad_(leaf)

    tensors, y = call(getattr(ops, name), random)
    y.backward(random(*y.shape, big=True))
    results = {f"the gradient of {key}": tensor.grad for key, tensor in tensors.items() if tensor.requires_grad}
    statistics = {key: tensor for key, tensor in tensors.items() if key.startswith("running")}
    return {"the output": y.detach(), **results, **statistics}


def _stairs() -> Staircase:
    source = Segments(24, 8, (16,))
    return staircase(Segments(37, 16, (16, 5)), (Source(source),), (True, False, True), None)


def _linear(op, random):
    stairs = _stairs()
    x, weights = random(SAMPLES, stairs.columns, big=True, leaf=True), _weights(stairs, random)
    return {"x": x, "weight": weights.weight, "bias": weights.bias}, op(x, weights, stairs)


def _conv2d(op, random):
    stairs = _stairs()
    x, weights = random(2, stairs.columns, 5, 6, big=True, leaf=True), _weights(stairs, random, 3, 3)
    return {"x": x, "weight": weights.weight, "bias": weights.bias}, op(x, weights, stairs, GEOMETRY)


def _batch_norm(op, random):
    frozen, live = 21, 16
    shape = SAMPLES, frozen + live, 3, 4
    x, residual = (random(*shape, big=True, leaf=True) for _ in range(2))
    norm = _norm(frozen, live, random, "silu")
    return {"x": x, "residual": residual, **_learning(norm)}, op(x, norm, residual)


def _linear_norm(op, random):
    stairs = _stairs()
    x = random(SAMPLES, stairs.columns, big=True, leaf=True)
    weights = _weights(stairs, random, bias=False)
    # An activation without kinks, where half precision could end up on the other side.
    norm = _norm(stairs.frozen_rows, stairs.rows - stairs.frozen_rows, random, "gelu")
    return {"x": x, "weight": weights.weight, **_learning(norm)}, op(x, weights, stairs, norm)


def _conv2d_norm(op, random):
    stairs = _stairs()
    x = random(2, stairs.columns, 5, 6, big=True, leaf=True)
    weights = _weights(stairs, random, 3, 3, bias=False)
    norm = _norm(stairs.frozen_rows, stairs.rows - stairs.frozen_rows, random, "silu")
    residual = random(2, stairs.rows, 5, 6, big=True, leaf=True)
    y = op(x, weights, stairs, norm, GEOMETRY, residual)
    return {"x": x, "weight": weights.weight, "residual": residual, **_learning(norm)}, y


def _weights(stairs: Staircase, random, *kernel: int, bias: bool = True) -> ops.Weights:
    """Without ``bias`` before a norm: batch statistics take it away again, and its gradient is nothing but rounding."""
    *_, live = stairs.stairs
    taps = torch.Size(kernel).numel()
    frozen = sum(stair.rows * stair.columns for stair in stairs.frozen) * taps
    return ops.Weights(
        weight=random(live.rows, live.columns, *kernel, big=True, leaf=True),
        bias=random(live.rows, big=True, leaf=True) if bias else None,
        frozen_weight=random(frozen, big=True),
        frozen_bias=random(stairs.frozen_rows, big=True) if bias else None,
    )


def _norm(frozen: int, live: int, random, activation: str) -> ops.Norm:
    return ops.Norm(
        weight=random(live, leaf=True),
        bias=random(live, leaf=True),
        running_mean=random(live),
        running_var=random(live, least=0.1),
        frozen_scale=random(frozen),
        frozen_shift=random(frozen),
        training=True,
        momentum=0.1,
        eps=1e-5,
        activation=activation,
    )


def _learning(norm: ops.Norm) -> dict[str, Tensor | None]:
    """What of a norm learns or moves, by the names that a failure is reported with."""
    return {
        "norm weight": norm.weight,
        "norm bias": norm.bias,
        "running_mean": norm.running_mean,
        "running_var": norm.running_var,
    }


_CALLS = {
    "staircase_linear": _linear,
    "staircase_conv2d": _conv2d,
    "segmented_batch_norm": _batch_norm,
    "staircase_linear_norm": _linear_norm,
    "staircase_conv2d_norm": _conv2d_norm,
}

OPS = tuple(_CALLS)

"""Segmented BatchNorm as every backend is held to it: the cases that bite, and one check against the oracle.

``kernels`` below is a module with the functions of :mod:`eidetic_kernels.backends.cpu`, forward and backward.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tolerances import assert_close

from eidetic_kernels.backends.arguments import AppliedNorm, Norm, NormGradients
from eidetic_kernels.ops import segmented_batch_norm_oracle

MOMENTUM, EPS = 0.3, 1e-3

# Shapes without their channels: samples, then space.
SHAPES = {
    "flat": (37,),
    "two rows": (2,),
    "no samples": (0,),
    "line": (4, 5),
    "image": (3, 7, 5),
    "even image": (2, 8, 8),
    "one sample": (1, 3, 5),
}
CHANNELS = {  # frozen, live
    "nothing frozen": (0, 5),
    "ragged": (7, 4),
    "wide": (37, 70),
    "aligned": (16, 32),
    "all frozen": (6, 0),
    "one each": (1, 1),
    "none": (0, 0),
}


def norm_of(
    tensors: dict[str, torch.Tensor | None], training: bool, activation: str, momentum: float = MOMENTUM
) -> Norm:
    """The norm of the tensors that a :class:`NormCase` names."""
    names = "weight", "bias", "running_mean", "running_var", "frozen_scale", "frozen_shift"
    return Norm(*(tensors[name] for name in names), training, momentum, EPS, activation)


def applied(norm: Norm, mean: torch.Tensor, rstd: torch.Tensor) -> AppliedNorm:
    """``norm`` as a forward pass applied it that returned ``mean`` and ``rstd``."""
    affine = norm.frozen_scale, norm.frozen_shift
    return AppliedNorm(norm.weight, norm.bias, mean, rstd, *affine, norm.training, norm.activation)


@dataclass(frozen=True)
class NormCase:
    """One call: sizes, options and dtype; ``mean`` and ``std`` of the input, which scales make ill-conditioned."""

    channels: tuple[int, int] = (7, 4)
    shape: tuple[int, ...] = (3, 7, 5)
    dtype: torch.dtype = torch.float32
    activation: str = "none"
    training: bool = True
    affine: bool = True
    residual: bool = False
    full_input_grad: bool = False
    channels_last: bool = False
    mean: float = 0.5
    std: float = 1.5

    @property
    def ill_posed(self) -> bool:
        """Batch statistics of fewer than two values a channel: the layers refuse it."""
        return self.training and torch.Size(self.shape).numel() < 2

    def tensors(self, device: torch.device | str = "cpu") -> dict[str, torch.Tensor | None]:
        """The call's tensors; the same for the same case. Scales differ from 1 and shifts from 0."""
        generator = torch.Generator().manual_seed(0)

        def random(*sizes):
            return torch.randn(*sizes, generator=generator, dtype=torch.float64)

        frozen, live = self.channels
        full = (self.shape[0], frozen + live, *self.shape[1:])
        small = self.dtype if self.dtype == torch.float64 else torch.float32
        data = {name: random(*full).to(self.dtype) for name in ("dy", "residual")}
        data["x"] = (random(*full) * self.std + self.mean).to(self.dtype)
        if self.channels_last:
            data = {name: t.contiguous(memory_format=torch.channels_last) for name, t in data.items()}
        numbers = {
            "weight": random(live) + 2,
            "bias": random(live),
            "running_mean": random(live),
            "running_var": random(live).abs() + 0.1,
            "frozen_scale": random(frozen),
            "frozen_shift": random(frozen),
        }
        tensors = data | {name: tensor.to(small) for name, tensor in numbers.items()}
        tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
        if not self.affine:
            tensors["weight"] = tensors["bias"] = None
        if not self.residual:
            tensors["residual"] = None
        return tensors

    def expected(self) -> dict[str, torch.Tensor | None]:
        """The oracle's results in float64, on the inputs as the case's dtype holds them."""
        t = {name: None if v is None else v.double() for name, v in self.tensors().items()}
        leaves = {name: t[name] for name in ("x", "residual", "weight", "bias") if t[name] is not None}
        for leaf in leaves.values():
            leaf.requires_grad_()
        norm = norm_of(t, self.training, self.activation)
        y = segmented_batch_norm_oracle(t["x"], norm, t["residual"], self.full_input_grad)
        if y.requires_grad:
            y.backward(t["dy"])
        gradients = {
            f"d{name}": torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in leaves.items()
        }
        return {"y": y.detach(), "running_mean": t["running_mean"], "running_var": t["running_var"], **gradients}

    def run(self, kernels, tensors: dict[str, torch.Tensor | None]) -> dict[str, torch.Tensor | None]:
        """The backend's results, from ``tensors`` (which it must leave alone, but for the running statistics)."""
        t, norm = tensors, norm_of(tensors, self.training, self.activation)
        y, mean, rstd = kernels.segmented_batch_norm_forward(t["x"], t["residual"], norm)
        wanted = NormGradients(self.full_input_grad, x=True, residual=t["residual"] is not None)
        dx, dresidual, dweight, dbias = kernels.segmented_batch_norm_backward(
            t["dy"], t["x"], t["residual"], applied(norm, mean, rstd), wanted
        )
        return {
            "y": y,
            "running_mean": t["running_mean"],
            "running_var": t["running_var"],
            "dx": dx,
            "dresidual": dresidual,
            "dweight": dweight,
            "dbias": dbias,
        }

    def check(self, kernels, device: torch.device | str = "cpu", change=lambda tensor: tensor) -> None:
        """Hold a backend to the oracle, forward and backward; ``change`` may lay the big tensors out differently."""
        tensors = self.tensors(device)
        for name in ("x", "dy", "residual"):
            if tensors[name] is not None:
                tensors[name] = change(tensors[name])
        kept = {name: tensors[name].clone() for name in ("x", "dy", "frozen_scale", "frozen_shift")}
        results = self.run(kernels, tensors)
        # A rounding of the input is a rounding of x / std once the mean is gone; backward divides by it again.
        condition = 1 + abs(self.mean) / self.std
        if self.training and torch.Size(self.shape).numel() == 2:
            condition *= 1e3  # normalised, two values are -1 and 1 whatever they were: the gradient cancels
        for name, expected in self.expected().items():
            assert results[name] is not None, f"{self}: {name} is missing"
            assert results[name].device.type == torch.device(device).type
            if name == "y" or name in ("dx", "dresidual"):
                assert results[name].dtype == self.dtype, f"{self}: {name} is {results[name].dtype}"
            least = 1.0 if name in ("dweight", "dbias") else 1e-30
            assert_close(f"{self}: {name}", results[name], expected, condition, least)
        for name, before in kept.items():
            assert torch.equal(tensors[name], before), f"{self}: {name} was written to"

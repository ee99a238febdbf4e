"""Segmented BatchNorm + ReLU on the CPU: the compiled kernels beside torch.

    make bench                                        each alone (pytest-benchmark)
    python bench/bench_batch_norm.py [threads ...]    ratios: medians of alternating runs, as a table

With nothing frozen, torch is ``torch.native_batch_norm`` and an in-place ReLU forward, and their backward functions.
With half of the channels frozen, it is what the package's torch implementation does, which normalises the live half.
"""

from __future__ import annotations

import sys
from statistics import median
from time import perf_counter

import pytest
import torch
from networks import SMOKE

from eidetic_kernels.backends import cpu, extensions
from eidetic_kernels.backends.arguments import AppliedNorm, Norm, NormGradients

SHAPES = {
    "[256, 2000]": ((256, 2000), torch.contiguous_format),
    "[256, 64, 32, 32]": ((256, 64, 32, 32), torch.contiguous_format),
    "[256, 64, 32, 32] channels_last": ((256, 64, 32, 32), torch.channels_last),
    "[128, 128, 16, 16]": ((128, 128, 16, 16), torch.contiguous_format),
    "[128, 128, 16, 16] channels_last": ((128, 128, 16, 16), torch.channels_last),
}
if SMOKE:
    SHAPES = {name: ((2, 8, *[3] * (len(shape) - 2)), layout) for name, (shape, layout) in SHAPES.items()}
FROZEN = {"none frozen": 0, "half frozen": 2}  # one channel in this many is frozen
MOMENTUM, EPS = 0.1, 1e-5


class Compiled:
    """One training step's normalisation on the compiled kernels, without autograd around it."""

    def __init__(self, shape, memory_format, one_in):
        generator = torch.Generator().manual_seed(0)
        self.x, self.dy = (
            torch.randn(shape, generator=generator).contiguous(memory_format=memory_format) for _ in range(2)
        )
        frozen = shape[1] // one_in if one_in else 0
        live = shape[1] - frozen
        self.weight, self.bias = torch.ones(live), torch.zeros(live)
        self.mean, self.var = torch.zeros(live), torch.ones(live)
        self.scale, self.shift = torch.ones(frozen), torch.zeros(frozen)
        self.saved = self.forward()

    def forward(self):
        statistics, affine = (self.mean, self.var), (self.scale, self.shift)
        norm = Norm(self.weight, self.bias, *statistics, *affine, True, MOMENTUM, EPS, "relu")
        return cpu.segmented_batch_norm_forward(self.x, None, norm)

    def backward(self):
        _, mean, rstd = self.saved
        norm = AppliedNorm(self.weight, self.bias, mean, rstd, self.scale, self.shift, True, "relu")
        wanted = NormGradients(full_input_grad=False, x=True, residual=False)
        return cpu.segmented_batch_norm_backward(self.dy, self.x, None, norm, wanted)

    def full(self):
        self.saved = self.forward()
        return self.backward()


class Native(Compiled):
    """torch's own BatchNorm and ReLU; for frozen channels a multiply-add forward and zeros backward."""

    def forward(self):
        frozen = len(self.scale)
        x = self.x[:, frozen:].contiguous() if frozen else self.x
        y, mean, rstd = torch.native_batch_norm(x, self.weight, self.bias, self.mean, self.var, True, MOMENTUM, EPS)
        if frozen:
            columns = (-1, *[1] * (self.x.dim() - 2))
            whole = torch.empty_like(self.x)
            torch.addcmul(self.shift.view(columns), self.x[:, :frozen], self.scale.view(columns), out=whole[:, :frozen])
            whole[:, frozen:] = y
            y = whole
        return y.relu_(), mean, rstd

    def backward(self):
        y, mean, rstd = self.saved
        frozen = len(self.scale)
        dy = torch.ops.aten.threshold_backward(self.dy, y, 0)
        x = self.x
        if frozen:
            x, dy = x[:, frozen:].contiguous(), dy[:, frozen:].contiguous()
        gradients = torch.ops.aten.native_batch_norm_backward(
            dy, x, self.weight, self.mean, self.var, mean, rstd, True, EPS, [True, True, True]
        )
        if frozen:
            dx = torch.zeros_like(self.x)
            dx[:, frozen:] = gradients[0]
            gradients = dx, *gradients[1:]
        return gradients


@pytest.mark.skipif(extensions.why_missing("_cpu") is not None, reason="the compiled CPU kernels are not built")
@pytest.mark.parametrize("what", ["forward", "backward", "full"])
@pytest.mark.parametrize("frozen", FROZEN)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("implementation", [Compiled, Native])
def test_batch_norm_relu(benchmark, implementation, shape, frozen, what):
    torch.set_num_threads(2)
    ours = implementation(*SHAPES[shape], FROZEN[frozen])
    benchmark.group = f"{shape}, {frozen}, {what}"
    result = benchmark.pedantic(getattr(ours, what), warmup_rounds=3, rounds=15)
    assert all(bool(t.isfinite().all()) for t in result if t is not None)


def compare(shape, memory_format, one_in, what, rounds=15):
    """(torch's milliseconds, our time over torch's), medians of alternating runs."""
    contestants = [kind(shape, memory_format, one_in) for kind in (Native, Compiled)]
    for contestant in contestants:
        getattr(contestant, what)()
    ratios, times = [], []
    for _ in range(rounds):
        seconds = []
        for contestant in contestants:
            start = perf_counter()
            getattr(contestant, what)()
            seconds.append(perf_counter() - start)
        times.append(seconds[0])
        ratios.append(seconds[1] / seconds[0])
    return median(times) * 1e3, median(ratios)


def main(threads: list[int]) -> None:
    from machine import described

    print(f"{described()}\n\nTime of the compiled kernels over torch's (torch's milliseconds).\n")
    print("| | threads | forward | backward | both |\n|---|---|---|---|---|")
    for name, shape in SHAPES.items():
        for frozen, one_in in FROZEN.items():
            for count in threads:
                torch.set_num_threads(count)
                cells = []
                for what in ("forward", "backward", "full"):
                    milliseconds, ratio = compare(*shape, one_in, what)
                    cells.append(f"{ratio:.2f} ({milliseconds:.2f})")
                print(f"| {name}, {frozen} | {count} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or [1, 2])

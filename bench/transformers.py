"""Two questions about transformers whose units belong to tasks, answered by measurement.

    python bench/transformers.py [--seeds 3]

1. LayerNorm: should a segment normalise the whole prefix it reads anew ("per reader"), or read every unit as
   normalised over its own task's prefix ("per unit", what EideticLayerNorm does, one output for all readers)? Three
   sequence tasks, a small transformer, later tasks given a third of the first one's units, so that they must use what
   is there; AdamW with decay. Mean test accuracy of the later two tasks early and late.
2. What does pruning a trained transformer change? A small vision transformer learns 4,000 digits, is converted, and
   loses part of its units of one kind: test accuracy before, at once, and after one epoch of recovery. Units of the
   residual stream take part in every LayerNorm's mean and variance; MLP units and heads do not.

Means over the seeds from 0 on. How EideticLayerNorm normalises was decided with these test accuracies in view.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from statistics import mean

import torch
import torch.nn.functional as F
from machine import described
from torch import Tensor, nn

import eidetic_kernels as ek
from eidetic_kernels.tasks.pruning import PruningPlan
from eidetic_training.data import permuted

WORDS, LENGTH, HEAD, BATCH = 20, 12, 8, 64
SIZES = ((24, 3, 48), (8, 1, 16), (8, 1, 16))  # residual units, heads, MLP units of each task
QUESTIONS = (
    lambda ids: (ids[:, 0] + ids[:, 1]) % 3,
    lambda ids: (ids == 3).sum(1).clamp(max=2),
    lambda ids: (ids[:, 2] > ids[:, 5]).long() + (ids[:, 2] > ids[:, 7]).long(),
)
MARKS = (300, 900)


class Sequences:
    """Two blocks of attention and MLP over words, written by hand, a list entry a segment."""

    def __init__(self, per_unit: bool):
        self.per_unit, self.segments, self.sizes = per_unit, [], []

    def add(self) -> list[nn.Parameter]:
        """Parameters of the next segment; those before it stay as they are."""
        self.sizes.append(SIZES[len(self.sizes)])
        new, made = self.sizes[-1], []
        residual, heads, inner = (sum(each) for each in zip(*self.sizes))
        normed = new[0] if self.per_unit else residual

        def make(*shape: int, scale: float | None = None) -> nn.Parameter:
            made.append(nn.Parameter(torch.randn(*shape) * (shape[-1] ** -0.5 if scale is None else scale)))
            return made[-1]

        def affine() -> tuple[nn.Parameter, nn.Parameter]:
            return make(normed, scale=0.0), make(normed, scale=0.0)

        blocks = [
            {
                "norm1": affine(),
                "qkv": make(3 * new[1] * HEAD, residual),
                "out": make(new[0], heads * HEAD),
                "norm2": affine(),
                "up": make(new[2], residual),
                "down": make(new[0], inner),
            }
            for _ in range(2)
        ]
        self.segments.append(
            {
                "words": make(WORDS, new[0], scale=1.0),
                "places": make(LENGTH, new[0], scale=0.5),
                "blocks": blocks,
                "norm": affine(),
                "head": make(3, residual),
            }
        )
        return made

    def normalised(self, x: list[Tensor], reader: int, affine: list[tuple[Tensor, Tensor]]) -> Tensor:
        """What segment ``reader`` reads of the residual stream's segments ``x``."""
        if not self.per_unit:
            z = torch.cat(x[: reader + 1], -1)
            return F.layer_norm(z, z.shape[-1:]) * (1 + affine[reader][0]) + affine[reader][1]
        parts = []
        for segment in range(reader + 1):
            z = torch.cat(x[: segment + 1], -1)
            own = F.layer_norm(z, z.shape[-1:])[..., -x[segment].shape[-1] :]
            parts.append(own * (1 + affine[segment][0]) + affine[segment][1])
        return torch.cat(parts, -1)

    def logits(self, ids: Tensor, task: int) -> Tensor:
        present = self.segments[: task + 1]
        x = [segment["words"][ids] + segment["places"] for segment in present]
        for number in range(2):
            blocks = [segment["blocks"][number] for segment in present]
            heads = []
            for s, block in enumerate(blocks):
                qkv = F.linear(self.normalised(x, s, [each["norm1"] for each in blocks]), block["qkv"])
                q, k, v = qkv.unflatten(-1, (3, -1, HEAD)).permute(2, 0, 3, 1, 4)
                heads.append(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
            x = [x[s] + F.linear(torch.cat(heads[: s + 1], -1), block["out"]) for s, block in enumerate(blocks)]
            norms = [each["norm2"] for each in blocks]
            inner = [F.gelu(F.linear(self.normalised(x, s, norms), block["up"])) for s, block in enumerate(blocks)]
            x = [x[s] + F.linear(torch.cat(inner[: s + 1], -1), block["down"]) for s, block in enumerate(blocks)]
        return F.linear(self.normalised(x, task, [each["norm"] for each in present]).mean(1), present[task]["head"])


def sequences(per_unit: bool, seed: int) -> list[list[float]]:
    """Test accuracy of each task at each of MARKS steps."""
    torch.manual_seed(seed)
    net, found = Sequences(per_unit), []
    drawn = torch.Generator().manual_seed(100 + seed)
    for task, question in enumerate(QUESTIONS):
        parameters, row = net.add(), []
        optimizer = torch.optim.AdamW(parameters, 3e-3, weight_decay=0.1, fused=True)
        test = torch.randint(0, WORDS, (2000, LENGTH), generator=drawn)
        for step in range(1, MARKS[-1] + 1):
            ids = torch.randint(0, WORDS, (BATCH, LENGTH), generator=drawn)
            optimizer.zero_grad()
            F.cross_entropy(net.logits(ids, task), question(ids)).backward()
            optimizer.step()
            if step in MARKS:
                with torch.no_grad():
                    row.append((net.logits(test, task).argmax(1) == question(test)).float().mean().item())
        for parameter in parameters:
            parameter.requires_grad_(False)
        found.append(row)
    return found


class Vision(nn.Module):
    """A small vision transformer as anybody would write it."""

    def __init__(self, dim: int = 48, heads: int = 4, inner: int = 96, depth: int = 2):
        super().__init__()
        self.patches = nn.Conv2d(1, dim, 7, stride=7)
        self.places = nn.Parameter(torch.randn(1, 16, dim) * 0.02)
        layers = [
            nn.TransformerEncoderLayer(dim, heads, inner, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(depth)
        ]
        self.layers, self.norm, self.head = nn.Sequential(*layers), nn.LayerNorm(dim), nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return self.head(self.norm(self.layers(x)).mean(1))


def train(net: nn.Module, loader, optimizer, epochs: int) -> None:
    net.train()
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(net(x.view(-1, 1, 28, 28)), y).backward()
            optimizer.step()


@torch.no_grad()
def accuracy(net: nn.Module, loader) -> float:
    net.eval()
    right = [(net(x.view(-1, 1, 28, 28)).argmax(1) == y).float().mean().item() for x, y in loader]
    return mean(right)


def kind_of(name: str) -> str:
    return "heads" if ".query" in name else "MLP units" if "linear1" in name else "residual units"


def pruning(seed: int) -> dict[tuple[str, float], tuple[float, float, float]]:
    """(kind of unit, share removed) to accuracy before, at once, and after one epoch."""
    torch.manual_seed(seed)
    (task,) = permuted("digits", 1, seed)
    loader, test = task.train_loader(64, seed), task.test_loader(500)
    plain = Vision()
    train(plain, loader, torch.optim.AdamW(plain.parameters(), 2e-3, fused=True), 15)
    whole, found = ek.convert(plain, torch.zeros(1, 1, 28, 28)), {}
    before = accuracy(whole, test)
    for kind in ("residual units", "heads", "MLP units"):
        for share in (0.25, 0.5):
            net = copy.deepcopy(whole)
            optimizer = torch.optim.AdamW(net.parameters(), 1e-3, fused=True)
            plan = net.plan_pruning(share, "l2")
            net.apply_plan(
                PruningPlan(plan.importance, tuple(g for g in plan.groups if kind_of(g.name) == kind)), optimizer
            )
            at_once = accuracy(net, test)
            train(net, loader, optimizer, 1)
            found[kind, share] = before, at_once, accuracy(net, test)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    seeds = range(parser.parse_args().seeds)
    lines = [
        "# Transformers: LayerNorm over prefixes, and pruning",
        "",
        f"`python bench/transformers.py --seeds {len(seeds)}`; {described()}",
        "",
        *__doc__.split("\n\n", 2)[2].splitlines(),
        "",
        f"| LayerNorm | task | {' | '.join(f'after {mark} steps' for mark in MARKS)} |",
        "|---|---|---|---|",
    ]
    for per_unit in (False, True):
        runs = [sequences(per_unit, seed) for seed in seeds]
        for task in (1, 2):
            cells = [f"{mean(run[task][mark] for run in runs):.1%}" for mark in range(len(MARKS))]
            lines.append(f"| {'per unit' if per_unit else 'per reader'} | {task} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)

    lines += ["", "| pruned | share | accuracy before | at once | after one epoch |", "|---|---|---|---|---|"]
    runs = [pruning(seed) for seed in seeds]
    for kind, share in runs[0]:
        cells = [f"{mean(run[kind, share][stage] for run in runs):.1%}" for stage in range(3)]
        lines.append(f"| {kind} | {share:.0%} | {' | '.join(cells)} |")
    print("\n".join(lines[-6:]))
    (Path(__file__).parent / "results" / "transformers.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

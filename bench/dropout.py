"""Should live units see frozen features dropped out? This was measured once, to decide what EideticDropout does.

    python bench/dropout.py [--seeds 3] [--tasks 5]

"live only" is EideticDropout: frozen units are never dropped, so they behave the same in training and evaluation (P5).
"all" drops every unit, as plain torch.nn.Dropout would. Both recall bit for bit; the question is accuracy. Nothing is
pruned: each task gets a tenth of the width, so that only dropout differs.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean, stdev

import torch
from machine import described

from eidetic_kernels import EideticDropout
from eidetic_training import evaluate, models, train_task
from eidetic_training.data import permuted
from eidetic_training.training.optimizers import make_optimizer

RATES = (0.2, 0.5)


def accuracy(rate: float, everything: bool, seed: int, count: int) -> float:
    """Mean test accuracy of the tasks after the first one, which have frozen features to read."""
    torch.manual_seed(seed)
    tasks = permuted("digits", count, seed)
    net = models.MLP(784, 1000, dropout=rate)
    net.groups  # noqa: B018  wires the network, and with it its dropout
    if everything:
        for module in net.modules():
            if isinstance(module, EideticDropout):
                module.sources = ()  # unwired, it is torch's dropout
    scores = []
    for t, task in enumerate(tasks):
        net.prepare_for_task(t, 10, max_units=0.1)
        optimizer = make_optimizer("adamw", net.parameters(), lr=1e-3)
        train_task(net, task.train_loader(128, seed), optimizer, search="none", max_epochs=20)
        scores.append(evaluate(net, task.test_loader(500), t).accuracy)
    return mean(scores[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=5)
    arguments = parser.parse_args()
    lines = [
        "# Dropout of frozen features",
        "",
        f"`python bench/dropout.py --seeds {arguments.seeds} --tasks {arguments.tasks}`; {described()}",
        "",
        "Mean test accuracy of all tasks after the first, and its deviation over seeds; permuted MNIST, 5,000 digits,",
        "an MLP of 2 x 1,000 units, 100 new units a layer and task, 20 epochs. Seeds from 0 on. That frozen units are",
        "not dropped was decided by these test accuracies.",
        "",
        "| rate | live units only (EideticDropout) | all units |",
        "|---|---|---|",
    ]

    for rate in RATES:
        cells = []
        for everything in (False, True):
            scores = [accuracy(rate, everything, seed, arguments.tasks) for seed in range(arguments.seeds)]
            cells.append(f"{mean(scores):.2%} ± {stdev(scores):.2%}")
        lines.append(f"| {rate} | {cells[0]} | {cells[1]} |")
        print(lines[-1], flush=True)
    (Path(__file__).parent / "results" / "dropout.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

"""How the cost of a step and of a recall grows with the number of tasks and with the width; a table and two figures.

    python bench/growth.py [--tasks 1 2 5 10 20 50] [--widths 256 512 ... 8192] [--out bench/results/growth]

The paper's MLP (784 inputs, two hidden layers), batch 256. Along the tasks: a width of 2,000 shared evenly among 51
tasks, so that every task adds 39 units a layer; the next task trains 39 live units. Along the width: half of each
layer is frozen in five tasks, a tenth is live. Dense is the whole network at that width; all take turns in one process.
Inputs are random numbers (seed 0): no setting was chosen on data.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from machine import described
from networks import CLASSES, SMOKE, SUBJECTS, Subject, dense, eidetic
from peers import step_of
from timing import alternate

from eidetic_kernels import default_optimizer

TASKS = [1, 2] if SMOKE else [1, 2, 5, 10, 20, 30, 40, 50]
WIDTHS = [16, 32] if SMOKE else [256, 512, 1024, 2048, 4096, 8192]


def after(subject: Subject, tasks: int, most: int):
    """A network with ``tasks`` finished tasks of equal size, of ``most`` that fit, training the next one."""
    net = subject.build()
    net.input_shape = subject.shape
    share = subject.width // (most + 1)
    for task in range(tasks):
        net.prepare_for_task(task, CLASSES, max_units=share)
        net.finish_task()
    net.prepare_for_task(tasks, CLASSES, max_units=share)
    return net.train()


def row(net, plain, subject: Subject, rounds: int) -> dict[str, float]:
    """Milliseconds of a step of each, of recalling the first and the last task, and of a dense forward."""
    x, y = subject.data()
    nets = {"eidetic": net, "dense": plain}
    seconds = alternate({n: step_of(m, x, y, default_optimizer(m.parameters())) for n, m in nets.items()}, rounds)
    last = net.finished_tasks - 1
    net.eval()
    plain.eval()
    with torch.no_grad():
        recalls = {"recall of the first": lambda: net(x, task=0), "recall of the last": lambda: net(x, task=last)}
        seconds |= alternate({**recalls, "dense forward": lambda: plain(x)}, rounds)
    return {name: 1e3 * value for name, value in seconds.items()}


def draw(results: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    for axis, key, label in zip(axes, ("tasks", "width"), ("finished tasks", "width of each layer")):
        rows = results[key]
        for name in ("dense", "eidetic", "dense forward", "recall of the first", "recall of the last"):
            style = "--" if name.startswith("dense") else "-"
            title = {"dense": "dense step", "eidetic": "eidetic step"}.get(name, name)
            axis.plot([r[key] for r in rows], [r["ms"][name] for r in rows], style, marker="o", ms=3, label=title)
        axis.set_xlabel(label)
        axis.set_ylabel("milliseconds")
        axis.set_yscale("log")
    axes[1].set_xscale("log", base=2)
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def table(results: dict) -> str:
    lines = ["# How cost grows", "", f"`{results['command']}`", "", results["machine"] + ". Medians, milliseconds.", ""]
    lines += [__doc__.split("\n\n")[2].replace("\n", " "), "", f"![Growth]({results['figure']})", ""]
    for key in ("tasks", "width"):
        names = list(results[key][0]["ms"])
        lines += ["| " + " | ".join([key, *names, "step / dense"]) + " |", "|---" * (len(names) + 2) + "|"]
        for r in results[key]:
            ratio = r["ms"]["eidetic"] / r["ms"]["dense"]
            cells = [f"{r['ms'][n]:.2f}" for n in names]
            lines.append("| " + " | ".join([str(r[key]), *cells, f"{ratio:.2f}"]) + " |")
        lines.append("")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, nargs="+", default=TASKS)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "growth")
    given = parser.parse_args(arguments)
    results = {
        "command": "python bench/growth.py",
        "machine": described(),
        "tasks": [],
        "width": [],
        "figure": given.out.with_suffix(".png").name,
    }

    most = max(given.tasks)
    subject = replace(SUBJECTS["mlp"], width=SUBJECTS["mlp"].width or 2000)
    plain = dense(subject)
    for tasks in given.tasks:
        results["tasks"].append({"tasks": tasks, "ms": row(after(subject, tasks, most), plain, subject, given.rounds)})
        print(json.dumps(results["tasks"][-1]), flush=True)
    for width in given.widths:
        wide = replace(subject, width=width)
        results["width"].append({"width": width, "ms": row(eidetic(wide, 50, 10), dense(wide), wide, given.rounds)})
        print(json.dumps(results["width"][-1]), flush=True)

    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    draw(results, given.out.with_suffix(".png"))
    given.out.with_suffix(".md").write_text(table(results))


if __name__ == "__main__":
    main()

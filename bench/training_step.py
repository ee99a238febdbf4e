"""Training step, forward pass and recall beside the dense network's, in every state, with the limit of each.

    python bench/training_step.py [--only mlp ...] [--published CHECKOUT] [--compiled] [--rounds 15] [--out PATH]

Every row's alternatives take turns in one process; ratios are of medians. `share of limit` is the least time the
state's multiply-adds and bytes allow (bench/limit.py, at this machine's measured rates) over the time it took.
Writes OUT.json and OUT.md. Both networks use Adam on its fused kernel; the published one its own default Adam.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from limit import rates, work
from machine import described
from memory import peak_bytes
from networks import STATES, SUBJECTS, Subject, dense, eidetic, state_bytes
from peers import Published, masked, step_of
from timing import alternate

from eidetic_kernels import FrozenFeatures, default_optimizer

KEPT_BATCHES = 4


def measure(
    subject: Subject, state: tuple[int, int], rounds: int, published: Path | None, compiled: bool, limits
) -> dict:
    """One row: milliseconds of every alternative, the limits, and the bytes that are held and at the peak."""
    x, y = subject.data()
    nets = {"dense": dense(subject), "eidetic": eidetic(subject, *state), "masked": masked(subject, *state)}
    if compiled:  # the optimizer's step stays as it is
        torch.compiler.reset()  # earlier rows count towards the number of times that a function is compiled
        nets |= {"compiled": torch.compile(dense(subject)), "compiled masked": torch.compile(masked(subject, *state))}
    optimizers = {name: default_optimizer(net.parameters()) for name, net in nets.items()}
    if published and subject.model == "mlp":
        nets["published"] = Published(published, subject, *state)
        optimizers["published"] = torch.optim.Adam(nets["published"].parameters())

    steps = {name: step_of(net, x, y, optimizers[name]) for name, net in nets.items()}
    if state[0]:
        steps["kept"] = kept_step(subject, state, x, y)
    seconds = alternate(steps, rounds)
    seconds |= _parts({name: nets[name] for name in ("dense", "eidetic")}, x, y, rounds)

    needed = work(nets["eidetic"], x)
    least = {part: needed.seconds(*limits, part) for part in ("full", "forward", "backward")}
    held = {name: sum(state_bytes(nets[name], optimizers[name]).values()) for name in ("dense", "eidetic")}
    peak = {name: _peak(nets[name], optimizers[name], steps[name]) for name in held}
    return {
        "model": subject.model,
        "frozen": state[0],
        "live": state[1],
        "batch": subject.batch,
        "ms": {name: 1e3 * value for name, value in seconds.items()},
        "limit_ms": {name: 1e3 * value for name, value in least.items()},
        "bytes": held,
        "peak": peak,
    }


def _peak(net, optimizer, step: Callable[[], None]) -> int:
    """Bytes at a step's peak: what is held, and what the step adds to it, gradients included."""
    optimizer.zero_grad(set_to_none=True)
    return sum(state_bytes(net, optimizer).values()) + peak_bytes(step)


def kept_step(subject: Subject, state: tuple[int, int], x, y) -> Callable[[], None]:
    """A step of a network with frozen features cached, for a different batch at each call."""
    net = eidetic(subject, *state)
    batches = torch.randperm(KEPT_BATCHES * len(x)).split(len(x))
    features = FrozenFeatures(net, KEPT_BATCHES * len(x))
    for rows in (*batches, batches[0]):  # the first of known samples is computed once more
        with features.batch(rows), torch.no_grad():
            net(x)
    turn = itertools.cycle(batches)
    return step_of(net, x, y, default_optimizer(net.parameters()), lambda: features.batch(next(turn)))


def _parts(nets: dict, x, y, rounds: int) -> dict[str, float]:
    """Forward and backward apart, without the optimizer."""

    def forward(net):
        return lambda: net(x)

    def backward(net):
        loss = F.cross_entropy(net(x), y)

        def run():
            net.zero_grad(set_to_none=True)
            loss.backward(retain_graph=True)

        return run

    runs = {f"{name} forward": forward(net) for name, net in nets.items()}
    runs |= {f"{name} backward": backward(net) for name, net in nets.items()}
    return alternate(runs, rounds)


def measure_recall(subject: Subject, rounds: int) -> list[dict]:
    """Recall of each of five tasks that hold a fifth of every layer each, beside the dense network's forward; images
    also channels_last."""
    x, _ = subject.data()
    net, plain = eidetic(subject, 100, 0).eval(), dense(subject).eval()
    with torch.no_grad():
        tasks = range(net.finished_tasks)
        runs = {"dense": lambda: plain(x)} | {f"task {t}": lambda t=t: net(x, task=t) for t in tasks}
        if x.dim() == 4:
            last = x.contiguous(memory_format=torch.channels_last)
            runs |= {f"last {name}": lambda run=run: run(last) for name, run in _of_images(net, plain).items()}
        seconds = alternate(runs, rounds)
        whole = work(eidetic(subject, 0, 100), x).forward
        shares = [_recalled(net, t, x) / whole for t in tasks]
    rows = []
    for t in tasks:
        row = {"model": subject.model, "task": t, "ms": 1e3 * seconds[f"task {t}"], "dense_ms": 1e3 * seconds["dense"]}
        if x.dim() == 4:
            row |= {"last_ms": 1e3 * seconds[f"last task {t}"], "last_dense_ms": 1e3 * seconds["last dense"]}
        rows.append(row | {"share_of_products": shares[t]})
    return rows


def _of_images(net, plain) -> dict[str, Callable]:
    """Each run of :func:`measure_recall` as a function of the images."""
    return {"dense": plain} | {f"task {t}": lambda x, t=t: net(x, task=t) for t in range(net.finished_tasks)}


def _recalled(net, task: int, x) -> int:
    """Multiply-adds of recalling ``task``."""
    from eidetic_kernels.layers import StaircaseLayer

    total, handles = [0], []
    for layer in net.modules():
        if isinstance(layer, StaircaseLayer):

            def count(layer, inputs, y):
                kernel = layer.weight.shape[2:].numel()
                positions = y.shape[0] * y.shape[2:].numel()
                total[0] += layer.staircase(task).multiply_adds() * kernel * positions

            handles.append(layer.register_forward_hook(count))
    net(x, task=task)
    for handle in handles:
        handle.remove()
    return total[0]


def table(results: dict) -> str:
    lines = [
        "# A training step beside the dense network's",
        "",
        f"`{results['command']}`",
        "",
        f"{results['machine']}; products {results['product_rate'] / 1e9:.0f} G multiply-adds/s, copies "
        f"{results['copy_rate'] / 1e9:.1f} GB/s, measured in the same run.",
        "",
        "States are (frozen, live) percentages of each layer's width, frozen units spread over five finished tasks.",
        "Medians of alternating runs; Adam fused for all but the published implementation (its default). `masked` is",
        "the dense network with the structure as torch.nn.utils.prune masks, `kept` the step once frozen features are",
        "known (eidetic_kernels.FrozenFeatures), as a share of dense. `compiled`: dense / masked under torch.compile.",
        "`limit` is the share of the step that",
        "its multiply-adds and bytes alone would take on this machine; `held` the bytes of parameters, buffers,",
        "gradients and optimizer state, `peak` the bytes at a step's worst moment, as shares of the dense network's.",
        "Inputs are random numbers (seed 0): no setting was chosen on data.",
        "",
        "| network | state | dense ms | eidetic ms | of dense | kept | forward | backward | of masked | of compiled "
        "| of published | limit | held | peak |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        ms = row["ms"]
        kept = f"**{ms['kept'] / ms['dense']:.2f}**" if "kept" in ms else ""
        published = f"{ms['eidetic'] / ms['published']:.2f}" if "published" in ms else ""
        compiled = " / ".join(f"{ms['eidetic'] / ms[k]:.2f}" for k in ("compiled", "compiled masked") if k in ms)
        lines.append(
            f"| {row['model']} | ({row['frozen']}, {row['live']}) | {ms['dense']:.1f} | {ms['eidetic']:.1f} | "
            f"**{ms['eidetic'] / ms['dense']:.2f}** | {kept} | {ms['eidetic forward'] / ms['dense forward']:.2f} | "
            f"{ms['eidetic backward'] / ms['dense backward']:.2f} | {ms['eidetic'] / ms['masked']:.2f} | "
            f"{compiled} | {published} | "
            f"{row['limit_ms']['full'] / ms['eidetic']:.0%} | {row['bytes']['eidetic'] / row['bytes']['dense']:.2f} | "
            f"{row['peak']['eidetic'] / row['peak']['dense']:.2f} |"
        )

    lines += ["", "## Recall", "", "A fifth of every layer's units a task. Dense is the whole network's forward.", ""]
    images = any("last_ms" in row for row in results["recall"])
    if images:
        lines += ["`channels_last`: images that lie so, as a share of dense, and as one of dense with such images.", ""]
    more = " channels_last |" if images else ""
    lines += [f"| network | task | ms | of dense |{more} share of the multiply-adds |"]
    lines += ["|---|---|---|---|---|" + ("---|" if images else "")]
    for row in results["recall"]:
        last = ""
        if images:
            ratios = (f"{row['last_ms'] / row[name]:.2f}" for name in ("dense_ms", "last_dense_ms") if name in row)
            last = f" {', '.join(ratios) if 'last_ms' in row else ''} |"
        lines.append(
            f"| {row['model']} | {row['task']} | {row['ms']:.2f} | {row['ms'] / row['dense_ms']:.2f} |{last} "
            f"{row['share_of_products']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(SUBJECTS), choices=list(SUBJECTS))
    parser.add_argument("--published", type=Path, help="a checkout of the published implementation")
    parser.add_argument("--compiled", action="store_true", help="the dense networks under torch.compile, too")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "training_step")
    given = parser.parse_args(arguments)
    about = described()
    limits = rates()
    results = {
        "command": "python bench/training_step.py"
        + (f" --only {' '.join(given.only)}" if given.only else "")
        + (" --published CHECKOUT" if given.published else "")
        + (" --compiled" if given.compiled else "")
        + f" --rounds {given.rounds}",
        "machine": about,
        "product_rate": limits[0],
        "copy_rate": limits[1],
        "rows": [],
        "recall": [],
    }

    for name in given.only:
        for state in STATES:
            row = measure(SUBJECTS[name], state, given.rounds, given.published, given.compiled, limits)
            results["rows"].append(row)
            print(json.dumps(results["rows"][-1]), flush=True)
        results["recall"] += measure_recall(SUBJECTS[name], given.rounds)

    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    given.out.with_suffix(".md").write_text(table(results))
    print(table(results))


if __name__ == "__main__":
    main()

"""Measurements on a GPU: the ops of every backend beside the machine's own limits, promises, and ten tasks.

    python bench/gpu.py [--only ROW ...] [--out bench/results/gpu/gpu]

bench/gpu.sh runs it row by row. Every record is written to OUT.json and OUT.md as soon as it is there; a row that is
measured again replaces its older one. EIDETIC_BENCH_SMOKE=1 runs it at tiny sizes on a CPU, to see that it works.

    promises  every finished task recalled bit for bit, with each backend, while later tasks are learned
    product   the staircase product beside cuBLAS on one dense product of as many (useful) multiply-adds
    norm      segmented BatchNorm + ReLU beside copying the bytes it must move, and beside torch's two dense calls
    fused     product, BatchNorm and ReLU in one op beside the torch backend's two
    conv      convolution, BatchNorm and ReLU in one op beside the torch backend's two (images in channels_last)
    mnist     ten tasks of permuted MNIST, 60,000 images each, with shared/data/mnist here or beside the checkout
    step      a training step beside the dense network's; in bfloat16 autocast too, images then channels_last
    graphs    a training step as one CUDA graph beside launching its kernels one by one, epochs with their captures

A frozen half is five segments that read nested; "ragged" ones are not multiples of 16. Times are medians of rounds in
which the alternatives take turns; on a GPU each is the mean of calls between two events.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from eidetic_kernels import backends, default_optimizer
from eidetic_kernels.backends import extensions
from eidetic_kernels.errors import BackendError
from eidetic_kernels.layout import Segments, Source, Staircase, staircase
from eidetic_kernels.ops import (
    Geometry,
    Norm,
    Weights,
    segmented_batch_norm,
    staircase_conv2d_norm,
    staircase_linear,
    staircase_linear_norm,
)
from eidetic_training import TaskSettings, evaluate, models, train_epoch, train_task
from eidetic_training.data import ImageSet, permuted
from eidetic_training.data import Source as Images
from eidetic_training.experiments import config
from eidetic_training.experiments.experiment import run_experiment
from eidetic_training.runs import environment, report
from eidetic_training.runs.tables import write_json
from eidetic_training.training.captured_step import captured_steps

ROOT = Path(__file__).resolve().parents[1]
DRY = os.environ.get("EIDETIC_BENCH_SMOKE", "0") != "0"
DEVICE = torch.device("cpu" if DRY else "cuda")
SEGMENTS = 5
STATES = ((50, 50), (50, 10), (100, 0))
WIDTHS, BATCH = ((192,), 8) if DRY else ((2048, 4096), 4096)
ROUNDS = 1 if DRY else 9
TURN = 0.02  # seconds that one turn of calls may take on a GPU; short calls are repeated, at most CALLS times
CALLS = 20
# In the interpreter, which a dry run uses, half precision is wrong.
PRECISIONS = ("float32",) if DRY else ("bfloat16", "float32 tf32", "float32")
FORMATS = ("rows", "NCHW", "NHWC")
WRONG = 0.02  # relative RMS difference from the torch backend; an implementation that is further off is not timed


# ---- measuring


def alternate(runs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of one call of each run."""
    for run in runs.values():
        run()  # the first call compiles and chooses algorithms
    calls = {name: max(1, min(CALLS, int(TURN / _seconds(run, 1)))) for name, run in runs.items()}
    times = [{name: _seconds(run, calls[name]) for name, run in runs.items()} for _ in range(ROUNDS)]
    return {name: statistics.median(turn[name] for turn in times) for name in runs}


def _seconds(run: Callable[[], object], calls: int) -> float:
    """Seconds of one call, a mean over ``calls``."""
    if DEVICE.type == "cpu":
        started = time.perf_counter()
        run()
        return time.perf_counter() - started
    run()  # the queue is not empty when the first event is reached
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        run()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3 / calls


def copy_rate() -> float:
    """Bytes a second of copying, read and written bytes both counted: the memory's limit."""
    a = torch.randn(2**8 if DRY else 2**28, device=DEVICE)
    b = torch.empty_like(a)
    return 2 * a.numel() * a.element_size() / alternate({"copy": lambda: b.copy_(a)})["copy"]


@contextmanager
def precision(name: str) -> Iterator[torch.dtype]:
    """Gives the dtype that ``name`` begins with; meanwhile float32 products use TF32 if ``name`` says so."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if "tf32" in name else "highest")
    try:
        yield getattr(torch, name.split()[0])
    finally:
        torch.set_float32_matmul_precision(before)


def implementations(op: str) -> list[str]:
    """The backends that implement ``op`` and can run here, torch first."""
    names = ["torch", *backends.IMPLEMENTATIONS[op]]
    return [name for name in names if DEVICE.type in backends.devices(name) and backends.why_missing(name) is None]


def runnable(op: str, call: Callable[[], Tensor]) -> tuple[dict[str, Callable], list[dict]]:
    """``call`` with each backend that takes it, and a record of each one that declines. Raises AssertionError for a
    backend that disagrees with torch."""
    with backends.using("torch"):
        expected = call().float()
    runs, others = {}, []
    for name in implementations(op):
        try:
            with backends.using(name):
                error = ((call().float() - expected).norm() / expected.norm().clamp_min(1e-30)).item()
        except BackendError as reason:
            others.append({"backend": name, "declined": str(reason)})
            continue
        if not error < WRONG:
            raise AssertionError(f"{op} with {name} differs from torch by {error:.2g} (relative RMS)")

        def run(name=name):
            with backends.using(name):
                return call()

        runs[name] = run
    return runs, others


# ---- structures


def segments(width: int, state: tuple[int, int], ragged: bool = False) -> Segments:
    """``state`` is (frozen, live) in percent; sizes are multiples of 16, or odd if ``ragged``."""
    frozen, live = (share * width // 100 for share in state)
    size = frozen // SEGMENTS // 16 * 16 - ragged * (frozen > 0)
    live = max(0, live // 16 * 16 - ragged)
    return Segments(width, live, (max(0, size),) * SEGMENTS if frozen else ())


def stairs(width: int, state: tuple[int, int], ragged: bool = False) -> Staircase:
    output = segments(width, state, ragged)
    return staircase(output, (Source(output),), (True,) * (output.tasks + 1), None)


def tensors(structure: Staircase, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight and frozen_weight, at unit scale."""
    live = structure.live
    x = torch.randn(BATCH, structure.columns, device=DEVICE, dtype=dtype)
    scale = max(1, structure.columns) ** -0.5
    weight = torch.randn(live.rows, live.columns, device=DEVICE, dtype=dtype) * scale
    count = sum(stair.rows * stair.columns for stair in structure.frozen)
    return x, weight, torch.randn(count, device=DEVICE, dtype=dtype) * scale


def norm_of(frozen: int, live: int) -> Norm:
    weight, var = (torch.rand(live, device=DEVICE) + 0.5 for _ in range(2))
    bias, mean = (torch.randn(live, device=DEVICE) for _ in range(2))
    affine = torch.rand(frozen, device=DEVICE) + 0.5, torch.randn(frozen, device=DEVICE)
    return Norm(weight, bias, mean, var, *affine, True, 0.1, 1e-5, "relu")


# ---- rows


def measure_product() -> Iterator[dict]:
    for dtype_name in PRECISIONS:
        for width in WIDTHS:
            for state in STATES:
                for ragged in (False, True):
                    with precision(dtype_name) as dtype, torch.no_grad():
                        yield from _product(dtype_name, dtype, width, state, ragged)


def _product(dtype_name: str, dtype: torch.dtype, width: int, state: tuple[int, int], ragged: bool) -> Iterator[dict]:
    structure = stairs(width, state, ragged)
    x, weight, frozen_weight = tensors(structure, dtype)
    weights = Weights(weight, None, frozen_weight, None)
    runs, others = runnable("staircase_linear", lambda: staircase_linear(x, weights, structure))

    useful = structure.multiply_adds()
    rows = max(16, round(useful / width / 16) * 16)
    dense_x, dense = (torch.randn(n, width, device=DEVICE, dtype=dtype) for n in (BATCH, rows))
    seconds = alternate({"dense": lambda: F.linear(dense_x, dense), **runs})
    shape = {"dtype": dtype_name, "width": width, "batch": BATCH, "state": state, "ragged": ragged}
    limit = BATCH * rows * width / seconds["dense"]
    for name in runs:
        rate = BATCH * useful / seconds[name]
        yield {
            **shape,
            "backend": name,
            "ms": 1e3 * seconds[name],
            "dense_ms": 1e3 * seconds["dense"],
            "tera_multiply_adds": rate / 1e12,
            "of_dense_rate": rate / limit,
        }
    yield from ({**shape, **other} for other in others)


def measure_norm() -> Iterator[dict]:
    limit = copy_rate()
    yield {"copy_bytes_a_second": limit}
    shapes = {"rows": (8, 6), "NCHW": (2, 6, 3, 3), "NHWC": (2, 6, 3, 3)}
    if not DRY:
        shapes = {"rows": (65536, 2048), "NCHW": (256, 256, 56, 56), "NHWC": (256, 256, 56, 56)}
    for dtype in (torch.float32,) if DRY else (torch.bfloat16, torch.float32):
        for layout in FORMATS:
            for frozen in (0.0, 0.5, 1.0):
                yield from _norm(dtype, layout, shapes[layout], frozen, limit)


def _norm(dtype: torch.dtype, layout: str, shape: tuple[int, ...], share: float, limit: float) -> Iterator[dict]:
    channels = shape[1]
    frozen = int(share * channels)
    x = torch.randn(shape, device=DEVICE, dtype=dtype)
    if layout == "NHWC":
        x = x.to(memory_format=torch.channels_last)
    norm = norm_of(frozen, channels - frozen)
    live = 1 - frozen / channels
    dense = norm_of(0, channels)
    bytes_of_x = x.numel() * x.element_size()

    def forward():
        return segmented_batch_norm(x, norm)

    def unfused():
        statistics = dense.running_mean, dense.running_var
        return F.relu_(F.batch_norm(x, *statistics, dense.weight, dense.bias, True, dense.momentum, dense.eps))

    about = {"dtype": str(dtype)[6:], "layout": layout, "shape": shape, "frozen": share}
    # Statistics come before values, so live channels are read twice, both ways; frozen gradients are written as zeros.
    with torch.no_grad():
        runs, others = runnable("segmented_batch_norm", forward)
        moved = bytes_of_x * (2 + live)
        yield from _norm_records({**about, "part": "forward"}, {"unfused": unfused, **runs}, moved, limit)
    yield from ({**about, **other} for other in others)

    x.requires_grad_()
    dy = torch.randn_like(x)
    moved = bytes_of_x * (1 + 4 * live)
    for tensor in (dense.weight, dense.bias, norm.weight, norm.bias):
        tensor.requires_grad_()
    wanted = {name: [x, norm.weight, norm.bias] for name in runs} | {"unfused": [x, dense.weight, dense.bias]}
    held = {name: run() for name, run in {"unfused": unfused, **runs}.items()}

    def backward(name):
        def run():
            with backends.using(None if name == "unfused" else name):
                return torch.autograd.grad(held[name], wanted[name], dy, retain_graph=True, allow_unused=True)

        return run

    yield from _norm_records({**about, "part": "backward"}, {name: backward(name) for name in held}, moved, limit)


def _norm_records(about: dict, runs: dict[str, Callable], moved: float, limit: float) -> Iterator[dict]:
    seconds = alternate(runs)
    for name in runs:
        if name != "unfused":
            yield {
                **about,
                "backend": name,
                "ms": 1e3 * seconds[name],
                "unfused_ms": 1e3 * seconds["unfused"],
                "gigabytes": moved / 1e9,
                "of_copy_rate": moved / seconds[name] / limit,
            }


def measure_fused() -> Iterator[dict]:
    for dtype_name in PRECISIONS:
        for width in WIDTHS:
            for state in STATES[:2]:
                with precision(dtype_name) as dtype, torch.no_grad():
                    yield from _fused(dtype_name, dtype, width, state)


def _fused(dtype_name: str, dtype: torch.dtype, width: int, state: tuple[int, int]) -> Iterator[dict]:
    structure = stairs(width, state)
    x, weight, frozen_weight = tensors(structure, dtype)
    weights, norm = Weights(weight, None, frozen_weight, None), norm_of(structure.frozen_rows, structure.live.rows)

    def forward():
        return staircase_linear_norm(x, weights, structure, norm)

    runs, others = runnable("staircase_linear_norm", forward)
    seconds = alternate(runs)
    about = {"dtype": dtype_name, "width": width, "batch": BATCH, "state": state}
    for name in runs:
        ms = {"ms": 1e3 * seconds[name], "torch_ms": 1e3 * seconds["torch"]}
        yield {**about, "backend": name, **ms, "of_torch": ms["ms"] / ms["torch_ms"]}
    yield from ({**about, **other} for other in others)


def measure_convolution() -> Iterator[dict]:
    for dtype_name in PRECISIONS:
        for kernel in (1, 3):
            for state in ((50, 50), (90, 10), (100, 0)):
                with precision(dtype_name) as dtype, torch.no_grad():
                    yield from _convolution(dtype_name, dtype, kernel, state)


def _convolution(dtype_name: str, dtype: torch.dtype, kernel: int, state: tuple[int, int]) -> Iterator[dict]:
    samples, channels, side = (2, 96, 4) if DRY else (256, 256, 28)
    structure = stairs(channels, state)
    x = torch.randn(samples, structure.columns, side, side, device=DEVICE, dtype=dtype)
    x = x.to(memory_format=torch.channels_last)
    _, weight, frozen_weight = tensors(structure, dtype)
    weight = weight[:, :, None, None].repeat(1, 1, kernel, kernel) / kernel
    frozen_weight = frozen_weight.repeat(kernel**2) / kernel
    weights, norm = Weights(weight, None, frozen_weight, None), norm_of(structure.frozen_rows, structure.live.rows)
    geometry = Geometry((1, 1), (kernel // 2,) * 2, (1, 1))

    def forward():
        return staircase_conv2d_norm(x, weights, structure, norm, geometry)

    runs, others = runnable("staircase_conv2d_norm", forward)
    seconds = alternate(runs)
    useful = structure.multiply_adds() * samples * (side * kernel) ** 2
    about = {"dtype": dtype_name, "shape": tuple(x.shape), "kernel": kernel, "state": state}
    for name in runs:
        yield {
            **about,
            "backend": name,
            "ms": 1e3 * seconds[name],
            "torch_ms": 1e3 * seconds["torch"],
            "of_torch": seconds[name] / seconds["torch"],
            "tera_multiply_adds": useful / seconds[name] / 1e12,
        }
    yield from ({**about, **other} for other in others)


def measure_step() -> Iterator[dict]:
    from networks import STATES as ALL
    from networks import SUBJECTS, dense, eidetic
    from peers import step_of

    subjects = {"mlp": SUBJECTS["mlp"], "resnet18": SUBJECTS["resnet18"]}
    for model, subject in subjects.items():
        x, y = subject.data(DEVICE)
        if model == "resnet18" and not DRY:
            x, y = x.repeat(4, 1, 1, 1), y.repeat(4)
        for state, half in itertools.product(ALL, (False, True)):
            nets = {"dense": dense(subject).to(DEVICE), "eidetic": eidetic(subject, *state).to(DEVICE)}
            given = x.contiguous(memory_format=torch.channels_last) if half and x.dim() == 4 else x
            around = partial(torch.autocast, DEVICE.type, torch.bfloat16) if half else nullcontext
            steps = {
                name: step_of(net, given, y, default_optimizer(net.parameters()), around) for name, net in nets.items()
            }
            seconds = alternate(steps)
            ms = {name: 1e3 * value for name, value in seconds.items()}
            about = {"model": model, "state": state, "batch": len(x), "autocast": half}
            yield {**about, "ms": ms["eidetic"], "dense_ms": ms["dense"], "of_dense": ms["eidetic"] / ms["dense"]}


def measure_graphs() -> Iterator[dict]:
    from networks import SUBJECTS, eidetic

    def epoch(net, batches, optimizer, captured):
        return lambda: train_epoch(net, batches, optimizer, F.cross_entropy, None, captured)

    settings = TaskSettings(cuda_graphs="auto")  # a dry run's CPU has no graphs
    for model in ("mlp", "convnet"):
        batch = SUBJECTS[model].data(DEVICE)
        for state in ((0, 100), (90, 10)):
            for steps in (5,) if DRY else (20, 100):
                about = {"model": model, "state": state, "batch": len(batch[0]), "steps": steps}
                epochs = {}
                for name in ("one by one", "graph"):
                    net = eidetic(SUBJECTS[model], *state).to(DEVICE)
                    optimizer = default_optimizer(net.parameters())
                    captured, reason = captured_steps(net, optimizer, settings) if name == "graph" else (None, None)
                    epochs[name] = epoch(net, [batch] * steps, optimizer, captured)
                seconds = alternate(epochs)
                if (reason := reason or (captured and captured.off)) is not None:
                    yield {**about, "declined": reason}
                    continue
                ms = {name: 1e3 * value / steps for name, value in seconds.items()}
                ratio = ms["graph"] / ms["one by one"]
                yield {**about, "ms": ms["graph"], "one_by_one_ms": ms["one by one"], "of_one_by_one": ratio}


def check_promises() -> Iterator[dict]:
    tasks = permuted(_blobs(), 3)
    choices = [None, *(name for name in backends.NAMES if DEVICE.type in backends.devices(name))]
    for name in choices:
        if name is not None and (reason := backends.why_missing(name)):
            yield {"backend": name, "declined": reason}
            continue

        torch.manual_seed(0)
        net = models.build("mlp", tasks[0].train.shape, width=8 if DRY else 512).to(DEVICE)
        with backends.using(name):
            digests = []
            for t, task in enumerate(tasks):
                net.prepare_for_task(t, task.num_classes)
                settings = TaskSettings(max_epochs=1 if DRY else 5, max_recovery_epochs=1, polish_epochs=1)
                loader = task.train_loader(128, device=DEVICE)
                train_task(net, loader, default_optimizer(net.parameters()), settings=settings)
                found = [evaluate(net, tasks[k].test_loader(200, DEVICE), k) for k in range(t + 1)]
                digests.append(found[t].digest)
                assert [one.digest for one in found] == digests, f"learning task {t} changed an earlier task's bits"
            net.certify().check()
        accuracies = [one.accuracy for one in found]
        yield {"backend": name or "unforced", "tasks": len(tasks), "forgotten_bits": 0, "accuracies": accuracies}


def _blobs() -> Images:
    """Ten kinds of 28 x 28 images that a small network can tell apart, so that the check needs no data set."""
    generator = torch.Generator().manual_seed(0)
    kinds = torch.rand(10, 1, 28, 28, generator=generator)
    side = 4 if DRY else 28

    def made(count: int) -> ImageSet:
        labels = torch.arange(count) % 10
        noisy = 0.6 * kinds[labels] + 0.4 * torch.rand(count, 1, 28, 28, generator=generator)
        return ImageSet((255 * noisy[..., :side, :side]).to(torch.uint8), labels, 10)

    return Images("blobs", made(40 if DRY else 4000), made(20 if DRY else 1000))


def measure_mnist() -> Iterator[dict]:
    if DRY:
        chosen = ["data.tasks=2", "model.width=8", "task.max_epochs=1", "router.max_epochs=1", "data.source=parquet"]
    else:
        chosen = ["data.source=mnist", "data.batch_size=512"]
    with tempfile.TemporaryDirectory() as folder:
        data = _tiny_images(Path(folder)) if DRY else _mnist()
        if data is None:
            yield {"declined": "no folder shared/data/mnist, here or beside the checkout"}
            return

        overrides = [*chosen, f"data.folder={data}", f"device={DEVICE.type}"]
        started = time.perf_counter()
        run = run_experiment(config.load("demo", overrides), Path(folder) / "run")
        seconds = time.perf_counter() - started

        final = [row.accuracy for row in run.tests if row.learned == max(r.learned for r in run.tests)]
        kept = sum(row.units for row in run.capacity)
        width = sum({row.layer: row.width for row in run.capacity}.values())
        yield {
            "seconds": seconds,
            "learning_seconds": max(row.seconds for row in run.metrics if row.phase != "router"),
            "tasks": len(final),
            "mean_accuracy": statistics.mean(final),
            "used": kept / width,
            "routed": statistics.mean(run.router.routed),
            "settings": overrides[: len(chosen)],
            "report": report.table(run),
        }


def _mnist() -> Path | None:
    places = (ROOT / "shared" / "data", ROOT.parent / "shared" / "data")
    return next((place for place in places if (place / "mnist").is_dir()), None)


def _tiny_images(folder: Path) -> Path:
    """A Parquet data set of a few images, so that the row runs without the real data."""
    import io

    import numpy as np
    import pyarrow
    import pyarrow.parquet
    from PIL import Image

    for split in ("train", "test"):
        rows = []
        for label in range(20):
            buffer = io.BytesIO()
            Image.fromarray(np.full((4, 4), 12 * label, dtype=np.uint8)).save(buffer, "PNG")
            rows.append({"image": {"bytes": buffer.getvalue(), "path": ""}, "label": label % 2})
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{split}.parquet")
    return folder


ROWS = {
    "promises": check_promises,
    "product": measure_product,
    "norm": measure_norm,
    "fused": measure_fused,
    "conv": measure_convolution,
    "mnist": measure_mnist,
    "step": measure_step,
    "graphs": measure_graphs,
}


# ---- writing down


def machine() -> dict:
    facts = {**environment(), "command": " ".join(["python", *sys.argv]), "machine": platform.machine()}
    facts["backends"] = {name: backends.why_missing(name) or "runs" for name in backends.NAMES}
    with_cuda = extensions.load("_cuda")
    facts["compiled for CUDA"] = with_cuda and with_cuda.built_for()
    facts["torch for CUDA"] = torch.version.cuda
    try:
        import triton

        facts["triton"] = triton.__version__
    except ImportError:
        facts["triton"] = None
    try:
        asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,power.limit", "--format=csv,noheader"]
        facts["device"] = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        facts["device"] = "no GPU; figures without meaning"
    return facts


def table(results: dict) -> str:
    """All records in Markdown, a table for each row."""
    lines = ["# On a GPU", "", f"`bench/gpu.sh`; {__doc__.split('    promises')[0].splitlines()[0]}", ""]
    lines += [f"- {name}: {value}" for name, value in results["machine"].items()]
    for row, held in results["rows"].items():
        lines += ["", f"## {row}", "", f"{held['seconds']:.0f} s" + (", " + held["state"] if held["state"] else "")]
        records = [record for record in held["records"] if "declined" not in record]
        columns = list(dict.fromkeys(key for record in records for key in record if key != "report"))
        if records:
            lines += ["", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
            lines += ["| " + " | ".join(_cell(record.get(key, "")) for key in columns) + " |" for record in records]
        lines += ["", *(_cell(r) for r in held["records"] if "declined" in r)]
        lines += [f"```\n{record['report']}\n```" for record in records if "report" in record]
    return "\n".join(lines) + "\n"


def _cell(value) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "- " + ", ".join(f"{key}: {_cell(one)}" for key, one in value.items())
    return ", ".join(map(_cell, value)) if isinstance(value, (list, tuple)) else str(value)


def run_row(name: str, results: dict, out: Path) -> bool:
    """Measure one row and write every record at once. Returns whether the row came to its end."""
    started = time.perf_counter()
    held = results["rows"][name] = {"records": [], "seconds": 0.0, "state": "cut short"}

    def keep(state: str) -> None:
        held["seconds"], held["state"] = time.perf_counter() - started, state
        write_json(out.with_suffix(".json"), results)
        out.with_suffix(".md").write_text(table(results), encoding="utf-8")

    try:
        for record in ROWS[name]():
            held["records"].append(record)
            print(name, {key: value for key, value in record.items() if key != "report"}, flush=True)
            keep("cut short")
    except Exception as error:  # the other rows are worth having
        traceback.print_exc()
        keep(f"FAILED: {type(error).__name__}: {error}")
        return False
    keep("")
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "gpu" / "gpu")
    given = parser.parse_args()
    if DEVICE.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU here; EIDETIC_BENCH_SMOKE=1 tries every row on the CPU.")
    torch.manual_seed(0)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    store = given.out.with_suffix(".json")
    results = {"machine": machine(), "rows": {}}
    before = json.loads(store.read_text()) if store.exists() else None
    if before and before["machine"]["commit"] == results["machine"]["commit"]:
        results["rows"] = before["rows"]
    complete = [run_row(name, results, given.out) for name in given.only]
    print(f"wrote {store} and {given.out.with_suffix('.md')}")
    if not all(complete):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

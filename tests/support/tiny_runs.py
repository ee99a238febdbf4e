"""A data set of 6x6 images in Parquet files, and whole runs on it that take a fraction of a second."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from safetensors import safe_open

from eidetic_training.experiments import config as configuration
from eidetic_training.experiments.experiment import run_experiment
from eidetic_training.runs.folder import RunFolder

CLASSES, SIDE, WIDTH = 6, 6, 40
TASK = {"max_epochs": 5, "max_recovery_epochs": 2, "tolerance": 0.05, "step": 0.2, "keep_at_least": 4}


def images(samples, seed):
    """Noisy copies of one random pattern a class, uint8 [samples, 6, 6], and their classes."""
    patterns = np.random.default_rng(1).integers(0, 256, (CLASSES, SIDE, SIDE))
    labels = np.arange(samples) % CLASSES
    noise = np.random.default_rng(seed).normal(0, 30, (samples, SIDE, SIDE))
    return np.clip(patterns[labels] + noise, 0, 255).astype(np.uint8), labels


def write_data(folder, train=96, test=48):
    """train.parquet and test.parquet as on the hub: encoded images and labels."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, samples, seed in (("train", train, 2), ("test", test, 3)):
        pixels, labels = images(samples, seed)
        column = []
        for each in pixels:
            file = io.BytesIO()
            Image.fromarray(each).save(file, "PNG")
            column.append({"bytes": file.getvalue(), "path": None})
        pq.write_table(pa.table({"image": column, "label": pa.array(labels)}), folder / f"{split}.parquet")
    return folder


def make_config(folder, /, **tables):
    """A complete configuration of three tasks on the data in `folder`; tables replace single values."""
    given = {
        "name": "tiny",
        "data": {"source": "parquet", "folder": str(folder), "tasks": 3, "batch_size": 24},
        "model": {"name": "mlp", "width": WIDTH},
        "optimizer": {"lr": 0.02},
        "task": dict(TASK),
        "router": {"max_epochs": 4},
    }
    for name, value in tables.items():
        given[name] = {**given.get(name, {}), **value} if isinstance(value, dict) else value
    return configuration.complete(given)


def run(config, folder, *callbacks):
    """The run folder, after all tasks."""
    return run_experiment(config, folder, callbacks, say=lambda line: None)


class Stop:
    """A callback that interrupts the run at its n-th event (from 1), as Ctrl-C would."""

    def __init__(self, event):
        self.left = event

    def __call__(self, event):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def network_file(path):
    """Everything a saved network holds: tensors as bytes, and the header."""
    with safe_open(path, framework="np") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return {name: (each.shape, each.tobytes()) for name, each in arrays.items()}, json.loads(
            file.metadata()["eidetic"]
        )


def left_behind(folder):
    """What a run leaves that must not depend on whether it was interrupted; seconds may."""
    run = RunFolder(folder)
    return {
        "network": network_file(run.network_path),
        "checkpoints": {p.name: network_file(p) for p in sorted((run.path / "checkpoints").iterdir())},
        "metrics": [[str(value) for value in row[1:]] for row in run.metrics],  # a missing loss is NaN
        "tests": run.tests,
        "classes": list(map(str, run.classes)),
        "capacity": run.capacity,
        "digests": run.digests,
        "router": run.router,
        "inputs": run.inputs,
    }

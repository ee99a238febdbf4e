"""Methods side by side on one sequence of tasks: the same data, network, optimizer, epochs and seeds."""

from __future__ import annotations

import functools
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from eidetic_kernels.checking import a_list, function, known_names, one_of, path, whole_number
from eidetic_kernels.errors import InputError

from .. import models
from ..data import Task
from ..devices import find_device
from ..methods import METHODS, Conditions, Method
from ..runs import metrics
from ..runs.leftovers import check_unused, remove_temporaries
from ..runs.locks import only_writer
from ..runs.report import spread
from ..runs.run_environment import environment
from ..runs.tables import read_json, write_bytes, write_json
from ..training.accuracy import Accuracy
from . import config as configuration
from .workers import Leash, begin_worker, threads_each

EVALUATION_BATCH = 500
AT_ONCE = ("joint",)  # learns all tasks together, so there is no accuracy "when learned"


@dataclass(frozen=True)
class Result:
    """One method with one seed.

    Args:
        matrix: ``matrix[l][t]`` is test accuracy of task t after task l; a joint method has one row.
        numbers: how many float32 numbers are kept to answer for all tasks.
        passes: passes over a task's training data, a mean over tasks; passes that only measure or score count too.
        seconds: of training alone.
        used: the fraction of units that tasks use; None for a method without units.
    """

    method: str
    seed: int
    matrix: list[list[float]]
    numbers: float
    passes: float
    seconds: float
    used: float | None = None

    @classmethod
    def from_json(cls, kept: Any) -> Result:
        """What ``asdict`` gave. Raises TypeError or ValueError for anything else."""
        result = cls(**kept)
        numbers = [result.numbers, result.passes, result.seconds, *(each for row in result.matrix for each in row)]
        if not result.matrix or not all(result.matrix) or not all(isinstance(n, (int, float)) for n in numbers):
            raise ValueError(f"result {str(kept)[:100]} is not of numbers")
        return result

    @property
    def accuracy(self) -> float:
        """Mean test accuracy of all tasks at the end."""
        return metrics.average_accuracy(self.matrix)


class Comparison:
    """The results in a folder, by method and seed; an interrupted comparison continues with what is missing.

    ``folder`` holds comparison.json (conditions, environment and every result) and a CSV file of each result's matrix.
    Nobody else may be writing there (:func:`eidetic_training.runs.locks.only_writer`).

    Raises InputError if the folder holds something else, or a comparison that is damaged or under other conditions.
    """

    def __init__(self, folder: Path, conditions: Mapping[str, Any]):
        self.folder, self.path = folder, folder / "comparison.json"
        self.results: dict[tuple[str, int], Result] = {}
        self.conditions = dict(conditions)
        if self.path.exists():
            kept = read_json(self.path)
            try:
                results = [Result.from_json(each) for each in kept["results"]]
                other = kept["conditions"] != self.conditions
            except (KeyError, TypeError, ValueError) as error:
                raise InputError(f"{self.path} is damaged ({error}). Restore it from a copy, or remove it.") from error
            if results and other:
                raise InputError(
                    f"{self.path} was made under other conditions; give another folder (--run), or remove it."
                )
            self.results = {(r.method, r.seed): r for r in results}
        else:
            check_unused(folder, "a comparison's folder")
        if not self.results:
            self._write()

    def add(self, result: Result) -> None:
        """Record a result, and write it to the folder."""
        lines = ["learned,task,accuracy"]
        first = len(result.matrix[-1]) - len(result.matrix)  # a joint method's one row is after the last task
        lines += [f"{first + index},{t},{a!r}" for index, row in enumerate(result.matrix) for t, a in enumerate(row)]
        path = self.folder / f"{result.method}-seed{result.seed}.csv"
        write_bytes(path, ("\n".join(lines) + "\n").encode())

        self.results[result.method, result.seed] = result  # last: a result that is there has all its files
        self._write()

    def _write(self) -> None:
        rows = [asdict(r) for r in self.results.values()]
        write_json(self.path, {"conditions": self.conditions, "environment": environment(), "results": rows})

    def of(self, method: str) -> list[Result]:
        """A method's results, one for each seed."""
        return [result for (name, _), result in self.results.items() if name == method]

    @property
    def methods(self) -> list[str]:
        """The methods that have results, in the order of their first one."""
        return list(dict.fromkeys(name for name, _ in self.results))


def compare(
    config: Mapping[str, Any],
    tasks_of: Callable[[int], Sequence[Task]],
    methods: Sequence[str],
    folder: Path,
    say: Callable[[str], None] = print,
    workers: int = 1,
) -> Comparison:
    """Run ``methods`` on the configuration's tasks, for every seed; results already in ``folder`` are kept.

    Args:
        config: a complete configuration. Its tables ``compare`` (epochs, seeds) and ``methods`` (arguments of methods)
            matter here.
        tasks_of: the sequence of tasks for a seed. With more than one worker it is pickled.
        folder: where results are kept; see :class:`Comparison`.
        say: called with a line about each result.
        workers: processes that share the methods and seeds, and torch's threads; they are spawned.

    Raises InputError for an unknown method or argument, for a folder with results under other conditions, and for a
    number of workers that is less than 1.
    """
    config, folder = configuration.complete(config), Path(path("folder", folder, "a folder"))
    methods = [one_of("a method", each, tuple(METHODS)) for each in a_list("methods", methods, "a list of methods")]
    known_names(config["methods"], METHODS, "method", "the package")
    function("tasks_of", tasks_of, "a function from a seed to a list of tasks")
    function("say", say, "a function of a line")
    whole_number("workers", workers, least=1)

    new = not (folder / "comparison.json").exists()
    if new:  # checked before the folder is made, so that what is refused leaves none
        check_unused(folder, "a comparison's folder")
        _check_methods(config, methods, config["seed"], tasks_of)
    with only_writer(folder):
        remove_temporaries([folder])
        comparison = Comparison(folder, _conditions(config))
        seeds = range(config["seed"], config["seed"] + config["compare"]["seeds"])
        missing = [(name, seed) for seed in seeds for name in methods if (name, seed) not in comparison.results]
        if missing and not new:
            _check_methods(config, [name for name, _ in missing], missing[0][1], tasks_of)

        for result in _results(config, tasks_of, missing, workers):
            comparison.add(result)
            say(f"{result.method}, seed {result.seed}: mean accuracy {result.accuracy:.2%} in {result.seconds:.0f} s")
    return comparison


def _check_methods(
    config: Mapping[str, Any], methods: Sequence[str], seed: int, tasks_of: Callable[[int], Sequence[Task]]
) -> None:
    """Make every method once, before hours go into the first one. Raises InputError for what cannot be made."""
    tasks = tasks_of(seed)
    for name in dict.fromkeys(methods):
        make_method(config, name, seed, tasks)


def _results(
    config: Mapping[str, Any], tasks_of: Callable, missing: Sequence[tuple[str, int]], workers: int
) -> Iterator[Result]:
    """The result of every method and seed, each as soon as it is there."""
    if workers == 1:
        tasks = functools.lru_cache(maxsize=1)(tasks_of)
        for name, seed in missing:
            yield _run(config, name, seed, tasks(seed))
        return

    context = multiprocessing.get_context("spawn")
    leash = Leash(context)
    begin = (threads_each(workers), leash.workers_end)
    try:
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=begin_worker, initargs=begin)
        futures = [pool.submit(_run_apart, config, name, seed, tasks_of) for name, seed in missing]
        for future in as_completed(futures):
            yield future.result()
        pool.shutdown()
    except BrokenProcessPool as error:
        raise InputError(
            "a worker stopped before its end, perhaps for lack of memory. Run the same command to continue."
        ) from error
    finally:
        leash.let_go()


def _run_apart(config: Mapping[str, Any], name: str, seed: int, tasks_of: Callable) -> Result:
    return _run(config, name, seed, tasks_of(seed))


def _conditions(config: Mapping[str, Any]) -> dict[str, Any]:
    """The conditions that two results must have in common to be compared. The number of seeds is none of them."""
    kept = {key: config[key] for key in ("data", "model", "optimizer", "task", "methods")}
    compared = {key: value for key, value in config["compare"].items() if key != "seeds"}
    return {**kept, "compare": compared, "device": find_device(config["device"]).type}


def _run(config: Mapping[str, Any], name: str, seed: int, tasks: Sequence[Task]) -> Result:
    method = make_method(config, name, seed, tasks)
    batch, device = config["data"]["batch_size"], find_device(config["device"])
    loaders = [task.train_loader(batch, seed, device) for task in tasks]

    matrix, seconds = [], 0.0
    if name in AT_ONCE:
        started = time.perf_counter()
        method.learn_all(loaders, [task.num_classes for task in tasks])
        seconds = time.perf_counter() - started
        matrix = [[accuracy(method, task, t, device) for t, task in enumerate(tasks)]]
    else:
        for t, (task, loader) in enumerate(zip(tasks, loaders)):
            started = time.perf_counter()
            method.learn(loader, task.num_classes)
            seconds += time.perf_counter() - started
            matrix.append([accuracy(method, past, p, device) for p, past in enumerate(tasks[: t + 1])])

    passes = statistics.mean(loader.epoch for loader in loaders)  # a loader counts its iterations
    return Result(name, seed, matrix, method.stored_numbers(), passes, seconds, method.units_used())


def make_method(config: Mapping[str, Any], name: str, seed: int, tasks: Sequence[Task]) -> Method:
    """The method ``name`` under the configuration's conditions. Raises InputError for an argument it does not take."""
    model, optimizer = dict(config["model"]), dict(config["optimizer"])
    device, build = find_device(config["device"]), functools.partial(models.build, model.pop("name"), **model)
    if optimizer.keys() - {"name", "lr"}:
        raise InputError(
            "a comparison's optimizer has a name and a learning rate (lr) only, since methods make their own; "
            f"got {', '.join(sorted(optimizer))}."
        )

    epochs, polish = config["compare"]["epochs"], config["compare"]["polish"]
    conditions = Conditions(
        lambda: build(tasks[0].train.shape).to(device), epochs, optimizer["name"], optimizer["lr"], seed, polish
    )

    arguments = dict(config["methods"].get(name, {}))
    if name == "eidetic":
        arguments = {**config["task"], **arguments}
    if config["compare"]["tasks_known"] and name in ("eidetic", "clnp", "packnet"):
        arguments["tasks"] = len(tasks)
    try:
        return METHODS[name](conditions, **arguments)
    except TypeError as error:
        raise InputError(f"method {name}: {error}.") from error


@torch.no_grad()
def accuracy(method: Method, task: Task, number: int, device: torch.device | None = None) -> float:
    """Test accuracy, in [0, 1], of a learned task if the task is given; ``device`` is the method's."""
    counted = Accuracy()
    for x, y in task.test_loader(EVALUATION_BATCH, device):
        counted.add(method.logits(x, number).argmax(1) == y)
    return counted.value


def table(comparison: Comparison) -> str:
    """All methods in Markdown, best first: means and standard deviations over seeds."""
    alone = {result.seed: result.matrix for result in comparison.of("single")}
    lines = [
        "| method | accuracy | forgetting | backward transfer | forward transfer | units used | numbers kept "
        "| passes a task | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in sorted(comparison.methods, key=lambda m: -statistics.mean(r.accuracy for r in comparison.of(m))):
        results = comparison.of(name)
        used = [r.used for r in results if r.used is not None]
        cells = [name, spread([r.accuracy for r in results])]
        if name in AT_ONCE:
            cells += ["", "", ""]
        else:
            cells.append(spread([metrics.forgetting(r.matrix) for r in results]))
            cells.append(spread([metrics.backward_transfer(r.matrix) for r in results]))
            known = [r for r in results if r.seed in alone]
            gains = [metrics.forward_transfer(r.matrix, [row[t] for t, row in enumerate(alone[r.seed])]) for r in known]
            cells.append(spread(gains) if gains else "")

        cells.append(f"{statistics.mean(used):.0%}" if used else "")
        cells.append(f"{statistics.mean(r.numbers for r in results) / 1e6:.2f} M")
        cells.append(f"{statistics.mean(r.passes for r in results):.0f}")
        cells.append(f"{statistics.mean(r.seconds for r in results):.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)

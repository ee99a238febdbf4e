"""The command ``eidetic``: train, sweep, compare, reproduce, predict, export, routing, report, plot, certify."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import torch

from eidetic_kernels import EideticNetwork
from eidetic_kernels.errors import EideticError, ForgettingError, InputError
from eidetic_kernels.version import __version__

from . import models
from .experiments import comparison
from .experiments import config as configuration
from .experiments.experiment import make_tasks, run_experiment, verify
from .experiments.reproduce import REPRODUCTIONS, reproduce
from .experiments.sweep import sweep
from .methods import METHODS
from .runs import plots, report
from .runs.callbacks import TensorBoard
from .runs.export import WRITERS, export_task
from .runs.folder import RunFolder
from .runs.routing_report import routing_report

EXIT_FORGOTTEN, EXIT_ERROR = 1, 2


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status: 0, 1 when something was forgotten, 2 for any other error."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run_command(arguments)
    except EideticError as error:
        print(f"eidetic {arguments.command}: {error}", file=sys.stderr)
        return EXIT_FORGOTTEN if isinstance(error, ForgettingError) else EXIT_ERROR
    except KeyboardInterrupt:
        print("\nstopped; the same command continues after the last finished task.", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="eidetic", description="Learn task after task and forget nothing.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="learn a sequence of tasks",
        description=(
            "Learn the tasks of a configuration one after another, train the router, prove that nothing was forgotten, and "
            "print what came of it. The same command again continues a run that was cut short."
        ),
    )
    train.add_argument("config", help=f"a TOML file, or one of: {', '.join(configuration.built_in())}")
    train.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override a value, e.g. --set task.search=linear --set data.tasks=5",
    )
    train.add_argument("--run", type=Path, help="the run folder (default: runs/NAME)")
    train.add_argument("--tensorboard", action="store_true", help="also write TensorBoard scalars to the run folder")
    train.set_defaults(run_command=_train)

    compare = commands.add_parser(
        "compare",
        help="run other methods beside it",
        description=(
            "Run several methods on one sequence of tasks under equal conditions (data, network, epochs, seeds), "
            "print them together and draw them. The same command again continues one that was cut short."
        ),
    )
    compare.add_argument("config", help="a TOML file, or a built-in one such as compare-digits")
    compare.add_argument(
        "--method", nargs="+", default=list(METHODS), metavar="NAME", help=f"which (default: all): {', '.join(METHODS)}"
    )
    compare.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override a value, e.g. --set compare.seeds=1 --set methods.ewc.strength=9",
    )
    compare.add_argument("--workers", type=int, default=1, help="processes that share the methods and seeds")
    compare.add_argument("--run", type=Path, help="the folder of the results (default: runs/NAME)")
    compare.set_defaults(run_command=_compare)

    search = commands.add_parser(
        "sweep",
        help="search for hyperparameters",
        description=(
            "Try the values of a configuration's sweep.space on a part of the training sets held out (the paper's section "
            "4), print the trials best first, and write the best configuration for `eidetic train`. The same command again "
            "continues; begun twice, it shares the trials. Needs the extra 'sweep' (Optuna)."
        ),
    )
    search.add_argument("config", help="a TOML file, or a built-in one such as sweep-digits")
    search.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override a value, e.g. --set sweep.trials=50",
    )
    search.add_argument("--workers", type=int, default=1, help="processes that share the trials (default: 1)")
    search.add_argument("--run", type=Path, help="the folder of the results (default: runs/NAME)")
    search.set_defaults(run_command=_sweep)

    repeat = commands.add_parser(
        "reproduce",
        help="repeat one of the paper's tables or figures",
        description=(
            "Run the configurations of one of the paper's tables, its search and ours, and print them beside the paper's "
            "numbers, or draw one of its figures. The same command again continues. There are: "
            + "; ".join(f"{name}, {plan.about}" for name, plan in REPRODUCTIONS.items())
            + "."
        ),
    )
    repeat.add_argument("name", choices=list(REPRODUCTIONS), metavar="NAME", help=", ".join(REPRODUCTIONS))
    repeat.add_argument("--seeds", type=int, default=1, help="how many, from 0 on (default: 1)")
    repeat.add_argument("--row", action="append", dest="rows", help="only this row of the table; may be repeated")
    repeat.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override a value in every row, e.g. --set data.folder=data/mnist",
    )
    repeat.add_argument("--run", type=Path, help="the folder of all its runs (default: runs/ and their name)")
    repeat.set_defaults(run_command=_reproduce)

    predict = commands.add_parser(
        "predict",
        help="classify images, no task id needed",
        description=("Route images to a task and classify them. Without images, a few of every task's test set."),
    )
    predict.add_argument("run", type=Path)
    predict.add_argument("images", nargs="*", type=Path, help="image files")
    predict.add_argument("--task", type=int, help="ask this task's head instead of the router")
    predict.set_defaults(run_command=_predict)

    export = commands.add_parser(
        "export",
        help="write one task as a file of its own",
        description=(
            "Write a finished task's part of the network as a torch.export program or in ONNX, read the file again, and "
            "report how far its logits lie from the network's."
        ),
    )
    export.add_argument("run", type=Path)
    export.add_argument("--task", type=int, required=True, help="the finished task")
    export.add_argument(
        "--format",
        choices=list(WRITERS),
        default="torch",
        help="torch (the default): for torch.export.load; onnx: needs the extra 'export'",
    )
    export.add_argument("--out", type=Path, required=True, help="the file, usually .pt2 or .onnx")
    export.set_defaults(run_command=_export)

    routing = commands.add_parser(
        "routing",
        help="how well each routing rule names the task",
        description=(
            "Every routing rule on the run's test sets, in one pass of the body: tasks named rightly, accuracy beside the "
            "oracle's, confusion between tasks, and accuracy when the least certain are not answered."
        ),
    )
    routing.add_argument("run", type=Path)
    routing.set_defaults(run_command=_routing)

    for name, action, text in (
        ("report", _report, "print a run's table"),
        ("plot", _plot, "draw a run's figures (the paper's figures 1, 3 and 4)"),
        ("certify", _certify, "prove that every finished task is what it was"),
    ):
        command = commands.add_parser(name, help=text, description=text.capitalize() + ".")
        command.add_argument("run", type=Path)
        command.set_defaults(run_command=action)
        if name == "plot":
            command.add_argument("--out", type=Path, help="folder for the figures (default: figures/ in the run)")
        if name == "certify":
            command.add_argument("--no-data", action="store_true", help="do not recompute the test logits")
    return parser


def _train(arguments: argparse.Namespace) -> None:
    config = configuration.load(arguments.config, arguments.overrides)
    folder = arguments.run or Path("runs") / config["name"]
    callbacks = (TensorBoard(folder / "tensorboard"),) if arguments.tensorboard else ()
    run = run_experiment(config, folder, callbacks)
    print(f"\n{report.table(run)}\n")
    try:
        plots.all_figures(run)
    except InputError as error:
        print(error)
    print(f"Everything is in {folder}: eidetic predict {folder}, eidetic certify {folder}, eidetic plot {folder}")


def _compare(arguments: argparse.Namespace) -> None:
    config = configuration.load(arguments.config, arguments.overrides)
    folder = arguments.run or Path("runs") / config["name"]
    compared = comparison.compare(
        config, partial(make_tasks, config["data"]), arguments.method, folder, workers=arguments.workers
    )
    text = comparison.table(compared)
    (folder / "table.md").write_text(text + "\n")
    print(f"\n{text}\n")
    try:
        plots.comparison(compared).savefig(folder / "comparison.png", dpi=plots.DPI)
    except InputError as error:
        print(error)
    print(f"Everything is in {folder}.")


def _sweep(arguments: argparse.Namespace) -> None:
    config = configuration.load(arguments.config, arguments.overrides)
    folder = arguments.run or Path("runs") / config["name"]
    print(f"\n{sweep(config, folder, arguments.workers)}\n")
    print(f"Everything is in {folder}. The best, on all the data: eidetic train {folder / 'best.toml'}")


def _reproduce(arguments: argparse.Namespace) -> None:
    folder = arguments.run or Path("runs") / REPRODUCTIONS[arguments.name].runs_of(arguments.name)
    print(reproduce(arguments.name, folder, arguments.overrides, arguments.seeds, arguments.rows))


def _predict(arguments: argparse.Namespace) -> None:
    run = RunFolder(arguments.run)
    network, inputs = load_network(run), run.inputs
    if arguments.images:
        names = [str(path) for path in arguments.images]
        batch = torch.stack([inputs.read_image(path) for path in arguments.images])
    else:
        names, rows = [], []
        for t, task in enumerate(make_tasks(run.config["data"], run.config["seed"])[: network.finished_tasks]):
            loader = task.test_loader(3)
            x, y = next(iter(loader))
            rows.append(x)
            names += [f"task {t}, class {inputs.labels[t][int(label)]}" for label in y]
        batch = torch.cat(rows)
    width = max(len(name) for name in ["image", *names])
    print(f"{'image':{width}}  task  class  confidence")
    network.eval()
    if arguments.task is None:
        guess = network.predict(batch)
        tasks, logits = guess.task.tolist(), guess.logits
    else:
        with torch.no_grad():
            logits = network(batch, task=arguments.task)
        tasks = [arguments.task] * len(batch)
    confidence, label = logits.softmax(1).max(1)
    for name, task, index, sure in zip(names, tasks, label.tolist(), confidence.tolist()):
        print(f"{name:{width}}  {task:4}  {inputs.labels[task][index]:5}  {sure:10.1%}")


def _export(arguments: argparse.Namespace) -> None:
    run = RunFolder(arguments.run)
    network = load_network(run)
    done = export_task(network, arguments.task, arguments.out, run.inputs.shape, arguments.format)
    print(
        f"{done.path}: task {arguments.task}, {done.parameters:,} parameters, inputs [N, "
        f"{', '.join(map(str, run.inputs.shape))}]. Its logits differ from the network's by at most "
        f"{done.difference:.1e} (the largest is {done.largest:.1f})."
    )


def _routing(arguments: argparse.Namespace) -> None:
    run = RunFolder(arguments.run)
    tasks = make_tasks(run.config["data"], run.config["seed"])
    print(routing_report(load_network(run), tasks))


def _report(arguments: argparse.Namespace) -> None:
    print(report.table(arguments.run))


def _plot(arguments: argparse.Namespace) -> None:
    for path in plots.all_figures(arguments.run, arguments.out):
        print(path)


def _certify(arguments: argparse.Namespace) -> None:
    run = RunFolder(arguments.run)
    network = load_network(run)
    certificate = network.certify()
    certificate.check()
    print(certificate)
    if not arguments.no_data:
        verify(run, network, make_tasks(run.config["data"], run.config["seed"]))
        print(f"{len(run.digests)} tasks' test logits have the SHA-256 they had when they were learned.")


def load_network(run: RunFolder) -> EideticNetwork:
    """The latest network of a run folder, on the CPU."""
    arguments = {key: value for key, value in run.config["model"].items() if key != "name"}
    fresh = models.build(run.config["model"]["name"], run.inputs.shape, **arguments)
    return EideticNetwork.load(run.network_path, network=fresh)


if __name__ == "__main__":
    sys.exit(main())

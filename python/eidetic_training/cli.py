"""The command ``eidetic``: train, sweep, compare, reproduce, predict, export, routing, report, plot, certify."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import torch

from eidetic_kernels.errors import InputError
from eidetic_kernels.version import __version__

from .ending import status_of
from .experiments import comparison
from .experiments import config as configuration
from .experiments.comparison_figure import comparison as comparison_figure
from .experiments.experiment import run_experiment
from .experiments.proof import summed_up, verify
from .experiments.reproduce import reproduce
from .experiments.reproductions import REPRODUCTIONS
from .experiments.sweep import sweep
from .experiments.tasks import make_tasks, tasks_of
from .methods import METHODS
from .runs import plots, report
from .runs.callbacks import TensorBoard
from .runs.export import WRITERS, export_task
from .runs.folder import RunFolder
from .runs.model import open_model
from .runs.networks import load_network
from .runs.routing_report import routing_report
from .runs.style import save_figure
from .runs.tables import write_bytes

RESUMABLE = ("train", "sweep", "compare", "reproduce")


def main(argv: list[str] | None = None) -> int:
    """Run the command. Returns its exit status, as :func:`~eidetic_training.ending.status_of` lists them."""
    arguments = _parser().parse_args(argv)
    stopped = "stopped; the same command continues after the last whole epoch."
    if arguments.command == "compare":
        stopped = "stopped; the same command continues with the results that are missing."
    elif arguments.command not in RESUMABLE:
        stopped = "stopped."
    return status_of(partial(arguments.run_command, arguments), f"eidetic {arguments.command}", stopped)


# ---- what the command takes


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="eidetic", description="Learn task after task and forget nothing.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    _add_train(commands)
    _add_compare(commands)
    _add_sweep(commands)
    _add_reproduce(commands)
    _add_predict(commands)
    _add_export(commands)
    _add_routing(commands)
    _add_report(commands)
    _add_plot(commands)
    _add_certify(commands)
    return parser


def _add_train(commands) -> None:
    train = commands.add_parser(
        "train",
        help="learn a sequence of tasks",
        description=(
            "Learn the tasks of a configuration one after another, train the router, check that nothing was forgotten, "
            "and print the results. Run the same command again to continue a run that was interrupted."
        ),
    )
    train.add_argument("config", help=f"a TOML file, or one of: {', '.join(configuration.built_in())}")
    _add_set(train, "override a value, e.g. --set task.search=linear --set data.tasks=5")
    train.add_argument("--run", type=Path, help="the run folder (default: runs/NAME)")
    train.add_argument("--tensorboard", action="store_true", help="also write TensorBoard scalars to the run folder")
    train.set_defaults(run_command=_train)


def _add_compare(commands) -> None:
    compare = commands.add_parser(
        "compare",
        help="compare methods on the same tasks",
        description=(
            "Run several methods on one sequence of tasks under equal conditions (data, network, epochs, seeds), "
            "print their results in one table and draw them. Run the same command again to continue a comparison that "
            "was interrupted."
        ),
    )

    compare.add_argument("config", help="a TOML file, or a built-in one such as compare-digits")
    compare.add_argument(
        "--method",
        nargs="+",
        default=list(METHODS),
        metavar="NAME",
        help=f"the methods to run (default: all): {', '.join(METHODS)}",
    )
    _add_set(compare, "override a value, e.g. --set compare.seeds=1 --set methods.ewc.strength=9")
    compare.add_argument(
        "--workers", type=int, default=1, help="processes that share the methods and seeds (default: 1)"
    )
    compare.add_argument("--run", type=Path, help="the folder of the results (default: runs/NAME)")
    compare.set_defaults(run_command=_compare)


def _add_sweep(commands) -> None:
    search = commands.add_parser(
        "sweep",
        help="search for hyperparameters",
        description=(
            "Try the values in a configuration's table sweep.space and measure them on a held-out part of the training "
            "sets (the paper's section 4). Print the trials, best first, and write the best configuration for `eidetic "
            "train`. Run the same command again to continue; run it twice at once to share the trials. Needs the extra "
            "'sweep' (Optuna)."
        ),
    )
    search.add_argument("config", help="a TOML file, or a built-in one such as sweep-digits")
    _add_set(search, "override a value, e.g. --set sweep.trials=50")
    search.add_argument("--workers", type=int, default=1, help="processes that share the trials (default: 1)")
    search.add_argument("--run", type=Path, help="the folder of the results (default: runs/NAME)")
    search.set_defaults(run_command=_sweep)


def _add_reproduce(commands) -> None:
    repeat = commands.add_parser(
        "reproduce",
        help="repeat one of the paper's tables or figures",
        description=(
            "Run the configurations of one of the paper's tables, with its settings and with ours, and print the "
            "results beside the paper's numbers; or draw one of its figures. Run the same command again to continue. "
            "There are: " + "; ".join(f"{name}, {plan.about}" for name, plan in REPRODUCTIONS.items()) + "."
        ),
    )
    repeat.add_argument("name", choices=list(REPRODUCTIONS), metavar="NAME", help=", ".join(REPRODUCTIONS))
    repeat.add_argument("--seeds", type=int, default=1, help="number of seeds, from 0 on (default: 1)")
    repeat.add_argument("--row", action="append", dest="rows", help="only this row of the table; may be repeated")
    _add_set(repeat, "override a value in every row, e.g. --set data.folder=data/mnist")
    repeat.add_argument("--run", type=Path, help="the folder of all its runs (default: runs/ and their name)")
    repeat.set_defaults(run_command=_reproduce)


def _add_predict(commands) -> None:
    predict = commands.add_parser(
        "predict",
        help="classify images, no task id needed",
        description="Route images to a task and classify them; without images, a few of every task's test set.",
    )
    predict.add_argument("run", type=Path, help="the run folder")
    predict.add_argument("images", nargs="*", type=Path, help="image files")
    predict.add_argument("--task", type=int, help="ask this task's head instead of the router")
    predict.set_defaults(run_command=_predict)


def _add_export(commands) -> None:
    export = commands.add_parser(
        "export",
        help="write one task as a file of its own",
        description=(
            "Write a finished task's part of the network as a torch.export program or in ONNX. Then read the file "
            "again and report by how much its logits differ from the network's."
        ),
    )
    export.add_argument("run", type=Path, help="the run folder")
    export.add_argument("--task", type=int, required=True, help="the finished task")
    export.add_argument(
        "--format",
        choices=list(WRITERS),
        default="torch",
        help="torch (the default): for torch.export.load; onnx: needs the extra 'export'",
    )
    export.add_argument("--out", type=Path, required=True, help="the file, usually .pt2 or .onnx")
    export.set_defaults(run_command=_export)


def _add_routing(commands) -> None:
    text = (
        "Try every routing rule on the run's test sets, in one pass of the body. Print how often each names the right "
        "task, its accuracy beside the oracle's, which tasks it confuses, and the accuracy if the least certain inputs "
        "are not answered."
    )
    routing = commands.add_parser("routing", help="how well each routing rule names the task", description=text)
    routing.add_argument("run", type=Path, help="the run folder")
    routing.set_defaults(run_command=_routing)


def _add_report(commands) -> None:
    command = commands.add_parser("report", help="print a run's table", description="Print a run's table.")
    command.add_argument("run", type=Path, help="the run folder")
    command.add_argument("--classes", action="store_true", help="every class: with the task given, and routed")
    command.set_defaults(run_command=_report)


def _add_plot(commands) -> None:
    text = (
        "Draw a run's figures: accuracy over time and units over time (the paper's figures 1 and 3), capacity by "
        "layer, the matrix of accuracies, accuracy by class, and the staircase of a hidden layer after each task."
    )
    command = commands.add_parser("plot", help="draw a run's figures", description=text)
    command.add_argument("run", type=Path, help="the run folder")
    command.add_argument("--out", type=Path, help="folder for the figures (default: figures/ in the run)")
    command.set_defaults(run_command=_plot)


def _add_certify(commands) -> None:
    text = "verify that every finished task still gives the answers it gave when it was learned"
    description = (
        f"{text.capitalize()}. A certificate can be written to a file of its own and signed, and a network that was "
        "saved later compared with it: whoever can rewrite a network can rewrite the records in it. Exit status 1: "
        "something was forgotten, or is not what was certified; 2: any error, such as a signature that is wrong."
    )
    command = commands.add_parser("certify", help=text, description=description)
    command.add_argument("model", type=Path, help="a run folder, or a saved network of a class of eidetic_training")
    command.add_argument("--no-data", action="store_true", help="do not recompute a run's test logits")
    command.add_argument("--write", type=Path, metavar="FILE", help="write the certificate to this JSON file")
    command.add_argument("--sign", type=Path, metavar="KEY", help="sign it: an Ed25519 private key, a PEM file")
    command.add_argument("--against", type=Path, metavar="FILE", help="compare with this certificate")
    command.add_argument(
        "--key", type=Path, help="it must be signed by this one's private key: a public key, a PEM file"
    )
    command.set_defaults(run_command=_certify)


def _add_set(command: argparse.ArgumentParser, text: str) -> None:
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help=text)


# ---- what the command does


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
    write_bytes(folder / "table.md", f"{text}\n".encode())
    print(f"\n{text}\n")

    try:
        save_figure(comparison_figure(compared), folder / "comparison.png")
    except InputError as error:
        print(error)
    print(f"Everything is in {folder}.")


def _sweep(arguments: argparse.Namespace) -> None:
    config = configuration.load(arguments.config, arguments.overrides)
    folder = arguments.run or Path("runs") / config["name"]
    print(f"\n{sweep(config, folder, arguments.workers)}\n")
    print(f"Everything is in {folder}. To train the best on all data: eidetic train {folder / 'best.toml'}")


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
        for t, task in enumerate(tasks_of(run)[: network.finished_tasks]):
            x, y = next(iter(task.test_loader(3)))
            rows.append(x)
            names += [f"task {t}, class {inputs.label(t, int(label))}" for label in y]
        batch = torch.cat(rows)

    network.eval()
    if arguments.task is None:
        guess = network.predict(batch)
        tasks, logits = guess.task.tolist(), guess.logits
    else:
        with torch.no_grad():
            logits = network(batch, task=arguments.task)
        tasks = [arguments.task] * len(batch)
    confidence, label = logits.softmax(1).max(1)

    width = max(len(name) for name in ["image", *names])
    print(f"{'image':{width}}  task  class  confidence")
    for name, task, index, sure in zip(names, tasks, label.tolist(), confidence.tolist()):
        print(f"{name:{width}}  {task:4}  {inputs.label(task, index):5}  {sure:10.1%}")


def _export(arguments: argparse.Namespace) -> None:
    run = RunFolder(arguments.run)
    done = export_task(load_network(run), arguments.task, arguments.out, run.inputs.shape, arguments.format)
    print(
        f"{done.path}: task {arguments.task}, {done.parameters:,} parameters, inputs [N, "
        f"{', '.join(map(str, run.inputs.shape))}]. Its logits differ from the network's by at most "
        f"{done.difference:.1e} (the largest is {done.largest:.1f})."
    )


def _routing(arguments: argparse.Namespace) -> None:
    run = RunFolder(arguments.run)
    tasks = tasks_of(run)
    print(routing_report(load_network(run), tasks))


def _report(arguments: argparse.Namespace) -> None:
    print(report.classes_table(arguments.run) if arguments.classes else report.table(arguments.run))


def _plot(arguments: argparse.Namespace) -> None:
    for path in plots.all_figures(arguments.run, arguments.out):
        print(path)


def _certify(arguments: argparse.Namespace) -> None:
    if arguments.sign is not None and arguments.write is None:
        raise InputError("--sign signs the certificate that --write FILE writes: give both.")
    if arguments.key is not None and arguments.against is None:
        raise InputError("--key is for the certificate that --against FILE names: give both.")
    network, run = open_model(arguments.model)
    if not network.finished_tasks:
        raise InputError(
            f"{arguments.model} has finished no task, so there is nothing to certify: finish a task first."
        )
    certificate = network.certify(arguments.against, arguments.key)
    certificate.check()
    print(certificate)

    if run is not None and not arguments.no_data:
        notes = verify(run, network, tasks_of(run))
        print(summed_up(network.finished_tasks, notes))
    if arguments.write is not None:
        certificate.write(arguments.write, arguments.sign)
        print(f"{arguments.write}: the certificate of {network.finished_tasks} tasks.")


if __name__ == "__main__":
    sys.exit(main())

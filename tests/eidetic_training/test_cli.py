"""The command: what it prints and writes, its exit status, and errors without a traceback."""

import json
import shutil
import sys
import types
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_runs import CLASSES, SIDE, TASK, WIDTH, images, left_behind, write_data

from eidetic_kernels import EideticNetwork
from eidetic_training import cli
from eidetic_training.cli import load_network, main
from eidetic_training.runs import callbacks, plots
from eidetic_training.runs.folder import RunFolder

FIGURES = 6


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """The path of a configuration of two tasks on made-up images."""
    folder = tmp_path_factory.mktemp("data")
    write_data(folder / "images")
    task = "\n".join(f"{key} = {value}" for key, value in {**TASK, "keep_at_least": 12}.items())
    text = f"""
        name = "tiny"
        data = {{ source = "parquet", folder = "{folder / "images"}", tasks = 2, batch_size = 24 }}
        model = {{ name = "mlp", width = {WIDTH} }}
        optimizer = {{ lr = 0.02 }}
        router = {{ max_epochs = 60, lr = 0.05, patience = 20 }}
        [task]
        {task}
    """
    (folder / "tiny.toml").write_text(text)
    return folder / "tiny.toml"


@pytest.fixture(scope="module")
def trained(settings, tmp_path_factory):
    """A run folder made by the command; not to be changed."""
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", str(settings), "--run", str(path)]) == 0
    return path


@pytest.fixture
def copied(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def failing(outcome, *parts):
    """The command failed with status 2 and one message, which holds the parts, and no traceback."""
    status, _, err = outcome
    assert status == 2
    assert "Traceback" not in err
    for part in parts:
        assert part in err


# ---- train


def test_train_prints_a_line_a_task_the_table_and_where_everything_is(settings, tmp_path, eidetic):
    status, out, err = eidetic("train", settings, "--run", tmp_path / "run", "--set", "router.max_epochs=2")
    assert status == 0
    assert [line.split(" (")[0] for line in err.splitlines()] == ["task 0", "task 1"]
    assert "2 of 2 tasks: the test logits' SHA-256 equals" in out
    for part in ("learned", "forgotten", "units kept by task", "router: the right task", f"eidetic certify {tmp_path}"):
        assert part in out
    assert len(list((tmp_path / "run" / "figures").glob("*.png"))) == FIGURES


def test_train_takes_the_run_s_folder_from_the_name(settings, tmp_path, monkeypatch, eidetic):
    monkeypatch.chdir(tmp_path)
    status, out, _ = eidetic("train", settings, "--set", "name=mine", "--set", "data.tasks=1")
    assert status == 0
    assert RunFolder(tmp_path / "runs" / "mine").config["name"] == "mine"
    assert "eidetic predict runs/mine" in out


def test_overrides_reach_the_run(settings, tmp_path, eidetic):
    sets = ["data.tasks=1", "task.search=none", "task.polish_epochs=0", "model.width=10", "task.max_epochs=1", "seed=5"]
    arguments = [part for each in sets for part in ("--set", each)]
    assert eidetic("train", settings, "--run", tmp_path / "run", *arguments)[0] == 0
    run = RunFolder(tmp_path / "run")
    assert (run.config["data"]["tasks"], run.config["seed"]) == (1, 5)
    assert [row.phase for row in run.metrics] == ["train", "finish"]
    assert {row.width for row in run.capacity} == {10}


def test_the_same_command_goes_on_after_an_interruption(settings, trained, tmp_path, monkeypatch, eidetic):
    real, calls = callbacks.Recorder.__call__, []

    def interrupted(self, event):
        calls.append(event)
        if event.task == 1:
            raise KeyboardInterrupt
        real(self, event)

    command = ["train", settings, "--run", tmp_path / "run"]
    with monkeypatch.context() as patch:
        patch.setattr(callbacks.Recorder, "__call__", interrupted)
        status, out, err = eidetic(*command)
    assert status == 130
    assert "stopped; the same command continues after the last whole epoch" in err
    status, out, err = eidetic(*command)
    assert status == 0
    assert "continuing after task 0" in err and "task 0 (" not in err
    assert left_behind(tmp_path / "run") == left_behind(trained)


def test_a_finished_run_is_only_proved_again(settings, copied, eidetic):
    before = left_behind(copied)
    status, out, err = eidetic("train", settings, "--run", copied)
    assert status == 0 and "2 of 2 tasks" in out and "task 0 (" not in err
    assert left_behind(copied) == before


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (["dmeo"], ["eidetic train: there is no configuration 'dmeo'", "demo"]),
        (["missing.toml"], ["missing.toml cannot be read"]),
        ([None, "--set", "data.tsks=3"], ["the configuration has no key 'data.tsks'", "did you mean 'data.tasks'?"]),
        ([None, "--set", "task.stp=3"], ["has no key 'task.stp'"]),
        ([None, "--set", "task.step=2"], ["task.step must be a number in (0, 1]; got 2"]),
        ([None, "--set", "tasks"], ["key=value"]),
        ([None, "--set", "data.tasks=0"], ["data.tasks must be a whole number, 1 or more"]),
        ([None, "--set", "data.tasks=7", "--set", "data.sequence=split"], ["6 classes, not enough for 7 tasks"]),
        ([None, "--set", "data.source=mnsit"], ["got 'mnsit'", "mnist"]),
        ([None, "--set", "data.folder=/nowhere"], ["there is no folder '/nowhere'"]),
        ([None, "--set", "model.name=perceptron"], ["one of mlp, ", "got 'perceptron'"]),
        ([None, "--set", "model.widht=3"], ["'widht'", "did you mean 'width'?"]),
        ([None, "--set", "optimizer.learning_rate=3"], ["optimizer 'adamw'", "learning_rate"]),
        ([None, "--set", "optimizer.lr=-1.0"], ["optimizer 'adamw'", "-1.0"]),
        ([None, "--set", "device=quantum"], ["device 'quantum' is unknown"]),
        ([None, "--set", "task.max_epochs=2", "--set", "optimizer.lr=1e30"], ["task 0, epoch 1 (train)", "1e+30"]),
    ],
)
def test_train_s_errors(settings, tmp_path, eidetic, arguments, parts):
    arguments = [settings if each is None else each for each in arguments]
    failing(eidetic("train", *arguments, "--run", tmp_path / "run"), "eidetic train: ", *parts)


def test_train_refuses_a_folder_that_is_something_else(settings, copied, tmp_path, eidetic):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("all of it")
    failing(eidetic("train", settings, "--run", tmp_path / "taken"), "is not a run folder")
    outcome = eidetic("train", settings, "--run", copied, "--set", "data.batch_size=32")
    failing(outcome, "another configuration", "data.batch_size: 24 there, 32 given")


def test_tensorboard_writes_into_a_new_run_s_folder(settings, tmp_path, monkeypatch, eidetic):
    class Writer:  # as SummaryWriter, it makes its folder at once
        def __init__(self, folder):
            Path(folder).mkdir(parents=True, exist_ok=True)

        def add_scalar(self, *scalar):
            pass

        def flush(self):
            pass

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    sets = ["--set", "data.tasks=1", "--set", "task.max_epochs=1"]
    assert eidetic("train", settings, "--run", tmp_path / "run", "--tensorboard", *sets)[0] == 0
    assert (tmp_path / "run" / "tensorboard").is_dir()


# ---- report and plot


def test_report_prints_the_table(trained, eidetic):
    status, out, _ = eidetic("report", trained)
    assert status == 0
    assert "at the end" in out and "units kept by task" in out and "body.1" in out


def test_plot_draws_into_the_run_or_elsewhere(copied, tmp_path, eidetic):
    shutil.rmtree(copied / "figures")
    for arguments, folder in (([], copied / "figures"), (["--out", tmp_path / "there"], tmp_path / "there")):
        status, out, _ = eidetic("plot", copied, *arguments)
        assert status == 0
        assert len(out.splitlines()) == FIGURES
        for line in out.splitlines():
            assert line.startswith(str(folder))
            with Image.open(line) as figure:
                assert min(figure.size) > 100


def test_report_prints_every_class_on_demand(trained, eidetic):
    status, out, _ = eidetic("report", trained, "--classes")
    assert status == 0 and out.split()[:6] == ["class", "samples", "task", "given", "routed", "lost"]
    assert len(out.splitlines()) == len(RunFolder(trained).classes) + 4


@pytest.mark.parametrize("command", ["report", "plot", "certify", "predict", "routing"])
def test_a_folder_that_is_no_run_is_refused(command, tmp_path, eidetic):
    failing(eidetic(command, tmp_path), f"eidetic {command}: ", "is not a run folder")


def test_a_run_that_has_learned_nothing_is_refused(settings, tmp_path, eidetic, monkeypatch):
    def interrupted(self, event):
        raise KeyboardInterrupt

    monkeypatch.setattr(callbacks.Recorder, "__call__", interrupted)
    assert eidetic("train", settings, "--run", tmp_path / "run")[0] == 130
    failing(eidetic("report", tmp_path / "run"), "eidetic report: ", "no finished task")
    for command in ("certify", "predict"):
        failing(eidetic(command, tmp_path / "run"), f"eidetic {command}: ", "there is no file")


# ---- predict


@pytest.fixture
def pictures(tmp_path):
    """Image files of task 0's classes in order, in several formats, sizes and modes."""
    pixels, labels = images(CLASSES, seed=9)
    paths = []
    for index, each in enumerate(pixels):
        path = tmp_path / f"class{index}.{('png', 'bmp', 'tiff')[index % 3]}"
        picture = Image.fromarray(each)
        if index == 1:
            picture = picture.convert("RGB")
        if index == 2:
            picture = picture.resize((4 * SIDE, 4 * SIDE), resample=0)
        picture.save(path)
        paths.append(path)
    return paths


def rows_of(out):
    """(image, task, class, confidence) of each line below the header."""
    return [tuple(part.strip() for part in line.rsplit(maxsplit=3)) for line in out.splitlines()[1:]]


def test_predict_classifies_image_files(trained, pictures, eidetic):
    status, out, _ = eidetic("predict", trained, *pictures)
    assert status == 0
    assert out.splitlines()[0].split() == ["image", "task", "class", "confidence"]
    rows = rows_of(out)
    assert len(rows) == CLASSES
    assert sum(int(row[1]) == 0 for row in rows) >= 4, "task 0 has the pixels in order"
    assert sum(int(row[2]) == index for index, row in enumerate(rows)) >= 4
    assert all(row[3].endswith("%") for row in rows)


def test_predict_can_ask_one_task(trained, pictures, eidetic):
    for task in (0, 1):
        status, out, _ = eidetic("predict", trained, *pictures, "--task", task)
        assert status == 0
        assert {row[1] for row in rows_of(out)} == {str(task)}


def test_predict_says_what_the_network_says(trained, pictures, eidetic):
    run = RunFolder(trained)
    batch = torch.stack([run.inputs.read_image(path) for path in pictures])
    answer = load_network(run).predict(batch)
    confidence = answer.logits.softmax(1).max(1).values
    rows = rows_of(eidetic("predict", trained, *pictures)[1])
    assert [(int(row[1]), int(row[2])) for row in rows] == list(zip(answer.task.tolist(), answer.label.tolist()))
    assert [row[3] for row in rows] == [f"{each:.1%}" for each in confidence.tolist()]


def test_predict_s_columns_stand_in_line_for_long_names(trained, pictures, tmp_path, eidetic):
    long = tmp_path / ("x" * 60 + ".png")
    shutil.copy(pictures[0], long)
    _, out, _ = eidetic("predict", trained, long, pictures[0])
    assert len({len(line) for line in out.splitlines()}) == 1


def test_predict_without_images_takes_some_of_every_test_set(trained, eidetic):
    status, out, _ = eidetic("predict", trained)
    assert status == 0
    rows = rows_of(out)
    assert len(rows) == 6
    assert [row[0].split(",")[0] for row in rows] == ["task 0"] * 3 + ["task 1"] * 3


def test_predict_names_the_data_set_s_own_labels(settings, tmp_path, eidetic):
    sets = ["--set", "data.sequence=split", "--set", "router.train=false"]
    assert eidetic("train", settings, "--run", tmp_path / "run", *sets)[0] == 0
    status, out, _ = eidetic("predict", tmp_path / "run", "--task", 1)
    assert status == 0
    assert {int(row[2]) for row in rows_of(out)} <= {3, 4, 5}
    failing(eidetic("predict", tmp_path / "run"), "the router knows 0 of 2 finished tasks")


def test_predict_s_errors(trained, pictures, tmp_path, eidetic):
    (tmp_path / "text.png").write_text("no image")
    failing(eidetic("predict", trained, tmp_path / "none.png"), "none.png cannot be read as an image")
    failing(eidetic("predict", trained, pictures[0], tmp_path / "text.png"), "text.png cannot be read as an image")
    failing(eidetic("predict", trained, "--task", 2), "task 2 is unknown: finished tasks are 0..1")
    failing(eidetic("predict", trained, "--task", -1), "task -1 is unknown")


# ---- certify


def test_certify_proves_what_is_unchanged(trained, eidetic):
    status, out, _ = eidetic("certify", trained)
    assert status == 0
    assert "2 finished tasks: nothing was forgotten." in out
    assert "2 of 2 tasks: the test logits' SHA-256 equals the one taken when the task was learned." in out
    status, out, _ = eidetic("certify", trained, "--no-data")
    assert status == 0 and "test logits" not in out


FROZEN = [
    ("body.1", "frozen_weight", 0, "task 0: body.1"),
    ("body.1", "frozen_weight", -1, "task 1: body.1"),
    ("body.2.norm", "frozen_scale", 0, "task 0: body.2.norm"),
    ("body.1.norm", "frozen_shift", -1, "task 1: body.1.norm"),
    ("heads.0", "frozen_weight", 3, "task 0: heads.0"),
    ("heads.1", "frozen_bias", 0, "task 1: heads.1"),
]


@pytest.mark.parametrize("layer, name, index, expected", FROZEN)
@pytest.mark.parametrize("bit", [0, 30])
def test_certify_finds_one_flipped_bit_of_a_file_that_is_consistent_in_itself(
    copied, eidetic, layer, name, index, expected, bit
):
    network = load_network(RunFolder(copied))
    getattr(network.get_submodule(layer), name).view(torch.int32).flatten()[index] ^= 1 << bit
    network.save(copied / "network.safetensors")
    EideticNetwork.load(copied / "network.safetensors", network=fresh(copied))
    for arguments in ([], ["--no-data"]):
        status, _, err = eidetic("certify", copied, *arguments)
        assert status == 1
        assert "NOT what they were" in err and expected in err and "Traceback" not in err


def fresh(path):
    from eidetic_training import models

    run = RunFolder(path)
    return models.build("mlp", run.inputs.shape, width=WIDTH)


def test_certify_finds_test_logits_that_are_not_the_recorded_ones(copied, eidetic):
    run = RunFolder(copied)
    text = (copied / "digests.json").read_text()
    (copied / "digests.json").write_text(text.replace(run.digests[1], "0" * 64))
    status, _, err = eidetic("certify", copied)
    assert status == 1
    assert "the test logits of task 1 are not those taken when it was learned" in err
    assert eidetic("certify", copied, "--no-data")[0] == 0


@pytest.mark.parametrize("place", [-1, -1000, 12, 0])
def test_a_file_with_a_flipped_byte_is_damaged(copied, eidetic, place):
    content = bytearray((copied / "network.safetensors").read_bytes())
    content[place] ^= 0x10
    (copied / "network.safetensors").write_bytes(content)
    failing(eidetic("certify", copied), "eidetic certify: ", "damaged")


def test_a_network_that_is_not_there_is_told(copied, eidetic):
    (copied / "network.safetensors").unlink()
    failing(eidetic("certify", copied), "there is no file")


# ---- the command line itself


@pytest.mark.parametrize("arguments", [[], ["learn"], ["train"], ["predict", "run", "--task", "first"], ["certify"]])
def test_a_wrong_command_line_shows_the_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: eidetic" in capsys.readouterr().err


def test_the_help_of_plot_names_every_figure(capsys):
    words = {
        "accuracy_over_time": "accuracy over time",
        "units_over_time": "units over time",
        "capacity": "capacity by layer",
        "accuracy_matrix": "the matrix of accuracies",
        "class_accuracy": "accuracy by class",
        "staircase": "the staircase of a hidden layer",
    }
    with pytest.raises(SystemExit):
        main(["plot", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert words.keys() == plots.FIGURES.keys() and all(each in said for each in words.values()), said


def test_help_and_version(capsys):
    for arguments in (["--help"], ["train", "--help"], ["--version"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
    assert cli.__version__ in capsys.readouterr().out


# ---- compare


COMPARE = ("--method", "single", "sequential", "joint", "--set", "compare.epochs=2")


def test_compare_prints_and_writes_a_table_a_figure_and_matrices(settings, tmp_path, eidetic):
    folder = tmp_path / "compared"
    status, out, _ = eidetic("compare", settings, "--run", folder, *COMPARE)
    assert status == 0
    names = {"comparison.json", "comparison.png", "table.md", ".lock"} | {f"{n}-seed0.csv" for n in COMPARE[1:4]}
    assert {path.name for path in folder.iterdir()} == names
    table = (folder / "table.md").read_text()
    assert table in out and {line.split()[1] for line in table.splitlines()[2:]} == set(COMPARE[1:4])
    assert f"Everything is in {folder}." in out
    with Image.open(folder / "comparison.png") as figure:
        assert min(figure.size) > 100
    status, out, _ = eidetic("compare", settings, "--run", folder, *COMPARE)
    assert status == 0 and "mean accuracy" not in out, "nothing is run again"
    assert (folder / "table.md").read_text() == table


def test_compare_s_errors(settings, tmp_path, eidetic):
    folder = tmp_path / "compared"
    failing(
        eidetic("compare", settings, "--run", folder, "--method", "ewk"),
        "eidetic compare: a method must be one of eidetic,",
    )
    outcome = eidetic("compare", settings, "--run", folder, "--method", "hat", "--set", "methods.hat.sparsty=1")
    failing(outcome, "method hat: ", "sparsty")
    assert eidetic("compare", settings, "--run", folder, *COMPARE[:2], *COMPARE[4:])[0] == 0
    outcome = eidetic("compare", settings, "--run", folder, "--method", "single", "--set", "compare.epochs=3")
    failing(outcome, "was made under other conditions")


# ---- sweep


def test_sweep_prints_the_trials_and_writes_what_train_takes(settings, tmp_path, eidetic):
    pytest.importorskip("optuna", reason="the extra 'sweep' is not installed")
    sets = [
        "sweep.trials=2",
        "sweep.tasks=1",
        "sweep.space.task.step=[0.2, 0.3, 0.4]",
        "task.max_epochs=1",
        "task.polish_epochs=0",
        "router.train=false",
    ]
    arguments = [part for each in sets for part in ("--set", each)]

    folder = tmp_path / "swept"
    status, out, err = eidetic("sweep", settings, "--run", folder, *arguments)
    assert status == 0, err
    assert "1 of 2 trials: " in out and (folder / "table.md").read_text() in out
    assert f"eidetic train {folder / 'best.toml'}" in out

    status, out, _ = eidetic("train", folder / "best.toml", "--run", tmp_path / "run")
    assert status == 0 and "2 of 2 tasks" in out

    failing(eidetic("sweep", settings, "--run", folder), "eidetic sweep: ", "has no sweep.space")
    failing(
        eidetic("sweep", settings, "--run", folder, *arguments, "--workers", "0"),
        "workers must be a whole number, 1 or more",
    )


# ---- run folders that somebody has edited


@pytest.mark.parametrize("labels", [[], [[]], [[0, 1, 2, 3, 4, 5], [0, 1]]])
def test_labels_that_were_cut_short_are_named(copied, eidetic, labels):
    path = copied / "inputs.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "labels": labels}))
    for command in (["predict", copied], ["report", copied, "--classes"]):
        failing(eidetic(*command), f"eidetic {command[0]}: inputs.json has no label of class", "Restore")


def test_a_row_that_stands_twice_is_named(settings, copied, eidetic):
    path = copied / "classes.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[1]]))
    failing(eidetic("report", copied, "--classes"), f"{path}, line {len(lines) + 1} is damaged", "line 2 has the same")
    status, out, err = eidetic("train", settings, "--run", copied)
    assert status == 0 and "2 of 2 tasks" in out and f"{path}, line {len(lines) + 1} is damaged" in out + err


# ---- reproduce


def test_reproduce_runs_one_row(settings, tmp_path, eidetic):
    data = settings.parent / "images"
    sets = [
        "data.source=parquet",
        f"data.folder={data}",
        "data.tasks=2",
        "data.batch_size=24",
        f"model.width={WIDTH}",
        "task.max_epochs=2",
        "task.max_recovery_epochs=1",
        "router.max_epochs=1",
    ]
    arguments = [part for each in sets for part in ("--set", each)]

    folder = tmp_path / "table"
    status, out, _ = eidetic("reproduce", "table3-digits", "--run", folder, "--row", "ours (the demo)", *arguments)
    assert status == 0
    assert "# table3-digits" in out and "| ours (the demo) | 1 |" in out and "| paper |" not in out
    assert {path.name for path in folder.iterdir()} == {"ours__the_demo_-seed0", "table3-digits.md"}

    failing(eidetic("reproduce", "figure3", "--row", "l9"), "eidetic reproduce: a row of figure3 must be one of")
    failing(
        eidetic("reproduce", "table3", "--row", "l9", "--run", folder),
        "eidetic reproduce: a row of table3 must be one of",
    )
    failing(eidetic("reproduce", "table3", "--seeds", "0", "--run", folder), "seeds must be a whole number, 1 or more")
    with pytest.raises(SystemExit):
        main(["reproduce", "table9"])


# ---- routing


def test_routing_prints_every_rule_beside_the_oracle(trained, eidetic):
    status, out, _ = eidetic("routing", trained)
    assert status == 0
    for word in ("oracle", "learned", "joint", "entropy", "energy", "max_logit", "of task 1", "when answering"):
        assert word in out
    recorded = RunFolder(trained).router
    (learned,) = [line.split() for line in out.splitlines() if line.startswith("learned")][:1]
    assert float(learned[2].strip("%")) == pytest.approx(100 * sum(recorded.routed) / 2, abs=0.06)

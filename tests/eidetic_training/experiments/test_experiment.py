"""Whole runs: what they leave behind agrees with itself, and interrupted ones end with the same bits."""

import json
import math
import random
import shutil
import time
import types

import pytest
import torch
from slow import slow
from tiny_runs import CLASSES, SIDE, WIDTH, Stop, left_behind, make_config, run

from eidetic_kernels import EideticNetwork
from eidetic_kernels.errors import ForgettingError, InputError
from eidetic_training import models
from eidetic_training.experiments import experiment
from eidetic_training.experiments.experiment import make_tasks, run_experiment
from eidetic_training.experiments.proof import EVALUATION_BATCH, verify
from eidetic_training.experiments.tasks import planned as length_of
from eidetic_training.runs import PHASES, RunFolder, answers, report
from eidetic_training.training.epoch import evaluate


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """(configuration, run folder) of three tasks and the router; not to be changed."""
    torch.set_num_threads(1)
    config = make_config(data, model={"dropout": 0.1})  # which draws random numbers all the time
    return config, run(config, tmp_path_factory.mktemp("runs") / "finished")


def load(path, config, shape=(1, SIDE, SIDE)):
    arguments = {key: value for key, value in config["model"].items() if key != "name"}
    return EideticNetwork.load(path, network=models.build(config["model"]["name"], shape, **arguments))


def units_kept(folder, task):
    return [row.units for row in folder.capacity if row.task == task]


# ---- what a run leaves behind


def test_everything_is_there(finished):
    _, folder = finished
    names = {str(path.relative_to(folder.path)) for path in folder.path.rglob("*") if path.is_file()}
    tables = {"metrics.csv", "tests.csv", "classes.csv", "capacity.csv"}
    records = {"config.json", "inputs.json", "digests.json", "router.json", "network.safetensors"}
    by_task = {f"{kind}/task_0{t}.safetensors" for kind in ("checkpoints", "answers") for t in range(3)}
    assert names == tables | records | by_task | {".lock"}


def test_the_folder_knows_its_configuration(finished):
    config, folder = finished
    assert folder.config == config


def test_it_learned(finished):
    _, folder = finished
    assert all(row.accuracy > 0.7 for row in folder.tests)
    assert folder.router.accuracy > 1 / 3


def test_metrics_tell_the_story_of_every_task(finished):
    _, folder = finished
    rows = folder.metrics
    assert {row.phase for row in rows} <= set(PHASES)
    assert [row.seconds for row in rows] == sorted(row.seconds for row in rows)
    frozen = 0
    for t in range(3):
        mine = [row for row in rows if row.task == t and row.phase != "router"]
        assert mine[0].phase == "train" and mine[-1].phase == "finish"
        assert mine[0].live_units == 2 * WIDTH - frozen
        assert all(row.frozen_units == frozen for row in mine[:-1])
        frozen += sum(units_kept(folder, t))
        assert (mine[-1].live_units, mine[-1].frozen_units) == (0, frozen)
    assert {row.phase for row in rows if row.task == 3} == {"router"}


def test_the_test_matrix_is_complete_and_forgetting_is_exactly_zero(finished):
    _, folder = finished
    assert [(row.learned, row.task) for row in folder.tests] == [(t, k) for t in range(3) for k in range(t + 1)]
    for t in range(3):
        assert len({row.accuracy for row in folder.tests if row.task == t}) == 1
    assert report.summary(folder).forgetting == 0


def test_capacity_is_what_the_network_says(finished):
    config, folder = finished
    network = load(folder.network_path, config)
    for row in network.capacity().rows:
        assert [entry.units for entry in folder.capacity if entry.layer == row.name] == list(row.frozen)
    assert all(4 <= entry.units < WIDTH == entry.width for entry in folder.capacity)


def test_the_latest_network_certifies_and_gives_the_recorded_digests(finished):
    config, folder = finished
    network = load(folder.network_path, config)
    assert network.certify().ok
    assert network.router.tasks == 3
    assert sorted(folder.digests) == [0, 1, 2]
    assert verify(folder, network, make_tasks(config["data"], config["seed"])) == []


def test_every_checkpoint_is_the_network_after_its_task(finished):
    config, folder = finished
    tasks = make_tasks(config["data"], config["seed"])
    for t in range(3):
        network = load(folder.checkpoint_path(t), config)
        assert network.finished_tasks == t + 1 and network.router is None
        assert network.certify().ok
        loader = tasks[t].test_loader(EVALUATION_BATCH)
        assert evaluate(network, loader, t).digest == folder.digests[t]


def test_the_router_s_scores_agree_with_the_matrix(finished):
    config, folder = finished
    assert folder.router.oracle == [row.accuracy for row in folder.tests if row.learned == 2]
    network, tasks = load(folder.network_path, config), make_tasks(config["data"], config["seed"])
    right = named = samples = 0
    for t, task in enumerate(tasks):
        (x, y), *_ = task.test_loader(500)
        guess = network.predict(x)
        hits = (guess.task == t) & (guess.label == y)
        assert folder.router.routed[t] == hits.sum().item() / len(y)
        named, samples, right = named + (guess.task == t).sum().item(), samples + len(y), right + hits.sum().item()
    assert folder.router.accuracy == named / samples


def test_accuracy_by_class_is_counted_with_the_task_given_and_routed(finished):
    config, folder = finished
    network = EideticNetwork.load(folder.network_path)
    rows = []
    for t, task in enumerate(make_tasks(config["data"], config["seed"])):
        (x, y), *_ = task.test_loader(1000)
        guess = network.predict(x)
        with torch.no_grad():
            given = network.eval()(x, task=t).argmax(1)
        for label in range(task.num_classes):
            own = y == label
            right = (given == label, (guess.label == label) & (guess.task == t))
            rows.append((t, label, int(own.sum()), *(float(each[own].double().mean()) for each in right)))
    assert [tuple(row) for row in folder.classes] == rows
    assert len({row.given for row in folder.classes} | {row.routed for row in folder.classes}) > 2


def test_tasks_take_multiples_of_units_where_asked(data, tmp_path):
    folder = run(make_config(data, capacity={"multiple": 5}, router={"train": False}), tmp_path / "aligned")
    assert all(row.units and row.units % 5 == 0 for row in folder.capacity)
    ragged = run(make_config(data, router={"train": False}), tmp_path / "ragged")
    assert any(row.units % 5 for row in ragged.capacity), "the test would pass without alignment"


def test_the_inputs_are_the_data_set_s(finished):
    _, folder = finished
    assert folder.inputs.shape == (1, SIDE, SIDE)
    assert folder.inputs.labels == (tuple(range(CLASSES)),) * 3


def test_lines_for_people(data, tmp_path, capsys):
    said = []
    run_experiment(make_config(data, data={"tasks": 2}), tmp_path / "run", say=said.append)
    assert said == ["2 of 2 tasks: the test logits' SHA-256 equals the one taken when the task was learned."]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    for t, line in enumerate(lines):
        assert line.startswith(f"task {t} (parquet permutation {t}): test accuracy ")


# ---- interrupted, and gone on with


@pytest.mark.parametrize("draw", [0, *slow(*range(1, 6))])
def test_a_killed_run_resumes_to_the_same_bits(finished, tmp_path, draw):
    """Interrupted at a random event: in training, pruning, recovery, finishing or the router's epochs."""
    config, undisturbed = finished
    event = random.Random(draw).randint(1, len(undisturbed.metrics))
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "run", Stop(event))
    torch.rand(draw + 1)  # another process's random numbers stand somewhere else
    run(config, tmp_path / "run")
    assert left_behind(tmp_path / "run") == left_behind(undisturbed.path)


@pytest.mark.parametrize("phase", ["prune", *slow("train", "recover", "restore", "finish", "router")])
def test_a_run_killed_in_any_phase_resumes_to_the_same_bits(finished, tmp_path, phase):
    config, undisturbed = finished
    rows = [i for i, row in enumerate(undisturbed.metrics, 1) if row.phase == phase]
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "run", Stop(rows[len(rows) // 2]))
    run(config, tmp_path / "run")
    assert left_behind(tmp_path / "run") == left_behind(undisturbed.path)


@pytest.mark.slow
def test_a_run_killed_again_and_again_resumes_to_the_same_bits(finished, tmp_path):
    config, undisturbed = finished
    each = max(sum(row.task == t for row in undisturbed.metrics) for t in range(3)) + 1
    kills = 0
    while True:
        try:
            run(config, tmp_path / "run", Stop(each))
            break
        except KeyboardInterrupt:
            kills += 1
            assert kills < 5
    assert kills >= 2
    assert left_behind(tmp_path / "run") == left_behind(undisturbed.path)


@pytest.mark.parametrize("what", ["evaluate", "save"])
@pytest.mark.parametrize("call", [2, *slow(1, 3, 4, 5)])
def test_a_run_killed_between_training_and_recording_resumes_to_the_same_bits(
    finished, tmp_path, monkeypatch, what, call
):
    """Before any of the evaluations, and before any write of a network, of the three tasks."""
    config, undisturbed = finished
    owner = answers if what == "evaluate" else EideticNetwork
    real, calls = getattr(owner, what), []

    def killed(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, what, killed)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "run")
    run(config, tmp_path / "run")
    assert left_behind(tmp_path / "run") == left_behind(undisturbed.path)


def test_a_run_killed_before_its_last_write_ends_with_the_whole_network(data, tmp_path, monkeypatch):
    """No router follows that would write the network again."""
    config = make_config(data, router={"train": False})
    real = EideticNetwork.save

    def killed(network, path):
        if path.name == "network.safetensors" and network.finished_tasks == 3:
            raise KeyboardInterrupt
        real(network, path)

    with monkeypatch.context() as patch:
        patch.setattr(EideticNetwork, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "run")
    assert load(run(config, tmp_path / "run").network_path, config).finished_tasks == 3


@pytest.mark.parametrize("what", ["save", "record_router"])
def test_a_run_killed_as_the_router_is_kept_resumes_to_the_same_bits(finished, tmp_path, monkeypatch, what):
    config, undisturbed = finished
    owner = EideticNetwork if what == "save" else RunFolder
    real = getattr(owner, what)

    def killed(self, *arguments):
        if what == "record_router" or self.router is not None:
            raise KeyboardInterrupt
        real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, what, killed)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "run")
    run(config, tmp_path / "run")
    assert left_behind(tmp_path / "run") == left_behind(undisturbed.path)


def test_two_runs_of_one_configuration_give_the_same_bits_another_seed_others(finished, tmp_path):
    config, undisturbed = finished
    run(config, tmp_path / "same")
    assert left_behind(tmp_path / "same") == left_behind(undisturbed.path)
    run({**config, "seed": 1}, tmp_path / "other")
    assert left_behind(tmp_path / "other")["digests"] != undisturbed.digests


def test_going_on_says_where_and_trains_only_what_is_left(finished, tmp_path, capsys):
    config, undisturbed = finished
    second = 1 + next(i for i, row in enumerate(undisturbed.metrics) if row.task == 1)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "run", Stop(second))
    capsys.readouterr()
    events = []
    run(config, tmp_path / "run", events.append)
    assert {event.task for event in events} == {1, 2, 3}
    assert "continuing after task 0" in capsys.readouterr().err


def test_a_complete_run_is_proved_again_and_not_changed(finished, tmp_path):
    config, folder = finished
    before, written = left_behind(folder.path), folder.network_path.stat().st_mtime_ns
    said, events = [], []
    run_experiment(config, folder.path, (events.append,), said.append)
    assert events == [] and len(said) == 1
    assert left_behind(folder.path) == before
    assert folder.network_path.stat().st_mtime_ns == written


def test_a_run_from_before_an_option_that_is_off_goes_on(finished, tmp_path):
    config, undisturbed = finished
    folder = copy_run(undisturbed, tmp_path / "run")
    kept = json.loads((folder.path / "config.json").read_text())
    for option in ("convolutions", "augment", "alone"):
        del kept["config"]["router"][option]
    (folder.path / "config.json").write_text(json.dumps(kept))
    assert run(config, folder.path).router == undisturbed.router
    with pytest.raises(InputError, match="router.convolutions: .* there, .* given"):
        run({**config, "router": {**config["router"], "convolutions": [4]}}, folder.path)


def test_a_router_with_convolutions_is_kept_and_gives_the_same_answers(data, tmp_path):
    config = make_config(data, router={"convolutions": [4, 8], "augment": True, "max_epochs": 1, "polish_epochs": 2})
    folder = run(config, tmp_path / "run")
    network = load(folder.network_path, config)
    assert network.router.convolutions.channels[1:] == (4, 8)
    for t, task in enumerate(make_tasks(config["data"], config["seed"])):
        ((x, y),) = task.test_loader(48)
        answer = network.predict(x)
        assert folder.router.routed[t] == ((answer.task == t) & (answer.label == y)).double().mean().item()


def test_another_configuration_is_refused_and_the_folder_kept(finished):
    config, folder = finished
    before = left_behind(folder.path)
    with pytest.raises(InputError, match="task.step: 0.2 there, 0.3 given"):
        run({**config, "task": {**config["task"], "step": 0.3}}, folder.path)
    assert left_behind(folder.path) == before


# ---- what was tampered with


def flip(path, config, layer, name):
    """Flip one bit of a frozen tensor and write the file anew, so that it is consistent in itself."""
    network = load(path, config)
    getattr(network.get_submodule(layer), name).view(torch.int32).flatten()[0] ^= 1 << 22
    network.save(path)


def copy_run(folder, target):
    shutil.copytree(folder.path, target)
    return RunFolder(target)


def test_a_changed_network_is_found_when_the_run_is_proved(finished, tmp_path):
    config, undisturbed = finished
    folder = copy_run(undisturbed, tmp_path / "run")
    flip(folder.network_path, config, "heads.1", "frozen_bias")
    with pytest.raises(ForgettingError, match="the test logits of task 1 are not those taken when it was learned"):
        run(config, folder.path)


def test_a_changed_checkpoint_is_found_before_anything_is_built_on_it(finished, tmp_path):
    config, undisturbed = finished
    folder = copy_run(undisturbed, tmp_path / "run")
    folder.truncate_after(1)
    folder.network_path.unlink()
    flip(folder.checkpoint_path(1), config, "body.1.norm", "frozen_shift")
    with pytest.raises(ForgettingError, match="task 0: body.1.norm: its frozen tensors are not the ones"):
        run(config, folder.path, Stop(1))


def test_forgetting_is_told_when_it_happens(data, tmp_path, monkeypatch):
    """A task that is trained by something that writes into frozen tensors."""
    real = experiment.train_task

    def vandal(network, *args, **kwargs):
        result = real(network, *args, **kwargs)
        if network.finished_tasks == 2:
            network.heads[0].frozen_bias += 1
        return result

    monkeypatch.setattr(experiment, "train_task", vandal)
    with pytest.raises(ForgettingError, match="after learning task 1, the test logits of task 0 are not those taken"):
        run(make_config(data), tmp_path / "run")


# ---- capacity


def test_an_even_share_caps_every_task(data, tmp_path):
    config = make_config(data, capacity={"share": "even"}, task={"search": "none"}, router={"train": False})
    folder = run(config, tmp_path / "run")
    assert [units_kept(folder, t) for t in range(3)] == [[14, 14], [13, 13], [13, 13]]
    assert folder.router is None


def test_an_even_share_counts_what_is_free(data, tmp_path):
    """A task that kept less leaves more to those after it."""
    folder = run(make_config(data, capacity={"share": "even"}, router={"train": False}), tmp_path / "run")
    free = [WIDTH, WIDTH]
    for t in range(3):
        first = next(row for row in folder.metrics if row.task == t)
        assert first.live_units == sum(math.ceil(each / (3 - t)) for each in free)
        free = [each - kept for each, kept in zip(free, units_kept(folder, t))]


@pytest.mark.slow
def test_layers_are_widened_after_every_task_but_the_last(data, tmp_path):
    config = make_config(data, capacity={"widen": 0.25})
    widened = run(config, tmp_path / "run")
    widths = [[group.segments.width for group in load(widened.checkpoint_path(t), config).groups] for t in range(3)]
    assert widths == [[WIDTH] * 2, [50] * 2, [62] * 2], "a quarter of 40, and of 50"
    assert [row.width for row in report.summary(widened).layers] == [62] * 2
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "killed", Stop(sum(row.task < 1 for row in widened.metrics) + 4))
    run(config, tmp_path / "killed")
    assert left_behind(tmp_path / "killed") == left_behind(widened.path), "killed inside the second task"


def test_layers_are_widened_by_a_number_of_units(data, tmp_path):
    config = make_config(data, data={"tasks": 2}, capacity={"widen": 7, "share": "even"}, router={"train": False})
    folder = run(config, tmp_path / "run")
    assert [group.segments.width for group in load(folder.network_path, config).groups] == [WIDTH + 7] * 2


def test_the_first_tasks_alone_are_learned_as_in_the_whole_sequence(data, tmp_path):
    """An even share leaves room for the tasks that are not learned, and none of those learned is the last."""
    config = make_config(data, capacity={"share": "even", "prune_last": False}, router={"train": False})
    whole = run(config, tmp_path / "whole")
    first = run({**config, "data": {**config["data"], "learn_first": 2}}, tmp_path / "first")
    assert first.capacity == [row for row in whole.capacity if row.task < 2]
    assert first.tests == [row for row in whole.tests if row.learned < 2]
    assert first.digests == {task: digest for task, digest in whole.digests.items() if task < 2}


@pytest.mark.parametrize("sequence, source, planned", [("several", ["a", "b"], 2), ("split", "a", 7)])
def test_the_length_of_a_sequence(sequence, source, planned):
    assert length_of({"sequence": sequence, "source": source, "tasks": 7}) == planned


def test_what_is_held_out_is_tested_on_in_the_test_set_s_place(data, tmp_path):
    config = make_config(data, data={"held_out": 0.25, "tasks": 1}, router={"train": False})
    folder = run(config, tmp_path / "run")
    (task,), (whole,) = (make_tasks({**config["data"], "held_out": share}, 0) for share in (0.25, None))
    assert (len(task.train), len(task.test), len(whole.train)) == (72, 24, 96)
    network = load(folder.network_path, config)
    ((x, y),) = task.test_loader(500)
    right = (network.eval()(x, task=0).argmax(1) == y).double().mean()
    assert folder.tests[0].accuracy == pytest.approx(float(right))


def test_progress_of_one_s_own_is_told_of_events_and_tasks(data, tmp_path):
    told = []

    class Told:
        def __call__(self, event):
            told.append(event.phase)

        def task_done(self, line):
            told.append(line.split(" (")[0])

        def close(self):
            told.append("closed")

    config = make_config(data, data={"tasks": 1}, task={"search": "none", "max_epochs": 1, "polish_epochs": 0})
    run_experiment(config, tmp_path / "run", say=lambda line: None, progress=Told())
    assert told == ["train", "finish", "task 0", "closed"]


def test_a_share_of_the_width_caps_every_task(data, tmp_path):
    config = make_config(data, capacity={"share": 0.2}, task={"search": "none"}, router={"train": False})
    folder = run(config, tmp_path / "run")
    assert [units_kept(folder, t) for t in range(3)] == [[8, 8]] * 3


def test_every_task_may_have_a_share_of_its_own(data, tmp_path):
    config = make_config(data, capacity={"share": [0.5, 0.2, 0.1]}, task={"search": "none"}, router={"train": False})
    folder = run(config, tmp_path / "run")
    assert [units_kept(folder, t) for t in range(3)] == [[20, 20], [8, 8], [4, 4]]

    config["capacity"]["share"] = [0.5, 0.2]
    with pytest.raises(InputError, match="capacity.share must have a fraction for each of 3 tasks; got 2."):
        run(config, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_last_task_that_is_not_pruned_takes_all_that_is_free(data, tmp_path):
    folder = run(make_config(data, capacity={"prune_last": False}, router={"train": False}), tmp_path / "run")
    kept = [units_kept(folder, t) for t in range(3)]
    assert kept[2] == [WIDTH - kept[0][i] - kept[1][i] for i in range(2)]
    phases = [{row.phase for row in folder.metrics if row.task == t} for t in range(3)]
    assert "prune" in phases[0] and "prune" in phases[1]
    assert phases[2] == {"train", "polish", "finish"}


def test_without_forward_transfer_every_task_reads_its_own_units(data, tmp_path):
    config = make_config(data, capacity={"forward_transfer": False}, router={"train": False})
    network = load(run(config, tmp_path / "run").network_path, config)
    second = list(network.groups[1].producers.values())[0]
    mask, first = second.mask(), network.groups[0].segments
    for t in range(1, 3):
        rows = mask[network.groups[1].segments.start(t) : network.groups[1].segments.stop(t)]
        assert not rows[:, : first.start(t)].any() and rows[:, first.start(t) : first.stop(t)].all()


# ---- sequences


def test_classes_split_into_tasks(data, tmp_path):
    folder = run(make_config(data, data={"sequence": "split"}), tmp_path / "run")
    assert folder.inputs.labels == ((0, 1), (2, 3), (4, 5))
    assert len(folder.digests) == 3 and report.summary(folder).forgetting == 0
    network = load(folder.network_path, folder.config)
    assert network.num_classes == [2, 2, 2]


def test_several_data_sets_one_after_another(data, tmp_path):
    config = make_config(data, data={"sequence": "several", "source": ["parquet", "parquet"]})
    folder = run(config, tmp_path / "run")
    assert len(folder.digests) == 2 and report.summary(folder).forgetting == 0


def test_several_brought_to_one_size(data):
    tables = {"sequence": "several", "source": ["parquet", "parquet"], "resolution": 8}
    config = make_config(data, data=tables)
    assert [tuple(task.train.shape) for task in make_tasks(config["data"], 0)] == [(3, 8, 8)] * 2


def test_several_needs_a_list(data, tmp_path):
    with pytest.raises(InputError, match="data.source must be a list of data sets for \"several\"; got 'parquet'"):
        run(make_config(data, data={"sequence": "several"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_single_task_needs_no_router(data, tmp_path):
    folder = run(make_config(data, data={"tasks": 1}), tmp_path / "run")
    assert folder.router is None
    assert not any(row.phase == "router" for row in folder.metrics)


def test_other_models_and_optimizers(data, tmp_path):
    config = make_config(
        data,
        data={"tasks": 2, "resolution": 8},
        model={"name": "convnet", "width": 4, "num_layers": 1},
        optimizer={"name": "sgd", "lr": 0.05, "momentum": 0.9},
    )
    folder = run(config, tmp_path / "run")
    assert report.summary(folder).forgetting == 0
    assert load(folder.network_path, config, (1, 8, 8)).certify().ok


def test_data_that_is_not_there_leaves_no_folder(tmp_path):
    with pytest.raises(InputError, match="there is no folder"):
        run(make_config(tmp_path / "nothing"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "tables",
    [
        {"model": {"widht": 3}},
        {"model": {"name": "perceptron"}},
        {"model": {"width": "big"}},
        {"optimizer": {"learning_rate": 1.0}},
        {"device": "quantum"},
        {"router": {"convolutions": [4, 4, 4]}},  # images of 6 x 6 are too small
    ],
)
def test_a_refused_configuration_leaves_no_folder_in_the_corrected_one_s_way(data, tmp_path, tables):
    with pytest.raises(InputError):
        run(make_config(data, **tables), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="it is there")
def test_a_device_that_is_not_there_is_told(data, tmp_path):
    with pytest.raises(InputError, match="device 'cuda' .*cannot be used here"):
        run(make_config(data, device="cuda"), tmp_path / "run")


@pytest.mark.slow
def test_the_clock_does_not_stand_still_between_tasks(data, tmp_path, monkeypatch):
    real = answers.evaluate
    monkeypatch.setattr(answers, "evaluate", lambda *a, **k: time.sleep(0.3) or real(*a, **k))
    rows = run(make_config(data, data={"tasks": 2}, router={"train": False}), tmp_path / "run").metrics
    second = next(i for i, row in enumerate(rows) if row.task == 1)
    assert rows[second].seconds - rows[second - 1].seconds >= 0.3


@pytest.mark.parametrize("sequence", ["split", "several", "permuted"])
def test_augmentation_is_the_data_set_s_usual_one_unless_it_is_switched_off(data, monkeypatch, sequence):
    from eidetic_training.data import Augmentation, sources

    usual = Augmentation(crop_padding=1)
    monkeypatch.setitem(sources._KNOWN, "parquet", types.SimpleNamespace(augment=usual))
    given = {"sequence": sequence, "source": ["parquet"] if sequence == "several" else "parquet"}
    for switch in (True, False):
        config = make_config(data, data={**given, "augment": switch})
        found = {task.augment for task in make_tasks(config["data"], 0)}
        assert found == {usual if switch and sequence != "permuted" else None}
    assert make_config(data)["data"]["augment"] is True

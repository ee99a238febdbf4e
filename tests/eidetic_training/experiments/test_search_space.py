"""What may be searched, and what a sweep's settings may be."""

import pytest

from eidetic_kernels.errors import InputError
from eidetic_training.experiments.search_space import Choice, Range, SweepSettings


class Drawn:
    """Stands for an Optuna trial: tells what it was asked."""

    def suggest_categorical(self, *asked):
        return ("choice", *asked)

    def suggest_int(self, *asked, **options):
        return ("int", *asked, options)

    def suggest_float(self, *asked, **options):
        return ("float", *asked, options)


def test_ranges_and_lists_by_dotted_key_quoted_or_nested():
    space = {
        "optimizer.lr": {"low": 1e-4, "high": 1, "log": True},
        "task": {"importance": ["l1", "l2"], "patience": {"low": 1, "high": 3}, "step": [0.1, 0.2]},
        "data.batch_size": [32, 64],
        "model.dropout": {"low": 0.0, "high": 0.5, "step": 0.1},
    }

    values = SweepSettings(space=space).values()
    assert values == {
        "optimizer.lr": Range(1e-4, 1, True),
        "task.importance": Choice(("l1", "l2")),
        "task.patience": Range(1, 3),
        "task.step": Choice((0.1, 0.2)),
        "data.batch_size": Choice((32, 64)),
        "model.dropout": Range(0.0, 0.5, step=0.1),
    }

    assert [each.suggest(Drawn(), key) for key, each in values.items()] == [
        ("float", "optimizer.lr", 1e-4, 1, {"log": True}),
        ("choice", "task.importance", ("l1", "l2")),
        ("int", "task.patience", 1, 3, {"log": False}),
        ("choice", "task.step", (0.1, 0.2)),
        ("choice", "data.batch_size", (32, 64)),
        ("float", "model.dropout", 0.0, 0.5, {"log": False, "step": 0.1}),
    ]
    assert values["task.importance"].examples == ("l1", "l2") and values["task.patience"].examples == (1, 3)


def test_a_value_may_be_a_list_which_optuna_knows_by_its_text():
    space = {
        "task.importance": [["l1", "taylor"], "l2", ["é"]],
        "task.step": [[0.1, 0.02], 0.05],
        "model.bn": [True, False],
    }
    settings = SweepSettings(space=space, grid=True)
    asked = [each.suggest(Drawn(), key)[2] for key, each in settings.values().items()]
    assert asked == [('["l1", "taylor"]', "l2", '["é"]'), ("[0.1, 0.02]", 0.05), (True, False)]
    assert settings.count == 12 and settings.combinations()[-1] == dict(zip(space, ['["é"]', 0.05, False]))
    tried = [settings.chosen(params) for params in settings.combinations()]
    assert tried[0] == {"task.importance": ["l1", "taylor"], "task.step": [0.1, 0.02], "model.bn": True}
    assert [each["task.importance"] for each in tried[::4]] == space["task.importance"]
    assert settings.values()["task.step"].examples == ([0.1, 0.02], 0.05)
    assert SweepSettings(space={"task.patience": {"low": 1, "high": 9}}).chosen({"task.patience": 3}) == {
        "task.patience": 3
    }


@pytest.mark.parametrize(
    "key", ["seed", "device", "router.lr", "data.source", "data.tasks", "sweep.trials", "compare.seeds", "task", "x.y"]
)
def test_what_would_change_the_problem_cannot_be_searched(key):
    with pytest.raises(InputError, match=f"cannot vary '{key}': it may vary what is in model, optimizer, task"):
        SweepSettings(space={key: [1, 2]})


@pytest.mark.parametrize(
    "given",
    [
        [],
        [1],
        3,
        "l1",
        {"low": 1},
        {"low": 1, "high": 1},
        {"low": 2, "high": 1},
        {"low": 0, "high": 1, "log": True},
        {"low": 1, "high": 2, "lgo": True},
        {"low": 1, "high": 9, "log": True, "step": 2},
        {"low": "a", "high": "b"},
        {"low": 1, "high": 9, "step": 0},
        {"low": False, "high": True},
        {"low": 1, "high": 2, "log": 3},
        [[1], []],
        [[[1]], [2]],
        [{"low": 1}, 2],
    ],
)
def test_values_that_are_none_are_refused(given):
    with pytest.raises(InputError, match=r"^space.task.step must be a list of two values or more, or a range"):
        SweepSettings(space={"task.step": given})


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"trials": 0}, "^trials must be a whole number, 1 or more; got 0"),
        ({"tasks": 1.5}, "^tasks must be a whole number"),
        ({"tasks": True}, "^tasks must be a whole number"),
        ({"held_out": 1.0}, r"^held_out must be a number in \(0, 1\)"),
        ({"held_out": 0}, r"^held_out must be a number in \(0, 1\)"),
        ({"prune": 1}, "^prune must be True or False"),
        ({"space": ["task.step"]}, "^space must be values by name"),
        ({"trails": 3}, "SweepSettings has no setting 'trails' .did you mean 'trials'..; it has: trials, grid"),
    ],
)
def test_settings_that_are_none_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        SweepSettings.of_dict(settings)

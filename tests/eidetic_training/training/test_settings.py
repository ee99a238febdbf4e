"""TaskSettings: what is accepted, and that everything else is refused with the reason."""

import dataclasses

import pytest

from eidetic_kernels.errors import InputError
from eidetic_training import TaskSettings


def test_the_defaults_are_ours():
    settings = TaskSettings()
    assert (settings.search, settings.importance, settings.of) == ("backoff", "l2", "live")
    assert (settings.step, settings.first_step) == (0.05, 0.5)
    assert settings.halve_learning_rate is False


def test_settings_cannot_be_changed_under_a_training_that_reads_them():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TaskSettings().patience = 5


@pytest.mark.parametrize(
    "given, expected",
    [
        ({"max_epochs": 0}, "max_epochs must be a whole number of epochs, 1 or more; got 0"),
        ({"patience": 0}, "patience must be a whole number of epochs, 1 or more; got 0"),
        ({"max_recovery_epochs": 0}, "max_recovery_epochs must be a whole number of epochs, 1 or more"),
        ({"search": "greedy"}, "search must be one of backoff, linear, none; got 'greedy'"),
        ({"importance": "l3"}, "importance must be one of l1, l2, taylor, random, hybrid; got 'l3'"),
        ({"of": "free"}, "of must be one of live, present, width; got 'free'"),
        ({"importance": []}, r"importance must be one value, or a list of one or more; got \[\]"),
        ({"importance": ["l2", "l3"]}, "importance must be one of l1, l2, taylor, random, hybrid; got 'l3'"),
        ({"importance": True}, "importance must be one of l1, l2, taylor, random, hybrid; got True"),
        ({"importance": {"a": 1}}, "importance must be one of l1, l2, taylor, random, hybrid; got {'a': 1}"),
        ({"step": [0.1, 0.2]}, 'step must be one number for "backoff"; got \\(0.1, 0.2\\)'),
        ({"step": [], "search": "linear"}, "step must be one value, or a list of one or more"),
        ({"step": [0.1, True], "search": "linear"}, "step must .* got True"),
        ({"step": [0.1, 1.5], "search": "linear"}, "step must .* got 1.5"),
        ({"max_pruned": -0.1}, "max_pruned must"),
        ({"max_pruned": 1.1}, "max_pruned must"),
        ({"step": 0}, r"step must be a number in \(0, 1\]"),
        ({"step": 1.5, "first_step": 1.5}, r"step must be a number in \(0, 1\]"),
        ({"step": 0.2, "first_step": 0.1}, r"first_step must be a number in \[0.2, 1\]"),
        ({"first_step": 1.1}, r"first_step must be a number in \[0.05, 1\]"),
        ({"tolerance": -0.1}, r"tolerance must be a number in \[0, 1\)"),
        ({"tolerance": 1}, r"tolerance must be a number in \[0, 1\)"),
        ({"tolerance": float("nan")}, r"tolerance must be a number in \[0, 1\)"),
        ({"label_smoothing": 1}, r"label_smoothing must be a number in \[0, 1\)"),
        ({"polish_epochs": -1}, "polish_epochs must be a whole number of epochs, 0 or more"),
        ({"keep_at_least": -1}, "keep_at_least must be a count of units .* or a share"),
        ({"frozen_features": "yes"}, "frozen_features must be one of auto, True, False; got 'yes'"),
        ({"frozen_features": 1}, "frozen_features must be one of auto, True, False; got 1"),
        ({"cuda_graphs": "always"}, "cuda_graphs must be one of auto, True, False; got 'always'"),
        ({"cuda_graphs": 1}, "cuda_graphs must be one of auto, True, False; got 1"),
        ({"frozen_features_gib": -0.5}, "frozen_features_gib must be a finite number, 0 or more"),
    ],
)
def test_a_value_out_of_range_is_refused_with_what_was_expected(given, expected):
    with pytest.raises(InputError, match=expected):
        TaskSettings(**given)


@pytest.mark.parametrize(
    "given",
    [
        {"step": 1.0, "first_step": 1.0},
        {"step": 0.5, "first_step": 0.5},
        {"tolerance": 0},
        {"label_smoothing": 0, "polish_epochs": 0},
        {"keep_at_least": 0},
        {"keep_at_least": 7},
        {"frozen_features": True, "frozen_features_gib": 0},
        {"frozen_features": "auto", "cuda_graphs": "auto"},
        {"cuda_graphs": True},
        {"keep_at_least": 1.0},
        {"max_epochs": 1, "patience": 1, "max_recovery_epochs": 1},
    ],
)
def test_the_ends_of_every_range_belong_to_it(given):
    assert dataclasses.asdict(TaskSettings(**given)).items() >= given.items()


def test_importances_and_steps_may_be_lists_that_are_cycled_through():
    settings = TaskSettings.of_dict({"search": "linear", "importance": [1, "taylor", "2"], "step": [0.1, 0.05]})
    assert (settings.importance, settings.step) == (("l1", "taylor", "l2"), (0.1, 0.05))
    assert [settings.importance_at(step) for step in range(5)] == ["l1", "taylor", "l2", "l1", "taylor"]
    assert [settings.step_at(step) for step in range(5)] == [0.1, 0.05, 0.1, 0.05, 0.1]
    assert settings == TaskSettings(search="linear", importance=("l1", "taylor", "l2"), step=(0.1, 0.05))
    single = TaskSettings(importance=2)
    assert (single.importance, single.importance_at(7), single.step_at(7)) == ("l2", "l2", 0.05)
    assert TaskSettings(importance=["l1", "l2"]).importance == ("l1", "l2"), "backoff, too, cycles through importances"


def test_settings_come_from_a_dictionary():
    assert TaskSettings.of_dict({"search": "linear", "step": 0.1}) == TaskSettings(search="linear", step=0.1)
    assert TaskSettings.of_dict({}) == TaskSettings()


def test_an_unknown_setting_is_named_beside_those_there_are():
    near = r"TaskSettings has no setting 'tolerence' \(did you mean 'tolerance'\?\); it has: max_epochs, .*tolerance"
    with pytest.raises(InputError, match=near):
        TaskSettings.of_dict({"tolerence": 0.1})


@pytest.mark.parametrize(
    "given",
    [
        {"max_epochs": "3"},
        {"max_epochs": 2.5},
        {"patience": 1.5},
        {"max_recovery_epochs": True},
        {"tolerance": "0.1"},
        {"step": "0.1"},
        {"keep_at_least": 1.5},
        {"keep_at_least": True},
        {"halve_learning_rate": "no"},
        {"seed": "x"},
    ],
)
def test_a_value_of_a_wrong_type_is_refused_before_anything_is_trained(given):
    with pytest.raises(InputError, match=next(iter(given))):
        TaskSettings(**given)


def test_a_linear_search_does_not_stumble_over_backoff_s_first_step():
    assert TaskSettings(search="linear", step=0.6).step == 0.6

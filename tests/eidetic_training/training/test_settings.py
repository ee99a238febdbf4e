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
        ({"max_epochs": 0}, "max_epochs must be 1 or more; got 0"),
        ({"patience": 0}, "patience must be 1 or more; got 0"),
        ({"max_recovery_epochs": 0}, "max_recovery_epochs must be 1 or more"),
        ({"search": "greedy"}, "search must be one of backoff, linear, none; got 'greedy'"),
        ({"importance": "l3"}, "importance must be one of l1, l2, taylor, random, hybrid; got 'l3'"),
        ({"of": "free"}, "of must be one of live, width; got 'free'"),
        ({"step": 0}, r"step must lie in \(0, 1\]"),
        ({"step": 1.5, "first_step": 1.5}, r"step must lie in \(0, 1\]"),
        ({"step": 0.2, "first_step": 0.1}, r"first_step must lie in \[step, 1\]"),
        ({"first_step": 1.1}, r"first_step must lie in \[step, 1\]"),
        ({"tolerance": -0.1}, r"tolerance must lie in \[0, 1\)"),
        ({"tolerance": 1}, r"tolerance must lie in \[0, 1\)"),
        ({"tolerance": float("nan")}, r"tolerance must lie in \[0, 1\)"),
        ({"label_smoothing": 1}, r"label_smoothing must lie in \[0, 1\)"),
        ({"polish_epochs": -1}, "polish_epochs must be 0 or more"),
        ({"keep_at_least": -1}, "keep_at_least must be a count of units, or a fraction"),
        ({"frozen_features": "yes"}, "frozen_features must be one of auto, True, False; got 'yes'"),
        ({"frozen_features": 1}, "frozen_features must be of type bool | str"),
        ({"cuda_graphs": "always"}, "cuda_graphs must be one of auto, True, False; got 'always'"),
        ({"cuda_graphs": 1}, "cuda_graphs must be of type bool | str"),
        ({"frozen_features_gib": -0.5}, "frozen_features_gib must be 0 or more"),
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


def test_settings_come_from_a_dictionary():
    assert TaskSettings.of_dict({"search": "linear", "step": 0.1}) == TaskSettings(search="linear", step=0.1)
    assert TaskSettings.of_dict({}) == TaskSettings()


def test_an_unknown_setting_is_named_beside_those_there_are():
    near = r"unknown setting 'tolerence' \(did you mean 'tolerance'\?\); there are: max_epochs, .*tolerance"
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

"""RouterSettings: what is accepted, and that everything else is refused with the reason."""

import dataclasses
import inspect
import re

import pytest

from eidetic_kernels.errors import InputError
from eidetic_training import RouterSettings, train_router


def test_the_defaults_are_the_paper_s_linear_map_of_the_features():
    settings = RouterSettings()
    assert settings.hidden == 0 and settings.stages == ()
    assert not (settings.layers or settings.inputs or settings.classes)


def test_every_setting_has_its_line_in_the_documentation():
    for field in dataclasses.fields(RouterSettings):
        assert re.search(rf"^ +{field.name}: ", RouterSettings.__doc__, re.MULTILINE), field.name


def test_train_router_takes_settings_by_name():
    given = ["network", "loaders", "settings", "callbacks", "progress", "overrides"]
    assert [*inspect.signature(train_router).parameters] == given


@pytest.mark.parametrize(
    "given, expected",
    [
        ({"max_epochs": 0}, "max_epochs must be a whole number of epochs, 1 or more; got 0"),
        ({"max_epochs": 2.5}, "max_epochs must be a whole number of epochs, 1 or more; got 2.5"),
        ({"patience": 0}, "patience must be a whole number of epochs, 1 or more; got 0"),
        ({"batch_size": 0}, "batch_size must be a whole number, 1 or more; got 0"),
        ({"polish_epochs": -1}, "polish_epochs must be a whole number of epochs, 0 or more; got -1"),
        ({"hidden": -1}, "hidden must be a whole number of units, 0 or more; got -1"),
        ({"hidden": True}, "hidden must be a whole number of units, 0 or more; got True"),
        ({"hidden": 1.5}, "hidden must be a whole number of units, 0 or more; got 1.5"),
        ({"dropout": 1.0}, r"dropout must be a number in \[0, 1\); got 1.0"),
        ({"dropout": -0.1}, r"dropout must be a number in \[0, 1\); got -0.1"),
        ({"label_smoothing": 1}, r"label_smoothing must be a number in \[0, 1\); got 1"),
        ({"weight_decay": -1.0}, "weight_decay must be a finite number, 0 or more; got -1.0"),
        ({"weight_decay": float("nan")}, "weight_decay must be a finite number, 0 or more; got nan"),
        ({"weight_decay": float("inf")}, "weight_decay must be a finite number, 0 or more; got inf"),
        ({"lr": "fast"}, "lr must be a finite number, 0 or more; got 'fast'"),
        ({"lr": float("nan")}, "lr must be a finite number, 0 or more; got nan"),
        ({"seed": "0"}, "seed must be a whole number"),
        ({"max_cached_bytes": -1}, "max_cached_bytes must be a whole number, 0 or more; got -1"),
        ({"layers": 1}, "layers must be True or False; got 1"),
        ({"examples": 0}, "examples must be a whole number, 1 or more; got 0"),
        ({"examples": 2.5}, "examples must be a whole number, 1 or more; got 2.5"),
        ({"convolutions": 8}, "convolutions must be numbers of channels, 1 or more, one for each stage; got 8"),
        ({"convolutions": (8, 0)}, r"convolutions must be numbers of channels.*; got \(8, 0\)"),
        ({"convolutions": [8, True]}, "convolutions must be numbers of channels"),
        ({"convolutions": ()}, r"convolutions must be numbers of channels.*; got \(\)"),
        ({"convolutions": "8"}, "convolutions must be numbers of channels"),
        ({"augment": True}, r"augment=True is about convolutions, and there are none: give convolutions=\(64"),
        ({"mirrored": True}, "mirrored=True is about convolutions, and there are none"),
        ({"alone": True}, "alone=True is about convolutions, and there are none"),
        ({"alone": True, "convolutions": (4,), "layers": True}, "alone=True reads nothing but convolutions"),
        ({"alone": True, "convolutions": (4,), "inputs": True}, "alone=True reads nothing but convolutions"),
    ],
)
def test_a_value_out_of_range_is_refused_with_what_was_expected(given, expected):
    with pytest.raises(InputError, match=expected):
        RouterSettings(**given)


@pytest.mark.parametrize(
    "given",
    [
        {"max_epochs": 1, "patience": 1, "batch_size": 1, "examples": 1},
        {"dropout": 0, "label_smoothing": 0, "weight_decay": 0, "hidden": 0},
        {"convolutions": [8, 16], "augment": True, "alone": True, "mirrored": True},
        {"lr": 0, "max_cached_bytes": 0},
    ],
)
def test_the_ends_of_every_range_belong_to_it(given):
    assert dataclasses.asdict(RouterSettings(**given)).items() >= given.items()

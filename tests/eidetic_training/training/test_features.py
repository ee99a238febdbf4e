"""Frozen features in training: the same weights with and without, and an event if they cannot be cached."""

import pytest
import torch
from blobs import blobs, state_of
from small_networks import MLP

import eidetic_kernels as ek
from eidetic_kernels.errors import InputError
from eidetic_training import TaskSettings, train_task
from eidetic_training.data import Augmentation, Preparation, TensorLoader
from eidetic_training.training import features as features_module

SETTINGS = {"max_epochs": 3, "polish_epochs": 1, "max_recovery_epochs": 1, "patience": 5}


def numbered(task, **options):
    return TensorLoader(*blobs(task, noise=2.0), batch_size=16, num_classes=3, **{"shuffle": False, **options})


class Flat(MLP):
    """Of images or numbers."""

    def forward(self, x):
        return self.body(x.flatten(1))


def learned(tasks, loaders=numbered, nested=True, **settings):
    """A network that learned ``tasks`` tasks with the same settings, and the notes of its events."""
    torch.manual_seed(0)
    net, notes = Flat((40, 30)), []
    for task in range(tasks):
        net.prepare_for_task(task, 3, max_units=16, forward_transfer=nested)
        result = train_task(net, loaders(task), settings=TaskSettings.of_dict({**SETTINGS, **settings}))
        notes += [event.note for event in result.history if event.phase == "features"]
    return net, notes


@pytest.mark.parametrize("how", [{"importance": "taylor"}, {"search": "linear", "step": 0.3, "importance": "l2"}])
def test_tasks_end_with_the_same_bits_with_and_without(how, monkeypatch):
    made = []

    class Watched(ek.FrozenFeatures):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            made.append(self)

    monkeypatch.setattr(features_module, "FrozenFeatures", Watched)
    plain, notes = learned(3, frozen_features=False, **how)
    assert not made and not notes
    for wanted in ("auto", True):
        net, notes = learned(3, frozen_features=wanted, **how)
        assert state_of(net) == state_of(plain) and not notes
        net.certify().check()
    assert len(made) == 4, "of the second and third task"
    assert all(features.bytes and features.off is None and features._missing == 0 for features in made)


def test_shuffled_epochs_learn_as_well():
    net, notes = learned(3, lambda task: numbered(task, shuffle=True), frozen_features=True)
    assert net.finished_tasks == 3 and not notes
    net.certify().check()


@pytest.mark.parametrize(
    ("loaders", "settings", "why"),
    [
        (lambda task: [blobs(task)], {}, "does not number"),
        (
            lambda task: TensorLoader(
                torch.rand(24, 1, 2, 3), torch.arange(24) % 3, 8, preparation=Preparation(Augmentation(flip=True))
            ),
            {},
            "augmented",
        ),
        (numbered, {"frozen_features_gib": 1e-6}, "MiB are allowed"),
    ],
    ids=["a list", "augmentation", "memory"],
)
def test_what_stands_in_the_way_is_said_once_a_task(loaders, settings, why):
    plain, _ = learned(2, loaders, frozen_features=False)
    net, notes = learned(2, loaders, **settings)
    assert state_of(net) == state_of(plain)
    assert len(notes) == 1 and why in notes[0]
    if "frozen_features_gib" in settings:
        settings = {"frozen_features": True, **settings}
        assert learned(2, loaders, **settings)[1] == [], "asked for, whatever memory it takes"
    else:
        with pytest.raises(InputError, match=why):
            learned(2, loaders, frozen_features=True)


def test_disjoint_tasks_read_nothing_frozen_and_need_no_numbers(monkeypatch):
    ran = []
    monkeypatch.setattr(ek.FrozenFeatures, "_can_run_live", lambda self: ran.append(1) or True)
    plain, _ = learned(2, lambda task: [blobs(task)], frozen_features=False, nested=False)
    assert not ran
    net, notes = learned(2, lambda task: [blobs(task)], nested=False)
    assert ran and not notes
    assert state_of(net) == state_of(plain)

"""Methods that isolate tasks keep earlier ones' logits whatever comes later; the others are known to move them."""

import pytest
import torch
from life import bits
from small_methods import accuracy, answers, batches, conditions, images, learned
from small_networks import ConvNet

from eidetic_training.methods import METHODS

EXACT = ("eidetic", "clnp", "packnet", "piggyback", "single")
SHARED = ("sequential", "ewc", "si", "superposition")
SETTINGS = {
    "eidetic": {"max_recovery_epochs": 1, "keep_at_least": 3, "polish_epochs": 1, "tasks": 3},
    "clnp": {"tasks": 3},
}


def make(name, **options):
    return METHODS[name](conditions(**options), **SETTINGS.get(name, {}))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("name", EXACT)
def test_earlier_tasks_keep_their_bits(name, optimizer):
    method = make(name, optimizer=optimizer, lr=0.05)
    kept = {}
    for task in range(3):
        learned(method, task + 1)
        kept[task] = bits(answers(method, task))
        assert {t: bits(answers(method, t)) for t in range(task + 1)} == kept
    assert method.tasks == 3


@pytest.mark.parametrize("name", EXACT)
def test_convolutions_keep_their_bits(name):
    method = make(name, network=lambda: ConvNet(dropout=0.0), epochs=2)
    learned(method, 1, images)
    before = bits(answers(method, 0, images))
    learned(method, 2, images)
    assert bits(answers(method, 0, images)) == before


@pytest.mark.parametrize("name", SHARED)
def test_methods_that_share_weights_move_earlier_logits(name):
    method = learned(make(name))
    before = answers(method, 0)
    assert not torch.equal(answers(learned(method, 2), 0), before)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "joint"])
def test_a_task_is_learned_and_the_mode_does_not_matter(name):
    method = learned(make(name, epochs=8), 2)
    assert accuracy(method, 1) > 0.9
    first = answers(method, 1)
    assert not first.requires_grad and first.shape == (48, 3)
    assert torch.equal(answers(method, 1), first)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "joint"])
def test_the_same_seed_gives_the_same_bits_and_another_one_others(name):
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(found.__len__())  # whatever was drawn before
        found.append(bits(answers(learned(make(name, seed=seed, epochs=1)), 0)))
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("name", ["eidetic", "clnp", "packnet"])
def test_tasks_known_beforehand_share_evenly_and_more_may_come(name):
    method = METHODS[name](conditions(epochs=2), **{**SETTINGS.get(name, {}), "tasks": 2})
    learned(method, 2)
    before = [bits(answers(method, task)) for task in range(2)]
    learned(method, 3)
    assert [bits(answers(method, task)) for task in range(2)] == before
    if name != "packnet":
        first = method.network.capacity().rows[0].frozen[0]
        assert first <= 8 and 0 < method.units_used() <= 1


def test_an_empty_loader_and_a_loss_that_is_not_finite_are_refused():
    from eidetic_kernels.errors import EideticError

    for name in METHODS:
        if name == "joint":
            continue
        with pytest.raises(EideticError, match="no batch|NaN"):
            make(name).learn([], 3)
        poisoned = [(x * float("nan"), y) for x, y in batches(0)]
        with pytest.raises(EideticError, match="loss became (NaN|nan)"):
            make(name).learn(poisoned, 3)

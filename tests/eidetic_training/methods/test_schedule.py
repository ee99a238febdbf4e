"""Every method ends a task with the same epochs at a falling learning rate."""

import pytest
from small_methods import CLASSES, batches, conditions, learned
from torch.optim.optimizer import register_optimizer_step_pre_hook

from eidetic_training.methods import METHODS

HALF_COSINE = [0.8535533905932737, 0.1464466094067262]  # of two epochs


@pytest.fixture
def rates():
    """The first group's learning rate at every step of any optimizer."""
    seen = []

    def see(optimizer, *_):
        (group, *_) = optimizer.param_groups
        if group["params"][0].dim() > 1:  # not the parameter on which make_optimizer tries its arguments
            seen.append(group["lr"])

    handle = register_optimizer_step_pre_hook(see)
    yield seen
    handle.remove()


def phases(rates, of):
    """The rates in order, as fractions of ``of``, one for each epoch."""
    return [rates[i] / of for i in range(0, len(rates), len(batches(0)))]


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("joint", "packnet", "eidetic")])
def test_the_learning_rate_falls_in_the_last_epochs(name, rates):
    own = {"hat": {"gate_lr": 0.1}, "piggyback": {"mask_lr": 0.1}}.get(name, {})
    method = METHODS[name](conditions(epochs=4, lr=0.02, polish=2), **own)
    for task in range(2):
        del rates[:]
        learned(method, task + 1)
        of = 0.1 if name == "piggyback" and task else 0.02
        assert phases(rates, of) == pytest.approx([1, 1, *HALF_COSINE])


def test_each_stage_of_packnet_ends_with_it(rates):
    learned(METHODS["packnet"](conditions(epochs=9, lr=0.02, polish=2)))
    assert phases(rates, 0.02) == pytest.approx([1, 1, 1, 1, *HALF_COSINE, 1, *HALF_COSINE])


def test_a_stage_shorter_than_that_is_all_of_it(rates):
    learned(METHODS["single"](conditions(epochs=2, lr=0.02, polish=5)))
    assert phases(rates, 0.02) == pytest.approx(HALF_COSINE)


def test_joint_training_has_it_in_epochs_over_all_tasks(rates):
    METHODS["joint"](conditions(epochs=3, lr=0.02, polish=2)).learn_all([batches(0), batches(1)], [CLASSES] * 2)
    assert phases(rates, 0.02)[::2] == pytest.approx([1, *HALF_COSINE])


def test_eidetic_learning_polishes_in_it(rates):
    method = METHODS["eidetic"](conditions(epochs=4, lr=0.02, polish=2), search="none", patience=4)
    learned(method)
    assert phases(rates, 0.02)[-2:] == pytest.approx(HALF_COSINE)
    assert set(phases(rates, 0.02)[:-2]) == {1}

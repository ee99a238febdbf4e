"""Answers on record: bits in the environment of the record, numbers in another one, and what cannot be compared."""

from types import SimpleNamespace

import pytest
import torch

from eidetic_kernels.errors import InputError
from eidetic_training import models
from eidetic_training.data import TensorLoader
from eidetic_training.runs.answers import SAMPLE, Answers, NotComparable, Recorded, answers_of, compare, sentences

HERE = {"device": "cpu AVX2", "dtype": "float32", "threads": 1}
THERE = {**HERE, "threads": 8}
SAMPLES = torch.tensor([[1.0, -4.0], [2.0, 0.5]])
TASK = SimpleNamespace(test=SimpleNamespace(images=torch.arange(12, dtype=torch.uint8)))
OTHER_IMAGES = SimpleNamespace(test=SimpleNamespace(images=torch.arange(1, 13, dtype=torch.uint8)))


def answers(sha256="aa", sample=SAMPLES, environment=None):
    return Answers(0.5, None, sha256, sample, HERE if environment is None else environment)


def recorded(environment=None):
    return Recorded.of(answers(environment=environment), TASK)


def test_the_same_bits_are_the_same_answers_wherever_they_were_computed():
    for environment in (HERE, THERE):
        assert compare(recorded(environment), SAMPLES, answers(), TASK) is None
        assert compare(recorded(environment), None, answers(), OTHER_IMAGES) is None
    assert compare(Recorded("aa"), None, answers(), TASK) is None


def test_in_the_environment_of_the_record_a_single_bit_is_forgetting():
    close = torch.nextafter(SAMPLES, SAMPLES + 1)
    found = compare(recorded(), SAMPLES, answers("bb", close), TASK)
    assert found.forgotten and found.how.startswith(
        "are not those taken when it was learned; they differ by 6.0e-08 of"
    )
    found = compare(recorded(), None, answers("bb"), TASK)
    assert found.forgotten and found.how == "are not those taken when it was learned"


def test_in_another_environment_numbers_are_compared_and_the_setting_is_named():
    within, beyond = SAMPLES + 4 * 0.9e-4, SAMPLES + 4 * 1.1e-4  # of the largest, 4
    found = compare(recorded(THERE), SAMPLES, answers("bb", within), TASK)
    assert not found.forgotten
    assert found.how == (
        "were recorded with threads 8 (here 1): they were compared as numbers, not bit for bit, and agree within 1e-04 "
        "of the largest"
    )
    found = compare(recorded(THERE), SAMPLES, answers("bb", beyond), TASK)
    assert found.forgotten
    assert "they differ by 1.1e-04 of the largest, where threads 8 (here 1) explains 1e-04 at most" in found.how


@pytest.mark.parametrize("now", [SAMPLES[:1], SAMPLES * torch.nan, SAMPLES[:, :1]])
def test_what_is_no_such_set_of_numbers_is_forgetting(now):
    assert compare(recorded(THERE), SAMPLES, answers("bb", now), TASK).forgotten


def test_other_test_images_are_no_forgetting():
    for environment in (HERE, THERE):
        with pytest.raises(NotComparable, match="test images are not those of when it was learned"):
            compare(recorded(environment), SAMPLES, answers("bb"), OTHER_IMAGES)


def test_without_numbers_another_environment_cannot_be_compared():
    with pytest.raises(NotComparable, match=r"recorded with threads 8 \(here 1\).*missing or damaged"):
        compare(recorded(THERE), None, answers("bb"), TASK)


def test_a_sha_without_its_environment_cannot_tell_forgetting():
    found = compare(Recorded("bb"), None, answers(), TASK)
    assert not found.forgotten and "it cannot be told whether another environment rounds otherwise" in found.how


def test_a_record_reads_back_as_it_was():
    for entry in (recorded(), Recorded("aa")):
        assert Recorded.from_json(entry.to_json()) == entry
    assert Recorded("aa").to_json() == "aa"


@pytest.mark.parametrize("change", [{"sha256": None}, {"environment": 3}, {"images": 1}, {"sample": []}, {"more": 1}])
def test_a_damaged_record_is_refused(change):
    for entry in ({**recorded().to_json(), **change}, 3, None, [], {"sha256": "aa"}):
        with pytest.raises(InputError, match="expected a SHA-256, or a table of"):
            Recorded.from_json(entry)


def test_the_same_said_of_several_tasks_is_said_once():
    assert sentences([(0, "are late"), (2, "are lost"), (3, "are late")]) == [
        "the test logits of task 0, 3 are late.",
        "the test logits of task 2 are lost.",
    ]


@pytest.mark.parametrize("rows, batch, kept", [(7, 3, 7), (SAMPLE, 300, SAMPLE), (2 * SAMPLE + 1, 64, 667)])
def test_the_sample_is_evenly_spaced_over_the_test_set(rows, batch, kept):
    network = models.build("mlp", (1, 2, 2), width=4)
    network.prepare_for_task(0, 3)
    network.finish_task()
    x, y = torch.randn(rows, 1, 2, 2), torch.zeros(rows, dtype=torch.long)
    found = answers_of(network, TensorLoader(x, y, batch, shuffle=False), 0)
    step = -(-rows // kept)
    with torch.no_grad():
        expected = network.eval()(x, task=0)[::step]
    assert len(found.sample) == kept and torch.allclose(found.sample, expected, atol=1e-6)
    assert found.environment["threads"] == 1 and found.environment["processor"]

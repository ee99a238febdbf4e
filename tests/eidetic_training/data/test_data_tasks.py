"""Task sequences: permuted pixels, split classes, several sets; the source is never touched."""

import pytest
import torch

from eidetic_kernels.errors import InputError
from eidetic_training.data import (
    Augmentation,
    ImageSet,
    Normalisation,
    Source,
    hold_out,
    permuted,
    several,
    split_classes,
)
from eidetic_training.data import tasks as sequences


def make(classes=5, per_class=4, shape=(3, 4, 4), name="made", seed=0, augment=None):
    g = torch.Generator().manual_seed(seed)
    splits = []
    for _ in range(2):
        images = torch.randint(0, 256, (classes * per_class, *shape), dtype=torch.uint8, generator=g)
        splits.append(ImageSet(images, torch.arange(classes).repeat(per_class), classes))
    return Source(name, *splits, augment)


def test_permuted_tasks_are_permutations_of_pixels_with_channels_together():
    source = make()
    before = source.train.images.clone()
    tasks = permuted(source, 4, seed=7)
    assert torch.equal(source.train.images, before)
    assert tasks[0].train.images is source.train.images, "task 0 is the source itself, no copy"
    for t, task in enumerate(tasks):
        assert task.num_classes == 5 and task.train.images.dtype == torch.uint8
        assert task.train.shape == source.train.shape
        assert torch.equal(task.train.labels, source.train.labels)
        if t:
            for mine, theirs in ((task.train, source.train), (task.test, source.test)):
                assert torch.equal(mine.images.flatten(2), theirs.images.flatten(2)[:, :, task.permutation])
    assert len({tuple(t.permutation.tolist()) for t in tasks[1:]}) == 3


def test_a_permutation_depends_on_seed_and_task_only():
    a, b, c = permuted(make(), 3, seed=1), permuted(make(seed=5), 5, seed=1), permuted(make(), 3, seed=2)
    assert torch.equal(a[2].permutation, b[2].permutation)
    assert not torch.equal(a[2].permutation, c[2].permutation)
    assert permuted(make(), 1, identity_first=False)[0].permutation is not None


@pytest.mark.parametrize(("tasks", "sizes"), [(1, [5]), (2, [3, 2]), (3, [2, 2, 1]), (5, [1] * 5)])
def test_classes_are_dealt_evenly_and_relabelled(tasks, sizes):
    source = make()
    before = source.train.images.clone(), source.train.labels.clone()
    made = split_classes(source, tasks)
    assert [t.num_classes for t in made] == sizes
    assert sorted(c for t in made for c in t.labels) == list(range(5))
    for task in made:
        for mine, theirs in ((task.train, source.train), (task.test, source.test)):
            assert mine.classes == task.num_classes
            rows = torch.isin(theirs.labels, torch.tensor(task.labels))
            assert torch.equal(mine.images, theirs.images[rows])
            assert torch.equal(torch.tensor(task.labels)[mine.labels], theirs.labels[rows])
    assert torch.equal(source.train.images, before[0]) and torch.equal(source.train.labels, before[1])


def test_classes_in_an_order_of_ones_own():
    made = split_classes(make(), 2, order=[4, 0, 2, 1, 3])
    assert [t.labels for t in made] == [(4, 0, 2), (1, 3)]
    source = make()
    first = split_classes(source, 2, order=[4, 0, 2, 1, 3])[0].train
    assert torch.equal(first.images[first.labels == 0], source.train.images[source.train.labels == 4])


def test_one_normalisation_for_a_whole_sequence():
    source = make()
    expected = Normalisation.of(source.train.images)
    for tasks in (permuted(source, 3), split_classes(source, 3)):
        assert {t.normalisation for t in tasks} == {expected}
    other = make(name="other", seed=8)
    assert {t.normalisation for t in several([source, other])} == {expected}


def test_loaders_of_a_task():
    augment = Augmentation(flip=True)
    task = split_classes(make(augment=augment), 2)[1]
    train, test = task.train_loader(4, seed=2), task.test_loader(4)
    assert train.num_classes == 2 == test.num_classes
    assert train.has_augmentation and not test.has_augmentation
    assert torch.equal(torch.cat([y for _, y in test]), task.test.labels)
    assert torch.equal(torch.cat([x for x, _ in test]), task.normalisation(task.test.images))
    assert split_classes(make(augment=augment), 2, augment=None)[0].augment is None
    assert permuted(make(augment=augment), 2)[0].augment is None, "neighbours mean nothing once permuted"


def test_several_sets_one_after_another():
    grey, colour = make(3, shape=(1, 4, 4), name="grey"), make(5, shape=(3, 8, 6), name="colour")
    with pytest.raises(InputError, match=r"grey \[1, 4, 4\], colour \[3, 8, 6\].*shape="):
        several([grey, colour])
    tasks = several([grey, colour], shape=(3, 4, 4))
    assert [t.num_classes for t in tasks] == [3, 5]
    assert torch.equal(tasks[0].train.images, grey.train.images.repeat(1, 3, 1, 1))
    assert tasks[1].train.shape == (3, 4, 4) and tasks[1].train.images.dtype == torch.uint8
    assert tasks[0].normalisation == tasks[1].normalisation == Normalisation.of(tasks[0].train.images)
    with pytest.raises(InputError, match="channels"):
        several([grey, colour], shape=(1, 4, 4))


def test_resizing_keeps_what_is_there():
    flat = ImageSet(torch.full((2, 1, 10, 6), 77, dtype=torch.uint8), torch.tensor([0, 1]), 2)
    (task,) = several([(flat, flat)], shape=(1, 4, 4))
    assert torch.equal(task.train.images, torch.full((2, 1, 4, 4), 77, dtype=torch.uint8))


@pytest.mark.parametrize(
    "call",
    [
        lambda s: permuted(s, 0),
        lambda s: permuted(s, True),
        lambda s: split_classes(s, 6),
        lambda s: split_classes(s, 0),
        lambda s: split_classes(s, 2, order=[0, 1, 2, 3]),
        lambda s: split_classes(s, 2, order=[0, 1, 2, 3, 3]),
        lambda s: split_classes(s, 2, augment="strong"),
        lambda s: several([]),
        lambda s: several("digits"),
        lambda s: several([s], shape=(3, 0, 4)),
        lambda s: permuted(s, 2, folder="somewhere"),
        lambda s: permuted(17, 2),
        lambda s: permuted("no such set", 2),
    ],
)
def test_bad_requests_are_refused(call):
    with pytest.raises(InputError):
        call(make())


def test_a_class_without_images_is_named():
    source = make()
    keep = source.test.labels != 3
    test = ImageSet(source.test.images[keep], source.test.labels[keep], 5)
    with pytest.raises(InputError, match="no image of class 3"):
        split_classes((source.train, test), 2)


def test_splits_must_fit_each_other():
    a, b = make(), make(shape=(1, 4, 4))
    with pytest.raises(InputError, match="equal image shapes"):
        Source("x", a.train, b.test)


# ---- holding out


def images_of(task_set):
    return [each.numpy().tobytes() for each in task_set.images]


@pytest.mark.parametrize("share, each", [(0.01, 1), (0.1, 1), (0.26, 3), (0.5, 5), (0.99, 9)])
def test_a_share_of_every_class_is_held_out_and_takes_the_test_set_s_place(share, each):
    whole = permuted(make(per_class=10), 2)[1]
    task = hold_out(whole, share, seed=3)
    assert task.test.labels.bincount().tolist() == [each] * 5
    assert task.train.labels.bincount().tolist() == [10 - each] * 5
    kept, held = images_of(task.train), images_of(task.test)
    assert not set(kept) & set(held) and sorted(kept + held) == sorted(images_of(whole.train))
    rows = dict(zip(images_of(whole.train), whole.train.labels.tolist()))
    for part in (task.train, task.test):
        assert [rows[image] for image in images_of(part)] == part.labels.tolist()
    assert not set(held) & set(images_of(whole.test))
    assert (task.name, task.num_classes, task.normalisation) == (whole.name, 5, whole.normalisation)
    assert len(whole.train) == 50, "the task itself is as it was"


def test_what_is_held_out_depends_on_the_seed_alone():
    tasks = permuted(make(per_class=10), 3)
    first, again, other = (images_of(hold_out(tasks[0], 0.3, seed).test) for seed in (1, 1, 2))
    assert first == again != other
    rows = [[images_of(task.train).index(image) for image in images_of(hold_out(task, 0.3, 1).test)] for task in tasks]
    assert rows[0] == rows[1] == rows[2], "tasks of the same images hold out the same"
    assert rows[0] == sorted(rows[0])
    by_class = [hold_out(task, 0.3, 1).test.labels for task in split_classes(make(per_class=10), 2)]
    assert [part.bincount().tolist() for part in by_class] == [[3, 3, 3], [3, 3]]


def test_a_class_too_small_and_a_share_that_is_none_are_refused():
    for share in (0, 1.0, 1, True, -0.1, "0.1"):
        with pytest.raises(InputError, match=r"share must be a number in \(0, 1\)"):
            hold_out(permuted(make(), 1)[0], share)
    with pytest.raises(InputError, match="made permutation 0: class 0 has one image, expected two or more"):
        hold_out(permuted(make(per_class=1), 1)[0], 0.5)
    assert hold_out(permuted(make(per_class=2), 1)[0], 0.9).train.labels.bincount().tolist() == [1] * 5


def test_images_too_thin_to_be_cut_square_are_refused():
    thin = ImageSet(torch.zeros(2, 1, 1, 1_000_000, dtype=torch.uint8), torch.tensor([0, 1]), 2)
    with pytest.raises(
        InputError, match="images: an image cannot be resized: it is 1,000,000x1 pixels, expected sides"
    ):
        several([(thin, thin)], (1, 28, 28))


def test_images_are_resized_a_few_at_a_time_where_they_are_large(monkeypatch):
    drawn = torch.randint(0, 256, (5, 1, 6, 9), dtype=torch.uint8)
    images = ImageSet(drawn, torch.tensor([0, 1, 0, 1, 0]), 2)
    (together,) = several([(images, images)], (3, 12, 12))
    sizes, fit = [], sequences._fit
    monkeypatch.setattr(sequences, "_fit", lambda part, *size: sizes.append(len(part)) or fit(part, *size))
    monkeypatch.setattr(sequences, "MAX_PIXELS", 2 * 12 * 18)
    (apart,) = several([(images, images)], (3, 12, 12))
    assert sizes == [2, 2, 1] * 2
    assert torch.equal(together.train.images, apart.train.images)

"""The meta task: every input of every task once, labelled with its task, batches mixed, nothing touched."""

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from eidetic_kernels.errors import InputError
from eidetic_training.data import Augmentation, ImageSet, MetaLoader, Preparation, TensorLoader, meta_task, permuted


def task_data(task, rows):
    """Task t's inputs are 1000 t, 1000 t + 1, ..."""
    return (torch.arange(rows) + 1000.0 * task).view(-1, 1), torch.arange(rows) % 2


def tensor_loaders(sizes, batch_size=8, **options):
    return [TensorLoader(*task_data(t, n), batch_size, **options) for t, n in enumerate(sizes)]


def data_loaders(sizes, batch_size=8, **options):
    return [DataLoader(TensorDataset(*task_data(t, n)), batch_size, **options) for t, n in enumerate(sizes)]


def mixed_loaders(sizes):
    return [*tensor_loaders(sizes[:1]), *data_loaders(sizes)[1:]]


class Stream(IterableDataset):
    def __init__(self, task, rows):
        self.data = task_data(task, rows)

    def __iter__(self):
        return iter(zip(*self.data))


def streams(sizes):
    return [DataLoader(Stream(t, n), 8) for t, n in enumerate(sizes)]


@pytest.mark.parametrize("sizes", [[40], [40, 40, 40], [17, 40, 3], [9, 1, 80]])
@pytest.mark.parametrize("make", [tensor_loaders, data_loaders, mixed_loaders, streams])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_input_once_with_its_task(make, sizes, shuffle):
    meta = meta_task(make(sizes), shuffle=shuffle)
    assert meta.num_classes == len(sizes)
    for _ in range(2):
        batches = list(meta)
        x, y = (torch.cat(part) for part in zip(*batches))
        assert y.dtype == torch.int64
        assert torch.equal(x.flatten().long() // 1000, y)
        assert sorted(x.flatten().tolist()) == sorted(torch.cat([task_data(t, n)[0] for t, n in enumerate(sizes)]))


@pytest.mark.parametrize("make", [tensor_loaders, data_loaders, mixed_loaders, streams])
@pytest.mark.parametrize("shuffle", [True, False])
def test_labels_are_classes_counted_through_where_they_are_asked_for(make, shuffle):
    meta = MetaLoader(make([17, 40, 3]), 8, shuffle, classes=(2, 3, 2))
    x, y = (torch.cat(part) for part in zip(*meta))
    values = x.flatten().long()
    assert meta.num_classes == 7 and y.dtype == torch.int64
    assert torch.equal(y, torch.tensor([0, 2, 5])[values // 1000] + values % 2)


@pytest.mark.parametrize(
    "labels, message",
    [
        (torch.arange(20) % 3, r"Task 1's labels lie in 0\.\.2, expected 0\.\.1"),
        (torch.zeros(20), r"Task 1's labels are \[\d+\] of torch.float32, expected class indices"),
        (torch.zeros(20, 1, dtype=torch.int64), r"Task 1's labels are \[\d+, 1\] of torch.int64"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels, message):
    bad = DataLoader(TensorDataset(torch.zeros(20, 1), labels), 20)
    with pytest.raises(InputError, match=message):
        list(MetaLoader([*data_loaders([20]), bad], classes=(2, 2)))
    assert len(list(MetaLoader([*data_loaders([20]), bad], 8))) == 5, "tasks need no labels"


def test_labels_of_data_sets_are_checked_before_the_first_batch():
    """Labels on a GPU are checked once, since a check for each batch would wait for the GPU."""
    bad = TensorLoader(torch.zeros(6, 1), torch.tensor([0, 1, 2, 0, 1, 2]), 3)
    with pytest.raises(InputError, match=r"Task 1's labels lie in 0\.\.2, expected 0\.\.1"):
        MetaLoader([*tensor_loaders([6]), bad], classes=(2, 2))


@pytest.mark.parametrize("make", [tensor_loaders, data_loaders, mixed_loaders, streams])
def test_batches_mix_the_tasks_and_keep_their_size(make):
    for x, y in meta_task(make([64, 64, 64, 64])):
        assert len(y.unique()) >= 2
        assert len(x) == 8


def test_loaders_of_different_lengths_end_together():
    counts = [y.bincount(minlength=2) for _, y in MetaLoader(data_loaders([160, 40]), batch_size=20)]
    assert all(c[1] >= 1 for c in counts), "a tail of one task alone would teach the router to say that task"


def test_the_joint_shuffle_differs_by_epoch_and_repeats():
    first, second = (MetaLoader(tensor_loaders([30, 30]), seed=1) for _ in range(2))
    epochs = [torch.cat([x for x, _ in first]) for _ in range(3)]
    assert not torch.equal(epochs[0], epochs[1])
    second.set_epoch(2)
    assert torch.equal(torch.cat([x for x, _ in second]), epochs[2])


def test_loaders_and_data_are_left_as_they_are():
    loaders = mixed_loaders([20, 20])
    tensors = tensor_loaders([20, 20])
    before = [loader.x.clone() for loader in tensors]
    list(MetaLoader(loaders)), list(MetaLoader(tensors))
    assert loaders[0].epoch == tensors[0].epoch == 0
    assert all(torch.equal(a, b.x) for a, b in zip(before, tensors))


def test_length_is_that_of_an_epoch():
    meta = meta_task(tensor_loaders([30, 31, 4]), batch_size=8)
    assert len(meta) == len(list(meta)) == 8, "65 rows: the lone sample joins the eighth batch"
    assert len(meta_task(data_loaders([32, 32]))) == len(list(meta_task(data_loaders([32, 32])))) == 8
    with pytest.raises(TypeError):
        len(meta_task(streams([8, 8])))


def test_permuted_tasks_have_inputs_of_their_own():
    g = torch.Generator().manual_seed(0)
    images = ImageSet(torch.randint(0, 256, (12, 1, 4, 4), dtype=torch.uint8, generator=g), torch.arange(12) % 3, 3)
    tasks = permuted((images, images), 3)
    everything = [{tuple(x.flatten().tolist()) for x in t.normalisation(t.train.images)} for t in tasks]
    for x, y in meta_task(tasks, batch_size=5):
        for row, task in zip(x, y):
            assert tuple(row.flatten().tolist()) in everything[task]
    x, y = (torch.cat(part) for part in zip(*meta_task(tasks, split="test")))
    assert y.tolist() == [0] * 12 + [1] * 12 + [2] * 12
    assert torch.equal(x[12:24], tasks[1].normalisation(tasks[1].test.images))


def test_augmentation_of_the_tasks_is_applied():
    x = torch.randint(0, 256, (20, 1, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(20, dtype=torch.int64)
    plain = MetaLoader([TensorLoader(x, y, 20)] * 2)
    changed = MetaLoader([TensorLoader(x, y, 20, preparation=Preparation(Augmentation(flip=True)))] * 2)
    assert changed.has_augmentation and not plain.has_augmentation
    assert not torch.equal(next(iter(plain))[0], next(iter(changed))[0])


def test_image_sets_share_the_first_ones_normalisation():
    dark = ImageSet(torch.tensor([0, 100]).view(2, 1, 1, 1).to(torch.uint8), torch.tensor([0, 1]), 2)
    light = ImageSet(torch.tensor([100, 200]).view(2, 1, 1, 1).to(torch.uint8), torch.tensor([0, 1]), 2)
    ((x, y),) = list(meta_task([dark, light], shuffle=False))
    assert x[1] == x[2], "the same grey is the same input, whatever the task"
    assert y.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("loaders", "says"),
    [
        ([], "no loaders"),
        ([iter(tensor_loaders([8])[0])], "iterator"),
        ([7], "loader is 7"),
        ([torch.zeros(3)], "Tensor"),
        ([[]], "Task 0's loader is empty"),
        (
            tensor_loaders([4]) + [TensorLoader(torch.zeros(4, 2), torch.zeros(4).long(), 2)],
            "Task 1's inputs",
        ),
        (tensor_loaders([4]) + [[(torch.zeros(4, 2), torch.zeros(4))]], "Task 1's inputs"),
        ([[torch.zeros(4, 2)]], "pair"),
        ([[(torch.zeros(4, 2), 1, 2)]], "pair"),
        (streams([4, 0]), "Task 1's loader gave no batch"),
    ],
)
def test_bad_loaders_are_refused(loaders, says):
    with pytest.raises(InputError, match=says):
        list(MetaLoader(loaders))


def test_bad_arguments_are_refused():
    with pytest.raises(InputError, match="batch_size"):
        MetaLoader(tensor_loaders([4]), batch_size=0)
    with pytest.raises(InputError, match="split"):
        meta_task(tensor_loaders([4]), split="all")
    with pytest.raises(InputError, match="epoch"):
        MetaLoader(tensor_loaders([4])).set_epoch(-1)


def test_few_batches_are_held_at_once_beside_a_loader_of_one_batch():
    drawn = []

    class Counting(TensorDataset):
        def __getitem__(self, i):
            drawn.append(i)
            return super().__getitem__(i)

    long = DataLoader(Counting(*task_data(0, 800)), 8)
    next(iter(MetaLoader([long, *data_loaders([8])])))
    assert len(drawn) <= 9 * 8

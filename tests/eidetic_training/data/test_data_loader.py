"""TensorLoader: every row once an epoch, the same from one seed, no batch of one, bad input refused."""

import pytest
import torch

from eidetic_kernels.errors import InputError
from eidetic_training.data import Augmentation, Normalisation, Preparation, TensorLoader


def numbered(rows):
    """Row i holds i, so that a batch shows its rows."""
    return torch.arange(rows, dtype=torch.float32).view(-1, 1), torch.arange(rows) % 3


def rows_of(loader):
    return torch.cat([x for x, _ in loader]).flatten().tolist()


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 16, 17, 23])
@pytest.mark.parametrize("batch_size", [1, 2, 4, 8, 100])
@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_has_every_row_once_and_no_lone_sample(rows, batch_size, shuffle):
    x, y = numbered(rows)
    loader = TensorLoader(x, y, batch_size, shuffle)
    batches = list(loader)
    assert len(batches) == len(loader)
    assert sorted(torch.cat([b for b, _ in batches]).flatten().tolist()) == list(range(rows))
    for bx, by in batches:
        assert torch.equal(bx.flatten().long() % 3, by)
        assert len(bx) > 1 or batch_size == 1 or rows == 1


def test_the_lone_sample_joins_the_batch_before_it():
    assert [len(y) for _, y in TensorLoader(*numbered(9), 4)] == [4, 5]
    assert [len(y) for _, y in TensorLoader(*numbered(10), 4)] == [4, 4, 2]


def test_drop_last_drops_the_rest():
    assert [len(y) for _, y in TensorLoader(*numbered(9), 4, drop_last=True)] == [4, 4]
    assert [len(y) for _, y in TensorLoader(*numbered(8), 4, drop_last=True)] == [4, 4]
    with pytest.raises(InputError, match="drop_last"):
        TensorLoader(*numbered(3), 4, drop_last=True)


def test_epochs_differ_and_repeat_from_seed_and_epoch():
    first, second = (TensorLoader(*numbered(50), 8, seed=3) for _ in range(2))
    epochs = [rows_of(first) for _ in range(4)]
    assert len({tuple(e) for e in epochs}) == 4
    assert [rows_of(second) for _ in range(4)] == epochs
    resumed = TensorLoader(*numbered(50), 8, seed=3)
    resumed.set_epoch(2)
    assert [rows_of(resumed) for _ in range(2)] == epochs[2:]
    assert rows_of(TensorLoader(*numbered(50), 8, seed=4)) != epochs[0]


@pytest.mark.parametrize("shuffle", [True, False])
def test_numbered_batches_are_the_batches_and_say_which_rows_they_are(shuffle):
    plain, other = (TensorLoader(*numbered(23), 4, shuffle, seed=3) for _ in range(2))
    for _ in range(2):
        batches = list(other.numbered())
        assert sum(len(rows) for rows, _, _ in batches) == 23
        for (x, y), (rows, nx, ny) in zip(plain, batches, strict=True):
            assert torch.equal(x, nx) and torch.equal(y, ny)
            assert rows.dtype == torch.int64 and torch.equal(x.flatten(), rows.float())
    assert other.epoch == plain.epoch == 2


def test_order_is_pinned():
    """A run resumed with a later version must see the batches it would have seen."""
    assert rows_of(TensorLoader(*numbered(8), 8, seed=0)) == [7, 0, 2, 4, 1, 3, 5, 6]


def test_the_global_random_state_has_no_part_in_it():
    loader = TensorLoader(*numbered(20), 4)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = rows_of(loader)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    loader.set_epoch(0)
    assert rows_of(loader) == first


def test_an_epoch_left_early_counts_and_two_may_run_at_once():
    loader, other = (TensorLoader(*numbered(20), 4, seed=1) for _ in range(2))
    next(iter(loader))
    rows_of(other)
    assert rows_of(loader) == rows_of(other)
    interleaved = [torch.cat([a, b]) for (a, _), (b, _) in zip(iter(loader), iter(loader))]
    assert len(interleaved) == 5


def test_batches_of_an_epoch_leave_the_count_alone():
    loader = TensorLoader(*numbered(20), 4)
    third = [x for x, _ in loader.batches(2)]
    assert loader.epoch == 0
    loader.set_epoch(2)
    assert all(torch.equal(a, b) for a, (b, _) in zip(third, loader, strict=True))


def test_bytes_are_normalised_with_their_own_or_the_given_numbers():
    x = torch.randint(0, 256, (40, 2, 3, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(40, dtype=torch.int64)
    got = torch.cat([b for b, _ in TensorLoader(x, y, 16, shuffle=False)])
    assert torch.equal(got, Normalisation.of(x)(x))
    other = Normalisation((0.1, 0.2), (0.3, 0.4))
    got = torch.cat([b for b, _ in TensorLoader(x, y, 16, shuffle=False, preparation=Preparation(normalisation=other))])
    mean, std = torch.tensor(other.mean).view(2, 1, 1), torch.tensor(other.std).view(2, 1, 1)
    assert torch.allclose(got, (x / 255 - mean) / std, atol=1e-6)


def test_a_batch_of_rows_is_normalised_to_the_same_bits_as_the_whole():
    x = torch.randint(0, 256, (40, 1, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    loader = TensorLoader(x, torch.arange(40), 7)
    whole = loader.preparation(x)
    for bx, by in loader:
        assert torch.equal(bx, whole[by])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_batches_are_float32_and_never_the_data_itself(dtype):
    x = torch.ones(8, 1, 2, 2, dtype=dtype)
    for shuffle in (True, False):
        for bx, _ in TensorLoader(x, torch.zeros(8, dtype=torch.int64), 4, shuffle):
            assert bx.dtype == torch.float32
            bx.fill_(7)
    assert torch.equal(x, torch.ones_like(x))


def test_augmentation_is_repeatable_and_resumes():
    x = torch.randint(0, 256, (30, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def make():
        return TensorLoader(
            x, torch.arange(30), 10, seed=1, preparation=Preparation(Augmentation(flip=True, crop_padding=2))
        )

    first, second = make(), make()
    second.set_epoch(1)
    list(first)
    assert first.has_augmentation and not TensorLoader(x, torch.arange(30), 10).has_augmentation
    for (a, i), (b, j) in zip(first, second, strict=True):
        assert torch.equal(a, b) and torch.equal(i, j)
    assert not torch.equal(a, first.preparation(x.index_select(0, i)))


def test_resampled_bytes_are_on_the_scale_of_bytes():
    x = torch.full((4, 1, 8, 8), 200, dtype=torch.uint8)
    loader = TensorLoader(
        x,
        torch.zeros(4, dtype=torch.int64),
        4,
        preparation=Preparation(Augmentation(resized_crop=(0.5, 1.0)), Normalisation((0.5,), (0.25,))),
    )
    ((bx, _),) = list(loader)
    assert torch.allclose(bx, torch.full_like(bx, (200 / 255 - 0.5) / 0.25), atol=1e-5)


X, Y = torch.zeros(6, 1, 2, 2), torch.zeros(6, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((X[:0], Y[:0], 4), "empty"),
        ((X, Y[:5], 4), "6 images but 5"),
        ((X, Y.int(), 4), "int64"),
        ((X, Y - 1, 4), "-1"),
        ((X, Y, 0), "batch_size must be a whole number, 1 or more; got 0"),
        ((X, Y, 2.0), "batch_size must be a whole number, 1 or more; got 2.0"),
        ((X, Y, True), "batch_size must be a whole number, 1 or more; got True"),
        ((X.long(), Y, 4), "dtype"),
        ((Y, Y, 4), r"tensor \[N, "),
        ((X.tolist(), Y, 4), "list"),
        ((X.flatten(1), Y, 4, True, 0, Preparation(Augmentation(flip=True))), "augment"),
    ],
)
def test_bad_input_is_refused(arguments, says):
    with pytest.raises(InputError, match=says):
        TensorLoader(*arguments)


def test_labels_beyond_the_classes_are_refused():
    with pytest.raises(InputError, match=r"0\.\.1"):
        TensorLoader(X, Y + 2, 4, num_classes=2)
    assert TensorLoader(X, Y + 2, 4).num_classes == 3
    assert TensorLoader(X, Y, 4, num_classes=5).num_classes == 5
    with pytest.raises(InputError, match="epoch must be a whole number, 0 or more; got -1"):
        TensorLoader(X, Y, 4).set_epoch(-1)


def test_moving_keeps_everything():
    loader = TensorLoader(*numbered(20), 4, seed=9)
    list(loader)
    assert rows_of(loader.to("cpu")) == rows_of(loader)


def test_floats_keep_their_scale():
    x, y = torch.tensor([[2.0], [4.0]]), torch.tensor([0, 1])
    assert next(iter(TensorLoader(x, y, 2, shuffle=False)))[0].tolist() == [[2.0], [4.0]]
    given = TensorLoader(x, y, 2, shuffle=False, preparation=Preparation(normalisation=Normalisation((3.0,), (0.5,))))
    assert next(iter(given))[0].tolist() == [[-2.0], [2.0]]

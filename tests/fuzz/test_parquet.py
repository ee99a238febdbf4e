"""Parquet files damaged at random load, or are refused with an InputError that names the file: nothing else happens."""

import functools
import io
import json

import numpy as np
import pytest
from fuzzing import damaged, run_cases

from eidetic_kernels.errors import InputError
from eidetic_training.data import load

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
Image = pytest.importorskip("PIL.Image")

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow warns of damage that it can live with
ROWS = 24


def encode(pixels, form="PNG"):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


@functools.cache
def good_files():
    """Small files in the ways in which Parquet can be written."""
    pixels = np.random.default_rng(0).integers(0, 256, (ROWS, 6, 6, 3), dtype=np.uint8)
    colours = [encode(p) for p in pixels]
    greys = [encode(p[:, :, 0]) for p in pixels]
    repeated = [encode(p, "JPEG") for p in pixels[:3]] * (ROWS // 3)
    names = {"huggingface": json.dumps({"info": {"features": {"label": {"names": ["a", "b", "c"]}}}})}

    def struct(images):
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        return pa.array([{"bytes": b, "path": f"{i}.png"} for i, b in enumerate(images)], kind)

    def file(images, metadata=None, labels="int64", **options):
        columns = {"image": images, "label": pa.array([i % 3 for i in range(ROWS)], labels)}
        stream = io.BytesIO()
        pq.write_table(pa.table(columns).replace_schema_metadata(metadata), stream, **options)
        return stream.getvalue()

    return (
        file(struct(greys)),
        file(struct(colours), names, row_group_size=7),
        file(pa.array(greys), compression="none", use_dictionary=False),
        file(pa.array(repeated), names, "uint8", compression="zstd"),
        file(struct(colours), None, "int32", compression="gzip", data_page_version="2.0", data_page_size=256),
        file(pa.array(colours, pa.large_binary()), None, "uint64", write_page_checksum=True),
        file(struct(greys), names, compression="none", write_page_index=True, store_schema=False),
    )


def test_good_files_load(tmp_path):
    for data in good_files():
        (tmp_path / "train.parquet").write_bytes(data)
        images = load("parquet", "train", tmp_path)
        assert len(images) == ROWS and images.classes == 3


def test_damaged_files_load_or_are_refused(tmp_path):
    path = tmp_path / "train.parquet"

    def case(rng):
        good = rng.choice(good_files())
        footer = len(good) - 8 - int.from_bytes(good[-8:-4], "little")
        # Most of a file's structure is in its footer; a cut or moved one is found at once, and nothing else is read.
        window = rng.choice((None, (0, footer), (footer, len(good) - 8)))
        path.write_bytes(damaged(good, good_files(), rng, window))
        try:
            images = load("parquet", "train", tmp_path, resolution=rng.choice((None, None, 5)))
        except InputError as error:
            assert str(tmp_path) in str(error), error
            raise
        assert len(images.labels) == len(images) and 0 <= int(images.labels.min())
        assert int(images.labels.max()) < images.classes <= 2**15
        return "loaded"

    ends = run_cases("Parquet", 400, case)
    assert ends["loaded"] and ends["InputError"] or sum(ends.values()) < 100

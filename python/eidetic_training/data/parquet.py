"""Image sets in Parquet files, in the layout of the Hugging Face hub.

A row is an image and an integer label. The image is a struct of encoded ``bytes`` and a ``path``, or plain binary.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from eidetic_kernels.checking import one_of, whole_number
from eidetic_kernels.errors import InputError

from ._extras import need

_SPLIT_NAMES = {"train": ("train",), "test": ("test", "validation", "valid", "val")}
_SHARD = re.compile(r"-(\d+)-of-(\d+)")
_ROWS_AT_ONCE = 2048
# Small images decode faster in one thread: 10,000 PNGs of 28x28 take 0.33 s, in two threads 0.58.
_BYTES_WORTH_A_THREAD = 4096


def find_files(folder: str | Path, split: str, prefer: Sequence[str] = ()) -> list[Path]:
    """The Parquet files of ``split``: "train", or "test" (validation if there is no test split).

    Enters each folder of ``prefer`` that exists. Then it looks, at any depth, for ``SPLIT.parquet``,
    ``SPLIT-00000-of-00002.parquet`` and ``SPLIT/*.parquet``.

    Raises InputError when there is none, when a shard is missing, or when several folders hold the split.
    """
    one_of("split", split, tuple(_SPLIT_NAMES))
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"there is no folder {str(root)!r}: give the folder that holds the Parquet files.")
    for name in prefer:
        if (root / name).is_dir():
            root = root / name

    every = sorted(root.rglob("*.parquet"))
    for alias in _SPLIT_NAMES[split]:
        files = [f for f in every if re.fullmatch(rf"{alias}(-.*)?", f.stem) or f.parent.name == alias]
        if files:
            _check_shards(files)
            return files

    there = ", ".join(str(f.relative_to(root)) for f in every[:5]) or "no Parquet file at all"
    raise InputError(
        f"no Parquet file of split {split!r} in {str(root)!r}, which holds {there}. "
        f"Expected {split}.parquet, {split}-00000-of-0000N.parquet or {split}/*.parquet."
    )


def _check_shards(files: list[Path]) -> None:
    if len({f.parent for f in files}) > 1:
        parents = ", ".join(sorted({str(f.parent) for f in files}))
        raise InputError(f"several folders hold this split: {parents}. Give the one that is meant.")
    shards = [m for f in files if (m := _SHARD.search(f.stem))]
    if not shards:
        return
    there, totals = {int(m[1]) for m in shards}, {int(m[2]) for m in shards}
    if len(totals) > 1 or len(shards) != len(files) or there != set(range(max(totals))):
        raise InputError(
            f"expected the {max(totals)} shards of one set; got {', '.join(f.name for f in files)}. "
            "Download the missing ones, or keep each set in a folder of its own."
        )


def read_images(
    files: Sequence[Path],
    image_column: str | None = None,
    label_column: str | None = None,
    channels: int | None = None,
    resolution: int | None = None,
) -> tuple[Tensor, Tensor, int | None]:
    """Decode Parquet files into (images uint8 [N, C, H, W], labels int64 [N], number of classes or None).

    The number of classes is what the files' own metadata say, if anything.

    Args:
        image_column, label_column: left out, they are found by their type.
        channels: 1 (grey) or 3 (RGB); left out, it is 3 unless every image is grey.
        resolution: resize each image so that its shorter side has this many pixels, and cut out the central square.

    Raises InputError for missing columns, and for images that cannot be decoded, that have no label, or that differ in
    size while no resolution is given.
    """
    need("PIL.Image", "decoding images")
    parquet = need("pyarrow.parquet", "reading Parquet files")
    if resolution is not None:
        whole_number("resolution", resolution, least=1, unit="pixels")
    tables = [_open(parquet, path, image_column, label_column) for path in files]
    rows = sum(table.metadata.num_rows for table, _, _ in tables)
    if rows == 0:
        raise InputError(f"{', '.join(f.name for f in files)}: no rows, expected at least one image.")
    if channels is None:
        channels = 1 if _all_grey(tables, files) else 3

    images, labels, at = None, np.empty(rows, dtype=np.int64), 0
    with ThreadPoolExecutor() as pool:
        for path, (table, image, label) in zip(files, tables, strict=True):
            for first_row, encoded, some in _rows(path, table, image, label):
                decoded = _decodable(path, first_row, _decode_all(encoded, channels, resolution, pool))
                if images is None:
                    images = np.empty((rows, *decoded[0].shape), dtype=np.uint8)
                for offset, pixels in enumerate(decoded):
                    if pixels.shape != images.shape[1:]:
                        raise InputError(
                            f"{path.name}: images differ in size ({_size(images[0])} and {_size(pixels)} pixels), "
                            "expected one size. Pass resolution=... to resize them and cut out the centre."
                        )
                    images[at + offset] = pixels
                labels[at : at + len(decoded)] = some
                at += len(decoded)
    return torch.from_numpy(images), torch.from_numpy(labels), _declared_classes(tables[0])


def _open(parquet, path: Path, image_column: str | None, label_column: str | None):
    arrow = need("pyarrow", "reading Parquet files")
    try:
        table = parquet.ParquetFile(path)
    except (OSError, arrow.ArrowException) as error:
        raise InputError(f"{path} is not a readable Parquet file: {error}. Download or write it again.") from error
    schema, types = table.schema_arrow, arrow.types
    images = [
        f.name for f in schema if types.is_binary(f.type) or types.is_large_binary(f.type) or _is_image_struct(f.type)
    ]
    labels = [f.name for f in schema if types.is_integer(f.type)]
    image = _choose(path, schema, "image (struct with 'bytes', or binary)", images, image_column, ("image", "img"))
    label = _choose(path, schema, "label (integer)", labels, label_column, ("label", "labels", "fine_label"))
    return table, image, label


def _is_image_struct(kind) -> bool:
    types = need("pyarrow", "reading Parquet files").types
    return types.is_struct(kind) and any(kind.field(i).name == "bytes" for i in range(kind.num_fields))


def _choose(path: Path, schema, what: str, found: list[str], wanted: str | None, usual: Sequence[str]) -> str:
    if wanted is not None:
        if wanted in found:
            return wanted
        raise InputError(
            f"{path.name} has no {what} column {wanted!r}; its columns are {', '.join(schema.names)}. "
            'Load it with the name "parquet" and image_column=, label_column=.'
        )
    candidates = [name for name in usual if name in found][:1] or found
    if len(candidates) != 1:
        raise InputError(
            f"{path.name}: expected one {what} column, found {', '.join(found) or 'none'} among "
            f"{', '.join(schema.names)}. Name it with image_column= or label_column=."
        )
    return candidates[0]


def _rows(path: Path, table, image: str, label: str) -> Iterator[tuple[int, list[bytes], np.ndarray]]:
    """(first row, encoded images, labels), a few thousand rows at a time, so that memory never holds a whole file."""
    at = 0
    for batch in table.iter_batches(_ROWS_AT_ONCE, columns=[image, label]):
        column, numbers = batch.column(image), batch.column(label)
        encoded = (column.field("bytes") if _is_image_struct(column.type) else column).to_pylist()
        if None in encoded:
            raise InputError(
                f"{path.name}, row {at + encoded.index(None)}: the image has no bytes. "
                "Only files that embed their images can be read, not files that name them by path."
            )
        if numbers.null_count:
            raise InputError(
                f"{path.name}, rows {at}..{at + len(encoded) - 1}: {numbers.null_count} labels are missing."
            )
        yield at, encoded, numbers.to_numpy(zero_copy_only=False).astype(np.int64)
        at += len(encoded)


def _all_grey(tables, files: Sequence[Path]) -> bool:
    """Whether no image has colours. Only headers are read."""
    image_module = need("PIL.Image", "decoding images")
    for path, (table, image, label) in zip(files, tables, strict=True):
        for _, encoded, _ in _rows(path, table, image, label):
            for data in encoded:
                try:
                    with image_module.open(io.BytesIO(data)) as picture:
                        if picture.mode not in ("L", "1", "I", "I;16", "LA"):
                            return False
                except OSError:
                    continue  # decoding reports it, with its row
    return True


def _decode_all(
    encoded: list[bytes], channels: int, resolution: int | None, pool: ThreadPoolExecutor
) -> list[np.ndarray | Exception]:
    mode = {1: "L", 3: "RGB"}[channels]
    work = (encoded, [mode] * len(encoded), [resolution] * len(encoded))
    small = sum(map(len, encoded)) < _BYTES_WORTH_A_THREAD * len(encoded)
    return list(map(_decode, *work) if small else pool.map(_decode, *work))


def _decodable(path: Path, first_row: int, decoded: list[np.ndarray | Exception]) -> list[np.ndarray]:
    """``decoded`` as it is. Raises InputError, which names the row, where an image could not be decoded."""
    images = []
    for row, pixels in enumerate(decoded, first_row):
        if isinstance(pixels, Exception):
            raise InputError(
                f"{path.name}, row {row}: the image cannot be decoded ({pixels}). "
                "Download or write the file again, or leave the row out."
            ) from pixels
        images.append(pixels)
    return images


def _decode(data: bytes, mode: str, resolution: int | None) -> np.ndarray | Exception:
    """uint8 [C, H, W], or the error of an image that cannot be decoded: the caller names its row."""
    image_module = need("PIL.Image", "decoding images")
    try:
        with image_module.open(io.BytesIO(data)) as picture:
            if picture.mode != mode:
                picture = picture.convert(mode)
            if resolution is not None and picture.size != (resolution, resolution):
                picture = _fit(picture, resolution)
            pixels = np.asarray(picture, dtype=np.uint8)
    except (OSError, SyntaxError, ValueError) as error:
        return error
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def decode_file(path: str | Path, grey: bool, resolution: int) -> np.ndarray:
    """An image file as uint8 [1 or 3, resolution, resolution], resized and cut as a data set's images are.

    Raises InputError when it cannot be read.
    """
    try:
        pixels = _decode(Path(path).read_bytes(), "L" if grey else "RGB", resolution)
    except OSError as error:
        pixels = error
    if isinstance(pixels, Exception):
        raise InputError(f"{path} cannot be read as an image: {pixels}")
    return pixels


def _fit(picture, resolution: int):
    """Resize the shorter side to ``resolution`` (bilinear, antialiased), then cut out the central square."""
    width, height = picture.size
    scale = resolution / min(width, height)
    size = (max(resolution, round(width * scale)), max(resolution, round(height * scale)))
    if picture.size != size:
        picture = picture.resize(size, resample=2)  # PIL.Image.Resampling.BILINEAR
    left, top = (size[0] - resolution) // 2, (size[1] - resolution) // 2
    return picture.crop((left, top, left + resolution, top + resolution))


def _declared_classes(opened) -> int | None:
    """The number of classes in the metadata that the hub's own library writes; None without such metadata."""
    table, _, label = opened
    try:
        features = json.loads(table.schema_arrow.metadata[b"huggingface"])["info"]["features"]
        return len(features[label]["names"])
    except (KeyError, TypeError, ValueError):
        return None


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[2]}x{pixels.shape[1]}"

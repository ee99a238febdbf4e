"""Image sets in Parquet files, in the layout of the Hugging Face hub.

A row is an image and an integer label. The image is a struct of encoded ``bytes`` and a ``path``, or plain binary.

Files may come from anywhere and be damaged anywhere: whatever pyarrow raises while it reads one becomes an InputError
that names the file. What a file says about its own size is checked before memory is taken for it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from eidetic_kernels.checking import shown
from eidetic_kernels.errors import InputError

from ._extras import need
from ._memory import bytes_of_memory
from .encoded import decode, is_grey

_MOST_ROWS_AT_ONCE, _FEWEST_ROWS_AT_ONCE = 256, 64
_BYTES_AT_ONCE = 2**30
# Encoded images hardly shrink any further. A file of 31 kB can hold an image of 1 GB of zeros.
_MOST_SHRUNK, _ROW_GROUP_OF_ANY_FILE = 100, 2**28
# Small images decode faster in one thread: 10,000 PNGs of 28x28 take 0.33 s, in two threads 0.58.
_BYTES_WORTH_A_THREAD = 4096
_MOST_METADATA = 2**24  # bytes; the hub's names of 1,000 classes take 30,000


class _Table(NamedTuple):
    """An open Parquet file and its columns."""

    path: Path
    file: Any  # pyarrow.parquet.ParquetFile
    rows: int
    image: str
    label: str
    image_is_struct: bool


def read_images(
    files: Sequence[Path],
    image_column: str | None = None,
    label_column: str | None = None,
    channels: int | None = None,
    resolution: int | None = None,
    classes: int | None = None,
) -> tuple[Tensor, Tensor, int | None]:
    """Decode Parquet files into (images uint8 [N, C, H, W], labels int64 [N], number of classes or None).

    The number of classes is ``classes``, or what the files' own metadata say, if anything. How images of more than 8
    bits, transparent or turned ones are decoded: :mod:`eidetic_training.data.encoded`.

    Args:
        image_column, label_column: left out, they are found by their type.
        channels: 1 (grey) or 3 (RGB); left out, it is 3 unless every image is grey.
        resolution: resize each image so that its shorter side has this many pixels, and cut out the central square.
        classes: labels are in 0..classes-1.

    Raises InputError, which names the file and where possible the row: for damaged files, missing columns or columns
    with one name, labels out of range, images that cannot be decoded, that have no label, or that differ in size while
    no resolution is given, and for more pixels than the machine's memory holds.
    """
    need("PIL.Image", "decoding images")
    need("pyarrow.parquet", "reading Parquet files")
    tables = [_open(path, image_column, label_column) for path in files]
    rows = sum(table.rows for table in tables)
    if rows == 0:
        raise InputError(f"{', '.join(map(str, files))}: no rows, expected at least one image.")
    if classes is None:
        classes = _declared_classes(tables[0])
    if channels is None:
        channels = 1 if _all_grey(tables) else 3

    images, labels, at = None, [], 0
    with ThreadPoolExecutor() as pool:
        for table in tables:
            for first_row, encoded, some in _rows(table):
                _check_labels(table, first_row, some, classes)
                decoded = _decode_all(table, first_row, encoded, channels, resolution, pool)
                for row, pixels in enumerate(decoded, first_row):
                    if images is None:
                        images = _room(table, rows, pixels.shape)
                    if pixels.shape != images.shape[1:]:
                        raise InputError(
                            f"{table.path}, row {row}: images differ in size ({_size(images[0])} and {_size(pixels)} "
                            "pixels), expected one size. Pass resolution=... to resize them and cut out the centre."
                        )
                    images[at] = pixels
                    at += 1
                labels.append(some)
    assert images is not None  # there are rows, and _rows yields them all
    return torch.from_numpy(images), torch.from_numpy(np.concatenate(labels)), classes


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever pyarrow raises into an InputError that names the file.

    A damaged file makes it raise errors of many kinds, which differ by version: its own, OSError, UnicodeDecodeError,
    OverflowError, MemoryError.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise InputError(f"{path} is not a readable Parquet file: {reason}. Download or write it again.") from error


def _open(path: Path, image_column: str | None, label_column: str | None) -> _Table:
    arrow = need("pyarrow", "reading Parquet files")
    parquet = need("pyarrow.parquet", "reading Parquet files")
    with _reading(path):
        # Pages with a checksum are compared with it: damage that decodes to other pixels or labels is found, too.
        file = parquet.ParquetFile(path, page_checksum_verification=True)
        schema, rows = file.schema_arrow, file.metadata.num_rows
        names = list(schema.names)
        _check_sizes(path, file.metadata)

    types = arrow.types
    images = [f.name for f in schema if _is_binary(f.type) or _is_image_struct(f.type)]
    labels = [f.name for f in schema if types.is_integer(f.type)]
    image = _choose(
        path, names, "image (struct with binary 'bytes', or binary)", images, image_column, ("image", "img")
    )
    label = _choose(path, names, "label (integer)", labels, label_column, ("label", "labels", "fine_label"))
    return _Table(path, file, rows, image, label, _is_image_struct(schema.field(image).type))


def _check_sizes(path: Path, metadata: Any) -> None:
    """Raise InputError for row counts that contradict each other, and for row groups too large to be read."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    counted = sum(group.num_rows for group in groups)
    if metadata.num_rows != counted or any(group.num_rows < 0 for group in groups):
        raise InputError(
            f"{path} declares {metadata.num_rows:,} rows, but its row groups hold {counted:,}. "
            "Download or write it again."
        )

    memory, size = bytes_of_memory(), path.stat().st_size
    most = max(_ROW_GROUP_OF_ANY_FILE, _MOST_SHRUNK * size)
    most = most if memory is None else min(most, memory)
    for i, group in enumerate(groups):
        if group.total_byte_size > most:
            raise InputError(
                f"{path}, row group {i} takes {group.total_byte_size:,} bytes when it is read, expected at most "
                f"{most:,} for a file of {size:,} bytes on this machine. Write it again in smaller row groups."
            )


def _is_binary(kind: Any) -> bool:
    types = need("pyarrow", "reading Parquet files").types
    return types.is_binary(kind) or types.is_large_binary(kind)


def _is_image_struct(kind: Any) -> bool:
    types = need("pyarrow", "reading Parquet files").types
    if not types.is_struct(kind):
        return False
    fields = [kind.field(i) for i in range(kind.num_fields)]
    return [_is_binary(f.type) for f in fields if f.name == "bytes"] == [True]


def _choose(path: Path, names: list[str], what: str, found: list[str], wanted: str | None, usual: Sequence[str]) -> str:
    if wanted is not None and wanted not in found:
        raise InputError(
            f"{path} has no {what} column {shown(wanted)}; its columns are {_some(names)}. "
            'Load it with the name "parquet" and image_column=, label_column=.'
        )
    candidates = [wanted] if wanted is not None else [name for name in usual if name in found][:1] or found
    if len(candidates) != 1:
        raise InputError(
            f"{path}: expected one {what} column, found {_some(found) or 'none'} among "
            f"{_some(names)}. Name it with image_column= or label_column=."
        )
    if names.count(candidates[0]) > 1:
        raise InputError(
            f"{path} has {names.count(candidates[0])} columns with the name {candidates[0]!r}, expected one. "
            "Write it again with different names."
        )
    return candidates[0]


def _some(names: list[str]) -> str:
    """The first names, for a message."""
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _rows(table: _Table) -> Iterator[tuple[int, list[bytes], np.ndarray]]:
    """(first row, encoded images, labels int64), some rows at a time, so that memory never holds a whole file."""
    path, at = table.path, 0
    columns = [f"{table.image}.bytes" if table.image_is_struct else table.image, table.label]
    batches: Iterator[Any] = iter(())
    with _reading(path):
        batches = table.file.iter_batches(_rows_at_once(table.file.metadata), columns=columns)

    while True:
        with _reading(path):
            batch = next(batches, None)
            if batch is None:
                break
            column, numbers = batch.column(table.image), batch.column(table.label)
            # flatten: a missing struct has no bytes, whatever lies under it
            encoded = (column.flatten()[0] if table.image_is_struct else column).to_pylist()
            missing = numbers.is_null().to_pylist() if numbers.null_count else []
            labels = None if missing else numbers.to_numpy(zero_copy_only=False)

        if None in encoded:
            raise InputError(
                f"{path}, row {at + encoded.index(None)}: the image has no bytes. "
                "Only files that embed their images can be read, not files that name them by path."
            )
        if labels is None:
            raise InputError(
                f"{path}, row {at + missing.index(True)}: the label is missing. {sum(missing)} labels are missing in "
                f"rows {at}..{at + len(encoded) - 1}. Give every image a label, or leave the rows out."
            )
        if labels.dtype == np.uint64 and len(labels) and labels.max() > np.iinfo(np.int64).max:
            row = at + int(labels.argmax())
            raise InputError(f"{path}, row {row}: the label is {labels.max()}, expected less than 2^63. Renumber them.")
        yield at, encoded, labels.astype(np.int64)
        at += len(encoded)

    if at != table.rows:
        raise InputError(f"{path} declares {table.rows:,} rows and holds {at:,}. Download or write it again.")


def _rows_at_once(metadata: Any) -> int:
    """Fewer where a row can be large: a dictionary holds a value once, and a batch once for each of its rows."""
    largest = max((metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)), default=0)
    return max(_FEWEST_ROWS_AT_ONCE, min(_MOST_ROWS_AT_ONCE, _BYTES_AT_ONCE // max(largest, 1)))


def _check_labels(table: _Table, first_row: int, labels: np.ndarray, classes: int | None) -> None:
    wrong = (labels < 0) if classes is None else (labels < 0) | (labels >= classes)
    if wrong.any():
        row = int(wrong.argmax())
        expected = "0 or more" if classes is None else f"0..{classes - 1}"
        raise InputError(
            f"{table.path}, row {first_row + row}: the label is {labels[row]}, expected {expected}. "
            "Renumber the labels from 0, or leave the row out."
        )


def _all_grey(tables: Sequence[_Table]) -> bool:
    """Whether no image has colours. Only headers are read; an image that has none is found when it is decoded."""
    return all(is_grey(data) is not False for table in tables for _, encoded, _ in _rows(table) for data in encoded)


def _decode_all(
    table: _Table,
    first_row: int,
    encoded: list[bytes],
    channels: int,
    resolution: int | None,
    pool: ThreadPoolExecutor,
) -> Iterator[np.ndarray]:
    """uint8 [C, H, W] of each image in turn; a few are decoded ahead of the one that is taken."""
    arguments = ((table.path, row, data, channels, resolution) for row, data in enumerate(encoded, first_row))
    if sum(map(len, encoded)) < _BYTES_WORTH_A_THREAD * len(encoded):
        yield from map(_decode_row, arguments)
        return
    # Executor.map would decode all of them before the first is taken, and hold them all.
    waiting: deque[Future[np.ndarray]] = deque()
    for given in arguments:
        waiting.append(pool.submit(_decode_row, given))
        if len(waiting) > 2 * (os.cpu_count() or 1):
            yield waiting.popleft().result()
    for future in waiting:
        yield future.result()


def _decode_row(given: tuple[Path, int, bytes, int, int | None]) -> np.ndarray:
    path, row, data, channels, resolution = given
    try:
        return decode(data, channels, resolution)
    except InputError as error:
        raise InputError(
            f"{path}, row {row}: the image cannot be decoded: {error} "
            "Download or write the file again, or leave the row out."
        ) from error


def _room(table: _Table, rows: int, shape: tuple[int, ...]) -> np.ndarray:
    """Memory for all images. Raises InputError where the machine has too little."""
    wanted, most = rows * int(np.prod(shape)), bytes_of_memory()
    try:
        if most is not None and wanted > most:
            raise MemoryError
        return np.empty((rows, *shape), dtype=np.uint8)
    except (MemoryError, ValueError) as error:
        has = "" if most is None else f" of {most:,}"
        raise InputError(
            f"{table.path}: {rows:,} images of {list(shape)} take {wanted:,} bytes, expected at most this machine's "
            f"memory{has}. Ask for a lower resolution, or for fewer images."
        ) from error


def _declared_classes(table: _Table) -> int | None:
    """The number of classes in the metadata that the hub's own library writes; None without such metadata."""
    metadata = (table.file.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
    if len(metadata) > _MOST_METADATA:
        raise InputError(
            f"{table.path} has {len(metadata):,} bytes of metadata, expected at most {_MOST_METADATA:,}. "
            "Write it again without them."
        )
    try:
        names = json.loads(metadata)["info"]["features"][table.label]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return len(names) if isinstance(names, list) and names else None


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[2]}x{pixels.shape[1]}"

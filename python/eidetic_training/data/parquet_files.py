"""Which Parquet files of a folder hold a split, in the layouts of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from eidetic_kernels.checking import one_of
from eidetic_kernels.errors import InputError

_SPLIT_NAMES = {"train": ("train",), "test": ("test", "validation", "valid", "val")}
_SHARD = re.compile(r"-(\d+)-of-(\d+)")


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

    every = sorted(f for f in root.rglob("*.parquet") if f.is_file())
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
    if totals != {len(files)} or there != set(range(len(files))):
        raise InputError(
            f"expected the {max(totals)} shards of one set; got {', '.join(f.name for f in files)}. "
            "Download the missing ones, or keep each set in a folder of its own."
        )

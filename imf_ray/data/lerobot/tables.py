"""Reads the rows of one episode from a table (Parquet) of a LeRobot data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from imf_ray.data.lerobot.metadata import EPISODE_INDEX, EpisodeEntry, Feature
from imf_ray.data.source_files import fingerprint, open_source
from imf_ray.errors import UserError
from imf_ray.storage import AnyPath, parse_path

IMAGE_ROWS = 8
"""Number of rows with images that are read at once."""
_CACHED_TABLES = 64
"""Number of tables whose episode numbers are kept in memory."""


def episode_rows(folder: AnyPath, entry: EpisodeEntry) -> range:
    """Return the rows of an episode in its table.

    Raises:
        UserError: the table is missing, or does not have the episode's rows one after another.
        OSError: it cannot be read.
    """
    path = folder / entry.table
    try:
        numbers = _episode_numbers(str(path), fingerprint(path))
    except FileNotFoundError as error:
        raise UserError(f"its table {entry.table} is missing") from error
    (rows,) = np.nonzero(numbers == entry.number)
    if len(rows) != entry.length:
        raise UserError(
            f"its table {entry.table} has {len(rows)} rows of it, but meta/ says that it has "
            f"{entry.length} steps"
        )
    if not len(rows):
        raise UserError("it has no steps")
    if rows[-1] - rows[0] != len(rows) - 1:
        raise UserError(f"its rows are not one after another in {entry.table}")
    return range(int(rows[0]), int(rows[-1]) + 1)


@lru_cache(maxsize=_CACHED_TABLES)
def _episode_numbers(path: str, fingerprint: str) -> np.ndarray:
    with open_source(parse_path(path)) as source, pq.ParquetFile(source) as file:
        if EPISODE_INDEX not in file.schema_arrow.names:
            raise UserError(f"its table {path} lacks the column {EPISODE_INDEX}")
        numbers: np.ndarray = file.read(columns=[EPISODE_INDEX])[EPISODE_INDEX].to_numpy()
        return numbers


def read_columns(
    folder: AnyPath, entry: EpisodeEntry, features: Sequence[Feature], rows: range
) -> dict[str, np.ndarray]:
    """Return rows of the columns of some vectors, (n, D) of the type that is stored, by name.

    Raises:
        UserError: a column is missing, or does not have the type or the width that meta/ says.
        OSError: the table cannot be read.
    """
    names = [feature.name for feature in features]
    with open_source(folder / entry.table) as source, pq.ParquetFile(source) as file:
        _require_columns(file, entry, names)
        table = _read_rows(file, names, rows)
    return {feature.name: _vectors(table[feature.name], feature, entry) for feature in features}


def read_images(folder: AnyPath, entry: EpisodeEntry, name: str, rows: range) -> Iterator[bytes]:
    """Yield the encoded image of each row of a column, with few of them in memory.

    Raises:
        UserError: the column is missing or has a row without an image.
        OSError: the table cannot be read.
    """
    with open_source(folder / entry.table) as source, pq.ParquetFile(source) as file:
        _require_columns(file, entry, [name])
        groups, row = _row_groups(file, rows)
        for batch in file.iter_batches(IMAGE_ROWS, groups, [name], use_threads=False):
            for value in batch[name][max(0, rows.start - row) : max(0, rows.stop - row)]:
                yield _image_content(value.as_py(), name, entry)
            row += len(batch)
            if row >= rows.stop:
                return


def _image_content(value: object, name: str, entry: EpisodeEntry) -> bytes:
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        raise UserError(f"{name} has a step without an image in {entry.table}")
    return content


def _require_columns(file: pq.ParquetFile, entry: EpisodeEntry, names: Sequence[str]) -> None:
    missing = [name for name in names if name not in file.schema_arrow.names]
    if missing:
        raise UserError(f"its table {entry.table} lacks the column {missing[0]}")


def _read_rows(file: pq.ParquetFile, names: Sequence[str], rows: range) -> pa.Table:
    """Return some rows of some columns."""
    groups, first_row = _row_groups(file, rows)
    table = file.read_row_groups(groups, columns=list(names), use_threads=False)
    return table.slice(rows.start - first_row, len(rows))


def _row_groups(file: pq.ParquetFile, rows: range) -> tuple[list[int], int]:
    """Return the indices of the row groups that contain some rows, and their first row."""
    sizes = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
    starts = np.cumsum([0, *sizes])
    first = int(np.searchsorted(starts, rows.start, side="right")) - 1
    stop = int(np.searchsorted(starts, rows.stop, side="left"))
    return list(range(first, stop)), int(starts[first])


def _vectors(column: pa.ChunkedArray, feature: Feature, entry: EpisodeEntry) -> np.ndarray:
    """Return a column as an array (n, D)."""
    values = column.combine_chunks()
    label = f"{feature.name} in {entry.table}"
    if values.null_count:
        raise UserError(f"{label} has steps without a value")
    if pa.types.is_fixed_size_list(values.type) or pa.types.is_list(values.type):
        lengths = values.value_lengths().to_numpy(zero_copy_only=False)
        flat, width = values.flatten(), feature.shape[0]
        wrong = np.flatnonzero(lengths != width)
        if len(wrong):
            raise UserError(
                f"{label} has {lengths[wrong[0]]} numbers at step {wrong[0]}, but meta/info.json "
                f"says that it has {width}"
            )
    else:
        flat, width = values, 1
    is_number = pa.types.is_floating(flat.type) or pa.types.is_integer(flat.type)
    if flat.null_count or not (is_number or pa.types.is_boolean(flat.type)):
        raise UserError(f"{label} is of type {values.type}, or has missing numbers")
    array: np.ndarray = flat.to_numpy(zero_copy_only=False).reshape(len(values), width)
    return array

"""Content hash of an HDF5 file, and a check that the file contains all of its data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import h5py
import numpy as np

from imf_ray.errors import UserError

HASH_ATTRIBUTE = "digest"
"""Name of the root attribute that stores a file's content hash."""
MAX_COMPRESSION_RATIO = 1100
"""Maximum number of bytes that one stored byte may expand to.

gzip, the strongest compression in use, reaches 1032.
"""
_READ_BYTES = 1 << 24


def hash_contents(file: h5py.File) -> str:
    """Return a hash of all datasets (name, type, shape, values) and attributes of a file.

    The attribute `HASH_ATTRIBUTE` is left out. The hash depends on the contents and not on how they
    are stored, so a copy with other HDF5 chunks has the same hash.
    """
    content_hash = hashlib.blake2b(digest_size=16)
    for name, item in _objects(file):
        content_hash.update(name.encode())
        for key in sorted(set(item.attrs) - {HASH_ATTRIBUTE}):
            value = np.asarray(item.attrs[key])
            description = f"\0{key}\0{value.dtype}\0{value.shape}\0{value.tolist()!r}"
            content_hash.update(description.encode())
        if isinstance(item, h5py.Dataset):
            content_hash.update(f"\0{item.dtype.str}\0{item.shape}".encode())
            for values in _read_in_parts(item):
                if item.dtype.hasobject:  # for example strings
                    content_hash.update(repr(values.tolist()).encode())
                else:
                    content_hash.update(np.ascontiguousarray(values).data)
    return content_hash.hexdigest()


def reject_external_data(file: h5py.File) -> None:
    """Raise an error if a file does not contain all data that it declares.

    Raises:
        UserError: the file has a link or a dataset stored in another file, or a dataset declares
            more data than its stored bytes can contain.
    """
    objects = dict(_objects(file))
    for name, link in _links(file):
        # `visit` lists an object once, so `objects` has no entry for a second hard link to it.
        if not isinstance(link, h5py.HardLink) or name not in objects:
            raise UserError(f"/{name} is a link")
    for name, item in objects.items():
        if not isinstance(item, h5py.Dataset):
            continue
        if item.size is None:
            raise UserError(f"/{name} has no shape")
        if item.external or item.is_virtual:
            raise UserError(f"/{name} stores its values in another file")
        declared, stored = item.size * item.dtype.itemsize, item.id.get_storage_size()
        if declared > MAX_COMPRESSION_RATIO * stored:
            raise UserError(f"/{name} declares {declared} bytes, but only {stored} are stored")


def _objects(file: h5py.File) -> Iterator[tuple[str, h5py.HLObject]]:
    """Yield (name, object): the root group under the name "", then all objects sorted by name."""
    names: list[str] = []
    file.visit(names.append)
    yield "", file
    for name in sorted(names):
        yield name, file[name]


def _links(file: h5py.File) -> Iterator[tuple[str, object]]:
    """Yield (name, link) for every link in the file."""
    links: list[tuple[str, object]] = []
    file.visititems_links(lambda name, link: links.append((name, link)))
    return iter(links)


def _read_in_parts(dataset: h5py.Dataset) -> Iterator[np.ndarray]:
    """Yield all values in parts of about 16 MiB along the first axis."""
    if dataset.ndim == 0 or dataset.size == 0:
        yield np.asarray(dataset[()])
        return
    rows = max(1, _READ_BYTES * len(dataset) // max(1, dataset.size * dataset.dtype.itemsize))
    for start in range(0, len(dataset), rows):
        yield dataset[start : start + rows]

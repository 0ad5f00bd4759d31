"""Whether a file holds what was written, and nothing that reaches out of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import h5py
import numpy as np

from imf_ray.errors import UserError

DIGEST = "digest"
"""The root attribute that holds a file's digest."""
MAX_COMPRESSION_RATIO = 1100
"""Claimed bytes for a stored byte: deflate, the densest filter in use, reaches 1032."""
_BLOCK_BYTES = 1 << 24


def hash_contents(file: h5py.File) -> str:
    """Digest of every dataset (name, type, shape, values) and attribute, `DIGEST` itself excepted.

    It is that of the contents, not of the bytes: copying a file with other chunks keeps it.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, thing in _objects(file):
        digest.update(name.encode())
        for key in sorted(set(thing.attrs) - {DIGEST}):
            value = np.asarray(thing.attrs[key])
            digest.update(f"\0{key}\0{value.dtype}\0{value.shape}\0{value.tolist()!r}".encode())
        if isinstance(thing, h5py.Dataset):
            digest.update(f"\0{thing.dtype.str}\0{thing.shape}".encode())
            for block in _blocks(thing):
                if thing.dtype.hasobject:  # strings and the like
                    digest.update(repr(block.tolist()).encode())
                else:
                    digest.update(np.ascontiguousarray(block).data)
    return digest.hexdigest()


def reject_external_data(file: h5py.File) -> None:
    """See that all that a file claims to hold is in it.

    Raises:
        UserError: it has a link, a dataset stored elsewhere, or one larger than what is stored.
    """
    things = dict(_objects(file))
    for name, link in _links(file):
        # A second hard link to a thing is not among the things.
        if not isinstance(link, h5py.HardLink) or name not in things:
            raise UserError(f"/{name} is a link")
    for name, thing in things.items():
        if not isinstance(thing, h5py.Dataset):
            continue
        if thing.size is None:
            raise UserError(f"/{name} has no shape")
        if thing.external or thing.is_virtual:
            raise UserError(f"/{name} keeps its values in another file")
        claimed, stored = thing.size * thing.dtype.itemsize, thing.id.get_storage_size()
        if claimed > MAX_COMPRESSION_RATIO * stored:
            raise UserError(f"/{name} claims {claimed} bytes, but {stored} are stored")


def _objects(file: h5py.File) -> Iterator[tuple[str, h5py.HLObject]]:
    """The root ("") and everything in it, by name."""
    names: list[str] = []
    file.visit(names.append)
    yield "", file
    for name in sorted(names):
        yield name, file[name]


def _links(file: h5py.File) -> Iterator[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    file.visititems_links(lambda name, link: found.append((name, link)))
    return iter(found)


def _blocks(dataset: h5py.Dataset) -> Iterator[np.ndarray]:
    """All values, in pieces of about 16 MiB along the first axis."""
    if dataset.ndim == 0 or dataset.size == 0:
        yield np.asarray(dataset[()])
        return
    rows = max(1, _BLOCK_BYTES * len(dataset) // max(1, dataset.size * dataset.dtype.itemsize))
    for start in range(0, len(dataset), rows):
        yield dataset[start : start + rows]

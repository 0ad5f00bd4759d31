"""Content hash of an HDF5 file, and the parts of the file whose values are not read.

A part is a dataset, or a link. Values are read only from datasets that lie in the file itself.
"""

from __future__ import annotations

import hashlib
import math
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from imf_ray.data.episodes import READ_ERRORS
from imf_ray.errors import UserError
from imf_ray.storage import is_transient

HASH_ATTRIBUTE = "digest"
"""Name of the root attribute that stores a file's content hash."""
MAX_COMPRESSION_RATIO = 1100
"""Maximum number of bytes that one stored byte may expand to.

gzip, the strongest compression in use, reaches 1032.
"""
MAX_LINKS = 16
"""Maximum number of soft links on the way to a dataset."""
MAX_VLEN_ROWS = 64
"""Maximum number of arrays of variable length that are read at once."""
NOT_UTF8 = "has a name that is not UTF-8"
"""Problem of a part that no option can name."""
_READ_BYTES = 1 << 24


@dataclass(frozen=True)
class FileContents:
    """Result of reading all of a file."""

    content_hash: str
    """Hash of all parts (name, type, shape, values) and attributes, except `HASH_ATTRIBUTE`. It
    depends on the contents and not on how they are stored, so a copy with other HDF5 chunks has the
    same hash. Values that are not read are left out."""
    parts: tuple[str, ...]
    """Names of all datasets and links."""
    problems: Mapping[str, str]
    """For each part whose values were not read: the reason."""
    damaged: bool
    """True if values could not be read although they are in the file."""


def hash_contents(file: h5py.File) -> str:
    """Return the content hash of a file; see `FileContents`."""
    return read_contents(file).content_hash


def read_contents(file: h5py.File) -> FileContents:
    """Read all values in a file and hash them.

    Raises:
        OSError: the disk or the server that holds the file failed.
    """
    content_hash = hashlib.blake2b(digest_size=16)
    objects: dict[str | bytes, h5py.HLObject] = {}
    problems: dict[str, str] = {}
    parts: list[str] = []
    damaged = False
    names = _object_names(file)
    for name in names:
        part_hash = content_hash.copy()
        try:
            item = objects[name] = file[name or "/"]
            problem = _hash_object(part_hash, name, item)
        except READ_ERRORS as error:
            is_unknown_type = isinstance(error, TypeError)  # NumPy lacks some types of HDF5
            if not is_unknown_type and may_recover(file, error):
                raise
            problem = f"cannot be read ({first_line(error)})"
            damaged = damaged or not is_unknown_type
            part_hash = content_hash.copy()
            part_hash.update(_name_bytes(name) + b"\0not read")
        content_hash = part_hash
        if not isinstance(objects.get(name), h5py.Group):
            parts.append(name_text(name))
        if problem is None and isinstance(name, bytes):
            problem = NOT_UTF8
        if problem is not None:
            problems[name_text(name)] = problem
    visited = set(names)
    for name, link in _links(file):
        # `visit` lists an object once, under one of its hard links.
        if name not in visited:
            target = _describe_link(file, name, link, objects)
            content_hash.update(_name_bytes(name) + b"\0" + target.encode(errors="surrogateescape"))
            parts.append(name_text(name))
            if isinstance(link, h5py.ExternalLink):
                problems[name_text(name)] = f"is a link to the file {link.filename}"
            elif isinstance(name, bytes):
                problems[name_text(name)] = NOT_UTF8
    return FileContents(content_hash.hexdigest(), tuple(parts), problems, damaged)


def find_dataset(file: h5py.File, name: str) -> h5py.Dataset | None:
    """Return a dataset that lies in the file itself, or None if there is no dataset of this name.

    Links are followed inside the file.

    Raises:
        UserError: the name leads to another file, or the values are not in this file. The message
            completes the sentence "/NAME ...".
    """
    item = find_object(file, name)
    if not isinstance(item, h5py.Dataset):
        return None
    problem = _storage_problem(item)
    if problem is not None:
        raise UserError(problem)
    return item


def find_object(file: h5py.File, name: str, max_links: int = MAX_LINKS) -> h5py.HLObject | None:
    """Return an object of the file itself, or None if there is none of this name.

    Raises:
        UserError: see `find_dataset`.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    group = file["/"]
    for index, part in enumerate(parts):
        link = group.get(part, getlink=True) if isinstance(group, h5py.Group) else None
        if link is None:
            return None
        if isinstance(link, h5py.SoftLink):
            if max_links == 0:
                raise UserError("is a link that leads to itself")
            target = posixpath.join("/", *parts[:index], link.path, *parts[index + 1 :])
            return find_object(file, target, max_links - 1)
        if not isinstance(link, h5py.HardLink):
            raise UserError(f"is a link to the file {link.filename}")
        group = group[part]
    return group


def name_text(name: str | bytes) -> str:
    """Return a name as text. h5py returns names that are not UTF-8 as bytes."""
    return name if isinstance(name, str) else name.decode(errors="backslashreplace")


def may_recover(file: h5py.File, error: BaseException) -> bool:
    """Return True if the network or the disk may be the cause, which says nothing about a file."""
    return file.driver == "fileobj" or (isinstance(error, OSError) and is_transient(error))


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or its type if it has none."""
    return str(error).strip("'\"").partition("\n")[0] or type(error).__name__


def _name_bytes(name: str | bytes) -> bytes:
    return name if isinstance(name, bytes) else name.encode(errors="surrogateescape")


def _hash_object(content_hash: Any, name: str | bytes, item: h5py.HLObject) -> str | None:
    """Hash a group, dataset or type; return why its values are not read, or None."""
    content_hash.update(_name_bytes(name))
    for key in sorted(set(item.attrs) - {HASH_ATTRIBUTE}, key=_name_bytes):
        value = np.asarray(item.attrs[key])
        description = f"\0{value.dtype}\0{value.shape}\0{value.tolist()!r}"
        content_hash.update(b"\0" + _name_bytes(key) + description.encode())
    if not isinstance(item, h5py.Dataset):
        return None
    content_hash.update(f"\0{item.dtype.str}\0{item.shape}".encode())
    problem = _storage_problem(item)
    if problem is not None:
        return problem
    for values in _read_in_parts(item):
        if not item.dtype.hasobject:
            content_hash.update(np.ascontiguousarray(values).data)
        elif any(isinstance(value, np.ndarray) for value in values.flat):
            for value in values.flat:  # arrays of different lengths
                content_hash.update(f"\0{value.dtype.str}\0{value.shape}\0".encode())
                content_hash.update(value.tobytes())
        else:  # for example strings
            content_hash.update(repr(values.tolist()).encode())
    return None


def _storage_problem(dataset: h5py.Dataset) -> str | None:
    """Return why a dataset does not have all of its values in the file, or None."""
    if dataset.size is None:
        return "has no shape"
    if dataset.external or dataset.is_virtual:
        return "stores its values in another file"
    declared, stored = dataset.size * dataset.dtype.itemsize, dataset.id.get_storage_size()
    if declared > MAX_COMPRESSION_RATIO * stored:
        return f"declares {declared} bytes, but only {stored} are stored"
    if dataset.chunks is not None:  # chunks that were never written read as the fill value
        sizes = zip(dataset.shape, dataset.chunks, strict=True)
        expected = math.prod(-(-size // chunk) for size, chunk in sizes)
        written = dataset.id.get_num_chunks()
        if written < expected:
            return f"is incomplete: only {written} of {expected} chunks were written"
    return None


def _describe_link(
    file: h5py.File,
    name: str | bytes,
    link: object,
    objects: Mapping[str | bytes, h5py.HLObject],
) -> str:
    """Return the target of a link, for the hash."""
    if isinstance(link, h5py.ExternalLink):
        return f"external\0{link.filename}\0{link.path}"
    if isinstance(link, h5py.SoftLink):
        return f"soft\0{link.path}"
    same = file[name]
    other = next((other for other, item in objects.items() if item == same), "")
    return f"hard\0{name_text(other)}"


def _object_names(file: h5py.File) -> list[str | bytes]:
    """Return the names of all objects: "" for the root group, then the others sorted by name."""
    names: list[str | bytes] = []
    file.visit(names.append)
    return ["", *sorted(names, key=_name_bytes)]


def _links(file: h5py.File) -> Iterator[tuple[str | bytes, object]]:
    """Yield (name, link) for every link in the file, sorted by name."""
    names: list[str | bytes] = []
    file.visit_links(names.append)
    for name in sorted(names, key=_name_bytes):
        yield name, _get_link(file, name)


def _get_link(file: h5py.File, name: str | bytes) -> object:
    """Return a link. `h5py.Group.get` does not accept names that are not UTF-8."""
    if isinstance(name, str):
        return file.get(name, getlink=True)
    kind = file.id.links.get_info(name).type
    if kind == h5py.h5l.TYPE_HARD:
        return h5py.HardLink()
    target = file.id.links.get_val(name)
    if kind == h5py.h5l.TYPE_SOFT:
        return h5py.SoftLink(target)
    return h5py.ExternalLink(*map(name_text, target))


def _read_in_parts(dataset: h5py.Dataset) -> Iterator[np.ndarray]:
    """Yield all values in parts of about 16 MiB along the first axis."""
    if dataset.ndim == 0 or dataset.size == 0:
        yield np.asarray(dataset[()])
        return
    row_bytes = dataset.size * dataset.dtype.itemsize // len(dataset)
    if h5py.check_vlen_dtype(dataset.dtype) is not None:  # the values lie elsewhere in the file
        row_bytes = _READ_BYTES // MAX_VLEN_ROWS
    rows = max(1, _READ_BYTES // max(1, row_bytes))
    for start in range(0, len(dataset), rows):
        yield dataset[start : start + rows]

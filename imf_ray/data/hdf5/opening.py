"""Opens HDF5 files in a folder or under a URL."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import h5py

from imf_ray.data.source_files import open_source
from imf_ray.storage import AnyPath


@contextlib.contextmanager
def open_hdf5(path: str | AnyPath) -> Iterator[h5py.File]:
    """Open a local or remote file for reading.

    Raises:
        OSError: the file cannot be opened or read. h5py also raises other exceptions.
    """
    with open_source(path) as source, h5py.File(source, "r") as file:
        yield file

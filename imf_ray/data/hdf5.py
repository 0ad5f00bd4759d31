"""Episode files in a folder or under a URL.

`s3://bucket/demos`, `gs://bucket/demos`, `https://host/demos/`: a URL is read in place, block by
block, by whichever machine needs it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import h5py
from platformdirs import user_cache_path
from upath import UPath

from imf_ray.errors import UserError
from imf_ray.storage import AnyPath, is_connection_error, is_remote, parse_path

CACHE_DIR = ".imf_ray"
REMOTE_VERSION_KEYS = (
    "etag content-md5 digest last-modified lastmodified mtime updated generation versionid"
)
"""What servers tell of a file that changes when it does, as fsspec names it in any case."""
BLOCK_BYTES, BLOCKS = 1 << 18, 64
"""What is fetched from a URL at a time, and how much of a file is kept while it is open."""


@contextlib.contextmanager
def open_hdf5(path: str | AnyPath) -> Iterator[h5py.File]:
    """A file, open for reading.

    Raises:
        OSError: it cannot be opened or read; h5py has other exceptions besides.
    """
    if not is_remote(path):
        with h5py.File(path, "r") as file:
            yield file
        return
    source = parse_path(path)
    assert isinstance(source, UPath)
    options = {"cache_type": "blockcache", "cache_options": {"maxblocks": BLOCKS}}
    with (
        _as_os_errors(),
        source.fs.open(source.path, "rb", block_size=BLOCK_BYTES, **options) as stream,
        h5py.File(stream, "r") as file,
    ):
        yield file


def fingerprint(path: AnyPath) -> str:
    """Changes when a file does: its name and size, and its time or what its server says of it.

    Of a server that tells neither a time nor a tag, only the size is known.

    Raises:
        OSError: it cannot be told.
    """
    if isinstance(path, UPath) and is_remote(path):
        with _as_os_errors():
            info = path.fs.info(path.path)
        # Not all of it: the URL that a server redirects to may be signed anew each time.
        found = {key.lower(): value for key, value in info.items() if value is not None}
        told = {key: value for key, value in found.items() if key in REMOTE_VERSION_KEYS.split()}
        described = json.dumps(told, sort_keys=True, default=str).encode()
        return f"{path.name} {info.get('size')} {hashlib.sha256(described).hexdigest()[:16]}"
    stat = path.stat()
    return f"{path.name} {stat.st_size} {stat.st_mtime_ns}"


def file_size(path: AnyPath) -> int:
    """Bytes of a file.

    Raises:
        OSError: they cannot be told.
    """
    with _as_os_errors():
        return int(path.stat().st_size)


def cache_folder(folder: AnyPath) -> Path:
    """Where what is known of a data set is kept: in its folder, or on this machine for a URL."""
    if not is_remote(folder):
        return Path(str(folder)) / CACHE_DIR
    key = hashlib.sha256(str(folder).rstrip("/").encode()).hexdigest()[:16]
    return user_cache_path("imf_ray") / "data" / key


@contextlib.contextmanager
def _as_os_errors() -> Iterator[None]:
    """What a file system raises that is none of Python's own exceptions, as an `OSError`; and what
    it takes for a missing file, but is none."""
    try:
        yield
    except FileNotFoundError as error:
        if not is_connection_error(error):
            raise
        raise OSError(f"{type(error.__cause__).__name__}: {error.__cause__}") from error
    except Exception as error:
        known = isinstance(error, (UserError, MemoryError))
        if known or type(error).__module__ == "builtins":
            raise
        raise OSError(f"{type(error).__name__}: {error}") from error

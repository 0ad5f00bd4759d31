"""Access to data files in a folder or under a URL: opening, fingerprints, sizes, cache folders.

A file under a URL (`s3://bucket/demos`, `gs://bucket/demos`, `https://host/demos/`) is not
downloaded. The machine that needs the data requests only the byte ranges that it reads.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from platformdirs import user_cache_path
from upath import UPath

from imf_ray.errors import UserError
from imf_ray.storage import (
    REMOTE_VERSION_KEYS,
    AnyPath,
    is_connection_error,
    is_remote,
    parse_path,
)

CACHE_DIR = ".imf_ray"
"""Name of the cache folder inside a data set."""
REQUEST_BYTES, MAX_CACHED_REQUESTS = 1 << 18, 64
"""Number of bytes per request to a URL, and number of such byte ranges cached per open file."""


@contextlib.contextmanager
def open_source(path: str | AnyPath) -> Iterator[str | BinaryIO]:
    """Yield what a library can open: the local path, or a stream of a remote file.

    The stream requests only the byte ranges that are read.

    Raises:
        OSError: the remote file cannot be opened or read, in this function or in the `with` block.
    """
    if not is_remote(path):
        yield str(path)
        return
    source = parse_path(path)
    assert isinstance(source, UPath)
    options = {"cache_type": "blockcache", "cache_options": {"maxblocks": MAX_CACHED_REQUESTS}}
    with (
        _as_os_errors(),
        source.fs.open(source.path, "rb", block_size=REQUEST_BYTES, **options) as stream,
    ):
        yield stream


def fingerprint(path: AnyPath) -> str:
    """Return a string that changes when the file changes, without reading the file.

    It consists of the name, the size, and the modification time or the server's version metadata.
    If a server reports neither a time nor a version, only a change of the size is noticed.

    Raises:
        OSError: the file's metadata cannot be read.
    """
    if isinstance(path, UPath) and is_remote(path):
        with _as_os_errors():
            info = path.fs.info(path.path)
        # Other metadata may differ at each call, for example a signed URL of a redirect.
        metadata = {key.lower(): value for key, value in info.items() if value is not None}
        version = {key: metadata[key] for key in metadata if key in REMOTE_VERSION_KEYS.split()}
        serialized = json.dumps(version, sort_keys=True, default=str).encode()
        return f"{path.name} {info.get('size')} {hashlib.sha256(serialized).hexdigest()[:16]}"
    stat = path.stat()
    return f"{path.name} {stat.st_size} {stat.st_mtime_ns}"


def file_size(path: AnyPath) -> int:
    """Return the size of a file in bytes.

    Raises:
        OSError: the file's metadata cannot be read.
    """
    with _as_os_errors():
        return int(path.stat().st_size)


def list_files(folder: AnyPath, suffix: str) -> list[AnyPath]:
    """Return the files below a folder with this suffix, sorted by path; none if it is missing.

    Raises:
        OSError: the folder cannot be listed.
    """
    with _as_os_errors():
        return sorted(folder.rglob(f"*{suffix}"), key=str)


def cache_folder(folder: AnyPath) -> Path:
    """Return the cache folder of a data set: inside it, or for a URL in the user's cache folder.

    The cache of a data set that is a file lies in the file's folder.
    """
    if is_remote(folder):
        return _user_cache_folder(folder)
    path = Path(str(folder))
    return path.parent / CACHE_DIR / path.name if path.is_file() else path / CACHE_DIR


def writable_cache_folder(folder: AnyPath) -> Path:
    """Return `cache_folder`, or a folder in the user's cache folder if it cannot be written."""
    cache = cache_folder(folder)
    existing = next(path for path in (cache, *cache.parents) if path.exists())
    return cache if os.access(existing, os.W_OK) else _user_cache_folder(folder)


def _user_cache_folder(folder: AnyPath) -> Path:
    key = hashlib.sha256(str(folder).rstrip("/").encode()).hexdigest()[:16]
    return user_cache_path("imf_ray") / "data" / key


@contextlib.contextmanager
def _as_os_errors() -> Iterator[None]:
    """Convert exceptions of fsspec's backends to OSError.

    A connection error that a backend raises as FileNotFoundError becomes an OSError too.
    """
    try:
        yield
    except FileNotFoundError as error:
        if not is_connection_error(error):
            raise
        raise OSError(f"{type(error.__cause__).__name__}: {error.__cause__}") from error
    except Exception as error:
        is_ours = isinstance(error, (UserError, MemoryError))
        if is_ours or type(error).__module__ == "builtins":
            raise
        raise OSError(f"{type(error).__name__}: {error}") from error

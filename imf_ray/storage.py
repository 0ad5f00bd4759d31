"""Where folders are: on this machine, or under a URL of a file system that fsspec knows.

A data set is read in place, by whichever machine needs it. A run that is kept under a URL
(`storage_path=s3://bucket/runs`) has a working copy on each machine that takes part in it: what is
written there by `imf_ray.files` is copied to the URL, at once or, of a file that grows, every few
seconds; `download` brings here what other machines wrote, and what several machines write is read at
its `authoritative_path`. The path of a working copy tells its URL, so that nothing else has to know. Some file
systems want a package of their own, which fsspec names.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote

from platformdirs import user_cache_path
from upath import UPath

from imf_ray.errors import StorageError, UserError

AnyPath = Path | UPath
APPEND_ONLY_SUFFIX = ".jsonl"
"""Suffix of files that are only ever added to: the longer one is the newer one."""
ALWAYS_REFRESH_BELOW_BYTES = 2**16
"""Of larger files, one of the same size is taken for the same; a checkpoint's manifest knows."""
TRANSIENT_ERRNOS = frozenset(
    {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EMFILE}
)
"""Errors of disks and shared folders that say nothing of the file; those of a URL all may."""
_SCHEME = quote("://", safe="")


def is_remote(text: str | AnyPath) -> bool:
    """Whether a place is not on this machine."""
    return "://" in str(text)


def parse_path(text: str | AnyPath) -> AnyPath:
    """A folder or file of this machine, absolute, or a URL.

    Raises:
        UserError: the URL's file system is unknown or wants a package that is not installed.
    """
    if not is_remote(text):
        return Path(str(text)).expanduser().absolute()
    try:
        found = UPath(text)
        found.fs.invalidate_cache()  # what was listed before may have changed
    except (ImportError, ValueError) as error:
        raise UserError(f"{text} cannot be opened: {error}") from error
    return found


def local_dir(text: str) -> Path:
    """A folder of this machine, absolute: that which is named, or the working copy of a URL.

    Raises:
        UserError: as `parse_path`.
    """
    found = parse_path(text)
    if isinstance(found, Path):
        return found
    scheme, _, rest = text.rstrip("/").partition("://")
    bucket, *folders = rest.split("/")
    root = quote(f"{scheme}://{bucket}", safe="")
    return (user_cache_path("imf_ray") / "runs" / root).joinpath(*folders)


def remote_path(path: Path) -> UPath | None:
    """Where a file or folder of a working copy is kept; None for any other.

    Raises:
        UserError: as `parse_path`.
    """
    for number, part in enumerate(path.parts):
        if _SCHEME in part:
            url = "/".join([unquote(part), *path.parts[number + 1 :]])
            found = parse_path(url)
            assert isinstance(found, UPath)
            return found
    return None


def authoritative_path(path: Path) -> AnyPath:
    """Where a file or folder is read that other machines may have written a moment ago."""
    return remote_path(path) or path


def display_path(path: Path) -> str:
    """A file or folder as its user named it: by its URL if it has one."""
    return str(authoritative_path(path))


def to_local(path: Path) -> Path:
    """This machine's working copy of what another machine may have named; others stay as they are.

    Homes, and with them the places of working copies, may differ between machines.
    """
    kept = remote_path(path)
    return path if kept is None else local_dir(str(kept))


def upload(path: Path, last: str = "") -> None:
    """Copy a file, or the files of a folder, from a working copy to its URL.

    Args:
        last: name of the file that is copied after all others, since it says that they are there.

    Raises:
        StorageError: it cannot be written there.
    """
    if remote_path(path) is None:
        return
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    for file in sorted(files, key=lambda file: (file.name == last, file)):
        if file.name.startswith("."):
            continue
        kept = remote_path(file)
        assert kept is not None
        with storage_errors(kept, "written"):
            _put_file(file, kept)


def download(path: Path, *patterns: str) -> None:
    """Bring a file, or a folder's, from its URL into the working copy, as far as it is newer there.

    Args:
        patterns: only files whose path ends like one of these; all without any.

    Raises:
        StorageError: it cannot be read.
    """
    kept = remote_path(path)
    if kept is None:
        return
    with storage_errors(kept, "read"):
        try:
            found = kept.fs.find(kept.path, detail=True)
        except FileNotFoundError:
            return
        for name, info in found.items():
            below = PurePosixPath(name).relative_to(PurePosixPath(kept.path))
            file = path / below
            wanted = not patterns or any(file.match(pattern) for pattern in patterns)
            size = info["size"] if "size" in info else kept.fs.size(name)
            if wanted and not _is_up_to_date(file, int(size)):
                _get_file(kept.fs, name, file)


def delete(path: Path) -> None:
    """Delete a file or a folder, and what is kept of it at its URL; it need not be there.

    Raises:
        StorageError: it cannot be deleted.
    """
    with storage_errors(path, "deleted"):
        if path.is_dir():
            with suppress(FileNotFoundError):  # somebody else deletes it, too
                shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    kept = remote_path(path)
    if kept is not None:
        with storage_errors(kept, "deleted"), suppress(FileNotFoundError):
            kept.fs.rm(kept.path, recursive=True)


def exists(path: AnyPath) -> bool:
    """Whether a file is there. Some file systems' own methods say no when they are out of reach.

    Raises:
        StorageError: it cannot be told.
    """
    with storage_errors(path, "read"):
        try:
            path.stat()
        except FileNotFoundError as error:
            if is_connection_error(error):
                raise
            return False
        return True


def read_text_or_none(path: AnyPath) -> str | None:
    """What stands in a file; None if there is none.

    Raises:
        StorageError: it cannot be read.
    """
    with storage_errors(path, "read"):
        try:
            return path.read_text()
        except FileNotFoundError as error:
            if is_connection_error(error):
                raise
            return None


def is_transient(error: OSError) -> bool:
    """Whether an error is of a disk or a shared folder that may come back, not of what is there."""
    told = re.search(r"errno = (\d+)", str(error))  # by HDF5
    number = error.errno if told is None else int(told[1])
    return number in TRANSIENT_ERRNOS


def is_connection_error(error: FileNotFoundError) -> bool:
    """Whether it is a web server's silence or refusal, which fsspec takes for a missing file."""
    cause = error.__cause__
    if type(cause).__module__.startswith("aiohttp"):
        return getattr(cause, "status", None) not in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)
    return isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)


def _is_up_to_date(file: Path, size: int) -> bool:
    if not file.is_file():
        return False
    found = file.stat().st_size
    if file.suffix == APPEND_ONLY_SUFFIX:
        return found >= size
    return found == size and size > ALWAYS_REFRESH_BELOW_BYTES


def _put_file(file: Path, kept: UPath) -> None:
    """Folders are made, as far as the file system has any; a bucket is not."""
    try:
        kept.fs.put_file(str(file), kept.path)
    except FileNotFoundError:
        path = PurePosixPath(kept.path)
        if not kept.fs.exists(str(path.parents[-2])):
            raise
        kept.fs.makedirs(str(path.parent), exist_ok=True)
        kept.fs.put_file(str(file), kept.path)


def _get_file(fs: Any, name: str, file: Path) -> None:
    """Several processes may want the same file at the same time: each brings its own."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}.partial")
    try:
        fs.get_file(name, str(partial))
        os.replace(partial, file)
    except FileNotFoundError:
        pass  # it was deleted since the folder was listed
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def storage_errors(kept: AnyPath, what: str) -> Iterator[None]:
    """Name what cannot be read, written, listed or deleted.

    Raises:
        StorageError: the block failed.
    """
    try:
        yield
    except Exception as error:  # each file system has exceptions of its own
        raise StorageError(f"{kept} cannot be {what}: {type(error).__name__}: {error}") from error

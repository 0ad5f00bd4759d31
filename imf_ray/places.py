"""Where folders are: on this machine, or under a URL of a file system that fsspec knows.

A data set is read in place, by whichever machine needs it. A run that is kept under a URL
(`storage_path=s3://bucket/runs`) has a working copy on each machine that takes part in it: what is
written there by `imf_ray.files` is copied to the URL, at once or, of a file that grows, every few
seconds; `pull` brings here what other machines wrote, and what several machines write is read at
its `origin`. The path of a working copy tells its URL, so that nothing else has to know. Some file
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

Place = Path | UPath
GROWS = ".jsonl"
"""Suffix of files that are only ever added to: the longer one is the newer one."""
SMALL = 2**16
"""Of larger files, one of the same size is taken for the same; a checkpoint's manifest knows."""
PASSING = frozenset(
    {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EMFILE}
)
"""Errors of disks and shared folders that say nothing of the file; those of a URL all may."""
_SCHEME = quote("://", safe="")


def is_url(text: str | Place) -> bool:
    """Whether a place is not on this machine."""
    return "://" in str(text)


def place(text: str | Place) -> Place:
    """A folder or file of this machine, absolute, or a URL.

    Raises:
        UserError: the URL's file system is unknown or wants a package that is not installed.
    """
    if not is_url(text):
        return Path(str(text)).expanduser().absolute()
    try:
        found = UPath(text)
        found.fs.invalidate_cache()  # what was listed before may have changed
    except (ImportError, ValueError) as error:
        raise UserError(f"{text} cannot be opened: {error}") from error
    return found


def working_copy(text: str) -> Path:
    """A folder of this machine, absolute: that which is named, or the working copy of a URL.

    Raises:
        UserError: as `place`.
    """
    found = place(text)
    if isinstance(found, Path):
        return found
    scheme, _, rest = text.rstrip("/").partition("://")
    bucket, *folders = rest.split("/")
    root = quote(f"{scheme}://{bucket}", safe="")
    return (user_cache_path("imf_ray") / "runs" / root).joinpath(*folders)


def kept_at(path: Path) -> UPath | None:
    """Where a file or folder of a working copy is kept; None for any other.

    Raises:
        UserError: as `place`.
    """
    for number, part in enumerate(path.parts):
        if _SCHEME in part:
            url = "/".join([unquote(part), *path.parts[number + 1 :]])
            found = place(url)
            assert isinstance(found, UPath)
            return found
    return None


def origin(path: Path) -> Place:
    """Where a file or folder is read that other machines may have written a moment ago."""
    return kept_at(path) or path


def shown(path: Path) -> str:
    """A file or folder as its user named it: by its URL if it has one."""
    return str(origin(path))


def here(path: Path) -> Path:
    """This machine's working copy of what another machine may have named; others stay as they are.

    Homes, and with them the places of working copies, may differ between machines.
    """
    kept = kept_at(path)
    return path if kept is None else working_copy(str(kept))


def push(path: Path, last: str = "") -> None:
    """Copy a file, or the files of a folder, from a working copy to its URL.

    Args:
        last: name of the file that is copied after all others, since it says that they are there.

    Raises:
        StorageError: it cannot be written there.
    """
    if kept_at(path) is None:
        return
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    for file in sorted(files, key=lambda file: (file.name == last, file)):
        if file.name.startswith("."):
            continue
        kept = kept_at(file)
        assert kept is not None
        with reporting(kept, "written"):
            _upload(file, kept)


def pull(path: Path, *patterns: str) -> None:
    """Bring a file, or a folder's, from its URL into the working copy, as far as it is newer there.

    Args:
        patterns: only files whose path ends like one of these; all without any.

    Raises:
        StorageError: it cannot be read.
    """
    kept = kept_at(path)
    if kept is None:
        return
    with reporting(kept, "read"):
        try:
            found = kept.fs.find(kept.path, detail=True)
        except FileNotFoundError:
            return
        for name, info in found.items():
            below = PurePosixPath(name).relative_to(PurePosixPath(kept.path))
            file = path / below
            wanted = not patterns or any(file.match(pattern) for pattern in patterns)
            size = info["size"] if "size" in info else kept.fs.size(name)
            if wanted and not _is_current(file, int(size)):
                _download(kept.fs, name, file)


def remove(path: Path) -> None:
    """Delete a file or a folder, and what is kept of it at its URL; it need not be there.

    Raises:
        StorageError: it cannot be deleted.
    """
    with reporting(path, "deleted"):
        if path.is_dir():
            with suppress(FileNotFoundError):  # somebody else deletes it, too
                shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    kept = kept_at(path)
    if kept is not None:
        with reporting(kept, "deleted"), suppress(FileNotFoundError):
            kept.fs.rm(kept.path, recursive=True)


def exists(path: Place) -> bool:
    """Whether a file is there. Some file systems' own methods say no when they are out of reach.

    Raises:
        StorageError: it cannot be told.
    """
    with reporting(path, "read"):
        try:
            path.stat()
        except FileNotFoundError as error:
            if is_outage(error):
                raise
            return False
        return True


def read_if_there(path: Place) -> str | None:
    """What stands in a file; None if there is none.

    Raises:
        StorageError: it cannot be read.
    """
    with reporting(path, "read"):
        try:
            return path.read_text()
        except FileNotFoundError as error:
            if is_outage(error):
                raise
            return None


def is_passing(error: OSError) -> bool:
    """Whether an error is of a disk or a shared folder that may come back, not of what is there."""
    told = re.search(r"errno = (\d+)", str(error))  # by HDF5
    number = error.errno if told is None else int(told[1])
    return number in PASSING


def is_outage(error: FileNotFoundError) -> bool:
    """Whether it is a web server's silence or refusal, which fsspec takes for a missing file."""
    cause = error.__cause__
    if type(cause).__module__.startswith("aiohttp"):
        return getattr(cause, "status", None) not in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)
    return isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)


def _is_current(file: Path, size: int) -> bool:
    if not file.is_file():
        return False
    found = file.stat().st_size
    if file.suffix == GROWS:
        return found >= size
    return found == size and size > SMALL


def _upload(file: Path, kept: UPath) -> None:
    """Folders are made, as far as the file system has any; a bucket is not."""
    try:
        kept.fs.put_file(str(file), kept.path)
    except FileNotFoundError:
        path = PurePosixPath(kept.path)
        if not kept.fs.exists(str(path.parents[-2])):
            raise
        kept.fs.makedirs(str(path.parent), exist_ok=True)
        kept.fs.put_file(str(file), kept.path)


def _download(fs: Any, name: str, file: Path) -> None:
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
def reporting(kept: Place, what: str) -> Iterator[None]:
    """Name what cannot be read, written, listed or deleted.

    Raises:
        StorageError: the block failed.
    """
    try:
        yield
    except Exception as error:  # each file system has exceptions of its own
        raise StorageError(f"{kept} cannot be {what}: {type(error).__name__}: {error}") from error

"""Local paths and remote URLs of any file system that fsspec supports.

Data sets are read from their path or URL by each machine that needs them.

Runs under a URL (`storage_path=s3://bucket/runs`) have a local copy on each machine involved.
`imf_ray.files` writes to the local copy and then uploads it: at once, or every few seconds for
growing files. `download` fetches files that other machines wrote. Files that several machines write
are read at their `authoritative_path`. The local path encodes the URL, so no other state is needed.

Some file systems need an additional package. The error of fsspec names it.
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
"""Suffix of append-only files. The longer of two versions is the newer one."""
ALWAYS_REFRESH_BELOW_BYTES = 2**16
"""Size in bytes up to which files are always downloaded again.

Larger files of equal size are assumed to be equal. A checkpoint's manifest detects the exceptions.
"""
REMOTE_VERSION_KEYS = (
    "etag content-md5 digest last-modified lastmodified mtime updated generation versionid"
)
"""fsspec metadata keys (case-insensitive) whose values change when the file changes."""
TRANSIENT_ERRNOS = frozenset(
    {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EMFILE}
)
"""Errors of disks and network file systems that may pass, since their cause is not the file.

They are not complete for URLs, where any error may pass."""
PERMANENT_ERRNOS = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.EROFS),
        *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
    }
)
"""Errors of a path that cannot be used: access is denied, or a file is where a folder should be."""
DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a full disk: no space, no quota, or a limit of the size of files."""
MIN_FREE_BYTES = 20_000_000
"""Free disk space with which a run may start."""
MAX_NAME_BYTES = 200
"""Maximum length of a run's name. File systems allow 255 bytes, and files get longer names."""
_SCHEME = quote("://", safe="")
_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([^{}]*)\}|\([^()]*\))", re.ASCII)
"""`$NAME`, `${...}` or `$(...)`."""
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)


def is_remote(text: str | AnyPath) -> bool:
    """Return True if a path is a URL."""
    return "://" in str(text)


def parse_path(text: str | AnyPath) -> AnyPath:
    """Return an absolute local path, or the path of a URL.

    Raises:
        UserError: the URL's file system is unknown or needs a package that is not installed.
    """
    if not is_remote(text):
        try:
            return Path(str(text)).expanduser().absolute()
        except RuntimeError as error:
            name = str(text).partition("/")[0]
            raise UserError(
                f"{text}: the home folder of {name} is unknown. If that is a folder's name, write "
                f"./{text}."
            ) from error
    try:
        path = UPath(text)
        path.fs.invalidate_cache()  # cached listings may be outdated
    except (ImportError, ValueError) as error:
        raise UserError(f"{text} cannot be opened: {error}") from error
    return path


def as_path(path: str | AnyPath) -> AnyPath:
    """Return a path unchanged, and the path of a text; see `parse_path`.

    Functions that programs call with their own paths take both.
    """
    return parse_path(path) if isinstance(path, str) else path


def expand_variables(text: str, source: str) -> str:
    """Replace `$NAME` and `${NAME}` by environment variables, unless the path exists as written.

    Args:
        source: the option that the path comes from, for the error message.

    Raises:
        UserError: a variable is not set, or the text cannot be a path.
    """
    if "\0" in text:
        raise UserError(f"{source!r}: a path has no null character.")
    if os.path.exists(os.path.expanduser(text)):
        return text

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2] or ""
        if not _NAME.fullmatch(name):
            raise UserError(
                f"{source}: {match[0]} is not replaced, because only the forms $NAME and ${{NAME}} "
                "of an environment variable are. Write the path itself, or let the shell replace "
                "it: without quotes, or in double quotes."
            )
        if name not in os.environ:
            raise UserError(
                f"{source}: the environment variable {name} is not set, and there is no folder or "
                f"file of this name. Set {name}, or write the path without it."
            )
        return os.environ[name]

    return _VARIABLE.sub(value, text)


def folder_name_problem(name: str) -> str | None:
    """Return the reason why a text cannot be the name of one folder, or None."""
    if "/" in name:
        return "it contains /. For a folder inside another, set storage_path to the outer one"
    if _SCHEME in name:
        return f"it contains {_SCHEME}, which marks the local copy of a URL"
    if not name.strip(". "):
        return "it consists of dots or spaces"
    if not name.isprintable():
        return "it contains a character that cannot be printed"
    if len(name.encode()) > MAX_NAME_BYTES:
        return f"it is longer than {MAX_NAME_BYTES} bytes"
    return None


def local_dir(text: str) -> Path:
    """Return the absolute path of a local folder, or of the local copy of a URL.

    Raises:
        UserError: see `parse_path`.
    """
    path = parse_path(text)
    if isinstance(path, Path):
        return path
    scheme, _, rest = text.rstrip("/").partition("://")
    bucket, *folders = rest.split("/")
    root = quote(f"{scheme}://{bucket}", safe="")
    return (user_cache_path("imf_ray") / "runs" / root).joinpath(*folders)


def remote_path(path: Path) -> UPath | None:
    """Return the URL of a file or folder in a local copy; None for any other path.

    Raises:
        UserError: see `parse_path`.
    """
    for index, part in enumerate(path.parts):
        if _SCHEME in part:
            url = "/".join([unquote(part), *path.parts[index + 1 :]])
            remote = parse_path(url)
            assert isinstance(remote, UPath)
            return remote
    return None


def authoritative_path(path: Path) -> AnyPath:
    """Return the remote path of a file or folder if it has one, else the local path."""
    return remote_path(path) or path


def check_free_space(text: str) -> None:
    """Check that a disk has space for a small checkpoint: that of a folder, or of its local copy.

    Raises:
        StorageError: it has less.
    """
    existing = existing_folder(text)
    usage = shutil.disk_usage(existing)
    if usage.total and usage.free < MIN_FREE_BYTES:  # some network file systems report zeros
        raise StorageError(
            f"{existing} has only {usage.free / 1e6:.1f} MB of free disk space, too little for a "
            f"checkpoint. Free some, or choose another storage_path than {text}."
        )


def existing_folder(text: str) -> Path:
    """Return a folder, that of a URL's local copy, or the parent that exists already."""
    path = local_dir(text)
    return next(folder for folder in (path, *path.parents) if folder.exists())


def display_path(path: Path) -> str:
    """Return a path as the user wrote it: the URL if it has one."""
    return str(authoritative_path(path))


def to_local(path: Path) -> Path:
    """Map a path received from another machine to this machine's local copy.

    Local copies are in the home folder, whose path may differ between machines. Paths without a URL
    are returned unchanged.
    """
    remote = remote_path(path)
    return path if remote is None else local_dir(str(remote))


def upload(path: Path, upload_last: str = "") -> None:
    """Upload a file, or the files of a folder, from a local copy; do nothing for other paths.

    Hidden files, which are temporary or belong to one machine, are not uploaded.

    Args:
        upload_last: name of the file that marks the folder as complete; it is uploaded last.

    Raises:
        StorageError: a file cannot be written to the URL.
    """
    if remote_path(path) is None:
        return
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    for file in sorted(files, key=lambda file: (file.name == upload_last, file)):
        if file.name.startswith("."):
            continue
        remote = remote_path(file)
        assert remote is not None
        with storage_errors(remote, "written"):
            put_file(file, remote)


def download(path: Path, *patterns: str) -> None:
    """Download a file, or the files of a folder, that changed at its URL.

    Paths without a URL are left alone. As in `upload`, hidden files are not copied.

    Args:
        patterns: glob patterns for the end of a file's path; only matching files are downloaded.
            Without patterns, all files are.

    Raises:
        StorageError: the URL cannot be read.
    """
    remote = remote_path(path)
    if remote is None:
        return
    with storage_errors(remote, "read"):
        try:
            entries = remote.fs.find(remote.path, detail=True)
        except FileNotFoundError:
            return
        for name, info in entries.items():
            relative = PurePosixPath(name).relative_to(PurePosixPath(remote.path))
            file = path / relative
            if file.name.startswith("."):
                continue
            matches = not patterns or any(file.match(pattern) for pattern in patterns)
            size = info["size"] if "size" in info else remote.fs.size(name)
            if matches and not _is_up_to_date(file, int(size)):
                _get_file(remote.fs, name, file)


def delete(path: Path) -> None:
    """Delete a file or folder, locally and at its URL. It may already be missing.

    Raises:
        StorageError: the file or folder cannot be deleted.
    """
    with storage_errors(path, "deleted"):
        if path.is_dir():
            with suppress(FileNotFoundError):  # another process deletes it as well
                shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    remote = remote_path(path)
    if remote is not None:
        with storage_errors(remote, "deleted"), suppress(FileNotFoundError):
            remote.fs.rm(remote.path, recursive=True)


def exists(path: AnyPath) -> bool:
    """Return True if a file exists.

    Some file systems' own methods return False if the storage cannot be reached; this one raises.

    Raises:
        StorageError: the storage cannot be read.
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
    """Return the text of a file; None if the file is missing.

    Bytes that are not UTF-8 become replacement characters, so the reader finds them invalid.

    Raises:
        StorageError: the storage cannot be read.
    """
    with storage_errors(path, "read"):
        try:
            return path.read_bytes().decode(errors="replace")
        except FileNotFoundError as error:
            if is_connection_error(error):
                raise
            return None


def is_transient(error: OSError) -> bool:
    """Return True if an error comes from a disk or network file system that may recover."""
    hdf5_errno = re.search(r"errno = (\d+)", str(error))  # HDF5 puts it into the message
    number = error.errno if hdf5_errno is None else int(hdf5_errno[1])
    return number in TRANSIENT_ERRNOS


def is_connection_error(error: FileNotFoundError) -> bool:
    """Return True if fsspec reports a failed or refused web request as a missing file."""
    cause = error.__cause__
    if type(cause).__module__.startswith("aiohttp"):
        return getattr(cause, "status", None) not in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)
    return isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)


def _is_up_to_date(file: Path, remote_size: int) -> bool:
    if not file.is_file():
        return False
    size = file.stat().st_size
    if file.suffix == APPEND_ONLY_SUFFIX:
        return size >= remote_size
    return size == remote_size and remote_size > ALWAYS_REFRESH_BELOW_BYTES


def put_file(file: Path, remote: UPath) -> None:
    """Upload a file. Create missing folders if the file system has folders, but no buckets."""
    try:
        remote.fs.put_file(str(file), remote.path)
    except FileNotFoundError:
        path = PurePosixPath(remote.path)
        if not remote.fs.exists(str(path.parents[-2])):
            raise
        remote.fs.makedirs(str(path.parent), exist_ok=True)
        remote.fs.put_file(str(file), remote.path)


def _get_file(fs: Any, name: str, file: Path) -> None:
    """Download a file under a temporary name of this thread, so concurrent downloads do not mix."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}.partial")
    try:
        fs.get_file(name, str(partial))
        os.replace(partial, file)
    except FileNotFoundError:
        pass  # deleted since the folder was listed
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def storage_errors(path: AnyPath, action: str) -> Iterator[None]:
    """Convert any exception of the block to a `StorageError` that names the path.

    If the disk is full, the message also names the disk and the way out.

    Args:
        action: "read", "written", "listed" or "deleted".

    Raises:
        StorageError: the block failed.
    """
    try:
        yield
    except Exception as error:  # each file system has its own exceptions
        message = f"{path} cannot be {action}: {type(error).__name__}: {error}"
        if getattr(error, "errno", None) in DISK_FULL_ERRNOS and isinstance(path, Path):
            message += f". {free_space_hint(path)}"
        raise StorageError(message) from error


def free_space_hint(path: Path) -> str:
    """Return the sentences of an error message on the full disk of a local path."""
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    disk = next(part for part in (folder, *folder.parents) if part.is_mount())
    free = shutil.disk_usage(folder).free / 2**20
    return (
        f"The disk {disk} has {free:.0f} MiB left. Free some space or raise the quota, and repeat "
        "the command. It continues with what is already recorded."
    )

"""Which files of a folder or URL are episodes, and why a folder has none."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple
from urllib.parse import unquote

from upath import UPath

from imf_ray.config import shell_override
from imf_ray.data.episodes import SUFFIX
from imf_ray.errors import StorageError, UserError, abridge
from imf_ray.folders import EPISODE_SUFFIXES, WRITTEN_KINDS, folder_kind, training_data_of
from imf_ray.storage import (
    AnyPath,
    as_path,
    exists,
    is_connection_error,
    is_remote,
    parse_path,
    storage_errors,
)

_SUFFIXES = "|".join(map(re.escape, EPISODE_SUFFIXES))
_EPISODE_NAME = re.compile(rf"episode_?([0-9]+)(?:{_SUFFIXES})", re.IGNORECASE)
_HDF5_NAME = re.compile(r"\.(?:hdf5|hdf|h5|he5|hd5|h5py|nc)(?![a-z0-9])", re.IGNORECASE)
"""Also matches copies such as `episode_1.hdf5.bak`."""
_NUMBERED_NAME = re.compile(
    r"\.?_?episode[ _-]*\d(?!.*\.(?:mp4|avi|gif|png|jpe?g|json|ya?ml|txt|md|csv)$)", re.IGNORECASE
)
"""Matches names that begin like those of episodes, except those of videos, images and notes."""
_PACKED_NAME = re.compile(r"\.(?:zip|tar|tgz|tar\.[a-z0-9]+|7z|rar|gz|bz2|xz|zst)$", re.IGNORECASE)
_UNFINISHED_NAME = re.compile(r"\.(?:part|partial|crdownload)$", re.IGNORECASE)
NAME_RULE = f"an episode is a file named episode_NUMBER{SUFFIX} or .h5"
MAX_LISTED_NAMES = 20
"""Maximum number of file names in a message."""
MAX_SEARCHED_FOLDERS = 50
"""Maximum number of sub-folders that are searched for episodes."""
log = logging.getLogger(__name__)


class _Entry(NamedTuple):
    """A file or folder in a folder."""

    path: AnyPath
    is_folder: bool

    @property
    def name(self) -> str:
        """The name without the folder, with special characters as the user wrote them."""
        name = self.path.name
        return unquote(name) if is_remote(self.path) else name


def episode_number(name: str) -> int | None:
    """Return the number of an episode by its file name, or None if it is no episode's name."""
    match = _EPISODE_NAME.fullmatch(name)
    return None if match is None else int(match[1])


def list_episodes(folder: str | AnyPath) -> list[AnyPath]:
    """Return the episode files of a folder, sorted by number; a missing folder has none.

    Raises:
        UserError: the folder cannot be listed, or two files have the same number.
    """
    return _episodes(_list_folder(as_path(folder)))


def dataset_option(folder: AnyPath) -> str:
    """Return the option that names a data set, as it is typed."""
    return shell_override("data.dataset_dir", str(folder))


def require_episodes(
    folder: str | AnyPath, as_argument: Callable[[AnyPath], str] = dataset_option
) -> list[AnyPath]:
    """Return the episode files of a folder, and warn about other HDF5 files; there is at least one.

    Args:
        as_argument: returns the argument of the command line for a folder, for the message.

    Raises:
        UserError: see `list_episodes`, or the folder is missing or has no episodes. The message
            names the files and folders that may be meant.
    """
    folder = as_path(folder)
    entries = _list_folder(folder)
    episodes = _episodes(entries)
    if not episodes:
        reason = _explain_no_episodes(folder, entries, as_argument)
        raise UserError(f"{as_argument(folder)} {reason}")
    left_out = _other_hdf5_names(entries)
    if left_out:
        log.warning(
            "%d file(s) in %s are left out, because %s: %s",
            *(len(left_out), folder, NAME_RULE, abridge(left_out, MAX_LISTED_NAMES)),
        )
    return episodes


def refuse_other_folders(folder: AnyPath) -> None:
    """Check that demonstrations can be recorded into a folder, which may be missing.

    Raises:
        UserError: it is the folder of a run, a checkpoint, or another one that imf_ray writes.
    """
    if (kind := folder_kind(folder)) in WRITTEN_KINDS:
        raise UserError(
            f"{dataset_option(folder)} is {kind}, not a data set. Record demonstrations into "
            "another folder."
        )


def _list_folder(folder: AnyPath) -> list[_Entry]:
    """Return the entries of a folder, sorted by name; a missing folder or a file has none."""
    with storage_errors(folder, "listed"):
        if isinstance(folder, UPath) and is_remote(folder):
            entries = _list_remote(folder)
        else:
            paths = folder.iterdir() if folder.is_dir() else ()
            entries = [_Entry(path, path.is_dir()) for path in paths]
    return sorted(entries, key=lambda entry: entry.name)


def _list_remote(folder: UPath) -> list[_Entry]:
    try:
        items = folder.fs.ls(folder.path, detail=True)
    except FileNotFoundError as error:
        if is_connection_error(error):
            raise
        return []
    except NotADirectoryError:
        return []
    itself = folder.path.rstrip("/")  # some file systems list a file as its own content
    return [
        _Entry(folder / item["name"].rstrip("/").rpartition("/")[2], item["type"] == "directory")
        for item in items
        if item["name"].rstrip("/") != itself
    ]


def _episodes(entries: Iterable[_Entry]) -> list[AnyPath]:
    by_number: dict[int, AnyPath] = {}
    for entry in entries:
        number = None if entry.is_folder else episode_number(entry.name)
        if number is None:
            continue
        if number in by_number:
            raise UserError(
                f"{by_number[number]} and {entry.path} are both episode {number}. Remove or rename "
                "one of them."
            )
        by_number[number] = entry.path
    return [by_number[number] for number in sorted(by_number)]


def _other_hdf5_names(entries: Iterable[_Entry]) -> list[str]:
    """Return the names that look like those of HDF5 files or episodes and are no episodes."""
    names = []
    for entry in entries:
        if entry.is_folder:
            names += [f"{entry.name}/"] if _HDF5_NAME.search(entry.name) else []
        elif episode_number(entry.name) is None and (
            _HDF5_NAME.search(entry.name) or _NUMBERED_NAME.match(entry.name)
        ):
            names.append(entry.name)
    return names


def _explain_no_episodes(
    folder: AnyPath, entries: Sequence[_Entry], as_argument: Callable[[AnyPath], str]
) -> str:
    """Say why a folder has no episodes and what to do, as the end of a sentence about it."""
    here = dataset_option(folder)
    collect = f"Collect demonstrations with python -m imf_ray.collect {here}"
    if not exists(folder):
        return f"does not exist. If the data set was moved, give its new folder. {collect}"
    is_file = _is_file(folder, entries)
    if _PACKED_NAME.search(folder.name) and is_file:
        return "is a file. Unpack it, and give the folder of its episodes."
    other_folders = [*_subfolders_with_episodes(entries), *_parent_with_episodes(folder)]
    if other_folders:
        folders = ", ".join(map(as_argument, other_folders))
        return f"{'is a file' if is_file else 'has no episodes itself'}. Use {folders}"
    if is_file:
        return f"is a file. Give a folder of episodes; {NAME_RULE}."
    if (kind := folder_kind(folder)) in WRITTEN_KINDS:
        source = training_data_of(folder)
        hint = f"It was trained on {as_argument(parse_path(source))}" if source else ""
        return f"is {kind}, not a data set. {hint or 'Give a folder of episodes.'}"
    packed = [entry.name for entry in entries if _PACKED_NAME.search(entry.name)]
    others = [name for name in _other_hdf5_names(entries) if name not in packed]
    unfinished = [name for name in others if _UNFINISHED_NAME.search(name)]
    misnamed = [name for name in others if name not in unfinished]
    ways_out = [
        f"{way_out} {abridge(names, MAX_LISTED_NAMES)}"
        for way_out, names in (
            ("Unpack", packed),
            ("Download or copy again what is not complete:", unfinished),
            ("Rename these if they are HDF5 files of episodes:", misnamed),
        )
        if names
    ]
    if ways_out:
        return f"has no episodes, because {NAME_RULE}. {'. '.join(ways_out)}"
    return f"has no episodes ({NAME_RULE}). {collect}"


def _is_file(path: AnyPath, entries: Sequence[_Entry]) -> bool:
    """Return True for a file. A web server does not say what a URL is, so its suffix decides."""
    return not entries and (bool(path.suffix) if is_remote(path) else not path.is_dir())


def _subfolders_with_episodes(entries: Iterable[_Entry]) -> list[AnyPath]:
    """Return the folders with episodes one level below, or else two levels below."""
    level = [entry.path for entry in entries if entry.is_folder]
    for _ in range(2):
        level = level[:MAX_SEARCHED_FOLDERS]
        listed = [(path, _try_list(path)) for path in level]
        holders = [path for path, below in listed if _has_episodes(below)]
        if holders:
            return holders[:MAX_LISTED_NAMES]
        level = [entry.path for _, below in listed for entry in below if entry.is_folder]
    return []


def _parent_with_episodes(folder: AnyPath) -> list[AnyPath]:
    return [folder.parent] if _has_episodes(_try_list(folder.parent)) else []


def _has_episodes(entries: Iterable[_Entry]) -> bool:
    return any(not entry.is_folder and episode_number(entry.name) is not None for entry in entries)


def _try_list(folder: AnyPath) -> list[_Entry]:
    """Return the entries of a folder, or none if it cannot be listed."""
    with contextlib.suppress(StorageError):
        return _list_folder(folder)
    return []

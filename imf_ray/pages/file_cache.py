"""Contents of small files, which are parsed again only after they changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from imf_ray.errors import UserError
from imf_ray.files import parse_json
from imf_ray.redaction import redact

T = TypeVar("T")
UNREAD = (-1, -1, -1)
"""Version of a file that could not be read."""
Version = tuple[int, int, int]


def file_version(path: str | Path) -> Version | None:
    """Return what changes with a file or with the list of files in a folder; None if missing."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


@dataclass
class _Entry:
    version: Version
    value: Any
    problem: str | None


class FileCache:
    """Parsed files, by path."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}

    def read(self, path: str | Path, parse: Callable[[bytes], T]) -> T | None:
        """Return the parsed content of a file.

        Args:
            parse: converts the content; raises `UserError` if it is damaged.

        Returns:
            None if the file is missing, is damaged or cannot be read, see `problem`.
        """
        key = str(path)
        version = file_version(path)
        if version is None:
            self._entries.pop(key, None)
            return None
        entry = self._entries.get(key)
        if entry is None or entry.version != version:
            value, problem = None, None
            try:
                value = parse(Path(path).read_bytes())
            except FileNotFoundError:  # deleted a moment ago
                return None
            except UserError as error:
                problem = redact(str(error))
            except OSError as error:  # the rights may be corrected, so the next call tries again
                problem, version = f"{Path(path).name} cannot be read: {error.strerror}.", UNREAD
            entry = self._entries[key] = _Entry(version, value, problem)
        return cast(T | None, entry.value)

    def read_json(self, path: str | Path, parse: Callable[[Any], T], consequence: str) -> T | None:
        """Return the converted content of a JSON file, see `read`.

        Args:
            parse: converts the JSON value; raises one of `INVALID_JSON` if it is invalid.
            consequence: what a damaged file means for the page, as a sentence.
        """
        return self.read(
            path, lambda content: parse_json(content, parse, Path(Path(path).name), consequence)
        )

    def problem(self, path: str | Path) -> str | None:
        """Return why the file that was read last from this path cannot be used, or None."""
        entry = self._entries.get(str(path))
        return None if entry is None else entry.problem

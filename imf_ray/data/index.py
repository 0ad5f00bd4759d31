"""The index of a data set: descriptions of all of its episode files, each checked once.

A check reads the whole file. Descriptions are cached in `<data set>/.imf_ray/index.json` with the
fingerprint of each file. A file whose fingerprint has changed is checked again.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from imf_ray.data.channel_order import check_channel_order
from imf_ray.data.check_pool import CheckResult, check_files, invalid_reason, metadata_from_dict
from imf_ray.data.dataset_folder import find_dataset, list_dataset
from imf_ray.data.episode_choice import choose_episodes, choose_tasks
from imf_ray.data.episode_files import require_episodes
from imf_ray.data.episodes import (
    SPLIT,
    VALIDATION_SPLIT,
    EpisodeMetadata,
    EpisodeRef,
    bad_episode_error,
    describe_copies,
    find_copies,
)
from imf_ray.data.hdf5.check import MAX_LISTED_PARTS
from imf_ray.data.hdf5.content_hash import HASH_ATTRIBUTE
from imf_ray.data.hdf5.layouts import is_own_recording
from imf_ray.data.readers import reader_of
from imf_ray.data.requirements import (
    Mismatch,
    find_collection_mismatches,
    find_mismatches,
    find_unread,
    require_fitting_options,
)
from imf_ray.data.source_files import cache_folder, writable_cache_folder
from imf_ray.errors import StorageError, UserError, abridge
from imf_ray.files import INVALID_JSON, write_atomically
from imf_ray.progress_bars import ProgressBars
from imf_ray.schema import Config
from imf_ray.storage import AnyPath, as_path, is_remote, is_transient, parse_path

INDEX_FILE = "index.json"
CACHE_VERSION = 12
"""Version of `index.json`. A cache of another version is ignored."""
CHECKING = "Checking episodes"
PROGRESS_LINES = 5
"""Number of progress lines of a check if stdout is not a terminal."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EpisodeIndex:
    """The valid episodes of a data set, sorted by number.

    `skipped` maps the name of each skipped file to the reason (`data.on_bad_episode=skip`).
    """

    episodes: tuple[EpisodeMetadata, ...]
    skipped: Mapping[str, str]

    def split(self, val_split: float, seed: int) -> tuple[EpisodeIndex, EpisodeIndex]:
        """Split into training and validation episodes.

        If the data set says which episodes are for validation, those are taken. Otherwise the
        result depends only on the number of episodes, `val_split` and `seed`.

        Raises:
            UserError: the split would leave no episode to train on.
        """
        count = len(self.episodes)
        held_out = [e.attributes.get(SPLIT) == VALIDATION_SPLIT for e in self.episodes]
        if any(held_out) and not all(held_out):
            train, val = (
                [i for i in range(count) if held_out[i] == part] for part in (False, True)
            )
            log.info("The data set holds %d of its %d episodes out of training.", len(val), count)
            return self._take(train), self._take(val)
        num_val = round(count * val_split) if val_split == 0.0 else max(1, round(count * val_split))
        if num_val >= count:
            raise UserError(
                f"train.val_split={val_split} leaves none of the {count} episodes to train on. "
                "Collect more episodes, or set train.val_split=0.0."
            )
        order = np.random.default_rng(seed).permutation(count)
        return self._take(sorted(order[num_val:])), self._take(sorted(order[:num_val]))

    def _take(self, indices: list[int]) -> EpisodeIndex:
        return dataclasses.replace(self, episodes=tuple(self.episodes[i] for i in indices))


def build_index(config: Config) -> EpisodeIndex:
    """Check the data set of a run against its config and return the index.

    Raises:
        UserError: the folder is missing or empty, an option does not fit the episodes, or a part of
            a file that the run uses is bad (unless `data.on_bad_episode` is `skip`).
    """
    folder = parse_path(config.data.dataset_dir)
    format, paths = find_dataset(folder, config.data.format)
    paths = choose_episodes(paths, config.data.episodes)
    results = check_dataset(folder, paths, format, config.data.features)
    results = choose_tasks(results, config.data.tasks)
    errors = {path: result for path, result in results.items() if isinstance(result, str)}
    described = {path: r for path, r in results.items() if isinstance(r, EpisodeMetadata)}
    mismatches = {path: find_mismatches(info, config) for path, info in described.items()}
    require_fitting_options(folder, mismatches)
    for path, found in mismatches.items():
        if found:
            errors[path] = str(bad_episode_error(path, "; ".join(map(str, found))))
    skipped: dict[str, str] = {}
    for path in results:
        if path not in errors:
            continue
        if config.data.on_bad_episode == "error":
            raise UserError(errors[path])
        skipped[path.name] = errors[path]
        log.warning("Skipped %s", errors[path])
    episodes = tuple(info for path, info in described.items() if path not in errors)
    if not episodes:
        first_error = next(iter(skipped.values()))
        raise UserError(
            f"All {len(results)} episodes in {folder} are bad. The first error: {first_error}"
        )
    images = {
        episode.path: {camera: episode.images[camera] for camera in config.agent.camera_names}
        for episode in episodes
    }
    check_channel_order(images, config.data.channel_order, folder)
    _log_unread(episodes, config, folder)
    _log_copies(episodes, folder)
    return EpisodeIndex(episodes, skipped)


def require_extendable(config: Config) -> None:
    """Check that `collect` can add episodes to the data set of a config.

    Raises:
        UserError: an episode cannot be read, or was recorded by another program or with other
            options.
    """
    folder = parse_path(config.data.dataset_dir)
    results = check_dataset(folder, require_episodes(folder), config.data.format)
    mismatches: dict[AnyPath, list[Mismatch]] = {}
    for path, result in results.items():
        if isinstance(result, str):
            raise UserError(result)
        if not is_own_recording(result.attributes):
            raise UserError(
                f"{path} was not recorded by `imf-ray collect`, which extends only its own data "
                "sets. Collect into another data.dataset_dir."
            )
        mismatches[path] = find_collection_mismatches(result, config)
    require_fitting_options(folder, mismatches)
    for path, found in mismatches.items():
        if found:
            raise bad_episode_error(path, "; ".join(map(str, found)))


def _log_unread(episodes: Iterable[EpisodeMetadata], config: Config, folder: AnyPath) -> None:
    """Warn about the parts of the episodes that the run does not read, once for a data set."""
    unread: dict[str, str | None] = {}
    for episode in episodes:
        unread = {**find_unread(episode, config), **unread}
    if unread:
        parts = [problem or f"/{name}" for name, problem in sorted(unread.items())]
        text = abridge(parts, MAX_LISTED_PARTS, separator="; ")
        log.warning("These parts of the episodes in %s are not used: %s", folder, text)


def _log_copies(episodes: Iterable[EpisodeMetadata], folder: AnyPath) -> None:
    """Warn about episodes with the same contents, once for a data set."""
    copies = find_copies(episodes)
    if copies:
        log.warning(
            "%d file(s) in %s are copies of other episodes, and count as further episodes in "
            "training and in validation: %s. Remove them if that is not intended.",
            *(len(copies), folder, describe_copies(copies)),
        )


def check_dataset(
    folder: str | AnyPath,
    files: Sequence[str | AnyPath],
    format: str,
    features: Mapping[str, list[str]] | None = None,
    force: bool = False,
) -> dict[AnyPath, CheckResult]:
    """Check each episode and return the results in the order of `files`.

    Valid files that are unchanged since their last check are not read. Invalid files are always
    checked again, because the cause may have been a disk error or missing permissions.

    Args:
        format: a name in `readers.FORMATS`, or `auto` for HDF5 files in any layout.
        features: value of `data.features`.
        force: also check files that are valid and unchanged, and index files again that another
            program has changed.

    Raises:
        StorageError: a file that was listed cannot be read because of its storage.
    """
    features, paths = dict(features or {}), [as_path(file) for file in files]
    cache, reader = _Cache(as_path(folder), format, features), reader_of(format)
    results: dict[AnyPath, CheckResult] = {}
    for path in paths:
        try:
            current = reader.fingerprint(path)
        except OSError as error:
            # The file was listed a moment ago, so the cause is the storage and not the file.
            if is_remote(path) or is_transient(error):
                raise StorageError(f"{path} cannot be read: {error}") from error
            results[path] = str(bad_episode_error(path, f"it cannot be read ({error})"))
            continue
        info = None if force else cache.get(path, current)
        if info is not None:
            results[path] = info
    unchecked = [path for path in paths if path not in results]
    if not unchecked:
        return results
    checks = _check_with_retry(unchecked, format, features)
    try:
        with ProgressBars(lines=PROGRESS_LINES) as bars:
            bars.start(CHECKING, len(unchecked))
            for number, (path, check) in enumerate(checks, start=1):
                result = _reject_replaced(path, check, cache, force)
                if isinstance(result, EpisodeMetadata) and not result.damaged:
                    cache.store(path, result)
                else:
                    cache.invalidate(path)
                results[path] = result
                bars.update(CHECKING, number, len(unchecked))
    finally:
        cache.save()
    return {path: results[path] for path in paths}


def locate_episodes(
    episodes: Sequence[EpisodeRef],
    folder: str | AnyPath,
    format: str,
    features: Mapping[str, list[str]] | None = None,
) -> list[EpisodeRef]:
    """Return references to episodes whose data set may have been moved since they were indexed.

    Args:
        folder: where to look for the contents of episodes that are not at their paths.
        format: a name in `readers.FORMATS`, or `auto`.
        features: value of `data.features`.

    Raises:
        UserError: the contents of an episode are neither at its path nor in `folder`.
    """
    if all(_is_in_place(episode) for episode in episodes):
        return list(episodes)
    format, paths = list_dataset(as_path(folder), format)
    results = check_dataset(folder, paths, format, features).values()
    found = {info.content_hash: info.ref for info in results if isinstance(info, EpisodeMetadata)}
    missing = [episode for episode in episodes if episode.content_hash not in found]
    if missing:
        raise UserError(
            f"{missing[0].path} was moved or changed, and {folder} has no episode with its "
            "contents. If the data set was moved, set data.dataset_dir to its new folder"
        )
    return [found[episode.content_hash] for episode in episodes]


def _is_in_place(episode: EpisodeRef) -> bool:
    try:
        current = reader_of(episode.format).fingerprint(parse_path(episode.path))
    except FileNotFoundError:
        return False
    return current == episode.fingerprint


def _check_with_retry(
    paths: Sequence[AnyPath], format: str, features: Mapping[str, list[str]]
) -> Iterator[tuple[AnyPath, CheckResult]]:
    """Check episodes, and invalid remote ones once more at the end; yield their results.

    The cause may have been a network error.
    """
    failed = []
    for path, result in check_files(paths, format, features):
        if is_remote(path) and isinstance(result, str):
            failed.append(path)
        else:
            yield path, result
    yield from check_files(failed, format, features)


def _reject_replaced(
    path: AnyPath, result: CheckResult, cache: _Cache, accept_changed: bool
) -> CheckResult:
    """Return the result of a check, or an error if the contents have changed since indexing.

    A file may get the name of another indexed file. A file that has its content hash as attribute
    may be replaced by another such file. Both were written on purpose, because their contents match
    their hashes.
    """
    indexed = cache.last_info(path)
    if isinstance(result, str) or indexed is None or cache.has_contents(result.content_hash):
        return result
    if HASH_ATTRIBUTE in result.attributes and HASH_ATTRIBUTE in indexed["attributes"]:
        return result
    # A disk error changes the contents, but neither the size nor the time.
    is_intact = result.fingerprint != indexed["fingerprint"] and not result.damaged
    if accept_changed and is_intact and invalid_reason(result) is None:
        log.warning("%s was changed since it was indexed. It is indexed again.", path)
        return result
    reasons = "; ".join([*result.problems.values(), "its contents differ from the indexed ones"])
    if is_intact:
        folder = shlex.quote(str(path.parent))
        help = f"If the change is intended, run `imf-ray dataset check {folder}`; otherwise restore"
    else:
        help = f"If the change is intended, delete {cache.source}; otherwise restore"
    return f"Bad episode {path}: {reasons}. {help} the file."


class _Cache:
    """Cache of the descriptions of files that could be read at an earlier check.

    Attributes:
        source: the file that was read.
    """

    def __init__(self, folder: AnyPath, format: str, features: Mapping[str, list[str]]) -> None:
        self._options = [format, features]
        self._path = writable_cache_folder(folder) / INDEX_FILE
        # A folder that cannot be written may have been indexed by its owner.
        self.source = self._path if self._path.is_file() else cache_folder(folder) / INDEX_FILE
        self._entries: dict[str, dict[str, Any]] = {}
        try:
            content = json.loads(self.source.read_text())
            if content["version"] == CACHE_VERSION:
                for name, entry in content["files"].items():  # a damaged entry raises an error
                    metadata_from_dict(dict(entry["info"], path=name)), entry["valid_for"]
                self._entries = content["files"]
        except FileNotFoundError:
            pass
        except (OSError, *INVALID_JSON) as error:
            log.warning("Ignoring the unreadable index cache %s: %s", self.source, error)
        self._indexed_hashes = {e["info"]["content_hash"] for e in self._entries.values()}

    def get(self, path: AnyPath, fingerprint: str) -> EpisodeMetadata | None:
        """Return the description of a file if it was valid and is unchanged, else None."""
        entry = self._entries.get(path.name)
        if entry is None or entry["valid_for"] != [fingerprint, *self._options]:
            return None
        return metadata_from_dict(dict(entry["info"], path=str(path)))

    def last_info(self, path: AnyPath) -> Mapping[str, Any] | None:
        """Return the description from the last check at which the file was valid, or None."""
        entry = self._entries.get(path.name)
        return None if entry is None else entry["info"]

    def has_contents(self, content_hash: str) -> bool:
        """Return True if a file with this content hash was indexed under any name."""
        return content_hash in self._indexed_hashes

    def invalidate(self, path: AnyPath) -> None:
        """Mark a file as not checked, but keep its last description."""
        if path.name in self._entries:
            self._entries[path.name]["valid_for"] = None

    def store(self, path: AnyPath, info: EpisodeMetadata) -> None:
        """Store the description of a valid file."""
        self._entries[path.name] = {
            "valid_for": [info.fingerprint, *self._options],
            "info": dataclasses.asdict(info),
        }

    def save(self) -> None:
        """Write the cache, or warn if it cannot be written."""
        content = json.dumps({"version": CACHE_VERSION, "files": self._entries})
        try:
            write_atomically(self._path, content)
        except StorageError as error:
            log.warning("The index cannot be cached, so each run will check all files: %s", error)

"""The index of a data set: descriptions of all of its episode files, each checked once.

A check reads the whole file. Descriptions of valid files are cached in
`<data set>/.imf_ray/index.json` with the fingerprint of each file. A file whose fingerprint has
changed is checked again.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.progress import track

from imf_ray.data.channel_order import check_channel_order
from imf_ray.data.check_pool import CheckResult, check_files, metadata_from_dict
from imf_ray.data.content_hash import HASH_ATTRIBUTE
from imf_ray.data.episode_formats import FORMATS
from imf_ray.data.episodes import SUFFIX, EpisodeMetadata, bad_episode_error
from imf_ray.data.hdf5 import cache_folder, fingerprint
from imf_ray.errors import StorageError, UserError
from imf_ray.files import write_atomically
from imf_ray.schema import Config
from imf_ray.storage import AnyPath, is_remote, is_transient, parse_path, storage_errors

CACHE_VERSION = 9
"""Version of `index.json`. A cache of another version is ignored."""
HDF5_SUFFIXES = (".hdf5", ".h5")
"""Suffixes of files that are reported if they are not named like episodes."""
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

        The result depends only on the number of episodes, `val_split` and `seed`.

        Raises:
            UserError: the split would leave no episode to train on.
        """
        count = len(self.episodes)
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
        UserError: the folder is missing or empty, a file is invalid (unless `data.on_bad_episode`
            is `skip`), a camera is missing, or a file does not match the config.
    """
    folder = parse_path(config.data.dataset_dir)
    files = require_episodes(folder)
    results = check_dataset(folder, files, config.data.format)
    episodes: list[EpisodeMetadata] = []
    skipped: dict[str, str] = {}
    for path in files:
        result = results[path]
        try:
            if isinstance(result, str):
                raise UserError(result)
            _check_matches_config(result, config)
            episodes.append(result)
        except UserError as error:
            if config.data.on_bad_episode == "error":
                raise
            skipped[path.name] = str(error)
            log.warning("Skipped %s", error)
    if not episodes:
        first_error = next(iter(skipped.values()))
        raise UserError(
            f"All {len(files)} episodes in {folder} are bad. The first error: {first_error}"
        )
    images = {
        episode.path: {camera: episode.images[camera] for camera in config.data.camera_names}
        for episode in episodes
    }
    check_channel_order(images, config.data.channel_order, folder)
    unused = sorted({f"/{name}" for episode in episodes for name in episode.unused_datasets})
    if unused:
        log.warning("Training does not use %s of the episodes in %s", ", ".join(unused), folder)
    return EpisodeIndex(tuple(episodes), skipped)


def check_dataset(
    folder: AnyPath, files: Sequence[AnyPath], format: str, force: bool = False
) -> dict[AnyPath, CheckResult]:
    """Check each file and return the results in the order of `files`.

    Valid files that are unchanged since their last check are not read. Invalid files are always
    checked again, because the cause may have been a disk error or missing permissions.

    Args:
        format: a name in `episode_formats.FORMATS`, or `auto`.
        force: also check files that are valid and unchanged.

    Raises:
        StorageError: a file that was listed cannot be read because of its storage.
    """
    cache = _Cache(folder, format)
    results: dict[AnyPath, CheckResult] = {}
    for path in files:
        try:
            current = fingerprint(path)
        except OSError as error:
            # The file was listed a moment ago, so the cause is the storage and not the file.
            if is_remote(path) or is_transient(error):
                raise StorageError(f"{path} cannot be read: {error}") from error
            results[path] = str(bad_episode_error(path, f"it cannot be read ({error})"))
            continue
        info = None if force else cache.get(path, current)
        if info is not None:
            results[path] = info
    unchecked = [path for path in files if path not in results]
    checks = track(
        _recheck_remote_failures(check_files(unchecked, format), format),
        "Checking episodes",
        len(unchecked),
        disable=not unchecked,
    )
    try:
        for path, check in checks:
            result = _reject_replaced(path, check, cache.last_info(path), folder)
            if isinstance(result, EpisodeMetadata):
                cache.store(path, result)
            else:
                cache.invalidate(path)
            results[path] = result
    finally:
        cache.save()
    return {path: results[path] for path in files}


def _recheck_remote_failures(
    checks: Iterable[tuple[AnyPath, CheckResult]], format: str
) -> Iterator[tuple[AnyPath, CheckResult]]:
    """Yield the results of `checks`, but check invalid remote files once more at the end.

    The cause may have been a network error.
    """
    failed = []
    for path, result in checks:
        if is_remote(path) and isinstance(result, str):
            failed.append(path)
        else:
            yield path, result
    yield from check_files(failed, format)


def _reject_replaced(
    path: AnyPath, result: CheckResult, indexed: Mapping[str, Any] | None, folder: AnyPath
) -> CheckResult:
    """Return the result of a check, or an error if the contents have changed since indexing.

    A file with a content hash as attribute may be replaced by another such file. Both were written
    on purpose, because their contents match their hashes.
    """
    if isinstance(result, str) or indexed is None or indexed["content_hash"] == result.content_hash:
        return result
    if HASH_ATTRIBUTE in result.attributes and HASH_ATTRIBUTE in indexed["attributes"]:
        return result
    reason = (
        "its contents differ from the indexed ones. If you changed it on purpose, delete "
        f"{cache_folder(folder)} to index the data set again"
    )
    return str(bad_episode_error(path, reason))


def require_episodes(folder: AnyPath) -> list[AnyPath]:
    """Return the episode files of a folder, sorted by number; there is at least one.

    Raises:
        UserError: the folder is missing or has no episodes.
    """
    files = list_episodes(folder)
    if not files:
        reason = f"has no episode_*{SUFFIX} file" if folder.is_dir() else "does not exist"
        raise UserError(
            f"data.dataset_dir={folder} {reason}. Collect demonstrations with "
            f"python -m imf_ray.collect data.dataset_dir={folder}"
        )
    if others := _unrecognized_files(folder, files):
        log.warning(
            "%d file(s) in %s are ignored, because episodes must be named episode_0%s and so on: "
            "%s",
            *(len(others), folder, SUFFIX, ", ".join(path.name for path in others[:3])),
        )
    return files


def list_episodes(folder: AnyPath) -> list[AnyPath]:
    """Return the episode files of a folder, sorted by number.

    Raises:
        UserError: the folder cannot be listed.
    """
    with storage_errors(folder, "listed"):
        files: list[AnyPath] = list(folder.glob(f"episode_*{SUFFIX}"))
    return sorted(files, key=lambda path: (_number(path), path.name))


def _unrecognized_files(folder: AnyPath, episodes: list[AnyPath]) -> list[AnyPath]:
    """Return the HDF5 files of a folder that are not named like episodes."""
    with storage_errors(folder, "listed"):
        files: list[AnyPath] = [p for suffix in HDF5_SUFFIXES for p in folder.glob(f"*{suffix}")]
    return sorted(set(files) - set(episodes), key=str)


class _Cache:
    """Cache of the descriptions of files that were valid at an earlier check."""

    def __init__(self, folder: AnyPath, format: str) -> None:
        self._format = format
        self._path = cache_folder(folder) / "index.json"
        self._entries: dict[str, dict[str, Any]] = {}
        try:
            content = json.loads(self._path.read_text())
            if content["version"] == CACHE_VERSION:
                self._entries = content["files"]
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("Ignoring the unreadable index cache %s: %s", self._path, error)

    def get(self, path: AnyPath, fingerprint: str) -> EpisodeMetadata | None:
        """Return the description of a file if it was valid and is unchanged, else None."""
        entry = self._entries.get(path.name)
        if entry is None or entry["valid_for"] != [fingerprint, self._format]:
            return None
        return metadata_from_dict(dict(entry["info"], path=str(path)))

    def last_info(self, path: AnyPath) -> Mapping[str, Any] | None:
        """Return the description from the last check at which the file was valid, or None."""
        entry = self._entries.get(path.name)
        return None if entry is None else entry["info"]

    def invalidate(self, path: AnyPath) -> None:
        """Mark a file as not checked, but keep its last description."""
        if path.name in self._entries:
            self._entries[path.name]["valid_for"] = None

    def store(self, path: AnyPath, info: EpisodeMetadata) -> None:
        """Store the description of a valid file."""
        self._entries[path.name] = {
            "valid_for": [info.fingerprint, self._format],
            "info": dataclasses.asdict(info),
        }

    def save(self) -> None:
        """Write the cache, or warn if it cannot be written."""
        content = json.dumps({"version": CACHE_VERSION, "files": self._entries})
        try:
            write_atomically(self._path, content)
        except StorageError as error:
            log.warning("The index cannot be cached, so each run will check all files: %s", error)


def _check_matches_config(info: EpisodeMetadata, config: Config) -> None:
    """Raise an error if a file does not match the config."""
    path = info.path
    missing = [camera for camera in config.data.camera_names if camera not in info.cameras]
    if missing:
        raise bad_episode_error(
            path, f"it has no camera {', '.join(missing)} (it has {', '.join(info.cameras)})"
        )
    unknown = [name for name in config.agent.recorded_objects if name not in info.objects]
    if unknown:
        raise bad_episode_error(
            path,
            f"it has no poses of {', '.join(unknown)}, which agent.privileged_pose_objects or "
            f"agent.aux_pose_objects requires (it has {', '.join(info.objects) or 'none'})",
        )
    space = config.task.action_space
    if space not in info.action_spaces:
        raise bad_episode_error(
            path,
            f"as a file of format {info.format} it has {' and '.join(info.action_spaces)} actions, "
            f"not those of task.action_space={space}",
        )
    size = config.task.image_size
    sizes = {camera: info.cameras[camera] for camera in config.data.camera_names}
    wrong_sizes = {camera: shape for camera, shape in sizes.items() if shape != (size, size)}
    if wrong_sizes and not config.data.resize_images:
        raise bad_episode_error(
            path,
            f"its images have the sizes {wrong_sizes}, but task.image_size={size} requires "
            f"({size}, {size}); data.resize_images=true scales them",
        )
    action_dim = len(info.stats[FORMATS[info.format].actions[space]].mean)
    widths = {
        "state_dim": (info.state_dim, config.agent.state_dim),
        "action_dim": (action_dim, config.agent.action_dim),
    }
    for key, (recorded, configured) in widths.items():
        if recorded != configured:
            raise bad_episode_error(path, f"its {key} is {recorded}, but agent.{key}={configured}")
    settings: dict[str, tuple[str, object]] = {
        "task": ("task.env_id", config.task.env_id),
        "shadows": ("task.shadows", config.task.shadows),
        "multisampling": ("task.multisampling", config.task.multisampling),
        "control_hz": ("task.control_hz", config.task.control_hz),
        # The attribute describes /action. End-effector targets have a separate dataset.
        "action_space": ("actions in", "joint"),
    }
    for key, (option, value) in settings.items():
        recorded_value = info.attributes.get(key, value)
        if recorded_value != value:
            raise bad_episode_error(
                path,
                f"it was recorded with {key}={recorded_value}, but the run has {option}={value}",
            )


def _number(path: AnyPath) -> int:
    """Return the number at the end of a file name, or 0."""
    digits = re.search(r"(\d+)$", path.stem)
    return int(digits.group(1)) if digits else 0

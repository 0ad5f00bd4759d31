"""The index of a data set: every episode file, checked once.

A check reads the whole file; what a good one holds is cached in `<data set>/.imf_ray/index.json`
under the file's name, size and modification time, so that one which has changed is checked again.
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

from imf_ray.data.check_pool import CheckResult, check_files, info_from_dict
from imf_ray.data.content_hash import DIGEST
from imf_ray.data.episodes import SUFFIX, EpisodeMetadata, bad_episode_error
from imf_ray.data.hdf5 import cache_folder, fingerprint
from imf_ray.data.readers import FORMATS
from imf_ray.errors import StorageError, UserError
from imf_ray.files import write_atomically
from imf_ray.schema import Config
from imf_ray.storage import AnyPath, is_remote, is_transient, parse_path, storage_errors

CACHE_VERSION = 7
HDF5_SUFFIXES = (".hdf5", ".h5")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EpisodeIndex:
    """The good episodes of a data set in the order of their numbers.

    `skipped` names the files that were left out, with the reason (`data.on_bad_episode=skip`).
    """

    episodes: tuple[EpisodeMetadata, ...]
    skipped: Mapping[str, str]

    def split(self, val_split: float, seed: int) -> tuple[EpisodeIndex, EpisodeIndex]:
        """Training and held-out episodes, a function of (number of episodes, seed).

        Raises:
            UserError: the split would leave no episode to train on.
        """
        count = len(self.episodes)
        held = round(count * val_split) if val_split == 0.0 else max(1, round(count * val_split))
        if held >= count:
            raise UserError(
                f"train.val_split={val_split} leaves none of the {count} episodes to train on: "
                "collect more, or set train.val_split=0.0."
            )
        order = np.random.default_rng(seed).permutation(count)
        return self._take(sorted(order[held:])), self._take(sorted(order[:held]))

    def _take(self, numbers: list[int]) -> EpisodeIndex:
        return dataclasses.replace(self, episodes=tuple(self.episodes[n] for n in numbers))


def build_index(config: Config) -> EpisodeIndex:
    """Check the data set of a run against its configuration.

    Raises:
        UserError: the folder is missing or empty, a file is bad (unless `data.on_bad_episode` is
            `skip`), a camera is missing, or a file contradicts the configuration.
    """
    folder = parse_path(config.data.dataset_dir)
    files = require_episodes(folder)
    verdicts = check_dataset(folder, files, config.data.format)
    episodes: list[EpisodeMetadata] = []
    skipped: dict[str, str] = {}
    for path in files:
        verdict = verdicts[path]
        try:
            if isinstance(verdict, str):
                raise UserError(verdict)
            _check_matches_config(verdict, config)
            episodes.append(verdict)
        except UserError as error:
            if config.data.on_bad_episode == "error":
                raise
            skipped[path.name] = str(error)
            log.warning("Skipped %s", error)
    if not episodes:
        first = next(iter(skipped.values()))
        raise UserError(f"All {len(files)} episodes of {folder} are bad. The first: {first}")
    unread = sorted({f"/{name}" for episode in episodes for name in episode.unread})
    if unread:
        log.warning("Nothing is made of %s in the episodes of %s", ", ".join(unread), folder)
    return EpisodeIndex(tuple(episodes), skipped)


def check_dataset(
    folder: AnyPath, files: Sequence[AnyPath], format: str, again: bool = False
) -> dict[AnyPath, CheckResult]:
    """The verdict on each file, in the order of `files`.

    Good files that have not changed since they were checked are not read, unless `again`. Bad ones
    always are: what was wrong may have been the disk, or the right to read.
    """
    cache = _Cache(folder, format)
    verdicts: dict[AnyPath, CheckResult] = {}
    for path in files:
        try:
            now = fingerprint(path)
        except OSError as error:
            if is_remote(path) or is_transient(
                error
            ):  # it was listed just now: no fault of the file
                raise StorageError(f"{path} cannot be read: {error}") from error
            verdicts[path] = str(bad_episode_error(path, f"it cannot be read ({error})"))
            continue
        info = None if again else cache.get(path, now)
        if info is not None:
            verdicts[path] = info
    fresh = [path for path in files if path not in verdicts]
    checked = track(check_files(fresh, format), "Checking episodes", len(fresh), disable=not fresh)
    try:
        for path, found in _recheck_remote_failures(checked, format):
            verdict = _reject_replaced(path, found, cache.last(path), folder)
            if isinstance(verdict, EpisodeMetadata):
                cache.put(path, verdict)
            else:
                cache.distrust(path)
            verdicts[path] = verdict
    finally:
        cache.save()
    return {path: verdicts[path] for path in files}


def _recheck_remote_failures(
    checked: Iterable[tuple[AnyPath, CheckResult]], format: str
) -> Iterator[tuple[AnyPath, CheckResult]]:
    """The same, but what is bad under a URL is checked again: it may have been the network."""
    doubtful = []
    for path, found in checked:
        if is_remote(path) and isinstance(found, str):
            doubtful.append(path)
        else:
            yield path, found
    yield from check_files(doubtful, format)


def _reject_replaced(
    path: AnyPath, found: CheckResult, before: Mapping[str, Any] | None, folder: AnyPath
) -> CheckResult:
    """The verdict, unless the file is another one than was indexed.

    Files that carry their digests, now as before, vouch for themselves.
    """
    if isinstance(found, str) or before is None or before["digest"] == found.digest:
        return found
    if DIGEST in found.attributes and DIGEST in before["attributes"]:
        return found
    reason = (
        "its contents are not those that were indexed. If they are meant to have changed, delete "
        f"{cache_folder(folder)} to index the data set anew"
    )
    return str(bad_episode_error(path, reason))


def require_episodes(folder: AnyPath) -> list[AnyPath]:
    """`list_episodes` of a folder that has some.

    Raises:
        UserError: it is missing or empty.
    """
    files = list_episodes(folder)
    if not files:
        reason = f"holds no episode_*{SUFFIX} file" if folder.is_dir() else "does not exist"
        raise UserError(
            f"data.dataset_dir={folder} {reason}. Collect demonstrations with "
            f"python -m imf_ray.collect data.dataset_dir={folder}"
        )
    if others := _unrecognized_files(folder, files):
        log.warning(
            "%d file(s) of %s are not read, since episodes are named episode_0%s and so on: %s",
            *(len(others), folder, SUFFIX, ", ".join(path.name for path in others[:3])),
        )
    return files


def list_episodes(folder: AnyPath) -> list[AnyPath]:
    """The episode files of a folder, by number.

    Raises:
        UserError: the folder cannot be listed.
    """
    with storage_errors(folder, "listed"):
        files: list[AnyPath] = list(folder.glob(f"episode_*{SUFFIX}"))
    return sorted(files, key=lambda path: (_number(path), path.name))


def _unrecognized_files(folder: AnyPath, episodes: list[AnyPath]) -> list[AnyPath]:
    """Files that look as if they had been meant to be episodes."""
    with storage_errors(folder, "listed"):
        files: list[AnyPath] = [p for suffix in HDF5_SUFFIXES for p in folder.glob(f"*{suffix}")]
    return sorted(set(files) - set(episodes), key=str)


class _Cache:
    """The good files of earlier checks."""

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
        entry = self._entries.get(path.name)
        if entry is None or entry["good"] != [fingerprint, self._format]:
            return None
        return info_from_dict(dict(entry["info"], path=str(path)))

    def last(self, path: AnyPath) -> Mapping[str, Any] | None:
        """What is known of the contents that were good last."""
        entry = self._entries.get(path.name)
        return None if entry is None else entry["info"]

    def distrust(self, path: AnyPath) -> None:
        """Have a file checked again; what it was stays known."""
        if path.name in self._entries:
            self._entries[path.name]["good"] = None

    def put(self, path: AnyPath, info: EpisodeMetadata) -> None:
        self._entries[path.name] = {
            "good": [info.fingerprint, self._format],
            "info": dataclasses.asdict(info),
        }

    def save(self) -> None:
        content = json.dumps({"version": CACHE_VERSION, "files": self._entries})
        try:
            write_atomically(self._path, content)
        except StorageError as error:
            log.warning("The index is not cached (%s): files will be checked at each start", error)


def _check_matches_config(info: EpisodeMetadata, config: Config) -> None:
    """Refuse a file that contradicts the configuration."""
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
            f"agent.aux_pose_objects asks for (it has {', '.join(info.objects) or 'none'})",
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
    wrong = {camera: shape for camera, shape in sizes.items() if shape != (size, size)}
    if wrong and not config.data.resize_images:
        raise bad_episode_error(
            path,
            f"its images are {wrong}, task.image_size={size} asks for ({size}, {size}); "
            "data.resize_images=true scales them",
        )
    actions = info.moments[FORMATS[info.format].actions[space]]
    widths = {
        "state_dim": (info.state_dim, config.agent.state_dim),
        "action_dim": (len(actions.mean), config.agent.action_dim),
    }
    for key, (found, value) in widths.items():
        if found != value:
            raise bad_episode_error(path, f"its {key} is {found}, agent.{key}={value}")
    flags: dict[str, tuple[str, object]] = {
        "task": ("task.env_id", config.task.env_id),
        "shadows": ("task.shadows", config.task.shadows),
        "multisampling": ("task.multisampling", config.task.multisampling),
        "control_hz": ("task.control_hz", config.task.control_hz),
        # of /action: end-effector targets have a dataset of their own
        "action_space": ("actions in", "joint"),
    }
    for key, (option, wanted) in flags.items():
        if key in info.attributes and info.attributes[key] != wanted:
            found = info.attributes[key]
            raise bad_episode_error(
                path, f"it was recorded with {key}={found}, the run has {option}={wanted}"
            )


def _number(path: AnyPath) -> int:
    digits = re.search(r"(\d+)$", path.stem)
    return int(digits.group(1)) if digits else 0

"""Converts a data set in parallel Ray tasks, one per episode. A stopped conversion resumes.

Until a conversion is complete, `.imf_ray/conversion` in the new folder has what identifies it and
the record of each episode that was written. A folder of LeRobot's format becomes a data set when
`meta/info.json` is written at the end.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray

from imf_ray.conversion.lerobot_writer import (
    check_video_sizes,
    write_lerobot_episode,
    write_lerobot_metadata,
)
from imf_ray.conversion.source import SourceEpisode
from imf_ray.data.channel_order import RGB
from imf_ray.data.check_pool import CheckResult, invalid_reason
from imf_ray.data.episode_choice import TASKS
from imf_ray.data.episodes import EpisodeMetadata, bad_episode_error, episode_path, whole_number
from imf_ray.data.hdf5.layouts import ACTION_SPACE, ORDER_ATTRIBUTE, QPOS
from imf_ray.data.hdf5.writing import write_file
from imf_ray.data.readers import LEROBOT
from imf_ray.data.source_files import CACHE_DIR
from imf_ray.errors import UserError
from imf_ray.files import parse_json, write_atomically
from imf_ray.schema import Config, ConvertConfig
from imf_ray.storage import AnyPath

PNG = "png"
STATE_FOLDER, IDENTITY_FILE = "conversion", "conversion.json"
UNKNOWN_TASK = "unknown"
"""Task of an episode that does not name one."""


@dataclass(frozen=True)
class Conversion:
    """A conversion whose source has been checked."""

    folder: Path
    episodes: tuple[SourceEpisode, ...]
    options: ConvertConfig
    robot_type: str | None
    left_out: tuple[str, ...]
    """Parts of the source that the new data set does not have."""

    @property
    def state_folder(self) -> Path:
        """Folder with the state of an unfinished conversion."""
        return self.folder / CACHE_DIR / STATE_FOLDER

    @property
    def codec(self) -> str | None:
        """Codec of the videos, or None for images."""
        return None if self.options.codec == PNG else self.options.codec

    @property
    def tasks(self) -> list[str]:
        """The tasks of all episodes, each once."""
        return list(dict.fromkeys(task for episode in self.episodes for task in episode.tasks))

    def record_path(self, number: int) -> Path:
        """Return the path of an episode's record."""
        return self.state_folder / f"episode_{number}.json"


def plan_conversion(
    results: Mapping[AnyPath, CheckResult], folder: Path, config: Config
) -> Conversion:
    """Check that episodes can become one data set.

    Args:
        results: results of the checks of all episodes. None is invalid.
        folder: folder of the new data set.

    Raises:
        UserError: episodes differ in their cameras, sizes or rates, or the rate is not known.
    """
    infos = [info for info in results.values() if isinstance(info, EpisodeMetadata)]
    options, first = config.convert, infos[0]
    size, space = options.image_size, config.task.action_space
    cameras = {c: (size, size) if size else shape for c, shape in first.cameras.items()}
    rate = options.fps or whole_number(first.attributes.get("control_hz"), minimum=1)
    if rate is None:
        raise UserError("The data set does not say its rate. Set convert.fps.")
    if space not in first.action_spaces:
        raise UserError(
            f"{first.path} has no actions of task.action_space={space}, but "
            f"{' and '.join(first.action_spaces) or 'none'}."
        )
    for info in infos:
        if _contents(info, space) != _contents(first, space):
            raise UserError(
                f"{info.path} and {first.path} differ in cameras, image sizes, widths or rate, but "
                "a data set has one of each. Convert them separately."
            )
    if options.format == LEROBOT and options.codec != PNG:
        check_video_sizes(cameras)
    episodes, first_index = [], 0
    for number, info in enumerate(infos):
        named = info.attributes.get(TASKS) or [info.attributes.get("task") or UNKNOWN_TASK]
        episodes.append(
            SourceEpisode(
                ref=info.ref,
                number=number,
                first_index=first_index,
                tasks=tuple(map(str, named)),
                fps=rate,
                cameras=cameras,
                image_size=size,
                features=config.data.features,
                action_space=space,
                channel_order=config.data.channel_order,
            )
        )
        first_index += info.length
    used = {*first.features.state, *first.features.actions[space], *first.features.cameras.values()}
    left_out = [*first.stats, *first.unused_datasets, *first.features.poses.values()]
    robot = first.attributes.get("robot_type")
    return Conversion(
        folder,
        tuple(episodes),
        options,
        None if robot is None else str(robot),
        tuple(dict.fromkeys(name for name in left_out if name not in used)),
    )


def require_valid(results: Mapping[AnyPath, CheckResult], skip: bool) -> dict[AnyPath, CheckResult]:
    """Return the results of valid episodes.

    Raises:
        UserError: an episode is invalid and `skip` is False, or all are.
    """
    reasons = {path: invalid_reason(result) for path, result in results.items()}
    bad = {path: reason for path, reason in reasons.items() if reason is not None}
    if bad and (not skip or len(bad) == len(results)):
        path, reason = next(iter(bad.items()))
        raise UserError(
            reason if isinstance(results[path], str) else str(bad_episode_error(path, reason))
        )
    return {path: result for path, result in results.items() if path not in bad}


def prepare_folder(conversion: Conversion) -> int:
    """Make the new folder, or open that of the same conversion; return how many are written.

    Raises:
        UserError: the folder has other contents.
    """
    first = conversion.episodes[0]
    identity = json.dumps(
        {
            "episodes": [episode.ref.content_hash for episode in conversion.episodes],
            "options": asdict(conversion.options),
            "features": dict(first.features),
            "action_space": first.action_space,
            "channel_order": first.channel_order,
        }
    )
    path = conversion.state_folder / IDENTITY_FILE
    entries = list(conversion.folder.glob("[!.]*"))
    if path.is_file():
        if path.read_text() != identity:
            raise UserError(
                f"{conversion.folder} has an unfinished conversion of other episodes or with other "
                "options. Repeat its command, or choose another folder."
            )
    elif entries:
        raise UserError(f"{conversion.folder} is not empty. Choose a new folder.")
    else:
        write_atomically(path, identity)
    return sum(conversion.record_path(e.number).is_file() for e in conversion.episodes)


def convert_episodes(
    conversion: Conversion,
    max_parallel: int,
    options: Mapping[str, Any],
    on_episode: Callable[[int], None],
) -> list[dict[str, Any]]:
    """Write all episodes that are not written yet; return the records of all.

    Args:
        max_parallel: number of tasks that run at the same time.
        options: Ray options of each task.
        on_episode: called with the number of episodes that are written.

    Raises:
        UserError: an episode cannot be read or written.
    """
    tasks = {task: index for index, task in enumerate(conversion.tasks)}
    shared = ray.put(conversion)
    waiting = [e for e in conversion.episodes if not conversion.record_path(e.number).is_file()]
    done = len(conversion.episodes) - len(waiting)
    running: list[ray.ObjectRef[None]] = []
    while waiting or running:
        while waiting and len(running) < max_parallel:
            episode = waiting.pop(0)
            task = _convert.options(**options, name=f"convert episode {episode.number}")
            running.append(task.remote(shared, episode.number, tasks[episode.tasks[0]]))
        finished, running = ray.wait(running, num_returns=1)
        for reference in finished:
            try:
                ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, UserError):
                    raise error.cause from error
                raise
            done += 1
            on_episode(done)
    paths = [conversion.record_path(episode.number) for episode in conversion.episodes]
    way_out = f"Delete {conversion.folder} and repeat the command."
    return [parse_json(path.read_text(), dict, path, way_out) for path in paths]


def finish(conversion: Conversion, records: Sequence[Mapping[str, Any]]) -> None:
    """Write what makes the folder a data set, and delete the state of the conversion."""
    if conversion.options.format == LEROBOT:
        write_lerobot_metadata(
            conversion.folder,
            records,
            conversion.episodes[0].cameras,
            conversion.episodes[0].fps,
            conversion.codec,
            conversion.robot_type,
        )
    shutil.rmtree(conversion.state_folder)


@ray.remote(max_retries=3)
def _convert(conversion: Conversion, number: int, task_index: int) -> None:
    """Write one episode, and its record at last."""
    episode = conversion.episodes[number]
    if conversion.options.format == LEROBOT:
        record = write_lerobot_episode(
            conversion.folder, episode, conversion.codec, conversion.options.crf, task_index
        )
    else:
        record = _write_hdf5(conversion.folder, episode)
    write_atomically(conversion.record_path(number), json.dumps(record))


def _write_hdf5(folder: Path, episode: SourceEpisode) -> dict[str, Any]:
    state, action = episode.vectors()
    attributes = {
        "task": episode.tasks[0],
        "control_hz": episode.fps,
        ACTION_SPACE: episode.action_space,
        ORDER_ATTRIBUTE: RGB,
    }
    images = {camera: episode.images(camera) for camera in episode.cameras}
    path = episode_path(folder, episode.number)
    write_file(path, attributes, {QPOS: state, "action": action}, images)
    return {"number": episode.number, "length": episode.ref.length, "loss": {}}


def _contents(info: EpisodeMetadata, action_space: str) -> tuple[Any, ...]:
    """Return what all episodes of a data set must have in common."""
    vectors = (info.features.state, info.features.actions.get(action_space, ()))
    stats = [info.vector_stats(names) for names in vectors]
    widths = [None if part is None else len(part.mean) for part in stats]
    return (dict(info.cameras), widths, info.attributes.get("control_hz"))

"""What a LeRobot data set says about itself: its features, and where each episode is stored.

In v2.0 and v2.1, each episode has a table and a video per camera. In v3.0, a table or a video holds
many episodes. `LeRobotMetadata` describes both in the same way.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from imf_ray.data.source_files import fingerprint, list_files, open_source
from imf_ray.errors import UserError
from imf_ray.files import INVALID_JSON
from imf_ray.storage import AnyPath, parse_path

INFO_FILE, EPISODES_FILE = "meta/info.json", "meta/episodes.jsonl"
EPISODES_FOLDER = "meta/episodes"
"""Folder of the tables that describe the episodes of v3.0."""
VERSIONS = ("v2.0", "v2.1", "v3.0")
IMAGE, VIDEO = "image", "video"
"""`dtype` of a camera whose images are in the table, and of one whose images are in a video."""
VECTOR_DTYPES = (
    "float16",
    "float32",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "bool",
)
TIMESTAMP, FRAME_INDEX, EPISODE_INDEX = "timestamp", "frame_index", "episode_index"
BOOKKEEPING = (TIMESTAMP, FRAME_INDEX, EPISODE_INDEX, "index", "task_index")
"""Features that every data set has and that no policy uses."""

_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError, pa.ArrowException)
"""Exceptions of metadata that do not have the expected form."""


@dataclass(frozen=True)
class Feature:
    """One column of the table, or one video."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    codec: str | None
    """Codec of a video, if it is recorded: av1, h264, ..."""
    is_depth: bool

    @property
    def is_camera(self) -> bool:
        """True for images, in the table or in a video."""
        return self.dtype in (IMAGE, VIDEO)

    @property
    def is_vector(self) -> bool:
        """True for numbers (T, D), or (T,) for D = 1."""
        return self.dtype in VECTOR_DTYPES and len(self.shape) == 1


@dataclass(frozen=True)
class VideoPart:
    """The part of a video that shows an episode."""

    path: str
    """Relative to the data set."""
    start_s: float
    """Time of the episode's first step in the video, in seconds."""


@dataclass(frozen=True)
class EpisodeEntry:
    """Where an episode is stored."""

    number: int
    length: int
    """Number of steps."""
    tasks: tuple[str, ...]
    table: str
    """Path of the table with its rows, relative to the data set."""
    videos: Mapping[str, VideoPart]
    """By feature."""


@dataclass(frozen=True)
class LeRobotMetadata:
    """The metadata of a data set."""

    version: str
    fps: int
    robot_type: str | None
    features: Mapping[str, Feature]
    episodes: Mapping[int, EpisodeEntry]
    """By number, in increasing order."""


def read_metadata(folder: AnyPath) -> LeRobotMetadata:
    """Return the metadata of a data set, read once per process until its files change.

    Raises:
        UserError: a file of the metadata is missing, is damaged, or contradicts another.
        OSError: a file cannot be read.
    """
    return _read_metadata(str(folder), metadata_fingerprint(folder))


def metadata_fingerprint(folder: AnyPath) -> str:
    """Return a string that changes when a file of the metadata changes.

    Raises:
        UserError: there is none.
        OSError: a file cannot be read.
    """
    files = [folder / INFO_FILE, *_episode_files(folder)]
    return " ".join(fingerprint(file) for file in files)


def _episode_files(folder: AnyPath) -> list[AnyPath]:
    """Return the files that list the episodes: one of v2, or the tables of v3.0."""
    listing = folder / EPISODES_FILE
    if listing.is_file():
        return [listing]
    tables = list_files(folder / EPISODES_FOLDER, ".parquet")
    if not tables:
        raise UserError(
            f"{folder} lacks {EPISODES_FILE} (v2) and the tables of {EPISODES_FOLDER} (v3.0), "
            "which list its episodes. A recording that was not finished has neither: finish it "
            "with LeRobot's finalize(), or copy the folder again."
        )
    return tables


@lru_cache(maxsize=8)
def _read_metadata(folder: str, fingerprint: str) -> LeRobotMetadata:
    root = parse_path(folder)
    info = _read_json(root / INFO_FILE)
    try:
        return _parse(root, info)
    except UserError:
        raise
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        IndexError,
        pa.ArrowException,
    ) as error:
        raise UserError(
            f"The metadata of {root} cannot be read: {type(error).__name__} {error}. Compare its "
            "folder meta/ with that of another LeRobot data set."
        ) from error


def _read_json(path: AnyPath) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except INVALID_JSON as error:
        raise UserError(f"{path} is not valid JSON ({error}). Copy the file again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object. Copy the file again.")
    return content


def _parse(root: AnyPath, info: Mapping[str, Any]) -> LeRobotMetadata:
    version = str(info.get("codebase_version"))
    if version not in VERSIONS:
        raise UserError(
            f"{root} is a LeRobot data set of version {version}; {', '.join(VERSIONS)} can be "
            "read. Convert it with LeRobot."
        )
    features = {
        str(name): _parse_feature(str(name), values) for name, values in info["features"].items()
    }
    fps = float(info["fps"])
    if not fps.is_integer() or fps < 1:
        raise UserError(f"{root / INFO_FILE} has fps={info['fps']}, not a whole number from 1.")
    videos = [name for name, feature in features.items() if feature.dtype == VIDEO]
    read = _read_v3_episodes if version == "v3.0" else _read_v2_episodes
    entries = sorted(read(root, info, videos), key=lambda entry: entry.number)
    episodes = {entry.number: entry for entry in entries}
    if len(episodes) < len(entries):
        raise UserError(f"The metadata of {root} lists an episode number twice.")
    total = info.get("total_episodes", len(entries))
    if total != len(entries):
        raise UserError(
            f"{root / INFO_FILE} has total_episodes={total}, but {len(entries)} episodes are "
            "listed in meta/. Copy the folder again, or correct the number."
        )
    robot = info.get("robot_type")
    return LeRobotMetadata(
        version, int(fps), None if robot is None else str(robot), features, episodes
    )


def _parse_feature(name: str, values: Mapping[str, Any]) -> Feature:
    details = {**values, **(values.get("video_info") or {}), **(values.get("info") or {})}
    codec = details.get("video.codec")
    return Feature(
        name=name,
        dtype=str(values["dtype"]),
        shape=tuple(int(size) for size in values["shape"]),
        codec=None if codec is None else str(codec),
        is_depth=bool(details.get("video.is_depth_map") or details.get("is_depth_map")),
    )


def _read_v2_episodes(
    root: AnyPath, info: Mapping[str, Any], videos: Sequence[str]
) -> Iterable[EpisodeEntry]:
    """Yield the episodes of a file with one JSON object per line."""
    for line in (root / EPISODES_FILE).read_text().splitlines():
        if not line.strip():
            continue
        values = json.loads(line)
        number = int(values["episode_index"])
        keys = {"episode_index": number, "episode_chunk": number // int(info["chunks_size"])}
        parts = {
            video: VideoPart(_fill(root, info["video_path"], video_key=video, **keys), 0.0)
            for video in videos
        }
        tasks = tuple(map(str, values.get("tasks", ())))
        table = _fill(root, info["data_path"], **keys)
        yield EpisodeEntry(number, int(values["length"]), tasks, table, parts)


def _read_v3_episodes(
    root: AnyPath, info: Mapping[str, Any], videos: Sequence[str]
) -> Iterable[EpisodeEntry]:
    """Yield the episodes of the tables of v3.0."""
    location = ("chunk_index", "file_index")
    columns = [EPISODE_INDEX, "length", "tasks", *(f"data/{name}" for name in location)]
    for video in videos:
        columns += [f"videos/{video}/{name}" for name in (*location, "from_timestamp")]
    for path in _episode_files(root):
        with open_source(path) as source, pq.ParquetFile(source) as file:
            present = [name for name in columns if name in file.schema_arrow.names]
            missing = [name for name in columns if name not in present and name != "tasks"]
            if missing:
                raise UserError(f"{path} lacks the column {missing[0]}.")
            rows = file.read(columns=present).to_pylist()
        for row in rows:
            parts = {
                video: VideoPart(
                    _fill(
                        root,
                        info["video_path"],
                        video_key=video,
                        **{name: int(row[f"videos/{video}/{name}"]) for name in location},
                    ),
                    float(row[f"videos/{video}/from_timestamp"]),
                )
                for video in videos
            }
            table = _fill(
                root, info["data_path"], **{name: int(row[f"data/{name}"]) for name in location}
            )
            tasks = tuple(map(str, row.get("tasks") or ()))
            number, length = int(row[EPISODE_INDEX]), int(row["length"])
            yield EpisodeEntry(number, length, tasks, table, parts)


def _fill(root: AnyPath, template: str, **values: int | str) -> str:
    """Return the relative path that a template of `info.json` gives.

    Raises:
        UserError: the path leads out of the data set.
    """
    path = template.format(**values)
    if path.startswith(("/", "\\")) or ".." in path.split("/"):
        raise UserError(
            f"{root / INFO_FILE} has the path {template}, which leads out of the folder."
        )
    return path

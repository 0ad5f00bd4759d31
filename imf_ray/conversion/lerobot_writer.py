"""Writes LeRobot data sets of format v3.0: one table, and one video per camera, for each episode.

The format allows several episodes in a file. With one each, episodes can be written in parallel and
in any order, and a conversion that was stopped can resume.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from imf_ray.conversion.feature_statistics import (
    FeatureStatistics,
    image_statistics,
    merge_statistics,
    vector_statistics,
)
from imf_ray.conversion.source import SourceEpisode
from imf_ray.data.lerobot.reader import TOLERANCE_S
from imf_ray.data.video_frames import open_video, rgb_pixels
from imf_ray.errors import UserError
from imf_ray.files import atomic_rename, write_atomically
from imf_ray.storage import storage_errors

VERSION = "v3.0"
STATE, ACTION, CAMERA_PREFIX = "observation.state", "action", "observation.images."
CHUNK_FILES, DATA_MB, VIDEO_MB = 1000, 100, 200
"""Files in a folder, and the sizes at which LeRobot starts a new file if it adds episodes."""
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
ENCODERS = {
    "av1": ("libsvtav1", {"g": "2", "preset": "12"}),
    "h264": ("libx264", {"g": "2"}),
}
"""FFmpeg's encoder of each codec, and its options. A key frame at every second step, as LeRobot
writes, makes reading from any step fast."""
PIXEL_FORMAT = "yuv420p"
STATISTICS_IMAGES, STATISTICS_SIDE = 100, 150
"""Maximum number of images per episode and camera in the statistics, and their maximum side."""
INDEX_FEATURES = ("timestamp", "frame_index", "episode_index", "index", "task_index")
TASKS_PANDAS_METADATA = {
    "index_columns": ["task"],
    "column_indexes": [
        {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object"}
    ],
    "columns": [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": dtype}
        for name, kind, dtype in (("task_index", "int64", "int64"), ("task", "unicode", "object"))
    ],
}
"""Makes the texts of the tasks the index of the table in pandas, with which LeRobot reads it."""


def write_lerobot_episode(
    folder: Path, episode: SourceEpisode, codec: str | None, crf: int, task_index: int
) -> dict[str, Any]:
    """Write the files of one episode; return its record as JSON values.

    Args:
        codec: a name in `ENCODERS`; None writes PNG images into the table.
        crf: quality of videos; smaller is better and larger.
        task_index: number of the episode's task in the data set.

    Raises:
        StorageError: a file cannot be written.
    """
    state, action = episode.vectors()
    length, location = episode.ref.length, _location(episode.number)
    steps = np.arange(length)
    columns = {
        STATE: _list_array(state),
        ACTION: _list_array(action),
        "timestamp": pa.array((steps / episode.fps).astype(np.float32)),
        "frame_index": pa.array(steps, pa.int64()),
        "episode_index": pa.array(np.full(length, episode.number), pa.int64()),
        "index": pa.array(episode.first_index + steps, pa.int64()),
        "task_index": pa.array(np.full(length, task_index), pa.int64()),
    }
    stats: dict[str, FeatureStatistics] = {
        STATE: vector_statistics(state),
        ACTION: vector_statistics(action),
        **{
            name: vector_statistics(columns[name].to_numpy().reshape(-1, 1))
            for name in INDEX_FEATURES
        },
    }
    losses = {}
    for camera in episode.cameras:
        key, sampled = f"{CAMERA_PREFIX}{camera}", _Sampler(length)
        images = sampled.watch(episode.images(camera))
        if codec is None:
            columns[key] = _png_array(images, key)
        else:
            path = folder / VIDEO_PATH.format(video_key=key, **location)
            losses[camera] = _write_video(path, images, episode, camera, codec, crf)
        stats[key] = image_statistics(sampled.images)
    _write_table(folder / DATA_PATH.format(**location), pa.table(columns))
    return {
        "number": episode.number,
        "length": length,
        "first_index": episode.first_index,
        "tasks": list(episode.tasks),
        "loss": losses,
        "stats": {name: _as_lists(part) for name, part in stats.items()},
    }


def write_lerobot_metadata(
    folder: Path,
    records: Sequence[Mapping[str, Any]],
    cameras: Mapping[str, tuple[int, int]],
    fps: int,
    codec: str | None,
    robot_type: str | None,
) -> None:
    """Write `meta/`. `info.json` comes last, because it makes the folder a data set.

    Args:
        records: the results of `write_lerobot_episode`, in the order of their numbers.
        cameras: height and width by camera.
    """
    stats = [{name: _as_arrays(s) for name, s in record["stats"].items()} for record in records]
    merged = {name: merge_statistics([part[name] for part in stats]) for name in stats[0]}
    tasks = list(dict.fromkeys(task for record in records for task in record["tasks"]))
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": tasks})
    table = table.replace_schema_metadata({"pandas": json.dumps(TASKS_PANDAS_METADATA)})
    _write_table(folder / "meta/tasks.parquet", table)
    rows = [_episode_row(record, cameras, fps, codec) for record in records]
    _write_table(folder / "meta/episodes/chunk-000/file-000.parquet", pa.Table.from_pylist(rows))
    write_atomically(
        folder / "meta/stats.json",
        json.dumps({name: _as_lists(part) for name, part in merged.items()}, indent=4),
    )
    info = {
        "codebase_version": VERSION,
        "robot_type": robot_type,
        "fps": fps,
        "total_episodes": len(records),
        "total_frames": sum(record["length"] for record in records),
        "total_tasks": len(tasks),
        "chunks_size": CHUNK_FILES,
        "data_files_size_in_mb": DATA_MB,
        "video_files_size_in_mb": VIDEO_MB,
        "data_path": DATA_PATH,
        "video_path": None if codec is None else VIDEO_PATH,
        "splits": {"train": f"0:{len(records)}"},
        "features": _features(merged, cameras, fps, codec),
    }
    write_atomically(folder / "meta/info.json", json.dumps(info, indent=4))


def _location(number: int) -> dict[str, int]:
    return {"chunk_index": number // CHUNK_FILES, "file_index": number % CHUNK_FILES}


class _Sampler:
    """Keeps some of the images that pass, evenly spaced and small, for the statistics."""

    def __init__(self, length: int) -> None:
        self._period = -(-length // STATISTICS_IMAGES)
        self.images: list[np.ndarray] = []

    def watch(self, images: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the same images."""
        for step, image in enumerate(images):
            if step % self._period == 0:
                stride = max(1, max(image.shape[:2]) // STATISTICS_SIDE)
                self.images.append(image[::stride, ::stride].copy())
            yield image


def _write_video(
    path: Path,
    images: Iterator[np.ndarray],
    episode: SourceEpisode,
    camera: str,
    codec: str,
    crf: int,
) -> float:
    """Encode images, and return the mean absolute difference of the decoded ones in grey levels."""
    encoder, options = ENCODERS[codec]
    height, width = episode.cameras[camera]
    partial = path.with_name(f".{path.name}.partial")
    with storage_errors(path, "written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with av.open(str(partial), "w", format="mp4") as container:
                stream: Any = container.add_stream(
                    encoder, rate=episode.fps, options={**options, "crf": str(crf)}
                )
                stream.width, stream.height, stream.pix_fmt = width, height, PIXEL_FORMAT
                for image in images:
                    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                    container.mux(stream.encode(frame))
                container.mux(stream.encode())
            atomic_rename(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    times = np.arange(episode.ref.length) / episode.fps
    total = 0.0
    with open_video(path, str(path), TOLERANCE_S) as video:
        pairs = zip(video.frames(times), episode.images(camera), strict=True)
        for frame, image in pairs:
            total += float(np.abs(rgb_pixels(frame).astype(np.int16) - image).mean())
    return total / episode.ref.length


def _png_array(images: Iterator[np.ndarray], key: str) -> pa.Array:
    rows = []
    for step, image in enumerate(images):
        content = io.BytesIO()
        Image.fromarray(image).save(content, "PNG")
        rows.append({"bytes": content.getvalue(), "path": f"{key}-{step:06d}.png"})
    return pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))


def _list_array(values: np.ndarray) -> pa.Array:
    """Return vectors (T, D) as a column of lists of fixed size."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1), pa.float32())
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _write_table(path: Path, table: pa.Table) -> None:
    content = io.BytesIO()
    pq.write_table(table, content, row_group_size=max(1, table.num_rows))
    write_atomically(path, content.getvalue())


def _episode_row(
    record: Mapping[str, Any], cameras: Mapping[str, tuple[int, int]], fps: int, codec: str | None
) -> dict[str, Any]:
    """Return the description of an episode in `meta/episodes`."""
    location = _location(record["number"])
    row = {
        "episode_index": record["number"],
        "tasks": record["tasks"],
        "length": record["length"],
        **{f"data/{name}": value for name, value in location.items()},
        "dataset_from_index": record["first_index"],
        "dataset_to_index": record["first_index"] + record["length"],
    }
    for camera in cameras if codec is not None else ():
        prefix = f"videos/{CAMERA_PREFIX}{camera}"
        row.update({f"{prefix}/{name}": value for name, value in location.items()})
        row[f"{prefix}/from_timestamp"] = 0.0
        row[f"{prefix}/to_timestamp"] = record["length"] / fps
    for feature, stats in record["stats"].items():
        row.update({f"stats/{feature}/{name}": value for name, value in stats.items()})
    return {**row, "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}


def _features(
    stats: Mapping[str, FeatureStatistics],
    cameras: Mapping[str, tuple[int, int]],
    fps: int,
    codec: str | None,
) -> dict[str, Any]:
    """Return the features of `info.json`."""
    features: dict[str, Any] = {}
    for name in (STATE, ACTION):
        width = len(stats[name]["mean"])
        names = [f"{name.rpartition('.')[2]}_{index}" for index in range(width)]
        features[name] = {"dtype": "float32", "shape": [width], "names": names}
    for camera, (height, width) in cameras.items():
        feature: dict[str, Any] = {
            "dtype": "image" if codec is None else "video",
            "shape": [height, width, 3],
            "names": ["height", "width", "channels"],
        }
        if codec is not None:
            feature["info"] = {
                "video.height": height,
                "video.width": width,
                "video.codec": codec,
                "video.pix_fmt": PIXEL_FORMAT,
                "video.fps": fps,
                "video.channels": 3,
                "has_audio": False,
                "is_depth_map": False,
            }
        features[f"{CAMERA_PREFIX}{camera}"] = feature
    for name in INDEX_FEATURES:
        dtype = "float32" if name == "timestamp" else "int64"
        features[name] = {"dtype": dtype, "shape": [1], "names": None}
    return features


def check_video_sizes(cameras: Mapping[str, tuple[int, int]]) -> None:
    """Check that images can be encoded as videos.

    Raises:
        UserError: a side is odd, which the pixel format of videos does not allow.
    """
    odd = [camera for camera, size in cameras.items() if size[0] % 2 or size[1] % 2]
    if odd:
        height, width = cameras[odd[0]]
        raise UserError(
            f"The images of camera {odd[0]} are {height}x{width}, but videos need even sides. Set "
            "convert.image_size to an even number, or convert.codec=png."
        )


def _as_lists(stats: FeatureStatistics) -> dict[str, Any]:
    return {name: value.tolist() for name, value in stats.items()}


def _as_arrays(stats: Mapping[str, Any]) -> FeatureStatistics:
    return {name: np.array(value) for name, value in stats.items()}

"""Reads the episodes of a LeRobot data set; see `imf_ray.data.readers.ContainerReader`.

The address of an episode is `FOLDER/episode_NUMBER`. Frame i of an episode is the one whose time is
nearest to the recorded time of step i, within LeRobot's tolerance.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache

import numpy as np

from imf_ray.data.channel_order import RGB, StoredImages
from imf_ray.data.episodes import (
    READ_ERRORS,
    EpisodeFields,
    EpisodeMetadata,
    EpisodeRef,
    EpisodeSlice,
    Features,
    bad_episode_error,
)
from imf_ray.data.features import (
    UsableFeatures,
    UsualNames,
    find_features,
    split_part,
    take_part,
    vector_stats,
)
from imf_ray.data.image_decoding import decode_image
from imf_ray.data.lerobot.metadata import (
    BOOKKEEPING,
    FRAME_INDEX,
    IMAGE,
    TIMESTAMP,
    VIDEO,
    EpisodeEntry,
    Feature,
    LeRobotMetadata,
    metadata_fingerprint,
    read_metadata,
)
from imf_ray.data.lerobot.tables import episode_rows, read_columns, read_images
from imf_ray.data.readers import LEROBOT
from imf_ray.data.running_stats import RunningStats
from imf_ray.data.source_files import file_size, fingerprint
from imf_ray.data.video_frames import VideoFile, open_video, rgb_pixels
from imf_ray.errors import UserError
from imf_ray.images import center_crop_resize
from imf_ray.storage import AnyPath, parse_path

TOLERANCE_S = 1e-4
"""Maximum difference in seconds between the time of a step and that of its frame, as in LeRobot."""
CAMERA_PREFIXES = ("observation.images.", "observation.image.", "observation.", "images.")
"""Prefixes that are left out of the name of a camera."""
_CACHED_EPISODES = 32
"""Number of episodes whose vectors are kept in memory."""
_EPISODE_NAME = re.compile(r"episode_([0-9]+)")
_MAX_EXPANSION = 2000
"""Maximum number of bytes that one stored byte is assumed to expand to, for the time limit."""


class LeRobotReader:
    """Reads LeRobot data sets."""

    def matches(self, folder: AnyPath) -> bool:
        return True  # no other format has the marker

    def list_episodes(self, folder: AnyPath) -> list[AnyPath]:
        return [folder / f"episode_{number}" for number in read_metadata(folder).episodes]

    def fingerprint(self, path: AnyPath) -> str:
        folder = path.parent
        parts = [metadata_fingerprint(folder)]
        for file in self._files(folder, _entry(path)):
            try:
                parts.append(fingerprint(file))
            except FileNotFoundError:
                parts.append(f"{file.name} missing")
        digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()
        return f"{path.name} {digest}"

    def check_bytes(self, path: AnyPath) -> int:
        metadata, entry = read_metadata(path.parent), _entry(path)
        stored = 0
        for file in self._files(path.parent, entry):
            if file.is_file():
                stored += file_size(file)
        images = [feature for feature in metadata.features.values() if feature.is_camera]
        decoded = entry.length * sum(int(np.prod(feature.shape)) for feature in images)
        return min(stored + decoded, stored * _MAX_EXPANSION)

    def check(
        self, path: AnyPath, format: str, features: Mapping[str, list[str]]
    ) -> EpisodeMetadata:
        try:
            fingerprint_before = self.fingerprint(path)
            return _EpisodeCheck(path, features).describe(fingerprint_before)
        except UserError as error:
            raise bad_episode_error(path, str(error).rstrip(".")) from error
        except READ_ERRORS as error:
            reason = f"it cannot be read ({type(error).__name__}: {error})"
            raise bad_episode_error(path, reason) from error

    def content_hash(self, path: AnyPath) -> str:
        return _content_hash(path.parent, read_metadata(path.parent), _entry(path))

    def read(
        self,
        episode: EpisodeRef,
        fields: EpisodeFields,
        frames: tuple[int, int],
        actions: tuple[int, int],
    ) -> EpisodeSlice:
        path = parse_path(episode.path)
        folder, entry = path.parent, _entry(path)
        metadata = read_metadata(folder)
        usable = _find_features(metadata, fields.features)
        steps = slice(*frames)
        images = {}
        for camera in fields.cameras:
            feature = metadata.features[usable.cameras[camera]]
            shown = np.stack(list(_read_frames(folder, entry, feature, steps)))
            size = fields.image_size
            images[camera] = shown if size is None else center_crop_resize(shown, size)
        names = (usable.state, usable.actions["joint"])
        state, action = (_read_vectors(path, episode.fingerprint, part) for part in names)
        return EpisodeSlice(
            length=episode.length,
            frame_start=frames[0],
            action_start=actions[0],
            images=images,
            qpos=state[steps],
            object_poses={},
            action=action[slice(*actions)],
        )

    def _files(self, folder: AnyPath, entry: EpisodeEntry) -> list[AnyPath]:
        return [folder / entry.table, *(folder / video.path for video in entry.videos.values())]


def camera_name(feature: str) -> str:
    """Return the name of a camera, such as `top` for `observation.images.top`."""
    prefix = next((prefix for prefix in CAMERA_PREFIXES if feature.startswith(prefix)), "")
    return feature.removeprefix(prefix)


USUAL_NAMES = UsualNames(
    states=(("observation.state",), ("state",)),
    actions=(("action",), ("actions",)),
    camera_name=camera_name,
)


def _find_features(metadata: LeRobotMetadata, option: Mapping[str, list[str]]) -> UsableFeatures:
    features = metadata.features.values()
    vectors = [f.name for f in features if f.is_vector and f.name not in BOOKKEEPING]
    cameras = [f.name for f in features if f.is_camera]
    return find_features(vectors, cameras, option, USUAL_NAMES)


def _entry(path: AnyPath) -> EpisodeEntry:
    """Return where the episode of an address is stored.

    Raises:
        UserError: the data set has no such episode.
    """
    match, metadata = _EPISODE_NAME.fullmatch(path.name), read_metadata(path.parent)
    entry = None if match is None else metadata.episodes.get(int(match[1]))
    if entry is None:
        raise UserError(f"the data set {path.parent} has no episode {path.name}")
    return entry


@lru_cache(maxsize=_CACHED_EPISODES)
def _read_vectors(path: AnyPath, fingerprint: str, names: tuple[str, ...]) -> np.ndarray:
    """Return concatenated vectors (T, D) float32 of a whole episode."""
    folder, entry = path.parent, _entry(path)
    vectors = dict.fromkeys(split_part(name)[0] for name in names)
    features = [read_metadata(folder).features[name] for name in vectors]
    columns = read_columns(folder, entry, features, episode_rows(folder, entry))
    parts = [take_part(name, columns[split_part(name)[0]]) for name in names]
    return np.concatenate(parts, axis=1).astype(np.float32)


def _step_times(folder: AnyPath, entry: EpisodeEntry, rows: range) -> np.ndarray:
    """Return the recorded time (n,) of some rows in seconds since the start of the episode."""
    timestamp = Feature(TIMESTAMP, "float32", (1,), codec=None, is_depth=False)
    return read_columns(folder, entry, [timestamp], rows)[TIMESTAMP][:, 0].astype(np.float64)


def _read_frames(
    folder: AnyPath, entry: EpisodeEntry, feature: Feature, steps: slice
) -> Iterator[np.ndarray]:
    """Yield the images (H, W, 3) uint8 RGB of consecutive steps of a camera."""
    rows = episode_rows(folder, entry)[steps]
    if feature.dtype == IMAGE:
        for step, content in enumerate(read_images(folder, entry, feature.name, rows)):
            yield _decode_image(content, feature, steps.start + step)
        return
    part = entry.videos[feature.name]
    times = part.start_s + _step_times(folder, entry, rows)
    with open_video(folder / part.path, f"its video {part.path}", TOLERANCE_S) as video:
        yield from map(rgb_pixels, video.frames(times))


def _decode_image(content: bytes, feature: Feature, step: int) -> np.ndarray:
    try:
        return decode_image(content).pixels
    except UserError as error:
        raise UserError(f"the image of {feature.name} at step {step} is {error}") from error


def _content_hash(folder: AnyPath, metadata: LeRobotMetadata, entry: EpisodeEntry) -> str:
    """Return the hash of an episode's tasks, vectors, times and encoded images.

    It does not depend on the files in which they lie.
    """
    digest = hashlib.blake2b(repr((metadata.fps, entry.tasks)).encode(), digest_size=16)
    rows = episode_rows(folder, entry)
    features = metadata.features
    vectors = [feature for feature in features.values() if _is_hashed(feature)]
    for name, values in sorted(read_columns(folder, entry, vectors, rows).items()):
        digest.update(f"\0{name}\0{values.dtype.str}\0{values.shape}\0".encode())
        digest.update(np.ascontiguousarray(values).data)
    times = _step_times(folder, entry, rows)
    for name in sorted(name for name, feature in features.items() if feature.is_camera):
        images = hashlib.blake2b(digest_size=16)
        try:
            for content in _encoded_images(folder, metadata, entry, name, times):
                images.update(hashlib.blake2b(content, digest_size=16).digest())
        except UserError:  # the episode can be used without this camera
            images = hashlib.blake2b(b"not read", digest_size=16)
        digest.update(f"\0{name}\0".encode() + images.digest())
    return digest.hexdigest()


def _encoded_images(
    folder: AnyPath, metadata: LeRobotMetadata, entry: EpisodeEntry, name: str, times: np.ndarray
) -> Iterator[bytes]:
    """Yield the encoded images of all steps of a camera."""
    if metadata.features[name].dtype == IMAGE:
        yield from read_images(folder, entry, name, episode_rows(folder, entry))
        return
    part = entry.videos[name]
    start, stop = part.start_s + times[0], part.start_s + times[-1] + 1 / metadata.fps
    with open_video(folder / part.path, f"its video {part.path}", TOLERANCE_S) as video:
        yield from video.packets(start, stop)


def _is_hashed(feature: Feature) -> bool:
    """Return True for vectors, and for the times and the numbers of the steps."""
    return feature.is_vector and (feature.name not in BOOKKEEPING or feature.name == TIMESTAMP)


class _EpisodeCheck:
    """Checks one episode. Parts that cannot be used are noted in `problems`."""

    def __init__(self, path: AnyPath, features: Mapping[str, list[str]]) -> None:
        self._path, self._folder, self._entry = path, path.parent, _entry(path)
        self._metadata = read_metadata(self._folder)
        self._features = self._metadata.features
        self._usable = _find_features(self._metadata, features)
        self._problems: dict[str, str] = {}
        self._rows = episode_rows(self._folder, self._entry)

    def describe(self, fingerprint: str) -> EpisodeMetadata:
        """Return the description of the episode.

        Raises:
            UserError: no run can use the episode.
        """
        self._require_steps()
        self._problems.update(self._usable.missing)
        vectors = [
            name
            for name, feature in self._features.items()
            if feature.is_vector and name not in BOOKKEEPING
        ]
        names = dict.fromkeys([*vectors, *self._usable.vectors])
        stats = {name: s for name in names if (s := self._check_vector(name)) is not None}
        images = {
            camera: stored
            for camera, name in self._usable.cameras.items()
            if (stored := self._check_camera(name)) is not None
        }
        used = {split_part(name)[0] for name in self._usable.vectors}
        used.update(self._usable.cameras.values())
        has_actions = self._usable.actions["joint"][0] in stats
        return EpisodeMetadata(
            path=str(self._path),
            length=self._entry.length,
            images=images,
            format=LEROBOT,
            features=Features(self._usable.state, self._usable.actions, self._usable.cameras),
            action_spaces=("joint",) if has_actions else (),
            objects=(),
            stats=stats,
            fingerprint=fingerprint,
            content_hash=_content_hash(self._folder, self._metadata, self._entry),
            attributes={
                "control_hz": self._metadata.fps,
                "tasks": list(self._entry.tasks),
                "robot_type": self._metadata.robot_type,
                "version": self._metadata.version,
            },
            unused_datasets=tuple(
                name for name in self._features if name not in used and name not in BOOKKEEPING
            ),
            problems=self._problems,
            damaged=any(
                name in self._problems and not self._features[name].is_depth
                for name in self._usable.cameras.values()
            ),
        )

    def _require_steps(self) -> None:
        """Check that the steps are numbered and that their times increase."""
        features = [
            Feature(name, dtype, (1,), codec=None, is_depth=False)
            for name, dtype in ((FRAME_INDEX, "int64"), (TIMESTAMP, "float32"))
        ]
        columns = read_columns(self._folder, self._entry, features, self._rows)
        if (columns[FRAME_INDEX][:, 0] != np.arange(len(self._rows))).any():
            raise UserError(f"{FRAME_INDEX} does not count its steps from 0")
        times = columns[TIMESTAMP][:, 0]
        if not np.isfinite(times).all() or (np.diff(times) <= 0).any():
            raise UserError(f"{TIMESTAMP} does not increase from step to step")

    def _check_vector(self, name: str) -> RunningStats | None:
        """Return the statistics of a vector or its part, or None and note its problem."""
        if name in self._problems:
            return None
        try:
            feature = self._features[split_part(name)[0]]
            columns = read_columns(self._folder, self._entry, [feature], self._rows)
            return vector_stats(name, take_part(name, columns[feature.name]))
        except UserError as error:
            self._problems[name] = str(error)
            return None

    def _check_camera(self, name: str) -> StoredImages | None:
        """Decode all images of a camera and describe them, or return None and note its problem."""
        feature = self._features[name]
        try:
            if feature.is_depth:
                raise UserError(f"{name} has depth images, which are not read")
            return self._check_video(feature) if feature.dtype == VIDEO else self._check_table(name)
        except UserError as error:
            self._problems[name] = str(error)
            return None

    def _check_video(self, feature: Feature) -> StoredImages:
        part = self._entry.videos[feature.name]
        if not (self._folder / part.path).is_file():
            other = self._folder / "video"
            hint = ", and there is a folder video/. Rename it to videos/" if other.is_dir() else ""
            raise UserError(f"its video {part.path} is missing{hint}")
        times = part.start_s + _step_times(self._folder, self._entry, self._rows)
        with open_video(self._folder / part.path, f"its video {part.path}", TOLERANCE_S) as video:
            self._require_codec(feature, video, part.path)
            sizes = {(frame.height, frame.width) for frame in video.frames(times)}
        if len(sizes) > 1:
            raise UserError(f"the image size of its video {part.path} changes")
        ((height, width),) = sizes
        return StoredImages(height, width, f"{video.codec} video", True, RGB)

    def _require_codec(self, feature: Feature, video: VideoFile, path: str) -> None:
        if feature.codec is not None and feature.codec != video.codec:
            raise UserError(
                f"its video {path} is {video.codec}, but meta/info.json says {feature.codec}. "
                "Correct video.codec there if the video is right"
            )

    def _check_table(self, name: str) -> StoredImages:
        sizes, encodings, has_color = set(), set(), False
        contents = read_images(self._folder, self._entry, name, self._rows)
        for step, content in enumerate(contents):
            try:
                image = decode_image(content)
            except UserError as error:
                raise UserError(f"the image of {name} at step {step} is {error}") from error
            sizes.add(image.pixels.shape[:2])
            encodings.add(image.encoding)
            has_color = has_color or not image.is_grey
        if len(sizes) > 1:
            raise UserError(f"the image size of {name} changes")
        ((height, width),) = sizes
        return StoredImages(height, width, ", ".join(sorted(encodings)), has_color, RGB)

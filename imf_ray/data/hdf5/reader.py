"""Reads HDF5 episode files in all layouts."""

from __future__ import annotations

from collections.abc import Mapping

import h5py
import numpy as np

from imf_ray.data.episodes import EpisodeFields, EpisodeMetadata, EpisodeRef, EpisodeSlice
from imf_ray.data.hdf5.check import check_episode
from imf_ray.data.hdf5.content_hash import hash_contents
from imf_ray.data.hdf5.frames import Frames
from imf_ray.data.hdf5.layouts import LAYOUTS, QPOS, pose_dataset
from imf_ray.data.hdf5.opening import open_hdf5
from imf_ray.data.source_files import file_size, fingerprint
from imf_ray.images import center_crop_resize
from imf_ray.storage import AnyPath


class Hdf5Reader:
    """Reads one episode per file; see `imf_ray.data.readers.EpisodeReader`."""

    def fingerprint(self, path: AnyPath) -> str:
        return fingerprint(path)

    def check_bytes(self, path: AnyPath) -> int:
        return file_size(path)

    def check(
        self, path: AnyPath, format: str, features: Mapping[str, list[str]]
    ) -> EpisodeMetadata:
        return check_episode(path, format)

    def content_hash(self, path: AnyPath) -> str:
        with open_hdf5(path) as file:
            return hash_contents(file)

    def read(
        self,
        episode: EpisodeRef,
        fields: EpisodeFields,
        frames: tuple[int, int],
        actions: tuple[int, int],
    ) -> EpisodeSlice:
        with open_hdf5(episode.path) as file:
            layout = LAYOUTS[episode.format]
            order = fields.channel_order
            return EpisodeSlice(
                length=episode.length,
                frame_start=frames[0],
                action_start=actions[0],
                images={
                    camera: _read_images(
                        layout.open_frames(file, camera, order), frames, fields.image_size
                    )
                    for camera in fields.cameras
                },
                qpos=_read_vectors(file[QPOS], frames),
                object_poses={
                    name: _read_vectors(file[pose_dataset(name)], frames) for name in fields.objects
                },
                action=_read_vectors(file[layout.actions[fields.action_space]], actions),
            )


def _read_vectors(dataset: h5py.Dataset, steps: tuple[int, int]) -> np.ndarray:
    return dataset[slice(*steps)].astype(np.float32)


def _read_images(frames: Frames, steps: tuple[int, int], size: int | None) -> np.ndarray:
    images = frames[slice(*steps)]
    return images if size is None else center_crop_resize(images, size)

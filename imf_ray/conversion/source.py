"""One episode to convert, read in parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from imf_ray.data.episodes import EpisodeFields, EpisodeRef
from imf_ray.data.readers import read_slice

BLOCK_STEPS = 32
"""Number of steps whose images are in memory at once."""


@dataclass(frozen=True)
class SourceEpisode:
    """An episode, and what the converted data set says about it."""

    ref: EpisodeRef
    number: int
    """Number in the converted data set."""
    first_index: int
    """Number of steps of all earlier episodes."""
    tasks: tuple[str, ...]
    fps: int
    cameras: Mapping[str, tuple[int, int]]
    """Height and width of the converted images by camera."""
    image_size: int | None
    """Side of the converted images; None keeps their size."""
    features: Mapping[str, list[str]]
    """Value of `data.features`."""
    action_space: str
    channel_order: str

    def vectors(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the states (T, D) and the actions (T, A) as float32."""
        part = read_slice(self.ref, self._fields(()), (0, self.ref.length), (0, self.ref.length))
        return part.qpos, part.action

    def images(self, camera: str) -> Iterator[np.ndarray]:
        """Yield the images (H, W, 3) uint8 of a camera."""
        fields = self._fields((camera,))
        for start in range(0, self.ref.length, BLOCK_STEPS):
            steps = (start, min(start + BLOCK_STEPS, self.ref.length))
            yield from read_slice(self.ref, fields, steps, (0, 1)).images[camera]

    def _fields(self, cameras: tuple[str, ...]) -> EpisodeFields:
        return EpisodeFields(
            cameras=cameras,
            action_space=self.action_space,
            image_size=self.image_size,
            channel_order=self.channel_order,
            features=self.features,
        )

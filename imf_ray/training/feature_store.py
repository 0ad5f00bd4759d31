"""Features of frozen image encoders: each image of a data set is encoded once.

They are kept in the cache folder of the data set, one file for each episode, so that the trials of
a sweep and later runs find them:

    features/KEY/HASH.npy    (T, cameras, D) float32

KEY is a hash of the encoders' weights and of the options that images depend on, HASH that of the
episode's contents. The folder may be deleted at any time.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from imf_ray.agents.base import VLAAgent
from imf_ray.data.episodes import EpisodeRef
from imf_ray.data.readers import read_slice
from imf_ray.data.windows import WindowSpec
from imf_ray.errors import StorageError
from imf_ray.files import write_atomically

FEATURES_DIR = "features"
GROUP_SIZE = 32
"""Number of images that are encoded together. Smaller groups are padded, so that the features of an
image do not depend on the number of images beside it."""
POLL_INTERVAL_S = 0.5
"""Seconds between two looks for episodes that other processes are encoding."""
log = logging.getLogger(__name__)


class FeatureStore:
    """Loads or computes the features of the episodes of a run.

    Args:
        agent: its image encoders are frozen.
        episodes: the training episodes, in the order of the sample plan.
        spec: the windows of the run, with its cameras.
        cache: cache folder of the data set.
    """

    def __init__(
        self, agent: VLAAgent, episodes: Sequence[EpisodeRef], spec: WindowSpec, cache: Path
    ) -> None:
        assert agent.vision_encoder is not None
        self._agent, self._encoder = agent, agent.vision_encoder
        self._episodes, self._spec = episodes, spec
        self._folder = cache / FEATURES_DIR / self._key()
        lengths = [episode.length for episode in episodes]
        self._first_ids = np.concatenate(([0], np.cumsum(lengths)[:-1]))
        self._features: dict[int, np.ndarray] = {}  # by index of the episode

    def prepare(self, on_progress: Callable[[int], None]) -> None:
        """Load or compute the features of all episodes.

        Processes that need the same features at the same time divide the episodes among them.

        Args:
            on_progress: called with the number of episodes that are ready.
        """
        while len(self._features) < len(self._episodes):
            num_before = len(self._features)
            for index in range(len(self._episodes)):
                if index not in self._features:
                    self._try_to_prepare(index)
                    on_progress(len(self._features))
            if len(self._features) == num_before:  # other processes are encoding the rest
                time.sleep(POLL_INTERVAL_S)

    def windows(self, sample_ids: np.ndarray) -> dict[str, np.ndarray]:
        """Return the features {camera: (B, obs_horizon, D) float32} of samples (B,)."""
        episodes = np.searchsorted(self._first_ids, sample_ids, side="right") - 1
        steps = sample_ids - self._first_ids[episodes]
        frames = np.clip(self._spec.observation_indices(steps), 0, None)
        cameras = self._encoder.camera_names
        windows = np.empty((*frames.shape, len(cameras), self._encoder.out_dim), np.float32)
        for episode in np.unique(episodes):
            rows = np.flatnonzero(episodes == episode)
            windows[rows] = self._features[int(episode)][frames[rows]]
        return {name: windows[:, :, index] for index, name in enumerate(cameras)}

    def _try_to_prepare(self, index: int) -> None:
        """Load or compute the features of an episode, unless another process computes them."""
        episode = self._episodes[index]
        file = self._folder / f"{episode.content_hash}.npy"
        features = self._load(file, episode)
        if features is None:
            with _lock(file) as is_free:
                if not is_free:
                    return
                features = self._load(file, episode)  # another process may just have finished it
                if features is None:
                    features = self._compute(episode)
                    _save(file, features)
        self._features[index] = features

    def _load(self, file: Path, episode: EpisodeRef) -> np.ndarray | None:
        """Return stored features; None if there are none or they are damaged."""
        shape = (episode.length, len(self._encoder.camera_names), self._encoder.out_dim)
        try:
            features = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError):
            return None
        return features if features.shape == shape and features.dtype == np.float32 else None

    @torch.no_grad()
    def _compute(self, episode: EpisodeRef) -> np.ndarray:
        """Encode the images of an episode (T, cameras, D).

        Raises:
            UserError: see `read_slice`.
        """
        parts = []
        for start in range(0, episode.length, GROUP_SIZE):
            stop = min(start + GROUP_SIZE, episode.length)
            images = read_slice(episode, self._spec.fields, (start, stop), (0, 1)).images
            padding = ((0, GROUP_SIZE - (stop - start)), (0, 0), (0, 0), (0, 0))
            group = {
                name: torch.from_numpy(np.pad(frames, padding))[None].to(self._agent.device)
                for name, frames in images.items()
            }
            features = self._encoder.encode_windows(
                group, self._agent.image_normalizer, bf16=self._agent.bf16_encoders
            )
            parts.append(features[0, : stop - start].float().cpu().numpy())
        return np.concatenate(parts)

    def _key(self) -> str:
        """Return the hash of everything except the images that the features depend on."""
        fields = self._spec.fields
        options = (fields.cameras, fields.image_size, fields.channel_order)
        digest = hashlib.sha256(repr((options, self._agent.bf16_encoders, GROUP_SIZE)).encode())
        for name, tensor in sorted(self._encoder.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


@contextmanager
def _lock(file: Path) -> Iterator[bool]:
    """Lock the computation of a file; yield False if another process computes it.

    The system releases the lock of a process that dies. Without locks, as on some file systems,
    two processes may compute the same file.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = file.with_suffix(".lock").open("w")
    except OSError:
        yield True
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass
        yield True
        file.with_suffix(".lock").unlink(missing_ok=True)


def _save(file: Path, features: np.ndarray) -> None:
    """Write features into the cache; this process keeps them in memory if that is impossible."""
    content = io.BytesIO()
    np.save(content, features, allow_pickle=False)
    try:
        write_atomically(file, content.getvalue())
    except (StorageError, OSError) as error:
        log.warning("The features of images are not kept for later runs: %s", error)

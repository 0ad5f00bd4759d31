"""Features of frozen image encoders: each image of the data set is encoded once."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from imf_ray.agents.base import VLAAgent
from imf_ray.data.pipeline import TrainDataset


class FeatureCache:
    """Computes the features of a data set's images when they are first needed, and keeps them.

    Images are encoded in groups of one size, so that the features of an image do not depend on
    those beside it. A resumed run therefore gets the same features.

    Args:
        agent: its encoders have fixed features, see `MultiViewResNetEncoder.has_fixed_features`.
    """

    def __init__(self, agent: VLAAgent, dataset: TrainDataset) -> None:
        assert agent.vision_encoder is not None and agent.vision_encoder.has_fixed_features
        self._agent, self._encoder = agent, agent.vision_encoder
        self._group_size = dataset.max_slice_frames
        num_frames = dataset.plan.num_samples  # each environment step is a sample
        shape = (num_frames, len(self._encoder.camera_names), self._encoder.out_dim)
        self._features = np.empty(shape, np.float32)
        self._is_known = np.zeros(num_frames, bool)

    def encode(self, first_id: int, images: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Return the features {camera: (F, D) float32} of the frames of a slice.

        Args:
            first_id: sample id of the first frame. The others have the next ids.
            images: {camera: (F, H, W, 3) uint8}, F at most `TrainDataset.max_slice_frames`.
        """
        num_frames = len(next(iter(images.values())))
        ids = slice(first_id, first_id + num_frames)
        new = np.flatnonzero(~self._is_known[ids])
        if len(new):
            frames = {name: values[new] for name, values in images.items()}
            self._features[first_id + new] = self._compute(frames, len(new))
            self._is_known[ids] = True
        features = self._features[ids]
        return {name: features[:, i] for i, name in enumerate(self._encoder.camera_names)}

    @torch.no_grad()
    def _compute(self, frames: Mapping[str, np.ndarray], num_frames: int) -> np.ndarray:
        """Return the features (F, cameras, D) of at most one group of frames."""
        padding = ((0, self._group_size - num_frames), (0, 0), (0, 0), (0, 0))
        group = {
            name: torch.from_numpy(np.pad(values, padding))[None].to(self._agent.device)
            for name, values in frames.items()
        }
        features = self._encoder.encode_windows(
            group, self._agent.image_normalizer, bf16=self._agent.bf16_encoders
        )
        return features[0, :num_frames].float().cpu().numpy()

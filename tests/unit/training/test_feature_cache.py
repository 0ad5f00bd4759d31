"""Features of frozen image encoders, which are computed once for each image."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from imf_ray.agents.base import VLAAgent
from imf_ray.training.feature_cache import FeatureCache
from tests.helpers.trainers import MakeTrainer

NUM_FRAMES, MAX_SLICE_FRAMES, SIZE = 40, 6, 48
CAMERAS = ("r_vis", "top", "front")
FROZEN = "agent.vision_backbone.freeze_encoders=true"


@pytest.fixture
def agent(make_trainer: MakeTrainer) -> VLAAgent:
    return make_trainer(FROZEN).agent


@pytest.fixture
def frames() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (NUM_FRAMES, SIZE, SIZE, 3)
    return {name: rng.integers(0, 256, shape, np.uint8) for name in CAMERAS}


def make_cache(agent: VLAAgent) -> FeatureCache:
    dataset: Any = SimpleNamespace(
        max_slice_frames=MAX_SLICE_FRAMES, plan=SimpleNamespace(num_samples=NUM_FRAMES)
    )
    return FeatureCache(agent, dataset)


def encode(
    cache: FeatureCache, frames: Mapping[str, np.ndarray], start: int, stop: int
) -> dict[str, np.ndarray]:
    images = {name: values[start:stop] for name, values in frames.items()}
    return {name: values.copy() for name, values in cache.encode(start, images).items()}


def test_features_are_those_of_the_encoder(agent: VLAAgent, frames: dict[str, np.ndarray]) -> None:
    features = encode(make_cache(agent), frames, 3, 8)
    images = {name: torch.from_numpy(values[None, 3:8]) for name, values in frames.items()}
    assert agent.vision_encoder is not None
    with torch.no_grad():
        expected = agent.vision_encoder.encode_windows(images, agent.image_normalizer)[0]
    for index, name in enumerate(CAMERAS):
        assert features[name].dtype == np.float32
        np.testing.assert_allclose(features[name], expected[:, index].numpy(), atol=1e-5)


def test_features_do_not_depend_on_the_frames_beside_them(
    agent: VLAAgent, frames: dict[str, np.ndarray]
) -> None:
    """A resumed run reads other slices first, and must get the same numbers."""
    whole, parts = make_cache(agent), make_cache(agent)
    encode(parts, frames, 5, 7)
    encode(parts, frames, 2, 6)
    for start in range(0, 36, MAX_SLICE_FRAMES):
        expected = encode(whole, frames, start, start + MAX_SLICE_FRAMES)
        actual = encode(parts, frames, start, start + MAX_SLICE_FRAMES)
        for name in CAMERAS:
            np.testing.assert_array_equal(actual[name], expected[name])


def test_each_frame_is_encoded_once(
    agent: VLAAgent, frames: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make_cache(agent)
    first = encode(cache, frames, 0, 6)
    empty = {name: np.zeros_like(values) for name, values in frames.items()}
    assert encode(cache, empty, 1, 4)["top"].tolist() == first["top"][1:4].tolist()
    known = encode(cache, frames, 4, 10)  # the first two frames are known
    assert known["top"][:2].tolist() == first["top"][4:].tolist()


@pytest.mark.parametrize("conditioning", ["single_token", "multi_token"])
def test_the_loss_of_features_is_that_of_their_images(
    make_trainer: MakeTrainer, batch: dict[str, Any], conditioning: str
) -> None:
    agent = make_trainer(FROZEN, f"agent.conditioning={conditioning}").agent
    assert agent.vision_encoder is not None
    features = agent.vision_encoder.encode_windows(batch["images"], agent.image_normalizer)
    expected = agent(batch)
    del batch["images"]
    batch["image_features"] = {name: features[:, :, i] for i, name in enumerate(CAMERAS)}
    torch.testing.assert_close(agent(batch), expected)


@pytest.mark.parametrize(
    ("options", "fixed"),
    [
        ([FROZEN], True),
        ([FROZEN, "agent.vision_backbone.crop_size=40"], False),
        (["agent.vision_backbone.freeze_backbone=true"], False),
        ([], False),
    ],
)
def test_only_frozen_encoders_without_crops_have_fixed_features(
    make_trainer: MakeTrainer, options: list[str], fixed: bool
) -> None:
    encoder = make_trainer(*options).agent.vision_encoder
    assert encoder is not None and encoder.has_fixed_features == fixed


def test_frozen_encoders_are_not_trained(make_trainer: MakeTrainer, batch: dict[str, Any]) -> None:
    trainer = make_trainer(FROZEN)
    before = {name: t.clone() for name, t in trainer.agent.state_dict().items()}
    trainer.update(batch)
    changed = {
        name for name, t in trainer.agent.state_dict().items() if not torch.equal(t, before[name])
    }
    assert changed and not any(name.startswith("vision_encoder.") for name in changed)

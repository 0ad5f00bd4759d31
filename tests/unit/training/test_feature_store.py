"""Features of frozen image encoders, which are computed once for each image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imf_ray.agents.base import VLAAgent
from imf_ray.data.episodes import EpisodeFields, EpisodeRef, EpisodeSlice
from imf_ray.data.windows import SliceSamples, WindowSpec
from imf_ray.training import feature_store
from imf_ray.training.feature_store import FeatureStore
from tests.helpers.trainers import MakeTrainer, config_of

SIZE, LENGTHS = 48, (40, 1, 33)
CAMERAS = ("r_vis", "top", "front")
FROZEN = "agent.vision_backbone.freeze_encoders=true"
EPISODES = [
    EpisodeRef(f"episode_{number}.hdf5", length, "auto", "", f"hash{number}")
    for number, length in enumerate(LENGTHS)
]


@pytest.fixture
def agent(make_trainer: MakeTrainer) -> VLAAgent:
    return make_trainer(FROZEN).agent


@pytest.fixture(autouse=True)
def slices(monkeypatch: pytest.MonkeyPatch) -> list[EpisodeSlice]:
    """Whole episodes, from which `read_slice` reads."""
    rng = np.random.default_rng(0)
    whole = [
        EpisodeSlice(
            length,
            0,
            0,
            {name: rng.integers(0, 256, (length, SIZE, SIZE, 3), np.uint8) for name in CAMERAS},
            np.zeros((length, 16), np.float32),
            {},
            np.zeros((length, 16), np.float32),
        )
        for length in LENGTHS
    ]

    def read(episode: EpisodeRef, fields: Any, frames: tuple[int, int], _: Any) -> EpisodeSlice:
        source = whole[EPISODES.index(episode)]
        images = {name: source.images[name][slice(*frames)] for name in fields.cameras}
        return EpisodeSlice(source.length, frames[0], 0, images, source.qpos, {}, source.action)

    monkeypatch.setattr(feature_store, "read_slice", read)
    return whole


def make_store(agent: VLAAgent, cache: Path, size: int = SIZE) -> FeatureStore:
    spec = WindowSpec(EpisodeFields(CAMERAS, image_size=size), obs_horizon=2, pred_horizon=16)
    return FeatureStore(agent, EPISODES, spec, cache)


def prepared(agent: VLAAgent, cache: Path) -> FeatureStore:
    counts: list[int] = []
    store = make_store(agent, cache)
    store.prepare(counts.append)
    assert counts[-1] == len(EPISODES) and counts == sorted(counts)
    return store


def test_windows_are_the_features_of_their_images(
    agent: VLAAgent, slices: list[EpisodeSlice], tmp_path: Path
) -> None:
    samples = [(0, 0), (2, 32), (0, 39), (1, 0), (2, 1)]  # episode and step
    offsets = np.cumsum([0, *LENGTHS])
    ids = np.array([offsets[episode] + step for episode, step in samples])
    actual = prepared(agent, tmp_path).windows(ids)
    spec = WindowSpec(EpisodeFields(CAMERAS), obs_horizon=2, pred_horizon=16)
    groups = [
        SliceSamples(slices[episode], np.array([step]), np.array([row]))
        for row, (episode, step) in enumerate(samples)
    ]
    images = spec.extract(groups)["images"]
    assert isinstance(images, dict) and agent.vision_encoder is not None
    tensors = {name: torch.from_numpy(values) for name, values in images.items()}
    with torch.no_grad():
        expected = agent.vision_encoder.encode_windows(tensors, agent.image_normalizer).numpy()
    for index, name in enumerate(CAMERAS):
        assert actual[name].dtype == np.float32
        np.testing.assert_allclose(actual[name], expected[:, :, index], atol=1e-5)


def test_features_are_computed_once(
    agent: VLAAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = np.arange(sum(LENGTHS))
    first = prepared(agent, tmp_path).windows(ids)
    files = sorted(tmp_path.rglob("*"))
    assert [file.suffix for file in files if file.is_file()] == [".npy"] * len(EPISODES)
    damaged = next(file for file in files if file.name == "hash2.npy")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    computed: list[str] = []
    compute = FeatureStore._compute

    def count(store: FeatureStore, episode: EpisodeRef) -> np.ndarray:
        computed.append(episode.content_hash)
        return compute(store, episode)

    monkeypatch.setattr(FeatureStore, "_compute", count)
    second = prepared(agent, tmp_path).windows(ids)
    assert computed == ["hash2"]
    for name in CAMERAS:
        np.testing.assert_array_equal(second[name], first[name])


def test_other_encoders_or_images_have_other_features(agent: VLAAgent, tmp_path: Path) -> None:
    store, smaller = make_store(agent, tmp_path), make_store(agent, tmp_path, size=24)
    assert agent.vision_encoder is not None
    with torch.no_grad():
        next(agent.vision_encoder.parameters()).add_(1e-3)
    other = make_store(agent, tmp_path)
    assert len({store._folder, smaller._folder, other._folder}) == 3


def test_an_episode_that_another_process_encodes_is_left_to_it(
    agent: VLAAgent, tmp_path: Path
) -> None:
    store = make_store(agent, tmp_path)
    file = store._folder / "hash1.npy"
    with feature_store._lock(file) as is_free:
        assert is_free
        store._try_to_prepare(1)
        assert not store._features
    store._try_to_prepare(1)
    assert file.is_file() and list(store._features) == [1]


def test_a_cache_that_cannot_be_written_is_no_error(agent: VLAAgent, tmp_path: Path) -> None:
    (tmp_path / feature_store.FEATURES_DIR).write_text("a file where the folder would be")
    assert set(prepared(agent, tmp_path).windows(np.arange(3))) == set(CAMERAS)


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
        ([FROZEN, "agent.camera_names=[]"], False),
        (["agent.vision_backbone.freeze_backbone=true"], False),
        ([], False),
    ],
)
def test_only_frozen_encoders_without_crops_have_fixed_features(
    options: list[str], fixed: bool
) -> None:
    assert config_of(*options).agent.has_fixed_features == fixed


def test_frozen_encoders_are_not_trained(make_trainer: MakeTrainer, batch: dict[str, Any]) -> None:
    trainer = make_trainer(FROZEN)
    before = {name: t.clone() for name, t in trainer.agent.state_dict().items()}
    trainer.update(batch)
    changed = {
        name for name, t in trainer.agent.state_dict().items() if not torch.equal(t, before[name])
    }
    assert changed and not any(name.startswith("vision_encoder.") for name in changed)

"""The episodes of a resumed run are compared by content."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from imf_ray.data.episodes import EpisodeRef
from imf_ray.training.data_identity import describe_changed_episodes
from imf_ray.training.run_records import DataManifest


def _manifest(train: dict[str, str], val: dict[str, str], folder: str = "data") -> DataManifest:
    """Return the manifest of episodes given as {file name: content}."""
    return DataManifest(
        [[name, 20, content] for name, content in train.items()],
        8,
        [EpisodeRef(f"{folder}/{n}", 20, "act", f"{n} 1 2", content) for n, content in val.items()],
    )


BEFORE = _manifest({"episode_0.hdf5": "a", "episode_2.hdf5": "c"}, {"episode_1.hdf5": "b"})


@pytest.mark.parametrize(
    "now",
    [
        BEFORE,
        _manifest({"episode_0.hdf5": "a", "episode_2.hdf5": "c"}, {"episode_1.hdf5": "b"}, "moved"),
        _manifest({"episode1.h5": "a", "episode9.h5": "c"}, {"episode3.h5": "b"}, "s3://bucket"),
    ],
)
def test_folder_and_names_do_not_matter(now: DataManifest) -> None:
    assert describe_changed_episodes(BEFORE, now) is None


@pytest.mark.parametrize(
    ("train", "val", "named"),
    [
        ({"episode_0.hdf5": "x", "episode_2.hdf5": "c"}, {"episode_1.hdf5": "b"}, "episode_0.hdf5"),
        ({"episode_0.hdf5": "a", "episode_2.hdf5": "c"}, {"episode_1.hdf5": "x"}, "episode_1.hdf5"),
        ({"episode_0.hdf5": "a"}, {"episode_1.hdf5": "b"}, "episode_2.hdf5"),
        (
            {"episode_0.hdf5": "a", "episode_2.hdf5": "c", "episode_3.hdf5": "d"},
            {"episode_1.hdf5": "b"},
            "episode_3.hdf5",
        ),
        (
            {"episode_0.hdf5": "a", "episode_2.hdf5": "c", "episode_3.hdf5": "a"},
            {"episode_1.hdf5": "b"},
            "new or changed: episode_3.hdf5",
        ),
        ({"episode_0.hdf5": "c", "episode_2.hdf5": "a"}, {"episode_1.hdf5": "b"}, "order"),
        ({"episode_0.hdf5": "a", "episode_2.hdf5": "b"}, {"episode_1.hdf5": "c"}, "order"),
    ],
)
def test_other_contents_are_named(train: dict[str, str], val: dict[str, str], named: str) -> None:
    change = describe_changed_episodes(BEFORE, _manifest(train, val))
    assert change is not None and named in change


def test_a_long_list_of_episodes_is_shortened() -> None:
    train = {f"episode_{number}.hdf5": f"new {number}" for number in range(40)}
    change = describe_changed_episodes(BEFORE, _manifest(train, {}))
    assert change is not None and len(change) < 300


def test_an_early_version_did_not_store_held_out_episodes() -> None:
    early = dataclasses.replace(BEFORE, val_episodes=[])
    assert describe_changed_episodes(early, BEFORE) is None


def test_the_path_of_a_held_out_episode_does_not_matter(tmp_path: Path) -> None:
    moved = [dataclasses.replace(e, path=str(tmp_path / "e7.h5")) for e in BEFORE.val_episodes]
    assert (
        describe_changed_episodes(BEFORE, dataclasses.replace(BEFORE, val_episodes=moved)) is None
    )

"""Data sets of other projects under a URL are read without downloading them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from s3fs import S3FileSystem

from imf_ray.data.dataset_folder import find_dataset
from imf_ray.data.episodes import EpisodeFields, EpisodeMetadata
from imf_ray.data.index import check_dataset
from imf_ray.data.readers import read_slice
from imf_ray.storage import parse_path
from tests.helpers.buckets import open_bucket, s3_server
from tests.helpers.episode_files import LENGTH
from tests.helpers.foreign_data import (
    write_diffusion_policy,
    write_lerobot_v21,
    write_robomimic,
)

DATA: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "lerobot": (write_lerobot_v21, "set", "top"),
    "diffusion_policy": (write_diffusion_policy, "set.zarr", "img"),
    "robomimic": (write_robomimic, "set.hdf5", "agentview"),
}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.mark.parametrize("kind", DATA)
def test_a_bucket_gives_what_the_folder_gives(
    kind: str, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, name, camera = DATA[kind]
    write(tmp_path / name)
    url = f"{open_bucket(server, monkeypatch, tmp_path)}/{name}"
    S3FileSystem().put(str(tmp_path / name), url, recursive=True)
    slices, hashes = [], []
    for source in (tmp_path / name, url):
        folder = parse_path(source)
        format, paths = find_dataset(folder)
        assert format == kind
        infos = list(check_dataset(folder, paths, format).values())
        assert all(isinstance(info, EpisodeMetadata) for info in infos), infos
        info = infos[1]
        assert isinstance(info, EpisodeMetadata)
        hashes.append(info.content_hash)
        slices.append(read_slice(info.ref, EpisodeFields((camera,)), (2, 8), (0, LENGTH)))
    assert hashes[0] == hashes[1]
    local, remote = slices
    assert np.array_equal(local.qpos, remote.qpos) and np.array_equal(local.action, remote.action)
    assert np.array_equal(local.images[camera], remote.images[camera])

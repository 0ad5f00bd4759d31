"""Data sets under a URL. A local web server represents all remote file systems."""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from imf_ray.allocation import allocate_run
from imf_ray.cluster import ClusterSize
from imf_ray.collect import main as collect
from imf_ray.data.episodes import EpisodeFields, EpisodeRef, episode_path
from imf_ray.data.index import build_index
from imf_ray.data.pipeline import TrainDataset
from imf_ray.data.readers import read_slice
from imf_ray.data.sampling import SamplePlan
from imf_ray.data.source_files import cache_folder
from imf_ray.data.windows import Batch, WindowSpec
from imf_ray.errors import StorageError, UserError
from imf_ray.storage import exists, parse_path
from imf_ray.training.run_dir import RunDir
from imf_ray.training.run_identity import init_or_verify_run_dir
from imf_ray.training.trainer import fit, prepare_run
from tests.helpers.configs import DEMONSTRATIONS, LOGICAL_CPUS, tiny_config


class _Ranges(SimpleHTTPRequestHandler):
    """A file server that answers `Range: bytes=A-B` like an object store and records part sizes."""

    served: list[int] = []  # noqa: RUF012  (each test sets its own)
    down: list[str] = []  # noqa: RUF012
    """Words in the paths of requests that fail."""
    flaky: list[str] = []  # noqa: RUF012
    """Requests `METHOD path` that fail once."""

    def do_HEAD(self) -> None:
        if not self._is_down() and not self._is_flaky():
            super().do_HEAD()

    def _is_flaky(self) -> bool:
        name = f"{self.command} {self.path.strip('/')}"
        is_flaky = name in self.flaky
        if is_flaky:
            self.flaky.remove(name)
            self.send_error(503)
        return is_flaky

    def _is_down(self) -> bool:
        is_down = any(word in self.path for word in self.down)
        if is_down:
            self.send_error(503)
        return is_down

    def do_GET(self) -> None:
        if self._is_down() or self._is_flaky():
            return
        byte_range = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if byte_range is None or not path.is_file():
            super().do_GET()
            return
        first, last = map(int, byte_range.groups())
        content = path.read_bytes()
        part = content[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)
        self.served.append(len(part))

    def end_headers(self) -> None:
        self.send_header("Accept-Ranges", "bytes")
        super().end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def served(
    own_demonstrations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, list[int]]]:
    """The URL of the demonstrations, and the sizes of the fetched parts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    sizes: list[int] = []
    monkeypatch.setattr(_Ranges, "served", sizes)
    monkeypatch.setattr(_Ranges, "down", [])
    monkeypatch.setattr(_Ranges, "flaky", [])
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *a: _Ranges(*a, directory=str(own_demonstrations))
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", sizes
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_index_of_a_url_equals_that_of_its_folder(
    served: tuple[str, list[int]], own_demonstrations: Path
) -> None:
    url, sizes = served
    remote = build_index(tiny_config(url))
    local = build_index(tiny_config(own_demonstrations))
    assert [episode.path for episode in remote.episodes] == [
        f"{url}/episode_{number}.hdf5" for number in range(len(local.episodes))
    ]
    for episode, expected in zip(remote.episodes, local.episodes, strict=True):
        local_file = {"path": expected.path, "fingerprint": expected.fingerprint}
        assert dataclasses.replace(episode, **local_file) == expected
    assert (cache_folder(parse_path(url)) / "index.json").is_file()

    num_reads = len(sizes)  # indexed files are not read again
    assert build_index(tiny_config(url)) == remote and len(sizes) == num_reads
    with h5py.File(episode_path(own_demonstrations, 1), "r+") as file:  # unless they have changed
        file["action"][3, 2] += 1.0
    with pytest.raises(UserError, match=r"http://.*/episode_1.hdf5: .*do not match"):
        build_index(tiny_config(url))


def test_batches_of_a_url_equal_those_of_its_folder(
    served: tuple[str, list[int]], own_demonstrations: Path, ray_cluster: None
) -> None:
    url, sizes = served
    total_size = sum(path.stat().st_size for path in own_demonstrations.glob("*.hdf5"))
    local, remote = (
        [episode.ref for episode in build_index(tiny_config(folder)).episodes[:3]]
        for folder in (own_demonstrations, url)
    )
    sizes.clear()
    local, remote = (list(_batches(tuple(episodes))) for episodes in (local, remote))
    assert len(local) == len(remote) == 6
    for expected, batch in zip(local, remote, strict=True):
        np.testing.assert_array_equal(batch["sample_id"], expected["sample_id"])
        np.testing.assert_array_equal(batch["action"], expected["action"])
        np.testing.assert_array_equal(batch["images"]["top"], expected["images"]["top"])  # type: ignore[index]
    assert 0 < sum(sizes) < total_size / 2  # only the needed parts were fetched


@pytest.mark.slow
def test_a_run_trains_from_a_url(
    served: tuple[str, list[int]], tmp_path: Path, ray_cluster: None
) -> None:
    config = tiny_config(
        served[0], "train.rollout_val_freq_epochs=1000", "task.max_episode_steps=60"
    )
    size = ClusterSize(((float(LOGICAL_CPUS), 0.0),))
    fit(prepare_run(config), RunDir(tmp_path / "run"), allocate_run(config, size))
    best = RunDir(tmp_path / "run").best_checkpoint()
    assert best.step == config.train.max_steps and best.metrics["action_error"] > 0.0


def _batches(episodes: tuple[EpisodeRef, ...]) -> Iterator[Batch]:
    plan = SamplePlan((400, 400, 400), 8, 2, read_block_steps=10, shuffle_buffer_blocks=2, seed=0)
    spec = WindowSpec(EpisodeFields(("top",)), obs_horizon=2, pred_horizon=4)
    dataset = TrainDataset(plan, spec, episodes, 48 * 48 * 3, max_steps=6, read_concurrency=2)
    yield from dataset.batches(0, 1, 0)


def test_a_run_resumes_if_its_data_set_is_now_under_a_url(
    served: tuple[str, list[int]], own_demonstrations: Path, tmp_path: Path
) -> None:
    url, _ = served
    run_dir = RunDir(tmp_path / "run")
    init_or_verify_run_dir(prepare_run(tiny_config(own_demonstrations)), run_dir)
    first, second, third = (episode_path(own_demonstrations, number) for number in range(3))
    third.rename(own_demonstrations / "Episode7.h5")
    init_or_verify_run_dir(prepare_run(tiny_config(url)), run_dir)
    assert run_dir.read_config()["data"]["dataset_dir"] == url
    manifest = run_dir.read_data_manifest()
    assert manifest is not None and manifest.val_episodes[0].path.startswith(url)
    first.rename(own_demonstrations / "first")
    second.rename(first)
    (own_demonstrations / "first").rename(second)
    with pytest.raises(UserError, match="another order"):
        init_or_verify_run_dir(prepare_run(tiny_config(own_demonstrations)), run_dir)
    first.unlink()
    with pytest.raises(UserError, match=r"missing .*: episode_1.hdf5"):
        init_or_verify_run_dir(prepare_run(tiny_config(own_demonstrations)), run_dir)


def test_errors_of_a_server_contain_the_url(served: tuple[str, list[int]]) -> None:
    url, _ = served
    _Ranges.down.append("episode_1")
    with pytest.raises(UserError, match=r"http://.*/episode_1.hdf5 cannot be read: "):
        build_index(tiny_config(url))
    _Ranges.down.append("/")
    with pytest.raises(UserError, match=r"http://.* cannot be listed: ClientResponseError: 503"):
        build_index(tiny_config(url))


def test_a_remote_file_that_fails_once_is_checked_again(served: tuple[str, list[int]]) -> None:
    """A short network failure says nothing about the file."""
    url, _ = served
    _Ranges.flaky.append("GET episode_1.hdf5")
    assert len(build_index(tiny_config(url)).episodes) == DEMONSTRATIONS
    assert not _Ranges.flaky


def test_training_waits_for_a_server(
    served: tuple[str, list[int]], own_demonstrations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsspec reports every failure of a web server as a missing file."""
    monkeypatch.setattr("imf_ray.files.RETRY_DELAYS_S", (0.0,))
    url, _ = served
    ref = build_index(tiny_config(url)).episodes[1].ref
    expected = read_slice(ref, EpisodeFields(), (0, 1), (0, 5)).action
    for failing in (["HEAD", "GET"], ["GET"]):
        _Ranges.flaky += [f"{method} episode_1.hdf5" for method in failing]
        action = read_slice(ref, EpisodeFields(), (0, 1), (0, 5)).action
        np.testing.assert_array_equal(action, expected)
        assert not _Ranges.flaky
    _Ranges.down.append("episode_1")
    with pytest.raises(UserError, match=r"episode_1.hdf5 cannot be read .*503"):
        read_slice(ref, EpisodeFields(), (0, 1), (0, 5))
    with pytest.raises(StorageError, match="cannot be read"):
        exists(parse_path(ref.path))
    _Ranges.down.clear()
    episode_path(own_demonstrations, 1).unlink()
    assert not exists(parse_path(ref.path))


def test_collecting_into_a_url_is_refused() -> None:
    with pytest.raises(UserError, match=r"s3://demos is a URL.*to a local folder"):
        collect(tiny_config("s3://demos"), [])


def test_an_unknown_file_system_is_an_error() -> None:
    with pytest.raises(UserError, match=r"nosuch://demos cannot be opened"):
        build_index(tiny_config("nosuch://demos"))

"""Two starts of one command into one folder, and a disk that fills while episodes are recorded."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import pytest

from imf_ray.cli import EXIT_USER_ERROR
from imf_ray.data.episode_files import list_episodes
from imf_ray.data.hdf5.content_hash import HASH_ATTRIBUTE
from imf_ray.files import read_json_lines
from imf_ray.folders import EPISODES_FILE
from imf_ray.rollout.record_store import read_records
from tests.helpers import REPO_ROOT
from tests.helpers.commands import command_environment, run_command

DISK_BYTES = 12 * 2**20
OPTIONS = ("data.camera_names=[top]", "task.image_size=64", "cluster.include_dashboard=false")
NUM_EPISODES = 6


def test_pairs_of_starts_lose_and_tear_nothing(tmp_path: Path) -> None:
    options = ["--pairs", "2", "--parallel", "2", "--work", str(tmp_path / "work")]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.concurrent_starts", *options],
        cwd=REPO_ROOT,
        env=command_environment(),
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system; the test is skipped where mounting is not permitted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system is not permitted")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _hashes(folder: Path) -> list[str]:
    hashes = []
    for path in list_episodes(folder):
        with h5py.File(path) as file:
            hashes.append(str(file.attrs[HASH_ATTRIBUTE]))
    return hashes


def test_a_disk_that_fills_during_a_collection_loses_nothing(
    small_disk: Path, tmp_path: Path
) -> None:
    collect = [*OPTIONS, f"collect.num_episodes={NUM_EPISODES}"]
    alone = run_command("collect", *collect, f"data.dataset_dir={tmp_path / 'alone'}", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    expected = _hashes(tmp_path / "alone")
    data = small_disk / "data"
    full = run_command("collect", *collect, f"data.dataset_dir={data}", cwd=tmp_path)
    assert full.returncode == EXIT_USER_ERROR and "Traceback" not in full.stderr, full.stderr
    assert str(small_disk) in full.stderr
    recorded = _hashes(data)
    assert 0 < len(recorded) < NUM_EPISODES and recorded == expected[: len(recorded)]
    remount = ["mount", "-o", f"remount,size={8 * DISK_BYTES}", str(small_disk)]
    subprocess.run(remount, check=True)
    rest = run_command("collect", *collect, f"data.dataset_dir={data}", cwd=tmp_path)
    assert rest.returncode == 0, rest.stderr
    assert _hashes(data) == expected
    assert not [path for path in data.rglob("*") if "partial" in path.name or path.name == ".claim"]


def test_a_disk_that_fills_during_an_evaluation_loses_nothing(
    small_disk: Path, tmp_path: Path
) -> None:
    output = small_disk / "out"
    evaluate = ["checkpoint=expert", "evaluate.video=none", *OPTIONS, "evaluate.num_episodes=3"]
    first = run_command("evaluate", *evaluate, f"evaluate.output_dir={output}", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    before = read_records(output / EPISODES_FILE)
    ballast = small_disk / "ballast"
    with ballast.open("wb") as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(2**16))
            file.flush()
    more = [*evaluate[:-1], "evaluate.num_episodes=12", f"evaluate.output_dir={output}"]
    full = run_command("evaluate", *more, cwd=tmp_path)
    assert full.returncode == EXIT_USER_ERROR and "Traceback" not in full.stderr, full.stderr
    assert str(small_disk) in full.stderr
    assert read_records(output / EPISODES_FILE)[:3] == before
    ballast.unlink()
    assert run_command("evaluate", *more, cwd=tmp_path).returncode == 0
    lines = read_json_lines(output / EPISODES_FILE, dict)
    assert len(lines.rows) == 12 and lines.num_invalid == 0

"""Changed and malicious files: content hashes, values in other files, checks that hang or die."""

import errno
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from functools import partial
from itertools import product
from pathlib import Path
from typing import cast

import h5py
import numpy as np
import psutil
import pytest

from imf_ray.data import check_pool
from imf_ray.data.episodes import EpisodeFields, EpisodeMetadata, episode_path
from imf_ray.data.hdf5 import reader
from imf_ray.data.hdf5.check import check_episode
from imf_ray.data.hdf5.content_hash import HASH_ATTRIBUTE, hash_contents
from imf_ray.data.index import check_dataset
from imf_ray.data.readers import read_slice
from imf_ray.data.source_files import CACHE_DIR
from imf_ray.errors import UserError
from tests.helpers.episode_files import write_act


def _value(file: h5py.File) -> None:
    file["observations/qvel"][7, 3] += 1e-3


def _pixel(file: h5py.File) -> None:
    file["observations/images/top"][5, 2, 1, 0] ^= 1


def _attribute(file: h5py.File) -> None:
    file.attrs["control_hz"] = 51


def _attribute_type(file: h5py.File) -> None:
    file.attrs["control_hz"] = 50.0


def _new_dataset(file: h5py.File) -> None:
    file["extra"] = np.zeros(3)


def _renamed(file: h5py.File) -> None:
    file.move("observations/qvel", "observations/qvek")


@pytest.mark.parametrize(
    "change", [_value, _pixel, _attribute, _attribute_type, _new_dataset, _renamed]
)
def test_every_change_is_noticed(
    own_demonstrations: Path, change: Callable[[h5py.File], None]
) -> None:
    path = episode_path(own_demonstrations, 0)
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(UserError, match=r"episode_0.hdf5.*do not match its attribute"):
        check_episode(path)


def test_a_renamed_hash_is_noticed(own_demonstrations: Path) -> None:
    path = episode_path(own_demonstrations, 0)
    with h5py.File(path, "r+") as file:
        file.attrs["dihest"] = file.attrs[HASH_ATTRIBUTE]
        del file.attrs[HASH_ATTRIBUTE]
    with pytest.raises(UserError, match="an unknown attribute: dihest"):
        check_episode(path)


def test_the_hash_does_not_depend_on_storage(own_demonstrations: Path, tmp_path: Path) -> None:
    path = tmp_path / "copy.hdf5"
    with h5py.File(episode_path(own_demonstrations, 0)) as source, h5py.File(path, "w") as copy:
        for name in ("action", "action_ee", "observations"):
            source.copy(name, copy)
        frames = copy["observations/images/top"][:]
        del copy["observations/images/top"]
        copy.create_dataset("observations/images/top", data=frames, compression="gzip")
        for name, value in source.attrs.items():
            copy.attrs[name] = value
        assert hash_contents(copy) == source.attrs[HASH_ATTRIBUTE]
    check_episode(path)


def _external_link(file: h5py.File) -> None:
    del file["observations/qpos"]
    file["observations/qpos"] = h5py.ExternalLink("episode_1.hdf5", "/observations/qpos")


def _virtual(file: h5py.File) -> None:
    shape = file["action"].shape
    layout = h5py.VirtualLayout(shape, np.float32)
    layout[:] = h5py.VirtualSource("episode_1.hdf5", "action", shape)
    del file["action"]
    file.create_virtual_dataset("action", layout)


def _stored_elsewhere(file: h5py.File) -> None:
    values = file["action"][:]
    elsewhere = Path(file.filename).with_name("elsewhere.bin")
    elsewhere.write_bytes(values.tobytes())
    del file["action"]
    external = [(elsewhere.name, 0, values.nbytes)]
    file.create_dataset("action", values.shape, values.dtype, external=external)


def _huge(file: h5py.File) -> None:
    width = file["observations/qpos"].shape[1]
    del file["observations/qpos"]
    file.create_dataset(
        "observations/qpos", shape=(1 << 40, width), chunks=(1, width), dtype=np.float32
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_external_link, "/observations/qpos is a link to the file episode_1.hdf5"),
        (_virtual, "/action stores its values in another file"),
        (_stored_elsewhere, "/action stores its values in another file"),
        (_huge, "/observations/qpos declares .* bytes, but only 0 are stored"),
    ],
)
def test_states_and_actions_must_be_stored_in_the_file(
    own_demonstrations: Path, change: Callable[[h5py.File], None], reason: str
) -> None:
    path = episode_path(own_demonstrations, 0)
    with h5py.File(path, "r+") as file:
        del file.attrs[HASH_ATTRIBUTE]
        change(file)
    problem = check_episode(path).required_problem
    assert problem is not None and re.search(reason, problem)


def test_a_file_whose_check_dies_or_hangs_is_invalid(
    own_demonstrations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [episode_path(own_demonstrations, number) for number in range(2)]
    child = check_pool._CheckerProcess("auto", {})
    assert isinstance(child.check(paths[0]), EpisodeMetadata)
    assert child._process is not None
    os.kill(child._process.pid, signal.SIGSTOP)
    monkeypatch.setattr(check_pool, "MIN_TIMEOUT_S", 0.2)
    monkeypatch.setattr(check_pool, "MIN_BYTES_PER_S", 1e12)
    assert "takes more than" in str(child.check(paths[0]))
    monkeypatch.undo()
    assert isinstance(child.check(paths[1]), EpisodeMetadata)  # a new process checks it
    os.kill(child._process.pid, signal.SIGSTOP)
    timer = threading.Timer(0.2, os.kill, (child._process.pid, signal.SIGKILL))
    timer.start()
    assert "killed the reader (exit code -9)" in str(child.check(paths[1]))
    assert isinstance(child.check(paths[0]), EpisodeMetadata)
    os.kill(child._process.pid, signal.SIGKILL)
    child._process.wait()  # the process died while idle
    assert isinstance(child.check(paths[1]), EpisodeMetadata)
    child.close()


def test_closing_the_check_does_not_wait_for_a_file_that_hangs(own_demonstrations: Path) -> None:
    paths = [episode_path(own_demonstrations, number % 3) for number in range(200)]
    results = check_pool.check_files(paths, "auto", {})
    next(results)
    for process in psutil.Process().children():
        if check_pool.__name__ in process.cmdline():
            process.suspend()
    start = time.monotonic()
    cast(Generator[object, None, None], results).close()
    assert time.monotonic() - start < check_pool.MIN_TIMEOUT_S


def test_a_foreign_file_that_differs_from_the_index_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "episode_0.hdf5"
    write_act(path)
    assert isinstance(check_dataset(tmp_path, [path], "auto")[path], EpisodeMetadata)
    with h5py.File(path, "r+") as file:
        file["action"][3, 2] += 0.5
    for _ in range(2):
        assert "differ from the indexed ones" in str(check_dataset(tmp_path, [path], "auto")[path])
    with h5py.File(path, "r+") as file:
        file["action"][3, 2] = np.nan
    assert "NaN" in str(check_dataset(tmp_path, [path], "auto")[path])
    write_act(path)
    assert isinstance(check_dataset(tmp_path, [path], "auto")[path], EpisodeMetadata)
    with h5py.File(path, "r+") as file:
        file["action"][3, 2] += 0.5
    (tmp_path / CACHE_DIR / "index.json").unlink()
    assert isinstance(check_dataset(tmp_path, [path], "auto")[path], EpisodeMetadata)


def test_training_refuses_a_changed_file(own_demonstrations: Path, tmp_path: Path) -> None:
    """This includes a file of the same length with the hash of its original contents."""
    foreign, ours = tmp_path / "episode_0.hdf5", episode_path(own_demonstrations, 0)
    write_act(foreign)
    for path, change in product((foreign, ours), (_edit, _replace)):
        info = check_episode(path, "auto")
        read = partial(read_slice, info.ref, EpisodeFields(), (0, 1), (0, 1))
        read()
        content = path.read_bytes()
        change(path)
        with pytest.raises(
            UserError, match=rf"{path.name} cannot be read as it was indexed.*was changed"
        ):
            read()
        path.write_bytes(content)
        read()  # a copy may have another modification time


def test_reading_is_retried_if_a_shared_folder_fails(
    own_demonstrations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = check_episode(episode_path(own_demonstrations, 0), "auto").ref
    read = partial(read_slice, ref, EpisodeFields(), (0, 1), (0, 1))
    errors = [
        OSError(errno.ESTALE, "Stale file handle"),
        OSError("Can't read data (file read failed: errno = 5, error message = 'I/O error')"),
    ]
    delays: list[float] = []
    original_open = reader.open_hdf5

    def open_hdf5(path: str) -> AbstractContextManager[h5py.File]:
        if errors:
            raise errors.pop()
        return original_open(path)

    monkeypatch.setattr(reader, "open_hdf5", open_hdf5)
    monkeypatch.setattr("imf_ray.files.time.sleep", delays.append)
    assert read().length == ref.length
    assert not errors and len(delays) == 2
    errors.append(OSError("Can't read data (inflate() failed)"))
    with pytest.raises(UserError, match="cannot be read as it was indexed"):
        read()
    assert len(delays) == 2  # a damaged file is not retried


def _edit(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["action"][3, 2] += 0.5


def _replace(path: Path) -> None:
    path.unlink()
    write_act(path, np.float64)


def test_a_forced_check_finds_silent_damage_for_later_runs(tmp_path: Path) -> None:
    """A flipped bit on a disk changes neither the size nor the time of a file."""
    path = tmp_path / "episode_0.hdf5"
    write_act(path)
    assert isinstance(check_dataset(tmp_path, [path], "auto")[path], EpisodeMetadata)
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    with h5py.File(path, "r+") as file:
        file["action"][3, 2] += 0.5
    os.utime(path, ns=times)
    unchanged = check_dataset(tmp_path, [path], "auto")[path]  # not read again
    assert isinstance(unchanged, EpisodeMetadata)
    for force in (True, False):
        result = check_dataset(tmp_path, [path], "auto", force=force)[path]
        assert "differ from the indexed ones" in str(result)


def test_an_invalid_index_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "episode_0.hdf5"
    write_act(path)
    (tmp_path / CACHE_DIR).mkdir()
    (tmp_path / CACHE_DIR / "index.json").write_text("[]")
    assert isinstance(check_dataset(tmp_path, [path], "auto")[path], EpisodeMetadata)


def test_a_file_of_another_format_cannot_replace_an_indexed_one(
    own_demonstrations: Path, tmp_path: Path
) -> None:
    foreign, ours = tmp_path / "episode_0.hdf5", episode_path(own_demonstrations, 0)
    write_act(foreign)
    for path, other in ((foreign, episode_path(own_demonstrations, 1)), (ours, foreign)):
        check_dataset(path.parent, [path], "auto")
        shutil.copy(other, path)
        result = check_dataset(path.parent, [path], "auto")[path]
        assert "differ from the indexed ones" in str(result)
        write_act(foreign)


def test_files_of_our_format_may_be_recorded_again(own_demonstrations: Path) -> None:
    first, second = (episode_path(own_demonstrations, number) for number in range(2))
    check_dataset(own_demonstrations, [first], "auto")
    shutil.copy(second, first)
    assert isinstance(check_dataset(own_demonstrations, [first], "auto")[first], EpisodeMetadata)

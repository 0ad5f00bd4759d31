"""What a run does not use of a file does not matter; what it uses must be right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from imf_ray.data.episodes import EpisodeFields
from imf_ray.data.hdf5.check import check_episode
from imf_ray.data.hdf5.content_hash import HASH_ATTRIBUTE, hash_contents
from imf_ray.data.readers import read_slice
from imf_ray.data.requirements import find_mismatches, find_unread
from imf_ray.errors import UserError
from imf_ray.schema import Config
from testing_support.episode_fuzzer import write_ours
from tests.helpers.configs import tiny_config
from tests.helpers.episode_files import HEIGHT, LENGTH, WIDTH, write_act

Change = Callable[[h5py.File], None]


def _config(*overrides: str) -> Config:
    """Return the options that fit an episode of `write_act`."""
    options = ["data.camera_names=[top]", "data.resize_images=true", "agent.state_dim=14"]
    return tiny_config("unused", *options, "agent.action_dim=14", *overrides)


def _replace(name: str, change: Callable[[np.ndarray], object]) -> Change:
    def replace(file: h5py.File) -> None:
        values = file[name][:]
        del file[name]
        file[name] = change(values)

    return replace


def _add(name: str, value: object) -> Change:
    return lambda file: file.__setitem__(name, value)


def _unwritten(name: str, shape: tuple[int, ...]) -> Change:
    def create(file: h5py.File) -> None:
        if name in file:
            del file[name]
        file.create_dataset(name, shape, np.float32, chunks=(1, *shape[1:]))

    return create


def _half_written(name: str) -> Change:
    def write(file: h5py.File) -> None:
        values = file[name][:]
        del file[name]
        dataset = file.create_dataset(name, values.shape, "f4", chunks=(1, *values.shape[1:]))
        dataset[: LENGTH // 2] = values[: LENGTH // 2]

    return write


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((LENGTH, 14), np.float32)
    layout[:] = h5py.VirtualSource("elsewhere.hdf5", "action", (LENGTH, 14))
    file.create_virtual_dataset("virtual", layout)


def _unknown_type(file: h5py.File) -> None:
    h5py.h5d.create(file.id, b"time", h5py.h5t.UNIX_D32LE, h5py.h5s.create_simple((3,)))


def _variable_length(file: h5py.File) -> None:
    points = file.create_dataset("points", (LENGTH,), dtype=h5py.vlen_dtype(np.float32))
    for step in range(LENGTH):
        points[step] = np.zeros(2000 + step)


def _attributes(file: h5py.File) -> None:
    values = (("task", "pick up the cube"), ("digest", "abc"), ("empty", h5py.Empty("f4")))
    for name, value in values:
        file.attrs[name] = value


def _latin1_names(file: h5py.File) -> None:
    file[b"caf\xe9"] = h5py.SoftLink("/action")
    file.create_dataset(b"observations/images/caf\xe9", data=np.zeros(3))
    h5py.h5a.create(file.id, b"caf\xe9", h5py.h5t.NATIVE_INT32, h5py.h5s.create(h5py.h5s.SCALAR))


NAN_QVEL = np.full((LENGTH, 14), np.nan)
COMPOUND = np.zeros(LENGTH, dtype=[("time", "f8"), ("name", "S4")])


@pytest.mark.parametrize(
    ("change", "unread"),
    [
        (_replace("observations/qvel", lambda _: NAN_QVEL), "observations/qvel"),
        (_replace("observations/qvel", lambda _: np.zeros(LENGTH, int)), "observations/qvel"),
        (_replace("observations/qvel", lambda values: values[:-2]), "observations/qvel"),
        (_unwritten("observations/qvel", (LENGTH, 14)), "observations/qvel"),
        (_unwritten("observations/qvel", (1 << 40, 14)), "observations/qvel"),
        (_unwritten("lidar", (1 << 40, 1000)), "lidar"),
        (
            _add("observations/images/depth", np.zeros((LENGTH, 8, 8), np.uint16)),
            "observations/images/depth",
        ),
        (
            _add("observations/images/side", np.zeros((LENGTH, 8, 8, 5), np.uint8)),
            "observations/images/side",
        ),
        (
            _add("observations/images/side", np.zeros((LENGTH - 1, 8, 8, 3), np.uint8)),
            "observations/images/side",
        ),
        (
            _add("observations/images/side", np.full((LENGTH, 9), 255, np.uint8)),  # broken JPEGs
            "observations/images/side",
        ),
        (
            _add("observations/images/side/color", np.zeros((LENGTH, 8, 8, 3), np.uint8)),
            "observations/images/side",
        ),
        (_add("observations/images/gone", h5py.SoftLink("/nowhere")), "observations/images/gone"),
        (_add("observations/tactile", np.full((LENGTH, 4, 4), np.nan)), "observations/tactile"),
        (_add("observations/poses/cube", np.zeros((LENGTH, 6))), "observations/poses/cube"),
        (_add("observations/poses", np.zeros((LENGTH, 7))), "observations/poses"),
        (_add("base_action", np.zeros((LENGTH, 2))), "base_action"),
        (_add("timestamps", np.arange(10 * LENGTH)), "timestamps"),
        (_add("language", np.array([b"pick up"] * LENGTH)), "language"),
        (_add("note", "text"), "note"),
        (_add("compound", COMPOUND), "compound"),
        (_add("nothing", h5py.Empty("f4")), "nothing"),
        (_add("again", h5py.SoftLink("/action")), "again"),
        (_add("loop", h5py.SoftLink("/loop")), "loop"),
        (_add("outside", h5py.ExternalLink("elsewhere.hdf5", "/action")), "outside"),
        (_virtual, "virtual"),
        (_unknown_type, "time"),
        (_variable_length, "points"),
        (_half_written("observations/qvel"), "observations/qvel"),
        (lambda file: file.create_group("meta/more"), None),
        (_attributes, None),
        (lambda file: file.attrs.update(compress=[True, False]), None),
        (lambda file: file.attrs.update(compress=np.zeros(0)), None),
        (lambda file: file.attrs.update(max_reward=4, robot="aloha"), None),
        (lambda file: file.attrs.update(action_space="joint", shadows=True, robot="aloha"), None),
        (_latin1_names, r"observations/images/caf\xe9"),
    ],
)
def test_what_a_run_does_not_use_is_listed_and_does_not_matter(
    tmp_path: Path, change: Change, unread: str | None
) -> None:
    path = tmp_path / "episode_0.hdf5"
    write_act(path)
    with h5py.File(path, "r+") as file:
        change(file)
    info = check_episode(path)
    assert info.required_problem is None and find_mismatches(info, _config()) == []
    assert unread in (None, *find_unread(info, _config()))
    part = read_slice(info.ref, EpisodeFields(("top",)), (0, LENGTH), (0, LENGTH))
    assert part.images["top"].shape == (LENGTH, HEIGHT, WIDTH, 3)


def test_invalid_text_of_an_attribute_is_escaped(tmp_path: Path) -> None:
    path = tmp_path / "episode_0.hdf5"
    write_act(path)
    with h5py.File(path, "r+") as file:
        file.attrs.create("operator", b"caf\xe9", dtype=h5py.string_dtype())
    check_episode(path).attributes["operator"].encode()


def test_a_damaged_dataset_that_no_run_uses_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "episode_0.hdf5"
    write_act(path)
    with h5py.File(path, "r+") as file:
        lidar = np.arange(LENGTH * 64).reshape(LENGTH, 64)
        dataset = file.create_dataset("lidar", data=lidar, chunks=(1, 64), fletcher32=True)
        offset = dataset.id.get_chunk_info(3).byte_offset
    intact = check_episode(path)
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)
    info = check_episode(path)
    assert info.damaged and not intact.damaged and info.content_hash != intact.content_hash
    assert find_mismatches(info, _config()) == [] and "lidar" in find_unread(info, _config())
    ref = check_episode(path).ref
    assert ref == info.ref  # the hash of a damaged file is the same at each reading


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (_replace("action", lambda values: values > 0), "/action"),
        (_replace("action", lambda values: values.astype(np.complex64)), "/action"),
        (_replace("action", lambda values: values.astype("S4")), "/action"),
        (_replace("action", lambda values: values[None]), "/action"),
        (_replace("action", lambda values: values[:, :0]), "/action"),
        (_replace("action", lambda values: values[:0]), "/action"),
        (_replace("action", lambda values: np.append(values, values, axis=0)), "/action"),
        (_replace("action", lambda values: values * np.nan), "/action"),
        (_unwritten("action", (LENGTH, 14)), "/action"),
        (_half_written("action"), f"{LENGTH // 2} of {LENGTH}"),
        (_half_written("observations/qpos"), f"{LENGTH // 2} of {LENGTH}"),
        (_replace("action", lambda _: h5py.ExternalLink("elsewhere.hdf5", "/action")), "/action"),
        (_replace("observations/qpos", lambda values: values[:, 0]), "(T, 1)"),
        (lambda file: file.move("observations/qpos", "observations/state"), "/observations/state"),
        (
            _replace("observations/images/top", lambda frames: frames / np.float32(255)),
            "camera top",
        ),
        (_replace("observations/images/top", lambda frames: frames[1:]), "camera top"),
    ],
)
def test_a_problem_of_what_a_run_uses_is_named(tmp_path: Path, change: Change, part: str) -> None:
    path = tmp_path / "episode_0.hdf5"
    write_act(path)
    with h5py.File(path, "r+") as file:
        change(file)
    info = check_episode(path)
    problem = info.required_problem
    assert problem is not None and part in problem
    assert part in str(find_mismatches(info, _config())[0])


@pytest.mark.parametrize("dtype", ["f2", "f8", ">f4", "i4", "u1", "i8"])
def test_numbers_of_every_type_are_read_as_float32(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "episode_0.hdf5"
    write_act(path)
    with h5py.File(path, "r+") as file:
        for name in ("action", "observations/qpos"):
            _replace(name, lambda values: np.abs(100 * values).astype(dtype))(file)
        expected = file["action"][:].astype(np.float32)
    info = check_episode(path)
    assert find_mismatches(info, _config()) == []
    part = read_slice(info.ref, EpisodeFields(), (0, 1), (0, LENGTH))
    assert part.action.dtype == part.qpos.dtype == np.float32
    np.testing.assert_array_equal(part.action, expected)


def test_links_inside_a_file_are_followed(tmp_path: Path) -> None:
    path = tmp_path / "episode_0.hdf5"
    write_act(path)
    with h5py.File(path, "r+") as file:
        file.move("action", "raw/joints")
        file["action"] = h5py.SoftLink("/raw/joints")
        file.move("observations", "raw/observations")
        file["observations"] = h5py.SoftLink("raw/observations")
        file["raw/state"] = file["raw/observations/qpos"]  # a hard link
    info = check_episode(path)
    assert find_mismatches(info, _config()) == [] and find_unread(info, _config()) == {}
    read_slice(info.ref, EpisodeFields(("top",)), (0, 1), (0, 1))


@pytest.mark.parametrize("link", [h5py.SoftLink("/action"), h5py.ExternalLink("a.hdf5", "/b")])
def test_the_hash_covers_links(tmp_path: Path, link: object) -> None:
    write_act(tmp_path / "episode_0.hdf5")
    with h5py.File(tmp_path / "episode_0.hdf5", "r+") as file:
        hashes = {hash_contents(file)}
        file["link"] = link
        hashes.add(hash_contents(file))
        del file["link"]
        file["link"] = h5py.SoftLink("/observations/qpos")
        hashes.add(hash_contents(file))
    assert len(hashes) == 3


def test_the_hash_of_a_file_is_the_same_in_all_versions(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "episode_0.hdf5", "w") as file:
        file["b/größe"] = np.arange(3, dtype="<i4")
        file["a"] = file["b/größe"]
        file.attrs.update({"länge": 3, "a": "text"})
        assert hash_contents(file) == "4e968933f3053b4609ab9d3612980916"


def test_the_hash_covers_all_values_of_variable_length(tmp_path: Path) -> None:
    write_act(tmp_path / "episode_0.hdf5")
    with h5py.File(tmp_path / "episode_0.hdf5", "r+") as file:
        _variable_length(file)
        before = hash_contents(file)
        values = file["points"][3]
        values[1000] = 1.0  # NumPy's text form of a long array leaves its middle out
        file["points"][3] = values
        assert hash_contents(file) != before


@pytest.mark.parametrize(
    "change",
    [
        _replace("observations/qvel", lambda _: NAN_QVEL),
        _add("again", h5py.SoftLink("/action")),
        _unwritten("lidar", (1 << 40, 1000)),
        _attributes,
    ],
)
def test_any_change_of_our_own_files_is_refused(tmp_path: Path, change: Change) -> None:
    path = tmp_path / "episode_0.hdf5"
    write_ours(path)
    with h5py.File(path, "r+") as file:
        digest = file.attrs[HASH_ATTRIBUTE]
        change(file)
        file.attrs[HASH_ATTRIBUTE] = digest
    with pytest.raises(UserError, match=r"episode_0.hdf5.*digest"):
        check_episode(path)

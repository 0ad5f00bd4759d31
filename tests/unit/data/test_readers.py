"""Files of other projects: known by what is in them, read alike, refused with a reason."""

import io
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from imf_ray.data.episodes import EpisodeFields, check_episode, read_slice
from imf_ray.data.index import build_index
from imf_ray.data.readers import center_crop_resize
from imf_ray.errors import UserError
from tests.helpers.configs import tiny_config

LENGTH, HEIGHT, WIDTH = 12, 24, 32


def pictures(seed: int = 0) -> np.ndarray:
    """Smooth frames (T, H, W, 3), so that a JPEG is close to them, each channel different."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 256, (LENGTH, 2, 2, 3), dtype=np.uint8)
    large = [Image.fromarray(c).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR) for c in corners]
    return np.stack([np.asarray(picture) for picture in large])


def write_act(path: Path, dtype: type = np.float32, qvel: bool = True, dim: int = 14) -> None:
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file.attrs["sim"] = True
        file["action"] = rng.normal(size=(LENGTH, dim)).astype(dtype)
        file["observations/qpos"] = rng.normal(size=(LENGTH, dim)).astype(dtype)
        if qvel:
            file["observations/qvel"] = rng.normal(size=(LENGTH, dim)).astype(dtype)
        file.create_dataset(
            "observations/images/top", data=pictures(), chunks=(1, HEIGHT, WIDTH, 3)
        )


def write_act_plus_plus(path: Path) -> None:
    write_act(path)
    # OpenCV takes the array for BGR: the red of the JPEG is the array's last channel.
    packed = [_jpeg(frame[..., ::-1]) for frame in pictures()]
    longest = max(map(len, packed))
    padded = np.stack([np.pad(p, (0, longest - len(p))) for p in packed])
    with h5py.File(path, "r+") as file:
        del file["observations/images/top"]
        file["observations/images/top"] = padded
        file["compress_len"] = np.array([[len(p) for p in packed]], dtype=np.float64)
        file.attrs["compress"] = True


def _write_unmarked_jpegs(path: Path) -> None:
    """With `/compress_len` alone to tell of them."""
    write_act_plus_plus(path)
    with h5py.File(path, "r+") as file:
        del file.attrs["compress"]


def write_roboimi(path: Path) -> None:
    write_act(path, dim=16)
    with h5py.File(path, "r+") as file:
        action = file["action"][:]
        for place in (slice(3, 7), slice(11, 15)):
            action[:, place] /= np.linalg.norm(action[:, place], axis=1, keepdims=True)
        file["action"][:] = action


def _jpeg(frame: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=95, subsampling=0)
    return np.frombuffer(buffer.getvalue(), np.uint8)


@pytest.mark.parametrize(
    ("write", "format", "spaces"),
    [
        (write_act, "act", ("joint",)),
        (lambda path: write_act(path, np.float32, qvel=False), "act", ("joint",)),
        (lambda path: write_act(path, np.float64), "act", ("joint",)),
        (lambda path: write_act(path, np.float64, qvel=False), "act", ("joint",)),
        (_write_unmarked_jpegs, "act_plus_plus", ("joint",)),
        (write_act_plus_plus, "act_plus_plus", ("joint",)),
        (write_roboimi, "roboimi", ("ee",)),
    ],
)
def test_known_and_read_alike(
    tmp_path: Path, write: Callable[[Path], None], format: str, spaces: tuple[str, ...]
) -> None:
    path = tmp_path / "episode_0.hdf5"
    write(path)
    info = check_episode(path)
    assert (info.format, info.action_spaces, info.length) == (format, spaces, LENGTH)
    assert info.cameras == {"top": (HEIGHT, WIDTH)} and info.unread == ()
    part = read_slice(info.source, EpisodeFields(("top",), action_space=spaces[0]), (2, 5), (1, 9))
    with h5py.File(path) as file:
        np.testing.assert_array_equal(part.action, file["action"][1:9].astype(np.float32))
        np.testing.assert_array_equal(part.qpos, file["observations/qpos"][2:5].astype(np.float32))
    assert part.images["top"].dtype == np.uint8
    np.testing.assert_allclose(part.images["top"].astype(int), pictures()[2:5], atol=12)


def test_ours_are_known(demonstrations: Path) -> None:
    info = check_episode(demonstrations / "episode_0.hdf5")
    assert info.format == "imf_ray" and info.action_spaces == ("joint", "ee")
    assert info.unread == ()


def test_what_is_not_learned_from_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_act(tmp_path / "episode_0.hdf5", dim=16)
    with h5py.File(tmp_path / "episode_0.hdf5", "a") as file:
        file["base_action"] = np.zeros((LENGTH, 2))
    options = ["data.camera_names=[top]", "train.val_split=0.0", "data.resize_images=true"]
    for _ in range(2):  # the second from the cache
        caplog.clear()
        build_index(tiny_config(tmp_path, *options))
        assert f"Nothing is made of /base_action in the episodes of {tmp_path}" in caplog.text


def test_a_format_may_be_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "episode_0.hdf5"
    write_roboimi(path)
    assert check_episode(path, "act").action_spaces == ("joint",)


def test_the_action_space_must_be_there(tmp_path: Path) -> None:
    write_roboimi(tmp_path / "episode_0.hdf5")
    options = ["data.camera_names=[top]", "train.val_split=0.0", "data.resize_images=true"]
    with pytest.raises(UserError, match=r"format roboimi it has ee actions, not.*=joint"):
        build_index(tiny_config(tmp_path, *options))
    index = build_index(tiny_config(tmp_path, *options, "task.action_space=ee"))
    assert len(index.episodes) == 1
    # Another format is another verdict, whatever the cache says.
    assert (
        build_index(tiny_config(tmp_path, *options, "data.format=act")).episodes[0].format == "act"
    )


def test_other_sizes_are_refused_or_scaled(tmp_path: Path) -> None:
    write_act(tmp_path / "episode_0.hdf5", dim=16)
    options = ["data.camera_names=[top]", "task.image_size=16"]
    with pytest.raises(UserError, match=r"\(24, 32\).*data.resize_images=true"):
        build_index(tiny_config(tmp_path, *options))
    (info,) = build_index(tiny_config(tmp_path, *options, "data.resize_images=true")).episodes
    part = read_slice(info.source, EpisodeFields(("top",), image_size=16), (0, 3), (0, 1))
    assert part.images["top"].shape == (3, 16, 16, 3)


def test_the_central_square() -> None:
    frames = np.zeros((2, 8, 12, 3), np.uint8)
    frames[:, :, 2:10] = 200  # the central square is bright, what lies beside it is black
    assert (center_crop_resize(frames, 4) == 200).all()
    same = frames[:, :, 2:10]
    assert center_crop_resize(same, 8) is same


def _cut_jpeg(file: h5py.File) -> None:
    file["observations/images/top"][3, 40:] = 0


def _short_jpeg(file: h5py.File) -> None:
    length = int(file["compress_len"][0, 3])
    file["observations/images/top"][3, length - 20 :] = 0  # a decoder shows what is left


def _no_jpeg(file: h5py.File) -> None:
    file["observations/images/top"][3, :40] = 1


def _other_size(file: h5py.File) -> None:
    small = _jpeg(pictures()[0][:16])
    file["observations/images/top"][5, :] = 0
    file["observations/images/top"][5, : len(small)] = small


def _float_jpegs(file: h5py.File) -> None:
    packed = file["observations/images/top"][:].astype(np.float32)
    del file["observations/images/top"]
    file["observations/images/top"] = packed


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_cut_jpeg, "JPEG that is cut off"),
        (_short_jpeg, "JPEG that is cut off"),
        (_no_jpeg, "JPEG that cannot be read"),
        (_other_size, "changes its size at step 5"),
        (_float_jpegs, "not padded JPEGs"),
    ],
)
def test_damaged_jpegs_are_named(
    tmp_path: Path, damage: Callable[[h5py.File], None], reason: str
) -> None:
    path = tmp_path / "episode_0.hdf5"
    write_act_plus_plus(path)
    with h5py.File(path, "r+") as file:
        damage(file)
    with pytest.raises(UserError, match=rf"episode_0.hdf5.*{reason}"):
        check_episode(path)

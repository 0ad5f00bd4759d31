"""Episode formats of other projects: recognition, reading and error messages."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from imf_ray.config import load_config
from imf_ray.data.channel_order import AUTO
from imf_ray.data.episodes import EpisodeFields
from imf_ray.data.hdf5.check import check_episode
from imf_ray.data.readers import FORMATS, read_slice
from imf_ray.errors import UserError
from testing_support.episode_fuzzer import write_ours
from tests.helpers.episode_files import (
    HEIGHT,
    LENGTH,
    WIDTH,
    encode_jpeg,
    smooth_images,
    write_act,
    write_act_plus_plus,
    write_roboimi,
)


def _write_jpegs_without_attribute(path: Path) -> None:
    """An act-plus-plus file that only `/compress_len` gives away."""
    write_act_plus_plus(path)
    with h5py.File(path, "r+") as file:
        del file.attrs["compress"]


@pytest.mark.parametrize(
    ("write", "format", "spaces"),
    [
        (write_act, "act", ("joint",)),
        (lambda path: write_act(path, np.float32, qvel=False), "act", ("joint",)),
        (lambda path: write_act(path, np.float64), "act", ("joint",)),
        (lambda path: write_act(path, np.float64, qvel=False), "act", ("joint",)),
        (_write_jpegs_without_attribute, "act_plus_plus", ("joint",)),
        (write_act_plus_plus, "act_plus_plus", ("joint",)),
        (write_roboimi, "roboimi", ("ee",)),
    ],
)
def test_formats_are_recognized_and_read(
    tmp_path: Path, write: Callable[[Path], None], format: str, spaces: tuple[str, ...]
) -> None:
    path = tmp_path / "episode_0.hdf5"
    write(path)
    info = check_episode(path)
    assert (info.format, info.action_spaces, info.length) == (format, spaces, LENGTH)
    assert info.cameras == {"top": (HEIGHT, WIDTH)} and info.unused_datasets == ()
    part = read_slice(info.ref, EpisodeFields(("top",), action_space=spaces[0]), (2, 5), (1, 9))
    with h5py.File(path) as file:
        np.testing.assert_array_equal(part.action, file["action"][1:9].astype(np.float32))
        np.testing.assert_array_equal(part.qpos, file["observations/qpos"][2:5].astype(np.float32))
    assert part.images["top"].dtype == np.uint8
    np.testing.assert_allclose(part.images["top"].astype(int), smooth_images()[2:5], atol=12)


def test_our_format_is_recognized(tmp_path: Path) -> None:
    write_ours(tmp_path / "episode_0.hdf5")
    info = check_episode(tmp_path / "episode_0.hdf5")
    assert info.format == "imf_ray" and info.action_spaces == ("joint", "ee")
    assert info.unused_datasets == ()


def test_unused_datasets_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "episode_0.hdf5"
    write_act(path)
    with h5py.File(path, "a") as file:
        file["base_action"] = np.zeros((LENGTH, 2))
    assert check_episode(path).unused_datasets == ("base_action",)


def test_the_format_may_be_given(tmp_path: Path) -> None:
    path = tmp_path / "episode_0.hdf5"
    write_roboimi(path)
    assert check_episode(path, "act").action_spaces == ("joint",)


def test_the_schema_takes_its_choices_from_the_registry() -> None:
    options = ["agent=resnet_imf_attnres"]
    for name in FORMATS:
        assert load_config([*options, f"data.format={name}"]).data.format == name
    with pytest.raises(UserError, match=f"data.format='zarr'.*{', '.join([AUTO, *FORMATS])}"):
        load_config([*options, "data.format=zarr"])


def test_images_are_scaled_when_read(tmp_path: Path) -> None:
    path = tmp_path / "episode_0.hdf5"
    write_act(path)
    fields = EpisodeFields(("top",), image_size=16)
    part = read_slice(check_episode(path).ref, fields, (0, 3), (0, 1))
    assert part.images["top"].shape == (3, 16, 16, 3)


def _cut_jpeg(file: h5py.File) -> None:
    file["observations/images/top"][3, 40:] = 0


def _cut_end_of_jpeg(file: h5py.File) -> None:
    length = int(file["compress_len"][0, 3])
    file["observations/images/top"][3, length - 20 :] = 0  # a decoder would show the rest


def _no_jpeg(file: h5py.File) -> None:
    file["observations/images/top"][3, :40] = 1


def _other_size(file: h5py.File) -> None:
    small = encode_jpeg(smooth_images()[0][:16])
    file["observations/images/top"][5, :] = 0
    file["observations/images/top"][5, : len(small)] = small


def _float_jpegs(file: h5py.File) -> None:
    padded = file["observations/images/top"][:].astype(np.float32)
    del file["observations/images/top"]
    file["observations/images/top"] = padded


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_cut_jpeg, "JPEG that is cut off"),
        (_cut_end_of_jpeg, "JPEG that is cut off"),
        (_no_jpeg, "not a JPEG or PNG image"),
        (_other_size, "image size of camera top changes at step 5"),
        (_float_jpegs, "not images"),
    ],
)
def test_damaged_jpegs_are_refused(
    tmp_path: Path, damage: Callable[[h5py.File], None], reason: str
) -> None:
    path = tmp_path / "episode_0.hdf5"
    write_act_plus_plus(path)
    with h5py.File(path, "r+") as file:
        damage(file)
    info = check_episode(path)
    assert info.images == {} and reason in info.problems["observations/images/top"]


def _store_images(path: Path, images: np.ndarray, **attributes: object) -> None:
    """Write an ACT file with these images of the camera top, and root attributes."""
    write_act(path)
    with h5py.File(path, "r+") as file:
        del file["observations/images/top"]
        file["observations/images/top"] = images
        file.attrs.update(attributes)


def _read_top(path: Path, channel_order: str) -> np.ndarray:
    fields = EpisodeFields(("top",), channel_order=channel_order)
    return read_slice(check_episode(path).ref, fields, (0, LENGTH), (0, 1)).images["top"]


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("as_strings", [True, False])
def test_standard_jpegs_are_red_with_the_option_and_blue_without(
    tmp_path: Path, as_strings: bool, compress: bool
) -> None:
    path = tmp_path / "episode_0.hdf5"
    images = np.stack([encode_jpeg(np.full((HEIGHT, WIDTH, 3), (230, 0, 0), np.uint8))] * LENGTH)
    if as_strings:
        images = images.view(f"S{images.shape[1]}").reshape(LENGTH)
    _store_images(path, images, **({"compress": True} if compress else {}))
    info = check_episode(path)
    assert info.format == ("act_plus_plus" if compress else "act") and not info.problems
    assert info.images["top"].is_assumed("auto") and not info.images["top"].is_assumed("rgb")
    for order, channel in (("rgb", 0), ("bgr", 2), ("auto", 2)):
        images = _read_top(path, order)
        assert images.shape == (LENGTH, HEIGHT, WIDTH, 3)
        assert (images.argmax(-1) == channel).all()


def test_the_channel_order_of_arrays_is_an_option_or_an_attribute(tmp_path: Path) -> None:
    path = tmp_path / "episode_0.hdf5"
    _store_images(path, smooth_images())
    np.testing.assert_array_equal(_read_top(path, "auto"), smooth_images())
    np.testing.assert_array_equal(_read_top(path, "bgr"), smooth_images()[..., ::-1])
    with h5py.File(path, "r+") as file:
        file["observations/images/top"].attrs["channel_order"] = "bgr"
    np.testing.assert_array_equal(_read_top(path, "auto"), smooth_images()[..., ::-1])


def test_own_recordings_are_rgb_and_foreign_files_of_their_format_may_not_be(
    tmp_path: Path,
) -> None:
    own, foreign = tmp_path / "episode_0.hdf5", tmp_path / "episode_1.hdf5"
    write_ours(own)
    _store_images(foreign, smooth_images(), action_space="joint")
    for path, order in ((own, "rgb"), (foreign, None)):
        info = check_episode(path)
        assert info.format == "imf_ray" and info.images["top"].channel_order == order


def test_a_camera_that_is_no_image_is_a_problem_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "episode_0.hdf5"
    write_act(path)
    with h5py.File(path, "r+") as file:
        group = file["observations/images"]
        group["touch"] = np.ones((LENGTH, 64), np.uint8)
        group["depth"] = np.zeros((LENGTH, 8, 8), np.uint16)
        for step in range(LENGTH):
            group[f"frames/{step}"] = encode_jpeg(smooth_images()[step])
    info = check_episode(path)
    assert list(info.images) == ["top"]
    assert {name.rpartition("/")[2] for name in info.problems} == {"touch", "depth", "frames"}

"""Tables and contact sheet of a data set: which colors a policy is trained on."""

import io
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from imf_ray.data.episode_check import check_episode
from imf_ray.data.episodes import EpisodeMetadata
from imf_ray.data.visualize import (
    IMAGES_PER_CAMERA,
    TILE_SIZE,
    contact_sheet,
    episode_table,
    episode_video,
)
from imf_ray.video import decode_video
from tests.helpers.episode_files import LENGTH, encode_jpeg, write_act

RED = (230, 0, 0)
STRIP_PIXELS = IMAGES_PER_CAMERA * TILE_SIZE**2


def write_episode(path: Path, images: np.ndarray) -> EpisodeMetadata:
    write_act(path)
    with h5py.File(path, "r+") as file:
        del file["observations/images/top"]
        file["observations/images/top"] = images
    return check_episode(path)


def red_episodes(folder: Path, encoded: bool) -> list[EpisodeMetadata]:
    """Two episodes of red images, as standard JPEGs or as arrays."""
    image = np.full((32, 32, 3), RED, np.uint8)
    images = np.stack([encode_jpeg(image) if encoded else image] * LENGTH)
    return [write_episode(folder / f"episode_{number}.hdf5", images) for number in range(2)]


def count_strips(sheet: bytes, color: tuple[int, int, int]) -> float:
    """Return the area of a color in a contact sheet, in strips of one camera and episode."""
    pixels = np.asarray(Image.open(io.BytesIO(sheet))).astype(int)
    return round(float((abs(pixels - color).max(-1) < 8).sum() / STRIP_PIXELS), 1)


@pytest.mark.parametrize(
    ("encoded", "option", "red", "blue"),
    [
        # Two episodes; if the order is assumed, the first one also in the other order.
        (True, "auto", 1, 2),
        (True, "rgb", 2, 0),
        (True, "bgr", 0, 2),
        (False, "auto", 2, 1),
        (False, "rgb", 2, 0),
        (False, "bgr", 0, 2),
    ],
)
def test_the_contact_sheet_shows_the_colors_of_training(
    tmp_path: Path, encoded: bool, option: str, red: int, blue: int
) -> None:
    sheet = contact_sheet(red_episodes(tmp_path, encoded), ["top"], option)
    assert count_strips(sheet, RED) == red
    assert count_strips(sheet, RED[::-1]) == blue


def test_the_comparison_shows_the_first_episode_of_an_assumed_order(tmp_path: Path) -> None:
    episodes = red_episodes(tmp_path, encoded=True)
    with h5py.File(episodes[0].path, "r+") as file:
        file.attrs["channel_order"] = "rgb"
    episodes[0] = check_episode(Path(episodes[0].path))
    sheet = contact_sheet(episodes, ["top"], "auto")
    assert (count_strips(sheet, RED), count_strips(sheet, RED[::-1])) == (2, 1)


def test_the_contact_sheet_of_grey_images_has_no_comparison(tmp_path: Path) -> None:
    episode = write_episode(tmp_path / "episode_0.hdf5", np.full((LENGTH, 32, 32), 90, np.uint8))
    assert count_strips(contact_sheet([episode], ["top"], "auto"), (90, 90, 90)) == 1


def test_the_video_has_the_colors_of_training(tmp_path: Path) -> None:
    episode = red_episodes(tmp_path, encoded=True)[0]
    for option, channel in (("rgb", 0), ("auto", 2)):
        frames = decode_video(episode_video(episode, ["top"], option))
        assert frames.shape == (LENGTH, TILE_SIZE, TILE_SIZE, 3)
        assert (frames.argmax(-1) == channel).all()


@pytest.mark.parametrize(
    ("encoded", "option", "text"),
    [
        (True, "auto", "JPEG, bgr (assumed)"),
        (True, "rgb", "JPEG, rgb"),
        (False, "auto", "raw, rgb (assumed)"),
        (False, "bgr", "raw, bgr"),
    ],
)
def test_the_table_has_encoding_and_order(
    tmp_path: Path, encoded: bool, option: str, text: str
) -> None:
    table = episode_table(red_episodes(tmp_path, encoded), option)
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    output = console.file.getvalue()
    assert output.count(f"top 32x32 {text} ") == 2

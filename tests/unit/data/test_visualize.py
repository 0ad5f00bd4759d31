"""Tables and contact sheet of a data set: which colors a policy is trained on."""

import dataclasses
import io
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from rich.cells import cell_len
from rich.console import Console, RenderableType

from imf_ray.captions import LINE_HEIGHT
from imf_ray.data.episodes import EpisodeMetadata
from imf_ray.data.hdf5.check import check_episode
from imf_ray.data.visualize import (
    IMAGES_PER_CAMERA,
    TILE_SIZE,
    check_table,
    contact_sheet,
    episode_video,
    episodes_summary,
    statistics_table,
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
        caption_height = 2 * LINE_HEIGHT
        assert frames.shape == (LENGTH, caption_height + TILE_SIZE, TILE_SIZE, 3)
        assert (frames[:, caption_height:].argmax(-1) == channel).all()
        captions = frames[:, :caption_height].astype(int).min(-1)
        assert (captions > 200).mean() > 0.5 and (captions < 60).any()
        assert (abs(captions[0] - captions[-1]) > 100).any()  # the step counts


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
    lines = printed(episodes_summary(red_episodes(tmp_path, encoded), option), 110)
    assert lines[0] == "2 episodes: episode_0.hdf5 to episode_1.hdf5"
    assert f"  cameras  top: 32x32 {text}" in lines


def printed(renderable: RenderableType, width: int) -> list[str]:
    """Return the lines on a console without spaces at their ends."""
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(renderable)
    return [line.rstrip() for line in console.export_text().splitlines()]


@pytest.mark.parametrize("width", [80, 110, 160])
def test_episodes_that_are_alike_are_folded_and_differences_listed(
    tmp_path: Path, width: int
) -> None:
    write_act(tmp_path / "file.hdf5")
    alike = check_episode(tmp_path / "file.hdf5")
    episodes = [
        dataclasses.replace(
            alike,
            path=f"/data/episode_{number}.hdf5",
            content_hash=str(number),
            length=400 + 10 * (number == 30),
            attributes={"seed": number + 5 * (number > 40), "success": number != 7},
        )
        for number in range(50)
    ]
    other = dataclasses.replace(episodes[20], unused_datasets=("base_action",))
    episodes[20] = other
    lines = printed(episodes_summary(episodes, "auto"), width)
    assert all(len(line) <= width for line in lines) and len(lines) < 20
    words = " ".join(" ".join(lines).split())
    assert (
        "49 episodes: episode_0.hdf5 to episode_19.hdf5, episode_21.hdf5 to episode_49.hdf5"
        in words
    )
    assert "steps 400 (episode_0.hdf5) to 410 (episode_30.hdf5), 19610 in total" in words
    assert "success 48 of 49; not: episode_7.hdf5" in words
    assert "seeds 0 to 19, 21 to 40, 46 to 54" in words
    assert "1 episode: episode_20.hdf5 steps 400 each" in words
    assert "unused base_action otherwise as above" in words
    assert words.count("cameras") == 1


@pytest.mark.parametrize("width", [80, 110, 160])
def test_a_check_names_each_file_and_the_whole_reason(tmp_path: Path, width: int) -> None:
    names = [f"episode_größe_大_{'recorded_on_the_left_table_' * 4}{n}.hdf5" for n in range(3)]
    reason = "observations/qpos has 12 rows, but action has 13: record the episode again"
    lines = printed(check_table({tmp_path / name: reason for name in names}), width)
    assert all(cell_len(line) <= width for line in lines)
    text = "".join(lines).replace(" ", "")
    assert all(name in text for name in names)
    assert text.count("again") == 3


def test_equal_dimensions_are_one_row_of_the_statistics(tmp_path: Path) -> None:
    write_act(tmp_path / "file.hdf5")
    with h5py.File(tmp_path / "file.hdf5", "r+") as file:
        file["observations/qvel"][:, 3:9] = 0.0
    lines = printed(statistics_table([check_episode(tmp_path / "file.hdf5")]), 110)
    assert sum("observations/qvel[" in line for line in lines) == 14 - 5
    assert any(line.split() == ["observations/qvel[3-8]", *4 * ["0.0000"]] for line in lines)

"""The command `imf-ray dataset`."""

from pathlib import Path

import h5py
from PIL import Image

from imf_ray.captions import LINE_HEIGHT
from imf_ray.data.episodes import episode_path
from imf_ray.data.visualize import BORDER, CAMERA_GAP, STRIP_WIDTH, TILE_SIZE
from imf_ray.video import decode_video
from tests.helpers.commands import run_command
from tests.helpers.configs import DEMONSTRATIONS


def test_check_lists_every_file(own_demonstrations: Path, tmp_path: Path) -> None:
    done = run_command("dataset", "check", str(own_demonstrations), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"All {DEMONSTRATIONS} episodes are valid" in done.stdout
    path = episode_path(own_demonstrations, 1)
    path.write_bytes(path.read_bytes()[:5000])
    done = run_command("dataset", "check", str(own_demonstrations), cwd=tmp_path)
    assert done.returncode == 2
    assert "truncated file" in done.stdout and "episode_0.hdf5" in done.stdout
    assert done.stderr == f"Error: 1 of {DEMONSTRATIONS} episodes are invalid (see above).\n"


def test_inspect_shows_the_valid_files(own_demonstrations: Path, tmp_path: Path) -> None:
    path = episode_path(own_demonstrations, 1)
    path.write_bytes(path.read_bytes()[:5000])
    done = run_command("dataset", "inspect", str(own_demonstrations), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Skipped episode_1.hdf5" in done.stdout
    vectors = ("observations/qpos", "observations/qvel", "action", "action_ee")
    num_valid = DEMONSTRATIONS - 1
    assert f"{num_valid} episodes: episode_0.hdf5" in done.stdout
    for text in ("400 each", f"{num_valid} of {num_valid}", "top: 48x48"):
        assert text in done.stdout
    assert all(f"{name}[15]" in done.stdout for name in vectors)
    with h5py.File(episode_path(own_demonstrations, 0)) as file:
        assert f"{file['action'][:, 0].max():.4f}" in done.stdout
    output = tmp_path / "runs" / "inspections" / own_demonstrations.name
    with Image.open(output / "contact_sheet.png") as sheet:
        row_height = 2 * LINE_HEIGHT + TILE_SIZE + 2 * BORDER
        header_height = (1 + 3) * LINE_HEIGHT
        assert sheet.size == (
            3 * STRIP_WIDTH + (3 + 1) * CAMERA_GAP,
            header_height + num_valid * row_height + (num_valid + 2) * CAMERA_GAP,
        )
    video = decode_video((output / "episode_0.mp4").read_bytes())
    assert video.shape == (400, 2 * LINE_HEIGHT + TILE_SIZE, 3 * TILE_SIZE, 3)


def test_an_unknown_action_or_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    done = run_command("dataset", "chek", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 2 and "imf-ray dataset check DIR" in done.stderr
    done = run_command("dataset", "check", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 2 and "has no episodes" in done.stderr

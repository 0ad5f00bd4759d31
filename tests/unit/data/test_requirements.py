"""A wrong option is named with the value that fits; one odd file is named as such."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from imf_ray.data.hdf5.check import check_episode
from imf_ray.data.requirements import (
    Mismatch,
    find_collection_mismatches,
    find_mismatches,
    require_fitting_options,
)
from imf_ray.errors import UserError
from imf_ray.schema import Config
from imf_ray.storage import AnyPath
from testing_support.episode_fuzzer import OBJECT, SIZE, write_ours
from tests.helpers.configs import tiny_config
from tests.helpers.episode_files import HEIGHT, LENGTH, WIDTH, write_act, write_roboimi

ACT_OPTIONS = ("data.camera_names=[top]", "agent.state_dim=14", "agent.action_dim=14")
OUR_OPTIONS = ("data.camera_names=[r_vis,top]", f"task.image_size={SIZE}")


def _mismatches(folder: Path, config: Config) -> dict[AnyPath, list[Mismatch]]:
    paths = sorted(folder.iterdir())
    return {path: find_mismatches(check_episode(path), config) for path in paths}


def _require_fitting(folder: Path, *overrides: str) -> None:
    crop = "agent.vision_backbone.crop_size=null"
    config = tiny_config(folder, crop, *overrides)
    require_fitting_options(folder, _mismatches(folder, config))


@pytest.fixture
def act(tmp_path: Path) -> Path:
    """Two episodes in ACT's format with square images."""
    for number in range(2):
        path = tmp_path / f"episode_{number}.hdf5"
        write_act(path)
        with h5py.File(path, "r+") as file:
            frames = file["observations/images/top"][:, :, :HEIGHT]
            del file["observations/images/top"]
            file["observations/images/top"] = frames
            depth = np.full((LENGTH, 8, 8), number, np.uint16)  # the message has its range
            file["observations/images/depth"] = depth
            file.attrs["task"] = "pick up the cube"
            file.attrs["seed"] = "none"
    return tmp_path


@pytest.mark.parametrize(
    ("overrides", "fitting"),
    [
        ([], []),
        (["agent.action_dim=16"], ["agent.action_dim=14"]),
        (
            ["agent.state_dim=16", "agent.action_dim=7"],
            ["agent.state_dim=14", "agent.action_dim=14"],
        ),
        (["data.camera_names=[front]"], ["data.camera_names=[top]"]),
        (["data.camera_names=[front,top]"], ["data.camera_names=[top]"]),
        (["data.camera_names=[top,depth]"], ["data.camera_names=[top]"]),
        (
            ["data.camera_names=[top,front]", "agent.camera_names=[front]"],
            ["agent.camera_names=[top]"],
        ),
        (["data.camera_names=[top,front]", "agent.camera_names=[top]"], []),
        (["data.camera_names=[front]", "agent.camera_names=[]"], []),
        (["task.image_size=48"], [f"task.image_size={HEIGHT}", "data.resize_images=true"]),
        (["task.image_size=48", "data.resize_images=true"], []),
        (["task.action_space=ee"], ["task.action_space=joint"]),
        (["agent.aux_pose_objects=[cube]"], ["agent.aux_pose_objects=[]"]),
        (["task.env_id=imf_ray/SimAirInsert-v0", "task.control_hz=20"], []),  # not recorded here
    ],
)
def test_the_message_names_the_values_that_fit(
    act: Path, overrides: list[str], fitting: list[str]
) -> None:
    options = [*ACT_OPTIONS, f"task.image_size={HEIGHT}", *overrides]
    if not fitting:
        _require_fitting(act, *options)
        return
    with pytest.raises(UserError) as error:
        _require_fitting(act, *options)
    message = str(error.value)
    assert all(option in message for option in fitting) and "episode_0" not in message
    _require_fitting(act, *options, *shlex.split(message.rpartition("Set ")[2].rstrip(".")))


@pytest.mark.parametrize(
    ("override", "fitting"),
    [
        ("task.control_hz=25", "task.control_hz=50"),
        ("task.env_id=imf_ray/SimAirInsert-v0", "task.env_id=imf_ray/SimTransfer-v0"),
        ("task.shadows=true", "task.shadows=false"),
        ("task.multisampling=true", "task.multisampling=false"),
        ("agent.privileged_pose_objects=[ring]", "agent.privileged_pose_objects=[]"),
        (f"agent.aux_pose_objects=[ring,{OBJECT}]", f"agent.aux_pose_objects=[{OBJECT}]"),
        ("task.action_space=ee", None),
    ],
)
def test_our_own_recordings_bind_the_options_of_the_task(
    tmp_path: Path, override: str, fitting: str | None
) -> None:
    write_ours(tmp_path / "episode_0.hdf5")
    if fitting is None:
        _require_fitting(tmp_path, *OUR_OPTIONS, override)
        return
    with pytest.raises(UserError, match="Set ") as error:
        _require_fitting(tmp_path, *OUR_OPTIONS, override)
    assert fitting in str(error.value)


def test_a_control_rate_binds_whoever_recorded_it(act: Path) -> None:
    for path in act.iterdir():
        with h5py.File(path, "r+") as file:
            file.attrs["control_hz"] = 30
            file.attrs["shadows_"] = True
    with pytest.raises(UserError, match=r"Set task\.control_hz=30"):
        _require_fitting(act, *ACT_OPTIONS, f"task.image_size={HEIGHT}")


@pytest.mark.parametrize(
    ("recorded", "fitting"),
    [
        (25.0, None),
        (np.array([25]), None),
        ("25", None),
        (30.0, "task.control_hz=30"),
        (np.array([30.0]), "task.control_hz=30"),
        ("30", "task.control_hz=30"),
        *((bad, "") for bad in (np.nan, np.inf, 29.97, 0, -1, True, "fast", np.array([30, 30]))),
    ],
)
def test_a_control_rate_is_a_whole_number(act: Path, recorded: Any, fitting: str | None) -> None:
    for path in act.iterdir():
        with h5py.File(path, "r+") as file:
            file.attrs["control_hz"] = recorded
    options = (*ACT_OPTIONS, f"task.image_size={HEIGHT}", "task.control_hz=25")
    if fitting is None:
        _require_fitting(act, *options)
        return
    with pytest.raises(UserError, match="control_hz") as error:
        _require_fitting(act, *options)
    expected = f"Set {fitting}." if fitting else "control_hz="
    assert expected in str(error.value) and ("Set " in str(error.value)) == bool(fitting)


@pytest.mark.parametrize("recorded", ["joint_position", 14, "ee_pose", "Joint", ["joint"]])
def test_the_attribute_of_another_program_does_not_exclude_its_files(
    act: Path, recorded: Any
) -> None:
    for path in act.iterdir():
        with h5py.File(path, "r+") as file:
            file.attrs["action_space"] = recorded
    options = (*ACT_OPTIONS, f"task.image_size={HEIGHT}")
    if recorded in ("Joint", ["joint"]):
        _require_fitting(act, *options)
        return
    with pytest.raises(UserError, match=r"Set data\.format=act\."):
        _require_fitting(act, *options)


def test_inexact_end_effector_targets_are_not_offered_as_joint_targets(tmp_path: Path) -> None:
    path = tmp_path / "episode_0.hdf5"
    write_roboimi(path)
    with h5py.File(path, "r+") as file:
        file["action"][2, 3:7] *= 1.002
    assert check_episode(path).format == "act"
    options = ("data.camera_names=[top]", "agent.state_dim=16", "data.resize_images=true")
    with pytest.raises(UserError, match=r"Set data\.format=roboimi\."):
        _require_fitting(tmp_path, *options, "task.action_space=ee")
    config = tiny_config(tmp_path, *options, "task.action_space=ee")
    assert find_mismatches(check_episode(path, "roboimi"), config) == []


def test_images_of_different_sizes_must_be_resized(act: Path) -> None:
    with h5py.File(act / "episode_1.hdf5", "r+") as file:
        del file["observations/images/top"]
        file["observations/images/top"] = np.zeros((LENGTH, 8, 8, 3), np.uint8)
    options = (*ACT_OPTIONS, "task.image_size=64")
    with pytest.raises(UserError, match=r"Set data\.resize_images=true\."):
        _require_fitting(act, *options)
    _require_fitting(act, *options, "data.resize_images=true")


def test_the_action_space_of_roboimi(tmp_path: Path) -> None:
    write_roboimi(tmp_path / "episode_0.hdf5")
    options = ("data.camera_names=[top]", "agent.state_dim=16", "data.resize_images=true")
    with pytest.raises(UserError, match=r"Set task\.action_space=ee"):
        _require_fitting(tmp_path, *options)
    _require_fitting(tmp_path, *options, "task.action_space=ee")


def test_images_that_are_not_square_must_be_resized(tmp_path: Path) -> None:
    write_act(tmp_path / "episode_0.hdf5")
    for size in (HEIGHT, WIDTH):
        with pytest.raises(UserError, match=r"Set data\.resize_images=true"):
            _require_fitting(tmp_path, *ACT_OPTIONS, f"task.image_size={size}")


def test_one_odd_file_is_no_wrong_option(act: Path) -> None:
    with h5py.File(act / "episode_1.hdf5", "r+") as file:
        action = file["action"][:]
        del file["action"]
        file["action"] = action[:, :7]
    options = [*ACT_OPTIONS, f"task.image_size={HEIGHT}"]
    _require_fitting(act, *options)
    fitting, (mismatch,) = _mismatches(act, tiny_config(act, *options)).values()
    assert fitting == [] and mismatch.options == ("agent.action_dim=7",)


def test_the_damage_of_a_single_file_is_no_wrong_option(tmp_path: Path) -> None:
    write_act(tmp_path / "episode_0.hdf5")
    with h5py.File(tmp_path / "episode_0.hdf5", "r+") as file:
        file["action"][3, 2] = np.nan
        file["observations/images/front"] = file["observations/images/top"][:]
        file["observations/images/side"] = np.zeros((LENGTH, 9), np.uint8)  # no images
    options = (*ACT_OPTIONS, "data.camera_names=[side]", "data.resize_images=true")
    _require_fitting(tmp_path, *options)
    (mismatches,) = _mismatches(tmp_path, tiny_config(tmp_path, *options)).values()
    assert len(mismatches) == 2


def test_files_that_no_option_fits_are_not_a_matter_of_one_file(act: Path) -> None:
    for path in act.iterdir():
        with h5py.File(path, "r+") as file:
            file.move("observations/qpos", "observations/state")
    with pytest.raises(UserError, match=r"None of .*/observations/state"):
        _require_fitting(act, *ACT_OPTIONS, f"task.image_size={HEIGHT}")


def test_collecting_needs_the_options_of_the_recording_but_none_of_an_agent(tmp_path: Path) -> None:
    write_ours(tmp_path / "episode_0.hdf5")
    info = check_episode(tmp_path / "episode_0.hdf5")
    options = ("agent.state_dim=7", "agent.vision_backbone.crop_size=null")
    config = tiny_config(tmp_path, *OUR_OPTIONS, *options)
    assert find_collection_mismatches(info, config) == []
    config = tiny_config(tmp_path, *options, "data.camera_names=[front]", "task.image_size=16")
    (cameras,) = find_collection_mismatches(info, config)
    assert cameras.options == ("data.camera_names=[r_vis, top]",)

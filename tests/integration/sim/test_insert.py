"""The insertion task: the geometry of the hole, start poses, and stages."""

import mujoco
import numpy as np
import pytest

from imf_ray.sim.bimanual import LIFT_CLEARANCE
from imf_ray.sim.diana import LEFT_DOWN, READY_JOINTS, RIGHT_DOWN
from imf_ray.sim.scripted_expert import rotate, tool_pose
from imf_ray.sim.tasks.insert import (
    BAR_AREA,
    BAR_HALF_SIZE,
    GRIP_OFFSET,
    HOLE_HALF_WIDTH,
    MAX_YAW,
    RING_AREA,
    RING_HALF_SIZE,
    SimAirInsertEnv,
    insertion_fraction,
)

HALF_LENGTH, HALF_THICKNESS = BAR_HALF_SIZE[0], RING_HALF_SIZE[2]
AIR = 0.25  # m, a height at which the hands can meet
FACING = (np.sqrt(0.5), 0.0, -np.sqrt(0.5), 0.0)  # wxyz of a ring whose hole points along x
STRAIGHT = (1.0, 0.0, 0.0, 0.0)
HANDS_OPEN = np.column_stack([READY_JOINTS, np.ones(2)])  # (2, 8)
RING = tool_pose((-0.05, 0.0, AIR), FACING)


def bar_with_tip_at(x, y=0.0, z=AIR, yaw=0.0):
    """Return the pose of a bar with its tip at (x, y, z) that points to -x, rotated by `yaw`."""
    direction = np.array([np.cos(yaw), np.sin(yaw), 0.0])
    rotation = (np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2))
    return tool_pose(np.array([x, y, z]) + HALF_LENGTH * direction, rotation)


NEAR_FACE, FAR_FACE = RING[0] + HALF_THICKNESS, RING[0] - HALF_THICKNESS
THROUGH = bar_with_tip_at(FAR_FACE - 0.02)
HALFWAY = bar_with_tip_at(RING[0])
IN_FRONT = bar_with_tip_at(NEAR_FACE + 0.002)
OUTSIDE = bar_with_tip_at(FAR_FACE - 0.02, y=RING_HALF_SIZE[1] + BAR_HALF_SIZE[1] + 0.002)


# The geometry of the hole ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bar", "fraction"),
    [
        (THROUGH, 1.0),
        (bar_with_tip_at(FAR_FACE - 0.02, yaw=0.2), 1.0),
        (
            bar_with_tip_at(NEAR_FACE - 2 * HALF_LENGTH + 0.001),
            1.0,
        ),  # its rear end is still before the ring
        (bar_with_tip_at(FAR_FACE - 2 * HALF_LENGTH - 0.001), 0.0),  # it has left the hole
        (HALFWAY, 0.5),
        (IN_FRONT, 0.0),
        (OUTSIDE, 0.0),
        (bar_with_tip_at(FAR_FACE - 0.02, y=HOLE_HALF_WIDTH - 0.001), 1.0),
        (bar_with_tip_at(FAR_FACE - 0.02, y=HOLE_HALF_WIDTH + 0.001), 0.0),
        (bar_with_tip_at(FAR_FACE, y=-0.015, yaw=1.2), 0.0),  # it would enter through a wall
        (tool_pose(RING[:3], FACING), 0.0),  # it lies in the plane of the ring, across the hole
    ],
)
def test_the_insertion_fraction_is_the_part_of_the_hole_that_the_bar_fills(bar, fraction):
    assert insertion_fraction(RING, bar) == pytest.approx(fraction, abs=1e-9)
    reversed_bar = tool_pose(bar[:3], rotate(bar[3:], by=(0.0, 0.0, 0.0, 1.0)))
    assert insertion_fraction(RING, reversed_bar) == pytest.approx(fraction, abs=1e-9)


def test_the_fraction_depends_only_on_relative_poses():
    rotation = np.array([0.5, -0.1, 0.7, 0.4])
    rotation /= np.linalg.norm(rotation)

    def transformed(pose):
        position = np.empty(3)
        mujoco.mju_rotVecQuat(position, pose[:3], rotation)
        return tool_pose(np.add(position, (0.3, -0.2, 0.1)), rotate(pose[3:], by=rotation))

    for bar in (THROUGH, HALFWAY, IN_FRONT, OUTSIDE):
        expected = insertion_fraction(RING, bar)
        fraction = insertion_fraction(transformed(RING), transformed(bar))
        assert fraction == pytest.approx(expected, abs=1e-9)


# Episodes ----------------------------------------------------------------------------------------


def test_objects_start_flat_and_at_all_positions_of_their_areas(make_env):
    env = make_env(SimAirInsertEnv)
    starts = [env.reset(seed=seed)[1]["poses"] for seed in range(200)]
    for name, area, height in (
        ("ring", RING_AREA, HALF_THICKNESS),
        ("bar", BAR_AREA, BAR_HALF_SIZE[2]),
    ):
        poses = np.stack([start[name] for start in starts])
        low, high = np.transpose([*area, (-MAX_YAW, MAX_YAW)])
        drawn = np.column_stack([poses[:, :2], 2 * np.arcsin(poses[:, 6])])
        assert (drawn >= low).all() and (drawn <= high).all()
        assert (np.ptp(drawn, axis=0) > 0.9 * (high - low)).all()
        assert (poses[:, 2] == height).all() and not poses[:, 4:6].any()


def test_objects_rest_at_their_start_poses(make_env):
    env = make_env(SimAirInsertEnv)
    _, info = env.reset(seed=0)
    start = info["poses"]
    for _ in range(50):
        *_, info = env.step(HANDS_OPEN.ravel())
    for name in ("ring", "bar"):
        assert np.allclose(info["poses"][name], start[name], atol=1e-3)


@pytest.mark.parametrize("camera", ["r_vis", "top", "front"])
def test_both_objects_are_visible_at_the_start(make_env, camera):
    env = make_env(SimAirInsertEnv, camera_names=[camera])
    for seed in range(5):
        _, info = env.reset(seed=seed)
        original = env.render_cameras()[camera]
        for name in ("ring", "bar"):
            hidden = {name: [0.0, 0.0, -5.0, *STRAIGHT]}  # under the floor
            env.reset(options={"poses": info["poses"] | hidden})
            assert (original != env.render_cameras()[camera]).any(axis=-1).sum() >= 9


# Stages ------------------------------------------------------------------------------------------


def stage_when_grasped(env, ring, bar, holding=("left", "right")):
    """Return the stage of a state in which the hands `holding` have grasped their objects.

    Gravity is off, so that nothing moves.
    """
    env.model.opt.gravity[:] = 0
    env.reset(seed=0, options={"poses": {"ring": ring, "bar": bar}})
    hands = {
        "left": (ring, LEFT_DOWN, RING_HALF_SIZE[0]),
        "right": (bar, RIGHT_DOWN, BAR_HALF_SIZE[1]),
    }
    action = HANDS_OPEN.copy()
    for index, (side, (pose, orientation, half_width)) in enumerate(hands.items()):
        if side in holding:
            offset = np.empty(3)
            mujoco.mju_rotVecQuat(offset, np.array([0.0, 0.0, GRIP_OFFSET]), pose[3:])
            tool = tool_pose(pose[:3] + offset, rotate(orientation, by=pose[3:]))
            joints = env.make_arms()[index].solve(tool, READY_JOINTS[index])
            action[index] = [*joints, 0.0]
            for i, angle in enumerate(joints, start=1):
                env.data.joint(f"{side}_joint{i}").qpos = angle
            for i in (1, 2):
                env.data.joint(f"{side}_finger{i}").qpos = half_width
    mujoco.mj_forward(env.model, env.data)
    _, reward, *_, info = env.step(action.ravel())
    for name, pose in (("ring", ring), ("bar", bar)):
        assert np.allclose(info["poses"][name][:3], pose[:3], atol=2.5e-3)
    assert reward == info["stage"]
    return info["stage"]


@pytest.mark.parametrize(
    ("bar", "stage"),
    [
        (IN_FRONT, 3),
        (OUTSIDE, 3),
        (bar_with_tip_at(NEAR_FACE - 0.003), 4),
        (HALFWAY, 4),
        (bar_with_tip_at(FAR_FACE - 0.003), 5),
        (THROUGH, 5),
    ],
)
def test_stages_of_objects_grasped_in_the_air(make_env, bar, stage):
    assert stage_when_grasped(make_env(SimAirInsertEnv), RING, bar) == stage


@pytest.mark.parametrize(
    ("holding", "stage"), [(("left",), 1), (("right",), 1), ((), 0), (("left", "right"), 5)]
)
def test_an_inserted_bar_counts_only_if_both_objects_are_grasped(make_env, holding, stage):
    assert stage_when_grasped(make_env(SimAirInsertEnv), RING, THROUGH, holding) == stage


def test_an_inserted_bar_does_not_count_on_the_table(make_env):
    height = RING_HALF_SIZE[0]
    ring = tool_pose((RING[0], 0.0, height), FACING)
    bar = bar_with_tip_at(FAR_FACE - 0.02, z=height)
    assert insertion_fraction(ring, bar) == 1
    assert stage_when_grasped(make_env(SimAirInsertEnv), ring, bar, holding=("right",)) == 1


@pytest.mark.parametrize(
    ("ring_above", "bar_above", "stage"),
    [(0, 0, 2), (AIR, 0, 2), (0, AIR, 2), (0.9 * LIFT_CLEARANCE, AIR, 2), (AIR, AIR, 3)],
)
def test_stage_3_needs_both_objects_off_the_table(make_env, ring_above, bar_above, stage):
    ring = tool_pose((-0.15, 0.0, HALF_THICKNESS + ring_above), STRAIGHT)
    bar = tool_pose((0.15, 0.0, BAR_HALF_SIZE[2] + bar_above), STRAIGHT)
    assert stage_when_grasped(make_env(SimAirInsertEnv), ring, bar) == stage


def test_success_stays_after_the_objects_are_released(make_env):
    env = make_env(SimAirInsertEnv)
    assert stage_when_grasped(env, RING, THROUGH) == 5
    open_hands = env.data.ctrl.reshape(2, 8).copy()
    open_hands[:, -1] = 1.0
    for _ in range(50):
        *_, info = env.step(open_hands.ravel())
    assert info["stage"] == 0 and info["max_stage"] == 5 and info["success"] is True

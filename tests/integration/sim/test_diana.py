"""Kinematics of the Diana arm: known poses, and inverse against forward kinematics."""

import mujoco
import numpy as np
import pytest

from imf_ray.sim.diana import READY_JOINTS, SIDES, arm_kinematics
from imf_ray.sim.scene import BASE_DISTANCE
from imf_ray.sim.tasks.transfer import SimTransferEnv

DOWN = {"left": (0.0, 1.0, 0.0, 0.0), "right": (0.0, 0.0, 1.0, 0.0)}


@pytest.fixture(scope="module")
def arms():
    model = mujoco.MjModel.from_xml_string(SimTransferEnv.scene)
    return {side: arm_kinematics(model, side) for side in SIDES}


def test_the_tool_pose_at_home_is_the_manufacturers(arms):
    home = [0, -np.pi / 4, 0, np.pi / 2, 0, np.pi / 4, 0]
    flange, tool_length = (0.836, 0.006, 0.369), 0.15
    tool = np.add(arms["left"].tool_pose(home)[:3], (BASE_DISTANCE, 0, 0))
    assert np.allclose(tool, np.add(flange, (tool_length, 0, 0)), atol=1e-3)


def test_the_arms_differ_by_a_half_turn(arms):
    joints = [0.3, -0.2, 0.1, 1.5, -0.4, 0.2, 0.5]
    left, right = (arms[side].tool_pose(joints)[:3] for side in SIDES)
    assert np.allclose(left * [-1, -1, 1], right)


def test_ik_reaches_random_poses_near_the_ready_pose(arms):
    rng = np.random.default_rng(0)
    for side, ready in zip(SIDES, READY_JOINTS, strict=True):
        arm = arms[side]
        for _ in range(50):
            goal = np.clip(ready + rng.uniform(-0.25, 0.25, 7), arm.lower, arm.upper)
            pose = arm.tool_pose(goal)
            assert_reaches(arm, arm.solve(pose, ready), pose)


def test_ik_reaches_the_whole_cube_area_from_above(arms):
    rng = np.random.default_rng(1)
    for _ in range(50):
        pose = [*rng.uniform((0.05, -0.1, 0.02), (0.25, 0.1, 0.2)), *DOWN["right"]]
        assert_reaches(arms["right"], arms["right"].solve(pose, READY_JOINTS[1]), np.array(pose))


def test_ik_out_of_reach_stays_within_the_joint_ranges(arms):
    arm = arms["left"]
    joints = arm.solve([2.0, 0.0, 0.5, *DOWN["left"]], READY_JOINTS[0])
    assert (joints >= arm.lower).all() and (joints <= arm.upper).all()


def assert_reaches(arm, joints, pose):
    reached = arm.tool_pose(joints)
    assert (joints >= arm.lower).all() and (joints <= arm.upper).all()
    assert np.abs(reached[:3] - pose[:3]).max() < 1e-4
    assert abs(reached[3:] @ pose[3:]) > 1 - 1e-6

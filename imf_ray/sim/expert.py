"""Scripted expert of the transfer task: waypoints of both tools, interpolated and solved by IK.

The right arm picks the cube up from above and brings it to the meeting point, still pointing down.
The left arm comes in level, its fingers above and below the cube, between the right one's fingers:
the grippers meet at right angles and neither's fingers cross the other's.
"""

from typing import NamedTuple

import mujoco
import numpy as np
from numpy.typing import ArrayLike, NDArray

from imf_ray.sim.bimanual import BimanualEnv
from imf_ray.sim.diana import READY_JOINTS, SIDES, ArmKinematics, Array

MEETING_POINT: Array = np.array([0.0, 0.0, 0.25])  # m
HOVER: Array = np.array([0.0, 0.0, 0.12])  # m, right tool over the cube before it goes down
APPROACH: Array = np.array([-0.14, 0.0, 0.0])  # m, left tool beside the cube before it closes in
RIGHT_RETREAT: Array = np.array([0.26, 0.0, 0.10])  # m, from the meeting point
LEFT_RETREAT: Array = np.array([-0.15, 0.0, 0.05])  # m, from the meeting point

OPEN, CLOSED = 1.0, 0.0

# Tool orientations (wxyz): z is the direction of the fingers, y the one they open along.
RIGHT_DOWN = (0.0, 0.0, 1.0, 0.0)
LEFT_LEVEL = (0.5, 0.5, 0.5, 0.5)


class Waypoint(NamedTuple):
    """Where one tool is at the end of control step `step`."""

    step: int
    pose: Array  # (7,) xyz in m, quaternion wxyz, world frame
    gripper: float  # 0 closed to 1 open


class TransferExpert:
    """Plays one episode in a freshly reset environment, as a function of the cube's pose.

    It reads the environment only in `reset` and does its kinematics on data of its own. The cube
    must lie flat within the area, turned no further than the environment turns it.
    """

    def __init__(self, env: BimanualEnv) -> None:
        self._env = env
        self._arms = [ArmKinematics(env.model, side) for side in SIDES]
        self._plans: list[list[Waypoint]] = []
        self._joints: list[Array] = []
        self._step = 0

    def reset(self) -> None:
        """Plans the episode from the cube's pose; call it right after the environment's reset."""
        left_start, right_start = self._env.ee_poses()
        self._plans = [
            _left_plan(left_start),
            _right_plan(right_start, self._env.object_poses()["cube"]),
        ]
        self._joints = list(READY_JOINTS)
        self._step = 0

    def act(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Actions of the next control step, in joint and in end-effector space, each (16,).

        After the last waypoint the arms hold still.
        """
        self._step += 1
        targets = [_interpolate(plan, self._step) for plan in self._plans]
        self._joints = [
            arm.solve(pose, joints)
            for arm, (pose, _), joints in zip(self._arms, targets, self._joints, strict=True)
        ]
        grippers = [gripper for _, gripper in targets]
        joint_action = np.column_stack([self._joints, grippers])
        ee_action = np.column_stack([[pose for pose, _ in targets], grippers])
        return joint_action.ravel().astype(np.float32), ee_action.ravel().astype(np.float32)


def _right_plan(start: Array, cube_pose: Array) -> list[Waypoint]:
    cube, cube_turn = cube_pose[:3], cube_pose[3:]
    grasp = np.empty(4)
    mujoco.mju_mulQuat(grasp, cube_turn, np.array(RIGHT_DOWN))
    meeting = _pose(MEETING_POINT, RIGHT_DOWN)
    return [
        Waypoint(0, start, OPEN),
        Waypoint(90, _pose(cube + HOVER, grasp), OPEN),
        Waypoint(130, _pose(cube, grasp), OPEN),
        Waypoint(170, _pose(cube, grasp), CLOSED),
        Waypoint(220, meeting, CLOSED),
        Waypoint(300, meeting, CLOSED),
        Waypoint(320, meeting, OPEN),
        Waypoint(380, _pose(MEETING_POINT + RIGHT_RETREAT, RIGHT_DOWN), OPEN),
    ]


def _left_plan(start: Array) -> list[Waypoint]:
    approach = _pose(MEETING_POINT + APPROACH, LEFT_LEVEL)
    meeting = _pose(MEETING_POINT, LEFT_LEVEL)
    return [
        Waypoint(0, start, OPEN),
        Waypoint(100, approach, OPEN),
        Waypoint(220, approach, OPEN),
        Waypoint(260, meeting, OPEN),
        Waypoint(300, meeting, CLOSED),
        Waypoint(330, meeting, CLOSED),
        Waypoint(390, _pose(MEETING_POINT + LEFT_RETREAT, LEFT_LEVEL), CLOSED),
    ]


def _pose(position: ArrayLike, quaternion: ArrayLike) -> Array:
    return np.concatenate([position, quaternion])


def _interpolate(plan: list[Waypoint], step: int) -> tuple[Array, float]:
    """Pose (7,) and gripper at `step`: minimum-jerk in time, slerp in orientation."""
    if step >= plan[-1].step:
        return plan[-1].pose, plan[-1].gripper
    after = next(i for i, waypoint in enumerate(plan) if waypoint.step > step)
    start, end = plan[after - 1], plan[after]
    time = (step - start.step) / (end.step - start.step)
    share = time**3 * (10 - 15 * time + 6 * time**2)
    rotation = np.empty(3)
    quaternion = start.pose[3:].copy()
    mujoco.mju_subQuat(rotation, end.pose[3:], quaternion)
    mujoco.mju_quatIntegrate(quaternion, rotation, share)
    position = start.pose[:3] + share * (end.pose[:3] - start.pose[:3])
    return _pose(position, quaternion), start.gripper + share * (end.gripper - start.gripper)

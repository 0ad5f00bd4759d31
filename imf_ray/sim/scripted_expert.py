"""Base class of scripted experts: each tool follows waypoints by inverse kinematics (IK)."""

from abc import ABC, abstractmethod
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from imf_ray.sim.array_types import FloatArray
from imf_ray.sim.headless import mujoco
from imf_ray.sim.kinematics import ArmKinematics

OPEN, CLOSED = 1.0, 0.0
"""Gripper openings."""


class Waypoint(NamedTuple):
    """Pose and gripper opening of one tool at the end of environment step `step`."""

    step: int
    pose: FloatArray  # (7,) xyz in m, quaternion wxyz, world frame
    gripper: float  # 0 closed to 1 open


class WaypointEnv(Protocol):
    """The methods of an env that `WaypointExpert` uses."""

    def make_arms(self) -> list[ArmKinematics]:
        """Make the kinematics of each arm. The posture is the joint angles after a reset."""

    def ee_poses(self) -> FloatArray:
        """Return tool poses (arms, 7): xyz in m and quaternion wxyz in the world frame."""

    def object_poses(self) -> dict[str, FloatArray]:
        """Return poses (7,) by object: xyz in m and quaternion wxyz in the world frame."""


class WaypointExpert(ABC):
    """Plays one episode. All actions are a function of the object poses after the env's reset.

    The expert reads the env only in `reset`. Its kinematics do not change the simulation.
    """

    def __init__(self, env: WaypointEnv) -> None:
        self._env = env
        self._arms = env.make_arms()
        self._plans: list[list[Waypoint]] = []
        self._joints: list[FloatArray] = []
        self._step = 0

    @abstractmethod
    def _plan(self, tools: FloatArray, objects: dict[str, FloatArray]) -> list[list[Waypoint]]:
        """Return the waypoints of each tool.

        `tools` (arms, 7) and `objects` {name: (7,)} are the poses after the env's reset. The first
        waypoint of each tool must be its pose in `tools`, at step 0.
        """

    def reset(self) -> None:
        """Plan the episode. Call this method right after the env's `reset`."""
        self._plans = self._plan(self._env.ee_poses(), self._env.object_poses())
        self._joints = [arm.posture for arm in self._arms]
        self._step = 0

    def act(self) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Return the next action in joint space and in end-effector space, arm by arm.

        After the last waypoint, the arms stay where they are.
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


def tool_pose(position: ArrayLike, quaternion: ArrayLike) -> FloatArray:
    """Return the pose (7,) with xyz `position` (3,) in m and `quaternion` wxyz (4,)."""
    return np.concatenate([position, quaternion])


def rotate(quaternion: ArrayLike, by: ArrayLike) -> FloatArray:
    """Rotate `quaternion` (4,) by the quaternion `by` (4,) in the world frame. Both are wxyz."""
    product = np.empty(4)
    mujoco.mju_mulQuat(product, np.asarray(by, np.float64), np.asarray(quaternion, np.float64))
    return product


def _interpolate(plan: list[Waypoint], step: int) -> tuple[FloatArray, float]:
    """Return the pose (7,) and gripper opening at `step`.

    The time course between two waypoints has minimum jerk. Orientations are interpolated by slerp.
    """
    if step >= plan[-1].step:
        return plan[-1].pose, plan[-1].gripper
    next_index = next(i for i, waypoint in enumerate(plan) if waypoint.step > step)
    start, end = plan[next_index - 1], plan[next_index]
    time = (step - start.step) / (end.step - start.step)
    alpha = time**3 * (10 - 15 * time + 6 * time**2)
    rotation = np.empty(3)
    quaternion = start.pose[3:].copy()
    mujoco.mju_subQuat(rotation, end.pose[3:], quaternion)
    mujoco.mju_quatIntegrate(quaternion, rotation, alpha)
    position = start.pose[:3] + alpha * (end.pose[:3] - start.pose[:3])
    return tool_pose(position, quaternion), start.gripper + alpha * (end.gripper - start.gripper)

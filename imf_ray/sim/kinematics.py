"""Forward and inverse kinematics of a robot arm in any MuJoCo model."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from imf_ray.sim.array_types import FloatArray
from imf_ray.sim.headless import mujoco


class ArmKinematics:
    """Forward and inverse kinematics of one arm.

    They are deterministic and use a separate `MjData`, so they do not change the simulation. A pose
    (7,) consists of xyz in m and the quaternion wxyz of the tool in the world frame.
    """

    DAMPING = 1e-3
    """Damping of the least squares. Its square is added to the diagonal of J J^T."""
    POSTURE_GAIN = 0.1
    """Fraction of the way to the posture that the joints move per iteration, in the null space."""
    MAX_POSITION_STEP = 0.1
    """Maximum translation of the tool per iteration, in m."""
    MAX_ROTATION_STEP = 0.5
    """Maximum rotation of the tool per iteration, in rad."""
    TOLERANCE = 1e-5
    """Error in m and rad below which the iteration stops."""
    MAX_ITERATIONS = 60

    def __init__(
        self, model: mujoco.MjModel, tool: str, joints: Sequence[str], posture: ArrayLike
    ) -> None:
        """Set up the kinematics of one arm.

        Args:
            model: the compiled model. It is not changed.
            tool: name of the site that is the tool.
            joints: names of the arm's J joints, from the base to the tool.
            posture: preferred joint angles (J,) in rad. They choose among the solutions if several
                joint angles bring the tool to the same pose.
        """
        self._model = model
        self._data = mujoco.MjData(model)
        self._site = model.site(tool).id
        self.posture: FloatArray = np.asarray(posture, dtype=np.float64)
        indices = [model.joint(name).id for name in joints]
        self._positions = model.jnt_qposadr[indices]
        self._velocities = model.jnt_dofadr[indices]
        self.lower, self.upper = model.jnt_range[indices].T  # rad, each (J,)

    def tool_pose(self, joints: ArrayLike) -> FloatArray:
        """Return the tool pose (7,) at `joints` (J,) in rad."""
        self._data.qpos[self._positions] = joints
        mujoco.mj_kinematics(self._model, self._data)
        return site_pose(self._data, self._site)

    def solve(self, pose: ArrayLike, start: ArrayLike) -> FloatArray:
        """Return joint angles (J,) in rad, within their ranges, that bring the tool to `pose` (7,).

        The method is damped least squares from the joint angles `start` (J,), with a pull towards
        the posture in the null space (Chiaverini, 1997). If the pose is out of reach, the result is
        that of the last iteration. The quaternion must have unit length.
        """
        target = np.asarray(pose, dtype=np.float64)
        joints = np.clip(start, self.lower, self.upper)
        jacobian = np.zeros((6, self._model.nv))
        damping = self.DAMPING**2 * np.eye(6)
        for _ in range(self.MAX_ITERATIONS):
            error = _pose_error(target, self.tool_pose(joints))
            if np.abs(error).max() < self.TOLERANCE:
                break
            error[:3] = _limit(error[:3], self.MAX_POSITION_STEP)
            error[3:] = _limit(error[3:], self.MAX_ROTATION_STEP)
            mujoco.mj_comPos(self._model, self._data)
            mujoco.mj_jacSite(self._model, self._data, jacobian[:3], jacobian[3:], self._site)
            arm = jacobian[:, self._velocities]
            pull = self.POSTURE_GAIN * (self.posture - joints)
            task = np.linalg.solve(arm @ arm.T + damping, error - arm @ pull)
            joints = np.clip(joints + pull + arm.T @ task, self.lower, self.upper)
        return joints


def site_pose(data: mujoco.MjData, site: int) -> FloatArray:
    """Return the pose (7,) of a site: xyz in m and quaternion wxyz, world frame."""
    pose = np.empty(7)
    pose[:3] = data.site_xpos[site]
    mujoco.mju_mat2Quat(pose[3:], data.site_xmat[site])
    return pose


def _pose_error(target: FloatArray, current: FloatArray) -> FloatArray:
    """Return the twist (6,) from `current` to `target`, in m and rad, in the world frame."""
    error = np.empty(6)
    inverse, difference = np.empty(4), np.empty(4)
    np.subtract(target[:3], current[:3], out=error[:3])
    mujoco.mju_negQuat(inverse, current[3:])
    mujoco.mju_mulQuat(difference, target[3:], inverse)
    mujoco.mju_quat2Vel(error[3:], difference, 1.0)
    return error


def _limit(vector: FloatArray, length: float) -> FloatArray:
    """Shorten a vector to at most `length`."""
    norm = np.linalg.norm(vector)
    return vector if norm <= length else vector * (length / norm)

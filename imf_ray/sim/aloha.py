"""gym-aloha's environments as worlds: pictures only where they are asked, actions in their units.

gym-aloha renders three pictures of 480 x 640 inside each step, shows one of them, and ignores the
size that was asked for; it declares actions in Box(-1, 1) although they are joint angles in rad.
It needs an older MuJoCo than the rest (the extra `aloha`).
"""

import mujoco
import numpy as np
from gymnasium import spaces

from imf_ray.sim.base import OVERVIEW_SIZE, FloatArray
from imf_ray.sim.gym_adapter import AdaptedEnv
from imf_ray.sim.kinematics import ArmKinematics, site_pose
from imf_ray.sim.rendering import CameraRenderer, Image, project_to_pixels

SIDES = ("left", "right")
JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
START_JOINTS = (0.0, -0.96, 1.16, 0.0, -0.3, 0.0)  # rad, of either arm
GRIPPER_RANGE = (0.0, 1.0)
OVERVIEW_CAMERA = "angle"


class AlohaEnv(AdaptedEnv):
    """gym-aloha's transfer of a cube, made with `obs_type="pixels_agent_pos"`.

    The sources of cameras are the cameras of its model: `top`, `angle`, `front_close`,
    `left_pillar`, `right_pillar`, `left_wrist`, `right_wrist`.

    Action (14,): left arm first, each arm 6 absolute joint targets in rad and the gripper from 0
    (closed) to 1 (open). `agent_pos` (14,) is the state in the same units.
    """

    def _on_env_created(self) -> None:
        simulation = self._env.unwrapped._env  # type: ignore[attr-defined]  # dm_control's
        self.model: mujoco.MjModel = simulation.physics.model.ptr
        self.data: mujoco.MjData = simulation.physics.data.ptr
        self._renderer: CameraRenderer | None = None
        self._view_renderer: CameraRenderer | None = None
        start = int(self.model.joint("red_box_joint").qposadr[0])
        self._cube = slice(start, start + 7)
        self._tools = [self.model.site(_ee_site(side)).id for side in SIDES]

        # A step renders in the task's observation, and nowhere else.
        task, nothing = simulation.task, np.empty((0, 0, 3), np.uint8)
        task.get_observation = lambda physics: {
            "qpos": task.get_qpos(physics),
            "images": {"top": nothing},
        }

    def close(self) -> None:
        """Frees the renderers, if any were made."""
        for renderer in (self._renderer, self._view_renderer):
            if renderer is not None:
                renderer.close()
        self._renderer = self._view_renderer = None
        super().close()

    def view(self) -> Image:
        """The model's camera `angle`, always without shadows and multisampling."""
        if self._view_renderer is None:
            self._view_renderer = CameraRenderer(self.model, OVERVIEW_SIZE)
        return self._view_renderer.render(self.data, OVERVIEW_CAMERA)

    def project(self, points: FloatArray) -> FloatArray:
        """Where world points (N, 3) in m are in `view` (see `imf_ray.sim.rendering.project_to_pixels`)."""
        return project_to_pixels(self.model, self.data, OVERVIEW_CAMERA, OVERVIEW_SIZE, points)

    def make_arms(self) -> list[ArmKinematics]:
        """Kinematics of the left and of the right arm, whose posture is the pose at the start."""
        return [
            ArmKinematics(self.model, _ee_site(side), _joints(side), START_JOINTS) for side in SIDES
        ]

    def ee_poses(self) -> FloatArray:
        """Tool poses (2, 7), left first: between the finger tips; x points out of the gripper, the
        fingers slide along y."""
        return np.stack([site_pose(self.data, site) for site in self._tools])

    def object_poses(self) -> dict[str, FloatArray]:
        return {"cube": self.data.qpos[self._cube].copy()}

    def _check_source(self, source: str) -> None:
        known = [self.model.camera(number).name for number in range(self.model.ncam)]
        if source not in known:
            raise ValueError(f"the model has no camera {source!r}; it has: {', '.join(known)}")

    def _picture(self, source: str) -> Image:
        if self._renderer is None:
            settings = self.render_settings
            self._renderer = CameraRenderer(
                self.model,
                settings["image_size"],
                shadows=settings["shadows"],
                multisampling=settings["multisampling"],
            )
        return self._renderer.render(self.data, source)

    def _action_box(self) -> spaces.Box:
        """The joints' ranges: the environment's own Box(-1, 1) is not what it takes."""
        ranges = np.concatenate(
            [
                [*(self.model.joint(name).range for name in _joints(side)), GRIPPER_RANGE]
                for side in SIDES
            ]
        ).astype(np.float32)
        return spaces.Box(*ranges.T)


def _joints(side: str) -> list[str]:
    return [f"vx300s_{side}/{joint}" for joint in JOINTS]


def _ee_site(side: str) -> str:
    return f"cali_{side}_site1"

"""The cube transfer task of gym-aloha: its env as a `SimEnv`, and a scripted expert.

gym-aloha renders three images of 480 x 640 in each environment step, returns one of them, and
ignores the requested size. Its action space is Box(-1, 1), although actions are joint angles in
rad. Here, images are rendered on demand, and the action space has the true bounds.

gym-aloha needs an older MuJoCo than the rest of the package. Install it with the extra `aloha`.
"""

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from imf_ray.sim.array_types import FloatArray, Image
from imf_ray.sim.base import OVERVIEW_SIZE
from imf_ray.sim.gym_adapter import AdaptedEnv
from imf_ray.sim.headless import mujoco
from imf_ray.sim.kinematics import ArmKinematics, site_pose
from imf_ray.sim.rendering import CameraRenderer, project_to_pixels
from imf_ray.sim.scripted_expert import CLOSED, OPEN, Waypoint, WaypointExpert, tool_pose

SIDES = ("left", "right")
JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
START_JOINTS = (0.0, -0.96, 1.16, 0.0, -0.3, 0.0)  # rad, of either arm
GRIPPER_RANGE = (0.0, 1.0)
OVERVIEW_CAMERA = "angle"


class AlohaEnv(AdaptedEnv):
    """The cube transfer env of gym-aloha, made with `obs_type="pixels_agent_pos"`.

    Image sources are the cameras of its model: `top`, `angle`, `front_close`,
    `left_pillar`, `right_pillar`, `left_wrist`, `right_wrist`.

    An action is (14,), left arm first. Each arm has 6 absolute joint targets in rad and the gripper
    opening from 0 (closed) to 1 (open). `agent_pos` (14,) is the state in the same units.
    """

    def _on_env_created(self) -> None:
        simulation = self._env.unwrapped._env  # type: ignore[attr-defined]  # dm_control
        self.model: mujoco.MjModel = simulation.physics.model.ptr
        self.data: mujoco.MjData = simulation.physics.data.ptr
        self._renderer: CameraRenderer | None = None
        self._overview_renderers: dict[tuple[int, int], CameraRenderer] = {}  # by image size
        cube_start = int(self.model.joint("red_box_joint").qposadr[0])
        self._cube = slice(cube_start, cube_start + 7)
        self._end_effectors = [self.model.site(_ee_site(side)).id for side in SIDES]

        # gym-aloha renders in `get_observation`. An empty image replaces its images.
        task, empty_image = simulation.task, np.empty((0, 0, 3), np.uint8)
        task.get_observation = lambda physics: {
            "qpos": task.get_qpos(physics),
            "images": {"top": empty_image},
        }

    def close(self) -> None:
        """Free the renderers and close the env."""
        for renderer in (self._renderer, *self._overview_renderers.values()):
            if renderer is not None:
                renderer.close()
        self._renderer, self._overview_renderers = None, {}
        super().close()

    def load_rendering(self) -> None:
        self.render_cameras()

    def render_overview(self, size: tuple[int, int] = OVERVIEW_SIZE) -> Image:
        """Render the model's camera `angle`, always without shadows and multisampling."""
        if size not in self._overview_renderers:
            self._overview_renderers[size] = CameraRenderer(self.model, size)
        return self._overview_renderers[size].render(self.data, OVERVIEW_CAMERA)

    def project_to_pixels(self, points: FloatArray) -> FloatArray:
        """Project points into the overview image (see `rendering.project_to_pixels`)."""
        return project_to_pixels(self.model, self.data, OVERVIEW_CAMERA, OVERVIEW_SIZE, points)

    def make_arms(self) -> list[ArmKinematics]:
        """Make the kinematics of the left and the right arm. The posture is the initial pose."""
        return [
            ArmKinematics(self.model, _ee_site(side), _joints(side), START_JOINTS) for side in SIDES
        ]

    def ee_poses(self) -> FloatArray:
        """Return tool poses (2, 7), left first: xyz in m, quaternion wxyz, world frame.

        The tool is between the finger tips. Its x axis points out of the gripper, and the fingers
        slide along its y axis.
        """
        return np.stack([site_pose(self.data, site) for site in self._end_effectors])

    def object_poses(self) -> dict[str, FloatArray]:
        return {"cube": self.data.qpos[self._cube].copy()}

    def _check_source(self, source: str) -> None:
        cameras = [self.model.camera(index).name for index in range(self.model.ncam)]
        if source not in cameras:
            raise ValueError(f"the model has no camera {source!r}; it has: {', '.join(cameras)}")

    def _image(self, source: str) -> Image:
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
        """Return the box of the joint ranges, because the env's own Box(-1, 1) is wrong."""
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


# The scripted expert -----------------------------------------------------------------------------

# Tool orientations (wxyz): x points out of the gripper, the fingers slide along y.
RIGHT_DOWN = (0.0, np.sqrt(0.5), 0.0, -np.sqrt(0.5))
LEFT_LEVEL = (np.sqrt(0.5), np.sqrt(0.5), 0.0, 0.0)

CUBE_HEIGHT = 0.02  # m, of its centre on the table; after a reset it is 3 cm higher and falls
MEETING_POINT: FloatArray = np.array([0.0, 0.5, 0.25])  # m, of the cube
# Tool position straight in front of the right arm's base, which the arm reaches by turning its hand
# down in one plane. From there to any cube pose, the wrist stays on one side of its singularity
# (hand in line with the forearm).
RIGHT_READY: FloatArray = np.array([0.15, 0.5, 0.22])  # m

# Vectors from the cube's centre to the tool, in m.
RIGHT_GRASP: FloatArray = np.array([0.0, 0.0, -0.008])
RIGHT_HOVER: FloatArray = np.array([0.0, 0.0, 0.09])
RIGHT_RETREAT: FloatArray = np.array([0.15, 0.0, 0.10])
LEFT_GRASP: FloatArray = np.array([0.01, 0.0, 0.0])
LEFT_APPROACH: FloatArray = np.array([-0.12, 0.0, 0.0])
LEFT_RETREAT: FloatArray = np.array([-0.10, 0.0, 0.0])


class AlohaTransferExpert(WaypointExpert):
    """Scripted expert of gym-aloha's cube transfer task.

    The right arm grasps the cube from above and brings it to the meeting point. Its hand still
    points down. The left hand approaches level, with one finger above and one below the cube,
    between the fingers of the right hand. The grippers meet at right angles.

    The cube must lie flat, within the area in which the env places it.
    """

    def act(self) -> tuple[NDArray[np.float32], None]:
        """Return the next action (14,) and None, because the env has no end-effector actions."""
        return super().act()[0], None

    def _plan(self, tools: FloatArray, objects: dict[str, FloatArray]) -> list[list[Waypoint]]:
        left_start, right_start = tools
        return [_left_plan(left_start), _right_plan(right_start, objects["cube"])]


def _left_plan(start: FloatArray) -> list[Waypoint]:
    approach = tool_pose(MEETING_POINT + LEFT_APPROACH, LEFT_LEVEL)
    meeting = tool_pose(MEETING_POINT + LEFT_GRASP, LEFT_LEVEL)
    return [
        Waypoint(0, start, CLOSED),
        Waypoint(100, approach, OPEN),
        Waypoint(230, approach, OPEN),
        Waypoint(270, meeting, OPEN),
        Waypoint(300, meeting, CLOSED),
        Waypoint(340, meeting, CLOSED),
        Waypoint(390, tool_pose(MEETING_POINT + LEFT_RETREAT, LEFT_LEVEL), CLOSED),
    ]


def _right_plan(start: FloatArray, cube_pose: FloatArray) -> list[Waypoint]:
    cube = np.array([cube_pose[0], cube_pose[1], CUBE_HEIGHT])
    grasp = tool_pose(cube + RIGHT_GRASP, RIGHT_DOWN)
    meeting = tool_pose(MEETING_POINT + RIGHT_GRASP, RIGHT_DOWN)
    return [
        Waypoint(0, start, CLOSED),
        Waypoint(50, tool_pose(RIGHT_READY, RIGHT_DOWN), OPEN),
        Waypoint(90, tool_pose(cube + RIGHT_HOVER, RIGHT_DOWN), OPEN),
        Waypoint(130, grasp, OPEN),
        Waypoint(165, grasp, CLOSED),
        Waypoint(225, meeting, CLOSED),
        Waypoint(310, meeting, CLOSED),
        Waypoint(330, meeting, OPEN),
        Waypoint(380, tool_pose(MEETING_POINT + RIGHT_RETREAT, RIGHT_DOWN), OPEN),
    ]

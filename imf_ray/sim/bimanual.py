"""What every task of the two arms shares: control, observations, pictures and episodes."""

import functools
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import mujoco
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from imf_ray.sim import diana
from imf_ray.sim.base import OVERVIEW_SIZE, SimEnv
from imf_ray.sim.diana import GRIPPER_OPENING, NUM_JOINTS, READY_JOINTS, SIDES
from imf_ray.sim.kinematics import ArmKinematics, FloatArray, site_pose
from imf_ray.sim.rendering import CameraRenderer, Image, project_to_pixels, shared_renderer
from imf_ray.sim.scene import CAMERAS, PHYSICS_TIMESTEP

ACTION_SPACES = ("joint", "ee")
CONTROL_HZ = 50
SUBSTEPS = round(1 / (CONTROL_HZ * PHYSICS_TIMESTEP))

LIFT_CLEARANCE = 0.005  # m, between the table and the lowest corner; more is "off the table"
WORKSPACE = 1.5  # m, bound of each coordinate of an end-effector action
VIEW_CAMERA = "front"


class BimanualEnv(SimEnv):
    """Two DianaMed arms at 50 Hz; a task adds its objects, where they start, and its stages.

    Observation: `qpos` (16,) and `qvel` (16,) float32, left arm first, each arm 7 joints in rad
    (rad/s) and the gripper from 0 (closed) to 1 (open) (1/s); `images`, a dict from camera name to
    (H, W, 3) uint8 RGB, unless `render_images` is False.

    Action (16,) float32, left arm first. `action_space="joint"`: per arm 7 absolute joint targets
    in rad and the gripper 0 to 1. `"ee"`: per arm tool xyz in m, quaternion wxyz (normalised here),
    both in the world frame, and the gripper 0 to 1. Targets are clipped to their ranges.

    Reward of a step: the stage of the state it reached. Success is having reached the last stage.
    An episode never terminates by itself.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}  # noqa: RUF012
    control_hz = CONTROL_HZ

    scene: ClassVar[str]
    """MJCF of the task."""
    objects: ClassVar[tuple[str, ...]]
    """The objects' names, each that of a body and of its free joint."""

    def __init__(
        self,
        action_space: str = "joint",
        image_size: int | tuple[int, int] = 96,
        camera_names: tuple[str, ...] | list[str] = tuple(CAMERAS),
        render_images: bool = True,
        shadows: bool = False,
        multisampling: bool = False,
        render_mode: str | None = None,
    ) -> None:
        """`image_size`: pixels, one number for squares or (height, width).

        Raises ValueError for an unknown action space, camera, render mode or image size.
        """
        _require_known("action_space", [action_space], ACTION_SPACES)
        _require_known("camera", camera_names, CAMERAS)
        if render_mode is not None:
            _require_known("render_mode", [render_mode], self.metadata["render_modes"])
        self.render_mode = render_mode
        self._action_kind = action_space
        self._image_size = _height_and_width(image_size)
        self._camera_names = tuple(camera_names)
        self._render_images = render_images
        self._shadows = shadows
        self._multisampling = multisampling
        self._renderer: CameraRenderer | None = None
        self._view_renderer: CameraRenderer | None = None

        self.model = _compiled(self.scene)
        self.data = mujoco.MjData(self.model)
        self._kinematics = self.make_arms()
        self._index = _ModelIndex(self.model, self.objects)
        self._joint_targets = READY_JOINTS.copy()
        self._max_stage = 0

        self.action_space = _action_box(action_space, self._kinematics)
        self.observation_space = self._observation_box()

    # What a task adds --------------------------------------------------------------------------

    @abstractmethod
    def _sample_poses(self) -> dict[str, FloatArray]:
        """Start poses (7,) by object (xyz in m, quaternion wxyz), drawn from `self.np_random`."""

    @abstractmethod
    def _stage(self) -> int:
        """The stage of the current state."""

    # The gymnasium interface -------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Starts an episode, which `seed` fixes completely.

        `options={"poses": {object: (7,)}}` (xyz in m, quaternion wxyz) puts objects elsewhere.
        Raises ValueError for an unknown object or a pose that is none.
        """
        super().reset(seed=seed)
        poses = self._sample_poses() | self._checked_poses((options or {}).get("poses", {}))
        self._joint_targets = READY_JOINTS.copy()
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[self._index.joint_positions] = self._joint_targets
        self.data.qpos[self._index.finger_positions] = diana.FINGER_STROKE
        for name, pose in poses.items():
            self.data.qpos[self._index.object_positions[name]] = pose
        self.data.ctrl[:] = self._controls(self._joint_targets, np.ones(len(SIDES)))
        mujoco.mj_forward(self.model, self.data)
        self._max_stage = self._stage()
        return self._observation(), self._info(self._max_stage)

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Advances one control step of 0.02 s.

        Raises ValueError when the action has another shape than (16,) or is not finite.
        """
        arms = _finite_vector("action", action, self.data.ctrl.size).reshape(len(SIDES), -1)
        self._joint_targets = self._resolve_targets(arms)
        self.data.ctrl[:] = self._controls(self._joint_targets, arms[:, -1])
        mujoco.mj_step(self.model, self.data, nstep=SUBSTEPS)
        # mj_step ends with an integration; bring poses, contacts and cameras up to its result.
        mujoco.mj_fwdPosition(self.model, self.data)
        stage = self._stage()
        self._max_stage = max(self._max_stage, stage)
        return self._observation(), float(stage), False, False, self._info(stage)

    def render(self) -> Image | None:
        """The `front` picture (H, W, 3) uint8 RGB when `render_mode="rgb_array"`, else None."""
        return self._render("front") if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Lets go of the renderers, which the last world that uses them frees."""
        self._renderer = self._view_renderer = None

    # What recorders, experts and evaluation need besides -----------------------------------------

    @property
    def render_settings(self) -> dict[str, Any]:
        """What a picture depends on besides the state; `image_size` is (height, width)."""
        return {
            "image_size": self._image_size,
            "camera_names": self._camera_names,
            "shadows": self._shadows,
            "multisampling": self._multisampling,
        }

    def render_cameras(self) -> dict[str, Image]:
        """Pictures (H, W, 3) uint8 RGB of the current state, by camera name."""
        return {name: self._render(name) for name in self._camera_names}

    def view(self) -> Image:
        """The front view (*VIEW_SIZE, 3) uint8 RGB, always without shadows and multisampling."""
        if self._view_renderer is None:
            self._view_renderer = shared_renderer(self.model, OVERVIEW_SIZE)
        return self._view_renderer.render(self.data, VIEW_CAMERA)

    def project(self, points: FloatArray) -> FloatArray:
        """Where world points (N, 3) in m are in `view` (see `imf_ray.sim.rendering.project_to_pixels`)."""
        return project_to_pixels(self.model, self.data, VIEW_CAMERA, OVERVIEW_SIZE, points)

    def get_state(self) -> FloatArray:
        """The whole state of the physics (`mjSTATE_INTEGRATION`), for bitwise comparisons."""
        kind = int(mujoco.mjtState.mjSTATE_INTEGRATION)
        state = np.empty(mujoco.mj_stateSize(self.model, kind))
        mujoco.mj_getState(self.model, self.data, state, kind)
        return state

    def ee_poses(self) -> FloatArray:
        """Tool poses (2, 7), left first: xyz in m and quaternion wxyz in the world frame."""
        return np.stack([site_pose(self.data, site) for site in self._index.tools])

    def object_poses(self) -> dict[str, FloatArray]:
        """Poses (7,) by object: xyz in m and quaternion wxyz in the world frame."""
        return {
            name: self.data.qpos[at].copy() for name, at in self._index.object_positions.items()
        }

    def make_arms(self) -> list[ArmKinematics]:
        """Kinematics of the left and of the right arm, whose posture is the pose at the start."""
        return [diana.arm_kinematics(self.model, side) for side in SIDES]

    # For the stages of a task ------------------------------------------------------------------

    def _touching_fingers(self, name: str) -> NDArray[np.bool_]:
        """Which fingers touch the object: (2, 2), left gripper first."""
        pairs = self._index.geom_bodies[self.data.contact.geom]  # (contacts, 2) bodies
        body = self._index.object_bodies[name]
        touched = pairs[(pairs == body).any(axis=1)]
        return (self._index.finger_bodies[..., None] == touched.ravel()).any(axis=-1)

    def _is_lifted(self, name: str, half_size: ArrayLike) -> bool:
        """Whether the object, a box of `half_size` (3,) in m, has no corner at the table."""
        body = self._index.object_bodies[name]
        height = self.data.xpos[body, 2]
        upward = np.abs(self.data.xmat[body].reshape(3, 3)[2])  # of the box's own axes
        return bool(height - upward @ np.asarray(half_size) > LIFT_CLEARANCE)

    # Inside ------------------------------------------------------------------------------------

    def _checked_poses(self, poses: Mapping[str, ArrayLike]) -> dict[str, FloatArray]:
        _require_known("object", poses, self.objects)
        checked = {name: _finite_vector(f"pose of {name}", pose, 7) for name, pose in poses.items()}
        for pose in checked.values():
            pose[3:] = _unit_quaternion(pose[3:])
        return checked

    def _resolve_targets(self, arms: FloatArray) -> FloatArray:
        """Joint targets (2, 7) within their ranges, from the actions (2, 8) of the arms."""
        if self._action_kind == "ee":
            poses = [np.append(arm[:3], _unit_quaternion(arm[3:7])) for arm in arms]
            solved = zip(self._kinematics, poses, self._joint_targets, strict=True)
            return np.stack([arm.solve(pose, start) for arm, pose, start in solved])
        wanted = zip(self._kinematics, arms, strict=True)
        return np.stack([np.clip(a[:NUM_JOINTS], arm.lower, arm.upper) for arm, a in wanted])

    def _controls(self, joint_targets: FloatArray, grippers: FloatArray) -> FloatArray:
        opening = GRIPPER_OPENING * np.clip(grippers, 0.0, 1.0)
        return np.column_stack([joint_targets, opening]).ravel()

    def _observation(self) -> dict[str, Any]:
        index, data = self._index, self.data
        opening = data.qpos[index.finger_positions].sum(axis=1) / GRIPPER_OPENING
        speed = data.qvel[index.finger_velocities].sum(axis=1) / GRIPPER_OPENING
        qpos = np.column_stack([data.qpos[index.joint_positions], opening])
        qvel = np.column_stack([data.qvel[index.joint_velocities], speed])
        observation: dict[str, Any] = {
            "qpos": qpos.ravel().astype(np.float32),
            "qvel": qvel.ravel().astype(np.float32),
        }
        if self._render_images:
            observation["images"] = self.render_cameras()
        return observation

    def _info(self, stage: int) -> dict[str, Any]:
        return {
            "stage": stage,
            "max_stage": self._max_stage,
            "success": self._max_stage == self.num_stages,
            "poses": self.object_poses(),
        }

    def _render(self, camera: str) -> Image:
        if self._renderer is None:
            self._renderer = shared_renderer(
                self.model,
                self._image_size,
                shadows=self._shadows,
                multisampling=self._multisampling,
            )
        return self._renderer.render(self.data, camera)

    def _observation_box(self) -> spaces.Dict:
        size = self.data.ctrl.size
        entries: dict[str, spaces.Space[Any]] = {
            name: spaces.Box(-np.inf, np.inf, (size,), np.float32) for name in ("qpos", "qvel")
        }
        if self._render_images:
            picture = spaces.Box(0, 255, (*self._image_size, 3), np.uint8)
            entries["images"] = spaces.Dict(dict.fromkeys(self._camera_names, picture))
        return spaces.Dict(entries)


class _ModelIndex:
    """Where the arms and the objects are in the arrays of the compiled model; left arm first."""

    def __init__(self, model: mujoco.MjModel, objects: tuple[str, ...]) -> None:
        joints = [
            [model.joint(f"{side}_joint{i}").id for i in range(1, NUM_JOINTS + 1)] for side in SIDES
        ]
        fingers = [[f"{side}_finger{i}" for i in (1, 2)] for side in SIDES]  # joints and bodies
        slides = [[model.joint(name).id for name in pair] for pair in fingers]
        self.joint_positions = model.jnt_qposadr[joints]
        self.joint_velocities = model.jnt_dofadr[joints]
        self.finger_positions = model.jnt_qposadr[slides]
        self.finger_velocities = model.jnt_dofadr[slides]
        self.finger_bodies = np.array([[model.body(name).id for name in pair] for pair in fingers])
        self.tools = [model.site(f"{side}_tool").id for side in SIDES]
        self.geom_bodies = model.geom_bodyid
        starts = {name: int(model.joint(name).qposadr[0]) for name in objects}
        self.object_positions = {name: slice(start, start + 7) for name, start in starts.items()}
        self.object_bodies = {name: model.body(name).id for name in objects}


@functools.cache
def _compiled(scene: str) -> mujoco.MjModel:
    """One model for all worlds of a process: they only read it, and can share a renderer."""
    return mujoco.MjModel.from_xml_string(scene)


def planar_pose(x: float, y: float, z: float, yaw: float) -> FloatArray:
    """Pose (7,) of an object at xyz in m, turned by `yaw` in rad about the vertical."""
    return np.array([x, y, z, np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)])


def _action_box(kind: str, arms: list[ArmKinematics]) -> spaces.Box:
    if kind == "joint":
        low = [[*arm.lower, 0.0] for arm in arms]
        high = [[*arm.upper, 1.0] for arm in arms]
    else:
        low = [[-WORKSPACE] * 3 + [-1.0] * 4 + [0.0]] * len(arms)
        high = [[WORKSPACE] * 3 + [1.0] * 4 + [1.0]] * len(arms)
    return spaces.Box(np.ravel(low).astype(np.float32), np.ravel(high).astype(np.float32))


def _require_known(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"unknown {what} {name!r}; known are: {', '.join(known)}")


def _height_and_width(image_size: int | tuple[int, int]) -> tuple[int, int]:
    size = (
        (image_size, image_size) if isinstance(image_size, int | np.integer) else tuple(image_size)
    )
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"image_size must be pixels or (height, width), got {image_size!r}")
    return int(size[0]), int(size[1])


def _finite_vector(what: str, values: ArrayLike, size: int) -> FloatArray:
    vector = np.array(values, dtype=np.float64)
    if vector.shape != (size,):
        raise ValueError(f"{what} must have shape ({size},), got {vector.shape}")
    if not np.isfinite(vector).all():
        raise ValueError(f"{what} must be finite, got {vector}")
    return vector


def _unit_quaternion(quaternion: FloatArray) -> FloatArray:
    norm = np.linalg.norm(quaternion)
    if norm == 0:
        raise ValueError("a quaternion must not be zero")
    return quaternion / norm

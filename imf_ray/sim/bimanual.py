"""Base class of all tasks with two DianaMed arms: control, observations, images, episodes."""

import functools
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from imf_ray.sim import diana
from imf_ray.sim.array_types import FloatArray, Image
from imf_ray.sim.base import OVERVIEW_SIZE, SimEnv
from imf_ray.sim.diana import GRIPPER_OPENING, NUM_JOINTS, READY_JOINTS, SIDES
from imf_ray.sim.headless import mujoco
from imf_ray.sim.kinematics import ArmKinematics, site_pose
from imf_ray.sim.rendering import CameraRenderer, project_to_pixels, shared_renderer
from imf_ray.sim.scene import CAMERAS, PHYSICS_TIMESTEP

ACTION_SPACES = ("joint", "ee")
CONTROL_HZ = 50
"""Environment steps per simulated second."""
SUBSTEPS = round(1 / (CONTROL_HZ * PHYSICS_TIMESTEP))
"""Physics steps per environment step."""

LIFT_CLEARANCE = 0.005
"""Height in m that the lowest corner of a lifted object must exceed."""
WORKSPACE = 1.5
"""Maximum absolute value in m of each coordinate of an end-effector action."""
OVERVIEW_CAMERA = "front"


class BimanualEnv(SimEnv):
    """Two DianaMed arms at 50 Hz. A task adds its objects, their initial poses and its stages.

    An observation has these keys:

    * `qpos` (16,) float32, left arm first. Each arm has 7 joint angles in rad and the gripper
      opening from 0 (closed) to 1 (open).
    * `qvel` (16,) float32, the velocities of `qpos` in rad/s and 1/s.
    * `images` {camera: (H, W, 3) uint8 RGB}, unless `render_images` is False.

    An action is (16,) float32, left arm first. Targets are clipped to their ranges. The 8 numbers
    of each arm depend on the action space:

    * `joint`: 7 absolute joint targets in rad, and the gripper opening from 0 to 1.
    * `ee`: xyz of the tool in m and its quaternion wxyz, both in the world frame, and the gripper
      opening from 0 to 1. The quaternion is normalized here.

    The reward of an environment step is the stage of the state after it. An episode succeeds when
    it reaches the last stage. It never terminates by itself.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}  # noqa: RUF012
    control_hz = CONTROL_HZ

    scene: ClassVar[str]
    """MJCF of the task."""
    objects: ClassVar[tuple[str, ...]]
    """Names of the objects. The body and the free joint of an object have the same name."""

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
        """Compile the model. Renderers are made when the first image is needed.

        Args:
            image_size: side of square images, or (height, width), in pixels.

        Raises:
            ValueError: unknown action space, camera or render mode, or invalid image size.
        """
        _check_choice("action_space", [action_space], ACTION_SPACES)
        _check_choice("camera in camera_names:", camera_names, CAMERAS)
        if render_mode is not None:
            _check_choice("render_mode", [render_mode], self.metadata["render_modes"])
        self.render_mode = render_mode
        self._action_kind = action_space
        self._image_size = _height_and_width(image_size)
        self._camera_names = tuple(camera_names)
        self._render_images = render_images
        self._shadows = shadows
        self._multisampling = multisampling
        self._renderer: CameraRenderer | None = None
        self._overview_renderers: dict[tuple[int, int], CameraRenderer] = {}  # by image size

        self.model = _compile_model(self.scene)
        self.data = mujoco.MjData(self.model)
        self._kinematics = self.make_arms()
        self._index = _ModelIndex(self.model, self.objects)
        self._joint_targets = READY_JOINTS.copy()
        self._max_stage = 0

        self.action_space = _action_box(action_space, self._kinematics)
        self.observation_space = self._observation_box()

    # Implemented by each task ------------------------------------------------------------------

    @abstractmethod
    def _sample_poses(self) -> dict[str, FloatArray]:
        """Sample initial poses (7,) by object (xyz in m, quaternion wxyz) with `self.np_random`."""

    @abstractmethod
    def _stage(self) -> int:
        """Return the stage of the current state."""

    # The gymnasium interface -------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode. The seed and the actions determine it completely.

        Args:
            seed: seed of the initial poses.
            options: `{"poses": {object: (7,)}}` (xyz in m, quaternion wxyz) sets initial poses.

        Raises:
            ValueError: unknown object or invalid pose.
        """
        super().reset(seed=seed)
        poses = self._sample_poses() | self._validate_poses((options or {}).get("poses", {}))
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
        """Advance by one environment step of 0.02 s.

        Raises:
            ValueError: the action has another shape than (16,), is not finite, or has a quaternion
                of length zero.
        """
        arms = _finite_vector("action", action, self.data.ctrl.size).reshape(len(SIDES), -1)
        self._joint_targets = self._joint_targets_from_action(arms)
        self.data.ctrl[:] = self._controls(self._joint_targets, arms[:, -1])
        mujoco.mj_step(self.model, self.data, nstep=SUBSTEPS)
        # mj_step ends with an integration. Update poses, contacts and cameras to its result.
        mujoco.mj_fwdPosition(self.model, self.data)
        stage = self._stage()
        self._max_stage = max(self._max_stage, stage)
        return self._observation(), float(stage), False, False, self._info(stage)

    def render(self) -> Image | None:
        """Return the image (H, W, 3) of camera `front` if `render_mode="rgb_array"`, else None."""
        return self._render("front") if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Drop the renderers. They are freed when the last env that uses them drops them."""
        self._renderer, self._overview_renderers = None, {}

    # Used by recorders, experts and evaluation -------------------------------------------------

    @property
    def render_settings(self) -> dict[str, Any]:
        return {
            "image_size": self._image_size,
            "camera_names": self._camera_names,
            "shadows": self._shadows,
            "multisampling": self._multisampling,
        }

    def load_rendering(self) -> None:
        self.render_cameras()

    def render_cameras(self) -> dict[str, Image]:
        return {name: self._render(name) for name in self._camera_names}

    def render_overview(self, size: tuple[int, int] = OVERVIEW_SIZE) -> Image:
        """Render the camera `front`, always without shadows and multisampling."""
        if size not in self._overview_renderers:
            self._overview_renderers[size] = shared_renderer(self.model, size)
        return self._overview_renderers[size].render(self.data, OVERVIEW_CAMERA)

    def project_to_pixels(self, points: FloatArray) -> FloatArray:
        """Project points into the overview image (see `rendering.project_to_pixels`)."""
        return project_to_pixels(self.model, self.data, OVERVIEW_CAMERA, OVERVIEW_SIZE, points)

    def get_state(self) -> FloatArray:
        """Return the full physics state (`mjSTATE_INTEGRATION`) for bitwise comparisons."""
        kind = int(mujoco.mjtState.mjSTATE_INTEGRATION)
        state = np.empty(mujoco.mj_stateSize(self.model, kind))
        mujoco.mj_getState(self.model, self.data, state, kind)
        return state

    def ee_poses(self) -> FloatArray:
        """Return tool poses (2, 7), left first: xyz in m, quaternion wxyz, world frame."""
        return np.stack([site_pose(self.data, site) for site in self._index.end_effectors])

    def object_poses(self) -> dict[str, FloatArray]:
        """Return poses (7,) by object: xyz in m and quaternion wxyz in the world frame."""
        slices = self._index.object_positions
        return {name: self.data.qpos[indices].copy() for name, indices in slices.items()}

    def make_arms(self) -> list[ArmKinematics]:
        """Make the kinematics of the left and the right arm. The posture is the initial pose."""
        return [diana.arm_kinematics(self.model, side) for side in SIDES]

    # Helpers for stages ------------------------------------------------------------------------

    def _touching_fingers(self, name: str) -> NDArray[np.bool_]:
        """Return a mask (2 grippers, 2 fingers) of the fingers that touch an object."""
        pairs = self._index.geom_bodies[self.data.contact.geom]  # (contacts, 2) bodies
        body = self._index.object_bodies[name]
        touched = pairs[(pairs == body).any(axis=1)]
        return (self._index.finger_bodies[..., None] == touched.ravel()).any(axis=-1)

    def _is_lifted(self, name: str, half_size: ArrayLike) -> bool:
        """Return True if all corners of an object, a box of `half_size` (3,) in m, are lifted."""
        body = self._index.object_bodies[name]
        height = self.data.xpos[body, 2]
        upward = np.abs(self.data.xmat[body].reshape(3, 3)[2])  # z components of the box's axes
        return bool(height - upward @ np.asarray(half_size) > LIFT_CLEARANCE)

    # Internals ---------------------------------------------------------------------------------

    def _validate_poses(self, poses: Mapping[str, ArrayLike]) -> dict[str, FloatArray]:
        """Check object names and poses, and normalize the quaternions."""
        _check_choice("object", poses, self.objects)
        checked = {name: _finite_vector(f"pose of {name}", pose, 7) for name, pose in poses.items()}
        for pose in checked.values():
            pose[3:] = _unit_quaternion(pose[3:])
        return checked

    def _joint_targets_from_action(self, arms: FloatArray) -> FloatArray:
        """Convert the actions (2, 8) of the arms to joint targets (2, 7) within their ranges."""
        if self._action_kind == "ee":
            poses = [np.append(arm[:3], _unit_quaternion(arm[3:7])) for arm in arms]
            problems = zip(self._kinematics, poses, self._joint_targets, strict=True)
            return np.stack([arm.solve(pose, start) for arm, pose, start in problems])
        targets = zip(self._kinematics, arms[:, :NUM_JOINTS], strict=True)
        return np.stack([np.clip(target, arm.lower, arm.upper) for arm, target in targets])

    def _controls(self, joint_targets: FloatArray, grippers: FloatArray) -> FloatArray:
        """Return the actuators' controls (16,): joint angles in rad, gripper openings in m."""
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
            image = spaces.Box(0, 255, (*self._image_size, 3), np.uint8)
            entries["images"] = spaces.Dict(dict.fromkeys(self._camera_names, image))
        return spaces.Dict(entries)


class _ModelIndex:
    """Indices of the arms and objects in the arrays of a compiled model, left arm first."""

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
        self.end_effectors = [model.site(f"{side}_tool").id for side in SIDES]
        self.geom_bodies = model.geom_bodyid
        starts = {name: int(model.joint(name).qposadr[0]) for name in objects}
        self.object_positions = {name: slice(start, start + 7) for name, start in starts.items()}
        self.object_bodies = {name: model.body(name).id for name in objects}


@functools.cache
def _compile_model(scene: str) -> mujoco.MjModel:
    """Compile a scene once per process. Envs do not change the model, so they can share it."""
    return mujoco.MjModel.from_xml_string(scene)


def planar_pose(x: float, y: float, z: float, yaw: float) -> FloatArray:
    """Return the pose (7,) of an object at xyz in m, rotated by `yaw` in rad about the z axis."""
    return np.array([x, y, z, np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)])


def _action_box(kind: str, arms: list[ArmKinematics]) -> spaces.Box:
    if kind == "joint":
        low = [[*arm.lower, 0.0] for arm in arms]
        high = [[*arm.upper, 1.0] for arm in arms]
    else:
        low = [[-WORKSPACE] * 3 + [-1.0] * 4 + [0.0]] * len(arms)
        high = [[WORKSPACE] * 3 + [1.0] * 4 + [1.0]] * len(arms)
    return spaces.Box(np.ravel(low).astype(np.float32), np.ravel(high).astype(np.float32))


def _check_choice(option: str, names: Iterable[str], choices: Iterable[str]) -> None:
    for name in names:
        if name not in choices:
            raise ValueError(f"unknown {option} {name!r}; the choices are: {', '.join(choices)}")


def _height_and_width(image_size: int | tuple[int, int]) -> tuple[int, int]:
    size = (
        (image_size, image_size) if isinstance(image_size, int | np.integer) else tuple(image_size)
    )
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"image_size must be pixels or (height, width), got {image_size!r}")
    return int(size[0]), int(size[1])


def _finite_vector(name: str, values: ArrayLike, size: int) -> FloatArray:
    vector = np.array(values, dtype=np.float64)
    if vector.shape != (size,):
        raise ValueError(f"{name} must have shape ({size},), got {vector.shape}")
    if not np.isfinite(vector).all():
        raise ValueError(f"{name} must be finite, got {vector}")
    return vector


def _unit_quaternion(quaternion: FloatArray) -> FloatArray:
    norm = np.linalg.norm(quaternion)
    if norm == 0:
        raise ValueError("a quaternion must not be zero")
    return quaternion / norm

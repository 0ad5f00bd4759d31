"""The transfer task: the right arm picks a cube up and hands it to the left arm in the air."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from imf_ray.sim import diana
from imf_ray.sim.diana import GRIPPER_OPENING, NUM_JOINTS, READY_JOINTS, SIDES, Array
from imf_ray.sim.rendering import CameraRenderer, Image

ACTION_SPACES = ("joint", "ee")
CONTROL_HZ = 50
PHYSICS_TIMESTEP = 0.002  # s
SUBSTEPS = round(1 / (CONTROL_HZ * PHYSICS_TIMESTEP))

# Two arms on a table whose top is the plane z = 0, facing each other along x. So far apart, each
# reaches the middle with a bent elbow, and grasps the nearest cube before its wrist gets singular.
BASE_DISTANCE = 0.7  # m, from the middle to either base

CUBE_HALF_SIZE = 0.02  # m
CUBE_AREA = ((0.05, 0.25), (-0.1, 0.1))  # m, ranges of x and y at the start
CUBE_YAW = 0.3  # rad, largest turn about the vertical at the start
LIFT_CLEARANCE = 0.005  # m, between the table and the cube's lowest corner; more is "off the table"

# The stages of an episode; the reward of a step is the stage of the state it reached.
STAGE_NONE, STAGE_TOUCHED, STAGE_LIFTED, STAGE_MET, STAGE_TRANSFERRED = range(5)

WORKSPACE = 1.5  # m, bound of each coordinate of an end-effector action


class Camera(NamedTuple):
    """A fixed camera in the world frame."""

    position: tuple[float, float, float]  # m
    target: tuple[float, float, float]  # m, the point in the middle of the picture
    up: tuple[float, float, float]
    fovy: float  # degrees


CAMERAS = {
    "r_vis": Camera((0.16, 0.60, 0.52), (0.10, 0.0, 0.14), (0.0, 0.0, 1.0), 50.0),
    "top": Camera((0.0, 0.0, 1.5), (0.0, 0.0, 0.0), (0.0, 1.0, 0.0), 40.0),
    "front": Camera((0.0, -1.2, 0.8), (0.0, 0.0, 0.2), (0.0, 0.0, 1.0), 50.0),
}


class SimTransferEnv(gymnasium.Env[dict[str, Any], Any]):
    """Two DianaMed arms hand over a cube at 50 Hz.

    Observation: `qpos` (16,) and `qvel` (16,) float32, left arm first, each arm 7 joints in rad
    (rad/s) and the gripper from 0 (closed) to 1 (open) (1/s); `images`, a dict from camera name to
    (H, W, 3) uint8 RGB, unless `render_images` is False.

    Action (16,) float32, left arm first. `action_space="joint"`: per arm 7 absolute joint targets
    in rad and the gripper 0 to 1. `"ee"`: per arm tool xyz in m, quaternion wxyz (normalised here),
    both in the world frame, and the gripper 0 to 1. Targets are clipped to their ranges.

    Reward of a step: the current stage, 0 to 4. 1: the right gripper touches the cube; 2: and the
    cube is off the table; 3: the left gripper touches the cube off the table; 4: the left gripper
    holds it between both fingers and the right one has let go. Success is having reached stage 4.
    An episode never terminates by itself.

    `info`: `stage`, `max_stage` (int), `success` (bool, sticky), `cube_pose` (7,) float64 (xyz in
    m and quaternion wxyz).
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}  # noqa: RUF012
    control_hz = CONTROL_HZ

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

        self.model = mujoco.MjModel.from_xml_string(scene_xml())
        self.data = mujoco.MjData(self.model)
        self._kinematics = [diana.ArmKinematics(self.model, side) for side in SIDES]
        self._index = _ModelIndex(self.model)
        self._joint_targets = READY_JOINTS.copy()
        self._max_stage = STAGE_NONE

        self.action_space = _action_box(action_space, self._kinematics)
        self.observation_space = self._observation_box()

    # The gymnasium interface -------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Starts an episode, which `seed` fixes completely.

        `options={"cube_pose": (7,)}` (xyz in m, quaternion wxyz) puts the cube elsewhere.
        """
        super().reset(seed=seed)
        cube_pose = self._sample_cube_pose()
        if options and "cube_pose" in options:
            cube_pose = _finite_vector("cube_pose", options["cube_pose"], 7)
            cube_pose[3:] = _unit_quaternion(cube_pose[3:])
        self._joint_targets = READY_JOINTS.copy()
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[self._index.joint_positions] = self._joint_targets
        self.data.qpos[self._index.finger_positions] = diana.FINGER_STROKE
        self.data.qpos[self._index.cube_position] = cube_pose
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
        """Frees the renderer, if one was made."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

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

    def get_state(self) -> Array:
        """The whole state of the physics (`mjSTATE_INTEGRATION`), for bitwise comparisons."""
        kind = int(mujoco.mjtState.mjSTATE_INTEGRATION)
        state = np.empty(mujoco.mj_stateSize(self.model, kind))
        mujoco.mj_getState(self.model, self.data, state, kind)
        return state

    def ee_poses(self) -> Array:
        """Tool poses (2, 7), left first: xyz in m and quaternion wxyz in the world frame."""
        return np.stack([diana.site_pose(self.data, site) for site in self._index.tools])

    def cube_pose(self) -> Array:
        """Pose (7,) of the cube: xyz in m and quaternion wxyz in the world frame."""
        return self.data.qpos[self._index.cube_position].copy()

    # Inside ------------------------------------------------------------------------------------

    def _sample_cube_pose(self) -> Array:
        x, y = (self.np_random.uniform(*bounds) for bounds in CUBE_AREA)
        yaw = self.np_random.uniform(-CUBE_YAW, CUBE_YAW)
        return np.array([x, y, CUBE_HALF_SIZE, np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)])

    def _resolve_targets(self, arms: Array) -> Array:
        """Joint targets (2, 7) within their ranges, from the actions (2, 8) of the arms."""
        if self._action_kind == "ee":
            poses = [np.append(arm[:3], _unit_quaternion(arm[3:7])) for arm in arms]
            solved = zip(self._kinematics, poses, self._joint_targets, strict=True)
            return np.stack([arm.solve(pose, start) for arm, pose, start in solved])
        wanted = zip(self._kinematics, arms, strict=True)
        return np.stack([np.clip(a[:NUM_JOINTS], arm.lower, arm.upper) for arm, a in wanted])

    def _controls(self, joint_targets: Array, grippers: Array) -> Array:
        opening = GRIPPER_OPENING * np.clip(grippers, 0.0, 1.0)
        return np.column_stack([joint_targets, opening]).ravel()

    def _stage(self) -> int:
        touched = self._touched_by_cube()
        left, right = (
            [not touched.isdisjoint(finger) for finger in self._index.finger_geoms[side]]
            for side in SIDES
        )
        rotation = self.data.xmat[self._index.cube_body].reshape(3, 3)
        lowest_corner = self.cube_pose()[2] - CUBE_HALF_SIZE * np.abs(rotation[2]).sum()
        if lowest_corner <= LIFT_CLEARANCE:
            return STAGE_TOUCHED if any(right) else STAGE_NONE
        if all(left) and not any(right):
            return STAGE_TRANSFERRED
        if any(left):
            return STAGE_MET
        return STAGE_LIFTED if any(right) else STAGE_NONE

    def _touched_by_cube(self) -> set[int]:
        cube = self._index.cube_geom
        pairs = self.data.contact.geom
        return set(pairs[(pairs == cube).any(axis=1)].ravel().tolist()) - {cube}

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
            "success": self._max_stage == STAGE_TRANSFERRED,
            "cube_pose": self.cube_pose(),
        }

    def _render(self, camera: str) -> Image:
        if self._renderer is None:
            self._renderer = CameraRenderer(
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
    """Where the arms and the cube are in the arrays of the compiled model; left arm first."""

    def __init__(self, model: mujoco.MjModel) -> None:
        joints = [
            [model.joint(f"{side}_joint{i}").id for i in range(1, NUM_JOINTS + 1)] for side in SIDES
        ]
        fingers = [[model.joint(f"{side}_finger{i}").id for i in (1, 2)] for side in SIDES]
        self.joint_positions = model.jnt_qposadr[joints]
        self.joint_velocities = model.jnt_dofadr[joints]
        self.finger_positions = model.jnt_qposadr[fingers]
        self.finger_velocities = model.jnt_dofadr[fingers]
        self.tools = [model.site(f"{side}_tool").id for side in SIDES]
        self.finger_geoms = {
            side: [_geoms_of(model, f"{side}_finger{i}") for i in (1, 2)] for side in SIDES
        }
        start = int(model.joint("cube").qposadr[0])
        self.cube_position = slice(start, start + 7)
        self.cube_body = model.body("cube").id
        self.cube_geom = model.geom("cube").id


def _geoms_of(model: mujoco.MjModel, body: str) -> set[int]:
    return set(np.flatnonzero(model.geom_bodyid == model.body(body).id).tolist())


def _action_box(kind: str, arms: list[diana.ArmKinematics]) -> spaces.Box:
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


def _finite_vector(what: str, values: ArrayLike, size: int) -> Array:
    vector = np.array(values, dtype=np.float64)
    if vector.shape != (size,):
        raise ValueError(f"{what} must have shape ({size},), got {vector.shape}")
    if not np.isfinite(vector).all():
        raise ValueError(f"{what} must be finite, got {vector}")
    return vector


def _unit_quaternion(quaternion: Array) -> Array:
    norm = np.linalg.norm(quaternion)
    if norm == 0:
        raise ValueError("a quaternion must not be zero")
    return quaternion / norm


def _camera_xml(name: str, camera: Camera) -> str:
    backward = np.subtract(camera.position, camera.target)
    right = np.cross(camera.up, backward)
    up = np.cross(backward, right)
    axes = " ".join(str(number) for number in (*right, *up))
    position = " ".join(str(number) for number in camera.position)
    return f'<camera name="{name}" pos="{position}" xyaxes="{axes}" fovy="{camera.fovy}"/>'


def scene_xml() -> str:
    """MJCF of the whole task: table, arms, cube, lights and cameras."""
    return f"""
<mujoco model="sim_transfer">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="{PHYSICS_TIMESTEP}" integrator="implicitfast" cone="elliptic" impratio="10"/>
  <visual>
    <headlight ambient="0.35 0.35 0.35" diffuse="0.35 0.35 0.35" specular="0.1 0.1 0.1"/>
    <quality shadowsize="1024"/>
    <map znear="0.02" zfar="20"/>
  </visual>
  <default>
    {"".join(diana.defaults_xml(side) for side in SIDES)}
  </default>
  <asset>
    {diana.materials_xml()}
    <texture name="sky" type="skybox" builtin="gradient" rgb1="0.75 0.80 0.86"
             rgb2="0.45 0.50 0.58" width="64" height="384"/>
    <texture name="floor" type="2d" builtin="checker" rgb1="0.62 0.65 0.68" rgb2="0.55 0.58 0.61"
             width="128" height="128"/>
    <texture name="wood" type="2d" builtin="flat" mark="random" random="0.01"
             rgb1="0.74 0.64 0.50" markrgb="0.68 0.58 0.45" width="256" height="256"/>
    <material name="floor" texture="floor" texrepeat="8 8" specular="0"/>
    <material name="wood" texture="wood" specular="0.1" shininess="0.1"/>
    <material name="leg" rgba="0.25 0.25 0.27 1"/>
    <material name="cube" rgba="0.85 0.08 0.06 1" specular="0.2"/>
  </asset>
  <worldbody>
    <light pos="0.4 -0.8 2.2" dir="-0.2 0.35 -1" diffuse="0.55 0.55 0.52" castshadow="true"/>
    <light pos="-0.6 0.9 2" dir="0.3 -0.4 -1" diffuse="0.2 0.2 0.22" castshadow="false"/>
    <geom name="floor" type="plane" pos="0 0 -0.75" size="4 4 0.1" material="floor"/>
    <geom name="table" type="box" pos="0 0 -0.025" size="0.95 0.45 0.025" material="wood"/>
    {_table_legs_xml()}
    {"".join(_camera_xml(name, camera) for name, camera in CAMERAS.items())}
    {diana.arm_xml("left", f"{-BASE_DISTANCE} 0 0", 0.0)}
    {diana.arm_xml("right", f"{BASE_DISTANCE} 0 0", np.pi)}
    <body name="cube" pos="{CUBE_AREA[0][0]} 0 {CUBE_HALF_SIZE}">
      <freejoint name="cube"/>
      <geom name="cube" type="box" size="{CUBE_HALF_SIZE} {CUBE_HALF_SIZE} {CUBE_HALF_SIZE}"
            mass="0.05" condim="4" friction="1 0.01 0.0001" material="cube"/>
    </body>
  </worldbody>
  {"".join(diana.controls_xml(side) for side in SIDES)}
</mujoco>"""


def _table_legs_xml() -> str:
    return "".join(
        f"""
    <geom type="box" pos="{x} {y} -0.4" size="0.03 0.03 0.35" material="leg"/>"""
        for x in (-0.88, 0.88)
        for y in (-0.38, 0.38)
    )

"""The DianaMed arm with a parallel gripper: its MJCF and its kinematics.

Kinematics, inertia, joint ranges and damping are those of the DianaMed model in robopal 0.4.1
(Apache-2.0). The links are drawn as capsules and cylinders between the joint frames, without mesh
files.

The compiled model has these names for each `side` in `SIDES`:

* joints `{side}_joint1` to `{side}_joint7`, and sliding joints `{side}_finger1` and
  `{side}_finger2`,
* the site of the tool, `{side}_tool`,
* actuators in the order of an action: those of the seven joints, then `{side}_gripper`.
"""

from typing import NamedTuple

import numpy as np

from imf_ray.sim.array_types import FloatArray
from imf_ray.sim.headless import mujoco
from imf_ray.sim.kinematics import ArmKinematics

SIDES = ("left", "right")
NUM_JOINTS = 7
FINGER_STROKE = 0.04  # m, travel of one finger; the gripper opens to twice that
GRIPPER_OPENING = 2 * FINGER_STROKE  # m

# Joint angles at the start of an episode, left arm first. The arms are retracted. The left hand is
# level, one finger above the other. The right hand points down. In the manufacturer's home pose (0,
# -pi/4, 0, pi/2, 0, pi/4, 0), the flange is 0.84 m away from the base, so the two arms would
# intersect. Each wrist starts on the side of its singularity (joint 6 = 0) that the tasks need.
READY_JOINTS: FloatArray = np.array(
    [
        [0.0, -0.65, 0.0, 2.80, 0.0, 3.45 - np.pi / 2, -np.pi / 2],
        [0.0, 0.35, 0.0, 2.55, 0.0, 2.20 - np.pi, 0.0],
    ]
)  # rad

# Orientations of the tool (wxyz). Its z axis points along the fingers, its y axis in the direction
# in which they open. Each arm reaches all of its orientations by turning in one vertical plane.
RIGHT_DOWN = (0.0, 0.0, 1.0, 0.0)
LEFT_LEVEL = (0.5, 0.5, 0.5, 0.5)
LEFT_DOWN = (0.0, np.sqrt(0.5), np.sqrt(0.5), 0.0)

_TORQUE_LIMIT = 80.0  # N m
_ROTOR_INERTIA = 0.1  # kg m^2, at the output of the gear; damps the light wrist joints well
_STIFFNESS = (4000, 4000, 3000, 3000, 1000, 1000, 500)  # N m / rad
_FINGER_FORCE = 20.0  # N
_FINGER_STIFFNESS = 1000.0  # N / m
_FINGER_DAMPING = 40.0  # N s / m
_PAD_SOLREF = "0.004 1"  # time constant in s, twice the timestep, and damping ratio
_TOOL_DISTANCE = 0.15  # m, from the flange to the centre of the finger pads

# Collision bits: an arm collides with the scene and with the other arm, but not with itself.
_SCENE_BIT = 1
_COLLISION_BITS = {"left": (2, _SCENE_BIT | 4), "right": (4, _SCENE_BIT)}


class _Link(NamedTuple):
    """MJCF attributes of a link: its pose in the parent's frame, joint, inertia and geoms."""

    position: str
    quaternion: str
    axis: str
    range: str
    damping: float
    mass: float
    center: str
    inertia: str
    geoms: str


def _capsule(points: str, radius: float, material: str) -> str:
    return f'<geom type="capsule" fromto="{points}" size="{radius}" material="{material}"/>'


def _cylinder(points: str, radius: float, material: str) -> str:
    return f'<geom type="cylinder" fromto="{points}" size="{radius}" material="{material}"/>'


_BASE_GEOMS = _cylinder("0 0 0 0 0 0.03", 0.1, "dark") + _cylinder(
    "0 0 0.03 0 0 0.16", 0.075, "shell"
)

_LINKS = (
    _Link(
        "0 0 0.2985", "0 1 0 0", "0 0 1", "-2.56 2.56", 0.05,
        2.727, "0 -0.0440 0.0236", "0.01222 0.01134 0.00693",
        _cylinder("0 0 0.138 0 0 0.12", 0.07, "dark")
        + _cylinder("0 0 0.12 0 0 0", 0.068, "shell")
        + _cylinder("0 -0.078 0 0 0.078 0", 0.07, "{side}_accent"),
    ),
    _Link(
        "0 0 -0.0009", "0.7071 0.7071 0 0", "0 0 -1", "-1.57 1.57", 0.1,
        3.182, "0 -0.0407 -0.0363", "0.01893 0.01807 0.00758",
        _capsule("0 0 0 0 -0.23 0", 0.06, "shell"),
    ),
    _Link(
        "0 -0.45818 0.0005", "0.7071 -0.7071 0 0", "0 0 -1", "-2.56 2.56", 0.05,
        3.936, "0.0148 -0.0160 0.1272", "0.05693 0.05473 0.00935",
        _cylinder("0 0 0.215 0 0 0.245", 0.063, "dark")
        + _capsule("0 0 0.22 0 0 0", 0.054, "shell")
        + _capsule("0 0 0 0.064 0 0", 0.05, "shell"),
    ),
    _Link(
        "0.064454 0.0005 -0.0007", "0.7071 0.7071 0 0", "0 0 1", "0 3.05", 0.05,
        1.585, "-0.0146 -0.0117 -0.0406", "0.00499 0.00483 0.00267",
        _cylinder("0 0 -0.066 0 0 0.066", 0.056, "{side}_accent")
        + _capsule("0 0 0 -0.052 -0.08 0", 0.048, "shell")
        + _capsule("-0.052 -0.08 0 -0.052 -0.23 0", 0.048, "shell"),
    ),
    _Link(
        "-0.052254 -0.45668 0.0005", "0.7071 -0.7071 0 0", "0 0 -1", "-3.05 3.05", 0.05,
        1.927, "-0.0021 0.0288 0.2228", "0.02934 0.02908 0.00211",
        _cylinder("0 0 0.215 0 0 0.245", 0.051, "dark")
        + _capsule("0 0 0.22 0 0 0", 0.044, "shell"),
    ),
    _Link(
        "0 -0.005 0", "0 0 -0.7071 -0.7071", "0 0 1", "-3.14 3.14", 0.05,
        1.730, "0.0384 -0.0007 -0.0021", "0.00527 0.00493 0.00345",
        _cylinder("0 0 -0.055 0 0 0.055", 0.047, "{side}_accent")
        + _capsule("0 0 0 0.0767 -0.02 0", 0.04, "shell")
        + _cylinder("0.0767 -0.02 0 0.0767 -0.085 0", 0.038, "shell"),
    ),
    _Link(
        "0.076728 -0.1059 0", "0.7071 -0.7071 0 0", "0 0 -1", "-3.14 3.14", 0.001,
        0.167, "0.0007 0 0.0208", "0.00014 0.00009 0.00009",
        _cylinder("0 0 0.022 0 0 0", 0.036, "dark"),
    ),
)  # fmt: skip


def _gripper_xml(side: str) -> str:
    """Return the MJCF body of a gripper. z points out of the flange, the fingers slide along y."""
    fingers = "".join(
        f"""
        <body name="{side}_finger{number}" quat="{quaternion}" gravcomp="1">
          <joint name="{side}_finger{number}" class="{side}_finger"/>
          <inertial pos="0 0.012 0.12" mass="0.05" diaginertia="2e-5 2e-5 1e-5"/>
          <geom type="box" pos="0 0.014 0.118" size="0.011 0.006 0.044" material="steel"/>
          <geom type="box" pos="0 0.022 0.084" size="0.013 0.014 0.010" material="dark"/>
          <geom type="box" pos="0 0.004 0.150" size="0.011 0.004 0.016" class="{side}_pad"/>
        </body>"""
        for number, quaternion in ((1, "1 0 0 0"), (2, "0 0 0 1"))
    )
    return f"""
      <body name="{side}_flange" quat="0 1 0 0" gravcomp="1">
        <inertial pos="0 0 0.04" mass="0.5" diaginertia="6e-4 4e-4 6e-4"/>
        {_cylinder("0 0 0 0 0 0.02", 0.034, f"{side}_accent")}
        <geom type="box" pos="0 0 0.046" size="0.026 0.062 0.028" material="dark"/>
        <site name="{side}_tool" group="4" pos="0 0 {_TOOL_DISTANCE}"/>
        {fingers}
      </body>"""


def arm_xml(side: str, position: str, yaw: float) -> str:
    """Return the MJCF body of one arm.

    Args:
        position: position of the base, xyz in m.
        yaw: rotation of the base about the z axis, in rad.
    """
    body = _gripper_xml(side)
    for number, link in reversed(list(enumerate(_LINKS, start=1))):
        body = f"""
        <body name="{side}_link{number}" gravcomp="1"
              pos="{link.position}" quat="{link.quaternion}">
          <inertial pos="{link.center}" mass="{link.mass}" diaginertia="{link.inertia}"/>
          <joint name="{side}_joint{number}"
                 axis="{link.axis}" range="{link.range}" damping="{link.damping}"/>
          {link.geoms.format(side=side)}
          {body}
        </body>"""
    return f"""
      <body name="{side}_base" pos="{position}" euler="0 0 {yaw}" childclass="{side}_arm">
        {_BASE_GEOMS}
        {body}
      </body>"""


def defaults_xml(side: str) -> str:
    """Return the MJCF default classes of one arm. The model must use angles in radians."""
    contype, conaffinity = _COLLISION_BITS[side]
    return f"""
      <default class="{side}_arm">
        <geom contype="{contype}" conaffinity="{conaffinity}"/>
        <joint armature="{_ROTOR_INERTIA}" actuatorgravcomp="true"
               actuatorfrcrange="-{_TORQUE_LIMIT} {_TORQUE_LIMIT}"/>
        <default class="{side}_finger">
          <joint type="slide" axis="0 1 0" range="0 {FINGER_STROKE}" damping="2" armature="0.05"
                 actuatorgravcomp="false" actuatorfrcrange="-{_FINGER_FORCE} {_FINGER_FORCE}"/>
        </default>
        <default class="{side}_pad">
          <geom condim="4" friction="1.5 0.02 0.0001" solref="{_PAD_SOLREF}" material="pad"/>
        </default>
      </default>"""


def materials_xml() -> str:
    """Return the materials of both arms, elements of the MJCF's `<asset>`."""
    return """
      <material name="shell" rgba="0.93 0.93 0.91 1" specular="0.4" shininess="0.4"/>
      <material name="dark" rgba="0.20 0.21 0.23 1" specular="0.3"/>
      <material name="steel" rgba="0.45 0.47 0.50 1" specular="0.6"/>
      <material name="pad" rgba="0.08 0.08 0.09 1" specular="0"/>
      <material name="left_accent" rgba="0.13 0.38 0.75 1" specular="0.4"/>
      <material name="right_accent" rgba="0.10 0.60 0.45 1" specular="0.4"/>"""


def controls_xml(side: str) -> str:
    """Return the MJCF sections that couple the fingers of one arm and define its actuators.

    The length of the gripper's tendon is the gripper's opening, so its control is in m.
    """
    joints = "".join(
        f"""
        <position name="{side}_joint{number}" joint="{side}_joint{number}" kp="{stiffness}"
                  dampratio="1" inheritrange="1"/>"""
        for number, stiffness in enumerate(_STIFFNESS, start=1)
    )
    return f"""
      <tendon>
        <fixed name="{side}_gripper">
          <joint joint="{side}_finger1" coef="1"/>
          <joint joint="{side}_finger2" coef="1"/>
        </fixed>
      </tendon>
      <equality>
        <joint joint1="{side}_finger1" joint2="{side}_finger2" solref="{_PAD_SOLREF}"/>
      </equality>
      <actuator>
        {joints}
        <position name="{side}_gripper" tendon="{side}_gripper" kp="{_FINGER_STIFFNESS}"
                  kv="{_FINGER_DAMPING}" ctrlrange="0 {GRIPPER_OPENING}"
                  forcerange="-{_FINGER_FORCE} {_FINGER_FORCE}"/>
      </actuator>"""


def arm_kinematics(model: mujoco.MjModel, side: str) -> ArmKinematics:
    """Make the kinematics of one arm. Its posture is `READY_JOINTS`."""
    joints = [f"{side}_joint{number}" for number in range(1, NUM_JOINTS + 1)]
    return ArmKinematics(model, f"{side}_tool", joints, READY_JOINTS[SIDES.index(side)])

"""The scene that all bimanual tasks share: two arms on a table, lights and cameras."""

from typing import NamedTuple

import numpy as np

from imf_ray.sim import diana
from imf_ray.sim.diana import SIDES

PHYSICS_TIMESTEP = 0.002  # s, duration of one physics step

# The table top is the plane z = 0. The arms face each other along x. At this distance, each arm
# reaches the centre with a bent elbow, and the nearest object without a singular wrist.
BASE_DISTANCE = 0.7  # m, from the centre of the table to either base


class Camera(NamedTuple):
    """A fixed camera in the world frame."""

    position: tuple[float, float, float]  # m
    target: tuple[float, float, float]  # m, the point at the centre of the image
    up: tuple[float, float, float]
    fovy: float  # degrees


CAMERAS = {
    "r_vis": Camera((0.16, 0.60, 0.52), (0.10, 0.0, 0.14), (0.0, 0.0, 1.0), 50.0),
    "top": Camera((0.0, 0.0, 1.5), (0.0, 0.0, 0.0), (0.0, 1.0, 0.0), 40.0),
    "front": Camera((0.0, -1.2, 0.8), (0.0, 0.0, 0.2), (0.0, 0.0, 1.0), 50.0),
}


def scene_xml(task: str, materials: str, objects: str) -> str:
    """Return the MJCF of a task: the shared scene and the task's own elements.

    Args:
        task: name of the model.
        materials: elements to add to `<asset>`.
        objects: elements to add to `<worldbody>`.
    """
    return f"""
<mujoco model="{task}">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="{PHYSICS_TIMESTEP}" integrator="implicitfast" cone="elliptic" impratio="10"/>
  <visual>
    <headlight ambient="0.35 0.35 0.35" diffuse="0.35 0.35 0.35" specular="0.1 0.1 0.1"/>
    <quality shadowsize="1024" numslices="16" numstacks="8"/>
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
    {materials}
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
    {objects}
  </worldbody>
  {"".join(diana.controls_xml(side) for side in SIDES)}
</mujoco>"""


def _camera_xml(name: str, camera: Camera) -> str:
    """Return the MJCF element of a camera, whose axes follow from position, target and up."""
    backward = np.subtract(camera.position, camera.target)
    right = np.cross(camera.up, backward)
    up = np.cross(backward, right)
    axes = " ".join(str(number) for number in (*right, *up))
    position = " ".join(str(number) for number in camera.position)
    return f'<camera name="{name}" pos="{position}" xyaxes="{axes}" fovy="{camera.fovy}"/>'


def _table_legs_xml() -> str:
    return "".join(
        f"""
    <geom type="box" pos="{x} {y} -0.4" size="0.03 0.03 0.35" material="leg"/>"""
        for x in (-0.88, 0.88)
        for y in (-0.38, 0.38)
    )

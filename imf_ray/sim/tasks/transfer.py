"""The transfer task: the right arm picks up a cube and hands it to the left arm in the air."""

import numpy as np

from imf_ray.sim.array_types import FloatArray
from imf_ray.sim.bimanual import BimanualEnv, planar_pose
from imf_ray.sim.diana import LEFT_LEVEL, RIGHT_DOWN
from imf_ray.sim.scene import scene_xml
from imf_ray.sim.scripted_expert import CLOSED, OPEN, Waypoint, WaypointExpert, rotate, tool_pose

CUBE_HALF_SIZE = 0.02  # m
CUBE_AREA = ((0.05, 0.25), (-0.1, 0.1))  # m, ranges of x and y after a reset
CUBE_YAW = 0.3  # rad, maximum rotation about the z axis after a reset

STAGE_NONE, STAGE_TOUCHED, STAGE_LIFTED, STAGE_HANDOVER, STAGE_TRANSFERRED = range(5)

_MATERIAL = '<material name="cube" rgba="0.85 0.08 0.06 1" specular="0.2"/>'
_CUBE = f"""
    <body name="cube" pos="{CUBE_AREA[0][0]} 0 {CUBE_HALF_SIZE}">
      <freejoint name="cube"/>
      <geom name="cube" type="box" size="{CUBE_HALF_SIZE} {CUBE_HALF_SIZE} {CUBE_HALF_SIZE}"
            mass="0.05" condim="4" friction="1 0.01 0.0001" material="cube"/>
    </body>"""


class SimTransferEnv(BimanualEnv):
    """Two arms hand over a cube. Observations and actions are those of `BimanualEnv`.

    Stages:

    1. The right gripper touches the cube on the table.
    2. The right gripper touches the cube off the table.
    3. The left gripper touches the cube off the table.
    4. The left gripper holds the cube off the table between both fingers, and the right gripper
       does not touch it.
    """

    num_stages = STAGE_TRANSFERRED
    success_description = (
        "stage 4 (the left gripper alone holds the cube in the air) was reached at any step"
    )
    scene = scene_xml("sim_transfer", _MATERIAL, _CUBE)
    objects = ("cube",)

    def _sample_poses(self) -> dict[str, FloatArray]:
        x, y = (self.np_random.uniform(*bounds) for bounds in CUBE_AREA)
        yaw = self.np_random.uniform(-CUBE_YAW, CUBE_YAW)
        return {"cube": planar_pose(x, y, CUBE_HALF_SIZE, yaw)}

    def _stage(self) -> int:
        left, right = self._touching_fingers("cube")
        if not self._is_lifted("cube", [CUBE_HALF_SIZE] * 3):
            return STAGE_TOUCHED if right.any() else STAGE_NONE
        if left.all() and not right.any():
            return STAGE_TRANSFERRED
        if left.any():
            return STAGE_HANDOVER
        return STAGE_LIFTED if right.any() else STAGE_NONE


# The scripted expert -----------------------------------------------------------------------------

MEETING_POINT: FloatArray = np.array([0.0, 0.0, 0.25])  # m
HOVER: FloatArray = np.array([0.0, 0.0, 0.12])  # m, right tool relative to cube before the grasp
APPROACH: FloatArray = np.array([-0.14, 0.0, 0.0])  # m, left tool relative to cube before grasp
RIGHT_RETREAT: FloatArray = np.array([0.26, 0.0, 0.10])  # m, relative to the meeting point
LEFT_RETREAT: FloatArray = np.array([-0.15, 0.0, 0.05])  # m, relative to the meeting point


class TransferExpert(WaypointExpert):
    """Scripted expert of the transfer task.

    The right arm grasps the cube from above and brings it to the meeting point. Its hand still
    points down. The left hand approaches level, with one finger above and one below the cube,
    between the fingers of the right hand. The grippers meet at right angles, so no fingers cross.

    The cube must lie flat within the area and the yaw range of `SimTransferEnv`.
    """

    def _plan(self, tools: FloatArray, objects: dict[str, FloatArray]) -> list[list[Waypoint]]:
        left_start, right_start = tools
        return [_left_plan(left_start), _right_plan(right_start, objects["cube"])]


def _right_plan(start: FloatArray, cube_pose: FloatArray) -> list[Waypoint]:
    cube, grasp = cube_pose[:3], rotate(RIGHT_DOWN, by=cube_pose[3:])
    meeting = tool_pose(MEETING_POINT, RIGHT_DOWN)
    return [
        Waypoint(0, start, OPEN),
        Waypoint(90, tool_pose(cube + HOVER, grasp), OPEN),
        Waypoint(130, tool_pose(cube, grasp), OPEN),
        Waypoint(170, tool_pose(cube, grasp), CLOSED),
        Waypoint(220, meeting, CLOSED),
        Waypoint(300, meeting, CLOSED),
        Waypoint(320, meeting, OPEN),
        Waypoint(380, tool_pose(MEETING_POINT + RIGHT_RETREAT, RIGHT_DOWN), OPEN),
    ]


def _left_plan(start: FloatArray) -> list[Waypoint]:
    approach = tool_pose(MEETING_POINT + APPROACH, LEFT_LEVEL)
    meeting = tool_pose(MEETING_POINT, LEFT_LEVEL)
    return [
        Waypoint(0, start, OPEN),
        Waypoint(100, approach, OPEN),
        Waypoint(220, approach, OPEN),
        Waypoint(260, meeting, OPEN),
        Waypoint(300, meeting, CLOSED),
        Waypoint(330, meeting, CLOSED),
        Waypoint(390, tool_pose(MEETING_POINT + LEFT_RETREAT, LEFT_LEVEL), CLOSED),
    ]

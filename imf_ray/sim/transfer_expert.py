"""Scripted expert of the transfer task.

The right arm picks the cube up from above and brings it to the meeting point, still pointing down.
The left arm comes in level, its fingers above and below the cube, between the right one's fingers:
the grippers meet at right angles and neither's fingers cross the other's.
"""

import numpy as np

from imf_ray.sim.diana import LEFT_LEVEL, RIGHT_DOWN
from imf_ray.sim.kinematics import FloatArray
from imf_ray.sim.scripted_expert import CLOSED, OPEN, Waypoint, WaypointExpert, rotate, tool_pose

MEETING_POINT: FloatArray = np.array([0.0, 0.0, 0.25])  # m
HOVER: FloatArray = np.array([0.0, 0.0, 0.12])  # m, right tool over the cube before it goes down
APPROACH: FloatArray = np.array(
    [-0.14, 0.0, 0.0]
)  # m, left tool beside the cube before it closes in
RIGHT_RETREAT: FloatArray = np.array([0.26, 0.0, 0.10])  # m, from the meeting point
LEFT_RETREAT: FloatArray = np.array([-0.15, 0.0, 0.05])  # m, from the meeting point


class TransferExpert(WaypointExpert):
    """The cube must lie flat within its area, turned no further than the environment turns it."""

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

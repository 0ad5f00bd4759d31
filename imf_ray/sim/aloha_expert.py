"""Scripted expert of gym-aloha's transfer of a cube, in its own action space.

The right arm picks the cube up from above and brings it to the meeting point, still pointing down.
The left arm comes in level, its fingers above and below the cube, between the right one's fingers:
the grippers meet at right angles.
"""

import numpy as np
from numpy.typing import NDArray

from imf_ray.sim.kinematics import FloatArray
from imf_ray.sim.scripted_expert import CLOSED, OPEN, Waypoint, WaypointExpert, tool_pose

# Tool orientations (wxyz): x points out of the gripper, the fingers slide along y.
RIGHT_DOWN = (0.0, np.sqrt(0.5), 0.0, -np.sqrt(0.5))
LEFT_LEVEL = (np.sqrt(0.5), np.sqrt(0.5), 0.0, 0.0)

CUBE_HEIGHT = 0.02  # m, of its middle on the table: an episode begins with it 3 cm higher, falling
MEETING_POINT: FloatArray = np.array([0.0, 0.5, 0.25])  # m, of the cube
# Straight in front of its base the right arm turns its hand down in one plane. From there its wrist
# stays on one side of its singularity (the hand in line with the forearm), wherever the cube is.
RIGHT_READY: FloatArray = np.array([0.15, 0.5, 0.22])  # m

# From the cube's middle to the tool, in m.
RIGHT_GRASP: FloatArray = np.array([0.0, 0.0, -0.008])
RIGHT_HOVER: FloatArray = np.array([0.0, 0.0, 0.09])
RIGHT_RETREAT: FloatArray = np.array([0.15, 0.0, 0.10])
LEFT_GRASP: FloatArray = np.array([0.01, 0.0, 0.0])
LEFT_APPROACH: FloatArray = np.array([-0.12, 0.0, 0.0])
LEFT_RETREAT: FloatArray = np.array([-0.10, 0.0, 0.0])


class AlohaTransferExpert(WaypointExpert):
    """Plays an `AlohaWorld`; the cube must lie flat in the area where episodes begin."""

    def act(self) -> tuple[NDArray[np.float32], None]:
        """The next action (14,), see `AlohaWorld`; there is no end-effector space."""
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

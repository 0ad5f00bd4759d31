"""Scripted expert of the insertion task.

Both arms pick up from above: the left one takes the ring by two opposite outer sides, the right one
the bar by its middle. The left hand then turns level, so that the hole faces the other arm, and the
right arm, still pointing down, pushes the bar through.
"""

import numpy as np

from imf_ray.sim.diana import LEFT_DOWN, LEFT_LEVEL, RIGHT_DOWN
from imf_ray.sim.insert import BAR_HALF_SIZE, RING_HALF_SIZE
from imf_ray.sim.kinematics import FloatArray
from imf_ray.sim.scripted_expert import CLOSED, OPEN, Waypoint, WaypointExpert, rotate, tool_pose

MEETING_POINT: FloatArray = np.array([0.0, 0.0, 0.25])  # m, of the ring's middle
UP: FloatArray = np.array([0.0, 0.0, 1.0])
ALONG_BAR: FloatArray = np.array([1.0, 0.0, 0.0])  # from the ring to the right arm

GRIP_OFFSET = 0.011  # m, the tool above an object's middle: the finger tips clear the table
HOVER_HEIGHT = 0.06  # m, of the tool over its grip, before it goes down and after it was lifted
# The left hand turns between level and down in its arm's own vertical plane. On the way the wrist
# is singular (joint 6 = 0): off the plane, the arm would have to jump there.
TURNING_X = -0.18  # m
GAP = 0.03  # m, from the ring's face to the bar's tip before the insertion
BEYOND = 0.02  # m, from the ring's other face to the bar's tip after it


class InsertExpert(WaypointExpert):
    """The objects must lie flat within their areas, turned no further than the environment does."""

    def _plan(self, tools: FloatArray, objects: dict[str, FloatArray]) -> list[list[Waypoint]]:
        left_start, right_start = tools
        return [_left_plan(left_start, objects["ring"]), _right_plan(right_start, objects["bar"])]


def _left_plan(start: FloatArray, ring: FloatArray) -> list[Waypoint]:
    grip, grasp = ring[:3] + GRIP_OFFSET * UP, rotate(LEFT_DOWN, by=ring[3:])
    meeting = tool_pose(MEETING_POINT - GRIP_OFFSET * ALONG_BAR, LEFT_LEVEL)
    turning = tool_pose([TURNING_X, start[1], ring[2] + GRIP_OFFSET + HOVER_HEIGHT], LEFT_DOWN)
    return [
        Waypoint(0, start, OPEN),
        Waypoint(115, turning, OPEN),
        Waypoint(152, tool_pose(grip + HOVER_HEIGHT * UP, grasp), OPEN),
        Waypoint(172, tool_pose(grip, grasp), OPEN),
        Waypoint(187, tool_pose(grip, grasp), CLOSED),
        Waypoint(222, turning, CLOSED),
        Waypoint(325, meeting, CLOSED),
    ]


def _right_plan(start: FloatArray, bar: FloatArray) -> list[Waypoint]:
    grip, grasp = bar[:3] + GRIP_OFFSET * UP, rotate(RIGHT_DOWN, by=bar[3:])
    from_ring_to_grip = RING_HALF_SIZE[2] + BAR_HALF_SIZE[0]  # m, with the tip at the near face
    axis = MEETING_POINT + GRIP_OFFSET * UP
    before = axis + (from_ring_to_grip + GAP) * ALONG_BAR
    after = axis + (from_ring_to_grip - 2 * RING_HALF_SIZE[2] - BEYOND) * ALONG_BAR
    return [
        Waypoint(0, start, OPEN),
        Waypoint(100, tool_pose(grip + HOVER_HEIGHT * UP, grasp), OPEN),
        Waypoint(130, tool_pose(grip, grasp), OPEN),
        Waypoint(160, tool_pose(grip, grasp), CLOSED),
        Waypoint(185, tool_pose(grip + HOVER_HEIGHT * UP, grasp), CLOSED),
        Waypoint(250, tool_pose(before, RIGHT_DOWN), CLOSED),
        Waypoint(325, tool_pose(before, RIGHT_DOWN), CLOSED),
        Waypoint(375, tool_pose(after, RIGHT_DOWN), CLOSED),
    ]

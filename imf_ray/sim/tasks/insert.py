"""The insertion task: two arms pick up a square ring and a bar, and put the bar into the ring."""

import numpy as np

from imf_ray.sim.array_types import FloatArray
from imf_ray.sim.bimanual import BimanualEnv, planar_pose
from imf_ray.sim.diana import LEFT_DOWN, LEFT_LEVEL, RIGHT_DOWN
from imf_ray.sim.headless import mujoco
from imf_ray.sim.scene import scene_xml
from imf_ray.sim.scripted_expert import CLOSED, OPEN, Waypoint, WaypointExpert, rotate, tool_pose

# The hole of the ring is along its z axis and 18 mm long. The ring lies flat after a reset.
RING_HALF_SIZE = (0.034, 0.034, 0.009)  # m, of its outline
HOLE_HALF_WIDTH = 0.016  # m
# The long axis of the bar is its x axis. In the hole, it has 7 mm of clearance on each side.
BAR_HALF_SIZE = (0.08, 0.009, 0.009)  # m

# Ranges of x and y of the objects' centres after a reset, in m. Rotated objects do not overlap.
RING_AREA = ((-0.22, -0.08), (-0.1, 0.1))
BAR_AREA = ((0.08, 0.22), (-0.1, 0.1))
MAX_YAW = 0.3  # rad, maximum rotation about the z axis after a reset

STAGE_NONE, STAGE_ONE_TOUCHED, STAGE_BOTH_TOUCHED, STAGE_LIFTED, STAGE_ENTERED, STAGE_INSERTED = (
    range(6)
)

_MATERIALS = """
    <material name="ring" rgba="0.95 0.65 0.05 1" specular="0.2"/>
    <material name="bar" rgba="0.75 0.10 0.40 1" specular="0.2"/>"""


def _box_xml(position: tuple[float, ...], half_size: tuple[float, ...], material: str) -> str:
    """Return the geom of a box of light wood, 700 kg/m^3. The ring has 45 g, the bar 36 g."""
    pos, size = (" ".join(f"{number:g}" for number in xyz) for xyz in (position, half_size))
    return f"""
      <geom type="box" pos="{pos}" size="{size}" density="700" condim="4" friction="1 0.01 0.0001"
            material="{material}"/>"""


def _objects_xml() -> str:
    outer, _, half_height = RING_HALF_SIZE
    half_wall = (outer - HOLE_HALF_WIDTH) / 2
    offset = HOLE_HALF_WIDTH + half_wall  # m, of a wall's centre
    walls = "".join(
        _box_xml((0, sign * offset, 0), (outer, half_wall, half_height), "ring")
        + _box_xml((sign * offset, 0, 0), (half_wall, HOLE_HALF_WIDTH, half_height), "ring")
        for sign in (-1, 1)
    )
    return f"""
    <body name="ring" pos="{RING_AREA[0][0]} 0 {half_height}">
      <freejoint name="ring"/>
      {walls}
    </body>
    <body name="bar" pos="{BAR_AREA[0][1]} 0 {BAR_HALF_SIZE[2]}">
      <freejoint name="bar"/>
      {_box_xml((0, 0, 0), BAR_HALF_SIZE, "bar")}
    </body>"""


class SimAirInsertEnv(BimanualEnv):
    """Two arms put a bar through a ring. Observations and actions are those of `BimanualEnv`.

    Stages:

    1. One gripper touches its object: the left one the ring, or the right one the bar.
    2. Both grippers touch their objects.
    3. Both objects are off the table, each between the two fingers of its gripper.
    4. As stage 3, and an end of the bar is in the ring's hole.
    5. As stage 3, and the bar reaches through the hole (see `insertion_fraction`).
    """

    num_stages = STAGE_INSERTED
    success_description = (
        "stage 5 (the bar goes through the ring, both held in the air) was reached at any step"
    )
    scene = scene_xml("sim_air_insert_ring_bar", _MATERIALS, _objects_xml())
    objects = ("ring", "bar")

    def _sample_poses(self) -> dict[str, FloatArray]:
        return {
            "ring": self._sample_pose(RING_AREA, RING_HALF_SIZE[2]),
            "bar": self._sample_pose(BAR_AREA, BAR_HALF_SIZE[2]),
        }

    def _sample_pose(self, area: tuple[tuple[float, float], ...], height: float) -> FloatArray:
        x, y = (self.np_random.uniform(*bounds) for bounds in area)
        return planar_pose(x, y, height, self.np_random.uniform(-MAX_YAW, MAX_YAW))

    def _stage(self) -> int:
        on_ring = self._touching_fingers("ring")[0]
        on_bar = self._touching_fingers("bar")[1]
        grasped = on_ring.all() and on_bar.all()
        lifted = self._is_lifted("ring", RING_HALF_SIZE) and self._is_lifted("bar", BAR_HALF_SIZE)
        if not (grasped and lifted):
            return int(on_ring.any()) + int(on_bar.any())
        fraction = insertion_fraction(**self.object_poses())
        if fraction == 1:
            return STAGE_INSERTED
        return STAGE_ENTERED if fraction > 0 else STAGE_LIFTED


def insertion_fraction(ring: FloatArray, bar: FloatArray) -> float:
    """Return the fraction of the hole's length that the bar's axis occupies.

    The axis is the line between the centres of the bar's ends. The hole is the tunnel between the
    ring's faces. The result is 0 if any part of the axis between the faces is outside the hole.

    Args:
        ring: pose (7,) of the ring.
        bar: pose (7,) of the bar.
    """
    half_length = RING_HALF_SIZE[2]
    ends = bar[:3] + np.outer([-BAR_HALF_SIZE[0], BAR_HALF_SIZE[0]], _rotation(bar)[:, 0])
    low, high = sorted((ends - ring[:3]) @ _rotation(ring), key=lambda end: end[2])
    # Range of z in which the axis is between the faces.
    span = np.clip([low[2], high[2]], -half_length, half_length)
    if span[0] == span[1]:
        return 0.0
    along = (span - low[2]) / (high[2] - low[2])
    crossings = low + np.outer(along, high - low)  # (2, 3), the axis at both ends of the span
    if np.abs(crossings[:, :2]).max() > HOLE_HALF_WIDTH:
        return 0.0
    return float((span[1] - span[0]) / (2 * half_length))


def _rotation(pose: FloatArray) -> FloatArray:
    """Return the rotation matrix (3, 3) of a pose (7,). Its columns are the object's axes."""
    matrix = np.empty(9)
    mujoco.mju_quat2Mat(matrix, pose[3:])
    return matrix.reshape(3, 3)


# The scripted expert -----------------------------------------------------------------------------

MEETING_POINT: FloatArray = np.array([0.0, 0.0, 0.25])  # m, of the ring's centre
UP: FloatArray = np.array([0.0, 0.0, 1.0])
ALONG_BAR: FloatArray = np.array([1.0, 0.0, 0.0])  # from the ring to the right arm

GRIP_OFFSET = 0.011  # m, of the tool above an object's centre; keeps fingers off the table
HOVER_HEIGHT = 0.06  # m, of the tool above its grasp, before and after the grasp
# x of the tool while the left hand turns between level and down. It turns in one vertical plane
# through its base, because the wrist is singular on the way (joint 6 = 0). Outside this plane, the
# joints would have to jump there.
TURNING_X = -0.18  # m
PRE_INSERT_GAP = 0.03  # m, from the ring's face to the bar's tip before the insertion
POST_INSERT_OVERSHOOT = 0.02  # m, from the ring's other face to the bar's tip afterwards


class InsertExpert(WaypointExpert):
    """Scripted expert of the insertion task.

    Both arms grasp from above. The left one grasps the ring at two opposite outer sides, the right
    one grasps the bar at its centre. The left hand then turns level, so that the hole faces the
    other arm. The right hand still points down and pushes the bar through the hole.

    The objects must lie flat within the areas and the yaw range of `SimAirInsertEnv`.
    """

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
    from_ring_to_grip = RING_HALF_SIZE[2] + BAR_HALF_SIZE[0]  # m, if the tip is at the near face
    axis = MEETING_POINT + GRIP_OFFSET * UP
    before = axis + (from_ring_to_grip + PRE_INSERT_GAP) * ALONG_BAR
    after = axis + (from_ring_to_grip - 2 * RING_HALF_SIZE[2] - POST_INSERT_OVERSHOOT) * ALONG_BAR
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

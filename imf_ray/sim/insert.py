"""The insertion task: two arms pick up a square ring and a bar and join them in the air."""

import mujoco
import numpy as np

from imf_ray.sim.bimanual import BimanualEnv, planar_pose
from imf_ray.sim.kinematics import FloatArray
from imf_ray.sim.scene import scene_xml

# The ring's hole goes along its z; it lies flat, and the hole is a tunnel 18 mm long.
RING_HALF_SIZE = (0.034, 0.034, 0.009)  # m, of its outline
HOLE_HALF_WIDTH = 0.016  # m
# The bar goes along its x. Its cross-section leaves 7 mm to each side in the hole.
BAR_HALF_SIZE = (0.08, 0.009, 0.009)  # m

# Ranges of x and y of the middles at the start, in m: apart even when either is turned.
RING_AREA = ((-0.22, -0.08), (-0.1, 0.1))
BAR_AREA = ((0.08, 0.22), (-0.1, 0.1))
LARGEST_YAW = 0.3  # rad, turn about the vertical at the start

STAGE_NONE, STAGE_ONE_TOUCHED, STAGE_BOTH_TOUCHED, STAGE_LIFTED, STAGE_ENTERED, STAGE_THROUGH = (
    range(6)
)

_MATERIALS = """
    <material name="ring" rgba="0.95 0.65 0.05 1" specular="0.2"/>
    <material name="bar" rgba="0.75 0.10 0.40 1" specular="0.2"/>"""


def _box_xml(position: tuple[float, ...], half_size: tuple[float, ...], material: str) -> str:
    """A box of the density of light wood, 700 kg/m^3: the ring has 45 g, the bar 36 g."""
    pos, size = (" ".join(f"{number:g}" for number in xyz) for xyz in (position, half_size))
    return f"""
      <geom type="box" pos="{pos}" size="{size}" density="700" condim="4" friction="1 0.01 0.0001"
            material="{material}"/>"""


def _objects_xml() -> str:
    outer, _, half_height = RING_HALF_SIZE
    half_wall = (outer - HOLE_HALF_WIDTH) / 2
    middle = HOLE_HALF_WIDTH + half_wall  # m, of a wall
    walls = "".join(
        _box_xml((0, sign * middle, 0), (outer, half_wall, half_height), "ring")
        + _box_xml((sign * middle, 0, 0), (half_wall, HOLE_HALF_WIDTH, half_height), "ring")
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
    """Two arms put a bar through a ring; observations and actions are those of `BimanualEnv`.

    Stages: 1: one gripper touches its object (the left the ring, the right the bar); 2: both do;
    3: both objects are off the table, each between the two fingers of its gripper; 4: and an end
    of the bar is in the ring's hole; 5: and the bar goes through it (see `share_of_hole`).
    """

    num_stages = STAGE_THROUGH
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
        return planar_pose(x, y, height, self.np_random.uniform(-LARGEST_YAW, LARGEST_YAW))

    def _stage(self) -> int:
        at_ring = self._touching_fingers("ring")[0]
        at_bar = self._touching_fingers("bar")[1]
        held = at_ring.all() and at_bar.all()
        lifted = self._is_lifted("ring", RING_HALF_SIZE) and self._is_lifted("bar", BAR_HALF_SIZE)
        if not (held and lifted):
            return int(at_ring.any()) + int(at_bar.any())
        share = share_of_hole(**self.object_poses())
        if share == 1:
            return STAGE_THROUGH
        return STAGE_ENTERED if share > 0 else STAGE_LIFTED


def share_of_hole(ring: FloatArray, bar: FloatArray) -> float:
    """How much of the hole's length the bar's axis takes up, 0 to 1, from the poses (7,) of both.

    The axis is the segment between the middles of the bar's ends, the hole the finite tunnel
    between the ring's faces. 0 if the axis is anywhere between the faces but outside the hole.
    """
    half_length = RING_HALF_SIZE[2]
    ends = bar[:3] + np.outer([-BAR_HALF_SIZE[0], BAR_HALF_SIZE[0]], _rotation(bar)[:, 0])
    low, high = sorted((ends - ring[:3]) @ _rotation(ring), key=lambda end: end[2])
    span = np.clip([low[2], high[2]], -half_length, half_length)  # of the axis, between the faces
    if span[0] == span[1]:
        return 0.0
    along = (span - low[2]) / (high[2] - low[2])
    crossings = low + np.outer(along, high - low)  # (2, 3), the axis at both ends of the span
    if np.abs(crossings[:, :2]).max() > HOLE_HALF_WIDTH:
        return 0.0
    return float((span[1] - span[0]) / (2 * half_length))


def _rotation(pose: FloatArray) -> FloatArray:
    """Rotation matrix (3, 3) of a pose (7,): its columns are the object's axes."""
    matrix = np.empty(9)
    mujoco.mju_quat2Mat(matrix, pose[3:])
    return matrix.reshape(3, 3)

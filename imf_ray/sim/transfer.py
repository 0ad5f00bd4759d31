"""The transfer task: the right arm picks a cube up and hands it to the left arm in the air."""

from imf_ray.sim.bimanual import BimanualEnv, planar_pose
from imf_ray.sim.kinematics import FloatArray
from imf_ray.sim.scene import scene_xml

CUBE_HALF_SIZE = 0.02  # m
CUBE_AREA = ((0.05, 0.25), (-0.1, 0.1))  # m, ranges of x and y at the start
CUBE_YAW = 0.3  # rad, largest turn about the vertical at the start

STAGE_NONE, STAGE_TOUCHED, STAGE_LIFTED, STAGE_MET, STAGE_TRANSFERRED = range(5)

_MATERIAL = '<material name="cube" rgba="0.85 0.08 0.06 1" specular="0.2"/>'
_CUBE = f"""
    <body name="cube" pos="{CUBE_AREA[0][0]} 0 {CUBE_HALF_SIZE}">
      <freejoint name="cube"/>
      <geom name="cube" type="box" size="{CUBE_HALF_SIZE} {CUBE_HALF_SIZE} {CUBE_HALF_SIZE}"
            mass="0.05" condim="4" friction="1 0.01 0.0001" material="cube"/>
    </body>"""


class SimTransferEnv(BimanualEnv):
    """Two arms hand over a cube; observations and actions are those of `BimanualEnv`.

    Stages: 1: the right gripper touches the cube; 2: and the cube is off the table; 3: the left
    gripper touches the cube off the table; 4: the left gripper holds it off the table between both
    fingers and the right one has let go.
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
            return STAGE_MET
        return STAGE_LIFTED if right.any() else STAGE_NONE

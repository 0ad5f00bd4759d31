"""Modules that `imf_ray.load_policy` imports, tested in a new process."""

import subprocess
import sys

from tests.helpers import REPO_ROOT

CODE = """
import sys
import numpy as np
from imf_ray import load_policy

policy = load_policy("policies/sim_transfer")
image = np.zeros((policy.image_size, policy.image_size, 3), np.uint8)
images = {name: image for name in policy.camera_names}
action = policy.act({"images": images, "qpos": np.zeros(policy.state_dim)})
assert action.shape == (policy.action_dim,)
imported = {"ray", "mujoco", "h5py", "diffusers"} & set(sys.modules)
assert not imported, imported
"""


def test_a_policy_runs_without_ray_mujoco_and_hdf5() -> None:
    subprocess.run([sys.executable, "-c", CODE], check=True, cwd=REPO_ROOT)

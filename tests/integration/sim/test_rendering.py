"""Rendering in a process that also imports torchvision."""

import subprocess
import sys

RENDER_THEN_BUILD = """
import gymnasium, imf_ray
from imf_ray.env_vars import prepare_environment
prepare_environment(own_cluster=True)
env = gymnasium.make("imf_ray/SimTransfer-v0", camera_names=["top"])
env.reset(seed=0)
import torchvision
"""


def test_torchvision_can_be_imported_after_rendering():
    """Without a workaround, Mesa's LLVM crashes the process if torchvision loads triton's later."""
    done = subprocess.run([sys.executable, "-c", RENDER_THEN_BUILD], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

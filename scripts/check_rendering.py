"""Renders one image, or prints in one message what rendering needs."""

import sys

import gymnasium

from imf_ray.errors import UserError

env = gymnasium.make("imf_ray/SimTransfer-v0", render_mode="rgb_array")
try:
    env.reset(seed=0)
    image = env.render()
except UserError as error:
    sys.exit(str(error))
env.close()
if image.std() == 0:
    sys.exit("The rendered image is empty. Install a driver: apt-get install libgl1-mesa-dri")

"""Renders one image, or prints in one line what headless rendering needs."""

import sys

HELP = "Headless rendering needs: apt-get install libegl1 libgl1-mesa-dri libopengl0"

try:
    import gymnasium

    import imf_ray  # noqa: F401

    env = gymnasium.make("imf_ray/SimTransfer-v0", render_mode="rgb_array")
    env.reset(seed=0)
    image = env.render()
    env.close()
except Exception as error:  # OpenGL libraries raise errors of many types
    sys.exit(f"{HELP} ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})")
if image.std() == 0:
    sys.exit(f"{HELP} (the image is empty)")

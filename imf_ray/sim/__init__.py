"""Simulated bimanual tasks: MuJoCo environments, their scripted experts, and headless rendering."""

import os

# MuJoCo chooses its OpenGL backend when it is imported, and its default needs a display.
os.environ.setdefault("MUJOCO_GL", "egl")

EGL_HELP = (
    "MuJoCo cannot render with MUJOCO_GL=egl: the EGL library is missing. On Debian or Ubuntu: "
    "apt-get install libegl1 libgl1-mesa-dri libopengl0"
)

try:
    import mujoco as _mujoco  # noqa: F401
except AttributeError as error:  # PyOpenGL finds no library and looks a function up in None
    raise RuntimeError(EGL_HELP) from error

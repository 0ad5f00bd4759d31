"""MuJoCo, set up to render without a display; modules of `imf_ray.sim` import it from here."""

import importlib
import os
from contextlib import suppress

# MuJoCo chooses its OpenGL backend at import, and its default needs a display.
os.environ.setdefault("MUJOCO_GL", "egl")

# Mesa's software renderer loads an LLVM, and so does triton. If triton's is loaded second, the
# process dies with SIGSEGV. torch loads triton late, when a trunk or an optimizer is made.
with suppress(ImportError):
    importlib.import_module("triton")

EGL_HELP = (
    "MuJoCo cannot render with MUJOCO_GL=egl: the EGL library is missing. On Debian or Ubuntu: "
    "apt-get install libegl1 libgl1-mesa-dri libopengl0"
)

try:
    import mujoco
except AttributeError as error:  # PyOpenGL without a library fails on an attribute of None
    raise RuntimeError(EGL_HELP) from error

__all__ = ["EGL_HELP", "mujoco"]

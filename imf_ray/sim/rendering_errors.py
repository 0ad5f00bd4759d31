"""Errors of OpenGL libraries, explained by the environment variables and packages that cause them.

The libraries raise errors of many types, and few messages name the cause.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import NamedTuple

from imf_ray.errors import UserError

DEFAULT_BACKEND = "egl"
"""Value of MUJOCO_GL if it is not set or empty. MuJoCo's own default needs a display."""
OPENGL_MODULES = (
    "OpenGL",
    "glfw",
    "mujoco.egl",
    "mujoco.osmesa",
    "mujoco.glfw",
    "mujoco.gl_context",
    "mujoco.rendering.classic.gl_context",
    "dm_control._render",
    "gymnasium.envs.mujoco.mujoco_rendering",
)
"""Modules of other packages that load OpenGL or make its contexts."""
DISABLED = ("disable", "disabled", "off", "false", "0")
GLFW_NAMES = ("glfw", "glx", "enable", "enabled", "on", "true", "1")
"""Values of MUJOCO_GL that MuJoCo takes for GLFW."""


class Backend(NamedTuple):
    """Debian packages of an OpenGL backend, and advice for the case that all are installed."""

    libraries: dict[str, str]
    """Package of each library."""
    packages: str
    advice: str


BACKENDS = {
    "egl": Backend(
        {"libEGL.so.1": "libegl1", "libOpenGL.so.0": "libopengl0"},
        "libegl1 libgl1-mesa-dri libopengl0",
        "No driver works: the package libgl1-mesa-dri or the GPU's driver is missing.",
    ),
    "osmesa": Backend({"libOSMesa.so.8": "libosmesa6"}, "libosmesa6", "It cannot be used."),
    "glfw": Backend(
        {"libX11.so.6": "libx11-6", "libGL.so.1": "libgl1"},
        "libx11-6 libgl1 xvfb",
        "It needs a display that can be opened (DISPLAY {display}), or a virtual one: xvfb-run -a "
        "imf-ray ...",
    ),
}


class RenderingError(UserError):
    """No image can be rendered, because OpenGL is missing or set up wrongly."""


def explain(error: BaseException) -> RenderingError:
    """Return the explanation of an error that was raised when a renderer was made."""
    setting = os.environ.get("MUJOCO_GL", "")
    backend = "glfw" if setting in GLFW_NAMES else setting
    return RenderingError(
        f"No image can be rendered with MUJOCO_GL={setting}"
        f"{' (the default)' * (setting == DEFAULT_BACKEND)}. {_remedy(backend, error)}"
    )


@contextmanager
def opengl_errors_explained() -> Iterator[None]:
    """Explain errors that come from OpenGL in the code of another package; others stay as they are.

    Raises:
        RenderingError: the code failed in one of `OPENGL_MODULES`.
    """
    try:
        yield
    except RenderingError:
        raise
    except Exception as error:
        if _comes_from_opengl(error):
            raise explain(error) from error
        raise


def _remedy(backend: str, error: BaseException) -> str:
    """Return what is wrong with a backend, and the way out."""
    unset = f"unset MUJOCO_GL for {DEFAULT_BACKEND}, which needs no display."
    if backend in DISABLED:
        return f"This value turns rendering off: {unset}"
    if backend not in BACKENDS:
        return f"MuJoCo has no such backend. Choose one of {', '.join(BACKENDS)}, or {unset}"
    platform = os.environ.get("PYOPENGL_PLATFORM") or backend
    if backend != "glfw" and platform != backend:
        return f"PYOPENGL_PLATFORM={platform} selects another backend: unset PYOPENGL_PLATFORM."
    libraries, packages, advice = BACKENDS[backend]
    missing = [name for name in libraries if not _is_loadable(name)]
    device = os.environ.get("MUJOCO_EGL_DEVICE_ID")
    reason = f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"
    if device is not None and ("MUJOCO_EGL_DEVICE_ID" in str(error) or "int()" in str(error)):
        return (
            f"MUJOCO_EGL_DEVICE_ID={device} is not the number of an EGL device ({reason}): unset "
            "MUJOCO_EGL_DEVICE_ID for the first one that works."
        )
    if missing:
        names = ", ".join(libraries[name] for name in missing)
        advice = f"The package {names} is missing ({', '.join(missing)} cannot be loaded)."
    else:
        display = f"is {os.environ['DISPLAY']}" if os.environ.get("DISPLAY") else "is not set"
        advice = f"{advice.format(display=display)} The error was {reason.rstrip('.')}."
    install = f"On Debian or Ubuntu: apt-get install {packages}"
    return (
        f"{advice} {install}" if backend == DEFAULT_BACKEND else f"{advice} {install}. Or {unset}"
    )


def _is_loadable(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _comes_from_opengl(error: BaseException | None) -> bool:
    """Return True if an error, or one that it follows from, concerns OpenGL."""
    while error is not None:
        names = _module_names(error.__traceback__)
        if "OpenGL" in str(error) or any(name.startswith(OPENGL_MODULES) for name in names):
            return True
        error = error.__cause__ or error.__context__
    return False


def _module_names(traceback: TracebackType | None) -> Iterator[str]:
    """Yield the name of the module of each frame."""
    while traceback is not None:
        yield str(traceback.tb_frame.f_globals.get("__name__"))
        traceback = traceback.tb_next

"""MuJoCo without OpenGL. The first image that is rendered loads an OpenGL backend.

Modules of `imf_ray.sim` import MuJoCo from here. MuJoCo would load the backend of the environment
variable MUJOCO_GL when it is imported, and fail then if a library is missing. Most processes render
nothing.
"""

import importlib
import os
import sys
from contextlib import suppress
from typing import Any

from imf_ray.sim.rendering_errors import DEFAULT_BACKEND

_DISABLED = "disable"
"""Value of MUJOCO_GL with which MuJoCo loads no backend."""

# Other packages accept only lower case.
os.environ["MUJOCO_GL"] = os.environ.get("MUJOCO_GL", "").strip().lower() or DEFAULT_BACKEND


def _import_without_opengl() -> Any:
    """Import MuJoCo, and let it load its OpenGL backend when a context is first made."""
    setting = os.environ["MUJOCO_GL"]
    os.environ["MUJOCO_GL"] = _DISABLED
    try:
        module: Any = importlib.import_module("mujoco")
    finally:
        os.environ["MUJOCO_GL"] = setting
    _gl_context_module(module).GLContext = module.GLContext = _make_first_context
    return module


def _gl_context_module(module: Any) -> Any:
    """Return the module from which `mujoco.Renderer` takes `GLContext`."""
    return sys.modules[module.Renderer.__module__].gl_context


def _make_first_context(*size: int) -> Any:
    """Load the OpenGL backend and make its `GLContext`; replaces `mujoco.GLContext` until then."""
    load_opengl()
    return mujoco.GLContext(*size)


def load_opengl() -> None:
    """Load MuJoCo's OpenGL backend, unless it is loaded.

    Raises:
        Exception: the backend cannot be loaded; libraries raise errors of many types. See
            `imf_ray.sim.rendering_errors`.
    """
    load_llvm()
    gl_context = _gl_context_module(mujoco)
    if getattr(gl_context, "GLContext", _make_first_context) is _make_first_context:
        vars(gl_context).pop("GLContext", None)
        importlib.reload(gl_context)
        mujoco.GLContext = gl_context.GLContext


def load_llvm() -> None:
    """Load triton's copy of LLVM. Call this before a package loads OpenGL.

    Mesa's software renderer has another copy. If triton's copy is loaded second, the process dies
    with SIGSEGV. torch imports triton late, when a trunk or an optimizer is made.
    """
    with suppress(ImportError):
        importlib.import_module("triton")


# If the caller's code has imported MuJoCo, its backend is already loaded.
mujoco: Any = sys.modules["mujoco"] if "mujoco" in sys.modules else _import_without_opengl()

__all__ = ["load_llvm", "load_opengl", "mujoco"]

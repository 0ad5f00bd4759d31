"""OpenGL is loaded when an image is first rendered, and not before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import REPO_ROOT

STEP_AND_RENDER = """
import sys
import numpy as np
from imf_ray.errors import UserError
from imf_ray.sim.factory import make_env
options = dict(control_hz=50, max_episode_steps=2, camera_names=["top"], image_size=16)
env = make_env("imf_ray/SimTransfer-v0", render_images=False, **options)
env.reset(seed=0)
env.step(env.action_space.sample() * 0)
print("OpenGL" in sys.modules, "glfw" in sys.modules, "triton" in sys.modules)
for attempt in range(2):
    try:
        print(env.unwrapped.render_cameras()["top"].shape)
    except UserError as error:
        print(type(error).__name__, error)
"""


def _step_and_render(**environment: str) -> list[str]:
    """Step an env and render it twice in a new process; return the lines that it prints."""
    variables = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    command = [sys.executable, "-c", STEP_AND_RENDER]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=REPO_ROOT, env={**variables, **environment}
    )
    assert done.returncode == 0, done.stderr
    loaded, *rest = done.stdout.splitlines()
    assert loaded == "False False False", "OpenGL was loaded before the first image"
    return rest


@pytest.mark.parametrize("setting", [None, "", "EGL"])
def test_the_default_backend_renders(setting: str | None) -> None:
    environment = {} if setting is None else {"MUJOCO_GL": setting}
    assert _step_and_render(**environment) == ["(16, 16, 3)"] * 2


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"MUJOCO_GL": "glfw", "DISPLAY": ":77"}, ["MUJOCO_GL=glfw", ":77", "xvfb"]),
        ({"MUJOCO_GL": "banana"}, ["MUJOCO_GL=banana"]),
        ({"MUJOCO_GL": "off"}, ["MUJOCO_GL=off"]),
        ({"MUJOCO_EGL_DEVICE_ID": "gpu"}, ["MUJOCO_GL=egl", "MUJOCO_EGL_DEVICE_ID=gpu"]),
        ({"PYOPENGL_PLATFORM": "glx"}, ["MUJOCO_GL=egl", "PYOPENGL_PLATFORM=glx"]),
    ],
)
def test_one_message_explains_why_nothing_is_rendered(
    environment: dict[str, str], words: list[str]
) -> None:
    first, second = _step_and_render(**environment)
    assert first == second and first.startswith("RenderingError")
    assert all(word in first for word in words), first


@pytest.mark.parametrize(
    ("setting", "library", "package"),
    [
        ("egl", "libEGL.so", "libegl1"),
        ("osmesa", "libOSMesa.so", "libosmesa6"),
        ("egl", "libEGL_mesa.so.0", "libgl1-mesa-dri"),
    ],
)
def test_the_package_of_a_missing_library_is_named(
    tmp_path: Path, setting: str, library: str, package: str
) -> None:
    for name in (library, f"{library}.1", f"{library}.8"):  # empty files cannot be loaded
        (tmp_path / name).touch()
    first, second = _step_and_render(MUJOCO_GL=setting, LD_LIBRARY_PATH=str(tmp_path))
    assert first == second
    assert f"MUJOCO_GL={setting}" in first and package in first

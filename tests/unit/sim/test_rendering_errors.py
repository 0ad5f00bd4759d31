"""Messages of OpenGL errors: the value of MUJOCO_GL, what is missing, and the way out."""

from __future__ import annotations

import pytest

from imf_ray.sim import rendering_errors
from imf_ray.sim.rendering_errors import RenderingError, explain, opengl_errors_explained

CAUSE = AttributeError("'NoneType' object has no attribute 'glGetError'")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clear the variables that OpenGL reads, and let every library be installed."""
    for name in ("MUJOCO_GL", "MUJOCO_EGL_DEVICE_ID", "PYOPENGL_PLATFORM", "DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(rendering_errors, "_is_loadable", lambda name: True)


@pytest.mark.parametrize(
    ("variables", "missing", "words"),
    [
        ({"MUJOCO_GL": "osmesa"}, "libOSMesa.so.8", ["MUJOCO_GL=osmesa", "libosmesa6"]),
        ({"MUJOCO_GL": "egl"}, "libEGL.so.1", ["MUJOCO_GL=egl", "default", "libegl1 is missing"]),
        ({"MUJOCO_GL": "egl"}, "libOpenGL.so.0", ["libopengl0 is missing"]),
        ({"MUJOCO_GL": "egl"}, "", ["MUJOCO_GL=egl", "libgl1-mesa-dri"]),
        ({"MUJOCO_GL": "glfw"}, "", ["MUJOCO_GL=glfw", "DISPLAY is not set", "xvfb"]),
        ({"MUJOCO_GL": "glx", "DISPLAY": ":77"}, "", ["MUJOCO_GL=glx", ":77"]),
        ({"MUJOCO_GL": "glfw", "DISPLAY": ":0"}, "libGL.so.1", ["libgl1 is missing"]),
        ({"MUJOCO_GL": "banana"}, "", ["MUJOCO_GL=banana", "egl, osmesa, glfw"]),
        ({"MUJOCO_GL": "off"}, "", ["MUJOCO_GL=off", "off"]),
        ({"MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "glx"}, "", ["PYOPENGL_PLATFORM=glx"]),
    ],
)
def test_the_message_names_the_setting_and_the_package(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], missing: str, words: list[str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rendering_errors, "_is_loadable", lambda name: name != missing)
    message = str(explain(CAUSE))
    assert all(word in message for word in words), message
    if variables["MUJOCO_GL"] in ("osmesa", "banana", "off"):
        assert "unset MUJOCO_GL" in message


@pytest.mark.parametrize("device", ["x", "7"])
def test_the_number_of_a_device_is_named(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", device)
    errors = {
        "x": ValueError("invalid literal for int() with base 10: 'x'"),
        "7": RuntimeError("The MUJOCO_EGL_DEVICE_ID environment variable must be an integer"),
    }
    assert f"MUJOCO_EGL_DEVICE_ID={device}" in str(explain(errors[device]))


def test_only_errors_of_opengl_are_explained() -> None:
    def raise_in(module: str, error: Exception) -> None:
        """Raise an error in a function of a module."""
        exec("def fail(error):\n    raise error", scope := {"__name__": module})
        scope["fail"](error)

    with pytest.raises(RenderingError), opengl_errors_explained():
        raise_in("OpenGL.platform.egl", CAUSE)
    with pytest.raises(RenderingError), opengl_errors_explained():
        raise_in("dm_control._render", RuntimeError("must be one of"))
    with pytest.raises(RenderingError), opengl_errors_explained():
        try:
            raise_in("glfw", OSError("no display"))
        except OSError as error:
            raise RuntimeError("the env cannot be reset") from error
    with pytest.raises(KeyError), opengl_errors_explained():
        raise_in("gym_somewhere", KeyError("x"))

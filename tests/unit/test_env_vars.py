"""The environment of the commands."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imf_ray.env_vars import prepare_environment


def test_a_user_without_a_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container may run with a user id without an entry, which Ray Train refuses."""

    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    monkeypatch.setenv("HOME", "")
    prepare_environment(own_cluster=True)
    assert os.access(os.environ["HOME"], os.W_OK)


@pytest.mark.parametrize("value", ["/dev/null", "/nonexistent", "relative"])
def test_a_home_folder_stays(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", value)
    prepare_environment(own_cluster=True)
    assert os.environ["HOME"] == value

"""The folder in which compiled code is kept for later runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from imf_ray.env_vars import WORKER_ENV
from imf_ray.training.acceleration import CACHE_VARIABLE, _keep_compiled_code


@pytest.mark.parametrize("value", [None, default_cache_dir()])
def test_compiled_code_is_kept_in_the_home_folder(
    value: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(CACHE_VARIABLE, value or "")
    if value is None:
        monkeypatch.delenv(CACHE_VARIABLE)
    _keep_compiled_code()
    assert Path(os.environ[CACHE_VARIABLE]) == tmp_path / "imf_ray/inductor"


def test_a_folder_of_the_user_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    _keep_compiled_code()
    assert os.environ[CACHE_VARIABLE] == str(tmp_path)


@pytest.mark.parametrize("home", ["/dev/null", "/proc"])
def test_a_home_folder_that_cannot_be_written(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    monkeypatch.setenv(CACHE_VARIABLE, default_cache_dir())
    _keep_compiled_code()
    assert os.environ[CACHE_VARIABLE] == default_cache_dir()
    assert CACHE_VARIABLE not in WORKER_ENV  # PyTorch would create it even if nothing is compiled

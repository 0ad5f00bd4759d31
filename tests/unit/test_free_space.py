"""The free disk space with which a run may start."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from imf_ray.errors import StorageError
from imf_ray.storage import check_free_space


@pytest.mark.parametrize("folder", ["", "runs", "runs/deep/er"])
def test_a_nearly_full_disk_is_refused(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def disk_usage(path: Path) -> SimpleNamespace:
        asked.append(path)
        return SimpleNamespace(total=10**9, free=10**6)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    with pytest.raises(StorageError, match="storage_path"):
        check_free_space(str(tmp_path / folder))
    assert asked == [tmp_path]


@pytest.mark.parametrize(("total", "free"), [(10**12, 10**9), (0, 0)])
def test_enough_and_unknown_space(
    total: int, free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(total=total, free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    check_free_space(str(tmp_path))
    check_free_space("memory://bucket/runs")

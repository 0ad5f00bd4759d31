"""Paths of the files that are shipped with the package: search spaces and the released policy.

In a checkout they are at the top of the repository; a wheel carries them in `imf_ray/_bundled`.
"""

from __future__ import annotations

from pathlib import Path

PACKAGE_DIR = Path(__file__).parent


def search_space_path(name: str) -> Path:
    """Path of the search space `NAME.yaml`; it may not exist."""
    return _bundled_dir() / "search_spaces" / f"{name}.yaml"


def search_space_names() -> list[str]:
    """Sorted names of the shipped search spaces."""
    return sorted(path.stem for path in (_bundled_dir() / "search_spaces").glob("*.yaml"))


def policy_path(name: str) -> Path:
    """Folder of the released policy `name`; it may not exist."""
    return _bundled_dir() / "policies" / name


def _bundled_dir() -> Path:
    installed = PACKAGE_DIR / "_bundled"
    return installed if installed.is_dir() else PACKAGE_DIR.parent

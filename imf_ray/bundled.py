"""Paths of the files that are shipped with the package: search spaces and released policies.

In a checkout they are at the top of the repository. In a wheel they are in `imf_ray/_bundled`.
"""

from __future__ import annotations

from pathlib import Path

PACKAGE_DIR = Path(__file__).parent


def search_space_path(name: str) -> Path:
    """Return the path of a search space by its name. The file may not exist."""
    return _bundled_dir() / "search_spaces" / f"{name}.yaml"


def search_space_names() -> list[str]:
    """Return the sorted names of the shipped search spaces."""
    return sorted(path.stem for path in (_bundled_dir() / "search_spaces").glob("*.yaml"))


def policy_path(path: str | Path) -> Path:
    """Return `path`, or the folder of the released policy if `path` does not exist.

    The name of a released policy is its path in the repository, `policies/NAME`.
    """
    path = Path(path)
    released_policy = _bundled_dir() / path
    is_name = len(path.parts) == 2 and path.parts[0] == "policies"
    is_released = is_name and released_policy.is_dir()
    return released_policy if is_released and not path.exists() else path


def is_in_wheel(path: Path) -> bool:
    """True if a file is shipped inside the installed package, where nothing may be written."""
    return path.is_relative_to(PACKAGE_DIR / "_bundled")


def _bundled_dir() -> Path:
    """Return the folder of the shipped files."""
    wheel_dir = PACKAGE_DIR / "_bundled"
    return wheel_dir if wheel_dir.is_dir() else PACKAGE_DIR.parent

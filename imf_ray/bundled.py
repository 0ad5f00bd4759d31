"""Paths of the files that are shipped with the package: search spaces and released policies.

In a checkout they are at the top of the repository. In a wheel they are in `imf_ray/_bundled`.
"""

from __future__ import annotations

import os
from pathlib import Path

from imf_ray.storage import is_remote, local_dir

PACKAGE_DIR = Path(__file__).parent


def search_spaces_dir() -> Path:
    """Return the folder of the shipped search spaces."""
    return _bundled_dir() / "search_spaces"


def policy_path(path: str | Path) -> Path:
    """Return `path`, or the folder of the released policy if `path` does not exist.

    The name of a released policy is its path in the repository, `policies/NAME`.
    """
    path = Path(path)
    released_policy = _bundled_dir() / path
    is_name = len(path.parts) == 2 and path.parts[0] == "policies"
    is_released = is_name and released_policy.is_dir()
    return released_policy if is_released and not path.exists() else path


def policy_dir(path: str | Path) -> Path:
    """Return the absolute local folder of a policy's path, released name or URL.

    For a URL it is the local copy, which may not exist yet. `~` is the home folder.

    Raises:
        UserError: see `imf_ray.storage.parse_path`.
    """
    if is_remote(path):
        return local_dir(str(path))
    # Without this, the name of a policy in records could be `..`.
    return Path(os.path.abspath(local_dir(str(policy_path(path)))))


def policy_names() -> list[str]:
    """Return the sorted names of the released policies, in the form `policies/NAME`."""
    configs = (_bundled_dir() / "policies").glob("*/config.yaml")
    return sorted(f"policies/{config.parent.name}" for config in configs)


def is_in_wheel(path: Path) -> bool:
    """True if a file is shipped inside the installed package, where nothing may be written."""
    return path.is_relative_to(PACKAGE_DIR / "_bundled")


def _bundled_dir() -> Path:
    """Return the folder of the shipped files."""
    wheel_dir = PACKAGE_DIR / "_bundled"
    return wheel_dir if wheel_dir.is_dir() else PACKAGE_DIR.parent

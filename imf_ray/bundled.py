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


def policy_path(path: str | Path) -> Path:
    """Return `path`, or the released policy of that name if `path` does not exist.

    Released policies are named as in the repository: `policies/NAME`.
    """
    path = Path(path)
    released = _bundled_dir() / path
    is_name = len(path.parts) == 2 and path.parts[0] == "policies"
    return released if is_name and not path.exists() and released.is_dir() else path


def _bundled_dir() -> Path:
    installed = PACKAGE_DIR / "_bundled"
    return installed if installed.is_dir() else PACKAGE_DIR.parent

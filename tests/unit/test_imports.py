"""Who may import whom (the plan of the house), read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import REPO_ROOT

ROOT = REPO_ROOT / "imf_ray"
ENTRY_POINTS = {
    "collect",
    "train",
    "tune",
    "status",
    "evaluate",
    "compare",
    "report",
    "export",
    "launch",
}

# What each room may import of ours, besides itself.
BASICS = {"config", "schema", "errors", "files", "places"}
ROOMS: dict[str, set[str]] = {
    "models": set(),
    "sim": set(),
    "agents": {"models", "config", "schema", "errors"},
    "data": BASICS | {"mp4"},
    "demos": BASICS | {"sim", "data", ""},
    "rollout": BASICS | {"agents", "sim", "data", "mp4", ""},
    "training": BASICS | {"agents", "data", "rollout", "mp4", "resources"},
    "judging": BASICS | {"agents", "training", "rollout", "sim", "resources"},
    "sweep": BASICS | {"training", "rollout", "resources"},
}
FOREIGN: dict[str, set[str]] = {
    "models": {"torch", "torchvision"},
    "agents": {"torch", "numpy", "omegaconf", "safetensors", "diffusers"},
    "sim": {"mujoco", "gymnasium", "numpy"},
    "data": {"numpy", "h5py", "PIL", "pyarrow", "rich", "ray", "upath", "platformdirs"},
}
WITH_RAY = {
    "data/pipeline.py",
    "demos/workers.py",
    "rollout/actors.py",
    "launch.py",
    *(f"{name}.py" for name in ENTRY_POINTS),
}


def _imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return names


def _ours(path: Path) -> set[str]:
    """First part below imf_ray of what a file imports of ours; '' is the package itself."""
    return {[*name.split("."), ""][1] for name in _imports(path) if name.split(".")[0] == "imf_ray"}


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_know_only_whom_they_may(room: str) -> None:
    for path in (ROOT / room).glob("*.py"):
        if path.name == "__main__.py":
            continue  # an entry point
        strangers = _ours(path) - ROOMS[room] - {room}
        assert not strangers, f"{path} imports {strangers}"


@pytest.mark.parametrize("room", FOREIGN)
def test_rooms_use_only_their_libraries(room: str) -> None:
    for path in (ROOT / room).glob("*.py"):
        used = {name.split(".")[0] for name in _imports(path)} - {"imf_ray", ""}
        strangers = used - FOREIGN[room] - set(sys.stdlib_module_names)
        assert not strangers, f"{path} imports {strangers}"


def test_ray_appears_only_where_it_may() -> None:
    for path in ROOT.rglob("*.py"):
        if any(name.split(".")[0] == "ray" for name in _imports(path)):
            place = path.relative_to(ROOT)
            allowed = str(place) in WITH_RAY or place.parts[0] in ("training", "sweep")
            assert allowed, f"{place} imports ray"


def test_nobody_imports_an_entry_point() -> None:
    entries = ENTRY_POINTS - {"launch"}
    for path in ROOT.rglob("*.py"):
        assert not _ours(path) & entries, f"{path} imports an entry point"


def test_what_takes_long_to_import_is_imported_where_it_is_needed() -> None:
    """A run starts a dozen processes; of these libraries each needs one or none."""
    slow = ("diffusers", "torchvision", "torch._dynamo", "scipy", "matplotlib", "swanlab")
    slow += ("imf_ray.agents.ddpm",)
    for path in ROOT.rglob("*.py"):
        if path == ROOT / "agents" / "ddpm.py":
            continue
        for statement in ast.parse(path.read_text()).body:  # those inside functions run later
            names = [getattr(statement, "module", None) or ""]
            if isinstance(statement, ast.Import):
                names = [alias.name for alias in statement.names]
            assert not any(name.startswith(slow) for name in names), path


def test_importing_the_package_registers_and_does_nothing_else() -> None:
    code = (
        "import sys, gymnasium, imf_ray; "
        "assert 'imf_ray/SimTransfer-v0' in gymnasium.registry; "
        "heavy = {'torch', 'ray', 'mujoco', 'h5py'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

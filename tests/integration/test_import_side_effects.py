"""Modules that imports of the package load, tested in a new process."""

import subprocess
import sys

from tests.helpers import REPO_ROOT


def _modules_after(statement: str) -> set[str]:
    """Run a statement in a new process and return the names of the modules loaded then."""
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=REPO_ROOT
    )
    return set(done.stdout.split())


def test_importing_the_package_only_registers_the_envs() -> None:
    statement = "import gymnasium, imf_ray; gymnasium.spec('imf_ray/SimTransfer-v0')"
    assert not _modules_after(statement) & {"h5py", "mujoco", "ray", "torch"}


def test_loading_a_policy_needs_neither_ray_nor_mujoco_nor_hdf5() -> None:
    modules = _modules_after("from imf_ray import load_policy")
    assert "torch" in modules and not modules & {"h5py", "mujoco", "ray"}


def test_commands_import_mujoco_only_to_make_an_env() -> None:
    """A missing or broken OpenGL setup stops nothing that does not simulate."""
    modules = _modules_after(
        "import imf_ray.training.trainer, imf_ray.evaluation.candidates, imf_ray.sweep.baselines, "
        "imf_ray.demos.collect, imf_ray.sweep.runner, imf_ray.dataset, imf_ray.report"
    )
    assert "imf_ray.sim.factory" in modules and not modules & {"mujoco", "OpenGL", "glfw"}


def test_benchmarks_can_be_imported() -> None:
    """The benchmarks have no other test that notices a changed API."""
    files = (REPO_ROOT / "benchmarks").glob("*.py")
    names = {path.stem for path in files} - {"__init__", "lerobot_loader"}  # LeRobot is missing
    statement = "; ".join(f"import benchmarks.{name}" for name in sorted(names))
    assert {f"benchmarks.{name}" for name in names} <= _modules_after(statement)


def test_help_imports_neither_torch_nor_ray() -> None:
    call = "[main([name, '--help-all']) for name in ('train', 'tune', 'evaluate')]"
    modules = _modules_after(f"from imf_ray.__main__ import main; {call}")
    assert "imf_ray.tune" in modules and not modules & {"mujoco", "ray", "torch"}

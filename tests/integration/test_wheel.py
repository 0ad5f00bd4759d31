"""A wheel built from the checkout works without it."""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import pytest

import imf_ray
from tests.helpers import REPO_ROOT

SOURCES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "imf_ray", "search_spaces")
POLICY = "policies/sim_transfer"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a wheel, install it into a folder without its dependencies, and return the folder."""
    root = tmp_path_factory.mktemp("wheel")
    # The wheel is built from a copy, because setuptools writes into its source folder.
    for name in (*SOURCES, POLICY):
        source, copy = REPO_ROOT / name, root / "source" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy)
    offline = ("--quiet", "--no-index", "--no-deps", "--disable-pip-version-check")
    pip = (sys.executable, "-m", "pip")
    source = str(root / "source")
    _run([*pip, "wheel", *offline, "--no-build-isolation", "-w", str(root), source], cwd=root)
    (wheel,) = root.glob("*.whl")
    assert wheel.name.startswith(f"imf_ray-{imf_ray.__version__}-")
    _run([*pip, "install", *offline, "--target", str(root / "target"), str(wheel)], cwd=root)
    return root / "target"


def _run(
    command: Sequence[str], cwd: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def _run_installed(installed: Path, cwd: Path, *arguments: str) -> str:
    """Run Python with the wheel and the environment's packages, but without the checkout."""
    # -S skips `site` and thus the path hook of an editable installation.
    packages = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    path = os.pathsep.join([str(installed), *sorted(packages)])
    env = os.environ | {"PYTHONPATH": path}
    return _run([sys.executable, "-S", *arguments], cwd, env).stdout


@pytest.mark.parametrize("overrides", [(), ("search_space=quickstart",)])
def test_tune_finds_its_search_space_from_an_empty_folder(
    installed: Path, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    script = str(installed / "bin" / "imf-ray")
    printed = _run_installed(installed, tmp_path, script, "tune", "--print-config", *overrides)
    assert "search_space: " in printed and "vision_backbone:" in printed


def test_search_spaces_and_the_released_policy_are_found(installed: Path, tmp_path: Path) -> None:
    code = (
        "import imf_ray, imf_ray.bundled as bundled, imf_ray.config as config\n"
        "print(imf_ray.__file__)\n"
        "print(*config.yaml_names(bundled.search_spaces_dir()))\n"
        "print(imf_ray.load_policy('policies/sim_transfer').camera_names)"
    )
    package, spaces, cameras = _run_installed(installed, tmp_path, "-c", code).splitlines()
    assert Path(package).parent == installed / "imf_ray"
    assert spaces.split() == sorted(p.stem for p in (REPO_ROOT / "search_spaces").glob("*.yaml"))
    assert "r_vis" in cameras


def test_the_wheel_has_every_file_of_the_package(installed: Path) -> None:
    def files(root: Path) -> set[str]:
        kinds = (".py", ".yaml", ".typed")
        return {str(p.relative_to(root)) for p in root.rglob("*") if p.suffix in kinds}

    shipped = {name for name in files(installed / "imf_ray") if not name.startswith("_bundled/")}
    assert shipped == files(REPO_ROOT / "imf_ray")


def test_pages_find_their_templates_style_and_script(installed: Path, tmp_path: Path) -> None:
    code = (
        "from imf_ray.pages import model, render\n"
        "snapshot = model.Snapshot('sweep', 'mine', 'runs/mine', 0.0, model.State.FINISHED, ())\n"
        "print(render.__file__, render.render_page(snapshot), sep='\\n')"
    )
    module, _, page = _run_installed(installed, tmp_path, "-c", code).partition("\n")
    assert Path(module).is_relative_to(installed)
    assert "<h1>mine</h1>" in page and "light-dark(" in page and '"use strict"' in page

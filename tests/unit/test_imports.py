"""The layers of the package: which module may import which, and how long files may be."""

import ast
import graphlib
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.helpers import REPO_ROOT

PACKAGE_DIR = REPO_ROOT / "imf_ray"
MODULES = sorted(PACKAGE_DIR.rglob("*.py"))
MAX_LINES, MAX_ENTRY_POINT_LINES = 450, 120

ENTRY_POINTS = {
    "board",
    "collect",
    "compare",
    "dataset",
    "demo",
    "evaluate",
    "export",
    "report",
    "status",
    "train",
    "tune",
}
COMMAND_LINE = {"__main__", "cli", "command", *ENTRY_POINTS}
"""Modules that may import everything; only they import each other."""

LEAVES = {
    "aliases",
    "argument_hints",
    "bundled",
    "captions",
    "checkpoint_dir",
    "claim_owner",
    "claims",
    "config",
    "env_vars",
    "errors",
    "figures",
    "files",
    "folders",
    "images",
    "interrupts",
    "labels",
    "network",
    "progress_bars",
    "redaction",
    "schema",
    "storage",
    "suggestions",
    "tables",
    "terminal",
    "video",
    "yaml_text",
}
"""Modules that import only each other."""
RAY_LEAVES = {"allocation", "cluster", "metrics_export", "ray_internals"}
"""Modules that import only each other, leaves and Ray."""

# Imports allowed between packages. `""` is the package itself, imported for its version.
PACKAGES: dict[str, set[str]] = {
    "models": set(),
    "sim": {"errors"},
    "agents": LEAVES | {"models"},
    "policy": LEAVES | {"agents", "models"},
    "data": LEAVES | {"metrics_export", "ray_internals"},
    "conversion": LEAVES | RAY_LEAVES | {"data"},
    "demos": LEAVES | {"", "data", "sim"},
    "rollout": LEAVES | RAY_LEAVES | {"", "agents", "data", "sim"},
    "training": LEAVES | RAY_LEAVES | {"", "agents", "data", "rollout"},
    "evaluation": LEAVES | RAY_LEAVES | {"agents", "rollout", "sim", "training"},
    "sweep": LEAVES | RAY_LEAVES | {"evaluation", "rollout", "sim", "training"},
    "launches": LEAVES | {""},
    "pages": LEAVES | {"launches", "rollout", "sim", "sweep", "training"},
}
LIBRARIES: dict[str, set[str]] = {
    "images": {"numpy", "PIL"},
    "captions": {"PIL"},
    "models": {"torch", "torchvision"},
    "agents": {"diffusers", "numpy", "safetensors", "torch"},
    "policy": {"numpy", "torch"},
    "sim": {"gymnasium", "mujoco", "numpy"},
    "data": {
        "av",
        "h5py",
        "numpy",
        "PIL",
        "platformdirs",
        "pyarrow",
        "ray",
        "rich",
        "upath",
        "zarr",
    },
}
"""The only third-party libraries of these packages."""
MODULES_WITH_RAY = (
    "cluster.py",
    "conversion/run.py",
    "data/pipeline.py",
    "demos/collect.py",
    "metrics_export.py",
    "ray_internals.py",
    "rollout/actor_pool.py",
    "sweep/",
    "training/",
)
SLOW_LIBRARIES = (
    "diffusers",
    "imf_ray.agents.ddpm",  # imports diffusers
    "matplotlib",
    "scipy",
    "swanlab",
    "tensorboard",
    "torch._dynamo",
    "torch.utils.tensorboard",
    "torchvision",
)


def _name(path: Path) -> str:
    """Return the dotted name of a module of the package."""
    parts = path.relative_to(REPO_ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULE_NAMES = {_name(path) for path in MODULES}


def _top(module: str) -> str:
    """Return the part after `imf_ray` of a module's name; "" for the package itself."""
    return [*module.split("."), ""][1]


def _nodes(tree: ast.AST, in_functions: bool) -> Iterator[ast.AST]:
    """Walk a syntax tree, but not into `if TYPE_CHECKING:`, and into functions only if asked."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        is_typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        is_function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
        if not is_typing and (in_functions or not is_function):
            yield from _nodes(child, in_functions)


@cache
def _imports(path: Path, in_functions: bool = True) -> frozenset[str]:
    """Return the modules that a file imports, by default also inside functions."""
    names = set()
    for node in _nodes(ast.parse(path.read_text()), in_functions):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            # `from package import module` imports the module.
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & MODULE_NAMES
            names |= submodules or {node.module}
    return frozenset(names)


def _own_imports(path: Path) -> set[str]:
    """Return the parts of `imf_ray` that a file imports."""
    return {_top(name) for name in _imports(path) if name.split(".")[0] == "imf_ray"}


def _files(package: str) -> list[Path]:
    """Return the files of a package or module below `imf_ray`; `__main__` is an entry point."""
    files = [path for path in MODULES if _top(_name(path)) == package]
    return [path for path in files if path.stem != "__main__"]


def test_every_module_has_a_layer() -> None:
    layers = {"", *COMMAND_LINE, *LEAVES, *RAY_LEAVES, *PACKAGES}
    assert {_top(_name(path)) for path in MODULES} <= layers


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_lower_layers(package: str) -> None:
    for path in _files(package):
        unexpected = _own_imports(path) - PACKAGES[package] - {package}
        assert not unexpected, f"{path} imports {unexpected}"


@pytest.mark.parametrize("leaf", sorted(LEAVES | RAY_LEAVES))
def test_leaves_import_only_leaves(leaf: str) -> None:
    allowed = LEAVES | RAY_LEAVES if leaf in RAY_LEAVES else LEAVES
    for path in _files(leaf):
        unexpected = _own_imports(path) - allowed
        assert not unexpected, f"{path} imports {unexpected}"


@pytest.mark.parametrize("package", LIBRARIES)
def test_packages_use_only_their_libraries(package: str) -> None:
    for path in _files(package):
        libraries = {name.split(".")[0] for name in _imports(path)} - {"imf_ray"}
        unexpected = libraries - LIBRARIES[package] - set(sys.stdlib_module_names)
        assert not unexpected, f"{path} imports {unexpected}"


def test_only_some_modules_import_ray() -> None:
    for path in MODULES:
        if any(name.split(".")[0] == "ray" for name in _imports(path)):
            name = path.relative_to(PACKAGE_DIR).as_posix()
            assert name.startswith(MODULES_WITH_RAY), f"{path} imports ray"


def test_pages_need_neither_torch_nor_ray_nor_mujoco() -> None:
    """A board runs next to training and must stay small."""
    paths = {_name(path): path for path in MODULES}
    imported = {_name(path) for path in _files("pages")}
    waiting = [*imported]
    while waiting:
        for name in _imports(paths[waiting.pop()], in_functions=False):
            parents = [name.rsplit(".", depth)[0] for depth in range(name.count(".") + 1)]
            new = {name, *parents} - imported
            imported |= new
            waiting += new & paths.keys()
    assert not imported & {"torch", "ray", "mujoco"}


def test_mujoco_is_set_up_before_it_is_imported() -> None:
    for path in _files("sim"):
        if path.stem != "headless":
            assert "mujoco" not in _imports(path), f"{path}: use imf_ray.sim.headless"


def test_no_module_imports_an_entry_point() -> None:
    for path in MODULES:
        if path.stem not in COMMAND_LINE:
            assert not _own_imports(path) & COMMAND_LINE, f"{path} imports the command line"


def test_modules_do_not_import_each_other_in_a_cycle() -> None:
    graph = {_name(path): _imports(path) & MODULE_NAMES - {_name(path)} for path in MODULES}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(reversed(error.args[1]))}")


def test_slow_libraries_are_imported_inside_functions() -> None:
    """A run starts a dozen processes; each needs at most one of these libraries."""
    for path in MODULES:
        if path == PACKAGE_DIR / "agents" / "ddpm.py":
            continue
        for statement in ast.parse(path.read_text()).body:
            names = [getattr(statement, "module", None) or ""]
            if isinstance(statement, ast.Import):
                names = [alias.name for alias in statement.names]
            assert not any(name.startswith(SLOW_LIBRARIES) for name in names), path


def test_tests_and_benchmarks_do_not_import_each_other() -> None:
    for folder, other in (
        ("tests", "benchmarks"),
        ("benchmarks", "tests"),
        ("testing_support", "tests"),
        ("testing_support", "benchmarks"),
    ):
        for path in (REPO_ROOT / folder).rglob("*.py"):
            assert other not in {name.split(".")[0] for name in _imports(path)}, path


@pytest.mark.parametrize("folder", ["benchmarks", "imf_ray", "scripts", "testing_support", "tests"])
def test_files_are_short(folder: str) -> None:
    lines = {path: path.read_text().count("\n") for path in (REPO_ROOT / folder).rglob("*.py")}
    assert not {str(path): count for path, count in lines.items() if count > MAX_LINES}


def test_entry_points_are_short() -> None:
    for name in ENTRY_POINTS:
        assert (PACKAGE_DIR / f"{name}.py").read_text().count("\n") <= MAX_ENTRY_POINT_LINES, name

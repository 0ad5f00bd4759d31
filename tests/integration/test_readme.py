"""The README and the guide: the snippet runs unchanged, and files and options in them exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from imf_ray.schema import all_options

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
MAX_LINES = 130
CHECK_IMPORTS = """
import sys
assert action.shape == (16,), action.shape
heavy = {"ray", "mujoco", "h5py"} & set(sys.modules)
assert not heavy, f"imported: {heavy}"
"""


def test_the_python_snippet_runs_without_ray_mujoco_and_hdf5() -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    command = [sys.executable, "-c", snippet + CHECK_IMPORTS]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_links_lead_to_files_and_the_page_is_short() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    missing = [t for t in targets if "://" not in t and not (ROOT / t).exists()]
    assert not missing
    assert len(README.splitlines()) <= MAX_LINES


def test_the_documented_task_file_is_the_shipped_one() -> None:
    shipped = (ROOT / "imf_ray/conf/task/aloha_transfer_cube.yaml").read_text()
    keys = "\n".join(line for line in shipped.splitlines() if not line.startswith("#"))
    assert keys in (ROOT / "docs/environments.md").read_text()


def test_options_in_the_guide_exist() -> None:
    options = set(all_options())
    sections = "|".join({key.partition(".")[0] for key in options if "." in key})
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    for page in pages:
        if page.name == "LOG.md":
            continue
        for name in re.findall(rf"(?<![\w./-])((?:{sections})\.[a-z_.]+)=", page.read_text()):
            assert name in options, f"{page.name}: {name}"

"""Claims of real processes, which are killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from imf_ray.claim_owner import Owner
from imf_ray.claims import CLAIM_FILE, ClaimedError, claim
from imf_ray.storage import local_dir
from tests.helpers.commands import command_environment

OWNER = """
import subprocess, sys, time
from imf_ray.claims import claim
from imf_ray.storage import local_dir

with claim(local_dir(sys.argv[1]), "wait"):
    child = subprocess.Popen(["sleep", "60"])  # as Ray's processes, it outlives a killed parent
    print(child.pid, flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=["folder", "URL"])
def owner(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, int]]:
    """Yield the folder or URL that another process has claimed, and the id of that process."""
    folder = str(tmp_path / "run")
    url = folder if request.param == "folder" else f"file://{folder}"
    command = [sys.executable, "-c", OWNER, url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=command_environment())
    assert process.stdout is not None
    child = psutil.Process(int(process.stdout.readline()))
    yield url, process.pid
    child.kill()
    process.kill()
    process.wait()


def test_a_killed_process_loses_its_claim_at_once(owner: tuple[str, int], tmp_path: Path) -> None:
    url, pid = owner
    folder = local_dir(url)
    with pytest.raises(ClaimedError, match=f"process {pid} "), claim(folder, "wait"):
        pass
    os.kill(pid, 9)
    start = time.monotonic()
    while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:  # it is not waited for
        time.sleep(0.01)
    with claim(folder, "wait"):
        assert time.monotonic() - start < 5.0
        current = Owner.parse((tmp_path / "run" / CLAIM_FILE).read_text())
        assert current is not None and current.pid == os.getpid()
    assert not (tmp_path / "run" / CLAIM_FILE).exists()


def test_of_many_processes_that_start_at_once_one_gets_the_claim(tmp_path: Path) -> None:
    """Also if all of them find the claim of a dead process."""
    (tmp_path / CLAIM_FILE).write_text("{}")
    script = """
import sys, time
from pathlib import Path
from imf_ray import claims

claims.DAMAGED_AFTER_S = 1.0
time.sleep(max(0.0, float(sys.argv[2]) - time.time()))
try:
    with claims.claim(Path(sys.argv[1]), "wait"):
        print("claimed", flush=True)
        time.sleep(8)
except claims.ClaimedError:
    print("refused")
"""
    together = str(time.time() + 4)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path), together],
            stdout=subprocess.PIPE,
            env=command_environment(),
            text=True,
        )
        for _ in range(6)
    ]
    outcomes = sorted(process.communicate(timeout=60)[0].strip() for process in processes)
    assert outcomes == ["claimed", *["refused"] * 5]

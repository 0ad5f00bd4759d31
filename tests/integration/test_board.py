"""The board while runs continue: as a command, next to a run, on a bucket, and in a browser."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from imf_ray.config import load_config
from imf_ray.pages import follower, mirror
from imf_ray.pages.background import board_while_running
from testing_support.generated_runs import GeneratedRun, generate_sweep
from tests.helpers.boards import serving
from tests.helpers.browser import Browser
from tests.helpers.buckets import open_bucket, s3_server
from tests.helpers.commands import command_environment

TIMEOUT_S = 120.0
"""Seconds after which something that must happen counts as missing. Machines may be busy."""
TRAINING_LIBRARIES = ("libtorch", "_raylet", "libmujoco")
"""Parts of the names of libraries that the board's process must not load."""


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
        return str(response.read().decode())


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def is_served(url: str) -> bool:
    try:
        get(url)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """A folder with a run and a sweep of four trials, all of them running."""
    generate_sweep(tmp_path / "runs/sweep", num_trials=4, num_lines=20)
    GeneratedRun(tmp_path / "runs/a run").add_lines(20)
    return tmp_path / "runs"


@pytest.fixture
def prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the board read and sync at every request, without a limit of its cost."""
    for module, name, value in (
        (follower, "READ_INTERVAL_S", 0.0),
        (follower, "MAX_INTERVAL_S", 0.0),
        (mirror, "SYNC_INTERVAL_S", 0.0),
        (mirror, "MAX_SYNC_TIME_FRACTION", 1e9),
    ):
        monkeypatch.setattr(module, name, value)


@contextmanager
def started(*command: str, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=cwd,
        env=command_environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def read_address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("Live page: http://127.0.0.1:"), line
    return line.removeprefix("Live page: ").strip()


def test_the_command_serves_all_runs_without_training_libraries(storage: Path) -> None:
    with started("-m", "imf_ray", "board", "board.port=0", cwd=storage.parent) as process:
        address = read_address(process)
        assert "a run" in get(address) and "sweep" in get(address)
        assert "learning rate" in get(f"{address}a%20run/").lower()
        trial = next((storage / "sweep/trials").iterdir()).name
        assert trial in get(f"{address}sweep/") and trial in get(f"{address}sweep/trials/{trial}/")
        libraries = Path(f"/proc/{process.pid}/maps").read_text()
        assert not [name for name in TRAINING_LIBRARIES if name in libraries]
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT_S) == 0
        assert not is_served(address)


def test_a_board_next_to_a_run_ends_with_the_run(
    storage: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(["train.board=true", "board.port=0"])
    printed: list[str] = []

    def has_address() -> bool:
        printed.append(capsys.readouterr().out)
        return "\n" in "".join(printed)

    with board_while_running(config, storage / "a run"):
        wait_for(has_address)
        address = "".join(printed).split()[2]
        assert address.endswith("/a%20run/")
        assert "a run" in get(address)
    started_at = time.monotonic()
    assert "a run" in get(address)  # an open page shows the results
    wait_for(lambda: not is_served(address))
    assert time.monotonic() - started_at < TIMEOUT_S


RUN = """
import sys, time
from pathlib import Path
from imf_ray.config import load_config
from imf_ray.pages.background import board_while_running
with board_while_running(load_config(["train.board=true", "board.port=0"]), Path(sys.argv[1])):
    time.sleep(600)
"""


def test_a_board_next_to_a_run_ends_when_the_run_is_killed(storage: Path) -> None:
    with started("-c", RUN, str(storage / "a run"), cwd=storage.parent) as process:
        address = read_address(process)
        process.send_signal(signal.SIGKILL)
        wait_for(lambda: not is_served(address))


def test_a_run_goes_on_without_a_board_that_cannot_start(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(["train.board=true", "board.host=203.0.113.1"])
    with board_while_running(config, storage / "a run"):
        printed: list[str] = []
        wait_for(lambda: printed.append(capsys.readouterr().out) or "\n" in "".join(printed))
    assert "The run has no live page: board.host=203.0.113.1" in "".join(printed)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    with s3_server() as server:
        yield open_bucket(server, monkeypatch, tmp_path)


def test_a_sweep_in_a_bucket_is_followed_through_deletion_and_outage(
    storage: Path, bucket: str, prompt: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = S3FileSystem()
    trials = sorted((storage / "sweep/trials").iterdir())
    video = trials[0] / "videos/checkpoint_00002000.mp4"
    video.parent.mkdir()
    video.write_bytes(bytes(range(256)))
    (trials[0] / "checkpoint_00002000/model.safetensors").write_bytes(b"weights")

    def upload() -> None:
        fs.put(f"{storage}/", bucket, recursive=True)

    upload()
    with serving(bucket) as address:
        page = get(f"{address}/sweep/")
        assert bucket in page and all(trial.name in page for trial in trials)
        assert "2,000" in page or "2000" in page
        link = f"{address}/sweep/trials/{trials[0].name}/videos/{video.name}"
        request = urllib.request.Request(link, headers={"Range": "bytes=250-"})
        with urllib.request.urlopen(request) as part:
            assert part.status == 206 and part.read() == bytes(range(250, 256))
        # The same name, but another log.
        lines = (trials[0] / "metrics.jsonl").read_text().replace("2000", "1900")
        (trials[0] / "metrics.jsonl").write_text(lines)
        upload()
        assert "1900" in get(f"{address}/sweep/trials/{trials[0].name}/")
        fs.rm(f"{bucket}/sweep", recursive=True)
        assert f"{bucket}/sweep does not exist" in get(f"{address}/sweep/")
        assert "sweep" not in get(f"{address}/").partition("<main>")[2]
        with monkeypatch.context() as outage:

            async def fail(*_: object, **__: object) -> None:
                raise ConnectionError("no route")

            outage.setattr(S3FileSystem, "get_s3", fail)
            assert f"{bucket} cannot be read: ConnectionError" in get(f"{address}/")
        upload()
        for path in ("", "sweep/"):
            page = get(f"{address}/{path}")
            assert "cannot be read" not in page and "does not exist" not in page
            assert "sweep" in page.partition("<main>")[2]


def test_success_appears_without_a_reload(storage: Path, prompt: None, tmp_path: Path) -> None:
    run = GeneratedRun(storage / "later")
    run.add_lines(19)
    with Browser() as browser:
        with serving(str(storage)) as address:
            page = browser.open(f"{address}/later/")
            page.evaluate("window.marker = 1")
            assert "95 %" not in page.text("main") and "/ 20" not in page.text("main")
            run.add_lines(1)  # and a validation
            page.wait_for("document.querySelector('main').innerText.includes('of 20')")
            away = storage.rename(tmp_path / "away")
            page.wait_for("document.querySelector('main').innerText.includes('does not exist')")
            away.rename(storage)
            page.wait_for("!document.querySelector('main').innerText.includes('does not exist')")
            assert page.evaluate("window.marker") == 1
            assert not page.errors
            assert all(url.startswith(address) for url in page.requests)
        page.wait_for("document.querySelector('#live').classList.contains('lost')")
        with serving(str(storage), port=int(address.rpartition(":")[2])):
            page.wait_for("!document.querySelector('#live').classList.contains('lost')")
        assert page.evaluate("window.marker") == 1

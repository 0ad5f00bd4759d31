"""The board next to a submitted sweep, in a browser."""

from __future__ import annotations

import sys
import threading
import time
import urllib.request
from pathlib import Path

from imf_ray.pages.server import open_socket
from tests.helpers.browser import Browser
from tests.helpers.configs import TINY_TRAINING
from tests.helpers.head_node import start_head

SPACE = """
fixed:
  agent: state_imf_attnres
  agent.head.n_emb: 16
  agent.head.n_head: 2
  agent.head.n_kv_head: 2
grid:
  agent.head.n_layer: [1, 2]
"""
TIMEOUT_S = 900.0


def test_the_board_of_a_submitted_sweep_shows_success_without_a_reload(
    demonstrations: Path, tmp_path: Path
) -> None:
    space = tmp_path / "two.yaml"
    space.write_text(SPACE)
    with open_socket("127.0.0.1", 0) as probe:
        port = probe.getsockname()[1]
    command = [
        *(sys.executable, "-m", "imf_ray.tune", *TINY_TRAINING),
        *(f"search_space={space}", f"data.dataset_dir={demonstrations}"),
        *(f"storage_path={tmp_path}/runs", "run_name=watched", "task.max_episode_steps=60"),
        *("train.board=true", f"board.port={port}"),
    ]
    url, log = f"http://127.0.0.1:{port}/watched/", []
    with start_head(require_token=False) as head, Browser() as browser:
        job = threading.Thread(target=lambda: log.append(head.submit("board", *command).stdout))
        job.start()
        wait_until_served(url, job)
        page = browser.open(url)
        page.evaluate("window.marker = 1")
        texts = [page.text("main")]
        while job.is_alive():
            page.listen(1.0)
            texts.append(page.text("main"))
        assert page.evaluate("window.marker") == 1
    assert "'board' succeeded" in log[0], log[0]
    assert f"Live page: {url}" in log[0] and f"ssh -N -L {port}:127.0.0.1:{port} " in log[0]
    assert "running" in "".join(texts) and "running" not in texts[-1]
    assert not is_success_shown(texts[0]) and is_success_shown(texts[-1])


def is_success_shown(text: str) -> bool:
    """Return True if a page shows a success rate with its interval."""
    return "[0." in text


def wait_until_served(url: str, job: threading.Thread) -> None:
    """Wait until a page exists."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            urllib.request.urlopen(url, timeout=60).close()
            return
        except OSError:  # no server, or no page yet
            assert job.is_alive() and time.monotonic() < deadline
            time.sleep(0.5)

"""When a folder is read and its page is rendered again."""

from __future__ import annotations

import dataclasses
import gzip
from pathlib import Path

import pytest

from imf_ray.errors import StorageError, UserError
from imf_ray.pages import follower
from imf_ray.pages.follower import Follower
from imf_ray.pages.model import Row, Snapshot, State

RUNNING = Row("run", "run", State.RUNNING, step=1, last_entry_age_s=1.0)


def snapshot(row: Row, read_at: float = 0.0) -> Snapshot:
    return Snapshot("run", "run", "runs/run", read_at, row.state, [row])


class Folder:
    """A folder whose content a test sets, and a count of the pages rendered of it."""

    def __init__(self) -> None:
        self.content: Snapshot | Exception = snapshot(RUNNING)
        self.num_rendered = 0
        self.follower = Follower("runs/run", self.read, self.render)

    def read(self) -> Snapshot:
        if isinstance(self.content, Exception):
            raise self.content
        return self.content

    def render(self, content: Snapshot) -> str:
        self.num_rendered += 1
        return " ".join([*content.notes, *(f"step {row.step}" for row in content.rows)])

    def refresh(self) -> str:
        self.follower.refresh()
        assert self.follower.page is not None
        return self.follower.page.html.decode()


def test_a_page_is_rendered_when_its_content_changes() -> None:
    folder = Folder()
    assert folder.refresh() == "step 1"
    page = folder.follower.page
    older = dataclasses.replace(RUNNING, last_entry_age_s=2.0)
    folder.content = snapshot(older, read_at=1.0)
    folder.refresh()
    assert folder.num_rendered == 1 and folder.follower.page is page
    folder.content = snapshot(dataclasses.replace(older, step=2))
    assert folder.refresh() == "step 2"
    assert page is not None and folder.follower.page is not None
    assert folder.follower.page.etag != page.etag
    assert gzip.decompress(folder.follower.page.gzipped) == b"step 2"


@pytest.mark.parametrize(("state", "num_rendered"), [(State.RUNNING, 2), (State.FINISHED, 1)])
def test_ages_are_renewed_now_and_then_while_a_run_is_active(
    state: State, num_rendered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "AGE_INTERVAL_S", 0.0)
    folder = Folder()
    folder.content = snapshot(dataclasses.replace(RUNNING, state=state))
    folder.refresh()
    folder.refresh()
    assert folder.num_rendered == num_rendered


def test_a_folder_that_fails_shows_what_was_read_last_and_recovers() -> None:
    folder = Folder()
    folder.refresh()
    for error in (StorageError("runs cannot be read."), OSError("gone"), KeyError("damaged")):
        folder.content = error
        text = folder.refresh()
        assert str(error) in text and "what was read at" in text and "step 1" in text
    folder.content = snapshot(RUNNING)
    assert folder.refresh() == "step 1" and folder.follower.problem is None


def test_a_folder_that_was_never_read_shows_the_reason() -> None:
    folder = Folder()
    folder.content = StorageError("runs cannot be read.")
    assert folder.refresh() == "runs cannot be read." and folder.follower.has_page
    folder.content = UserError("runs is a file.")
    assert folder.refresh() == "runs is a file." and not folder.follower.has_page


def test_a_page_that_cannot_be_rendered_shows_the_reason() -> None:
    folder = Folder()
    folder.content = dataclasses.replace(snapshot(RUNNING), notes=[None])
    assert "TypeError" in folder.refresh()
    folder.content = snapshot(RUNNING)
    assert folder.refresh() == "step 1"


def test_an_expensive_page_is_read_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_s, now = [0.0], 1000.0
    monkeypatch.setattr(follower.time, "thread_time", lambda: cpu_s[0])
    monkeypatch.setattr(follower.time, "monotonic", lambda: now)
    folder = Folder()

    def due_after(cost_s: float) -> float:
        """Return the seconds after which a folder may be read again that costs so much."""
        nonlocal now

        def read() -> Snapshot:
            cpu_s[0] += cost_s
            return snapshot(RUNNING)

        folder.follower = Follower("runs/run", read, folder.render)
        folder.follower.refresh()
        start = now
        while not folder.follower.is_due:
            now += 0.5
        return now - start

    fraction = follower.MAX_CPU_FRACTION
    assert due_after(0.0) == follower.READ_INTERVAL_S
    assert due_after(4 * fraction) == 4.0
    assert due_after(1000 * fraction) == follower.MAX_INTERVAL_S


def test_a_missing_root_keeps_its_name(tmp_path: Path) -> None:
    assert follower.empty_snapshot(f"{tmp_path}/runs", "missing").title == "runs"

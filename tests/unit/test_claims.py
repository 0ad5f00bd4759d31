"""Claims: who may write to a folder, after the death of other writers and beside living ones.

A lock belongs to an open file, so two claims of one process exclude each other like those of two
processes.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from imf_ray import claims
from imf_ray.claim_owner import Owner
from imf_ray.claims import CLAIM_FILE, ClaimedError, claim, require_unclaimed
from imf_ray.errors import UserError
from imf_ray.storage import local_dir

WAY_OUT = "choose another run_name"


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Wait for fractions of a second."""
    times = {"HEARTBEAT_S": 0.05, "DEAD_AFTER_S": 0.5, "DAMAGED_AFTER_S": 0.3, "BUSY_WAIT_S": 0.1}
    for name, seconds in {**times, "READ_BACK_S": 0.2, "POLL_S": 0.02}.items():
        monkeypatch.setattr(claims, name, seconds)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _owner(**changes: Any) -> Owner:
    """Return the owner of a claim that this process would write."""
    return dataclasses.replace(Owner.this_process(lock_device=None, folder=""), **changes)


ELSEWHERE = {"machine": "another boot id", "host": "elsewhere"}


def _write(file: Path | UPath, owner: Owner) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(dataclasses.asdict(owner)))


@contextmanager
def _heartbeat(file: Path | UPath, owner: Owner) -> Iterator[None]:
    """Renew the claim of an owner on another machine, whose clock is an hour behind."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(claims.HEARTBEAT_S):
            _write(file, dataclasses.replace(owner, alive_at=time.time() - 300))

    _write(file, owner)
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_a_second_writer_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with claim(folder, WAY_OUT):
        with pytest.raises(ClaimedError) as refused, claim(folder, WAY_OUT):
            pass
        for part in (str(folder), str(os.getpid()), os.uname().nodename, "since", "run_name"):
            assert part in str(refused.value)
        with pytest.raises(ClaimedError):
            require_unclaimed(folder, WAY_OUT)
    require_unclaimed(folder, WAY_OUT)
    with claim(folder, WAY_OUT):  # and again, after the first has ended
        pass


def test_spellings_of_one_folder_are_one_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    spellings = [tmp_path / "link", Path("run"), Path("./link/"), tmp_path / "x" / ".." / "run"]
    (tmp_path / "x").mkdir()
    with claim(folder, WAY_OUT):
        for spelling in spellings:
            with pytest.raises(ClaimedError), claim(spelling, WAY_OUT):
                pass
        with pytest.raises(ClaimedError), claim(local_dir(f"file://{folder}"), WAY_OUT):
            pass
    with (
        claim(local_dir(f"file://{folder}/"), WAY_OUT),
        pytest.raises(ClaimedError),
        claim(folder, WAY_OUT),
    ):
        pass


def test_a_claim_leaves_nothing_behind(tmp_path: Path) -> None:
    deep, kept = tmp_path / "a" / "b", tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    for folder in (deep, kept):
        with claim(folder, WAY_OUT):
            assert (folder / CLAIM_FILE).is_file()
    with pytest.raises(RuntimeError, match="failed"), claim(deep, WAY_OUT):
        raise RuntimeError("failed")
    assert not deep.parent.exists()
    assert [path.name for path in kept.iterdir()] == ["file"]
    require_unclaimed(deep, WAY_OUT)
    assert not deep.parent.exists()


DEAD: dict[str, Callable[[], str]] = {
    "killed, on this machine": lambda: json.dumps(
        dataclasses.asdict(_owner(pid=2**22 + 1, start_time=1))
    ),
    "its pid belongs to another process": lambda: json.dumps(
        dataclasses.asdict(_owner(start_time=1))
    ),
    "another machine, long ago": lambda: json.dumps(
        dataclasses.asdict(_owner(**ELSEWHERE, alive_at=0.0))
    ),
    "another machine, a moment ago": lambda: json.dumps(dataclasses.asdict(_owner(**ELSEWHERE))),
    "another machine, whose clock is ahead": lambda: json.dumps(
        dataclasses.asdict(_owner(**ELSEWHERE, alive_at=time.time() + 3600))
    ),
    "another container of this machine": lambda: json.dumps(
        dataclasses.asdict(_owner(pid_namespace="pid:[1]"))
    ),
    "empty": lambda: "",
    "torn": lambda: json.dumps(dataclasses.asdict(_owner()))[:40],
    "zeros": lambda: "\0" * 100,
    "another structure": lambda: '{"token": "t", "since": null}',
    "values of other types": lambda: json.dumps(
        {**dataclasses.asdict(_owner()), "since": "now", "alive_at": None}
    ),
}


@pytest.mark.parametrize("content", DEAD.values(), ids=list(DEAD))
@pytest.mark.parametrize("kind", ["folder", "URL"])
def test_the_claim_of_a_dead_writer_is_taken_over(
    tmp_path: Path, content: Callable[[], str], kind: str
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / CLAIM_FILE).write_text(content())
    local = folder if kind == "folder" else local_dir(f"file://{folder}")
    for _ in range(2):
        with claim(local, WAY_OUT):
            owner = Owner.parse((folder / CLAIM_FILE).read_text())
            assert owner is not None and owner.pid == os.getpid()
    assert not (folder / CLAIM_FILE).exists()


def test_the_dead_owner_of_a_lock_is_taken_over_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one in another container of this machine, which has other process ids."""

    def wait(*_: Any) -> bool:
        raise AssertionError("the lock is enough")

    monkeypatch.setattr(claims._Claim, "_changes", wait)
    device = tmp_path.stat().st_dev
    _write(tmp_path / CLAIM_FILE, _owner(pid_namespace="pid:[1]", lock_device=device))
    with claim(tmp_path, WAY_OUT):
        pass


@pytest.mark.parametrize("content", ["", "{", "\0" * 100])
@pytest.mark.parametrize("age_s", [0, 100])
def test_an_old_damaged_claim_is_taken_over_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, age_s: float
) -> None:
    """A fresh one may belong to a writer that has just started, so it is watched."""
    watched: list[str] = []
    monkeypatch.setattr(claims._Claim, "_changes", lambda _, text, owner: watched.append(text))
    file = tmp_path / CLAIM_FILE
    file.write_text(content)
    os.utime(file, times=(time.time() - age_s,) * 2)
    monkeypatch.setattr(claims, "DEAD_AFTER_S", 60.0)
    with claim(tmp_path, WAY_OUT):
        assert watched == ([] if age_s else [content])


@pytest.mark.parametrize("kind", ["folder", "URL", "memory"])
@pytest.mark.parametrize(
    "owner",
    [{**ELSEWHERE, "pid": 77}, {"pid_namespace": "pid:[1]", "pid": 77}],
    ids=["other machine", "other container"],
)
def test_a_writer_that_changes_its_claim_is_alive(
    tmp_path: Path, kind: str, owner: dict[str, Any]
) -> None:
    file = tmp_path / "run" / CLAIM_FILE
    local = {"folder": file.parent, "URL": local_dir(f"file://{file.parent}")}.get(
        kind, local_dir("memory://bucket/run")
    )
    target = UPath("memory://bucket/run") / CLAIM_FILE if kind == "memory" else file
    with (
        _heartbeat(target, _owner(**owner)),
        pytest.raises(ClaimedError, match=r"process 77 of .* run_name"),
        claim(local, WAY_OUT),
    ):
        pass
    with claim(local, WAY_OUT):  # its heartbeat has ended
        pass


def test_a_living_process_without_a_lock_is_found_by_its_pid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with (
        claim(tmp_path, WAY_OUT),
        pytest.raises(ClaimedError, match=str(os.getpid())),
        claim(tmp_path, WAY_OUT),
    ):
        pass
    with claim(tmp_path, WAY_OUT):
        pass


@pytest.fixture(params=["locks", "no locks"])
def locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """File systems with and without locks. A copy on another disk is decided as without."""

    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    if request.param == "no locks":
        monkeypatch.setattr(fcntl, "flock", no_locks)


@pytest.mark.usefixtures("locks")
def test_a_folder_that_was_copied_with_the_claim_of_its_writer_is_free(tmp_path: Path) -> None:
    folder, copy = tmp_path / "run", tmp_path / "copies" / "run"
    with claim(folder, WAY_OUT):
        shutil.copytree(folder, copy)
        require_unclaimed(copy, WAY_OUT)
        with claim(copy, WAY_OUT):
            for claimed in (folder, copy):
                with pytest.raises(ClaimedError), claim(claimed, WAY_OUT):
                    pass
        assert not (copy / CLAIM_FILE).exists() and (folder / CLAIM_FILE).exists()


@pytest.mark.usefixtures("locks")
@pytest.mark.parametrize("kind", ["moved", "bind mount", "link"])
def test_another_path_of_a_claimed_folder_is_refused(tmp_path: Path, kind: str) -> None:
    folder, other = tmp_path / "run", tmp_path / "other"
    with claim(folder, WAY_OUT):
        if kind == "moved":
            folder.rename(other)
        elif kind == "link":
            other.symlink_to(folder)
        else:  # the same file under two paths
            other.mkdir()
            os.link(folder / CLAIM_FILE, other / CLAIM_FILE)
        with pytest.raises(ClaimedError, match=str(os.getpid())), claim(other, WAY_OUT):
            pass


@pytest.mark.parametrize("owner", [{}, ELSEWHERE], ids=["this machine", "another machine"])
def test_a_copy_under_a_url_is_free_but_another_name_of_the_url_is_not(
    owner: dict[str, Any], tmp_path: Path
) -> None:
    original = UPath(f"memory://bucket/{tmp_path.name}{len(owner)}")
    written = _owner(**owner, folder=str(original))
    with _heartbeat(original / CLAIM_FILE, written):
        copy = f"{original}_copy"
        _write(UPath(copy) / CLAIM_FILE, written)
        with claim(local_dir(copy), WAY_OUT):
            pass
    folder = tmp_path / "run"  # file:///... and the path are two names of one folder
    written = dataclasses.replace(written, folder=f"file://{folder}/../run")
    with (
        _heartbeat(folder / CLAIM_FILE, written),
        pytest.raises(ClaimedError),
        claim(local_dir(f"file://{folder}"), WAY_OUT),
    ):
        pass


def test_the_claim_of_an_earlier_version_names_no_folder(tmp_path: Path) -> None:
    fields = dataclasses.asdict(_owner())
    del fields["folder"]
    owner = Owner.parse(json.dumps(fields))
    assert owner is not None and owner.folder == ""
    with (
        _heartbeat(tmp_path / CLAIM_FILE, _owner(**ELSEWHERE, pid=77)),
        pytest.raises(ClaimedError, match="process 77"),
        claim(tmp_path, WAY_OUT),
    ):
        pass


def test_another_user_of_a_url_on_this_machine_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has a local copy, so only the process ids in the claim can decide."""
    url = "memory://bucket/two_users"
    with claim(local_dir(url), WAY_OUT):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
        with pytest.raises(ClaimedError, match=str(os.getpid())), claim(local_dir(url), WAY_OUT):
            pass
    assert not (UPath(url) / CLAIM_FILE).exists()


def test_of_two_writers_that_start_at_the_same_time_under_a_url_one_remains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No claim is there when either looks for one, and the other writes its own a bit later."""
    url = "memory://bucket/race"
    timer = threading.Timer(0.1, _write, (UPath(url) / CLAIM_FILE, _owner(**ELSEWHERE, pid=78)))
    timer.start()
    with pytest.raises(ClaimedError, match="process 78"), claim(local_dir(url), WAY_OUT):
        pass
    owner = Owner.parse((UPath(url) / CLAIM_FILE).read_text())
    assert owner is not None and owner.pid == 78


def test_a_writer_whose_claim_was_taken_over_is_interrupted(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), claim(tmp_path, WAY_OUT):
        _write(tmp_path / CLAIM_FILE, _owner(**ELSEWHERE))
        time.sleep(5)
    owner = Owner.parse((tmp_path / CLAIM_FILE).read_text())
    assert owner is not None and owner.host == "elsewhere"  # it is not ours to delete
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_heartbeat_repairs_a_damaged_claim(tmp_path: Path) -> None:
    with claim(tmp_path, WAY_OUT):
        (tmp_path / CLAIM_FILE).write_text("{")
        time.sleep(0.3)
        assert Owner.parse((tmp_path / CLAIM_FILE).read_text()) is not None


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    end_of_child, end_of_parent = os.pipe()
    lock = claims._Lock.acquire(tmp_path / CLAIM_FILE)
    assert lock is not None
    child = os.fork()
    if child == 0:
        os.close(end_of_parent)
        os.read(end_of_child, 1)  # returns when the parent closes its end
        os._exit(0)
    lock.close()  # as when the parent is killed
    again = claims._Lock.acquire(tmp_path / CLAIM_FILE)
    os.close(end_of_parent)
    os.waitpid(child, 0)
    assert again is not None
    again.close()


def test_a_claim_on_a_full_disk_relies_on_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with claim(tmp_path, WAY_OUT), pytest.raises(ClaimedError), claim(tmp_path, WAY_OUT):
            pass
    assert not (tmp_path / CLAIM_FILE).exists()


@pytest.mark.parametrize("obstacle", ["file", "link"])
@pytest.mark.parametrize("below", ["", "below", "far/below"])
def test_a_file_or_dangling_link_instead_of_a_folder_is_named(
    tmp_path: Path, obstacle: str, below: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("missing")
    folder = tmp_path / obstacle / below
    expected = {"file": "is a file", "link": "is a link to missing, which does not exist"}
    with pytest.raises(UserError, match=expected[obstacle]) as error, claim(folder, WAY_OUT):
        pass
    assert str(tmp_path / obstacle) in str(error.value) and "writable" not in str(error.value)


@pytest.mark.parametrize("kind", ["dangling link", "link", "folder", "pipe"])
def test_a_claim_that_is_no_regular_file_is_named(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "run" / CLAIM_FILE
    file.parent.mkdir()
    (tmp_path / "other").touch()
    {
        "dangling link": lambda: file.symlink_to("missing"),
        "link": lambda: file.symlink_to(tmp_path / "other"),
        "folder": file.mkdir,
        "pipe": lambda: os.mkfifo(file),
    }[kind]()
    with pytest.raises(UserError, match=str(file)), claim(file.parent, WAY_OUT):
        pass
    with pytest.raises(UserError, match=str(file)):
        require_unclaimed(file.parent, WAY_OUT)
    assert os.path.lexists(file)


def test_a_claim_that_always_disappears_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims._Lock, "_open", lambda _: None)
    with pytest.raises(ClaimedError), claim(tmp_path, WAY_OUT):
        pass

"""The board's answers: pages, media files, and everything that it refuses."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientResponse, ClientSession
from yarl import URL

from imf_ray.errors import StorageError, UserError
from imf_ray.pages import server, site
from imf_ray.pages.model import Row, Snapshot, State
from imf_ray.pages.render import Live
from imf_ray.pages.server import open_socket, serve
from imf_ray.pages.site import MakeReader, Site

SECRET = "the secret"
VIDEO = bytes(range(256))
LOCAL = {"Host": "localhost:8270"}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with a run `a b`, a sweep with a trial, and files that are never served."""
    for run in ("runs/a b", "runs/sweep/trials/00000-lr_1"):
        (tmp_path / run / "videos").mkdir(parents=True)
        (tmp_path / run / "config.yaml").write_text(f"train: {{}}\n# {SECRET}")
        (tmp_path / run / "metrics.jsonl").write_text("{}\n")
        (tmp_path / run / "videos/1.mp4").write_bytes(VIDEO)
    (tmp_path / "runs/sweep/space.json").write_text("{}")
    (tmp_path / "runs/sweep/grid.png").write_bytes(b"png")
    (tmp_path / "runs/notes").mkdir()
    (tmp_path / "runs/notes/private.png").write_text(SECRET)
    (tmp_path / "private.png").write_text(SECRET)
    return tmp_path / "runs"


@pytest.fixture
def prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read a folder at every request of its page."""
    monkeypatch.setattr("imf_ray.pages.follower.READ_INTERVAL_S", 0.0)
    monkeypatch.setattr("imf_ray.pages.follower.MAX_INTERVAL_S", 0.0)


def read_folder(folder: Path) -> Callable[[], Snapshot]:
    """Return a reader whose page has the folder's name and the length of its log."""

    def read() -> Snapshot:
        log = folder / "metrics.jsonl"
        if not log.is_file() and not [*folder.glob("*/metrics.jsonl"), *folder.glob("space.json")]:
            raise UserError(f"{folder.name} has no runs.")
        size = log.stat().st_size if log.is_file() else 0
        row = Row(folder.name, folder.name, State.RUNNING, step=size)
        return Snapshot("run", folder.name, str(folder), 0.0, State.RUNNING, [row])

    return read


def render(snapshot: Snapshot, live: Live) -> str:
    steps = [f"{row.name} at {row.step}" for row in snapshot.rows]
    return "; ".join([*snapshot.notes, *steps, f"home {live.home}"])


class Client:
    """Requests to a board that runs while the `with` block of `board` does."""

    def __init__(self, session: ClientSession, url: str) -> None:
        self._session, self._url = session, url

    @property
    def port(self) -> int:
        return URL(self._url).port or 0

    async def ask(
        self, path: str, method: str = "GET", headers: dict[str, str] | None = None
    ) -> ClientResponse:
        """Send a request with a path as it stands, without following a redirect."""
        url = URL(self._url + path, encoded=True)
        return await self._session.request(method, url, headers=headers, allow_redirects=False)

    async def text(self, path: str) -> str:
        response = await self.ask(path)
        assert response.status == 200, await response.text()
        return await response.text()


def with_board(
    folder: Path,
    use: Callable[[Client, Site], Awaitable[Any]],
    make_reader: MakeReader = read_folder,
) -> Any:
    """Serve a folder on a free port while a coroutine uses it, and return its result."""

    async def run() -> Any:
        pages, end = Site(str(folder), make_reader, render), asyncio.Event()
        listener = open_socket("127.0.0.1", 0)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        task = asyncio.create_task(serve(pages, listener, {"localhost"}, end))
        try:
            async with ClientSession() as session:
                return await use(Client(session, url), pages)
        finally:
            end.set()
            await task
            pages.close()

    return asyncio.run(run())


def test_each_folder_has_a_page(runs: Path) -> None:
    async def use(client: Client, _: Site) -> None:
        for path, text in {
            "/": "runs at 0; home ",
            "/a%20b/": "a b at 3; home ../",
            "/sweep/": "sweep at 0; home ../",
            "/sweep/trials/00000-lr_1/": "00000-lr_1 at 3; home ../../../",
        }.items():
            assert await client.text(path) == text

    with_board(runs, use)


def test_a_page_is_sent_once_and_again_when_it_changes(runs: Path, prompt: None) -> None:
    async def use(client: Client, _: Site) -> None:
        first = await client.ask("/a%20b/", headers={"Accept-Encoding": "gzip"})
        assert first.headers["Content-Encoding"] == "gzip"
        assert await first.text() == "a b at 3; home ../"
        seen = {"If-None-Match": first.headers["ETag"]}
        assert (await client.ask("/a%20b/", headers=seen)).status == 304
        with (runs / "a b/metrics.jsonl").open("a") as log:
            log.write("{}\n")
        changed = await client.ask("/a%20b/", headers=seen | {"Accept-Encoding": "identity"})
        assert changed.status == 200 and "Content-Encoding" not in changed.headers
        assert await changed.text() == "a b at 6; home ../"

    with_board(runs, use)


def test_one_read_serves_all_viewers(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imf_ray.pages.follower.READ_INTERVAL_S", 60.0)
    reads: list[Path] = []

    def make_reader(folder: Path) -> Callable[[], Snapshot]:
        return lambda: reads.append(folder) or read_folder(folder)()

    async def use(client: Client, pages: Site) -> None:
        assert pages.idle_s == float("inf")
        await asyncio.gather(*(client.text("/a%20b/") for _ in range(5)))
        assert pages.idle_s < 60.0

    with_board(runs, use, make_reader)
    assert len(reads) == 1


def test_videos_are_sent_in_ranges(runs: Path) -> None:
    async def use(client: Client, _: Site) -> None:
        whole = await client.ask("/a%20b/videos/1.mp4")
        assert whole.headers["Content-Type"] == "video/mp4" and await whole.read() == VIDEO
        part = await client.ask("/a%20b/videos/1.mp4", headers={"Range": "bytes=16-31"})
        assert part.status == 206 and await part.read() == VIDEO[16:32]
        trial = await client.ask("/sweep/trials/00000-lr_1/videos/1.mp4", method="HEAD")
        assert trial.headers["Content-Length"] == "256" and not await trial.read()
        assert (await client.ask("/sweep/grid.png")).status == 200
        assert (await client.ask("/sweep/missing.png")).status == 404

    with_board(runs, use)


@pytest.mark.parametrize(
    "path",
    [
        "/a%20b/config.yaml",
        "/a%20b/metrics.jsonl",
        "/notes/private.png",
        "/../private.png",
        "/%2e%2e/private.png",
        "/a%20b/..%2f..%2fprivate.png",
        "/a%20b/%2e%2e/%2e%2e/private.png",
        "//private.png",
        "/%2fprivate.png",
        "/a%20b/private.png%00.png",
        "/a%20b/videos/file.png",
        "/a%20b/videos/hard.mp4/",
        "/a%20b/elsewhere/private.png",
        "/elsewhere/",
        "/a%20b/.hidden.png",
        "/a%20b/folder.png",
        "/a%20b/pipe.png",
        "/../",
        "/..%2f",
        "/%2e%2e/runs/",
        "/notes/",
        "/missing/",
        "/favicon.ico",
        f"/a%20b/{'x' * 300}.png",
        f"/{'x' * 300}/",
        "/a%20b/%ff.png",
        "/%ff/",
        "//attacker.example/a",
    ],
)
def test_other_files_are_never_served(runs: Path, path: str) -> None:
    run = runs / "a b"
    (run / "videos/file.png").symlink_to(runs.parent / "private.png")
    (run / "elsewhere").symlink_to(runs.parent)
    (runs / "elsewhere").symlink_to(runs.parent)
    (run / ".hidden.png").write_text(SECRET)
    (run / "folder.png").mkdir()
    os.mkfifo(run / "pipe.png")

    async def use(client: Client, _: Site) -> None:
        response = await client.ask(path)
        while response.status == 302:
            target = response.headers["Location"]
            assert target.startswith("/") and not target.startswith("//")
            response = await client.ask(target)
        assert response.status == 404
        assert SECRET not in await response.text()

    with_board(runs, use)


@pytest.mark.parametrize("path", ["//example.com", "////example.com", "/%2fexample.com"])
def test_no_redirect_leads_to_another_host(runs: Path, path: str) -> None:
    """The request is written by hand, because clients normalize such a path."""

    async def use(client: Client, _: Site) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        )
        answer = (await reader.read()).decode()
        assert answer.startswith("HTTP/1.1 404 ") and "Location" not in answer
        writer.close()

    with_board(runs, use)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
@pytest.mark.parametrize("path", ["/", "/a%20b/", "/a%20b/videos/1.mp4"])
def test_nothing_can_be_changed(runs: Path, method: str, path: str) -> None:
    async def use(client: Client, _: Site) -> None:
        assert (await client.ask(path, method=method)).status == 405

    with_board(runs, use)


def test_only_names_of_this_machine_are_answered(runs: Path) -> None:
    async def use(client: Client, _: Site) -> None:
        for host in ("localhost:9000", "127.0.0.1", "[::1]:8270", "LOCALHOST"):
            assert (await client.ask("/", headers={"Host": host})).status == 200, host
        for host in ("attacker.example", "localhost.attacker.example:8270", "127.0.0.1.nip.io", ""):
            refused = await client.ask("/", headers={"Host": host})
            assert refused.status in (400, 403), host
            assert "runs" not in await refused.text()

    with_board(runs, use)


def test_a_browser_may_load_nothing_from_elsewhere(runs: Path) -> None:
    async def use(client: Client, _: Site) -> None:
        for path in ("/", "/a%20b/videos/1.mp4", "/missing/"):
            headers = (await client.ask(path)).headers
            policy = dict(
                part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; ")
            )
            assert policy["default-src"] == policy["form-action"] == "'none'"
            assert "'unsafe" not in policy["script-src"] and policy["frame-ancestors"] == "'none'"
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Referrer-Policy"] == "no-referrer"
            assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
            assert "aiohttp" not in headers["Server"]

    with_board(runs, use)


def test_a_deleted_folder_is_a_note_until_it_returns(runs: Path, prompt: None) -> None:
    async def use(client: Client, _: Site) -> None:
        for path in ("/", "/a%20b/"):
            assert "does not exist" not in await client.text(path)
        away = runs.rename(runs.with_name("away"))
        for path in ("/", "/a%20b/"):
            assert "does not exist. This page shows what was read" in await client.text(path)
        assert (await client.ask("/sweep/")).status == 404
        away.rename(runs)
        for path in ("/", "/a%20b/", "/sweep/"):
            assert "does not exist" not in await client.text(path)

    with_board(runs, use)


def test_a_run_that_cannot_be_reached_has_a_page_that_recovers(runs: Path, prompt: None) -> None:
    errors: list[Exception] = [StorageError("the bucket cannot be read"), OSError("no disk")]

    def make_reader(folder: Path) -> Callable[[], Snapshot]:
        def read() -> Snapshot:
            if errors:
                raise errors.pop(0)
            return read_folder(folder)()

        return read

    async def use(client: Client, _: Site) -> None:
        assert "the bucket cannot be read" in await client.text("/a%20b/")
        assert "no disk" in await client.text("/a%20b/")
        assert await client.text("/a%20b/") == "a b at 3; home ../"

    with_board(runs, use, make_reader)


def test_a_slow_folder_does_not_hold_up_its_viewers(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site, "FIRST_PATIENCE_S", 0.05)
    release = threading.Event()

    def make_reader(folder: Path) -> Callable[[], Snapshot]:
        return lambda: release.wait() and read_folder(folder)()

    async def use(client: Client, _: Site) -> None:
        assert "is being read" in await client.text("/a%20b/")
        release.set()
        while (text := await client.text("/a%20b/")) != "a b at 3; home ../":
            assert "is being read" in text

    with_board(runs, use, make_reader)


def test_folders_that_nobody_looks_at_are_forgotten(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(client: Client, pages: Site) -> None:
        await client.text("/a%20b/")
        await client.ask("/missing/")
        assert set(pages._followers) == {"a b"}
        monkeypatch.setattr(site, "FORGET_AFTER_S", 0.0)
        await client.text("/")
        assert set(pages._followers) == {""}

    with_board(runs, use)


def test_a_port_in_use_is_an_error_with_the_way_out() -> None:
    with open_socket("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port} is in use.*board.port=0"):
            open_socket("127.0.0.1", port)


def test_the_default_port_is_the_next_free_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_socket("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        monkeypatch.setattr(server, "DEFAULT_PORT", port)
        with open_socket("127.0.0.1", None) as second:
            assert port < second.getsockname()[1] < port + server.NUM_PORTS
        monkeypatch.setattr(server, "NUM_PORTS", 1)
        with pytest.raises(UserError, match=f"ports {port} to {port} are in use"):
            open_socket("127.0.0.1", None)


def test_an_unusable_host_is_named() -> None:
    for host in ("203.0.113.1", "name.invalid"):
        with pytest.raises(UserError, match=f"board.host={host} board.port=0 cannot be used"):
            open_socket(host, 0)


def test_ipv6_is_a_host() -> None:
    try:
        with open_socket("::1", 0) as listener:
            assert listener.family == socket.AF_INET6
    except UserError as error:
        pytest.skip(str(error))

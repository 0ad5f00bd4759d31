"""Runs the board: `imf-ray board`, and the process next to a run (`imf_ray.pages.background`)."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
import threading
from collections.abc import Callable

from imf_ray.errors import UserError
from imf_ray.pages.addresses import host_names
from imf_ray.pages.render import render_page
from imf_ray.pages.server import open_socket, serve
from imf_ray.pages.site import Site
from imf_ray.pages.snapshot import SnapshotReader

LINGER_S, LINGER_IF_SEEN_S = 5.0, 15.0
"""A board next to a run serves for so many seconds after the run's end, so that an open page shows
the results. It does so if a page was requested in so many seconds before."""
NICENESS = 10
"""A board next to a run takes only CPU time that training leaves."""
GC_THRESHOLD = 100_000
"""Number of new objects after which Python looks for reference cycles; its default is 700.

The first read of many trials makes many objects that live as long as the board."""
OnStart = Callable[[int], None]


def run_board(location: str, host: str, port: int | None, on_start: OnStart) -> None:
    """Serve the pages of a folder or URL until Ctrl-C, SIGTERM or SIGHUP.

    Args:
        location: folder or URL of a run, of a sweep, or of several.
        host, port: see `BoardConfig`.
        on_start: called with the port once the server listens.

    Raises:
        UserError: the host, the port or the URL cannot be used.
    """

    def end_on_signals(end: asyncio.Event, _: Site) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:
                loop.add_signal_handler(number, end.set)

    asyncio.run(_run(location, host, port, on_start, end_on_signals))


def run_board_for_parent(location: str, host: str, port: int | None) -> None:
    """Serve the pages of a folder or URL while the process that started this one lives.

    That process holds the other end of stdin. stdout gets one line of JSON, with the port or with
    an error.
    """

    def end_with_parent(end: asyncio.Event, site: Site) -> None:
        loop = asyncio.get_running_loop()

        def wait_for_parent() -> None:
            sys.stdin.read()
            delay = LINGER_S if site.idle_s < LINGER_IF_SEEN_S else 0.0
            loop.call_soon_threadsafe(loop.call_later, delay, end.set)

        threading.Thread(target=wait_for_parent, daemon=True).start()

    os.nice(NICENESS)
    try:
        asyncio.run(_run(location, host, port, lambda port: _answer(port=port), end_with_parent))
    except UserError as error:
        _answer(error=str(error))


async def _run(
    location: str,
    host: str,
    port: int | None,
    on_start: OnStart,
    prepare_end: Callable[[asyncio.Event, Site], None],
) -> None:
    """Serve until the event is set that `prepare_end` gets; see `run_board`."""
    gc.set_threshold(GC_THRESHOLD)
    listener, end = open_socket(host, port), asyncio.Event()
    site = Site(location, lambda folder: SnapshotReader(folder).read, render_page)
    try:
        prepare_end(end, site)
        on_start(listener.getsockname()[1])
        await serve(site, listener, host_names(host), end)
    finally:
        site.close()


def _answer(**content: int | str) -> None:
    print(json.dumps(content), flush=True)


if __name__ == "__main__":
    run_board_for_parent(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))

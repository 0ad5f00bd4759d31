"""The board's server in a thread of a test, which may then wait for a browser."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from imf_ray.pages.addresses import host_names
from imf_ray.pages.render import render_page
from imf_ray.pages.server import open_socket, serve
from imf_ray.pages.site import MakeReader, Render, Site
from imf_ray.pages.snapshot import SnapshotReader

START_TIMEOUT_S = 60.0


@contextmanager
def serving(
    location: str,
    make_reader: MakeReader = lambda folder: SnapshotReader(folder).read,
    render: Render = render_page,
    port: int = 0,
) -> Iterator[str]:
    """Serve a folder or URL on this machine while the `with` block runs, and yield the address."""
    listener = open_socket("127.0.0.1", port)
    loop, end, started = asyncio.new_event_loop(), asyncio.Event(), threading.Event()

    async def run() -> None:
        site = Site(location, make_reader, render)
        started.set()
        try:
            await serve(site, listener, host_names("127.0.0.1"), end)
        finally:
            site.close()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),), daemon=True)
    thread.start()
    assert started.wait(START_TIMEOUT_S)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join(START_TIMEOUT_S)
        loop.close()

"""The web server of `imf-ray board`: live pages of the runs and sweeps in one folder or URL.

It answers only GET and HEAD, and changes nothing. It serves pages, and the media files of runs.
Configurations, logs and weights are not served as files, since they may contain secrets.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable
from pathlib import PurePosixPath

from aiohttp import web
from yarl import URL

from imf_ray.errors import StorageError, UserError
from imf_ray.pages.addresses import is_allowed_host
from imf_ray.pages.media_files import MIME_TYPES
from imf_ray.pages.render import Live, content_security_policy
from imf_ray.pages.site import NotFoundError, Site

DEFAULT_PORT, NUM_PORTS = 8270, 30
"""The port of the board, and the number of ports that are tried from there on."""
SHUTDOWN_S = 1.0
"""Seconds for which the server waits for open downloads at its end."""
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def create_app(site: Site, hosts: set[str]) -> web.Application:
    """Return the web application that serves a site.

    Args:
        hosts: names by which the server may be called; see `is_allowed_host`.
    """
    headers = _security_headers()

    @web.middleware
    async def check_host(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not is_allowed_host(request.host, hosts):
            raise web.HTTPForbidden(text="Open this page by the address that the board prints.")
        return await handler(request)

    async def add_headers(_: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(headers)

    async def page(request: web.Request) -> web.StreamResponse:
        return await _page(site, request)

    async def media(request: web.Request) -> web.StreamResponse:
        return await _media(site, request)

    app = web.Application(middlewares=[check_host])
    app.on_response_prepare.append(add_headers)
    app.router.add_get("/", page)
    app.router.add_get("/{path:.+}/", page)
    app.router.add_get("/{path:.+}", media)
    return app


async def _page(site: Site, request: web.Request) -> web.StreamResponse:
    """Answer with a page, or with 304 if the browser has it already."""
    try:
        page = await site.page(request.match_info.get("path", ""))
    except NotFoundError as error:
        raise web.HTTPNotFound(text=str(error)) from error
    if any(tag.value == page.etag for tag in request.if_none_match or ()):
        response = web.Response(status=304)
    elif "gzip" in request.headers.get("Accept-Encoding", ""):
        response = web.Response(body=page.gzipped, headers={"Content-Encoding": "gzip"})
    else:
        response = web.Response(body=page.html)
    response.content_type, response.charset = "text/html", "utf-8"
    response.headers["ETag"] = f'W/"{page.etag}"'  # weak, because the bytes may be compressed
    response.headers["Vary"] = "Accept-Encoding"
    return response


async def _media(site: Site, request: web.Request) -> web.StreamResponse:
    """Answer with a media file or a range of it, or redirect from `FOLDER` to `FOLDER/`."""
    path = request.match_info["path"]
    suffix = PurePosixPath(path).suffix.lower()
    if path.startswith("/"):  # a redirect to `//HOST/` would lead to another host
        raise web.HTTPNotFound(text="The path is not valid.")
    if suffix not in MIME_TYPES:
        raise web.HTTPFound(URL.build(path=f"{request.path}/"))
    try:
        file = await site.media(path)
    except NotFoundError as error:
        raise web.HTTPNotFound(text=str(error)) from error
    except StorageError as error:
        raise web.HTTPServiceUnavailable(text=str(error)) from error
    return web.FileResponse(file, headers={"Content-Type": MIME_TYPES[suffix]})


def _security_headers() -> dict[str, str]:
    """Return the headers by which a browser keeps a page from loading and sending anything."""
    return {
        "Cache-Control": "private, no-cache",
        "Content-Security-Policy": f"{content_security_policy(Live())}; frame-ancestors 'none'",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "Server": "imf_ray",
        "X-Content-Type-Options": "nosniff",
    }


def open_socket(host: str, port: int | None) -> socket.socket:
    """Return a socket that listens on a port.

    Args:
        port: 0 for any free port; None for `DEFAULT_PORT` or the next free one.

    Raises:
        UserError: the host is not one of this machine, or the port is in use or reserved.
    """
    ports = range(DEFAULT_PORT, DEFAULT_PORT + NUM_PORTS) if port is None else [port]
    error: OSError | None = None
    for number in ports:
        try:
            info = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
            return socket.create_server(info[4][:2], family=info[0])
        except OSError as failure:
            error = failure
            if failure.errno != errno.EADDRINUSE:
                break
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        used = f"port {port} is" if port is not None else f"ports {ports[0]} to {ports[-1]} are"
        raise UserError(f"board.port: {used} in use on {host}. Set board.port=0 for a free one.")
    raise UserError(f"board.host={host} board.port={port} cannot be used: {error}.") from error


async def serve(
    site: Site,
    listener: socket.socket,
    hosts: set[str],
    end: asyncio.Event,
) -> None:
    """Serve a site on a socket until an event is set."""
    app = create_app(site, hosts)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    try:
        await web.SockSite(runner, listener).start()
        await end.wait()
    finally:
        await runner.cleanup()

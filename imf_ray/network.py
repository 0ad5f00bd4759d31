"""Requests to servers that may not answer."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from http.client import HTTPResponse
from urllib.request import urlopen

TIMEOUT_S = 6.0
"""Seconds without an answer after which a server counts as unreachable."""


def open_url(url: str, timeout_s: float = TIMEOUT_S) -> HTTPResponse:
    """Open a URL within a time limit.

    Args:
        timeout_s: limit for the first answer, and for each later pause of the server.

    Raises:
        urllib.error.HTTPError: the server refuses the request. This is an OSError, too.
        OSError: the server does not answer in time.
    """
    answer: Future[HTTPResponse] = Future()

    def connect() -> None:
        try:
            answer.set_result(urlopen(url, timeout=timeout_s))
        except BaseException as error:
            answer.set_exception(error)

    # In a thread, because the timeout of `urlopen` does not include the look-up of the host.
    threading.Thread(target=connect, daemon=True).start()
    try:
        return answer.result(timeout=timeout_s)
    except TimeoutError as error:
        raise OSError(f"no answer within {timeout_s:g} s") from error

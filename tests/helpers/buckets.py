"""A local S3 server, which represents all remote file systems."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem
from upath import UPath

BUCKET = "s3://runs"


@contextmanager
def s3_server() -> Iterator[str]:
    """Serve S3 on this machine while the `with` block runs, and yield the address."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def open_bucket(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Return the URL of a new folder that this process and its children can access."""
    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "XDG_CACHE_HOME": str(tmp_path / "one"),
    }.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()  # they connect to the server of an earlier test
    UPath(BUCKET).mkdir(exist_ok=True)
    return f"{BUCKET}/{tmp_path.name}"

"""Addresses of clusters that cannot be reached: one message within seconds, before Ray connects."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import ray

from imf_ray import cluster, ray_internals
from imf_ray.cluster import ClusterSize, cluster_address, init_ray, init_ray_beside
from imf_ray.config import load_config
from imf_ray.errors import UserError


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster, "CONNECT_TIMEOUT_S", 1.0)


def error_of(address: str) -> str:
    """Return the message about an address, which must come within seconds."""
    started_at = time.monotonic()
    with pytest.raises(UserError) as raised:
        init_ray(load_config([f"cluster.address={address}"]))
    assert time.monotonic() - started_at < 5.0
    return str(raised.value)


@pytest.fixture
def silent_server() -> Iterator[int]:
    """The port of a server that accepts connections and never answers, as lost packets look."""
    with socket.create_server(("", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def http_server() -> Iterator[int]:
    """The port of a web server, as Ray's dashboard is one."""
    with HTTPServer(("", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_cluster_that_is_gone(host: str) -> None:
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
    message = error_of(f"{host}:{port}")
    assert f"{host}:{port}" in message and "cluster.address=local" in message


def test_a_server_that_never_answers(silent_server: int) -> None:
    assert f"127.0.0.1:{silent_server}" in error_of(f"127.0.0.1:{silent_server}")


def test_a_server_of_something_else(http_server: int) -> None:
    assert f"127.0.0.1:{http_server}" in error_of(f"127.0.0.1:{http_server}")


@pytest.mark.parametrize(
    "address", ["ray://head:10001", "http://127.0.0.1:8265", "head", "head:port", "127.0.0.1", ":1"]
)
def test_what_is_no_address_of_a_cluster(address: str) -> None:
    assert address in error_of(address)


def test_the_message_names_where_the_address_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    for overrides in ([], ["cluster.address=auto"]):
        with pytest.raises(UserError) as raised:
            init_ray(load_config(overrides))
        for text in ("RAY_ADDRESS=127.0.0.1:1", "cluster.address=local", *overrides):
            assert text in str(raised.value)


@pytest.mark.parametrize("option", ["cluster.address=local", "cluster.address=null"])
@pytest.mark.parametrize("variable", ["", "local"])
def test_local_clusters(option: str, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", variable)
    assert cluster_address(load_config([option])) is None
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    expected = None if "local" in option else "head:6379"
    assert cluster_address(load_config([option])) == expected


def test_a_cluster_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_internals, "cluster_ray_version", lambda *_: "2.31.0")
    message = error_of("127.0.0.1:6379")
    assert "2.31.0" in message and ray.__version__ in message


@pytest.mark.parametrize(
    "failure",
    [
        RuntimeError("Version mismatch: Python 3.9.1 and 3.11.7"),
        ConnectionError("Failed to connect"),
        ValueError("no such node"),
    ],
)
def test_a_cluster_that_ray_refuses(failure: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise failure

    monkeypatch.setattr(ray_internals, "cluster_ray_version", lambda *_: ray.__version__)
    monkeypatch.setattr(ray, "init", fail)
    message = error_of("127.0.0.1:6379")
    assert str(failure) in message and "127.0.0.1:6379" in message


@pytest.mark.parametrize("during", ["cluster_ray_version", "init"])
def test_a_token_that_is_missing(during: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ray.exceptions.AuthenticationError("no token")

    monkeypatch.setattr(ray_internals, "cluster_ray_version", lambda *_: ray.__version__)
    monkeypatch.setattr(ray if during == "init" else ray_internals, during, fail)
    assert "RAY_AUTH_MODE=token" in error_of("127.0.0.1:6379")


@pytest.mark.parametrize(
    "failure", [OSError(36, "File name too long"), PermissionError(13, "denied"), RuntimeError("x")]
)
def test_a_machine_where_ray_cannot_start(
    failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> None:
        raise failure

    monkeypatch.setattr(ray, "init", fail)
    monkeypatch.setenv("RAY_TMPDIR", "/some/folder")
    with pytest.raises(UserError, match="RAY_TMPDIR") as raised:
        init_ray(load_config([]))
    assert "/some/folder" in str(raised.value)


def test_ray_starts_beside_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits for the other one here, so that neither can be first."""
    working, starting = threading.Event(), threading.Event()
    size = ClusterSize(((2.0, 0.0),))

    def start(*_: object) -> None:
        assert threading.current_thread() is threading.main_thread()
        starting.set()
        assert working.wait(timeout=60)

    def work() -> str:
        working.set()
        assert starting.wait(timeout=60)
        return "checked"

    monkeypatch.setattr(cluster, "_connect_or_start", start)
    monkeypatch.setattr(cluster, "_report_cluster", lambda _: size)
    config = load_config(["cluster.address=local"])
    assert init_ray_beside(config, work) == (size, "checked")


def test_errors_of_the_work_and_of_ray_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    config, ended = load_config(["cluster.address=local"]), threading.Event()

    def fail(*_: object) -> None:
        raise UserError("it failed")

    monkeypatch.setattr(cluster, "_connect_or_start", lambda *_: None)
    with pytest.raises(UserError, match="it failed"):
        init_ray_beside(config, fail)
    monkeypatch.setattr(cluster, "_connect_or_start", fail)
    with pytest.raises(UserError, match="it failed"):  # without waiting for the work
        init_ray_beside(config, lambda: ended.wait(timeout=60))
    ended.set()

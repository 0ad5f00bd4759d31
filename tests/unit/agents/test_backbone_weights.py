"""Pretrained weights: the cache folder, the network, and what is wrong with either."""

from __future__ import annotations

import functools
import hashlib
import io
import logging
import socket
import time
from collections.abc import Callable
from http.client import IncompleteRead
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import pytest
import torch

from imf_ray import network
from imf_ray.agents import backbone_weights
from imf_ray.agents.backbone_weights import read_backbone_weights

NAME = "IMAGENET1K_V1"


def content(value: float) -> bytes:
    """Return a file of weights."""
    buffer = io.BytesIO()
    state = {"conv1.weight": torch.full((2,), value), "fc.weight": torch.zeros(1)}
    torch.save(state, buffer)
    return buffer.getvalue()


GOOD, OTHER = content(1.0), content(2.0)
FILE = f"resnet18-{hashlib.sha256(GOOD).hexdigest()[:8]}.pth"
URL = f"https://server/models/{FILE}"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in PyTorch's cache folder; at first it is missing."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(backbone_weights, "find_weights", lambda name: SimpleNamespace(url=URL))
    open_quickly = functools.partial(network.open_url, timeout_s=0.5)
    monkeypatch.setattr(backbone_weights, "open_url", open_quickly)
    read_backbone_weights.cache_clear()
    return tmp_path / "hub/checkpoints" / FILE


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Make a function that sets what the network answers, and returns the list of requests."""

    def set_answer(answer: bytes | BaseException | Callable[[], bytes]) -> list[str]:
        requests = []

        def urlopen(url: str, timeout: float) -> io.BytesIO:
            requests.append(url)
            if isinstance(answer, BaseException):
                raise answer
            return io.BytesIO(answer if isinstance(answer, bytes) else answer())

        monkeypatch.setattr(network, "urlopen", urlopen)
        return requests

    return set_answer


def test_weights_are_downloaded_once(cache: Path, serve: Callable[..., list[str]]) -> None:
    requests = serve(GOOD)
    weights = read_backbone_weights(NAME)
    assert list(weights) == ["conv1.weight"] and float(weights["conv1.weight"][0]) == 1.0
    read_backbone_weights.cache_clear()  # as in another process
    read_backbone_weights(NAME)
    assert requests == [URL] and cache.read_bytes() == GOOD
    assert list(cache.parent.iterdir()) == [cache]


def test_a_cached_file_needs_no_network(cache: Path, serve: Callable[..., list[str]]) -> None:
    requests = serve(URLError("no network"))
    cache.parent.mkdir(parents=True)
    cache.write_bytes(GOOD)
    assert read_backbone_weights(NAME)
    assert not requests


@pytest.mark.parametrize("damaged", [b"", GOOD[:-100], OTHER])
def test_a_damaged_file_is_replaced_with_a_warning(
    damaged: bytes,
    cache: Path,
    serve: Callable[..., list[str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    serve(GOOD)
    cache.parent.mkdir(parents=True)
    cache.write_bytes(damaged)
    with caplog.at_level(logging.WARNING):
        weights = read_backbone_weights(NAME)
    assert float(weights["conv1.weight"][0]) == 1.0 and cache.read_bytes() == GOOD
    assert str(cache) in caplog.text


@pytest.mark.parametrize("home", ["/dev/null", "/proc"])
def test_a_cache_folder_that_cannot_be_written(
    home: str, serve: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", f"{home}/torch")
    serve(GOOD)
    assert read_backbone_weights(NAME)


@pytest.mark.parametrize(
    "answer",
    [
        URLError(socket.gaierror("Name or service not known")),
        ConnectionResetError("reset"),
        TimeoutError("timed out"),
        IncompleteRead(b"half"),
        b"<html>Log in to this network</html>",
        OTHER,
        lambda: time.sleep(1.0) or GOOD,  # a look-up of the host that hangs
    ],
)
def test_without_a_network_the_error_says_what_to_copy_where(
    answer: object, cache: Path, serve: Callable[..., list[str]]
) -> None:
    serve(answer)
    with pytest.raises(OSError) as raised:
        read_backbone_weights(NAME)
    for text in (f"pretrained_backbone_weights={NAME}", URL, str(cache)):
        assert text in str(raised.value)
    assert not cache.exists()

"""Pretrained weights of image encoders: read from PyTorch's cache folder, or downloaded into it.

The process that starts a run reads them once and sends them to its workers, which need no network.
"""

from __future__ import annotations

import functools
import hashlib
import io
import logging
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import torch
from torch import Tensor

from imf_ray.errors import StorageError
from imf_ray.files import write_atomically
from imf_ray.models.vision import find_weights
from imf_ray.network import open_url

log = logging.getLogger(__name__)


@functools.cache  # each trial of a sweep asks for them
def read_backbone_weights(name: str) -> dict[str, Tensor]:
    """Return pretrained weights of a ResNet-18 without its classifier.

    A damaged file in the cache folder is downloaded again. A folder that cannot be written is no
    error.

    Raises:
        ValueError: the name is unknown.
        OSError: the weights are not in the cache folder and cannot be downloaded. The message says
            how to provide them.
    """
    url = str(find_weights(name).url)
    file = Path(torch.hub.get_dir(), "checkpoints", PurePosixPath(urlsplit(url).path).name)
    content = _read_cached(file)
    if content is None:
        try:
            content = _download(url)
            if not _is_complete(content, file):
                raise OSError("the server sent another file")
        except OSError as error:
            raise OSError(
                f"pretrained_backbone_weights={name}: {file} is missing or damaged, and {url} "
                f"cannot be downloaded ({error}). Download that address on a machine with a "
                f"network and copy the file to {file}, or set the option to null to train from "
                "scratch."
            ) from error
        _keep(file, content)
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return {key: value for key, value in state.items() if not key.startswith("fc.")}


def _read_cached(file: Path) -> bytes | None:
    """Return the content of a file in the cache folder; None if it is missing or damaged."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    if _is_complete(content, file):
        return content
    log.warning("%s is damaged and is downloaded again.", file)
    return None


def _is_complete(content: bytes, file: Path) -> bool:
    """Return True if the content has the hash that the file's name ends with (`name-HASH.pth`)."""
    return hashlib.sha256(content).hexdigest().startswith(file.stem.rpartition("-")[2])


def _download(url: str) -> bytes:
    """Download a file. There is no limit of time as long as the server sends data.

    Raises:
        OSError: the server does not answer or sends too little.
    """
    log.info("Downloading %s", url)
    try:
        with open_url(url) as response:
            return response.read()
    except HTTPException as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def _keep(file: Path, content: bytes) -> None:
    """Write a downloaded file into the cache folder if that is possible."""
    try:
        write_atomically(file, content)
    except StorageError as error:
        log.warning("The next run downloads the pretrained weights again: %s", error)

"""Size and speed of image compression: `python -m benchmarks.compression EPISODE.hdf5`.

Compares HDF5's own filters, PNG, JPEG and, if installed, the filters of `hdf5plugin`. Measures the
size relative to raw images, and microseconds per image for writing and for reading runs of 26
images, as training does. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

from imf_ray.data.hdf5.layouts import IMAGES

RUN = 26
"""Images that are read at a time."""
ROUNDS = 3
FILTERS: dict[str, Mapping[str, Any]] = {
    "raw": {},
    "lzf": {"compression": "lzf"},
    "gzip 1": {"compression": "gzip", "compression_opts": 1},
    "gzip 4": {"compression": "gzip", "compression_opts": 4},
    "gzip 9": {"compression": "gzip", "compression_opts": 9},
}
CODECS: dict[str, dict[str, Any]] = {
    "PNG 1": {"format": "PNG", "compress_level": 1},
    "JPEG 95": {"format": "JPEG", "quality": 95},
}


def filters() -> dict[str, Mapping[str, Any]]:
    """Return the installed filters."""
    if importlib.util.find_spec("hdf5plugin") is None:
        return FILTERS
    import hdf5plugin

    plugins = {"zstd 3": hdf5plugin.Zstd(clevel=3), "blosc lz4": hdf5plugin.Blosc(cname="lz4")}
    return FILTERS | plugins


def by_filter(images: np.ndarray, options: Mapping[str, Any]) -> tuple[int, float, float]:
    """Store images (N, H, W, 3) with an HDF5 filter; return bytes, write seconds, read seconds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.hdf5"
        start = time.perf_counter()
        with h5py.File(path, "w") as file:
            chunks = (1, *images.shape[1:])
            dataset = file.create_dataset(
                "images", data=images, chunks=chunks, fletcher32=True, **options
            )
            stored = dataset.id.get_storage_size()
        written = time.perf_counter()
        with h5py.File(path) as file:
            for first in range(0, len(images), RUN):
                file["images"][first : first + RUN]
        return stored, written - start, time.perf_counter() - written


def by_codec(images: np.ndarray, options: dict[str, Any]) -> tuple[int, float, float]:
    """Encode each image as a file; return bytes, write seconds, read seconds."""
    start = time.perf_counter()
    files = []
    for image in images:
        content = io.BytesIO()
        Image.fromarray(image).save(content, **options)
        files.append(content.getvalue())
    written = time.perf_counter()
    for content in files:
        np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    return sum(map(len, files)), written - start, time.perf_counter() - written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("episode", type=Path)
    with h5py.File(parser.parse_args().episode) as file:
        images = np.concatenate([frames[:] for frames in file[IMAGES].values()])
    results: dict[str, list[tuple[int, float, float]]] = {}
    for _ in range(ROUNDS):
        for name, options in filters().items():
            results.setdefault(name, []).append(by_filter(images, options))
        for name, codec in CODECS.items():
            results.setdefault(name, []).append(by_codec(images, codec))
    size = "x".join(map(str, images.shape[1:3]))
    print(f"| {size} | size / raw | write us | read us |", "|---|---|---|---|", sep="\n")
    for name, rounds in results.items():
        stored, write, read = (float(np.median(column)) for column in zip(*rounds, strict=True))
        cells = [name, f"{stored / images.nbytes:.3f}"]
        cells += [f"{1e6 * seconds / len(images):.0f}" for seconds in (write, read)]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()

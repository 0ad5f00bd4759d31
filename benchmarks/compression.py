"""What compressing pictures saves and costs: `python -m benchmarks.compression EPISODE.hdf5`.

HDF5's own filters, PNG and JPEG, and the filters of `hdf5plugin` where that is installed: size
beside the raw pictures, and microseconds a picture to write, and to read in runs of 26, as training
does. Prints a Markdown table.
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

from imf_ray.data.readers import IMAGES

RUN = 26
"""Pictures that are read at a time."""
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
    """The filters that this environment has."""
    if importlib.util.find_spec("hdf5plugin") is None:
        return FILTERS
    import hdf5plugin

    more = {"zstd 3": hdf5plugin.Zstd(clevel=3), "blosc lz4": hdf5plugin.Blosc(cname="lz4")}
    return FILTERS | more


def by_filter(pictures: np.ndarray, options: Mapping[str, Any]) -> tuple[int, float, float]:
    """Stored bytes of (N, H, W, 3), and the seconds of writing and reading them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pictures.hdf5"
        start = time.perf_counter()
        with h5py.File(path, "w") as file:
            chunks = (1, *pictures.shape[1:])
            dataset = file.create_dataset(
                "pictures", data=pictures, chunks=chunks, fletcher32=True, **options
            )
            stored = dataset.id.get_storage_size()
        written = time.perf_counter()
        with h5py.File(path) as file:
            for first in range(0, len(pictures), RUN):
                file["pictures"][first : first + RUN]
        return stored, written - start, time.perf_counter() - written


def by_codec(pictures: np.ndarray, options: dict[str, Any]) -> tuple[int, float, float]:
    """The same for one image file a picture."""
    start = time.perf_counter()
    files = []
    for picture in pictures:
        content = io.BytesIO()
        Image.fromarray(picture).save(content, **options)
        files.append(content.getvalue())
    written = time.perf_counter()
    for content in files:
        np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    return sum(map(len, files)), written - start, time.perf_counter() - written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("episode", type=Path)
    with h5py.File(parser.parse_args().episode) as file:
        pictures = np.concatenate([frames[:] for frames in file[IMAGES].values()])
    found: dict[str, list[tuple[int, float, float]]] = {}
    for _ in range(ROUNDS):
        for name, options in filters().items():
            found.setdefault(name, []).append(by_filter(pictures, options))
        for name, codec in CODECS.items():
            found.setdefault(name, []).append(by_codec(pictures, codec))
    size = "x".join(map(str, pictures.shape[1:3]))
    print(f"| {size} | size / raw | write us | read us |", "|---|---|---|---|", sep="\n")
    for name, rounds in found.items():
        stored, write, read = (float(np.median(column)) for column in zip(*rounds, strict=True))
        cells = [name, f"{stored / pictures.nbytes:.3f}"]
        cells += [f"{1e6 * seconds / len(pictures):.0f}" for seconds in (write, read)]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()

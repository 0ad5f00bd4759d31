"""Writers of small episode files in the formats of other projects."""

from __future__ import annotations

import io
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

LENGTH, HEIGHT, WIDTH = 12, 24, 32


def smooth_images(seed: int = 0) -> np.ndarray:
    """Make images (T, H, W, 3) that JPEG hardly changes. Their channels differ."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 256, (LENGTH, 2, 2, 3), dtype=np.uint8)
    images = [
        Image.fromarray(c).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR) for c in corners
    ]
    return np.stack([np.asarray(image) for image in images])


def encode_jpeg(image: np.ndarray) -> np.ndarray:
    """Encode an image (H, W, 3) and return the bytes of the JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95, subsampling=0)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def write_act(path: Path, dtype: type = np.float32, qvel: bool = True, dim: int = 14) -> None:
    """Write a file in ACT's format."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file.attrs["sim"] = True
        file["action"] = rng.normal(size=(LENGTH, dim)).astype(dtype)
        file["observations/qpos"] = rng.normal(size=(LENGTH, dim)).astype(dtype)
        if qvel:
            file["observations/qvel"] = rng.normal(size=(LENGTH, dim)).astype(dtype)
        file.create_dataset(
            "observations/images/top", data=smooth_images(), chunks=(1, HEIGHT, WIDTH, 3)
        )


def write_act_plus_plus(path: Path, dim: int = 14) -> None:
    """Write a file in act-plus-plus' format, with padded JPEGs."""
    write_act(path, dim=dim)
    # OpenCV reads the array as BGR: the red of the JPEG is the array's last channel.
    jpegs = [encode_jpeg(image[..., ::-1]) for image in smooth_images()]
    max_length = max(map(len, jpegs))
    padded = np.stack([np.pad(jpeg, (0, max_length - len(jpeg))) for jpeg in jpegs])
    with h5py.File(path, "r+") as file:
        del file["observations/images/top"]
        file["observations/images/top"] = padded
        file["compress_len"] = np.array([[len(jpeg) for jpeg in jpegs]], dtype=np.float64)
        file.attrs["compress"] = True


def write_roboimi(path: Path) -> None:
    """Write a file in RoboIMI's format, with end-effector targets."""
    write_act(path, dim=16)
    with h5py.File(path, "r+") as file:
        action = file["action"][:]
        for dims in (slice(3, 7), slice(11, 15)):
            action[:, dims] /= np.linalg.norm(action[:, dims], axis=1, keepdims=True)
        file["action"][:] = action

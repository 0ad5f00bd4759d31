"""Crops and scales images to the size that a policy takes."""

import numpy as np
from PIL import Image


def center_crop_resize(frames: np.ndarray, size: int) -> np.ndarray:
    """Crop images (n, H, W, 3) to their central square and scale it to (n, size, size, 3).

    MuJoCo defines the field of view vertically, so a square image rendered by the same camera shows
    the same part of the scene. Images that already have this size are returned unchanged.
    """
    height, width = frames.shape[1:3]
    if (height, width) == (size, size):
        return frames
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    squares = frames[:, top : top + side, left : left + side]
    scaled = [Image.fromarray(f).resize((size, size), Image.Resampling.BILINEAR) for f in squares]
    return np.stack([np.asarray(image) for image in scaled])

"""Cropping and scaling of images."""

import numpy as np

from imf_ray.images import center_crop_resize


def test_images_are_cropped_to_the_central_square() -> None:
    frames = np.zeros((2, 8, 12, 3), np.uint8)
    frames[:, :, 2:10] = 200  # the central square is bright, the rest is black
    assert (center_crop_resize(frames, 4) == 200).all()
    square = frames[:, :, 2:10]
    assert center_crop_resize(square, 8) is square

"""Renders the pictures of the README: `python scripts/pictures.py docs/images`."""

import sys
from pathlib import Path

import gymnasium
import imageio.v3 as iio

import imf_ray
from imf_ray.sim.expert import TransferExpert

SEED, STEPS, SIZE = 3, 55, 360


def main(folder: Path) -> None:
    """Play the expert until it reaches for the cube, and write one picture a camera."""
    env = gymnasium.make(
        "imf_ray/SimTransfer-v0",
        image_size=SIZE,
        render_images=False,
        shadows=True,
        multisampling=True,
    )
    env.reset(seed=SEED)
    expert = TransferExpert(env.unwrapped)
    expert.reset()
    for _ in range(STEPS):
        env.step(expert.act()[0])
    for camera, picture in env.unwrapped.render_cameras().items():
        iio.imwrite(folder / f"{camera}.png", picture)
    print(f"imf_ray {imf_ray.__version__}: wrote the pictures to {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

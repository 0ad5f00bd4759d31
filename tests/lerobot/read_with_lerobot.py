"""Reads a data set with LeRobot itself, and saves what it gives. It runs in LeRobot's environment.

    python read_with_lerobot.py FOLDER OUTPUT.npz CHUNK INDEX ...

OUTPUT.npz has the vectors of all steps (`all/FEATURE`), the border and the length of each episode,
and for each index the images and a chunk of CHUNK actions with its padding (`INDEX/FEATURE`).
"""

import sys
from pathlib import Path

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset


def main(folder: str, output: str, chunk: int, indices: list[int]) -> None:
    """Read the data set and write the file."""
    plain = LeRobotDataset("local/export", root=folder, video_backend="pyav")
    fps = plain.meta.fps
    times = {"action": [step / fps for step in range(chunk)]}
    chunks = LeRobotDataset(
        "local/export", root=folder, delta_timestamps=times, video_backend="pyav"
    )
    rows = plain.hf_dataset.with_format("numpy")
    arrays = {f"all/{name}": np.stack(rows[name]) for name in ("observation.state", "action")}
    for name in ("timestamp", "frame_index", "episode_index", "index"):
        arrays[f"all/{name}"] = np.asarray(rows[name])
    arrays["fps"] = np.array(fps)
    arrays["task"] = np.array(plain[0]["task"])
    arrays["statistics"] = np.asarray(plain.meta.stats["action"]["mean"])
    for index in indices:
        sample = chunks[index]
        for name in (*plain.meta.camera_keys, "action", "action_is_pad"):
            arrays[f"{index}/{name}"] = np.asarray(sample[name])
    np.savez(Path(output), **arrays)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), [int(text) for text in sys.argv[4:]])

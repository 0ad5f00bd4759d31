"""Fuzzer of episode files: damages them and checks that each is read unchanged or refused.

The files are of our format, raw and compressed, and of the formats of ACT, act-plus-plus and
RoboIMI. Each is indexed before it is damaged. The outcomes:

* `equal`: the contents read are the contents written.
* `refused`: `check` and training both refuse the file and name it.
* `different`: the contents changed silently.
* `trained on`: training uses a file that `check` refuses.
* `not trained on`: training refuses a file that `check` accepts.
* `hung`, `killed`: the child process that checks the file exceeded its time limit or died. The file
  is then refused, and the check of the other files continues.
* `read: ...`: training with an index of the file neither reads the original contents nor refuses
  the file by name within ten seconds.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from imf_ray.config import load_config
from imf_ray.data.channel_order import AUTO
from imf_ray.data.check_pool import CheckResult
from imf_ray.data.episodes import (
    POSE_DIM,
    EpisodeFields,
    EpisodeMetadata,
    EpisodeSlice,
    episode_path,
)
from imf_ray.data.hdf5.check import check_episode
from imf_ray.data.hdf5.layouts import POSES
from imf_ray.data.hdf5.writing import Episode, RecordingMetadata, write_episode
from imf_ray.data.index import build_index, check_dataset
from imf_ray.data.readers import read_slice
from imf_ray.data.source_files import fingerprint
from imf_ray.errors import UserError
from imf_ray.schema import Config

LENGTH, SIZE, STATE_DIM, OBJECT = 20, 16, 16, "cube"
HEADER_BYTES = 2048
GOOD = ("equal", "refused")
BAD = ("different", "trained on", "not trained on", "hung", "killed")
READ_TIMEOUT_S, START_TIMEOUT_S = 10.0, 120.0
Mutation = Callable[[Path, np.random.Generator], None]


def write_ours(path: Path, compress: bool = False) -> None:
    """Write a small episode as `imf_ray.collect` does."""
    rng = np.random.default_rng(0)
    qpos, qvel, action, action_ee = rng.normal(size=(4, LENGTH, STATE_DIM)).astype(np.float32)
    poses = {OBJECT: rng.normal(size=(LENGTH, POSE_DIM)).astype(np.float32)}
    images = {
        camera: rng.integers(0, 256, (LENGTH, SIZE, SIZE, 3), dtype=np.uint8)
        for camera in ("r_vis", "top")
    }
    attributes = RecordingMetadata(
        task="imf_ray/SimTransfer-v0",
        action_space="joint",
        control_hz=50,
        camera_names=tuple(images),
        seed=0,
        success=True,
        max_reward=4.0,
        shadows=False,
        multisampling=False,
        version="0",
    )
    episode = Episode(images, qpos, qvel, action, action_ee, poses, attributes)
    write_episode(path, episode, compress)


def write_compressed(path: Path) -> None:
    """Write the same episode with `collect.gzip_images=true`."""
    write_ours(path, compress=True)


def write_jpegs(path: Path) -> None:
    """Write an ACT file with padded JPEGs, as act-plus-plus does."""
    write_act(path)
    with h5py.File(path, "r+") as file:
        lengths = []
        for camera, frames in file["observations/images"].items():
            jpegs = [_jpeg(frame) for frame in frames]
            packed = np.zeros((LENGTH, max(map(len, jpegs))), np.uint8)
            for row, jpeg in zip(packed, jpegs, strict=True):
                row[: len(jpeg)] = np.frombuffer(jpeg, np.uint8)
            del file[f"observations/images/{camera}"]
            file[f"observations/images/{camera}"] = packed
            lengths.append([len(jpeg) for jpeg in jpegs])
        file.attrs["compress"] = True
        file["compress_len"] = np.array(lengths, np.float32)


def _jpeg(frame: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(frame[..., ::-1]).save(content, "JPEG")  # OpenCV's order
    return content.getvalue()


def write_act(path: Path) -> None:
    """Write the same episode without hash, checksums and attributes, as ACT does."""
    ours = path.with_name("ours.partial")
    write_ours(ours)
    with h5py.File(ours) as source, h5py.File(path, "w") as file:
        file.attrs["sim"] = True
        for name in ("action", "observations/qpos", "observations/qvel", f"{POSES}/{OBJECT}"):
            file[name] = source[name][:]
        for camera, frames in source["observations/images"].items():
            chunks = (1, SIZE, SIZE, 3)
            file.create_dataset(f"observations/images/{camera}", data=frames[:], chunks=chunks)
    ours.unlink()


def write_roboimi(path: Path) -> None:
    """Write end-effector targets in double precision, as RoboIMI does."""
    write_act(path)
    with h5py.File(path, "r+") as file:
        action = file["action"][:].astype(np.float64)
        for dims in (slice(3, 7), slice(11, 15)):
            action[:, dims] /= np.linalg.norm(action[:, dims], axis=1, keepdims=True)
        del file["action"]
        file["action"] = action


def truncate(path: Path, rng: np.random.Generator) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.integers(len(content))])


def flip_bits(path: Path, rng: np.random.Generator) -> None:
    _flip(path, rng, 0, path.stat().st_size)


def flip_header_bits(path: Path, rng: np.random.Generator) -> None:
    _flip(path, rng, 0, HEADER_BYTES)


def flip_attribute_bits(path: Path, rng: np.random.Generator) -> None:
    """Flip bits near an attribute, or at the start of the file if the name does not occur in it."""
    content = path.read_bytes()
    with h5py.File(path) as file:
        names = sorted(file.attrs)
    offset = content.find(str(rng.choice(names)).encode())
    _flip(path, rng, max(0, offset - 16), min(len(content), max(0, offset) + 64))


def overwrite_block(path: Path, rng: np.random.Generator) -> None:
    content = bytearray(path.read_bytes())
    start, size = int(rng.integers(len(content))), int(rng.integers(1, 512))
    content[start : start + size] = rng.bytes(len(content[start : start + size]))
    path.write_bytes(bytes(content))


def append_bytes(path: Path, rng: np.random.Generator) -> None:
    path.write_bytes(path.read_bytes() + rng.bytes(int(rng.integers(1, 4096))))


def other_dtype(path: Path, rng: np.random.Generator) -> None:
    dtype = str(rng.choice(["int32", "float16", "float64", "uint16", "S4", "complex64"]))
    _replace(path, rng, lambda values: values.astype(dtype))


def other_shape(path: Path, rng: np.random.Generator) -> None:
    changes = [
        lambda values: values[:-1],
        lambda values: values[:0],
        lambda values: values[..., :-1],
        lambda values: values[None],
        lambda values: values[..., None],
        lambda values: np.concatenate([values, values]),
        lambda values: values.reshape(-1),
    ]
    _replace(path, rng, changes[rng.integers(len(changes))])


def bad_number(path: Path, rng: np.random.Generator) -> None:
    with h5py.File(path, "r+") as file:
        names = ["action", "observations/qpos", "observations/qvel", f"{POSES}/{OBJECT}"]
        dataset = file[str(rng.choice(names))]
        value = rng.choice([np.nan, np.inf, -np.inf, 1e30])
        dataset[rng.integers(len(dataset)), rng.integers(dataset.shape[1])] = value


def no_steps(path: Path, rng: np.random.Generator) -> None:
    """Make a consistent episode of length zero."""
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visititems(lambda name, _: names.append(name))
        for name in [name for name in names if isinstance(file[name], h5py.Dataset)]:
            empty = file[name][:0]
            del file[name]
            file[name] = empty


def missing_part(path: Path, rng: np.random.Generator) -> None:
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        del file[str(rng.choice(sorted(names)))]


def huge_declared_size(path: Path, rng: np.random.Generator) -> None:
    with h5py.File(path, "r+") as file:
        name = _dataset(file, rng)
        shape, dtype = file[name].shape, file[name].dtype
        del file[name]
        declared = (int(10 ** rng.integers(5, 13)), *shape[1:])
        file.create_dataset(name, declared, dtype, chunks=(1, *shape[1:]))


def link(path: Path, rng: np.random.Generator) -> None:
    with h5py.File(path, "r+") as file:
        name = _dataset(file, rng)
        del file[name]
        links = [
            h5py.SoftLink("/action"),
            h5py.SoftLink(f"/{name}"),
            h5py.ExternalLink("elsewhere.hdf5", "/action"),
            h5py.ExternalLink(path.name, f"/{name}"),
        ]
        file[name] = links[rng.integers(len(links))]


def other_attribute(path: Path, rng: np.random.Generator) -> None:
    with h5py.File(path, "r+") as file:
        name = str(rng.choice([*sorted(file.attrs), "new"]))
        values = [b"\xff\xfe", "text", 7, 2.5, np.zeros(3), np.array([], "f4")]
        file.attrs[name] = values[rng.integers(len(values))]


def other_file(path: Path, rng: np.random.Generator) -> None:
    contents = [b"", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", b"\x89HDF\r\n\x1a\n", rng.bytes(5000)]
    path.write_bytes(contents[rng.integers(len(contents))])


def other_format(path: Path, rng: np.random.Generator) -> None:
    """Replace the file by a valid episode that is not the indexed one."""
    path.unlink()
    writers = [write for write in KINDS.values() if write is not write_compressed]
    writers[rng.integers(len(writers))](path)


MUTATIONS: tuple[Mutation, ...] = (
    truncate,
    flip_bits,
    flip_header_bits,
    flip_attribute_bits,
    overwrite_block,
    append_bytes,
    other_dtype,
    other_shape,
    bad_number,
    no_steps,
    missing_part,
    huge_declared_size,
    link,
    other_attribute,
    other_file,
    other_format,
)


KINDS: dict[str, Callable[[Path], None]] = {
    "ours": write_ours,
    "compressed": write_compressed,
    "ACT": write_act,
    "JPEG": write_jpegs,
    "RoboIMI": write_roboimi,
}
FOREIGN = ("ACT", "JPEG", "RoboIMI")


def fuzz(folder: Path, mutations: int, seed: int) -> list[tuple[str, str, str]]:
    """Damage `mutations` files in `folder`; return (kind of file, mutation, outcome) of each."""
    outcomes = []
    reader = _Reader()
    for kind_number, (kind, write) in enumerate(KINDS.items()):
        data_set = folder / kind
        data_set.mkdir(parents=True)
        original = data_set / "original"
        write(original)
        info = check_episode(original)
        contents = _read(info)
        paths = [episode_path(data_set, number) for number in range(mutations // len(KINDS))]
        for path in paths:
            shutil.copyfile(original, path)
        mutation_of = [MUTATIONS[number % len(MUTATIONS)] for number in range(len(paths))]
        indexed = [
            path
            for path, mutate in zip(paths, mutation_of, strict=True)
            # Our files contain their hash, unless a file of another format replaces them.
            if kind in FOREIGN or mutate is other_format
        ]
        check_dataset(data_set, indexed, AUTO)
        problems = []
        for number, (path, mutate) in enumerate(zip(paths, mutation_of, strict=True)):
            file_info = replace(info, path=str(path), fingerprint=fingerprint(path))
            mutate(path, np.random.default_rng([seed, number, kind_number]))
            problems.append(reader.problem(file_info, contents))
        results = check_dataset(data_set, paths, AUTO)
        index = build_index(_training_config(data_set, kind))
        trained_on = {episode.path for episode in index.episodes}
        outcomes += [
            (
                kind,
                mutate.__name__,
                problem or _outcome(path, results[path], info, contents, str(path) in trained_on),
            )
            for mutate, path, problem in zip(mutation_of, paths, problems, strict=True)
        ]
    reader.close()
    return outcomes


class _Reader:
    """A child process that reads files as training does."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        self._pool.submit(os.getpid).result(START_TIMEOUT_S)

    def close(self) -> None:
        """Kill the process."""
        for process in list(
            self._pool._processes.values()
        ):  # there is no public way to end a process that hangs
            process.kill()
        self._pool.shutdown()

    def problem(self, info: EpisodeMetadata, contents: list[EpisodeSlice]) -> str | None:
        """Read an indexed file in the child process; return the problem, or None."""
        try:
            read = self._pool.submit(_read, info).result(READ_TIMEOUT_S)
        except UserError as error:
            return None if Path(info.path).name in str(error) else "read: not named"
        except (TimeoutError, BrokenProcessPool) as error:
            self.close()
            self._start()
            return "read: hung" if isinstance(error, TimeoutError) else "read: killed"
        except Exception as error:
            return f"read: {type(error).__name__}"
        return None if all(map(_same, read, contents)) else "read: different"


def _training_config(data_set: Path, kind: str) -> Config:
    """Load the configuration of a run that trains on the valid files of a data set."""
    return load_config(
        [
            "agent=resnet_imf_attnres",
            f"data.dataset_dir={data_set}",
            "data.camera_names=[r_vis,top]",
            "agent.camera_names=[r_vis,top]",
            f"agent.aux_pose_objects=[{OBJECT}]",
            f"task.image_size={SIZE}",
            f"task.action_space={'ee' if kind == 'RoboIMI' else 'joint'}",
            "agent.vision_backbone.crop_size=14",
            "data.on_bad_episode=skip",
        ]
    )


def _outcome(
    path: Path,
    result: CheckResult,
    original: EpisodeMetadata,
    contents: list[EpisodeSlice],
    is_trained_on: bool,
) -> str:
    if isinstance(result, str):
        assert path.name in result, result
        if is_trained_on:
            return "trained on"
        if "takes more than" in result:
            return "hung"
        return "killed" if "killed the reader" in result else "refused"
    if not is_trained_on:
        return "not trained on"
    described = replace(result, path=original.path, fingerprint=original.fingerprint)
    read = _read(result)
    same = len(read) == len(contents) and all(map(_same, read, contents))
    return "equal" if described == original and same else "different"


def _read(info: EpisodeMetadata) -> list[EpisodeSlice]:
    """Read the whole episode, once per action space."""
    steps = (0, LENGTH)
    fields = [EpisodeFields(tuple(info.cameras), info.objects, s) for s in info.action_spaces]
    return [read_slice(info.ref, f, steps, steps) for f in fields]


def _same(one: EpisodeSlice, other: EpisodeSlice) -> bool:
    pairs = [(one.qpos, other.qpos), (one.action, other.action)]
    pairs += [(one.images[camera], other.images[camera]) for camera in one.images]
    pairs += [(one.object_poses[name], other.object_poses[name]) for name in one.object_poses]
    return all(np.array_equal(a, b) for a, b in pairs)


def _flip(path: Path, rng: np.random.Generator, start: int, stop: int) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(int(rng.integers(1, 4))):
        content[rng.integers(start, stop)] ^= 1 << int(rng.integers(8))
    path.write_bytes(bytes(content))


def _dataset(file: h5py.File, rng: np.random.Generator) -> str:
    names: list[str] = []
    file.visititems(
        lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None
    )
    return str(rng.choice(sorted(names)))


def _replace(
    path: Path, rng: np.random.Generator, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    with h5py.File(path, "r+") as file:
        name = _dataset(file, rng)
        values = change(file[name][:])
        del file[name]
        file[name] = values

"""Reads frames of video files: sought once, decoded forward, found by their times."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import av
import av.error
import numpy as np

from imf_ray.data.source_files import open_source
from imf_ray.errors import UserError
from imf_ray.storage import AnyPath

CONTAINER_FORMAT = "mp4"
"""The only format of video files that is read. Other formats may refer to further files."""
DECODER_THREADS = 1
"""Number of threads of a decoder. Several files are decoded at the same time instead."""


class VideoFile:
    """An open video file.

    Args:
        name: how messages call the file.
        tolerance_s: maximum difference in seconds between the time of a step and that of its frame.
    """

    def __init__(self, container: Any, name: str, tolerance_s: float) -> None:
        self._container, self._name, self._tolerance_s = container, name, tolerance_s
        streams = container.streams.video
        if not streams:
            raise UserError(f"{name} has no video stream")
        self._stream = streams[0]
        if self._stream.codec_context is None:
            raise UserError(f"{name} has a codec that cannot be decoded")
        self._stream.codec_context.thread_count = DECODER_THREADS
        self._seconds_per_tick = float(self._stream.time_base)

    @property
    def codec(self) -> str:
        """Name of the codec, such as av1 or h264."""
        return str(self._stream.codec_context.codec.canonical_name)

    def frames(self, times: np.ndarray) -> Iterator[Any]:
        """Yield the decoded frame (`av.VideoFrame`) of each time, in seconds, in increasing order.

        A frame is decoded at most once. It may belong to several times.

        Raises:
            UserError: there is no frame at a time, or the video is damaged.
        """
        with _as_user_errors(self._name):
            index = 0
            for frame_time, frame in self._decode_from(float(times[0])):
                while index < len(times) and abs(frame_time - times[index]) <= self._tolerance_s:
                    yield frame
                    index += 1
                if index == len(times):
                    return
                if frame_time > times[index]:
                    break
            raise UserError(f"{self._name} has no frame at {times[index]:.4f} s")

    def packets(self, start_s: float, stop_s: float) -> Iterator[bytes]:
        """Yield the encoded frames of the times [start_s, stop_s) in the order of the file.

        Raises:
            UserError: the video is damaged.
        """
        first, last = start_s - self._tolerance_s, stop_s - self._tolerance_s
        with _as_user_errors(self._name):
            self._seek(first)
            for packet in self._container.demux(self._stream):
                time = None if packet.pts is None else packet.pts * self._seconds_per_tick
                if time is not None and first <= time < last:
                    yield bytes(packet)
                if packet.is_keyframe and time is not None and time >= last:
                    return

    def _decode_from(self, time: float) -> Iterator[tuple[float, Any]]:
        """Yield (time, frame) from a frame at or before `time`."""
        latest_start = time + self._tolerance_s
        starts = (time - self._tolerance_s, 0.0)  # seeking may lead too far in videos with B-frames
        for start in starts:
            self._seek(start)
            is_first = True
            for frame in self._container.decode(self._stream):
                if frame.pts is None:
                    raise UserError(f"{self._name} has a frame without a time")
                frame_time = frame.pts * self._seconds_per_tick
                if is_first and frame_time > latest_start and start > 0.0:
                    break
                is_first = False
                yield frame_time, frame
            else:
                return

    def _seek(self, time: float) -> None:
        tick = max(0, int(time / self._seconds_per_tick))
        self._container.seek(tick, stream=self._stream, backward=True)


@contextlib.contextmanager
def open_video(path: AnyPath, name: str, tolerance_s: float) -> Iterator[VideoFile]:
    """Open a local or remote video file.

    Raises:
        UserError: it is missing, or is no video that can be decoded. The message is a clause.
        OSError: the storage fails.
    """
    with open_source(path) as source:
        try:
            with _as_user_errors(name):
                container = av.open(source, format=CONTAINER_FORMAT)
        except FileNotFoundError as error:
            raise UserError(f"{name} is missing") from error
        with container:
            yield VideoFile(container, name, tolerance_s)


def rgb_pixels(frame: Any) -> np.ndarray:
    """Return the pixels (H, W, 3) uint8 of a decoded frame."""
    pixels: np.ndarray = frame.to_ndarray(format="rgb24")
    return pixels


@contextlib.contextmanager
def _as_user_errors(name: str) -> Iterator[None]:
    """Convert FFmpeg's errors about contents to `UserError`."""
    try:
        yield
    except FileNotFoundError:
        raise
    except av.error.FFmpegError as error:
        raise UserError(f"{name} cannot be decoded ({error.strerror or error})") from error

"""The local copy of the small files below a URL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from imf_ray.errors import StorageError
from imf_ray.pages import mirror
from imf_ray.pages.mirror import Mirror
from imf_ray.storage import display_path

SMALL = {
    "a/config.yaml": "train: {}",
    "a/metrics.jsonl": "{}\n",
    "a/workers/rank_0.json": "{}",
    "sweep/space.json": "{}",
    "sweep/trials/00000/trial.json": "{}",
    "tune/config.yaml": "train: {}",  # a run of this name
}
LEFT_OUT = (
    "a/checkpoint_00000001/model.safetensors",
    "a/.claim.json",
    "a/samples_rank_0.jsonl",
    "a/swanlab/run/files/config.yaml",
    "sweep/tune/state.json",
)


class Bucket:
    """A folder in memory."""

    def __init__(self, name: str) -> None:
        self.url = f"memory://bucket/{name}"
        self.fs = MemoryFileSystem()

    def write(self, path: str, content: str = "{}") -> None:
        self.fs.pipe(f"{self.url}/{path}", content.encode())

    def delete(self, path: str) -> None:
        self.fs.rm(f"{self.url}/{path}", recursive=True)


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    monkeypatch.setattr(mirror, "SYNC_INTERVAL_S", 0.0)
    monkeypatch.setattr(mirror, "MAX_SYNC_TIME_FRACTION", 1e9)
    bucket = Bucket(tmp_path.name)
    yield bucket
    bucket.fs.store.clear()


def files(copy: Mirror) -> dict[str, str]:
    paths = [path for path in copy.root.rglob("*") if path.is_file()]
    return {str(path.relative_to(copy.root)): path.read_text() for path in paths}


def test_small_files_are_copied(bucket: Bucket) -> None:
    for path in (*SMALL, *LEFT_OUT):
        bucket.write(path, SMALL.get(path, "left out"))
    copy = Mirror(f"{bucket.url}/", ())
    copy.sync(copy.root)
    assert files(copy) == SMALL
    assert display_path(copy.root / "a") == f"{bucket.url}/a"
    copy.close()
    assert not copy.root.exists()


def test_only_changes_are_downloaded(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    downloads: list[str] = []
    get = MemoryFileSystem.get

    def count(fs: MemoryFileSystem, sources: list[str], targets: list[str]) -> None:
        downloads.extend(sources)
        get(fs, sources, targets)

    monkeypatch.setattr(MemoryFileSystem, "get", count)
    for path in SMALL:
        bucket.write(path)
    copy = Mirror(bucket.url, ())
    copy.sync(copy.root)
    assert len(downloads) == len(SMALL)
    bucket.write("a/metrics.jsonl", "{}\n{}\n")
    copy.sync(copy.root / "sweep")
    assert len(downloads) == len(SMALL)
    copy.sync(copy.root)
    assert len(downloads) == len(SMALL) + 1
    assert files(copy)["a/metrics.jsonl"] == "{}\n{}\n"


def test_what_is_deleted_at_the_url_is_deleted_here_and_returns(bucket: Bucket) -> None:
    bucket.write("a/config.yaml")
    bucket.write("b/config.yaml")
    copy = Mirror(bucket.url, ())
    copy.sync(copy.root)
    bucket.delete("a")
    copy.sync(copy.root)
    assert [path.name for path in copy.root.iterdir()] == ["b"]
    bucket.write("a/config.yaml")
    copy.sync(copy.root / "a")
    assert set(files(copy)) == {"a/config.yaml", "b/config.yaml"}
    bucket.delete("")
    copy.sync(copy.root)
    assert files(copy) == {}


def test_a_video_is_downloaded_when_it_is_asked_for(bucket: Bucket) -> None:
    bucket.write("a/videos/1.mp4", "first")
    copy = Mirror(bucket.url, (".mp4",))
    copy.sync(copy.root)
    video = copy.root / "a/videos/1.mp4"
    assert video.read_bytes() == b"\0" * 5
    for content in ("first", "the second one"):
        bucket.write("a/videos/1.mp4", content)
        copy.sync(copy.root)
        copy.fetch(video)
        assert video.read_text() == content
        copy.sync(copy.root)
        assert video.read_text() == content
    copy.fetch(copy.root / "a/videos/2.mp4")  # not listed, so not requested
    assert [path.name for path in video.parent.iterdir()] == ["1.mp4"]


def test_a_url_that_fails_keeps_the_copy(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.write("a/config.yaml")
    copy = Mirror(bucket.url, ())
    copy.sync(copy.root)
    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "find", lambda *_, **__: 1 / 0)
        with pytest.raises(StorageError, match="cannot be read: ZeroDivisionError"):
            copy.sync(copy.root)
    assert set(files(copy)) == {"a/config.yaml"}
    copy.sync(copy.root)


def test_a_file_that_vanishes_after_the_listing_is_left_out(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.write("a/config.yaml")
    bucket.write("a/old.json")
    get = MemoryFileSystem.get

    def delete_first(fs: MemoryFileSystem, sources: list[str], targets: list[str]) -> None:
        if any("old" in source for source in sources):
            bucket.delete("a/old.json")
            raise FileNotFoundError(sources[-1])
        get(fs, sources, targets)

    monkeypatch.setattr(MemoryFileSystem, "get", delete_first)
    copy = Mirror(bucket.url, ())
    copy.sync(copy.root)
    assert set(files(copy)) == {"a/config.yaml"}


def test_a_folder_is_not_listed_again_at_once(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "SYNC_INTERVAL_S", 60.0)
    copy = Mirror(bucket.url, ())
    copy.sync(copy.root)
    bucket.write("a/config.yaml")
    copy.sync(copy.root)
    assert files(copy) == {}
    copy.sync(copy.root / "a")
    assert set(files(copy)) == {"a/config.yaml"}

"""Kinds of folders, and the checkpoints and runs that are named instead of another folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from upath import UPath

from imf_ray.checkpoint_dir import (
    CONFIG_FILE,
    MANIFEST_FILE,
    VALIDATION_FILE,
    WEIGHTS_FILE,
    checkpoint_name,
    file_digest,
)
from imf_ray.errors import UserError
from imf_ray.folders import (
    FolderKind,
    best_checkpoint,
    folder_kind,
    require_checkpoint,
    require_run,
    verify_checkpoint,
)
from imf_ray.pages.snapshot import SnapshotReader
from imf_ray.rollout.policy_spec import PolicySpec
from imf_ray.storage import local_dir


def write_checkpoint(run: Path, step: int, success: float | None = None) -> None:
    folder = run / checkpoint_name(step)
    folder.mkdir(parents=True)
    (folder / CONFIG_FILE).write_text("train: {max_steps: 6}\n")
    (folder / WEIGHTS_FILE).write_text(f"weights {step}")
    digests = {name: file_digest(folder / name) for name in (CONFIG_FILE, WEIGHTS_FILE)}
    manifest = {"metrics": {"step": step}, "files": digests}
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    if success is not None:
        (folder / VALIDATION_FILE).write_text(json.dumps({"rollout/success_rate": success}))


def write_run(run: Path, steps: dict[int, float | None]) -> None:
    run.mkdir(parents=True)
    (run / CONFIG_FILE).write_text("train: {max_steps: 6}\n")
    for step, success in steps.items():
        write_checkpoint(run, step, success)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with two runs, a sweep, a data set and broken checkpoints."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs/transfer", {2: 0.2, 4: 0.9, 6: 0.5})
    write_run(tmp_path / "runs/young", {})
    for name in ("000_a", "001_b"):
        write_run(tmp_path / "runs/sweep/trials" / name, {3: None})
    (tmp_path / "runs/sweep/space.json").write_text("{}")
    (tmp_path / "runs/transfer/.partial_00000008").mkdir()
    (tmp_path / "runs/transfer/evaluations/a").mkdir(parents=True)
    (tmp_path / "runs/transfer/evaluations/a/episodes.jsonl").touch()
    (tmp_path / "data/demos").mkdir(parents=True)
    (tmp_path / "data/demos/episode_0.hdf5").touch()
    (tmp_path / "empty").mkdir()
    write_checkpoint(tmp_path / "copies", 4)
    (tmp_path / "copies" / checkpoint_name(4) / MANIFEST_FILE).unlink()
    return tmp_path


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("runs/transfer/checkpoint_00000004", FolderKind.CHECKPOINT),
        ("runs/transfer/checkpoint_00000004/config.yaml", FolderKind.FILE),
        ("runs/transfer/.partial_00000008", FolderKind.UNFINISHED),
        ("runs/transfer/evaluations/a", FolderKind.EVALUATION),
        ("copies/checkpoint_00000004", FolderKind.INCOMPLETE),
        ("runs/transfer", FolderKind.RUN),
        ("runs/young", FolderKind.RUN),
        ("runs/sweep", FolderKind.SWEEP),
        ("runs", FolderKind.STORAGE),
        ("data/demos", FolderKind.DATA_SET),
        ("data", FolderKind.OTHER),
        ("empty", FolderKind.EMPTY),
        ("nothing", FolderKind.MISSING),
    ],
)
def test_kinds_of_folders(workspace: Path, path: str, kind: FolderKind) -> None:
    assert folder_kind(workspace / path) == kind


BEST, NEWEST = "runs/transfer/checkpoint_00000004", "runs/transfer/checkpoint_00000006"


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("runs/transfer", [f"{BEST} (best)", f"{NEWEST} (newest)", "best-of-run"]),
        ("runs/transfer/", [BEST]),
        ("runs/transfer/config.yaml", [BEST]),
        ("runs/transfer/evaluations/a/episodes.jsonl", [BEST]),
        ("runs/transfer/.partial_00000008", [BEST, NEWEST]),
        ("runs/transfer/checkpoint_00000004/model.safetensors", [BEST]),
        ("runs/transfer/checkpoint_00000005", ["runs/transfer/checkpoint_0000000"]),
        ("runs/young", ["no checkpoint yet"]),
        ("runs/sweep", ["trials/000_a/checkpoint_00000003", "trials/001_b/checkpoint_00000003"]),
        ("runs", [BEST, "trials/000_a/checkpoint_00000003"]),
        ("transfer", [BEST, NEWEST]),
        ("runs/transfr", [BEST, NEWEST]),
        ("copies/checkpoint_00000004", ["manifest.json"]),
        ("policies/sim_transfr", ["policies/sim_transfer"]),
        ("data/demos", ["a data set", BEST]),
        ("empty", ["an empty folder", BEST]),
        ("nothing/at/all", ["does not exist"]),
    ],
)
def test_another_folder_than_a_checkpoint_is_refused_with_the_checkpoints(
    workspace: Path, path: str, named: list[str]
) -> None:
    for prefix in ("", "untrained:"):
        with pytest.raises(UserError) as error:
            PolicySpec.parse(prefix + path).resolve(is_run=True).check_path("runs")
        message = str(error.value)
        assert message.startswith(prefix + path.rstrip("/"))
        assert all(text in message for text in named if not (prefix and text == "best-of-run"))
        assert "Errno" not in message


def test_checkpoints_are_accepted_however_they_are_written(workspace: Path) -> None:
    for path in (BEST, f"{BEST}/", f"./runs/young/../transfer/{checkpoint_name(4)}"):
        spec = PolicySpec.parse(path).resolve()
        spec.check_path("runs")
        assert spec.local_path == workspace / BEST
    PolicySpec.parse("policies/sim_transfer").resolve().check_path("runs")


def test_runs_elsewhere_are_found_by_their_storage(workspace: Path) -> None:
    (workspace / "runs").rename(workspace / "storage")
    with pytest.raises(UserError, match="storage/transfer/checkpoint_00000004"):
        require_checkpoint(workspace / "transfer", storage="storage")


def test_folders_under_a_url_are_recognized(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(workspace / "cache"))
    run = UPath("memory://box/runs/transfer")
    for file in (workspace / BEST).iterdir():
        (run / checkpoint_name(4)).mkdir(parents=True, exist_ok=True)
        (run / checkpoint_name(4) / file.name).write_bytes(file.read_bytes())
    require_checkpoint(local_dir(f"{run}/{checkpoint_name(4)}"))
    require_run(local_dir(str(run)))
    for path in (run, f"{run}/", "memory://box/runs/transfr", "memory://box/runs"):
        with pytest.raises(UserError, match=f"Use {run}/{checkpoint_name(4)}"):
            require_checkpoint(local_dir(str(path)))
    for path in (f"{run}/{checkpoint_name(4)}", "memory://box/runs", "memory://box/runs/transfr"):
        with pytest.raises(UserError, match=f"Use {run}\\."):
            require_run(local_dir(path))


@pytest.mark.parametrize("damage", ["weights", "manifest", "missing"])
def test_a_damaged_checkpoint_is_refused_with_the_others_of_its_run(
    workspace: Path, damage: str
) -> None:
    weights, manifest = workspace / BEST / WEIGHTS_FILE, workspace / BEST / MANIFEST_FILE
    if damage == "weights":
        weights.write_text("weights 5")
    elif damage == "manifest":
        manifest.write_text(manifest.read_text()[:-9])
    else:
        weights.unlink()
    with pytest.raises(UserError) as error:
        verify_checkpoint(workspace / BEST)
    assert NEWEST in str(error.value)
    assert (MANIFEST_FILE if damage == "manifest" else WEIGHTS_FILE) in str(error.value)
    assert verify_checkpoint(workspace / NEWEST).step == 6


@pytest.mark.parametrize(
    ("path", "named"),
    [
        (BEST, "checkpoint=runs/transfer"),
        (f"{BEST}/config.yaml", "checkpoint=runs/transfer"),
        ("runs/sweep", "checkpoint=runs/sweep/trials/000_a"),
        ("runs", "checkpoint=runs/transfer"),
        ("transfr", "checkpoint=runs/transfer"),
    ],
)
def test_another_folder_than_a_run_is_refused_with_the_runs(
    workspace: Path, path: str, named: str
) -> None:
    require_run(workspace / "runs/transfer")
    with pytest.raises(UserError) as error:
        require_run(
            workspace / path, suggest=lambda run: f"checkpoint={run.relative_to(workspace)}"
        )
    assert named in str(error.value) and f"{named}/checkpoint" not in str(error.value)


def test_status_lists_the_runs_of_a_folder(workspace: Path) -> None:
    def names(folder: str) -> list[str]:
        return sorted(row.name for row in SnapshotReader(workspace / folder).read().rows)

    assert names("runs") == ["sweep", "transfer", "young"]
    assert names("runs/sweep") == ["000_a", "001_b"]
    assert names("runs/young") == ["young"]


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("runs/transfer", "replay:runs/transfer is the folder of a run"),
        ("runs", "a folder of runs"),
        (BEST, "a checkpoint"),
        ("empty", "an empty folder"),
    ],
)
def test_a_folder_of_training_is_no_replay(workspace: Path, path: str, named: str) -> None:
    for accepted in ("data/demos", "data/demos/episode_0.hdf5"):
        PolicySpec.parse(f"replay:{accepted}").resolve().check_path("runs")
    with pytest.raises(UserError, match=named):
        PolicySpec.parse(f"replay:{path}").resolve().check_path("runs")


@pytest.mark.parametrize(
    ("folder", "checkpoint"),
    [
        ("runs/transfer", "checkpoint_00000004"),  # the best one, not the newest
        ("runs/sweep/trials/000_a", "checkpoint_00000003"),
        ("runs/young", None),
        ("runs/sweep", None),
        ("runs/transfer/checkpoint_00000002", None),
    ],
)
def test_a_run_stands_for_its_best_checkpoint(
    workspace: Path, folder: str, checkpoint: str | None
) -> None:
    expected = workspace / folder if checkpoint is None else workspace / folder / checkpoint
    assert best_checkpoint(workspace / folder) == expected
    assert PolicySpec.parse(folder).resolve().local_path == expected
    assert PolicySpec.parse(folder).resolve(is_run=True).local_path == workspace / folder

"""The command `report`: kinds of folders, its options and its errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from imf_ray import cli, report
from imf_ray.cli import EXIT_USER_ERROR
from imf_ray.pages import report_file
from imf_ray.pages.report_file import reported_launch
from imf_ray.schema import ReportConfig
from imf_ray.sweep.trial_record import FINISHED
from testing_support.generated_runs import RUNNING, GeneratedRun, generate_sweep
from tests.helpers.reports import read_report


def run(*arguments: str) -> int:
    """Run the command and return its exit code."""
    return cli.run_command(report.COMMAND, arguments)


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a sweep and a run into the working directory's `runs`."""
    monkeypatch.chdir(tmp_path)
    generate_sweep(tmp_path / "runs/sweep", 4, 40, (FINISHED, RUNNING), video=b"x" * 1000)
    GeneratedRun(tmp_path / "runs/run").add_lines(40)
    return tmp_path / "runs"


def test_reports_of_a_run_a_sweep_and_a_folder_of_them(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, argument in (
        (storage / "sweep", "runs/sweep"),
        (storage / "run", "run_name=run"),
        (storage, str(storage)),
    ):
        assert run(argument) == 0
        output = capsys.readouterr().out
        report, next_command = output.splitlines()  # no table without results
        assert report == f"Report: {folder}/report.html"
        assert next_command.startswith("Next: imf-ray board ")
        page, sections = read_report(folder)
        assert {"summary", "results", "curves"} <= sections and str(folder) in page
    assert run("runs/sweep", "report.output=pages/sweep.html", "report.max_video_mb=0.0001") == 0
    page = (storage.parent / "pages/sweep.html").read_text()
    assert "../runs/sweep/trials/" in page and "data:video/mp4" not in page
    assert "data:video/mp4" in (storage / "sweep/report.html").read_text()


def test_a_report_of_a_url_is_uploaded(
    storage: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(storage.parent / "cache"))
    url = f"file://{storage}"
    assert run("run_name=sweep", f"storage_path={url}") == 0
    assert f"Report: {url}/sweep/report.html" in capsys.readouterr().out
    page, _ = read_report(storage / "sweep")
    assert f"checkpoint={url}/sweep/trials/" in page and "data:video/mp4" in page


def test_wrong_folders(
    storage: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (storage.parent / "notes").mkdir()
    (storage.parent / "notes/a.txt").write_text("text")
    for arguments, words in (
        ([], "No folder is given"),
        (["runs/sweep", "runs/run"], "One folder is needed, but 2 are given"),
        (["runs/sweep", "run_name=run"], "One folder is needed, but 2 are given"),
        (["runs/swep"], "runs/swep does not exist. Use imf-ray report runs/sweep"),
        (["runs/sweep/trials/00000-n_emb_32-n_layer_2/videos"], "Use imf-ray report runs/sweep"),
        (["notes"], "notes is a folder of other files"),
        (["runs/sweep", "report.max_total_mb=-1"], "report.max_total_mb"),
    ):
        assert run(*arguments) == EXIT_USER_ERROR
        assert words in capsys.readouterr().err


def test_a_report_that_cannot_be_written_does_not_hide_the_result(
    storage: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> str:
        raise ZeroDivisionError("a bug in a page")

    monkeypatch.setattr(report_file, "render_page", fail)
    with reported_launch(storage / "run", "train", [], ReportConfig()):
        pass
    assert "There is no report: ZeroDivisionError: a bug in a page" in caplog.text
    with pytest.raises(KeyError), reported_launch(storage / "run", "train", [], ReportConfig()):
        raise KeyError("the result")
    assert not (storage / "run/report.html").exists()


def test_no_secret_is_in_a_report(storage: Path) -> None:
    secret = "s3cr3t-value"
    url = f"https://user:{secret}@host/demos?token={secret}"
    arguments = [f"data.dataset_dir={url}", f"task.adapter.kwargs={{api_key: {secret}}}"]
    for config in storage.rglob("config.yaml"):
        text = config.read_text().replace("dataset_dir: data/sim_transfer", f"dataset_dir: {url}")
        assert secret in text
        config.write_text(text)
    record = next(storage.rglob("trial.json"))
    values = {"error": f"403 for {url}", "swanlab_run": url, "status": "failed"}
    record.write_text(json.dumps(json.loads(record.read_text()) | values))
    with (
        pytest.raises(OSError, match="403"),
        reported_launch(storage / "sweep", "tune", arguments, ReportConfig()),
    ):
        raise OSError(f"403 for {url}")
    assert run("runs") == run("runs/run") == 0
    for folder in (storage, storage / "sweep", storage / "run"):
        assert secret not in read_report(folder)[0]
    assert secret not in (storage / "sweep/launches.jsonl").read_text()
    assert "https://***@host/demos?***" in read_report(storage / "sweep")[0]

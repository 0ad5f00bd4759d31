"""Charts of a run for SwanLab, an experiment tracker."""

from __future__ import annotations

import functools
import importlib.util
import logging
import shlex
import threading
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from imf_ray.errors import UserError
from imf_ray.folders import TRIALS_DIR
from imf_ray.network import open_url
from imf_ray.schema import Config
from imf_ray.training.chart_log import VIDEO_CHART, flat_config
from imf_ray.training.run_dir import SWANLAB_DIR, SWANLAB_RUN_ID_FILE, RunDir
from imf_ray.training.stoppable_dir import StoppableDir

FINISH_TIMEOUT_S = 60.0
"""Seconds that the end of a run waits for SwanLab. The run's folder has what was not sent."""
log = logging.getLogger(__name__)


class SwanLabLog:
    """Logs charts to a SwanLab run, see `ChartLog`.

    All launches of a run have the same SwanLab id. Online, SwanLab continues the run. Offline, each
    launch writes a folder, and uploading the folders in order continues the run. In mode `local`,
    SwanLab shows each launch as a run of its own.

    Trials of a sweep are one group. In mode `local`, they share one board.
    """

    def __init__(self, run_dir: RunDir, config: Config) -> None:
        run_id = run_dir.read_swanlab_run_id()
        self.is_new = run_id is None
        if run_id is None:
            run_id = uuid.uuid4().hex
            run_dir.write_swanlab_run_id(run_id)
        self._folder = swanlab_folder(run_dir, config)
        self._all_sent = True
        # In a thread, because SwanLab handles Ctrl-C if it starts in the main thread.
        with ThreadPoolExecutor(1) as executor:
            start = executor.submit(_start, run_dir, config, run_id, self._folder)
            self._run = start.result()

    def log(self, step: int, time_s: float, values: Mapping[str, float]) -> None:
        """Log the values of charts after `step` updates. SwanLab dates them by its own clock."""
        if values:
            self._run.log(dict(values), step=step)

    def log_video(self, step: int, gif: bytes, caption: str) -> None:
        """Log the video of a validation."""
        import swanlab

        self._run.log({VIDEO_CHART: swanlab.Video(gif, caption=caption)}, step=step)

    @property
    def location(self) -> str:
        """URL of an online run, or folder of a run that has to be uploaded or is local."""
        try:
            return str(self._run.url) if self._all_sent else str(self._folder)
        except ValueError:  # raised by SwanLab for runs that are not online
            return str(self._folder)

    def close(self) -> None:
        """Finish the SwanLab run; wait at most `FINISH_TIMEOUT_S` until everything is sent."""
        finish = threading.Thread(target=self._run.finish, daemon=True)
        finish.start()
        finish.join(FINISH_TIMEOUT_S)  # SwanLab itself would try for ever
        self._all_sent = not finish.is_alive()
        if not self._all_sent:
            log.warning("SwanLab does not answer, so a part of this launch is not online.")


def check_swanlab(config: Config) -> None:
    """Check that SwanLab can start with these options.

    Raises:
        UserError: the project's name is invalid, or the board of mode `local` is not installed.
    """
    import pydantic
    import swanlab

    try:
        swanlab.Settings(project={"name": config.train.swanlab_project})
    except pydantic.ValidationError as error:
        raise UserError(
            f"train.swanlab_project={config.train.swanlab_project} is not a name of a SwanLab "
            "project. Use 1 to 100 letters, digits and the signs _-+."
        ) from error
    if config.train.swanlab_mode == "local" and importlib.util.find_spec("swanboard") is None:
        raise UserError(
            "train.swanlab_mode=local needs SwanLab's board, which is not installed. Run "
            "pip install 'swanlab[dashboard]', or set train.swanlab_mode=offline."
        )


def swanlab_mode(config: Config) -> str:
    """Return the configured SwanLab mode, or "offline" if it is "online" without a login."""
    import swanlab

    mode = config.train.swanlab_mode
    return "offline" if mode == "online" and swanlab.Settings().api_key is None else mode


def swanlab_folder(run_dir: RunDir, config: Config) -> Path:
    """Return SwanLab's log folder: that of the sweep in mode `local`, otherwise the run's own."""
    if config.train.swanlab_mode == "local" and run_dir.sweep_path is not None:
        return run_dir.sweep_path / run_dir.swanlab_dir.name
    return run_dir.swanlab_dir


def describe_swanlab(
    config: Config, folder: StoppableDir, is_sweep: bool, location: str | None = None
) -> str:
    """Return a line that says where the runs are, and how to show or upload those on this machine.

    Args:
        folder: the folder of the run, or of the sweep if `is_sweep`.
        location: see `SwanLabLog.location`; None while it is unknown.
    """
    mode = swanlab_mode(config)
    if location is not None and location.startswith("http"):
        return f"SwanLab: {location}"
    if mode == "online" and location is None:
        return f"SwanLab: online, project {config.train.swanlab_project}"
    if mode == "local":
        return f"SwanLab: {shlex.join(['swanlab', 'watch', str(folder.path / SWANLAB_DIR)])}"
    runs = shlex.quote(str(folder.path)) + (f"/{TRIALS_DIR}/*" if is_sweep else "")
    reason = "" if mode == config.train.swanlab_mode else " (not logged in; run `swanlab login`)"
    return f"SwanLab: offline{reason}. Upload it with:\n  {_upload_command(runs)}"


def _upload_command(runs: str) -> str:
    """Return the shell command that uploads offline runs, each under its id.

    Without the id, SwanLab would make a run of each launch.

    Args:
        runs: pattern of run folders, quoted for a shell.
    """
    return (
        f"for run in {runs}/{SWANLAB_DIR}/run-*; do swanlab sync "
        f'--id "$(cat "$(dirname "$run")"/{SWANLAB_RUN_ID_FILE})" "$run"; done'
    )


def _start(run_dir: RunDir, config: Config, run_id: str, folder: Path) -> Any:
    """Start or resume the SwanLab run. If SwanLab cannot be reached, the run is offline."""
    import swanlab

    folder.mkdir(parents=True, exist_ok=True)
    sweep = run_dir.sweep_path
    init = functools.partial(
        swanlab.init,
        project=config.train.swanlab_project,
        group=None if sweep is None else sweep.name,
        name=run_dir.name,
        tags=[config.agent.name, config.task.env_id],
        config=flat_config(config),
        log_dir=str(folder),
        id=run_id,
        resume="allow",
    )
    mode = swanlab_mode(config)
    if mode != "online":
        return init(mode=mode)
    try:
        _check_reachable(swanlab.Settings().api_host)  # SwanLab itself would try for minutes
        return init(mode=mode)
    except Exception as error:  # any failure, usually of the network: training continues
        reason = f"{type(error).__name__}: {error}"
        log.warning("SwanLab cannot start online, so this launch is logged offline: %s", reason)
        return init(mode="offline", reinit=True)


def _check_reachable(url: str) -> None:
    """Check that a server answers, whatever the answer is.

    Raises:
        OSError: it does not.
    """
    with suppress(HTTPError):
        open_url(url).close()

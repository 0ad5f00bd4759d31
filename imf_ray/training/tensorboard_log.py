"""Charts of a run for TensorBoard."""

from __future__ import annotations

import importlib.util
import io
import shlex
from collections.abc import Mapping, Sequence

from PIL import Image

from imf_ray.errors import UserError
from imf_ray.folders import TRIALS_DIR
from imf_ray.schema import Config
from imf_ray.training.chart_log import SUCCESS_CHART, VIDEO_CHART, flat_config
from imf_ray.training.run_dir import TENSORBOARD_DIR, RunDir
from imf_ray.training.stoppable_dir import StoppableDir


class TensorBoardLog:
    """Writes charts into the run's `tensorboard/` folder, see `ChartLog`.

    Args:
        start_step: step from which the launch resumes. Values of later steps are dropped.
        varied: names of the options that are hyperparameters; empty for all options.
    """

    def __init__(
        self, run_dir: RunDir, config: Config, start_step: int, varied: Sequence[str] = ()
    ) -> None:
        check_tensorboard()
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        self.is_new = not run_dir.tensorboard_dir.is_dir()
        purge_step = 0 if self.is_new else start_step + 1
        self._writer = SummaryWriter(str(run_dir.tensorboard_dir), purge_step=purge_step)
        options = flat_config(config)
        shown = {name: value for name, value in options.items() if name in varied} or options
        for summary in hparams(shown, {SUCCESS_CHART: 0}):  # the value is not used
            self._writer.file_writer.add_summary(summary)

    def log(self, step: int, time_s: float, values: Mapping[str, float]) -> None:
        """Log the values of charts after `step` updates."""
        for chart, value in values.items():
            self._writer.add_scalar(chart, value, step, walltime=time_s)
        self._writer.flush()

    def log_video(self, step: int, gif: bytes, caption: str) -> None:
        """Log the video of a validation as an animated image, which has no caption."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        width, height = Image.open(io.BytesIO(gif)).size
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif)
        summary = Summary(value=[Summary.Value(tag=VIDEO_CHART, image=image)])
        self._writer.file_writer.add_summary(summary, step)

    def close(self) -> None:
        """Write everything to disk."""
        self._writer.close()


def check_tensorboard() -> None:
    """Check that TensorBoard is installed.

    Raises:
        UserError: it is not.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError(
            "train.tensorboard=true needs TensorBoard, which is not installed. Run "
            "pip install tensorboard, or set train.tensorboard=false."
        )


def describe_tensorboard(folder: StoppableDir, is_sweep: bool) -> str:
    """Return a line with the command that shows a run, or all trials of a sweep."""
    logs = folder.path / (TRIALS_DIR if is_sweep else TENSORBOARD_DIR)
    return f"TensorBoard: {shlex.join(['tensorboard', '--logdir', str(logs)])}"

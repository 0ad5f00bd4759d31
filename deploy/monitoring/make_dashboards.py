"""Writes the Grafana dashboards: `python deploy/monitoring/make_dashboards.py`.

The panels show the metrics of `imf_ray.metrics_export` and a few of Ray's own. A test compares the
files in `grafana/dashboards` with what this script makes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import dashboard, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models
from grafana_panels import (
    BASELINES,
    BYTES,
    BYTES_PER_SECOND,
    FRACTION,
    LEGEND,
    SECONDS,
    SOURCE,
    SWEEPS,
    TRAINED,
    bars,
    counts_by_time,
    gauge,
    interval_lines,
    latest,
    lines,
    number,
    overall_quantile,
    quantiles,
    rate,
    series,
    total,
    trial_table,
)

from imf_ray.metrics_export import PREFIX, Kind

FOLDER = Path(__file__).parent / "grafana" / "dashboards"
TAG = "imf_ray"
"""Tag of all dashboards, by which they link to each other."""


def _dashboard(uid: str, title: str, description: str, variable_metric: str) -> dashboard.Dashboard:
    """Return a dashboard without panels.

    Args:
        variable_metric: the metric whose tags are the choices of sweep and trial.
    """
    several = uid != "imf-ray-trial"
    board = dashboard.Dashboard(title).uid(uid).description(description).tags([TAG])
    board = board.refresh("10s").time("now-1h", "now").timezone("browser").readonly()
    board = board.tooltip(models.DashboardCursorSync.CROSSHAIR)
    link = dashboard.DashboardLink("imf_ray").type(models.DashboardLinkType.DASHBOARDS)
    board = board.link(link.tags([TAG]).keep_time(True).include_vars(True))
    source = dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
    board = board.with_variable(source)
    choices = {
        "sweep": f"label_values(ray_{PREFIX}{variable_metric}, sweep)",
        "trial": f"label_values(ray_{PREFIX}{variable_metric}{{{SWEEPS}}}, trial)",
    }
    for name, query in choices.items():
        variable = dashboard.QueryVariable(name).label(name).query(query).datasource(SOURCE)
        variable = variable.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        variable = variable.sort(models.VariableSort.ALPHABETICAL_ASC)
        if several:
            every = models.VariableOption(selected=True, text="All", value="$__all")
            variable = variable.multi(True).include_all(True).all_value(".*").current(every)
        board = board.with_variable(variable)
    return board


def sweep_dashboard() -> dashboard.Dashboard:
    """Return the overview of one or more sweeps."""
    board = _dashboard(
        "imf-ray-sweep",
        "imf_ray: sweep",
        "All trials of one or more sweeps. A single run is a sweep with one trial.",
        "training_step",
    )
    states = f"sum by (state) ({series('trials', Kind.GAUGE)}{{{SWEEPS}}})"
    panels = [
        number("Trials", "Number of trials in each state.", {"{{state}}": states}, width=10),
        number(
            "Best success rate",
            "Highest success rate of a trial's last validation, also of trials that ended.",
            {"{{sweep}}": f"max by (sweep) ({latest('success_ratio', TRAINED)})"},
            FRACTION,
        ),
        number(
            "Time left",
            "Longest estimated time to the last update, over the trials that run.",
            {"{{sweep}}": gauge("time_left_seconds", by="sweep")},
            SECONDS,
        ),
        number(
            "Faults",
            "Restarts and failed validations of all trials, and lost rollout actors since the Ray "
            "cluster started.",
            {
                "restarts": f"sum({latest('restarts')})",
                "failed validations": f"sum({latest('failed_validations')})",
                "lost actors": f"sum({total('lost_rollout_actors_total')}) or vector(0)",
            },
            width=6,
        ),
        trial_table(
            "Trials, best first",
            "Last values of each trial in the shown time. A click on a trial opens its dashboard.",
        ),
        lines(
            "Success rate",
            "Success rate of each validation. The expert and the untrained policy are evaluated on "
            "the same episodes.",
            {
                LEGEND: gauge("success_ratio"),
                "{{sweep}} / {{trial}} ": gauge("success_ratio", BASELINES),
            },
            FRACTION,
        ),
        lines(
            "Action error",
            "Mean absolute error of predicted actions on held-out episodes; the range of an action "
            "is 2.",
            {LEGEND: gauge("action_error")},
        ),
        lines("Loss", "Training loss of the last logged batch.", {LEGEND: gauge("loss")}),
        lines("Training speed", "Samples per second.", {LEGEND: gauge("samples_per_second")}),
        bars(
            "Progress",
            "Fraction of the updates that are done.",
            {LEGEND: f"{gauge('training_step')} / {gauge('max_training_steps')}"},
        ),
        lines(
            "Waiting for data",
            "Fraction of the time that the slowest rank waits for its batches.",
            {LEGEND: gauge("data_wait_ratio")},
            FRACTION,
        ),
        *_machine_panels(),
    ]
    return _add(board, panels)


def _machine_panels() -> list[timeseries.Panel]:
    """Return panels of Ray's own metrics of each node."""
    gpu = "avg by (instance, GpuIndex) (ray_node_gpus_utilization / 100)"
    return [
        lines(
            "CPU and memory of the nodes",
            "Fraction of each node's CPUs and memory in use, by all processes.",
            {
                "{{instance}} CPU": "ray_node_cpu_utilization / 100",
                "{{instance}} memory": "ray_node_mem_used / ray_node_mem_total",
            },
            FRACTION,
        ),
        lines(
            "GPUs",
            "Use of each GPU, by all processes. Empty without GPUs.",
            {"{{instance}} GPU {{GpuIndex}}": gpu},
            FRACTION,
        ),
    ]


def trial_dashboard() -> dashboard.Dashboard:
    """Return the dashboard of one trial or single run."""
    board = _dashboard(
        "imf-ray-trial", "imf_ray: trial", "One trial of a sweep, or a single run.", "training_step"
    )
    ranks = "sweep, trial, rank"
    panels = [
        number(
            "Step",
            "Number of updates made, at the last validated checkpoint, and of the whole run.",
            {
                "made": gauge("training_step"),
                "validated": gauge("validated_step"),
                "of": gauge("max_training_steps"),
            },
            width=6,
        ),
        number(
            "Success rate",
            "Success rate of the last validation, with its 95 % interval.",
            {
                "success": gauge("success_ratio"),
                "from": gauge("success_ratio_low"),
                "to": gauge("success_ratio_high"),
            },
            FRACTION,
            width=6,
        ),
        number(
            "Time left",
            "Estimated time to the last update, at the current speed.",
            {"left": gauge("time_left_seconds")},
            SECONDS,
        ),
        number(
            "Faults",
            "Counted over all launches of the run: restarts, failed validations, invalid "
            "checkpoints and invalid episode files.",
            {
                "restarts": gauge("restarts"),
                "validations": gauge("failed_validations"),
                "checkpoints": gauge("invalid_checkpoints"),
                "episode files": gauge("skipped_episodes"),
            },
            width=8,
        ),
        interval_lines(),
        lines(
            "Stages reached",
            "Fraction of the validation's episodes that reached each stage of the task.",
            {"stage {{stage}}": gauge("stage_ratio", by="sweep, trial, stage")},
            FRACTION,
        ),
        lines("Loss", "Training loss of the last logged batch.", {"loss": gauge("loss")}),
        lines(
            "Action error",
            "Mean absolute error of predicted actions on held-out episodes; the range of an action "
            "is 2.",
            {"action error": gauge("action_error")},
        ),
        lines("Learning rate", "Learning rate.", {"rate": gauge("learning_rate")}, width=6),
        lines(
            "Gradient",
            "Norm of the gradient before clipping.",
            {"norm": gauge("gradient_norm")},
            width=6,
        ),
        lines(
            "Return",
            "Mean over the validation's episodes of the summed reward.",
            {"return": gauge("episode_return")},
        ),
        lines(
            "Time of a training step",
            "Whole step: wait for the batch, update, logging and saving.",
            quantiles("training_step_seconds", "rank {{rank}}", ranks),
            SECONDS,
        ),
        lines("Training speed", "Samples per second.", {"speed": gauge("samples_per_second")}),
        lines(
            "Checkpoints and validations",
            "Median time of all checkpoints and validations so far.",
            {
                "checkpoint": overall_quantile(0.5, "checkpoint_seconds"),
                "validation": overall_quantile(0.5, "validation_seconds"),
            },
            SECONDS,
        ),
        lines(
            "GPU memory",
            "Largest amount of GPU memory that PyTorch had allocated. Empty without GPUs.",
            {"rank {{rank}}": gauge("gpu_memory_bytes", by=ranks)},
            BYTES,
        ),
    ]
    return _add(board, panels)


def rollout_dashboard() -> dashboard.Dashboard:
    """Return the dashboard of rollouts: validations, evaluations and baselines."""
    board = _dashboard(
        "imf-ray-rollouts",
        "imf_ray: rollouts",
        "Episodes of validations, evaluations, the expert and untrained policies.",
        "episodes_total",
    )
    panels = [
        number(
            "Episodes",
            "Episodes that ended since the Ray cluster started, by outcome.",
            {"{{outcome}}": total("episodes_total", by="outcome")},
            width=9,
        ),
        number(
            "Environment steps",
            "Environment steps of the episodes that ended.",
            {"steps": f"sum({total('env_steps_total')})"},
            width=5,
        ),
        number(
            "Rollout actors",
            "Actors that run episodes, and episodes that wait for one.",
            {
                "busy": f"sum({gauge('rollout_actors')})",
                "waiting": f"sum({gauge('waiting_episodes')})",
            },
            width=5,
        ),
        number(
            "Lost actors",
            "Rollout actors that died or were stuck. Their episodes are repeated.",
            {"lost": f"sum({total('lost_rollout_actors_total')}) or vector(0)"},
            width=5,
        ),
        lines(
            "Speed",
            "Environment steps per second. Steps count when their episode ends.",
            {LEGEND: rate("env_steps_total")},
        ),
        lines(
            "Episodes by outcome",
            "Episodes that ended since the Ray cluster started.",
            {f"{LEGEND} {{{{outcome}}}}": total("episodes_total", by="sweep, trial, outcome")},
        ),
        lines(
            "Episode time",
            "Computing time of an episode: rendering, policy and environment steps.",
            quantiles("episode_seconds"),
            SECONDS,
        ),
        counts_by_time(
            "Episodes by computing time",
            "Number of episodes that ended, by time and computing time.",
            "episode_seconds",
        ),
        lines(
            "Environment step",
            "Time of one environment step, without rendering.",
            quantiles("env_step_seconds"),
            SECONDS,
        ),
        lines(
            "Rendering",
            "Time to render the images of one observation.",
            quantiles("render_seconds"),
            SECONDS,
        ),
        lines(
            "Inference",
            "Time of the call of the policy that predicts a chunk of actions. One call can serve "
            "several episodes.",
            quantiles("inference_seconds"),
            SECONDS,
        ),
        lines(
            "Validation",
            "Median and longest time of all validations so far, with start-up and action error.",
            {
                f"{LEGEND}, median": overall_quantile(0.5, "validation_seconds"),
                f"{LEGEND}, longest": overall_quantile(1.0, "validation_seconds"),
            },
            SECONDS,
        ),
    ]
    return _add(board, panels)


def data_dashboard() -> dashboard.Dashboard:
    """Return the dashboard of the data path: reading, queues, waiting."""
    board = _dashboard(
        "imf-ray-data",
        "imf_ray: data",
        "Reading of episodes, the queue in front of each rank, and the time that ranks wait.",
        "training_step",
    )
    ranks, legend = "sweep, trial, rank", f"{LEGEND}, rank {{{{rank}}}}"
    panels = [
        lines(
            "Waiting for data",
            "Fraction of the time that each rank waits for its batches. Near 0, reading is fast "
            "enough.",
            {legend: gauge("data_wait_ratio", by=ranks)},
            FRACTION,
        ),
        lines(
            "Wait for a batch",
            "Time that a training step waits for its batch.",
            quantiles("data_wait_seconds", legend, ranks),
            SECONDS,
        ),
        lines(
            "Read speed",
            "Bytes of decoded segments per second, over all read tasks of a rank.",
            {legend: rate("data_read_bytes_total", by=ranks)},
            BYTES_PER_SECOND,
        ),
        lines(
            "Reading a segment",
            "Time to read and decode one segment of an episode.",
            quantiles("data_read_seconds", legend, ranks),
            SECONDS,
        ),
        lines(
            "Queue",
            "Blocks that are read but not yet taken by the rank. At 0 all the time, the rank waits "
            "for data.",
            {legend: gauge("data_queued_blocks", by=ranks)},
        ),
        lines(
            "Object store",
            "Memory of Ray's object store in use, by node and location.",
            {
                "{{instance}} {{Location}}": (
                    "sum by (instance, Location) (ray_object_store_memory)"
                )
            },
            BYTES,
        ),
        number(
            "Skipped episode files",
            "Invalid episode files that the data set leaves out.",
            {LEGEND: gauge("skipped_episodes")},
            width=24,
        ),
    ]
    return _add(board, panels)


def _add(board: dashboard.Dashboard, panels: list[Any]) -> dashboard.Dashboard:
    for panel in panels:
        board = board.with_panel(panel)
    return board


def make_dashboards() -> dict[str, str]:
    """Return the JSON text of each dashboard, by file name."""
    boards = {
        "sweep.json": sweep_dashboard(),
        "trial.json": trial_dashboard(),
        "rollouts.json": rollout_dashboard(),
        "data.json": data_dashboard(),
    }
    texts = {name: _to_json(board) for name, board in boards.items()}
    # Grafana escapes a name with special characters only in a choice of several.
    return texts | {"trial.json": texts["trial.json"].replace('=~\\"$', '=\\"$')}


def _to_json(board: dashboard.Dashboard) -> str:
    content = json.loads(JSONEncoder().encode(board.build()))
    for variable in content["templating"]["list"]:
        for key in ("auto", "auto_count", "auto_min"):  # of another kind of variables
            variable.pop(key, None)
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for file_name, text in make_dashboards().items():
        (FOLDER / file_name).write_text(text)
        print(FOLDER / file_name)

"""The typed schema of every run: sections of options, with their defaults and rules.

A value that breaks its option's rules, or an impossible combination, raises `UserError` when the
section is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from imf_ray.errors import UserError
from imf_ray.schema.agent import AgentConfig, HeadConfig
from imf_ray.schema.options import (
    COMMANDS,
    Option,
    check_options,
    option,
    section,
    sections,
    walk_options,
)
from imf_ray.schema.run import (
    ROLLOUT_COMMANDS,
    ClusterConfig,
    CollectConfig,
    CompareConfig,
    EvaluateConfig,
    TrainConfig,
    TuneConfig,
)
from imf_ray.schema.task import DataConfig, TaskConfig

__all__ = [
    "COMMANDS",
    "AgentConfig",
    "ClusterConfig",
    "CollectConfig",
    "CompareConfig",
    "Config",
    "DataConfig",
    "EvaluateConfig",
    "HeadConfig",
    "Option",
    "TaskConfig",
    "TrainConfig",
    "TuneConfig",
    "all_options",
    "command_options",
    "is_sweepable",
    "resumable_options",
    "section_help",
    "training_task_options",
]

TRAINING = ("train", "tune")
ROLLOUTS = ("evaluate", "compare")
WITH_TASK = (*ROLLOUT_COMMANDS, "collect")
"""Commands that simulate the task, and so take rollout actors from a cluster."""


@dataclass
class Config:
    """Everything a command depends on."""

    agent: AgentConfig = section(AgentConfig, commands=TRAINING, resumable=False, sweepable=True)
    data: DataConfig = section(DataConfig, commands=TRAINING, resumable=False, sweepable=True)
    task: TaskConfig = section(TaskConfig, commands=WITH_TASK, resumable=False, sweepable=False)
    train: TrainConfig = section(TrainConfig, commands=TRAINING, resumable=False, sweepable=True)
    cluster: ClusterConfig = section(
        ClusterConfig, commands=WITH_TASK, resumable=True, sweepable=False
    )
    collect: CollectConfig = section(
        CollectConfig, commands=("collect",), resumable=True, sweepable=False
    )
    evaluate: EvaluateConfig = section(
        EvaluateConfig, commands=ROLLOUTS, resumable=True, sweepable=False
    )
    compare: CompareConfig = section(
        CompareConfig, commands=("compare",), resumable=True, sweepable=False
    )
    tune: TuneConfig = section(TuneConfig, commands=("tune",), resumable=True, sweepable=False)
    search_space: str = option(
        "n_emb_n_layer",
        "Search space: a name in search_spaces/ or the path of a YAML file.",
        commands=("tune",),
    )
    checkpoint: str | None = option(
        None,
        "Policy: a checkpoint folder; for evaluate also expert, untrained:CHECKPOINT, "
        "replay:EPISODES, or a run with evaluate.checkpoint_selection.",
        commands=("evaluate", "export"),
    )
    run_name: str | None = option(
        None,
        "Folder of the run or sweep in storage_path; train resumes an existing run of that name. "
        "null makes a name of the agent or search space and the time.",
        commands=("train", "tune", "report"),
    )
    resume: str | None = option(
        None,
        "auto resumes the sweep run_name or, without a run_name, the newest unfinished sweep in "
        "storage_path, with the options it was started with. If there is none, a new one starts. "
        "null starts a new one.",
        choices=("auto",),
        commands=("tune",),
    )
    storage_path: str = option(
        "runs",
        "Parent folder of runs, sweeps and comparisons: a folder that every node reaches, or an "
        "fsspec URL (s3://bucket/runs), of which each machine keeps a local copy.",
        commands=(*TRAINING, *ROLLOUTS, "dataset", "report"),
    )
    debug: bool = option(False, "Show tracebacks and the workers' output.", commands=COMMANDS)

    def __post_init__(self) -> None:
        check_options("", self)
        missing = [c for c in self.agent.camera_names if c not in self.data.camera_names]
        if missing:
            raise UserError(
                f"agent.camera_names asks for {missing}, which data.camera_names="
                f"{self.data.camera_names} does not read: add them there."
            )
        crop = self.agent.vision_backbone.crop_size
        if crop is not None and not 1 <= crop <= self.task.image_size:
            raise UserError(
                f"agent.vision_backbone.crop_size={crop} must lie between 1 and task.image_size="
                f"{self.task.image_size}."
            )
        self._check_gradient_accumulation()
        if self.train.compile:
            self._check_compile()

    def _check_gradient_accumulation(self) -> None:
        steps, workers = self.train.gradient_accumulation_steps, self.cluster.num_workers
        if steps > 1 and self.train.batch_size % (steps * workers):
            raise UserError(
                f"train.gradient_accumulation_steps={steps} does not divide a worker's share of a "
                f"batch: train.batch_size={self.train.batch_size} over cluster.num_workers="
                f"{workers}. Choose a multiple of {steps * workers}, or fewer steps."
            )

    def _check_compile(self) -> None:
        for key in ("p_drop_emb", "p_drop_attn"):
            if getattr(self.agent.head, key) > 0.0:
                raise UserError(
                    f"train.compile=true cannot repeat dropout masks as iMF needs them: set "
                    f"agent.head.{key}=0 (it is {getattr(self.agent.head, key)}) or "
                    "train.compile=false."
                )


@cache
def all_options() -> dict[str, Option]:
    """Every option by its dotted name, in the order of the schema."""
    top_level = Option(resumable=True, sweepable=False, commands=())
    return dict(walk_options(Config, top_level))


def section_help(name: str) -> str:
    """The sentence that describes a section, such as `agent` or `agent.head`."""
    root: type = Config
    for part in name.split("."):
        root = sections(root)[part]
    return " ".join((root.__doc__ or "").split())


def command_options(command: str) -> dict[str, Option]:
    """The options that a command uses."""
    return {key: rules for key, rules in all_options().items() if command in (rules.commands or ())}


@cache
def resumable_options() -> frozenset[str]:
    """Options that may change when a run resumes.

    They do not affect what the run computes, except for the rounding that depends on how a batch
    is divided among workers and micro-batches.
    """
    return frozenset(key for key, rules in all_options().items() if rules.resumable)


@cache
def training_task_options() -> tuple[str, ...]:
    """Names of the options of `task` that evaluation must share with training."""
    return tuple(
        key.removeprefix("task.") for key, rules in all_options().items() if rules.match_training
    )


def is_sweepable(key: str) -> bool:
    """True if a search space may vary the option."""
    return bool(all_options()[key].sweepable)

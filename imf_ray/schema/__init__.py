"""The typed schema of all configurations: sections of options, with their defaults and rules.

Creating a section raises `UserError` if a value breaks its option's rules or if options exclude
each other.
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
from imf_ray.schema.pages import BoardConfig, ReportConfig
from imf_ray.schema.run import (
    ROLLOUT_COMMANDS,
    ClusterConfig,
    CollectConfig,
    CompareConfig,
    EvaluateConfig,
    TrainConfig,
    TuneConfig,
)
from imf_ray.schema.task import ConvertConfig, DataConfig, TaskConfig

__all__ = [
    "COMMANDS",
    "AgentConfig",
    "BoardConfig",
    "ClusterConfig",
    "CollectConfig",
    "CompareConfig",
    "Config",
    "ConvertConfig",
    "DataConfig",
    "EvaluateConfig",
    "HeadConfig",
    "Option",
    "ReportConfig",
    "TaskConfig",
    "TrainConfig",
    "TuneConfig",
    "all_options",
    "command_options",
    "is_sweepable",
    "resumable_options",
    "section_help",
    "section_names",
    "training_task_options",
]

TRAINING_COMMANDS = ("train", "tune")
EVALUATION_COMMANDS = ("evaluate", "compare")
SIMULATION_COMMANDS = (*ROLLOUT_COMMANDS, "collect")
"""Commands that simulate the task, and so need rollout actors on a cluster."""


@dataclass
class Config:
    """All options of all commands."""

    agent: AgentConfig = section(
        AgentConfig, commands=TRAINING_COMMANDS, resumable=False, sweepable=True
    )
    data: DataConfig = section(
        DataConfig, commands=TRAINING_COMMANDS, resumable=False, sweepable=True
    )
    task: TaskConfig = section(
        TaskConfig, commands=SIMULATION_COMMANDS, resumable=False, sweepable=False
    )
    train: TrainConfig = section(
        TrainConfig, commands=TRAINING_COMMANDS, resumable=False, sweepable=True
    )
    cluster: ClusterConfig = section(
        ClusterConfig,
        commands=(*SIMULATION_COMMANDS, "demo", "dataset"),
        resumable=True,
        sweepable=False,
    )
    collect: CollectConfig = section(
        CollectConfig, commands=("collect",), resumable=True, sweepable=False
    )
    convert: ConvertConfig = section(
        ConvertConfig, commands=("dataset",), resumable=True, sweepable=False
    )
    evaluate: EvaluateConfig = section(
        EvaluateConfig, commands=EVALUATION_COMMANDS, resumable=True, sweepable=False
    )
    compare: CompareConfig = section(
        CompareConfig, commands=("compare",), resumable=True, sweepable=False
    )
    tune: TuneConfig = section(TuneConfig, commands=("tune",), resumable=True, sweepable=False)
    board: BoardConfig = section(
        BoardConfig, commands=("board", *TRAINING_COMMANDS), resumable=True, sweepable=False
    )
    report: ReportConfig = section(
        ReportConfig,
        commands=("report", *TRAINING_COMMANDS, *EVALUATION_COMMANDS),
        resumable=True,
        sweepable=False,
    )
    search_space: str = option(
        "n_emb_n_layer",
        "Search space: the name of a file in search_spaces/ or the path of a YAML file.",
        commands=("tune",),
    )
    checkpoint: str | None = option(
        None,
        "Policy: a checkpoint folder. For evaluate it may also be expert, untrained:CHECKPOINT, "
        "replay:EPISODES or, with evaluate.checkpoint_selection, the folder of a run.",
        is_path=True,
        commands=("evaluate", "export"),
    )
    run_name: str | None = option(
        None,
        "Name of the run or sweep, which is its folder in storage_path: text without / of at most "
        "200 bytes. train and tune resume an existing one of that name, and null makes a new name "
        "from the agent or search space and the time. report needs a name.",
        is_folder_name=True,
        commands=("train", "tune", "report"),
    )
    resume: str | None = option(
        None,
        "auto resumes the sweep run_name with its original options. Without a run_name, it "
        "resumes the newest unfinished sweep in storage_path. If there is no such sweep, auto "
        "starts a new one. null starts a new sweep, unless run_name exists.",
        choices=("auto",),
        commands=("tune",),
    )
    storage_path: str = option(
        "runs",
        "Parent folder of runs, sweeps and comparisons: a folder that all nodes share, or an "
        "fsspec URL (s3://bucket/runs). Each machine keeps a local copy of a URL.",
        is_path=True,
        commands=(
            *TRAINING_COMMANDS,
            *EVALUATION_COMMANDS,
            "dataset",
            "board",
            "report",
            "demo",
        ),
    )
    debug: bool = option(False, "Show tracebacks and the workers' output.", commands=COMMANDS)

    def __post_init__(self) -> None:
        check_options("", self)
        missing = [c for c in self.agent.camera_names if c not in self.data.camera_names]
        if missing:
            raise UserError(
                f"agent.camera_names asks for {missing}, but data.camera_names="
                f"{self.data.camera_names} does not contain them. Add them there."
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
                f"{workers}. Set train.batch_size to a multiple of {steps * workers}, or lower "
                "train.gradient_accumulation_steps."
            )

    def _check_compile(self) -> None:
        for key in ("p_drop_emb", "p_drop_attn"):
            if getattr(self.agent.head, key) > 0.0:
                raise UserError(
                    "train.compile=true does not support dropout, because iMF needs the same "
                    f"dropout masks in two passes. Set agent.head.{key}=0 (it is "
                    f"{getattr(self.agent.head, key)}) or train.compile=false."
                )


@cache
def all_options() -> dict[str, Option]:
    """Return all options by their dotted names, in the order of the schema."""
    top_level = Option(resumable=True, sweepable=False, commands=())
    return dict(walk_options(Config, top_level))


def section_help(name: str) -> str:
    """Return the description of a section, such as `agent` or `agent.head`."""
    section_class: type = Config
    for part in name.split("."):
        section_class = sections(section_class)[part]
    return " ".join((section_class.__doc__ or "").split())


def command_options(command: str) -> dict[str, Option]:
    """Return the options that a command uses, by their dotted names."""
    return {key: rules for key, rules in all_options().items() if command in (rules.commands or ())}


@cache
def section_names() -> frozenset[str]:
    """Return the dotted names of the sections."""
    return frozenset(
        ".".join(parts[:depth])
        for parts in (key.split(".") for key in all_options())
        for depth in range(1, len(parts))
    )


@cache
def resumable_options() -> frozenset[str]:
    """Return the dotted names of the options that may change when a run resumes.

    They do not affect the result of the run, except for rounding errors. These depend on how a
    batch is divided among workers and micro-batches.
    """
    return frozenset(key for key, rules in all_options().items() if rules.resumable)


@cache
def training_task_options() -> tuple[str, ...]:
    """Return the names of the `task` options that must be the same in evaluation and training."""
    return tuple(
        key.removeprefix("task.") for key, rules in all_options().items() if rules.match_training
    )


def is_sweepable(key: str) -> bool:
    """True if a search space may vary the option."""
    return bool(all_options()[key].sweepable)

"""The typed schema that describes every run: sections, their options, defaults and bounds.

A value out of bounds or an impossible combination raises `UserError` when a section is made.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from imf_ray.errors import UserError
from imf_ray.schema.agent import AgentConfig, HeadConfig
from imf_ray.schema.checks import check_choice
from imf_ray.schema.run import (
    ClusterConfig,
    CollectConfig,
    CompareConfig,
    EvaluateConfig,
    TrainConfig,
    TuneConfig,
)
from imf_ray.schema.task import DataConfig, TaskConfig

__all__ = [
    "AgentConfig",
    "ClusterConfig",
    "CollectConfig",
    "CompareConfig",
    "Config",
    "DataConfig",
    "EvaluateConfig",
    "HeadConfig",
    "TaskConfig",
    "TrainConfig",
    "TuneSettings",
]


@dataclass
class Config:
    """Everything a run depends on."""

    agent: AgentConfig = field(default_factory=AgentConfig)
    data: DataConfig = field(default_factory=DataConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    collect: CollectConfig = field(default_factory=CollectConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)
    search_space: str = "n_emb_n_layer"
    """A name in `search_spaces/` or the path of a YAML file."""
    checkpoint: str | None = None
    """What `imf_ray.evaluate` judges: a checkpoint folder, `expert`, `untrained:CHECKPOINT`,
    `replay:EPISODES`, or with `evaluate.checkpoint_selection` a run."""
    run_name: str | None = None
    """Folder of the run in `storage_path`; naming an existing one goes on with it."""
    resume: str | None = None
    """Of `imf_ray.tune`: `auto` goes on with the sweep `run_name`, or with the newest one in
    `storage_path` that has not ended, as it was started; where there is none, one begins."""
    storage_path: str = "runs"
    """Where runs, sweeps and comparisons are kept: a folder that every node reaches, or a URL that
    fsspec knows (`s3://bucket/runs`), of which each machine has a working copy."""
    debug: bool = False
    """Show tracebacks."""

    def __post_init__(self) -> None:
        if self.resume is not None:
            check_choice("resume", self.resume, ("auto",))
        unread = [c for c in self.agent.camera_names if c not in self.data.camera_names]
        if unread:
            raise UserError(
                f"agent.camera_names asks for {unread}, which data.camera_names="
                f"{self.data.camera_names} does not read: add them there."
            )
        crop = self.agent.vision_backbone.crop_size
        if crop is not None and not 1 <= crop <= self.task.image_size:
            raise UserError(
                f"agent.vision_backbone.crop_size={crop} must lie between 1 and task.image_size="
                f"{self.task.image_size}."
            )
        self._check_batch_parts()
        if self.train.compile:
            self._check_compile()

    def _check_batch_parts(self) -> None:
        parts, workers = self.train.gradient_accumulation_steps, self.cluster.num_workers
        if parts > 1 and self.train.batch_size % (parts * workers):
            raise UserError(
                f"train.gradient_accumulation_steps={parts} does not divide a worker's share of a batch: "
                f"train.batch_size={self.train.batch_size} over cluster.num_workers={workers}. "
                f"Choose a batch that is a multiple of {parts * workers}, or fewer parts."
            )

    def _check_compile(self) -> None:
        for key in ("p_drop_emb", "p_drop_attn"):
            if getattr(self.agent.head, key) > 0.0:
                raise UserError(
                    f"train.compile=true cannot repeat dropout masks as iMF needs them: set "
                    f"agent.head.{key}=0 (it is {getattr(self.agent.head, key)}) or "
                    "train.compile=false."
                )

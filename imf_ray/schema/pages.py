"""The sections of the pages about runs and sweeps."""

from __future__ import annotations

from dataclasses import dataclass

from imf_ray.schema.options import check_options, option


@dataclass
class ReportConfig:
    """The page `report.html`, which training, sweeps and evaluations write at their end."""

    output: str | None = option(
        None,
        "File to write. null writes report.html into the folder that the report is about.",
        is_path=True,
        commands=("report",),
    )
    max_video_mb: float = option(
        4.0,
        "Size in MB up to which a video becomes part of the page. Larger ones stay files next to "
        "it, and the page links to them.",
        min=0.0,
    )
    max_total_mb: float = option(
        24.0,
        "Size in MB of all videos together that become part of the page. The best policy, the "
        "expert and the best trials come first.",
        min=0.0,
    )

    def __post_init__(self) -> None:
        check_options("report", self)


@dataclass
class BoardConfig:
    """The web server of `imf-ray board`, and of train.board=true."""

    host: str = option(
        "127.0.0.1",
        "Address to listen on. 127.0.0.1 is reachable from this machine only. With any other one, "
        "everyone who reaches the port can read the pages.",
    )
    port: int | None = option(
        None,
        "Port to listen on; 0 takes any free one. null takes 8270, or the next free port after it.",
        min=0,
        below=2**16,
    )

    def __post_init__(self) -> None:
        check_options("board", self)

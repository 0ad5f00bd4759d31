"""Pages that mkdocs generates from the code: the options reference and the API reference."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

from imf_ray.metrics_export import METRICS
from imf_ray.schema import Option, all_options

ROOT = Path(__file__).parents[1]
OPTIONS_MARKER, METRICS_MARKER = "<!-- options -->", "<!-- metrics -->"
PACKAGES = {
    "agents": "Policies and their objectives.",
    "models": "Networks: attention residuals, heads and image encoders.",
    "data": "Readers of data sets, their index, the order of samples and the Ray Data pipeline.",
    "sim": "Environments, scripted experts and rendering.",
    "conversion": "Conversion of data sets.",
    "demos": "Recording of demonstrations.",
    "rollout": "Rollout actors, episode records and confidence intervals.",
    "training": "The training loop, checkpoints, validation and tracking.",
    "evaluation": "Policies to evaluate and paired comparisons.",
    "sweep": "Search spaces, trials, schedulers and the table.",
    "pages": "The report and the board.",
    "schema": "The typed options.",
}


def on_files(files: Any, config: Any) -> Any:
    """Add the pages of the API reference, one per package."""
    from mkdocs.structure.files import File

    links = [f"* [`imf_ray.{name}`]({name}.md): {text}" for name, text in PACKAGES.items()]
    files.append(
        File.generated(config, "api/index.md", content=_api_index(links)),
    )
    for name, text in PACKAGES.items():
        files.append(
            File.generated(config, f"api/{name}.md", content=_api_page(name, text)),
        )
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Replace the markers of the pages on options and monitoring by their tables."""
    if OPTIONS_MARKER in markdown:
        return markdown.replace(OPTIONS_MARKER, "\n\n".join(_option_tables()))
    return markdown.replace(METRICS_MARKER, _metric_table())


def _api_index(links: list[str]) -> str:
    modules = sorted(p.stem for p in (ROOT / "imf_ray").glob("*.py") if not p.stem.startswith("_"))
    return "\n".join(
        [
            "# API reference",
            "Generated from the docstrings. `imf_ray.load_policy` is the entry point for using a",
            "policy; the rest is for those who change the package.\n",
            *links,
            "\n## Modules at the top level\n",
            "::: imf_ray",
            *(f"\n::: imf_ray.{name}" for name in modules),
        ]
    )


def _api_page(name: str, text: str) -> str:
    modules = sorted((ROOT / "imf_ray" / name).rglob("*.py"))
    names = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in modules]
    return "\n".join(
        [
            f"# imf_ray.{name}",
            f"{text}\n",
            *(f"\n::: {module}" for module in names if not module.split(".")[-1].startswith("_")),
        ]
    )


def _option_tables() -> list[str]:
    """A Markdown table for each section of the schema."""
    tables = []
    for section, keys in groupby(all_options(), lambda key: key.rpartition(".")[0]):
        lines = [
            f"## `{section}.*`\n" if section else "## Without a section\n",
            "| option and default | meaning | on resume | in sweeps |",
            "|---|---|---|---|",
        ]
        for key in keys:
            lines.append(_option_row(key))
        tables.append("\n".join(lines))
    return tables


def _metric_table() -> str:
    """A Markdown table of the metrics for Prometheus."""
    rows = [
        f"| `{name}` | {metric.kind} | {metric.help} | {', '.join(metric.tags)} |"
        for name, metric in METRICS.items()
    ]
    return "\n".join(["| name | kind | meaning | further tags |", "|---|---|---|---|", *rows])


def _option_row(key: str) -> str:
    rules = all_options()[key]
    meaning = rules.help
    choices = rules.choice_names()
    if choices:
        listed = ", ".join("null" if choice is None else f"`{choice}`" for choice in choices)
        meaning += f" Choices: {listed}."
    cells = [
        f"`{key.rpartition('.')[2]}`<br>`= {_shown(rules)}`",
        meaning.replace("|", "\\|").replace("<", "&lt;"),
        "yes" if rules.resumable else "",
        "yes" if rules.sweepable else "",
    ]
    return f"| {' | '.join(cells)} |"


def _shown(rules: Option) -> str:
    value = rules.default
    if value is None:
        return "null"
    if value == "":
        return "set by the group" if not rules.may_be_empty else "(empty)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return str(value)

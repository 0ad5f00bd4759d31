"""Renders a snapshot as one HTML document that needs no other file, server or network.

`templates/page.html` has the structure and `static/page.css` the look. `static/page.js` lets a
reader sort, filter, smooth, hover and copy. Without the script the page still shows everything.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from imf_ray.pages import charts_curves, charts_options, charts_success, formats, table, wording
from imf_ray.pages.charts import row_key
from imf_ray.pages.model import Media, Snapshot

NUM_STAGE_ROWS = 5
"""Number of rows in the table of stages, without baselines."""
MAX_EFFECT_VALUES = 8
"""Maximum number of values of an option for means over the rows with one value."""
MIN_EFFECT_ROWS = 4
"""Minimum number of evaluated rows for means over the values of an option."""
_STATIC = resources.files("imf_ray.pages") / "static"
SCRIPT = (_STATIC / "page.js").read_text("utf-8")
STYLE = (_STATIC / "page.css").read_text("utf-8")
SCRIPT_HASHES = ("sha256-" + base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode(),)
"""Hashes of the only scripts that a page may run, for a content security policy."""


@dataclass(frozen=True)
class Live:
    """How a page that a server shows keeps itself up to date."""

    interval_s: float = 2.0
    """Seconds between two requests of the page."""
    home: str = ""
    """Address of the server's first page, relative to this page; empty on that page."""


def render_page(snapshot: Snapshot, live: Live | None = None) -> str:
    """Return a snapshot as an HTML document.

    Args:
        live: how the page updates itself; None for a file, which makes no request to anywhere.
    """
    labels = charts_success.chart_labels([*snapshot.baselines, *snapshot.rows])
    page = (
        _environment()
        .get_template("page.html")
        .render(
            snapshot=snapshot,
            live=live,
            policy=content_security_policy(live),
            style=Markup(STYLE),
            script=Markup(SCRIPT),
            labels=labels,
            noun=wording.row_noun(snapshot),
            nouns=wording.plural(wording.row_noun(snapshot)),
            headline=wording.headline(snapshot),
            counts=wording.state_counts(snapshot.rows),
            failures=wording.failures(snapshot.rows, labels),
            table=table.results_table(snapshot, labels, is_served=live is not None),
            detailed=table.detailed_rows(snapshot.rows),
            clip_path=charts_curves.clip_path(),
            **_charts(snapshot, labels),
            **_differences(snapshot),
            **_stages(snapshot),
        )
    )
    return page.encode("utf-8", "backslashreplace").decode()  # names of files may be no UTF-8


def _charts(snapshot: Snapshot, labels: Mapping[str, str]) -> dict[str, Any]:
    """Return the charts of a page by their names in the template."""
    rows, varied = snapshot.rows, dict(snapshot.varied)
    with_curves = charts_curves.rows_with_curves(rows)
    evaluated = [row for row in rows if row.success is not None]
    show_scatter = bool(varied) and len(evaluated) > 1 and not snapshot.is_grid
    return {
        "whisker_plot": charts_success.whisker_plot(rows, snapshot.baselines),
        "heat_maps": charts_success.heat_maps(rows, varied) if snapshot.is_grid else [],
        "scatter_plots": charts_options.scatter_plots(rows, varied) if show_scatter else [],
        "parallel_lines": charts_options.parallel_lines(rows, varied) if show_scatter else "",
        "curve_charts": charts_curves.curve_charts(with_curves, snapshot.baselines),
        "legend": charts_curves.legend(with_curves, labels),
        "pair_plot": charts_success.pair_plot(snapshot.pairs, dict(labels))
        if snapshot.pairs
        else "",
    }


def _differences(snapshot: Snapshot) -> dict[str, Any]:
    """Return the best two rows, in which options they differ, and the means over all rows."""
    evaluated = [row for row in snapshot.rows if row.success is not None]
    best_two = evaluated[:2] if snapshot.kind in ("sweep", "comparison") else []
    if len(best_two) < 2:
        best_two = []
    effects = {}
    if len(evaluated) >= MIN_EFFECT_ROWS:
        for option in snapshot.varied:
            values = wording.option_effects(evaluated, option)
            if 1 < len(values) <= min(len(evaluated) // 2, MAX_EFFECT_VALUES):
                effects[option] = values
    return {
        "best_two": best_two,
        "differences": wording.differences(best_two[0], best_two[1], snapshot.varied)
        if best_two
        else [],
        "effects": effects,
    }


def _stages(snapshot: Snapshot) -> dict[str, Any]:
    """Return the rows of the table of stages, and the sentence about the largest loss."""
    num = len(snapshot.stage_names)
    with_stages = [row for row in snapshot.rows if num and len(row.stages) == num]
    baselines = [row for row in snapshot.baselines if num and len(row.stages) == num]
    return {
        "stage_rows": [*with_stages[:NUM_STAGE_ROWS], *baselines] if with_stages else [],
        "stage_sentence": wording.biggest_drop(with_stages[0], snapshot.stage_names)
        if with_stages
        else "",
    }


def content_security_policy(live: Live | None) -> str:
    """Return the policy by which a browser refuses all that the page does not need."""
    scripts = " ".join(f"'{script_hash}'" for script_hash in SCRIPT_HASHES)
    rules = [
        "default-src 'none'",
        f"script-src {scripts}",
        "style-src 'unsafe-inline'",
        "img-src data: 'self'",
        "media-src data: blob: 'self'",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    return "; ".join([*rules, "connect-src 'self'"] if live else rules)


def _media_source(media: Media) -> str:
    """Return the address of a video or image: its content, or its path if it is not embedded."""
    if media.content is None:
        return formats.relative_url(media.path)
    return f"data:{media.mime_type};base64,{base64.b64encode(media.content).decode()}"


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("imf_ray.pages"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "bytes": formats.size_text,
        "count": wording.rows_text,
        "duration": formats.duration_text,
        "key": row_key,
        "number": formats.number_text,
        "source": _media_source,
        "success": formats.success_text,
        "time": formats.time_text,
        "value": formats.value_text,
        "whisker": table.whisker,
        "state": table.state_chip,
    }
    environment.tests["own_page"] = table.is_own_page
    return environment

"""The HTML document of a page."""

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from imf_ray.pages.charts import contrast, row_key
from imf_ray.pages.model import Media, Row, Snapshot, State
from imf_ray.pages.render import SCRIPT, SCRIPT_HASHES, STYLE, Live, render_page
from imf_ray.pages.table import is_own_page, results_table
from tests.helpers import REPO_ROOT
from tests.helpers.snapshots import (
    BASELINES,
    HOSTILE,
    comparison_snapshot,
    hostile_snapshot,
    make_row,
    random_snapshot,
    run_snapshot,
    running_snapshot,
    storage_snapshot,
    sweep_snapshot,
)

SNAPSHOTS: list[Callable[[], Snapshot]] = [
    sweep_snapshot,
    running_snapshot,
    random_snapshot,
    run_snapshot,
    comparison_snapshot,
    storage_snapshot,
    lambda: storage_snapshot(100),
    hostile_snapshot,
]
VOID_TAGS = {"meta", "link", "img", "input", "br", "rect", "circle"}


class Document(HTMLParser):
    """The elements of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> does not match"

    def values(self, attribute: str) -> list[str]:
        """Return all values of an attribute."""
        return [attrs[attribute] for _, attrs in self.elements if attribute in attrs]

    def tags(self, tag: str) -> list[dict[str, str]]:
        """Return the attributes of all elements of one kind."""
        return [attrs for name, attrs in self.elements if name == tag]


@pytest.mark.parametrize("make_snapshot", SNAPSHOTS)
def test_page_is_one_well_formed_document(make_snapshot: Callable[[], Snapshot]) -> None:
    text = render_page(make_snapshot())
    document = Document(text)
    assert not document.open
    ids = document.values("id")
    assert len(ids) == len(set(ids))
    targets = [link.removeprefix("#") for link in document.values("href") if link.startswith("#")]
    assert set(targets) <= set(ids)
    assert len(document.tags("script")) == 1
    assert not {"src", "srcset", "action"} & set(document.tags("script")[0])
    assert {"iframe", "object", "embed", "form", "base"}.isdisjoint(
        name for name, _ in document.elements
    )


@pytest.mark.parametrize("make_snapshot", SNAPSHOTS)
def test_page_requests_nothing(make_snapshot: Callable[[], Snapshot]) -> None:
    document = Document(render_page(make_snapshot()))
    sources = [*document.values("src"), *(link["href"] for link in document.tags("link"))]
    assert all(source.startswith(("data:", "./")) for source in sources)
    assert not re.search(r"url\((?!#)|@import", STYLE)


@pytest.mark.parametrize("kind", ["sweep", "storage"])
def test_hostile_texts_stay_texts(kind: str) -> None:
    text = render_page(replace(hostile_snapshot(), kind=kind), Live())
    document = Document(text)
    assert len(document.tags("script")) == 1
    assert not document.values("onerror")
    assert HOSTILE not in text
    assert not [link for link in document.values("href") if link.startswith(("javascript:", "//"))]


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("trials/00001/", True),
        ("../a?x=y:z", True),
        ("./a:b/", True),
        ("javascript:alert(1)", False),
        (" \tJaVaScRiPt:alert(1)", False),
        ("java\nscript:alert(1)", False),
        ("//evil.example/", False),
        ("\\\\evil.example/", False),
        ("https://evil.example/", False),
        ("data:text/html,x", False),
    ],
)
def test_links_lead_only_to_pages_of_the_same_server(link: str, expected: bool) -> None:
    assert is_own_page(link) == expected


def test_policy_allows_the_script_alone() -> None:
    (file, live) = (render_page(sweep_snapshot()), render_page(sweep_snapshot(), Live()))
    assert f"script-src &#39;{SCRIPT_HASHES[0]}&#39;;" in file
    assert f"<script>{SCRIPT}</script>" in file
    assert "connect-src" not in file
    assert "connect-src &#39;self&#39;" in live
    assert "</script" not in SCRIPT
    assert "</style" not in STYLE


def test_live_page_says_how_often_it_is_fetched_and_where_the_others_are() -> None:
    page = render_page(sweep_snapshot(), Live(interval_s=3, home="../"))
    assert 'data-interval="3"' in page
    assert 'href="../"' in page
    assert "data-interval" not in render_page(sweep_snapshot())


def test_a_page_of_64_trials_is_below_a_megabyte() -> None:
    assert len(render_page(random_snapshot(64)).encode()) < 1_000_000


def test_a_page_of_1000_runs_has_all_of_them() -> None:
    snapshot = storage_snapshot(1000)
    page = render_page(snapshot, Live())
    assert all(f'href="{row.link}" title="{row.name}">' in page for row in snapshot.rows)
    assert 'href="run_' not in render_page(snapshot)
    assert len(page.encode()) < 1_500_000


def test_texts_are_legible_in_both_colour_schemes() -> None:
    colors = {
        name: (light, dark)
        for name, light, dark in re.findall(
            r"--([a-z0-9]+): light-dark\((#\w{6}), (#\w{6})\);", STYLE
        )
    }
    states = [str(state) for state in State]
    for scheme in (0, 1):
        for text in ("text", "muted", "accent", "baseline", *states):
            for background in ("page", "panel", "hot"):
                pair = colors[text][scheme], colors[background][scheme]
                assert contrast(*pair) >= 4.5, (text, background, scheme)
        for number in range(10):
            assert contrast(colors[f"c{number}"][scheme], colors["page"][scheme]) >= 3.0


def test_table_stands_between_expert_and_untrained_and_leaves_empty_columns_out() -> None:
    snapshot = sweep_snapshot()
    labels = {row.name: row.label for row in [*BASELINES, *snapshot.rows]}
    table = results_table(snapshot, labels)
    names = ["expert", *(row.name for row in snapshot.rows), "untrained"]
    assert [row.key for row in table.rows] == [row_key(name) for name in names]
    titles = [column.title for column in table.columns]
    assert titles[:5] == ["#", "name", "state", "success", "0 to 1"]
    assert {"n_emb", "n_layer", "reward", "step", "wall time"} <= set(titles)
    assert not {"time left", "restarts", "last entry"} & set(titles)
    running = running_snapshot()
    labels = {row.name: row.label for row in [*BASELINES, *running.rows]}
    table = results_table(running, labels)
    titles = [column.title for column in table.columns]
    assert titles[:5] == ["#", "name", "state", "step", "time left"]
    assert "last entry" in titles
    cells = dict(zip(titles, table.rows[3].cells, strict=True))
    assert "running" in cells["state"].content
    assert 'value="610"' in cells["step"].content
    assert cells["time left"].content == "12 min 34 s"


def test_states_are_words_and_failures_are_grouped_by_reason() -> None:
    page = render_page(random_snapshot(64))
    for state in ("finished", "stopped", "failed", "baseline"):
        assert f'class="state s-{state}">{state}<' in page
    failures = page.partition('<section id="failures">')[2].partition("</section>")[0]
    assert failures.count('class="failure"') == 1
    assert "FloatingPointError: the loss is not finite at step 240" in failures


def test_media_are_embedded_or_linked() -> None:
    video = Media("seed 400000: success", "videos/a b.mp4", "video/mp4", 5, b"video")
    page = render_page(run_snapshot([video, replace(video, content=None, num_bytes=9_500_000)]))
    sources = Document(page).tags("video")
    assert [video["src"] for video in sources] == [
        "data:video/mp4;base64,dmlkZW8=",
        "./videos/a%20b.mp4",
    ]
    assert "9.5 MB" in page
    assert page.count("seed 400000: success") == 2


def test_empty_parts_are_left_out() -> None:
    page = render_page(Snapshot("sweep", "new", "runs/new", 0.0, State.PENDING, rows=[]))
    assert re.findall(r'<section id="(\w+)"', page) == ["top", "summary"]
    assert "There is no trial yet." in page
    row = Row("a", "a", State.RUNNING, step=3)
    page = render_page(Snapshot("run", "a", "runs/a", 0.0, State.RUNNING, rows=[row]))
    assert re.findall(r'<section id="(\w+)"', page) == ["top", "summary", "results", "rows"]
    assert "None" not in re.sub(r"<script>.*</script>|<button.*?</button>", "", page, flags=re.S)


def test_a_name_that_is_not_utf8_is_shown() -> None:
    page = render_page(
        replace(run_snapshot(), rows=[replace(make_row(0, {}, 0.5), name="a\udcff")])
    )
    assert "a\\udcff" in page
    assert page.encode()


def test_style_script_and_templates_are_part_of_the_package() -> None:
    setup = (REPO_ROOT / "setup.py").read_text()
    assert '"imf_ray.pages": ["static/*", "templates/*.html"]' in setup
    assert {path.suffix for path in (REPO_ROOT / "imf_ray/pages/templates").iterdir()} == {".html"}
    assert SCRIPT.count("\n") < 500

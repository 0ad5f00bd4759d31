"""Pages in a headless Chromium: they look right, request nothing, and do what a reader asks."""

from __future__ import annotations

import functools
import http.server
import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from imf_ray.pages.charts import row_key
from imf_ray.pages.model import Media, Snapshot, State
from imf_ray.pages.render import Live, render_page
from imf_ray.video import encode_video
from tests.helpers.browser import Browser, Page
from tests.helpers.snapshots import (
    comparison_snapshot,
    hostile_snapshot,
    make_success,
    random_snapshot,
    run_snapshot,
    storage_snapshot,
    sweep_snapshot,
)

ROW_NAMES = (
    "[...document.querySelectorAll('#results-table tbody tr:not([hidden])')]"
    ".map(row => row.cells[1].innerText)"
)
OVERLAPPING_LABELS = """[...document.querySelectorAll('svg')].flatMap(svg => {
  const boxes = [...svg.querySelectorAll('text')].map(t => [t, t.getBoundingClientRect()]);
  return boxes.flatMap(([a, x], i) => boxes.slice(i + 1)
    .filter(([b, y]) => x.left < y.right - 1 && y.left < x.right - 1
      && x.top < y.bottom - 3 && y.top < x.bottom - 3)
    .map(([b]) => `${a.textContent} | ${b.textContent}`));
})"""
FIRST_LINE = "document.querySelector('svg.curves[data-exact=\"0\"] .line').getAttribute('d')"


@functools.cache
def _video() -> Media:
    frames = np.zeros((50, 32, 32, 3), np.uint8)
    frames[:, :16] = np.arange(50, dtype=np.uint8)[:, None, None, None] * 5
    content = encode_video(frames)
    return Media("seed 400003: success", "videos/seed.mp4", "video/mp4", len(content), content)


PAGES: dict[str, Callable[[], Snapshot]] = {
    "sweep": lambda: sweep_snapshot(
        [_video(), replace(_video(), path="videos/failure.mp4", caption="seed 400004: failure")]
    ),
    "run": lambda: run_snapshot([_video()]),
    "comparison": comparison_snapshot,
    "random": random_snapshot,
    "storage": storage_snapshot,
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


@pytest.fixture
def open_page(browser: Browser, tmp_path: Path) -> Iterator[Callable[..., Page]]:
    """Return a function that opens a snapshot from a file."""
    pages: list[Page] = []

    def open_page(snapshot: Snapshot, **options: object) -> Page:
        file = tmp_path / "report.html"
        file.write_text(render_page(snapshot))
        pages.append(browser.open(file.as_uri(), **options))  # type: ignore[arg-type]
        return pages[-1]

    yield open_page
    for page in pages:
        assert not page.errors
        assert set(page.requests) <= {(tmp_path / "report.html").as_uri()}
        page.close()


def _enter(page: Page, selector: str, value: str) -> None:
    """Set the value of an input as if the reader had entered it."""
    element = f"document.querySelector('{selector}')"
    page.evaluate(f"{element}.value = '{value}'")
    page.evaluate(f"{element}.dispatchEvent(new Event('input', {{bubbles: true}}))")


@pytest.mark.parametrize("name", PAGES)
def test_page_is_drawn_at_each_width_in_light_and_dark(
    open_page: Callable[..., Page], tmp_path: Path, name: str
) -> None:
    page = open_page(PAGES[name]())
    for width, dark in itertools.product((1280, 390), (False, True)):
        page.resize(width, 900)
        page.emulate(dark=dark)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(20, 24, 28)" if dark else "rgb(255, 255, 255)")
        assert page.evaluate(OVERLAPPING_LABELS) == []
        page.screenshot(tmp_path / "page.png", full=False)
        assert (tmp_path / "page.png").stat().st_size > 10_000


def test_table_is_sorted_by_click_and_by_key(open_page: Callable[..., Page]) -> None:
    page = open_page(sweep_snapshot())
    served = page.evaluate(ROW_NAMES)
    assert served == ["expert", "00002", "00004", "00001", "00003", "00000", "00005", "untrained"]
    header = "#results-table th:nth-child(7) button"
    assert page.text(header) == "n_emb"
    page.click(header)
    ascending = page.evaluate(ROW_NAMES)
    assert ascending[:6] == ["00002", "00001", "00000", "00004", "00003", "00005"]
    assert set(ascending[6:]) == {"expert", "untrained"}
    state = "document.querySelector('#results-table th:nth-child(7)').ariaSort"
    assert page.evaluate(state) == "ascending"
    page.press("Enter")  # the header has the focus
    assert page.evaluate(state) == "descending"
    assert page.evaluate(ROW_NAMES)[0] in {"00003", "00004", "00005"}
    page.click(header)
    assert page.evaluate(state) is None
    assert page.evaluate(ROW_NAMES) == served


def test_table_is_filtered_by_text_and_by_value(open_page: Callable[..., Page]) -> None:
    page = open_page(sweep_snapshot())
    page.click("#filter")
    for character in "failed":
        page.press(character)
    assert page.evaluate(ROW_NAMES) == ["expert", "00005", "untrained"]
    assert page.text("#filter-count") == "1 of 6"
    for text, names in {
        "success>0.6 n_emb=64": ["00002"],
        "n_layer<=2": ["00003", "00000"],
        "no such": [],
    }.items():
        _enter(page, "#filter", text)
        assert page.evaluate(ROW_NAMES)[1:-1] == names


def test_curves_are_chosen_smoothed_and_read(open_page: Callable[..., Page]) -> None:
    page = open_page(random_snapshot(64))
    shown = "document.querySelectorAll('svg.curves g[data-r]:not(.off)').length"
    num_charts = page.evaluate("document.querySelectorAll('svg.curves').length")
    assert num_charts == 5
    assert page.evaluate(shown) == 10 * num_charts
    page.click("[data-show='all']")
    assert page.evaluate(shown) == 64 * num_charts
    page.click("[data-show='none']")
    page.click("#legend button:nth-child(3)")
    assert page.evaluate(shown) == num_charts

    raw = page.evaluate(FIRST_LINE)
    _enter(page, "#smoothing", "0.9")
    assert page.evaluate(FIRST_LINE) != raw
    _enter(page, "#smoothing", "0")
    assert page.evaluate(FIRST_LINE) == raw

    page.hover("svg.curves")
    assert not page.evaluate("document.querySelector('#tip').hidden")
    assert page.text("#tip").startswith("step 600")
    assert page.text("#legend button:nth-child(3)").strip() in page.text("#tip")
    hot = page.evaluate("document.querySelector('#results-table tr.hot').cells[1].innerText")
    assert hot == page.text("#legend button:nth-child(3)").strip()


def test_hovered_value_is_that_of_the_log(open_page: Callable[..., Page]) -> None:
    snapshot = run_snapshot()
    curve = next(curve for curve in snapshot.rows[0].curves if curve.metric == "lr")
    page = open_page(snapshot)
    page.hover("#curves .chart:nth-child(4) svg")
    step, value = page.text("#tip").split("\n")[0], page.text("#tip").split("\n")[-1]
    number = int(step.removeprefix("step ").replace(",", ""))
    expected = curve.values[list(curve.steps).index(number)]
    assert float(value) == pytest.approx(expected, rel=0.02)


def test_one_click_opens_details_copies_a_command_and_switches_the_colours(
    open_page: Callable[..., Page],
) -> None:
    snapshot = sweep_snapshot()
    page = open_page(snapshot)
    assert "FloatingPointError: the loss is not finite" in page.text("#failures")
    assert "imf-ray train config=" in page.text("#commands")
    page.click("#commands .copy")
    page.wait_for("['Copied', 'Selected'].includes(document.querySelector('.copy').textContent)")
    best = f"#row-{row_key(snapshot.rows[0].name)}"
    page.click(f"#results-table a[href='{best}']")
    page.wait_for(f"document.querySelector('{best}').open")
    assert "rank 0" in page.text(best)
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before


def test_videos_play(open_page: Callable[..., Page]) -> None:
    page = open_page(PAGES["sweep"]())
    page.evaluate("document.querySelector('video').play()")
    page.wait_for("document.querySelector('video').currentTime > 0.2")


def test_a_video_beside_the_page_plays(open_page: Callable[..., Page], tmp_path: Path) -> None:
    video = _video()
    assert video.content is not None
    (tmp_path / "a video.mp4").write_bytes(video.content)
    page = open_page(run_snapshot([replace(video, path="a video.mp4", content=None)]))
    page.evaluate("document.querySelector('video').play()")
    page.wait_for("document.querySelector('video').currentTime > 0.2")
    page.requests = [url for url in page.requests if not url.endswith("/a%20video.mp4")]


def test_page_without_script_shows_everything(open_page: Callable[..., Page]) -> None:
    page = open_page(sweep_snapshot(), script=False)
    text = page.text()
    assert "Best: trial 00002 with success 0.78 [0.69, 0.85] in 100 episodes." in text
    assert "Copy" not in text and "Filter" not in text
    assert page.evaluate("document.querySelector('svg.curves .line').getBBox().width") > 100


def test_printed_page_has_no_controls_and_dark_text(open_page: Callable[..., Page]) -> None:
    page = open_page(sweep_snapshot(), dark=True, media="print")
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(27, 34, 40)"
    assert page.evaluate("document.querySelector('#theme').offsetParent === null")


def test_hostile_texts_run_nothing(open_page: Callable[..., Page]) -> None:
    page = open_page(hostile_snapshot())
    assert page.evaluate("document.title").startswith("</script>")
    assert page.evaluate("document.querySelectorAll('main script, main iframe').length") == 0
    page.errors = [error for error in page.errors if "ERR_FILE_NOT_FOUND" not in error]
    page.requests = [url for url in page.requests if url.endswith("/report.html")]


class _Server:
    """Serves one page, which may change."""

    def __init__(self) -> None:
        self.page = ""
        self.num_sent = 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = outer.page.encode()
                etag = f'"{hash(body)}"'
                is_known = self.headers["If-None-Match"] == etag
                self.send_response(304 if is_known else 200)
                self.send_header("ETag", etag)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", "0" if is_known else str(len(body)))
                self.end_headers()
                if not is_known:
                    self.wfile.write(body)
                    outer.num_sent += 1

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def show(self, snapshot: Snapshot) -> None:
        self.page = render_page(snapshot, Live(interval_s=0.1))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_live_page_shows_changes_and_keeps_the_choices_of_the_reader(browser: Browser) -> None:
    server = _Server()
    snapshot = PAGES["sweep"]()
    server.show(snapshot)
    page = browser.open(server.url)
    page.evaluate("window.sameDocument = true; document.querySelector('video').play()")
    page.click("#results-table th:nth-child(7) button")
    _enter(page, "#filter", "000")
    page.click("#legend button:nth-child(1)")
    page.evaluate("window.scrollTo(0, 400)")
    page.wait_for("document.querySelector('#live').textContent.startsWith('updated')")
    page.wait_for("document.querySelector('video').currentTime > 0.1")
    page.evaluate("window.video = document.querySelector('video')")

    best = replace(snapshot.rows[0], success=make_success(0.95), state=State.FINISHED)
    server.show(replace(snapshot, rows=[best, *snapshot.rows[1:]], notes=["The storage is back."]))
    page.wait_for("document.querySelector('.headline').textContent.includes('0.95')")
    assert page.evaluate("window.sameDocument")
    assert "The storage is back." in page.text("#summary")
    assert page.evaluate("document.querySelector('#results-table th:nth-child(7)').ariaSort")
    assert len(page.evaluate(ROW_NAMES)) == 8
    assert page.evaluate("document.querySelector('#filter').value") == "000"
    pressed = "document.querySelector('#legend button:nth-child(1)').getAttribute('aria-pressed')"
    assert page.evaluate(pressed) == "false"
    assert page.evaluate("video.isConnected && !video.paused")
    assert page.evaluate("window.scrollY") > 300

    num_sent = server.num_sent
    page.listen(1.0)
    assert server.num_sent == num_sent  # the page is known by its ETag
    assert not page.errors
    server.close()
    page.wait_for("document.querySelector('#live').textContent.startsWith('The server does not')")
    assert "0.95" in page.text(".headline")
    page.close()

"""A headless Chromium for tests: opens a page, runs JavaScript, clicks, and takes screenshots.

It is driven over its DevTools websocket. All calls block; a server under test must therefore run in
another thread or process.

    with Browser() as browser:
        page = browser.open("file:///tmp/report.html", width=390, dark=True)
        page.click("th[data-sort]")
        assert page.evaluate("document.title") == "sweep"
        assert not page.errors and page.requests == ["file:///tmp/report.html"]
"""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
import pytest

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")
START_TIMEOUT_S = 120.0
CALL_TIMEOUT_S = 60.0
POLL_INTERVAL_S = 0.05
SWITCHES = (
    "--headless=new",
    "--no-sandbox",  # containers run tests as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--hide-scrollbars",
    "--mute-audio",
    "--autoplay-policy=no-user-gesture-required",
    "--no-first-run",
    "--remote-debugging-port=0",
)


def chromium_path() -> str:
    """Return the path of Chromium; skip the test if there is none."""
    path = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if path is None:
        pytest.skip("needs Chromium (apt-get install chromium)")
    return path


class Browser:
    """A Chromium process with its own empty profile."""

    def __init__(self) -> None:
        self._profile = Path(tempfile.mkdtemp(prefix="chromium-"))
        self._loop = asyncio.new_event_loop()
        self._num_calls = 0
        self._pages: dict[str, Page] = {}
        self._process = subprocess.Popen(
            [chromium_path(), *SWITCHES, f"--user-data-dir={self._profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._loop.run_until_complete(self._connect())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def open(
        self,
        url: str,
        *,
        width: int = 1280,
        height: int = 900,
        dark: bool = False,
        script: bool = True,
        media: str = "",
    ) -> Page:
        """Open a page in a new tab and wait until it is loaded.

        Args:
            url: Address of the page, such as `path.as_uri()`.
            width: Width in CSS pixels; below 600 the page sees a phone.
            height: Height in CSS pixels.
            dark: Prefer dark colours instead of light ones.
            script: False to turn off JavaScript of the page.
            media: CSS media type, such as `print`; the screen if empty.
        """
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        attach = {"targetId": target, "flatten": True}
        session = self.call("Target.attachToTarget", attach)["sessionId"]
        page = self._pages[session] = Page(self, session, target)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.resize(width, height)
        page.emulate(dark=dark, media=media)
        page.call("Emulation.setScriptExecutionDisabled", {"value": not script})
        page.navigate(url)
        return page

    def close(self) -> None:
        """End the process and remove its profile."""
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if hasattr(self, "_http"):
            self._loop.run_until_complete(self._http.close())
        self._loop.close()
        shutil.rmtree(self._profile, ignore_errors=True)

    def call(self, method: str, params: dict[str, Any] | None = None, session: str = "") -> Any:
        """Call a DevTools method and return its result; raises RuntimeError if it fails."""
        return self._loop.run_until_complete(self._call(method, params or {}, session))

    def listen(self, seconds: float) -> None:
        """Receive events for some time."""
        self._loop.run_until_complete(self._listen(seconds))

    async def _connect(self) -> None:
        """Connect to the address that Chromium writes into its profile."""
        deadline = time.monotonic() + START_TIMEOUT_S
        file = self._profile / "DevToolsActivePort"
        while not (file.exists() and len(lines := file.read_text().split()) == 2):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Chromium did not start: exit code {self._process.poll()}")
            await asyncio.sleep(POLL_INTERVAL_S)
        self._http = aiohttp.ClientSession()
        self._socket = await self._http.ws_connect(
            f"http://127.0.0.1:{lines[0]}{lines[1]}", max_msg_size=0
        )

    async def _call(self, method: str, params: dict[str, Any], session: str) -> Any:
        self._num_calls += 1
        number = self._num_calls
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        await self._socket.send_json(message)
        while True:
            answer = await self._receive(CALL_TIMEOUT_S)
            if answer.get("id") != number:
                continue
            if "error" in answer:
                raise RuntimeError(f"{method}: {answer['error']['message']}")
            return answer["result"]

    async def _listen(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            try:
                await self._receive(left)
            except TimeoutError:
                return

    async def _receive(self, timeout_s: float) -> dict[str, Any]:
        """Receive one message; an event is noted by its page."""
        message: dict[str, Any] = json.loads(await self._socket.receive_str(timeout=timeout_s))
        page = self._pages.get(message.get("sessionId", ""))
        if page is not None and "method" in message:
            page.note_event(message["method"], message["params"])
        return message


class Page:
    """A page in a tab of a browser."""

    def __init__(self, browser: Browser, session: str, target: str) -> None:
        self._browser, self._session, self._target = browser, session, target
        self._loaded = False
        self.errors: list[str] = []
        """Errors and warnings of the console, uncaught exceptions, refused requests."""
        self.requests: list[str] = []
        """Addresses that were requested, without data: and blob: addresses."""

    def call(self, method: str, params: dict[str, Any] | None = None) -> Any:
        """Call a DevTools method for this page."""
        return self._browser.call(method, params, self._session)

    def navigate(self, url: str) -> None:
        """Go to an address and wait until the page is loaded."""
        self._loaded = False
        answer = self.call("Page.navigate", {"url": url})
        if "errorText" in answer:
            raise RuntimeError(f"{url}: {answer['errorText']}")
        deadline = time.monotonic() + CALL_TIMEOUT_S
        while not self._loaded:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{url} was not loaded in {CALL_TIMEOUT_S:.0f} s")
            self._browser.listen(POLL_INTERVAL_S)

    def resize(self, width: int, height: int) -> None:
        """Change the size of the page, in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )

    def emulate(self, *, dark: bool, media: str = "") -> None:
        """Change the preferred colours and the CSS media type, see `Browser.open`."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", {"media": media, "features": [scheme]})

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression; a promise is awaited.

        Raises:
            RuntimeError: The expression throws.
        """
        options = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        answer = self.call("Runtime.evaluate", options)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            text = details.get("exception", {}).get("description", details["text"])
            raise RuntimeError(f"{expression}: {text}")
        return answer["result"].get("value")

    def wait_for(self, expression: str, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        """Wait until a JavaScript expression is true, and return its value."""
        deadline = time.monotonic() + timeout_s
        while not (value := self.evaluate(expression)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{expression} was not true within {timeout_s:.0f} s")
            self._browser.listen(POLL_INTERVAL_S)
        return value

    def listen(self, seconds: float) -> None:
        """Receive events, such as requests and errors, for some time."""
        self._browser.listen(seconds)

    def text(self, selector: str = "body") -> str:
        """Return the visible text of the first element that a CSS selector matches."""
        return str(self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText"))

    def click(self, selector: str) -> None:
        """Scroll to the first element that a CSS selector matches, and click its centre."""
        x, y = self._centre(selector)
        for kind in ("mousePressed", "mouseReleased"):
            event = {"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1}
            self.call("Input.dispatchMouseEvent", event)

    def hover(self, selector: str) -> None:
        """Move the mouse to the centre of the first element that a CSS selector matches."""
        x, y = self._centre(selector)
        self.call("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x, "y": y})

    def press(self, key: str) -> None:
        """Press a key, such as `Enter` or `Tab`, or type one character."""
        codes = {"Enter": (13, "\r"), "Tab": (9, ""), "Escape": (27, "")}
        code, text = codes.get(key, (ord(key[0].upper()), key))
        for kind in ("keyDown", "keyUp"):
            event = {"type": kind, "key": key, "windowsVirtualKeyCode": code}
            if text and kind == "keyDown":
                event["text"] = text
            self.call("Input.dispatchKeyEvent", event)

    def screenshot(self, path: Path, *, full: bool = True) -> None:
        """Write a PNG of the whole page, or of the part in the window."""
        options: dict[str, Any] = {"captureBeyondViewport": full}
        if full:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            options["clip"] = {"x": 0, "y": 0, "scale": 1} | {
                "width": size["width"],
                "height": size["height"],
            }
        image = self.call("Page.captureScreenshot", options)["data"]
        path.write_bytes(base64.b64decode(image))

    def close(self) -> None:
        """Close the tab."""
        self._browser.call("Target.closeTarget", {"targetId": self._target})

    def note_event(self, method: str, params: dict[str, Any]) -> None:
        """Note an error or a request."""
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            text = details.get("exception", {}).get("description", "")
            self.errors.append(f"{details['text']} {text}".strip())
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            values = [str(arg.get("value", arg.get("description"))) for arg in params["args"]]
            self.errors.append(" ".join(values))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith(("data:", "blob:")):
                self.requests.append(url)

    def _centre(self, selector: str) -> tuple[float, float]:
        """Scroll to an element and return its centre in CSS pixels of the window."""
        name = json.dumps(selector)
        self.wait_for(f"!!document.querySelector({name})")
        x, y = self.evaluate(
            "(() => {"
            f"const element = document.querySelector({name});"
            "element.scrollIntoView({block: 'center', inline: 'center', behavior: 'instant'});"
            "const box = element.getBoundingClientRect();"
            "return [box.x + box.width / 2, box.y + box.height / 2];})()"
        )
        return float(x), float(y)

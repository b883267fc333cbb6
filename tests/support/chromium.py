"""Debian's chromium, without a window, driven over its DevTools protocol: pages as a person sees them.

One process serves many tests; each gets a profile of its own, which is forgotten with all that is in it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

EXECUTABLE = shutil.which("chromium")
DEADLINE_S = 10.0
"""Real seconds after which something that does not happen counts as missing."""
_SWITCHES = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-proxy-server",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)


class Process:
    """The browser's process."""

    def __init__(self) -> None:
        assert EXECUTABLE is not None, "no chromium"
        self._directory = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        self._process = subprocess.Popen(
            (EXECUTABLE, *_SWITCHES, f"--user-data-dir={self._directory.name}", "about:blank"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            self.url = self._announced(Path(self._directory.name) / "DevToolsActivePort")
        except BaseException:
            self.close()
            raise

    def _announced(self, file: Path) -> str:
        """Returns its address, which it writes into a file when it is ready: the port, and a path."""
        until = time.monotonic() + DEADLINE_S
        while time.monotonic() < until:
            with contextlib.suppress(FileNotFoundError, ValueError):
                port, path = file.read_text().split("\n")
                return f"ws://127.0.0.1:{port}{path}"
            assert self._process.poll() is None, f"chromium ended with {self._process.returncode}"
            time.sleep(0.01)
        raise AssertionError(f"chromium did not start within {DEADLINE_S:g} s")

    def close(self) -> None:
        """Ends it, with all its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._directory.cleanup()


class BrowserError(AssertionError):
    """The browser or a page's script reported an error."""


class Browser:
    """A profile of its own in a browser that runs; made with `async with`.

    Attributes:
        complaints: What scripts of its pages threw and nobody caught, and their `console.error`s.
    """

    def __init__(self, process: Process) -> None:
        self._url = process.url
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._destroyed: dict[str, asyncio.Event] = {}
        self._loads: dict[str, asyncio.Future[None]] = {}  # of a session
        self._context = ""
        self.complaints: list[str] = []

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession()
        self._socket = await self._session.ws_connect(self._url, max_msg_size=0)
        self._reader = asyncio.create_task(self._read())
        self._context = (await self.send("Target.createBrowserContext"))["browserContextId"]
        await self.send("Target.setDiscoverTargets", discover=True)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            await self.send("Target.disposeBrowserContext", browserContextId=self._context)
        finally:
            self._reader.cancel()
            await self._socket.close()
            await self._session.close()
            await asyncio.wait((self._reader,))

    async def send(self, method: str, session: str | None = None, **parameters: Any) -> Any:
        """Sends a command of the protocol; returns its result."""
        number = next(self._ids)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": parameters}
        await self._socket.send_json(message if session is None else {**message, "sessionId": session})
        try:
            async with asyncio.timeout(DEADLINE_S):
                return await answer
        except TimeoutError:
            raise BrowserError(f"{method} took longer than {DEADLINE_S:g} s") from None
        finally:
            del self._answers[number]

    async def _read(self) -> None:
        async for message in self._socket:
            self._take(json.loads(message.data))

    def _take(self, message: dict[str, Any]) -> None:
        given = message.get("params", {})
        match message.get("method"):
            case None:
                answer = self._answers.get(message["id"])
                if answer is None or answer.done():
                    return
                if "error" in message:
                    answer.set_exception(BrowserError(message["error"]["message"]))
                else:
                    answer.set_result(message["result"])
            case "Target.targetDestroyed":
                self._destroyed.setdefault(given["targetId"], asyncio.Event()).set()
            case "Page.loadEventFired":
                load = self._loads.pop(message["sessionId"], None)
                if load is not None and not load.done():
                    load.set_result(None)
            case "Runtime.exceptionThrown":
                self.complaints.append(_description(given["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if given["type"] == "error":
                self.complaints.append(" ".join(str(argument.get("value", argument)) for argument in given["args"]))

    async def tab(self, url: str, *, width: int = 1000, height: int = 800, dark: bool = False) -> Tab:
        """Opens a tab and loads a page in it."""
        made = await self.send("Target.createTarget", url="about:blank", browserContextId=self._context)
        target = made["targetId"]
        session = (await self.send("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        tab = Tab(self, target, session)
        await tab.send("Page.enable")
        await tab.send("Runtime.enable")
        await tab.send("Emulation.setFocusEmulationEnabled", enabled=True)  # every tab behaves as if it were in front
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        await tab.send("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await tab.send("Emulation.setEmulatedMedia", features=[scheme])
        await tab.go(url)
        return tab

    def next_load(self, session: str) -> asyncio.Future[None]:
        """Returns a future that is done when a tab's next page is loaded."""
        load = self._loads[session] = asyncio.get_running_loop().create_future()
        return load

    async def destroyed(self, target: str) -> None:
        """Waits until a tab is gone."""
        async with asyncio.timeout(DEADLINE_S):
            await self._destroyed.setdefault(target, asyncio.Event()).wait()


class Tab:
    """One tab."""

    def __init__(self, browser: Browser, target: str, session: str) -> None:
        self._browser = browser
        self._target = target
        self._session = session

    async def send(self, method: str, **parameters: Any) -> Any:
        """Sends a command to this tab; returns its result."""
        return await self._browser.send(method, self._session, **parameters)

    async def go(self, url: str) -> None:
        """Loads a page, and waits until it is there."""
        loaded = self._browser.next_load(self._session)
        done = await self.send("Page.navigate", url=url)
        if "errorText" in done:
            raise BrowserError(f"{url}: {done['errorText']}")
        if "loaderId" in done:  # else it is a jump within the same page
            await self._loaded(loaded)

    async def reload(self) -> None:
        """Loads the page again, as F5 does."""
        loaded = self._browser.next_load(self._session)
        await self.send("Page.reload")
        await self._loaded(loaded)

    async def _loaded(self, loaded: asyncio.Future[None]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            await loaded

    async def run(self, expression: str) -> Any:
        """Returns the value of a JavaScript expression; a promise is awaited."""
        done = await self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in done:
            raise BrowserError(_description(done["exceptionDetails"]))
        return done["result"].get("value")

    async def until(self, condition: str) -> None:
        """Waits until a JavaScript expression is true; it is evaluated whenever something on the page changes."""
        deadline_ms = DEADLINE_S * 900
        await self.run(f"""
            new Promise((resolve, reject) => {{
                const look = () => {{
                    if (!({condition})) return;
                    observer.disconnect();
                    clearTimeout(timer);
                    resolve();
                }};
                const late = () => {{
                    observer.disconnect();
                    reject(new Error({json.dumps(condition)} + " did not become true; the page says: "
                        + document.body.dataset.state + ": " + document.body.innerText));
                }};
                const timer = setTimeout(late, {deadline_ms});
                const observer = new MutationObserver(look);
                const all = {{ attributes: true, characterData: true, childList: true, subtree: true }};
                observer.observe(document, all);
                look();
            }})""")

    async def text(self, selector: str) -> str:
        """Returns the text of an element as a person sees it: the empty str when it is hidden."""
        found: str = await self.run(f"""(() => {{
            const element = document.querySelector({json.dumps(selector)});
            return element.checkVisibility() ? element.innerText : "";
        }})()""")
        return found

    async def type(self, text: str) -> None:
        """Types into the element that has the focus."""
        await self.send("Input.insertText", text=text)

    async def press(self, key: str) -> None:
        """Presses a key: Enter or Escape."""
        code = {"Enter": 13, "Escape": 27}[key]
        event: dict[str, Any] = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        await self.send("Input.dispatchKeyEvent", type="keyDown", **event, **({"text": "\r"} if code == 13 else {}))
        await self.send("Input.dispatchKeyEvent", type="keyUp", **event)

    async def click(self, selector: str) -> None:
        """Clicks with the mouse in the middle of an element."""
        x, y = await self.run(f"""(() => {{
            const box = document.querySelector({json.dumps(selector)}).getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2];
        }})()""")
        for kind in ("mousePressed", "mouseReleased"):
            await self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    async def screenshot(self) -> bytes:
        """Returns the visible page as a PNG file."""
        return base64.b64decode((await self.send("Page.captureScreenshot"))["data"])

    async def close(self) -> None:
        """Closes it, as a person does; it is gone when this returns."""
        await self._browser.send("Target.closeTarget", targetId=self._target)
        await self._browser.destroyed(self._target)


def _description(details: dict[str, Any]) -> str:
    return str(details.get("exception", {}).get("description") or details["text"])

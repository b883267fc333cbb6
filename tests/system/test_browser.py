"""The examples' page in a real browser, against the example apps under their real servers, also behind nginx.

That tokens appear one by one does not depend on time here: the model waits until the page has shown the last one.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import socket
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Self

import pytest
import pytest_asyncio
from aiohttp import web

from support.chromium import EXECUTABLE, Browser, Process, Tab
from support.example_apps import ASK, FOLDER, serving
from support.nginx import NGINX, running_nginx
from together_async.testing import DEEPSEEK, GPT_OSS, Cut, Dialect, EmulatorServer, ErrorInStream, Reply, Stall, Status

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(EXECUTABLE is None, reason="needs Debian's chromium"),
    pytest.mark.usefixtures("no_leaks"),
]
TOKENS = ("Blue", " light", " is", " scattered", " most", ".")
ANSWER = "".join(TOKENS)
SOON_S = 0.1
"""Seconds that may pass between a browser's leaving and the model's stop."""


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    """One chromium for all tests."""
    chromium = Process()
    yield chromium
    chromium.close()


@pytest_asyncio.fixture
async def browser(process: Process, no_leaks: None) -> AsyncIterator[Browser]:
    """A fresh profile in it; a script that fails fails the test."""
    async with Browser(process) as profile:
        yield profile
        assert profile.complaints == []


@pytest_asyncio.fixture
async def emulator(no_leaks: None) -> AsyncIterator[EmulatorServer]:
    async with EmulatorServer(Reply(TOKENS)) as server:
        yield server


# ------------------------------------------------------------------------------------------------- what a person does


async def ask(tab: Tab, question: str = "Why?") -> None:
    """Types a question and sends it."""
    await tab.click("#prompt")
    await tab.type(question)
    await tab.press("Enter")


def shows(text: str) -> str:
    """The condition that this is the whole answer so far."""
    return f"document.getElementById('answer').textContent === {text!r}"


def state(name: str) -> str:
    """The condition that the page is in a state."""
    return f"document.body.dataset.state === {name!r}"


async def record(tab: Tab) -> None:
    """Notes every text which the answer has from now on."""
    await tab.run("""(() => {
        window.texts = [];
        const answer = document.getElementById("answer");
        new MutationObserver((changes) => { for (const _ of changes) texts.push(answer.textContent); })
            .observe(answer, { characterData: true, childList: true, subtree: true });
    })()""")


async def recorded(tab: Tab) -> list[str]:
    """The texts so far, each once."""
    texts: list[str] = await tab.run("texts")
    return [text for text, _ in itertools.groupby(texts)]


def prefixes(tokens: Sequence[str]) -> list[str]:
    return list(itertools.accumulate(tokens))


async def one_by_one(tab: Tab, emulator: EmulatorServer) -> None:
    """Asks, and lets the model make each token when the page has shown the one before."""
    emulator.faults = [Stall(after_token=count) for count in range(1, len(TOKENS))]
    await record(tab)
    await ask(tab)
    for text in prefixes(TOKENS)[:-1]:
        await tab.until(shows(text))
        emulator.release()
    await tab.until(state("done"))
    assert await recorded(tab) == prefixes(TOKENS)


class Wire:
    """What is between a browser and an app: passes bytes on, can be cut, and knows when the browser has left.

    Attributes:
        asked: All that browsers have sent.
        left: When browsers closed a connection on which an answer was on its way, by `time.monotonic()`.
    """

    def __init__(self, url: str) -> None:
        self._port = int(url.rstrip("/").rpartition(":")[2])
        self._open: dict[asyncio.StreamWriter, asyncio.Task[None] | None] = {}
        self.asked = b""
        self.left: list[float] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        tasks = [task for task in self._open.values() if task is not None]
        self.cut()
        await asyncio.gather(*tasks, return_exceptions=True)

    def cut(self) -> None:
        """Breaks all connections."""
        for writer in self._open:
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open[writer] = asyncio.current_task()
        app_reader, app_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._open[app_writer] = None
        asked = asyncio.create_task(self._pass_on(reader, app_writer, browser=True))
        answered = asyncio.create_task(self._pass_on(app_reader, writer, browser=False))
        try:
            await asyncio.wait((asked, answered), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in (writer, app_writer):
                end.close()
                del self._open[end]
            await asyncio.wait((asked, answered))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, browser: bool) -> None:
        asks = False
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
                if browser:
                    self.asked += data
                    asks = asks or b" /chat" in data
        if asks:
            self.left.append(time.monotonic())


@contextlib.asynccontextmanager
async def saying(data: bytes = b"") -> AsyncIterator[str]:
    """An app that has the page, and answers every question with these bytes."""

    async def page(_: web.Request) -> web.FileResponse:
        return web.FileResponse(FOLDER / "page.html")

    async def chat(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(data)
        return response

    app = web.Application()
    app.add_routes([web.get("/", page), web.post("/chat", chat)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    listening = socket.create_server(("127.0.0.1", 0))
    await web.SockSite(runner, listening).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    finally:
        await runner.cleanup()


# ------------------------------------------------------------------------------------------------------------- tokens


@pytest.mark.parametrize("name", ASK)
async def test_tokens_appear_one_by_one(
    name: str, browser: Browser, emulator: EmulatorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page shows each token while the model has not made the next, and says how many there were."""
    async with serving(name, emulator, monkeypatch) as (url, _):
        tab = await browser.tab(url)
        await one_by_one(tab, emulator)
        assert (await tab.text("#note")).startswith("6 tokens")
        assert await tab.text("#question") == "Why?"
        assert await tab.text("#send") == "Send"
        assert await tab.text("#problem") == await tab.text("#end") == ""


@pytest.mark.skipif(NGINX is None, reason="needs nginx")
@pytest.mark.parametrize("name", ASK)
async def test_tokens_appear_one_by_one_behind_nginx(
    name: str, browser: Browser, emulator: EmulatorServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A proxy that collects answers by default passes these on as they come; closing the tab goes through it too."""
    async with serving(name, emulator, monkeypatch) as (url, _):
        with running_nginx(tmp_path, f"proxy_pass {url};") as (port,):
            tab = await browser.tab(f"http://127.0.0.1:{port}/")
            await one_by_one(tab, emulator)
            emulator.faults = Stall(after_token=2)
            await ask(tab)
            await tab.until(shows("Blue light"))
            await tab.close()
            await emulator.journal[1].wait_left()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 10_000])
async def test_bytes_may_be_cut_anywhere(size: int, browser: Browser) -> None:
    """Comments, data in two lines, unknown fields and events, in reads of any size: the text is the same, and text."""
    chunk = '{"choices":[{"index":0,\ndata: "delta":{"content":"%s"}}],"future":1}'
    texts = ("Ж", "😀 ", "<b>bold</b> &amp; ", r"\n\"quoted\"")
    data = ": hello\n\nretry: 5\n\n" + "".join(
        f"id: {n}\ndata: {chunk % text}\n\n:\n\n" for n, text in enumerate(texts)
    )
    stream = (data + 'data:{"choices":[]}\n\nevent: other\n\ndata: [DONE]\n\n').encode()
    async with saying() as url:
        tab = await browser.tab(url)
        # A test can't choose how a network cuts a stream; here each piece is a read of its own.
        await tab.run(f"""window.fetch = async () => {{
            const data = Uint8Array.from(atob({base64.b64encode(stream).decode()!r}), (byte) => byte.charCodeAt(0));
            let at = 0;
            const body = new ReadableStream({{
                pull(reads) {{
                    if (at < data.length) reads.enqueue(data.slice(at, at += {size}));
                    else reads.close();
                }},
            }});
            return new Response(body, {{ headers: {{ "content-type": "text/event-stream" }} }});
        }}""")
        await ask(tab)
        await tab.until(state("done"))
        assert await tab.text("#answer") == 'Ж😀 <b>bold</b> &amp; \n"quoted"'
        assert await tab.run("document.querySelector('#answer').children.length") == 0


@pytest.mark.parametrize("dialect", [GPT_OSS, DEEPSEEK], ids=lambda dialect: dialect.name)
async def test_reasoning_is_shown_apart(
    dialect: Dialect, browser: Browser, emulator: EmulatorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's reasoning is shown next to the answer and not in it."""
    emulator.dialect, emulator.script = dialect, Reply(TOKENS, reasoning="Let me think.")
    async with serving("fastapi_app", emulator, monkeypatch) as (url, _):
        tab = await browser.tab(url)
        await ask(tab)
        await tab.until(state("done"))
        assert (await tab.text("#reasoning"), await tab.text("#answer")) == ("Let me think.", ANSWER)


# ------------------------------------------------------------------------------------------------------------ leaving


@pytest.mark.parametrize("name", ASK)
async def test_the_stop_button_stops_the_model(
    name: str, browser: Browser, emulator: EmulatorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service sees the app leave; the page keeps the text and says that it was stopped. Escape does the same."""
    emulator.faults = Stall(after_token=2)
    async with serving(name, emulator, monkeypatch) as (url, _):
        tab = await browser.tab(url)
        for number, stop in enumerate((lambda: tab.click("#send"), lambda: tab.press("Escape"))):
            await ask(tab)
            await tab.until(shows("Blue light"))
            assert await tab.text("#send") == "Stop"
            await stop()
            await emulator.journal[number].wait_left()
            await tab.until(state("stopped"))
            texts = [await tab.text(part) for part in ("#answer", "#end", "#note")]
            assert texts == ["Blue light", "Stopped", "Stopped"]
            assert await tab.text("#problem") == ""


@pytest.mark.parametrize("shown", ["", "Blue light"], ids=["before the first token", "in the middle"])
@pytest.mark.parametrize("name", ASK)
async def test_a_closed_tab_stops_the_model(
    name: str, shown: str, browser: Browser, emulator: EmulatorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 100 ms of the browser's closing of its connection, while nothing is being sent."""
    emulator.faults = Stall(after_token=2 if shown else 0)
    async with serving(name, emulator, monkeypatch) as (url, _), Wire(url) as wire:
        tab = await browser.tab(wire.url)
        await ask(tab)
        await tab.until(f"{state('streaming' if shown else 'waiting')} && {shows(shown)}")
        entry = await emulator.journal.wait(1)
        await tab.close()
        left_at = await entry.wait_left()
        (closed_at,) = wire.left
        assert left_at - closed_at < SOON_S


# ------------------------------------------------------------------------------------------------------------- errors


async def problem(tab: Tab) -> tuple[str, str, str]:
    """What the page shows of a failure: of the answer, the failure's title and its message."""
    await tab.until(state("failed"))
    return await tab.text("#answer"), await tab.text("#title"), await tab.text("#message")


@pytest.mark.parametrize("name", ASK)
async def test_an_error_before_the_start_is_shown(
    name: str, browser: Browser, emulator: EmulatorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Status and message; "Try again" asks again."""
    emulator.faults = Status(422, message="this is no question")
    async with serving(name, emulator, monkeypatch) as (url, _):
        tab = await browser.tab(url)
        await ask(tab)
        assert await problem(tab) == ("", "Error 422", "This is no question.")
        assert await tab.text("#end") == ""
        emulator.faults = None
        await tab.click("#again")
        await tab.until(state("done"))
        assert (await tab.text("#answer"), await tab.text("#problem")) == (ANSWER, "")


async def test_an_app_that_is_away(browser: Browser, emulator: EmulatorServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that can't be reached is an error in words."""
    async with serving("fastapi_app", emulator, monkeypatch) as (url, _):
        tab = await browser.tab(url)
    await ask(tab)
    assert await problem(tab) == ("", "No connection", "The server can't be reached.")


@pytest.mark.parametrize("name", ASK)
async def test_an_error_in_the_middle_is_shown(
    name: str, browser: Browser, emulator: EmulatorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text so far stays, with a mark where it was cut off, and the message."""
    async with serving(name, emulator, monkeypatch) as (url, _):
        tab = await browser.tab(url)
        emulator.faults = ErrorInStream(after_token=2, message="out of memory")
        await ask(tab)
        text, title, message = await problem(tab)
        assert (text, title) == ("Blue light", "The answer broke off")
        assert "out of memory" in message
        assert await tab.text("#end") == "Cut off here"

        emulator.faults = Cut(after_token=3)
        await ask(tab)
        text, _, message = await problem(tab)
        assert (text, "connection to it was lost" in message) == ("Blue light is", True)


async def test_a_connection_that_is_lost_in_the_middle(
    browser: Browser, emulator: EmulatorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one between browser and app: the page says so, and the model stops."""
    emulator.faults = Stall(after_token=2)
    async with serving("aiohttp_app", emulator, monkeypatch) as (url, _), Wire(url) as wire:
        tab = await browser.tab(wire.url)
        await ask(tab)
        await tab.until(shows("Blue light"))
        wire.cut()
        assert await problem(tab) == ("Blue light", "The connection was lost", "The answer is not complete.")
        await emulator.journal[0].wait_left()


async def test_an_answer_without_its_end(browser: Browser) -> None:
    """A stream that ends in good order, but without `[DONE]`, is not passed off as whole."""
    async with saying(b'data: {"choices":[{"index":0,"delta":{"content":"Blue"}}]}\n\n') as url:
        tab = await browser.tab(url)
        await ask(tab)
        assert await problem(tab) == ("Blue", "The answer broke off", "It ended before it was complete.")


# ------------------------------------------------------------------------------------------------------- coming back


async def test_a_lost_connection_is_made_again(
    browser: Browser, emulator: EmulatorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The browser comes back with the id of the last event, and the text goes on where it was: nothing twice."""
    emulator.faults = [Stall(after_token=2), Stall(after_token=4)]
    async with serving("resume_app", emulator, monkeypatch) as (url, _), Wire(url) as wire:
        tab = await browser.tab(wire.url)
        await record(tab)
        await ask(tab)
        await tab.until(shows("Blue light"))
        wire.cut()
        await tab.until("document.getElementById('note').textContent === 'Connection lost, reconnecting'")
        emulator.release()
        await tab.until(shows("Blue light is scattered"))
        emulator.release()
        await tab.until(state("done"))
        assert await tab.text("#answer") == ANSWER
        texts = await recorded(tab)
        assert all(after.startswith(before) for before, after in itertools.pairwise(texts))
        assert b"Last-Event-ID: " in wire.asked
    assert emulator.journal.total == 1


async def test_a_reload_and_another_tab(
    browser: Browser, emulator: EmulatorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each shows the question, the text so far, then the rest as it comes; and everything at the end."""
    emulator.faults = [Stall(after_token=2), Stall(after_token=4)]
    async with serving("resume_app", emulator, monkeypatch) as (url, _):
        tab = await browser.tab(url)
        await ask(tab)
        await tab.until(shows("Blue light"))
        await tab.reload()
        await tab.until(shows("Blue light"))
        other = await browser.tab(await tab.run("location.href"))
        await other.until(shows("Blue light"))
        emulator.release()
        for page in (tab, other):
            await page.until(shows("Blue light is scattered"))
        emulator.release()
        for page in (tab, other):
            await page.until(state("done"))
        await other.reload()
        await other.until(state("done"))
        for page in (tab, other):
            assert (await page.text("#answer"), await page.text("#question")) == (ANSWER, "Why?")
            assert await page.text("#note") == "6 tokens"  # their speed was not seen from the beginning
    assert emulator.journal.total == 1


async def test_a_closed_tab_does_not_end_what_is_kept(
    browser: Browser, emulator: EmulatorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer goes on; who opens its address later finds it."""
    emulator.faults = Stall(after_token=2)
    async with serving("resume_app", emulator, monkeypatch) as (url, _):
        tab = await browser.tab(url)
        await ask(tab)
        await tab.until(shows("Blue light"))
        place = await tab.run("location.href")
        await tab.close()
        emulator.release()
        later = await browser.tab(place)
        await later.until(state("done"))
        assert await later.text("#answer") == ANSWER
    assert emulator.journal[0].outcome == "complete"


async def test_stopping_what_is_kept(
    browser: Browser, emulator: EmulatorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The button in one tab stops the model; the other tab, and whoever comes later, sees that it was stopped."""
    emulator.faults = Stall(after_token=2)
    async with serving("resume_app", emulator, monkeypatch) as (url, _):
        tab = await browser.tab(url)
        await ask(tab)
        await tab.until(shows("Blue light"))
        other = await browser.tab(await tab.run("location.href"))
        await other.until(shows("Blue light"))
        await other.click("#send")
        await emulator.journal[0].wait_left()
        await tab.until(state("stopped"))
        await other.until(state("stopped"))
        await other.reload()
        await other.until(state("stopped"))
        for page in (tab, other):
            assert [await page.text(part) for part in ("#answer", "#end", "#problem")] == ["Blue light", "Stopped", ""]


async def test_what_is_not_kept_any_more(
    browser: Browser, emulator: EmulatorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An address of yesterday: the page says so, and takes a new question."""
    async with serving("resume_app", emulator, monkeypatch) as (url, _):
        tab = await browser.tab(f"{url}#yesterday")
        assert await problem(tab) == ("", "Error 410", "This answer is not kept any more; ask again.")
        await ask(tab)
        await tab.until(state("done"))
        assert await tab.text("#answer") == ANSWER


async def test_errors_of_what_is_kept(
    browser: Browser, emulator: EmulatorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the start and in the middle, as in the other apps."""
    async with serving("resume_app", emulator, monkeypatch) as (url, _):
        tab = await browser.tab(url)
        emulator.faults = Status(422, message="this is no question")
        await ask(tab)
        assert await problem(tab) == ("", "Error 422", "This is no question.")
        emulator.faults = ErrorInStream(after_token=2, message="out of memory")
        await tab.click("#again")
        await tab.until(shows("Blue light"))
        text, title, message = await problem(tab)
        assert (text, title, "out of memory" in message) == ("Blue light", "The answer broke off", True)


# --------------------------------------------------------------------------------------------------------------- page


async def test_the_page_is_usable(browser: Browser, emulator: EmulatorServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A phone's width has no sideways scrolling; nothing is sent of an empty question, nor by Shift + Enter."""
    emulator.script = "W" * 300 + " " + "word " * 500
    async with serving("starlette_app", emulator, monkeypatch) as (url, _):
        tab = await browser.tab(url, width=400, dark=True)
        await ask(tab, "  ")
        assert await tab.run(state("idle"))
        await ask(tab, "Q" * 300)
        await tab.until(state("done"))
        assert await tab.run("document.documentElement.scrollWidth") == 400
        await tab.run("new Promise((shown) => requestAnimationFrame(() => requestAnimationFrame(shown)))")
        assert await tab.run("innerHeight + scrollY >= document.documentElement.scrollHeight - 1")  # it has followed
        assert await tab.run("getComputedStyle(document.body).colorScheme") in ("normal", "light dark")
        red, *_ = await tab.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
        assert red < 64
    assert emulator.journal.total == 1

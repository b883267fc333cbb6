"""The fixtures in every kind of test, and the cost of the plugin where it is not used.

The inner test runs are like those of users: they read no setting of ours and treat warnings as errors.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

# Here, because a test run inside this process forgets the modules that it was the first to import.
import starlette.testclient  # noqa: F401 - to be loaded

import together_async.http.transport  # noqa: F401 - to be loaded
from together_async import APIConnectionError, AsyncTogether, Timeouts, pytest_plugin
from together_async.testing import EmulatorServer, Stall

pytest_plugins = ["pytester"]

KEY, MODEL = "some-key", "some/model"
OPTIONS = ("-p", "no:cacheprovider", "-W", "error")

TALK = """
import asyncio
import pytest
from together_async.testing import Stall

async def talk(client, server):
    '''Leaves one connection in the pool, one stream in a stall and one just abandoned.'''
    server.script, server.faults = "6 7 8", None
    assert (await client.create("Count.", model="m")).text == "6 7 8"
    server.faults = Stall(after_token=1)
    kept = client.stream("Count.", model="m")
    assert (await anext(kept)).choices[0].delta.content == "6"
    KEPT.append(kept)
    await anext(client.stream("Count.", model="m"))
    assert len(server.journal) == 3

KEPT = []
"""

LAST = """
import gc
import test_app

def test_nothing_is_left():
    test_app.KEPT.clear()
    gc.collect()
"""

ASYNC_TEST = """
async def test_first(together_client, together_server):
    await talk(together_client, together_server)

async def test_another_server_and_client(together_client, together_server):
    assert len(together_server.journal) == 0
    await talk(together_client, together_server)
"""

ANYIO = """
pytestmark = pytest.mark.anyio

@pytest.fixture
def anyio_backend():
    return "asyncio"
"""

ASYNCIO = ("-o", "asyncio_default_fixture_loop_scope=function", "--asyncio-mode")

KINDS = {
    "pytest-asyncio auto": ((*ASYNCIO, "auto"), ASYNC_TEST),
    "pytest-asyncio strict": ((*ASYNCIO, "strict"), "pytestmark = pytest.mark.asyncio\n" + ASYNC_TEST),
    "pytest-asyncio one loop": (
        (*ASYNCIO, "strict"),
        "pytestmark = pytest.mark.asyncio(loop_scope='module')\n" + ASYNC_TEST,
    ),
    "anyio": (("-p", "no:asyncio"), ANYIO + ASYNC_TEST),
    "anyio beside pytest-asyncio": (
        (*ASYNCIO, "strict"),
        ANYIO + ASYNC_TEST,
    ),
    "asyncio.run": (
        ("-p", "no:asyncio", "-p", "no:anyio"),
        """
def test_one_run(together_client, together_server):
    asyncio.run(talk(together_client, together_server))

def test_a_second_run(together_client, together_server):
    asyncio.run(talk(together_client, together_server))
    together_server.journal.clear()
    asyncio.run(talk(together_client, together_server))
""",
    ),
    "the test's own loop": (
        ("-p", "no:asyncio", "-p", "no:anyio"),
        """
@pytest.fixture(scope="module")
def loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()

def test_between_two_runs_of_a_loop(loop, together_client, together_server):
    loop.run_until_complete(talk(together_client, together_server))

def test_not_used(together_client):
    assert "not connected" in repr(together_client)
""",
    ),
    "a loop in another thread": (
        ("-p", "no:asyncio", "-p", "no:anyio"),
        """
import threading

@pytest.fixture(scope="module")
def loop():
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()

@pytest.mark.parametrize("time", [1, 2])
def test_it_runs_on(time, loop, together_client, together_server):
    asyncio.run_coroutine_threadsafe(talk(together_client, together_server), loop).result(5)
""",
    ),
    "a synchronous test client": (
        ("-p", "no:asyncio"),
        """
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

def app(client, server):
    async def chat(request):
        return StreamingResponse(client.stream("Count.", model="m").text())

    async def left_open(request):
        await talk(client, server)
        return PlainTextResponse("left")

    return Starlette(routes=[Route("/", chat), Route("/left", left_open)])

def test_a_loop_for_each_request(together_client, together_server):
    together_server.script = "6 7 8"
    browser = TestClient(app(together_client, together_server))
    assert [browser.get("/").text for _ in range(2)] == ["6 7 8", "6 7 8"]
    together_server.journal.clear()
    assert browser.get("/left").text == "left"

def test_one_loop_for_all(together_client, together_server):
    together_server.script = "6 7 8"
    with TestClient(app(together_client, together_server)) as browser:
        assert [browser.get("/").text for _ in range(2)] == ["6 7 8", "6 7 8"]
        assert together_server.connections == 1
        together_server.journal.clear()
        assert browser.get("/left").text == "left"
""",
    ),
}


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize("kind", KINDS)
def test_in_every_kind_of_test(kind: str, pytester: pytest.Pytester) -> None:
    """Server and client work and are closed, whatever runs the loop and whatever the test left open."""
    options, source = KINDS[kind]
    pytester.makepyfile(test_app=TALK + source, test_last=LAST)
    result = pytester.runpytest_inprocess(*OPTIONS, *options)
    result.assert_outcomes(passed=3)
    assert result.ret == 0


def test_a_client_left_open_would_be_seen(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above can fail: without the fixture's closing, a client that was used is a ResourceWarning."""
    monkeypatch.setattr(pytest_plugin, "_close", lambda client: None)
    pytester.makepyfile(test_app=TALK + ASYNC_TEST, test_last=LAST)
    result = pytester.runpytest_inprocess(*OPTIONS, *ASYNCIO, "auto")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*ResourceWarning: unclosed AsyncTogether made at *"])


@pytest.mark.usefixtures("no_leaks")
async def test_closing_within_the_running_loop(together_server: EmulatorServer) -> None:
    """If the test's loop still runs when fixtures end, as under some browser plugins, nothing is left open."""
    client = AsyncTogether(KEY, base_url=together_server.base_url, proxy="")
    await client.create("Count.", model=MODEL)
    together_server.faults = Stall(after_token=1)
    stream = client.stream("Count.", model=MODEL)
    await anext(stream)
    pytest_plugin._close(client)
    await together_server.journal[1].wait_left()
    assert repr(client) == f"<AsyncTogether {together_server.base_url} closed>"
    with pytest.raises(APIConnectionError, match="the client is closed"):
        await client.create("Count.", model=MODEL)


# ----------------------------------------------------------------------------------------------------------- the server


def test_the_server_runs_in_one_thread_while_the_test_does(pytester: pytest.Pytester) -> None:
    """It is there before the test's first line and gone after its last; that costs less than 5 ms."""
    pytester.makepyfile(
        """
        import threading, time
        import pytest
        from together_async.testing import EmulatorServer

        @pytest.fixture
        def before():
            threads = threading.enumerate()
            yield threads
            assert threading.enumerate() == threads

        def test_one_thread(before, together_server):
            started = [thread.name for thread in threading.enumerate() if thread not in before]
            assert started == ["together-emulator"]

        def test_cheap():
            costs = []
            for _ in range(20):
                began = time.perf_counter()
                with EmulatorServer():
                    pass
                costs.append(time.perf_counter() - began)
            assert min(costs) < 0.005
        """
    )
    pytester.runpytest_inprocess(*OPTIONS, "-p", "no:asyncio", "-p", "no:anyio").assert_outcomes(passed=2)


def test_processes_do_not_collide(together_server: EmulatorServer, pytester: pytest.Pytester) -> None:
    """While a test's server runs here, a test in another process has one of its own."""
    pytester.makepyfile(
        f"""
        def test_another(together_server):
            assert together_server.base_url != {together_server.base_url!r}
        """
    )
    result = pytester.runpytest_subprocess(*OPTIONS, "-p", "no:asyncio", "-p", "no:anyio", timeout=60)
    result.assert_outcomes(passed=1)
    assert together_server.connections == 0


def test_a_script_that_fails_is_an_error_of_its_test(pytester: pytest.Pytester) -> None:
    """The app gets status 500; the author gets the error that the script raised."""
    pytester.makepyfile(
        """
        import asyncio
        import pytest
        from together_async import InternalServerError

        def test_it(together_client, together_server):
            together_server.script = lambda request: {}["no such answer"]
            with pytest.raises(InternalServerError):
                asyncio.run(together_client.create("Count.", model="m"))
        """
    )
    result = pytester.runpytest_inprocess(*OPTIONS, "-p", "no:asyncio", "-p", "no:anyio")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*KeyError: 'no such answer'"])


FAILING = """
import asyncio
import pytest
from together_async.testing import Stall

PROMPT = "-".join(["the", "secret", "prompt"])

@pytest.mark.parametrize("place", [dict(after_token=1), dict(), dict(in_head=5)])
def test_within_a_stall(place, together_client, together_server):
    async def main():
        together_server.faults = Stall(**place)
        stream = together_client.stream(PROMPT, model="m")
        task = asyncio.create_task(anext(stream))
        await together_server.journal.wait()
        assert together_server.journal[0].outcome == "complete"

    asyncio.run(main())

def test_a_stall_is_noticed(together_client, together_server):
    together_server.faults = Stall()
    asyncio.run(together_client.create(PROMPT, model="m"))

def test_a_status(together_client, together_server):
    together_server.api_key = "another-key"
    asyncio.run(together_client.create(PROMPT, model="m"))

def test_all_that_can_be_shown(together_client, together_server, together_env):
    together_server.script = "6"
    asyncio.run(together_client.create(PROMPT, model="m"))
    assert (together_client, together_server, together_server.journal, list(together_server.journal)) == ()
"""


def test_failing_tests_end_and_show_no_secrets(pytester: pytest.Pytester) -> None:
    """A test that fails in the middle of a stall ends at once; no output shows the key or the prompt."""
    pytester.makepyfile(FAILING)
    began = time.monotonic()
    result = pytester.runpytest_subprocess(*OPTIONS, "-vv", "-p", "no:asyncio", "-p", "no:anyio", timeout=60)
    assert time.monotonic() - began < 15
    result.assert_outcomes(failed=6)
    assert (result.errlines, result.ret) == ([], 1)
    output = result.stdout.str()
    assert "first_token took longer than 1 s" in output
    assert "<Entry 0 'm' 200 complete, 1 of 1 tokens>" in output
    assert "the-secret-prompt" not in output
    assert pytest_plugin._KEY not in output


def test_no_stall_takes_long(together_timeouts: Timeouts) -> None:
    """Whatever the client waits for ends within seconds."""
    assert together_timeouts == Timeouts(connect=5, first_token=1, idle=1)


def test_the_limits_can_be_overridden(pytester: pytest.Pytester) -> None:
    """A fixture of the same name, in a file or a conftest, sets other limits for the client."""
    pytester.makepyfile(
        """
        import asyncio
        import pytest
        from together_async import StreamTimeoutError, Timeouts
        from together_async.testing import Stall

        @pytest.fixture
        def together_timeouts():
            return Timeouts(idle=0.125)

        def test_short(together_client, together_server):
            together_server.faults = Stall(after_token=1)
            with pytest.raises(StreamTimeoutError, match="0.125 s"):
                asyncio.run(together_client.stream("Count.", model="m").completion())
        """
    )
    pytester.runpytest_inprocess(*OPTIONS, "-p", "no:asyncio", "-p", "no:anyio").assert_outcomes(passed=1)


# ------------------------------------------------------------------------------------------------------ the environment

DEAD_PROXY = "http://127.0.0.2:9"


@pytest.mark.usefixtures("no_leaks")
async def test_no_proxy_between_client_and_server(
    together_server: EmulatorServer, together_client: AsyncTogether, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fixture's client does not ask the environment's proxy for loopback."""
    monkeypatch.setenv("HTTP_PROXY", DEAD_PROXY)
    monkeypatch.setenv("http_proxy", DEAD_PROXY)
    together_server.script = "6"
    assert (await together_client.create("Count.", model=MODEL)).text == "6"


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize("exempt", [{}, {"NO_PROXY": "a.example"}, {"no_proxy": "a.example"}])
async def test_an_app_with_a_client_of_its_own(
    exempt: dict[str, str], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It finds server and key in the environment, and its exemptions from the proxy are kept."""
    for name, value in {"HTTP_PROXY": DEAD_PROXY, "http_proxy": DEAD_PROXY, **exempt}.items():
        monkeypatch.setenv(name, value)
    request.getfixturevalue("together_env")
    together_server = request.getfixturevalue("together_server")
    together_server.script = "6"
    async with AsyncTogether() as client:
        assert (await client.create("Count.", model=MODEL)).text == "6"
    assert together_server.journal[0].headers["authorization"] == f"Bearer {pytest_plugin._KEY}"
    kept = "a.example,127.0.0.1" if exempt else "127.0.0.1"
    assert (os.environ["NO_PROXY"], os.environ["no_proxy"]) == (kept, kept)


def test_the_environment_is_as_before(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """One test's environment is not seen by the next; the server alone changes nothing."""
    monkeypatch.setenv("TOGETHER_API_KEY", "mine")
    monkeypatch.delenv("TOGETHER_BASE_URL", raising=False)
    pytester.makepyfile(
        """
        import os

        def seen():
            return {name: value for name, value in os.environ.items() if "TOGETHER" in name or "proxy" in name.lower()}

        BEFORE = seen()

        def test_with(together_env, together_server):
            assert seen()["TOGETHER_BASE_URL"] == together_server.base_url
            assert seen()["TOGETHER_API_KEY"] != "mine"

        def test_after(together_server, together_client):
            assert seen() == BEFORE
        """
    )
    pytester.runpytest_inprocess(*OPTIONS, "-p", "no:asyncio", "-p", "no:anyio").assert_outcomes(passed=2)


# ------------------------------------------------------------------------------------------------------------- not used


def test_who_does_not_use_it_does_not_pay(pytester: pytest.Pytester) -> None:
    """Loaded by its entry point, the plugin starts no thread and imports neither aiohttp nor the emulator."""
    pytester.makepyfile(
        """
        import sys, threading

        def test_nothing(request):
            assert request.config.pluginmanager.has_plugin("together_async")
            assert threading.active_count() == 1
            heavy = {"aiohttp", "aioresponses", "cattrs", "together_async.testing", "together_async.http.transport"}
            assert heavy & set(sys.modules) == set()
        """
    )
    result = pytester.runpytest_subprocess(*OPTIONS, "-p", "no:asyncio", "-p", "no:anyio", timeout=60)
    result.assert_outcomes(passed=1)


def test_the_plugin_imports_nothing_by_itself() -> None:
    """Apart from pytest and the package's `__init__`, which Python loads first, nothing is loaded."""
    code = (
        "import sys, pytest, together_async; before = set(sys.modules)\n"
        "import together_async.pytest_plugin; print(*sorted(set(sys.modules) - before))"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["together_async.pytest_plugin"], "")


def test_it_can_be_switched_off(pytester: pytest.Pytester) -> None:
    """By pytest's own option."""
    pytester.makepyfile("def test_it(together_server): pass")
    options = ("-p", "no:together_async", "-p", "no:asyncio", "-p", "no:anyio")
    result = pytester.runpytest_inprocess(*OPTIONS, *options)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*fixture 'together_server' not found*"])

"""Who gets a signal while something is relayed: this package, then the handler of before; each exactly once.

A server sets a handler by `signal.signal` when it starts, and the handler of before when it stops; a process may have
several servers, which start and stop in any order.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from together_async.relay import shut_down, shutdown

pytestmark = pytest.mark.usefixtures("no_leaks")

SOON = 5.0
TERM = signal.SIGTERM


class Answer:
    """A relayed answer."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.stopped = asyncio.Event()

    def shut_down(self) -> None:
        self.stopped.set()

    async def wait_stopped(self) -> None:
        await asyncio.wait_for(self.stopped.wait(), SOON)


@contextlib.contextmanager
def relaying() -> Iterator[Answer]:
    answer = Answer()
    shutdown.register(answer)
    try:
        yield answer
    finally:
        shutdown.unregister(answer)


class Server:
    """A server that handles a signal. `stop` sets the handler that was there when it started."""

    def __init__(self) -> None:
        self.received = 0
        self._found: Any = None

    def handle(self, *_: object) -> None:
        self.received += 1

    def start(self) -> None:
        self._found = signal.signal(TERM, self.handle)

    def stop(self) -> None:
        signal.signal(TERM, self._found)

    @property
    def listens(self) -> bool:
        """Whether its own handler is set."""
        return signal.getsignal(TERM) == self.handle


@pytest.fixture
def server() -> Iterator[Server]:
    """The app's server. After the test the handler of before is back in any case."""
    before = signal.getsignal(TERM)
    server = Server()
    server.start()
    yield server
    signal.signal(TERM, before)
    assert not shutdown._live


@pytest.fixture
def second(server: Server) -> Server:
    """Another server in the process, which comes and goes: for metrics, for example."""
    return Server()


async def test_all_that_is_relayed_and_the_server_hear_a_signal(server: Server) -> None:
    """Each once; and no handler of ours stays installed."""
    with relaying() as answer, relaying() as other:
        assert not server.listens
        signal.raise_signal(TERM)
        await answer.wait_stopped()
        await other.wait_stopped()
    assert server.received == 1
    assert server.listens


async def test_our_handler_given_back_when_nothing_is_relayed_passes_signals_on(server: Server, second: Server) -> None:
    """A server that saved it during an answer may set it again later: the first server gets every signal, once."""
    with relaying():
        second.start()
    second.stop()
    signal.raise_signal(TERM)
    assert (server.received, second.received) == (1, 0)


async def test_our_handler_given_back_is_the_next_answers(server: Server, second: Server) -> None:
    """Later answers get the signal too, the server gets it once, and its handler is back afterwards."""
    with relaying():
        second.start()
    second.stop()
    with relaying() as later:
        signal.raise_signal(TERM)
        await later.wait_stopped()
        assert server.received == 1
    assert server.listens


async def test_a_second_server_that_comes_and_goes_between_answers(server: Server, second: Server) -> None:
    """It gets the signals while it is there, and so do answers; when it has gone, the first server does."""
    with relaying():
        second.start()
    with relaying() as answer:
        signal.raise_signal(TERM)
        await answer.wait_stopped()
        assert (server.received, second.received) == (0, 1)
        second.stop()
        answer.stopped.clear()
        signal.raise_signal(TERM)
        await answer.wait_stopped()
        assert (server.received, second.received) == (1, 1)
    signal.raise_signal(TERM)
    assert (server.received, second.received) == (2, 1)


async def test_a_second_server_within_an_answer(server: Server, second: Server) -> None:
    """It takes signals for itself while it is there; answers get them again when it has gone."""
    with relaying() as answer:
        second.start()
        signal.raise_signal(TERM)
        await asyncio.sleep(0)
        assert not answer.stopped.is_set()
        assert (server.received, second.received) == (0, 1)
        second.stop()
        signal.raise_signal(TERM)
        await answer.wait_stopped()
    assert server.received == 1
    assert server.listens


@pytest.mark.parametrize("first", ["the thread's", "the main thread's"])
async def test_answers_of_several_threads(server: Server, first: str) -> None:
    """Handlers belong to the main thread; the answers of all threads get signals, whichever was first."""
    entered, stopped = threading.Event(), threading.Event()

    async def elsewhere() -> None:
        with relaying() as other:
            entered.set()
            await other.wait_stopped()
        stopped.set()

    thread = threading.Thread(target=lambda: asyncio.run(elsewhere()))

    def begin() -> None:
        thread.start()
        assert entered.wait(SOON)

    if first == "the thread's":
        begin()
    with relaying() as answer:
        if first != "the thread's":
            begin()
        signal.raise_signal(TERM)
        await answer.wait_stopped()
        assert await asyncio.to_thread(stopped.wait, SOON)
    thread.join(SOON)
    assert server.received == 1
    assert server.listens


async def test_what_has_no_loop_any_more_is_in_nobodys_way(server: Server) -> None:
    """An answer whose loop was closed before it could leave."""
    loop = asyncio.new_event_loop()
    with relaying() as answer, relaying() as lost:
        lost.loop = loop
        loop.close()
        shut_down()
        await answer.wait_stopped()
    assert not lost.stopped.is_set()


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler])
async def test_without_a_server_no_handler_is_ours(server: Server, handler: Callable[..., Any] | int) -> None:
    """A signal that ends the process, or is ignored, is left as it is."""
    signal.signal(TERM, handler)
    with relaying():
        assert signal.getsignal(TERM) == handler
    assert signal.getsignal(TERM) == handler

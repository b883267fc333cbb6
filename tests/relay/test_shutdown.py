"""Who hears a signal while something is relayed: we, and whoever received it before; nobody else, and nobody twice.

A server takes signals by `signal.signal` when it starts and gives back what it found when it stops; a process may have
several, which start and stop in any order.
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
    """Something that is relayed."""

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
    """A server as signals know it. `stop` gives back what was there when it started."""

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
        """Whether it is its handler that is set, and nothing before it."""
        return signal.getsignal(TERM) == self.handle


@pytest.fixture
def server() -> Iterator[Server]:
    """The one of the app. The handler of before is back when the test is over, whatever became of it."""
    before = signal.getsignal(TERM)
    server = Server()
    server.start()
    yield server
    signal.signal(TERM, before)
    assert not shutdown._live


@pytest.fixture
def second(server: Server) -> Server:
    """Another one in the process, which comes and goes: for metrics, say."""
    return Server()


async def test_all_that_is_relayed_and_the_server_hear_a_signal(server: Server) -> None:
    """Each once; and no handler of ours stays."""
    with relaying() as answer, relaying() as other:
        assert not server.listens
        signal.raise_signal(TERM)
        await answer.wait_stopped()
        await other.wait_stopped()
    assert server.received == 1
    assert server.listens


async def test_our_handler_given_back_when_nothing_is_relayed_passes_signals_on(server: Server, second: Server) -> None:
    """Whoever saved it while something was relayed may set it again later: the server hears every signal, once."""
    with relaying():
        second.start()
    second.stop()
    signal.raise_signal(TERM)
    assert (server.received, second.received) == (1, 0)


async def test_our_handler_given_back_is_the_next_answers(server: Server, second: Server) -> None:
    """What is relayed from then on hears of the signal too, the server does once, and its handler is back after it."""
    with relaying():
        second.start()
    second.stop()
    with relaying() as later:
        signal.raise_signal(TERM)
        await later.wait_stopped()
        assert server.received == 1
    assert server.listens


async def test_a_second_server_that_comes_and_goes_between_answers(server: Server, second: Server) -> None:
    """It hears what is sent while it is there, together with what is relayed; when it has gone, the first one does."""
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
    """It takes signals for itself while it is there; what is relayed hears them again when it has gone."""
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
    """A handler is the main thread's affair: its answers hear of signals whoever was first, and so do the others'."""
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
    """A signal that ends the process, or that nobody hears, is left as it is."""
    signal.signal(TERM, handler)
    with relaying():
        assert signal.getsignal(TERM) == handler
    assert signal.getsignal(TERM) == handler

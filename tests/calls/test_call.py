"""`call`: one call and its attempts, through `AsyncTogether` and real sockets: retries, limits, priorities, leaving."""

import asyncio
import contextlib
import copy
import email.utils
import gc
import itertools
import pickle
import re
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import Any

import attrs
import pytest

from support import virtual_time
from support.leaving import ENDLESS, WAYS
from support.servers import DONE, ScriptedServer, answers, delta, hangs, response, say, sse, streams, threaded, whole
from support.survival import (
    KEY,
    KINDS,
    MODEL,
    PROMPT,
    STREAMED,
    TEXT,
    TOKENS,
    Outcome,
    ask,
    case,
    check_discreet,
    listening,
)
from together_async import (
    APIConnectionError,
    APITimeoutError,
    AsyncTogether,
    InternalServerError,
    Limits,
    LimitsState,
    PaymentRequiredError,
    QueueFullError,
    RateLimiter,
    RateLimitError,
    Retry,
    StreamConnectionError,
    StreamError,
    StreamTimeoutError,
    Timeouts,
    TogetherError,
)
from together_async.calls.call import Call
from together_async.retry import RetryBudget
from together_async.testing import (
    Account,
    ByModel,
    Chance,
    CloseAfter,
    Cut,
    Dynamic,
    EmulatorServer,
    ErrorInStream,
    Fault,
    Garbage,
    InTurn,
    Rate,
    Stall,
    Status,
)

leaves_nothing = pytest.mark.usefixtures("no_leaks")

RETRIED = (408, 409, 429, 500, 502, 503, 504, 520, 524, 529)
OTHERS = (400, 401, 402, 403, 404, 405, 406, 410, 413, 415, 418, 422, 425, 431, 451, 501, 505, 507, 521, 522, 525, 599)
QUICK = Retry(attempts=3, base_delay=0.001, max_delay=0.002)
GENEROUS = {"x-ratelimit-limit": "1000"}
"""What a 429 may carry so that the next attempt does not wait for a rate that had to be found out."""
UNTIMED = Timeouts(connect=None, first_token=None, idle=None)


def refuses(status: int, **headers: str) -> Status:
    """A refusal; a 429 tells a limit that is generous."""
    return Status(status, headers={**(GENEROUS if status == 429 else {}), **headers})


def refusal(status: int, *headers: str) -> bytes:
    """The same as bytes, for a scripted server."""
    extra = "".join(f"{header}\r\n" for header in headers).encode()
    return response({"error": {"message": "no", "type": "t", "code": None}}, status=status, extra=extra)


def counted(client: AsyncTogether) -> tuple[int, int]:
    """What is in flight and queued now."""
    state = client.limits
    return state.in_flight, state.queued


@contextlib.asynccontextmanager
async def emulated(script: Any = TEXT, **options: Any) -> AsyncIterator[tuple[EmulatorServer, AsyncTogether]]:
    """An emulator, and a client that retries quickly; at the end no place is taken and no timer is left."""
    wanted = {name: options.pop(name) for name in ("limits", "retry", "timeouts") if name in options}
    async with EmulatorServer(script, **options) as server, client_of(server, **wanted) as client:
        yield server, client


@contextlib.asynccontextmanager
async def client_of(server: Any, **options: Any) -> AsyncIterator[AsyncTogether]:
    """A client that retries quickly; its limiter has the clock of the running event loop, which may be virtual."""
    limits = options.pop("limits", None)
    limiter = limits if isinstance(limits, RateLimiter) else clocked(limits)
    async with AsyncTogether(KEY, base_url=server.base_url, limits=limiter, **{"retry": QUICK, **options}) as client:
        yield client
    assert counted(client) == (0, 0), "a place is taken"
    assert limiter.driver.timer is None, "a timer is left"


def clocked(limits: Limits | None = None) -> RateLimiter:
    """A limiter on the clock of the running event loop."""
    return RateLimiter(limits, clock=lambda: asyncio.get_running_loop().time())


def reasons(asked: Any) -> tuple[str, ...]:
    """Why a completion, an error or a stream needed more attempts."""
    return tuple(one.reason for one in asked.retries)


def notes(error: BaseException) -> list[str]:
    """What was added to an error."""
    return list(getattr(error, "__notes__", ()))


def check_attempts(outcome: Outcome, requests: int, reason: str) -> None:
    """An outcome says how many requests were made for it, and why it was more than one."""
    asked = outcome.completion if outcome.error is None else outcome.error
    assert asked.attempts == requests
    # What a pooled connection fails with may be that it was stale, and then it is replaced at once.
    also = {reason, "stale connection"} if reason == "no connection" else {reason}
    assert len(asked.retries) == requests - 1
    assert set(reasons(asked)) <= also
    assert all(0 <= one.waited_s < 5 for one in asked.retries)
    if outcome.error is not None and requests > 1:
        (note,) = notes(outcome.error)
        assert note.startswith(f"{requests} attempts ({asked.retries[0].reason}, waited ")
        assert note.endswith("; Retry.attempts allows no more")


def unpickled(value: Any) -> Any:
    """A copy by way of a pickle."""
    return pickle.loads(pickle.dumps(value))  # noqa: S301 - our own


async def asked(server: EmulatorServer, client: AsyncTogether, kind: str, faults: Any, **options: Any) -> Outcome:
    """Asks the emulator with these faults; what the outcome says is what the journal says."""
    server.journal.clear()
    server.faults = faults
    client._budget = RetryBudget(1)  # each of these calls is its client's first
    outcome = await ask(client, kind, **options)
    result = outcome.completion if outcome.error is None else outcome.error
    assert result.attempts == len(server.journal)
    return outcome


# -------------------------------------------------------------------------------------------------- what is asked again


@leaves_nothing
@pytest.mark.parametrize("kind", KINDS)
async def test_which_statuses_are_asked_again(kind: str) -> None:
    """Those of the table as often as `attempts` says, no other; completions and errors say how often and why."""
    async with emulated() as (server, client):
        for status in (*RETRIED, *OTHERS):
            with case(status):
                outcome = await asked(server, client, kind, refuses(status))
                assert outcome.error.status_code == status
                check_attempts(outcome, 3 if status in RETRIED else 1, str(status))
                outcome = await asked(server, client, kind, InTurn(refuses(status)))
                assert outcome.text == (TEXT if status in RETRIED else None)
                check_attempts(outcome, 2 if status in RETRIED else 1, str(status))


BEFORE_A_TOKEN: dict[str, tuple[Fault, str | None]] = {
    "closed before the head": (Cut(how="close"), "no connection"),
    "reset before the head": (Cut(how="reset"), "no connection"),
    "closed in the head": (Cut(in_head=20, how="close"), "no connection"),
    "reset in the head": (Cut(in_head=20, how="reset"), "no connection"),
    "reset after the head": (Cut(after_token=0, how="reset"), "connection lost"),
    "closed after the head": (Cut(after_token=0, how="close"), "connection lost"),
    "closed in a piece": (Cut(after_token=0, how="chunk"), "connection lost"),
    "ended after the head": (Cut(after_token=0, how="end"), "connection lost"),
    "not an event": (Garbage(), None),
    "a page": (Status(200, "<html>hello</html>"), None),
    "an empty body": (Status(200, b""), "connection lost"),
    **{
        f"an error with {code!r}": (
            ErrorInStream(after_token=0, code=code),
            f"error {code} in the stream" if code in RETRIED else None,
        )
        for code in (*RETRIED, 400, 402, 501, "overloaded", None)
    },
    "an error with '503'": (ErrorInStream(after_token=0, code="503"), "error 503 in the stream"),
}


@leaves_nothing
@pytest.mark.parametrize("kind", STREAMED)
async def test_a_stream_that_breaks_before_its_first_token(kind: str) -> None:
    """It is asked for again if the same failure without a stream would be; nothing of the broken one stays."""
    async with emulated(account=Account(Rate(requests_per_second=1000))) as (server, client):
        truth = (await asked(server, client, kind, None)).completion
        for name, (fault, reason) in BEFORE_A_TOKEN.items():
            with case(name):
                outcome = await asked(server, client, kind, fault)
                assert outcome.error is not None
                check_attempts(outcome, 1 if reason is None else 3, reason or "")
                outcome = await asked(server, client, kind, InTurn(fault))
                check_attempts(outcome, 1 if reason is None else 2, reason or "")
                if reason is not None:
                    assert attrs.evolve(outcome.completion, id="", created=0) == attrs.evolve(truth, id="", created=0)


@leaves_nothing
@pytest.mark.parametrize("kind", STREAMED)
async def test_a_stream_that_breaks_after_its_first_token(kind: str) -> None:
    """It is never asked for again, however it breaks."""
    async with emulated() as (server, client):
        for fault in (
            *(Cut(after_token=1, how=how) for how in ("reset", "close", "chunk", "end")),  # type: ignore[arg-type]
            *(ErrorInStream(after_token=1, code=code) for code in (*RETRIED, None)),
            Garbage(after_token=1),
        ):
            with case(fault):
                outcome = await asked(server, client, kind, fault)
                assert outcome.partial == TOKENS[0]
                check_attempts(outcome, 1, "")


async def role_then_lost(call: Any) -> None:
    """The role and no text; then the connection is lost."""
    await call.head()
    await call.chunk(sse(delta("", role="assistant", reasoning="first thoughts")))
    call.reset()


@leaves_nothing
@pytest.mark.parametrize("kind", ["text", "block"])
async def test_what_a_text_reader_has_not_shown_is_asked_again(kind: str) -> None:
    """A role, or thoughts, are nothing to who reads texts; of the broken stream nothing is in the completion."""
    async with ScriptedServer(role_then_lost, streams("One", " two")) as server, client_of(server) as client:
        outcome = await ask(client, kind)
        assert outcome.text == "One two"
        assert outcome.completion.choices[0].message.reasoning is None
        check_attempts(outcome, 2, "connection lost")
        assert len(server.calls) == 2


@leaves_nothing
async def test_what_a_reader_of_chunks_has_seen_is_not_asked_again() -> None:
    """A chunk with nothing but a role was handed out: who asked again would hand out a second one."""
    async with ScriptedServer(role_then_lost, streams("One")) as server, client_of(server) as client:
        outcome = await ask(client, "chunks")
        assert isinstance(outcome.error, StreamConnectionError)
        check_attempts(outcome, 1, "")
        assert len(server.calls) == 1


@leaves_nothing
async def test_the_text_of_another_choice_is_asked_again_whole() -> None:
    """Who reads choice 1 has seen nothing of a stream that broke within choice 0; no text of it is kept."""

    async def first(call: Any) -> None:
        await call.head()
        await call.chunk(sse(delta("lost", index=0)))
        call.reset()

    async def second(call: Any) -> None:
        await call.head()
        await call.chunk(*(sse(delta(f"choice {i}", index=i)) for i in (0, 1)))
        await call.chunk(*(sse(delta(index=i, finish="stop")) for i in (0, 1)), DONE)
        await call.send(b"0\r\n\r\n")

    async with ScriptedServer(first, second) as server, client_of(server) as client:
        stream = client.stream(PROMPT, model=MODEL, n=2)
        assert [text async for text in stream.text(choice=1)] == ["choice 1"]
        assert [choice.message.content for choice in (await stream.completion()).choices] == ["choice 0", "choice 1"]
        assert (stream.attempts, reasons(stream)) == (2, ("connection lost",))


@leaves_nothing
@pytest.mark.parametrize("how", ["refused", "closed", "reset", "late"])
async def test_a_connection_that_is_not_made_is_tried_again(how: str) -> None:
    """In each of the ways to ask; a connection that is late as well, since nothing can have been done yet."""

    async def end(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if how == "reset":
            writer.transport.abort()

    async with contextlib.AsyncExitStack() as stack:
        if how in ("closed", "reset"):
            port = await stack.enter_async_context(listening(end))
        else:
            closed = stack.enter_context(socket.socket())
            closed.bind(("127.0.0.1", 0))
            port = closed.getsockname()[1]
        if how == "late":
            closed.listen(0)
            for _ in range(2):  # the queue is full then, and nobody is let in
                other = stack.enter_context(socket.socket())
                other.setblocking(False)
                other.connect_ex(("127.0.0.1", port))
        timeouts = Timeouts(connect=0.05 if how == "late" else 5)
        url = f"http://127.0.0.1:{port}/v1"
        client = await stack.enter_async_context(
            AsyncTogether(KEY, base_url=url, retry=QUICK, timeouts=timeouts, limits=Limits(concurrency=9))
        )
        for outcome in await asyncio.gather(*(ask(client, kind, alone=False) for kind in KINDS)):
            assert isinstance(outcome.error, APIConnectionError)
            assert isinstance(outcome.error, APITimeoutError) is (how == "late")
            check_attempts(outcome, 3, "timeout: connect" if how == "late" else "no connection")
        assert counted(client) == (0, 0)


TIMED_OUT: dict[str, tuple[Fault, Timeouts]] = {
    "first_token": (Stall(in_head=0), Timeouts(first_token=5)),
    "total": (Stall(in_head=0), Timeouts(first_token=None, total=5)),
    "total after the head": (Stall(after_token=0), Timeouts(first_token=None, total=5)),
    "first_token after the head": (Stall(after_token=0), Timeouts(first_token=5)),
    "idle": (Stall(after_token=1), Timeouts(idle=5)),
}


@pytest.mark.parametrize("name", TIMED_OUT)
def test_a_timeout_of_the_callers_own_is_not_asked_again(name: str) -> None:
    """The work was probably being done, and billed; a second request would be late as well."""
    fault, timeouts = TIMED_OUT[name]

    async def main() -> None:
        async with emulated(timeouts=timeouts) as (server, client):
            for kind in KINDS if name != "idle" else STREAMED:
                outcome = await asked(server, client, kind, fault, within=500)
                assert isinstance(outcome.error, TimeoutError)
                assert outcome.error.phase == name.partition(" ")[0]
                check_attempts(outcome, 1, "")

    virtual_time.run(main())


@leaves_nothing
async def test_a_whole_response_that_breaks_off_is_asked_again() -> None:
    """Nothing of it was handed out; what is broken in good order is no answer of the protocol, and stays an error."""
    async with emulated() as (server, client):
        for how in ("reset", "close"):
            for fault in (Cut(after_token=2, how=how), Cut(after_token=0, how=how)):  # type: ignore[arg-type]
                with case(fault):
                    outcome = await asked(server, client, "create", fault)
                    check_attempts(outcome, 3, "no connection")
                    outcome = await asked(server, client, "create", InTurn(fault))
                    assert outcome.text == TEXT
                    check_attempts(outcome, 2, "no connection")
        for other in (Cut(after_token=2, how="end"), Status(200, "<html>"), Status(200, b"")):
            with case(other):
                check_attempts(await asked(server, client, "create", other), 1, "")


@leaves_nothing
@pytest.mark.parametrize("code", [429, 503])
async def test_an_error_under_status_200_is_asked_again_as_one_with_that_status(code: int) -> None:
    """Whole or streamed, it is the same failure, and the limits hear of it."""
    script = answers(response({"error": {"message": "no", "code": code}}, extra=b"x-ratelimit-limit: 1000\r\n"))
    for kind in ("create", "text"):
        good = answers(response(whole(TEXT))) if kind == "create" else streams(TEXT)
        async with ScriptedServer(script, good) as server, client_of(server) as client:
            outcome = await ask(client, kind, alone=False)
            assert outcome.text == TEXT
            assert (outcome.completion.attempts, len(server.calls)) == (2, 2)
            assert (client.limits.rate_limited, client.limits.overloaded) == ((1, 0) if code == 429 else (0, 1))


@leaves_nothing
async def test_one_attempt_is_one_request() -> None:
    """`attempts=1` never sends twice: no status, no lost connection, and no stale one, makes it."""
    async with emulated(retry=Retry(attempts=1)) as (server, client):
        for kind in KINDS:
            for fault in (
                *map(refuses, RETRIED),
                Cut(),
                Cut(how="close"),
                Cut(after_token=0),
                Cut(after_token=0, how="end"),
            ):
                with case(kind, fault):
                    outcome = await asked(server, client, kind, fault)
                    assert outcome.error is not None
                    check_attempts(outcome, 1, "")
                    assert not notes(outcome.error)
        for kind in KINDS:
            await asked(server, client, kind, CloseAfter())
            await asyncio.sleep(0)
            server.journal.clear()
            server.faults = None
            await ask(client, kind)
            assert len(server.journal) <= 1


@leaves_nothing
async def test_a_stale_connection_counts_as_an_attempt() -> None:
    """What is sent again because a pooled connection had been closed is one of the `attempts`, and says so."""
    turns = Counter[int]()

    async def script(call: Any) -> None:
        turns[call.connection.number] += 1
        if turns[call.connection.number] == 1:
            await call.send(refusal(503))
        else:
            call.close()

    async with ScriptedServer(script) as server, client_of(server, retry=attrs.evolve(QUICK, attempts=4)) as client:
        for _ in range(6):
            before = len(server.calls)
            client._budget = RetryBudget(1)
            outcome = await ask(client, "create")
            sent = len(server.calls) - before
            assert sent == outcome.error.attempts == len(outcome.error.retries) + 1 == 4


# ----------------------------------------------------------------------------------------------------------------- when


@pytest.fixture
def longest_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chance makes each delay as long as it can be."""
    kwdefaults = Call.__init__.__kwdefaults__
    assert kwdefaults is not None
    monkeypatch.setitem(kwdefaults, "rng", lambda: 1.0)


class Timed(ScriptedServer):
    """A scripted server that knows when requests came, on the event loop's clock."""

    def __init__(self, *scripts: Any) -> None:
        self.at: list[float] = []
        super().__init__(*(self._noting(script) for script in scripts))

    def _noting(self, script: Any) -> Any:
        async def noting(call: Any) -> None:
            self.at.append(asyncio.get_running_loop().time())
            await script(call)

        return noting

    @property
    def gaps(self) -> list[float]:
        """Seconds between the requests."""
        return [after - before for before, after in itertools.pairwise(self.at)]


async def good(call: Any) -> None:
    """A script that answers as it is asked to."""
    await (streams(TEXT) if call.json.get("stream") else answers(response(whole(TEXT))))(call)


TOLD: dict[str, tuple[tuple[int, ...], Callable[[], str], float]] = {
    "seconds": ((429, 500, 503, 408), lambda: "retry-after: 20", 20),
    "fractions": ((429, 503), lambda: "retry-after: 7.25", 7.25),
    "milliseconds": ((429, 503), lambda: "retry-after-ms: 7250", 7.25),
    "date": ((429, 503), lambda: f"retry-after: {email.utils.formatdate(time.time() + 30, usegmt=True)}", 28.5),
    "reset": ((429,), lambda: "x-ratelimit-reset: 7.25", 7.25),
}


@pytest.mark.parametrize(("name", "status"), [(name, status) for name in TOLD for status in TOLD[name][0]])
def test_never_earlier_than_told(name: str, status: int) -> None:
    """Whatever words the server tells it in, and however one asks; nor much later."""
    _, header, retry_after_s = TOLD[name]

    async def main() -> None:
        for kind in ("create", "text"):
            first = answers(refusal(status, header(), *(("x-ratelimit-limit: 1000",) if status == 429 else ())))
            async with (
                Timed(first, good) as server,
                client_of(server, timeouts=UNTIMED) as client,
            ):
                outcome = await ask(client, kind, within=100, alone=False)
                assert outcome.text == TEXT
                assert retry_after_s <= server.gaps[0] < retry_after_s + 2
                (retried,) = outcome.completion.retries
                assert retry_after_s <= retried.waited_s < retry_after_s + 2

    virtual_time.run(main())


@pytest.mark.parametrize("header", ["x-ratelimit-reset: 50", "retry-after: soon\r\nx-ratelimit-reset: 50"])
@pytest.mark.parametrize("status", [408, 500, 503])
def test_a_reset_of_another_status_delays_nothing(status: int, header: str) -> None:
    """Every answer has `x-ratelimit-reset`; it says how long to wait on a 429 alone."""

    async def main() -> None:
        async with (
            Timed(lambda call: call.send(refusal(status, header)), good) as server,
            client_of(server, timeouts=UNTIMED) as client,
        ):
            assert (await ask(client, "create", within=100, alone=False)).text == TEXT
            assert server.gaps[0] < 5

    virtual_time.run(main())


@pytest.mark.parametrize("kind", ["create", "text"])
@pytest.mark.parametrize("code", [429, 503])
def test_what_an_error_under_status_200_told_is_waited_for(code: int, kind: str) -> None:
    """The head of the response that holds it tells, as that of any other."""

    async def main() -> None:
        error = response({"error": {"message": "no", "code": code}}, extra=b"retry-after: 20\r\n")
        async with Timed(answers(error), good) as server, client_of(server, timeouts=UNTIMED) as client:
            assert (await ask(client, kind, within=100, alone=False)).text == TEXT
            assert 20 <= server.gaps[0] < 24

    virtual_time.run(main())


def test_one_header_stops_a_model_neither_for_ever_nor_for_long() -> None:
    """What no service means: a pause of a million years, or a rate of a request a day."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for header in ("retry-after: 1e300", "retry-after: Fri, 31 Dec 9999 23:59:59 GMT"):
            async with (
                ScriptedServer(answers(refusal(429, header)), good) as server,
                client_of(server, timeouts=UNTIMED) as client,
            ):
                assert (await ask(client, "create", alone=False)).error.attempts == 1
                for kind in KINDS:
                    error = (await ask(client, kind, alone=False)).error
                    assert isinstance(error, RateLimitError)
                    assert error.attempts == 0
                assert "paused for" in repr(client.limits)
                assert len(server.calls) == 1
                await asyncio.sleep(1000)
                assert (await ask(client, "text", alone=False)).text == TEXT
        slow = answers(response(whole(TEXT), extra=b"x-ratelimit-limit: 0.00001\r\nx-ratelimit-remaining: 0\r\n"))
        async with ScriptedServer(slow) as server, client_of(server, timeouts=UNTIMED) as client:
            began = loop.time()
            assert [await do_create(client) for _ in range(3)] == [TEXT] * 3
            assert loop.time() - began < 30

    virtual_time.run(main())


@pytest.mark.parametrize("status", [429, 503])
def test_a_long_wait_is_waited_for_by_whoever_allows_it(status: int) -> None:
    """Nobody is too patient to be kept to what the server told."""

    async def main() -> None:
        rules = Retry(base_delay=0.001, max_retry_after=5000)
        headers = ("retry-after: 4000", "x-ratelimit-limit: 1000")
        async with (
            Timed(answers(refusal(status, *headers)), good) as server,
            client_of(server, retry=rules, timeouts=UNTIMED) as client,
        ):
            assert (await ask(client, "create", within=9000, alone=False)).text == TEXT
            assert 4000 <= server.gaps[0] < 4005

    virtual_time.run(main())


@pytest.mark.parametrize("status", [429, 503])
def test_told_longer_than_the_cap_ends_the_call_at_once(status: int) -> None:
    """Nobody sleeps for minutes who did not ask for it; to the cap itself it is waited."""

    async def main() -> None:
        rules = Retry(base_delay=0.001, max_retry_after=40)
        for told, requests in (("40", 2), ("40.01", 1), ("1e300", 1)):
            for kind in KINDS:
                headers = (f"retry-after: {told}", "x-ratelimit-limit: 1000")
                async with (
                    Timed(lambda call, headers=headers: call.send(refusal(status, *headers)), good) as server,
                    client_of(server, retry=rules, timeouts=UNTIMED) as client,
                ):
                    began = asyncio.get_running_loop().time()
                    outcome = await ask(client, kind, within=100, alone=False)
                    took = asyncio.get_running_loop().time() - began
                    assert len(server.calls) == requests
                    if requests == 1:
                        assert outcome.error.retry_after == float(told)
                        assert took < 5
                        check_attempts(outcome, 1, "")
                    else:
                        assert took >= 40

    virtual_time.run(main())


def test_delays_grow_to_their_cap(longest_delays: None) -> None:
    """Twice as long each time, from `base_delay` to `max_delay`; what the server told comes on top."""

    async def main() -> None:
        rules = Retry(attempts=6, base_delay=10, max_delay=35)
        async with Timed(answers(refusal(503))) as server, client_of(server, retry=rules, timeouts=UNTIMED) as client:
            outcome = await ask(client, "create", within=500)
            assert outcome.error.attempts == 6
            assert server.gaps == pytest.approx([10, 20, 35, 35, 35], abs=0.5)
            assert [one.waited_s for one in outcome.error.retries] == pytest.approx(server.gaps, abs=0.5)
            (note,) = notes(outcome.error)
            waits = "; ".join(f"503, waited {seconds} s" for seconds in (10, 20, 35, 35, 35))
            assert re.sub(r"\.\d", "", note) == f"6 attempts ({waits}); Retry.attempts allows no more"

    virtual_time.run(main())


def test_delays_are_anything_from_nothing_to_the_most() -> None:
    """Full jitter: a hundred calls that failed together do not come back together."""

    async def main() -> None:
        rules = Retry(attempts=2, budget=1, base_delay=1000, max_delay=1000)
        async with (
            ScriptedServer(answers(refusal(503))) as server,
            client_of(server, retry=rules, timeouts=UNTIMED, limits=Limits(concurrency=100)) as client,
        ):
            calls = (client.create(PROMPT, model=MODEL) for _ in range(100))
            errors = await asyncio.gather(*calls, return_exceptions=True)
        waited = [error.retries[0].waited_s for error in errors if isinstance(error, TogetherError)]
        assert len(waited) == 100
        assert all(0 <= one < 1005 for one in waited)
        assert min(waited) < 250 < 400 < sum(waited) / 100 < 600 < 750 < max(waited)

    virtual_time.run(main())


def test_the_deadline_over_all_attempts_ends_a_call_at_once(longest_delays: None) -> None:
    """Nobody sleeps past `Timeouts.total`: the call ends with what the last attempt came to, when that is known."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        timeouts = Timeouts(connect=None, total=10)
        # Delays of 1, 2 and 4 s fit into 10 s, one of 8 s does not; nor does what is told, nor a 429's own pause.
        for status, extra, base_delay, ends_at, requests in (
            (503, "x: y", 1.0, 7.0, 4),
            (503, "retry-after: 12", 0.001, 0.0, 1),
            (429, "retry-after: 12", 0.001, 0.0, 1),
            (429, "x: y", 30.0, 0.0, 1),
        ):
            for kind in KINDS:
                headers = (extra, "x-ratelimit-limit: 1000") if status == 429 else (extra,)
                rules = Retry(attempts=9, base_delay=base_delay)
                with case(status, extra, kind):
                    async with (
                        ScriptedServer(answers(refusal(status, *headers))) as server,
                        client_of(server, retry=rules, timeouts=timeouts) as client,
                    ):
                        began = loop.time()
                        outcome = await ask(client, kind, within=100, alone=False)
                        assert outcome.error.status_code == status
                        assert loop.time() - began == pytest.approx(ends_at, abs=0.5)
                        assert outcome.error.attempts == len(server.calls) == requests
                        (note,) = notes(outcome.error)
                        assert note.endswith("Timeouts.total leaves no time for it")

    virtual_time.run(main())


def test_the_deadline_holds_in_the_queue_and_in_the_stream(longest_delays: None) -> None:
    """`Timeouts.total` runs from the call on: what the queue and the attempts took is not there for the stream."""

    async def slow(call: Any) -> None:
        await call.head()
        for _ in range(100):
            await call.chunk(sse(delta("tick ")))
            await asyncio.sleep(1)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        timeouts = Timeouts(connect=None, first_token=None, idle=None, total=20)
        for status in (503, 429):
            refused = answers(refusal(status, "retry-after: 6", "x-ratelimit-limit: 1000"))
            async with (
                ScriptedServer(refused, slow) as server,
                client_of(server, limits=Limits(concurrency=1)) as client,
            ):
                place = await client._limiter.acquire(MODEL)
                loop.call_later(5, client._limiter.driver.release, place)
                began = loop.time()
                outcome = await ask(client, "text", within=100, alone=False, timeouts=timeouts)
                assert loop.time() - began == pytest.approx(20, abs=0.5)
                assert isinstance(outcome.error, StreamTimeoutError)
                assert outcome.error.phase == "total"
                assert 8 <= len(outcome.delivered) <= 10
                assert (outcome.error.attempts, reasons(outcome.error)) == (2, (str(status),))

                place = await client._limiter.acquire(MODEL)
                began = loop.time()
                outcome = await ask(client, "create", within=100, alone=False, timeouts=timeouts)
                client._limiter.driver.release(place)
                assert loop.time() - began == pytest.approx(20, abs=0.5)
                assert isinstance(outcome.error, APITimeoutError)
                assert (outcome.error.phase, outcome.error.attempts) == ("total", 0)

    virtual_time.run(main())


# ----------------------------------------------------------------------------------------------------------- the budget


async def do_create(client: AsyncTogether) -> str:
    return (await client.create(PROMPT, model=MODEL)).text


async def do_completion(client: AsyncTogether) -> str:
    return (await client.stream(PROMPT, model=MODEL).completion()).text


async def do_chunks(client: AsyncTogether) -> str:
    return "".join([chunk.choices[0].delta.content or "" async for chunk in client.stream(PROMPT, model=MODEL)])


async def do_text(client: AsyncTogether) -> str:
    return "".join([text async for text in client.stream(PROMPT, model=MODEL).text()])


async def do_block(client: AsyncTogether) -> str:
    async with client.stream(PROMPT, model=MODEL) as stream:
        return "".join([text async for text in stream.text()])


Deed = Callable[[AsyncTogether], Coroutine[Any, Any, str]]
DEEDS: tuple[Deed, ...] = (do_create, do_chunks, do_text, do_completion, do_block)


async def failures(deed: Deed, client: AsyncTogether, count: int, *, at_once: bool = True) -> list[TogetherError]:
    """The errors of so many calls, each of which fails."""

    async def failure() -> TogetherError:
        try:
            await deed(client)
        except TogetherError as error:
            return error
        raise AssertionError("a call went well")

    async with asyncio.timeout(10_000 if isinstance(asyncio.get_running_loop(), virtual_time.VirtualTimeLoop) else 20):
        if at_once:
            return await asyncio.gather(*(failure() for _ in range(count)))
        return [await failure() for _ in range(count)]


@leaves_nothing
@pytest.mark.parametrize("deed", [do_create, do_completion])
async def test_when_everything_fails_a_thousand_calls_cost_at_most_1200_requests(deed: Deed) -> None:
    """All at once, or one after the other; what was sent is what the errors say, and nobody hangs."""
    rules = Retry(base_delay=0.0001, max_delay=0.001)
    for script, at_once, count in (
        (answers(refusal(503)), True, 1000 if deed is do_create else 200),
        (answers(refusal(503)), False, 200),
        (role_lost, True, 200),
        (role_lost, False, 200),
    ):
        async with ScriptedServer(script) as server, client_of(server, retry=rules) as client:
            errors = await failures(deed, client, count, at_once=at_once)
            assert sum(error.attempts for error in errors) == len(server.calls)
            assert count < len(server.calls) <= 1.2 * count


@leaves_nothing
async def test_a_thousand_calls_to_nobody_try_at_most_1200_connections() -> None:
    """The same where connections are refused."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/v1"
        rules = Retry(base_delay=0.0001, max_delay=0.001)
        async with AsyncTogether(KEY, base_url=url, retry=rules) as client:
            errors = await failures(do_create, client, 1000)
            assert 1000 < sum(error.attempts for error in errors) <= 1200
            assert counted(client) == (0, 0)


@pytest.mark.parametrize("told", ["x: y", "retry-after: 0", "retry-after: 2"])
def test_when_everything_is_limited_60_calls_cost_at_most_72_requests(told: str) -> None:
    """An account that never lets anybody in is asked at the slowest of all paces, with or without a told time."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        rules = Retry(base_delay=0.001, max_delay=0.01)
        async with (
            ScriptedServer(answers(refusal(429, told))) as server,
            client_of(server, retry=rules, timeouts=UNTIMED) as client,
        ):
            began = loop.time()
            errors = await failures(do_create, client, 60)
            assert sum(error.attempts for error in errors) == len(server.calls) <= 72
            assert client.limits.rate_limited == len(server.calls)
            # The slowest rate that is found out is one request in five seconds.
            assert len(server.calls) / (loop.time() - began) < 1

    virtual_time.run(main())


@leaves_nothing
@pytest.mark.parametrize("limits", [Limits(), Limits(concurrency=20)], ids=["unlimited", "20 at once"])
async def test_calls_at_once_have_the_whole_budget(limits: Limits) -> None:
    """A failure in ten is made good for all, whether calls come one by one or all at once."""
    async with emulated(faults=Chance(0.1, Status(503)), retry=attrs.evolve(QUICK, attempts=9), limits=limits) as (
        server,
        client,
    ):
        client._budget = RetryBudget(0.2)
        texts = await asyncio.gather(*(do_create(client) for _ in range(300)))
        assert texts == [TEXT] * 300
        assert 310 < len(server.journal) <= 360


async def role_lost(call: Any) -> None:
    """A response that breaks off before anything was generated."""
    await call.head()
    call.reset()


# ----------------------------------------------------------------------------------------------------- a spending limit


def test_one_402_stops_everybody_who_shares_the_account() -> None:
    """Those that wait, and those that come, get one clear error without a request; streams under way go on."""
    running, pay = asyncio.Event(), asyncio.Event()

    async def stream(call: Any) -> None:
        await call.head()
        await call.chunk(sse(delta("first", role="assistant")))
        await running.wait()
        await call.chunk(say(" and last"))
        await call.send(b"0\r\n\r\n")

    async def refuse(call: Any) -> None:
        await pay.wait()
        await call.send(refusal(402))

    async def main() -> None:
        limiter = clocked(Limits(concurrency=2))
        async with (
            ScriptedServer(stream, refuse, good) as server,
            client_of(server, limits=limiter, timeouts=UNTIMED) as one,
            client_of(server, limits=limiter, timeouts=UNTIMED) as other,
        ):
            texts = one.stream(PROMPT, model=MODEL).text()
            assert await anext(texts) == "first"
            refused = asyncio.create_task(ask(one, "create", alone=False))
            await server.call(1)
            waiting = [asyncio.create_task(ask(c, kind, alone=False)) for c in (one, other) for kind in KINDS]
            await asyncio.sleep(1)
            assert counted(one) == counted(other) == (2, 10)
            pay.set()
            outcome = await refused
            assert isinstance(outcome.error, PaymentRequiredError)
            check_attempts(outcome, 1, "")
            later = [await ask(c, kind, alone=False) for c in (one, other) for kind in KINDS]
            for unsent in (*await asyncio.gather(*waiting), *later):
                assert isinstance(unsent.error, PaymentRequiredError)
                assert unsent.error.attempts == 0
                assert "nothing was sent" in str(unsent.error)
            assert len({str(unsent.error) for unsent in later}) == 1
            assert len({id(unsent.error) for unsent in later}) == 10  # each has a traceback of its own
            assert len(server.calls) == 2
            assert counted(other) == (1, 0)
            assert "402" in (other.limits.stopped or "")
            assert "stopped: 402" in repr(other.limits)
            running.set()
            assert [text async for text in texts] == [" and last"]

            # A minute later one call finds out whether somebody has paid.
            await asyncio.sleep(61)
            assert (await ask(other, "create", alone=False)).text == TEXT
            assert (await ask(one, "create", alone=False)).text == TEXT
            assert one.limits.stopped is None

    virtual_time.run(main())


@leaves_nothing
async def test_an_answer_to_an_earlier_request_does_not_lift_the_stop() -> None:
    """What was sent before the 402 says nothing about the account as it is now."""
    answer = asyncio.Event()

    async def slow(call: Any) -> None:
        await answer.wait()
        await good(call)

    async with ScriptedServer(slow, answers(refusal(402)), good) as server, client_of(server) as client:
        client._limiter = clocked(Limits(concurrency=8))
        earlier = asyncio.create_task(do_create(client))
        await server.call(0)
        assert isinstance((await ask(client, "create", alone=False)).error, PaymentRequiredError)
        answer.set()
        assert await earlier == TEXT
        for kind in KINDS:
            assert (await ask(client, kind, alone=False)).error.attempts == 0
        assert len(server.calls) == 2


@leaves_nothing
@pytest.mark.parametrize("kind", KINDS)
async def test_a_402_within_a_response_stops_as_well(kind: str) -> None:
    """Under status 200, as an error object."""
    body = {"error": {"message": "pay", "code": 402}}

    async def script(call: Any) -> None:
        if not call.json.get("stream"):
            await call.send(response(body))
            return
        await call.head()
        await call.chunk(sse(body), DONE)
        await call.send(b"0\r\n\r\n")

    async with ScriptedServer(script, good) as server, client_of(server) as client:
        assert (await ask(client, kind, alone=False)).error.status_code == 402
        outcome = await ask(client, kind, alone=False)
        assert isinstance(outcome.error, PaymentRequiredError)
        assert outcome.error.attempts == 0
        assert len(server.calls) == 1


def test_a_402_refuses_who_waits_for_another_attempt(longest_delays: None) -> None:
    """A call in its backoff, or in the pause of a 429, is not sent again; the error says what it has cost so far."""

    async def script(call: Any) -> None:
        await call.send(refusal(int(call.json["model"]), "retry-after: 20", "x-ratelimit-limit: 1000"))

    async def main() -> None:
        async with ScriptedServer(script) as server, client_of(server, timeouts=UNTIMED) as client:
            waiting = [
                asyncio.create_task(ask(client, kind, model=model, within=100, alone=False))
                for kind in KINDS
                for model in ("503", "429")
            ]
            await asyncio.sleep(10)
            sent = len(server.calls)
            assert isinstance((await ask(client, "create", model="402", alone=False)).error, PaymentRequiredError)
            for task in waiting:
                error = (await task).error
                assert isinstance(error, PaymentRequiredError)
                assert error.attempts == len(error.retries) <= 1
                assert (error.__cause__ is None) is (error.attempts == 0)
                sent -= error.attempts
            assert sent == 0
            assert len(server.calls) == 7  # each way to ask once, a 429 for all that ask for its model, and the 402

    virtual_time.run(main())


# ---------------------------------------------------------------------------------------------------------------- slots


def most_at_once(server: EmulatorServer) -> int:
    """How many requests were under way at the server at the same time."""
    steps = [(entry.received_at, 1) for entry in server.journal]
    steps += [(entry.ended_at, -1) for entry in server.journal if entry.ended_at is not None]
    return max(itertools.accumulate(step for _, step in sorted(steps)))


@leaves_nothing
@pytest.mark.parametrize("way", WAYS)
async def test_a_slot_is_held_until_its_stream_is_left(way: Callable[[AsyncTogether], Awaitable[None]]) -> None:
    """However streams are left, the server never sees more than three, and afterwards none is counted."""
    async with emulated(ENDLESS.strip(), tokens_per_second=1000, limits=Limits(concurrency=3)) as (server, client):
        await asyncio.gather(*(way(client) for _ in range(7)))
        gc.collect()
        assert counted(client) == (0, 0)
        assert most_at_once(server) == 3
        assert all(entry.client_left for entry in server.journal if entry.ended_at is not None)


@leaves_nothing
@pytest.mark.parametrize(
    ("fault", "whole_ones"),
    [(None, 20), (Cut(after_token=2), 0), (Garbage(after_token=1), 0), (Status(500), 0), (Cut(in_head=9), 0)],
    ids=repr,
)
async def test_a_slot_is_held_until_its_answer_ends(fault: Fault | None, whole_ones: int) -> None:
    """Well or badly, whole or streamed: three at once, and none in the end."""
    faults = [Stall(in_head=0, seconds=0.002), *([] if fault is None else [fault])]
    async with emulated(faults=faults, limits=Limits(concurrency=3), retry=Retry(attempts=1)) as (server, client):
        results = await asyncio.gather(*(deed(client) for deed in DEEDS * 4), return_exceptions=True)
        assert results.count(TEXT) == whole_ones
        assert all(one == TEXT or isinstance(one, TogetherError) for one in results)
        assert counted(client) == (0, 0)
        assert most_at_once(server) == 3
        assert len(server.journal) == 20


@leaves_nothing
async def test_streams_nobody_reads_hold_their_slots_until_their_client_is_closed() -> None:
    """The limiter is another's too: it has the slots back although the streams are still there."""
    limiter = clocked(Limits(concurrency=3))
    async with (
        EmulatorServer(ENDLESS, tokens_per_second=1000) as server,
        client_of(server, limits=limiter) as other,
    ):
        client = AsyncTogether(KEY, base_url=server.base_url, limits=limiter)
        opened = [await client.stream(PROMPT, model=MODEL).__aenter__() for _ in range(3)]
        unread = client.stream(PROMPT, model=MODEL)
        waiting = [asyncio.create_task(anext(other.stream(PROMPT, model=MODEL))) for _ in range(2)]
        queued = asyncio.create_task(ask(client, "text", alone=False))
        await asyncio.sleep(0.02)
        assert counted(client) == counted(other) == (3, 3)
        assert len(server.journal) == 3
        await client.aclose()
        outcome = await queued
        assert isinstance(outcome.error, APIConnectionError)
        assert "closed" in str(outcome.error)
        assert outcome.error.attempts == 0
        await asyncio.gather(*waiting)
        del waiting
        gc.collect()
        assert counted(other) == (0, 0)
        for stream in opened:
            with pytest.raises(StreamConnectionError, match="closed"):
                await anext(stream)
        with pytest.raises(APIConnectionError, match="closed"):
            await anext(unread)
        assert len(server.journal) == 5
        assert counted(other) == (0, 0)


@leaves_nothing
async def test_an_unread_stream_that_is_forgotten_gives_its_slot_back() -> None:
    """Entered and never read; the collector finds it, and who waits goes."""
    async with emulated(ENDLESS, tokens_per_second=1000, limits=Limits(concurrency=1)) as (server, client):
        holder: list[Any] = [await client.stream(PROMPT, model=MODEL).__aenter__()]
        holder.append(holder)
        waiting = asyncio.create_task(anext(client.stream(PROMPT, model=MODEL)))
        await asyncio.sleep(0.01)
        assert counted(client) == (1, 1)
        del holder
        gc.collect()
        await waiting
        del waiting
        assert most_at_once(server) == 1


# -------------------------------------------------------------------------------------------------------------- leaving


class Stepped:
    """Awaits a coroutine, and does something at its n-th suspension.

    Args:
        coroutine: What is awaited.
        at: The suspension, 0 for the first.
        act: What is done, while it waits; with `ready` in the moment in which the wait's result is there already.
            None closes the coroutine, as the garbage collector does.
        ready: See `act`.
    """

    def __init__(
        self, coroutine: Coroutine[Any, Any, Any], at: int, act: Callable[[], Any] | None, *, ready: bool = False
    ) -> None:
        self._coroutine = coroutine
        self._at = at
        self.act = act
        self._ready = ready
        self.suspensions = 0

    @property
    def reached(self) -> bool:
        return self.suspensions > self._at

    def __await__(self) -> Iterator[Any]:
        error: BaseException | None = None
        while True:
            try:
                waited = self._coroutine.send(None) if error is None else self._coroutine.throw(error)
            except StopIteration as end:
                return end.value
            now, self.suspensions = self.suspensions == self._at, self.suspensions + 1
            act = self.act
            if now and act is None:
                self._coroutine.close()
                return None
            if now and act is not None:
                if self._ready and waited is not None:
                    # Before the task's own callback, so that the result is there when the task goes on.
                    waited.add_done_callback(lambda _, act=act: act())
                else:
                    act()
            error = None
            try:
                yield waited
            except BaseException as caught:  # noqa: BLE001 - it is the coroutine's
                error = caught


PLACES = ("in the queue", "in the backoff", "in the pause of a 429", "before the head", "before a token", "in an error")


@contextlib.asynccontextmanager
async def waiting_place(place: str) -> AsyncIterator[tuple[EmulatorServer, AsyncTogether, RateLimiter]]:
    """A client whose next call has to wait, a few milliseconds, at a place."""
    faults: Any = {
        "in the backoff": InTurn(Status(503)),
        "in the pause of a 429": InTurn(refuses(429, **{"retry-after-ms": "3"})),
        "before the head": Stall(in_head=0, seconds=0.002),
        "before a token": Stall(after_token=0, seconds=0.002),
        "in an error": InTurn(Status(503) + Stall(at_byte=20, seconds=0.002)),
    }.get(place)
    limiter = clocked(Limits(concurrency=1))
    async with (
        EmulatorServer(TEXT, faults=faults) as server,
        AsyncTogether(KEY, base_url=server.base_url, limits=limiter, retry=QUICK) as client,
    ):
        if place == "in the queue":
            held = await limiter.acquire(MODEL)
            asyncio.get_running_loop().call_later(0.002, limiter.driver.release, held)
        yield server, client, limiter


async def check_nothing_left(client: AsyncTogether, limiter: RateLimiter, server_goes_on: bool = True) -> None:
    """No place is taken, nobody waits, no timer runs; the next call goes well."""
    held = limiter.state.in_flight
    assert (held, limiter.state.queued) in ((0, 0), (1, 0))
    if server_goes_on:
        client._budget = RetryBudget(1)
        async with asyncio.timeout(5):
            assert await do_text(client) == TEXT
    assert (limiter.state.in_flight, limiter.state.queued) == (0, 0)
    assert limiter.driver.timer is None


@leaves_nothing
@pytest.mark.parametrize("how", ["pending", "ready", "close"])
@pytest.mark.parametrize("place", PLACES)
async def test_cancelled_at_every_suspension(place: str, how: str) -> None:
    """CancelledError comes out as it is, wherever a call waits, and nothing is left behind."""
    for deed in (do_create, do_text):
        for at in itertools.count():
            with case(deed.__name__, f"suspension {at}"):
                async with waiting_place(place) as (_, client, limiter):
                    reached = await cancelled_at(at, how, deed(client))
                    await check_nothing_left(client, limiter)
            if not reached:
                break
        assert at >= 2


async def cancelled_at(at: int, how: str, coroutine: Coroutine[Any, Any, str]) -> bool:
    """Cancels (or closes) a coroutine at its n-th suspension; returns whether there was one."""
    steps = Stepped(coroutine, at, None, ready=how == "ready")

    async def run() -> Any:
        return await steps

    task = asyncio.create_task(run())
    if how != "close":
        steps.act = task.cancel
    await asyncio.wait([task], timeout=5)
    assert task.done(), "it hung"
    if how == "close":
        assert task.exception() is None
    else:
        assert task.cancelled() is steps.reached, "cancellation was swallowed or wrapped"
    assert steps.reached or task.result() == TEXT
    return steps.reached


@leaves_nothing
@pytest.mark.parametrize("ready", [False, True], ids=["pending", "ready"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("who", ["stream", "client"])
async def test_closed_at_every_suspension(who: str, place: str, ready: bool) -> None:
    """Closing the stream, or the client, ends a call wherever it waits with one typed error, at once."""
    for at in itertools.count():
        closings: list[asyncio.Task[None]] = []
        async with waiting_place(place) as (server, client, limiter):
            stream = client.stream(PROMPT, model=MODEL)

            def close(
                client: AsyncTogether = client, stream: Any = stream, closings: list[asyncio.Task[None]] = closings
            ) -> None:
                if who == "client":
                    closings.append(asyncio.create_task(client.aclose()))
                    return
                with contextlib.suppress(StopIteration):
                    stream.aclose().send(None)  # it waits for nothing, so this is all of it

            steps = Stepped(do_read(stream), at, close, ready=ready)
            began = time.monotonic()
            with case(f"suspension {at}"):
                outcome = await steps
                if isinstance(outcome, TogetherError):
                    check_discreet(outcome)
                    assert "closed" in str(outcome)
                    assert outcome.attempts <= 2
                    assert len(outcome.retries) <= 1
                    assert time.monotonic() - began < 1
                    assert steps.reached
                    if place == "in the queue" and at == 0:
                        assert not server.journal, "it was sent although it had been closed"
                else:
                    assert outcome == TEXT
                await asyncio.gather(*closings)
                await asyncio.sleep(0)
                assert limiter.state.queued == 0
                await asyncio.sleep(0.003 if limiter.state.in_flight else 0)
                await check_nothing_left(client, limiter, server_goes_on=who == "stream")
        if not steps.reached:
            break
    assert at >= 2


async def do_read(stream: Any) -> str | TogetherError:
    """What comes of reading a stream."""
    try:
        async with asyncio.timeout(5):
            return "".join([text async for text in stream.text()])
    except TogetherError as error:
        return error


async def head_alone(call: Any) -> None:
    await call.head()
    await call.hang()


async def error_without_end(call: Any) -> None:
    await call.send(refusal(503)[:-10])
    await call.hang()


CLOSED_WHILE: dict[str, tuple[Any, int]] = {
    "in the queue": (None, 0),
    "in the backoff": (answers(refusal(503, "retry-after: 30")), 1),
    "in the pause of a 429": (answers(refusal(429, "retry-after: 30")), 1),
    "before the head": (hangs, 1),
    "before a token": (head_alone, 1),
    "in an error": (error_without_end, 1),
}


@leaves_nothing
@pytest.mark.parametrize("place", CLOSED_WHILE)
async def test_closing_ends_a_long_wait_at_once(place: str) -> None:
    """The client's closing all calls', a stream's its own; the error knows the attempts and why there were several."""
    script, attempts = CLOSED_WHILE[place]
    async with ScriptedServer(script or good) as server:
        for who in ("client", "stream"):
            for kind in KINDS if who == "client" else ("text",):
                limiter = clocked(Limits(concurrency=1))
                client = AsyncTogether(KEY, base_url=server.base_url, limits=limiter, retry=QUICK)
                held = await limiter.acquire(MODEL) if place == "in the queue" else None
                server.calls.clear()
                stream = client.stream(PROMPT, model=MODEL)
                reading = ask(client, kind, alone=False) if who == "client" else do_read(stream)
                task = asyncio.create_task(reading)
                if attempts:
                    await server.call(0)
                await asyncio.sleep(0.01)
                assert not task.done()
                began = time.monotonic()
                await (client if who == "client" else stream).aclose()
                error = await task
                error = error.error if isinstance(error, Outcome) else error
                with case(who, kind):
                    assert time.monotonic() - began < 1
                    assert isinstance(error, APIConnectionError | StreamError)
                    assert "closed" in str(error)
                    assert error.attempts == attempts
                    retried = place in ("in the backoff", "in the pause of a 429")
                    assert len(error.retries) == retried
                    if held is not None:
                        limiter.driver.release(held)
                    assert (limiter.state.in_flight, limiter.state.queued) == (0, 0)
                    assert limiter.driver.timer is None
                await client.aclose()


# ---------------------------------------------------------------------------------------------------------- event loops


def run_and_close(main: Coroutine[Any, Any, None]) -> None:
    """Runs a coroutine in a loop that is then closed, whoever still waits in it."""
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # it would be told of tasks that are dropped
    try:
        loop.run_until_complete(main)
    finally:
        loop.close()


@pytest.mark.parametrize("tidy", [True, False], ids=["asyncio.run", "a loop closed over waiting tasks"])
def test_calls_left_waiting_in_one_loop_do_not_count_in_the_next(tidy: bool) -> None:
    """A place was taken and five waited when the loop ended: in the next one all is free; what was learned stays."""
    limiter = RateLimiter(Limits(concurrency=1))
    left: list[Any] = []

    async def slow(call: Any) -> None:
        await call.send(response(whole(TEXT), extra=b"x-ratelimit-limit: 500\r\n"))

    with threaded(slow, starts_only, slow) as server:

        async def first() -> None:
            client = AsyncTogether(KEY, base_url=server.base_url, limits=limiter)
            await do_create(client)
            stream = client.stream(PROMPT, model=MODEL)
            await anext(stream)
            tasks = [asyncio.create_task(deed(client)) for deed in DEEDS]
            await asyncio.sleep(0)
            assert counted(client) == (1, 5)
            left.extend([client, stream, tasks])

        async def second() -> None:
            async with AsyncTogether(KEY, base_url=server.base_url, limits=limiter) as client:
                async with asyncio.timeout(5):
                    assert await asyncio.gather(*(do_create(client) for _ in range(3))) == [TEXT] * 3
                assert counted(client) == (0, 0)
                assert limiter.state.models[MODEL].server_requests_per_minute == 30_000

        (asyncio.run if tidy else run_and_close)(first())
        assert limiter.state.queued == (0 if tidy else 5)
        asyncio.run(second())
        left[0]._connections.current.discard()
        left.clear()
        gc.collect()
        assert (limiter.state.in_flight, limiter.state.queued) == (0, 0)
        asyncio.run(second())


async def starts_only(call: Any) -> None:
    """One token, and nothing more."""
    await call.head()
    await call.chunk(sse(delta("a", role="assistant")))
    await call.hang()


def test_a_limiter_in_use_in_another_loop_is_an_error_and_not_a_wait() -> None:
    """Two loops at the same time can't share one; the error says so, and nothing was sent."""
    with threaded(starts_only, good) as server:

        async def main() -> None:
            limiter = RateLimiter()
            async with AsyncTogether(KEY, base_url=server.base_url, limits=limiter, retry=QUICK) as client:
                stream = client.stream(PROMPT, model=MODEL)
                await anext(stream)

                def elsewhere() -> TogetherError:
                    async def other() -> TogetherError:
                        async with AsyncTogether(KEY, base_url=server.base_url, limits=limiter, retry=QUICK) as second:
                            return (await ask(second, "create", alone=False)).error

                    return asyncio.run(other())

                error = await asyncio.to_thread(elsewhere)
                assert isinstance(error, APIConnectionError)
                assert "another event loop" in str(error)
                assert (error.attempts, error.retries) == (0, ())
                await stream.aclose()
                assert counted(client) == (0, 0)
                assert await do_create(client) == TEXT

        asyncio.run(main())


# ------------------------------------------------------------------------------------------------ what can be looked at


def test_the_state_is_a_value_that_can_be_read() -> None:
    """What is in flight, queued, learned, paused and counted; two looks at the same are equal, later ones are not."""

    async def main() -> None:
        limiter = clocked(Limits(concurrency=2, requests_per_minute=6000))
        async with (
            ScriptedServer(
                good, starts_only, answers(refusal(503)), answers(refusal(429, "retry-after: 30"))
            ) as server,
            client_of(server, limits=limiter, timeouts=UNTIMED, retry=Retry(attempts=1)) as client,
        ):
            empty = client.limits
            assert empty == LimitsState(concurrency=2)
            assert (empty.sent, empty.rate_limited, empty.overloaded, empty.paused_until) == (0, 0, 0, None)
            await do_create(client)
            stream = client.stream(PROMPT, model=MODEL)
            await anext(stream)
            for _ in range(2):
                await ask(client, "create", alone=False)
            waiting = asyncio.create_task(ask(client, "create", alone=False, within=100))
            await asyncio.sleep(0.01)
            state = client.limits
            model = state.models[MODEL]
            assert (state.in_flight, state.queued, state.sent) == (1, 1, 4)
            assert (state.rate_limited, state.overloaded, state.stopped) == (1, 1, None)
            assert 29 < model.paused_for_s <= 30
            assert state.paused_until == model.paused_until is not None
            for look in (repr(state), repr(limiter)):
                assert "1 of 2 in flight, 1 queued" in look
                assert re.search(r"paused for (29|30)\.\d s", look)
                assert "4 sent, 1 x 429, 1 x 503" in look
                assert PROMPT not in look
                assert KEY not in look
            assert hash(state) == hash(attrs.evolve(state))
            assert state == attrs.evolve(state) == copy.deepcopy(state) == unpickled(state)
            with pytest.raises(attrs.exceptions.FrozenInstanceError):
                state.queued = 0  # type: ignore[misc]
            await stream.aclose()
            await waiting
            assert client.limits != state
            assert state.in_flight == 1

    virtual_time.run(main())


@leaves_nothing
async def test_errors_and_completions_keep_their_history_through_a_pickle() -> None:
    """Attempts, reasons and the added sentence; a copy is equal and knows the same."""
    async with emulated(faults=InTurn(Status(503), Status(500))) as (server, client):
        for kind in KINDS:
            server.faults = InTurn(Status(503), Status(500))
            client._budget = RetryBudget(1)
            completion = (await ask(client, kind)).completion
            for again in (unpickled(completion), copy.copy(completion), copy.deepcopy(completion)):
                assert again == completion
                assert (again.attempts, again.retries) == (3, completion.retries)
                assert reasons(again) == ("503", "500")
        for fault in (Status(503), Status(402), Cut(), Cut(after_token=0), Cut(after_token=1)):
            for kind in ("create", "text"):
                outcome = await asked(server, client, kind, fault)
                again = unpickled(outcome.error)
                assert type(again) is type(outcome.error)
                assert str(again) == str(outcome.error)
                assert (again.attempts, again.retries) == (outcome.error.attempts, outcome.error.retries)
                assert notes(again) == notes(outcome.error)


@leaves_nothing
async def test_a_refusal_to_ask_again_says_why() -> None:
    """Where the table would allow it: the budget, the told time, the deadline; not where nobody wanted it."""
    for options, headers, why in (
        ({"retry": Retry(budget=0)}, {}, "the client's retry budget is used up"),
        ({"retry": QUICK}, {"retry-after": "100"}, "the server's wait is longer than Retry.max_retry_after"),
        (
            {"retry": QUICK, "timeouts": Timeouts(total=9)},
            {"retry-after": "10"},
            "Timeouts.total leaves no time for it",
        ),
        ({"retry": Retry(attempts=1)}, {}, None),
    ):
        async with emulated(faults=Status(503, headers=headers), **options) as (_, client):  # type: ignore[arg-type]
            for kind in KINDS:
                error = (await ask(client, kind)).error
                assert error.attempts == 1
                assert notes(error) == ([] if why is None else [why])
    async with emulated(faults=Status(400)) as (_, client):
        for kind in KINDS:
            assert not any("Retry." in note for note in notes((await ask(client, kind)).error))


# ------------------------------------------------------------------------------------------------------------ the queue


@leaves_nothing
async def test_interactive_calls_go_first_and_batch_is_not_starved() -> None:
    """While both wait one turn in five is the batch's; whoever asks, and in whatever way."""
    async with ScriptedServer(good) as server, client_of(server, limits=Limits(concurrency=1)) as client:
        held = await client._limiter.acquire(MODEL)

        def call(number: int, priority: Any) -> Coroutine[Any, Any, Any]:
            text, options = f"{priority} {number:02}", {"model": MODEL, "priority": priority}
            return client.stream(text, **options).completion() if number % 2 else client.create(text, **options)

        tasks = [asyncio.create_task(call(n, priority)) for priority in ("batch", "interactive") for n in range(12)]
        await asyncio.sleep(0)
        assert counted(client) == (1, 24)
        client._limiter.driver.release(held)
        await asyncio.gather(*tasks)
        order = [call.json["messages"][0]["content"] for call in server.calls]
        kinds = "".join(text[0] for text in order)
        assert kinds.startswith("iiiibiiiib")
        assert kinds == "iiiibiiiibiiii" + "b" * 10
        for priority in ("batch", "interactive"):
            assert [text for text in order if text.startswith(priority)] == [f"{priority} {n:02}" for n in range(12)]


async def test_a_priority_that_is_none_is_refused_before_anything_is_sent() -> None:
    """The error names the value and what is expected."""
    client = AsyncTogether(KEY, base_url="http://127.0.0.1:9/v1")
    with pytest.raises(ValueError, match=r"priority: got 'urgent', expected one of '.*interactive'"):
        client.stream(PROMPT, model=MODEL, priority="urgent")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="priority"):
        await client.create(PROMPT, model=MODEL, priority=None)  # type: ignore[arg-type]


@leaves_nothing
async def test_load_is_shed_at_once() -> None:
    """As many as may wait; one more is refused in the same turn, and a retry keeps the place that it has."""
    limits = Limits(concurrency=1, max_queued=2)
    async with emulated(faults=Stall(in_head=0, seconds=0.005), limits=limits) as (server, client):
        tasks = [asyncio.create_task(deed(client)) for deed in DEEDS[:3]]
        await asyncio.sleep(0)
        assert counted(client) == (1, 2)
        for kind in KINDS:
            outcome = await ask(client, kind, alone=False)
            assert isinstance(outcome.error, QueueFullError)
            assert (outcome.error.attempts, outcome.error.retries) == (0, ())
            assert "2 calls wait and Limits.max_queued is 2" in str(outcome.error)
            assert counted(client) == (1, 2)
        assert await asyncio.gather(*tasks) == [TEXT] * 3
        assert len(server.journal) == 3
        server.faults = InTurn(Status(503))
        first, *others = [asyncio.create_task(deed(client)) for deed in DEEDS[:3]]
        assert await asyncio.gather(first, *others) == [TEXT] * 3


@pytest.mark.parametrize("status", [429, 503])
def test_a_call_that_asks_again_keeps_its_place(status: int) -> None:
    """It comes before those that came later: at once after a pause of all, else as soon as its backoff is over."""

    async def main() -> None:
        first = answers(refusal(status, "retry-after: 20", "x-ratelimit-limit: 1000"))

        async def slow(call: Any) -> None:
            await asyncio.sleep(15)
            await good(call)

        async with (
            ScriptedServer(first, slow) as server,
            client_of(server, limits=Limits(concurrency=1), timeouts=UNTIMED) as client,
        ):
            texts = [f"call {number}" for number in range(5)]
            await asyncio.gather(*(client.create(text, model=MODEL) for text in texts))
            order = [int(call.json["messages"][0]["content"][-1]) for call in server.calls]
            assert order == ([0, 0, 1, 2, 3, 4] if status == 429 else [0, 1, 2, 0, 3, 4])

    virtual_time.run(main())


def test_a_pause_is_not_waited_for_by_whoever_is_less_patient() -> None:
    """Each by its own `max_retry_after`, whether it waits already or comes later; nobody is refused for another's."""

    async def main() -> None:
        limit = ("retry-after: 100", "x-ratelimit-limit: 1000")
        async with (
            ScriptedServer(answers(refusal(429, *limit)), good) as server,
            client_of(server, limits=Limits(concurrency=1), timeouts=UNTIMED) as client,
        ):
            loop = asyncio.get_running_loop()
            began = loop.time()
            patient = attrs.evolve(QUICK, max_retry_after=200)
            calls = [
                asyncio.create_task(ask(client, kind, alone=False, within=500, retry=rules))
                for rules in (QUICK, patient)
                for kind in KINDS
            ]
            refused = [await call for call in calls[:5]]
            assert loop.time() - began < 5
            refused += [await ask(client, kind, alone=False) for kind in KINDS]
            assert [outcome.error.attempts for outcome in refused] == [1] + [0] * 9
            for outcome in refused:
                assert isinstance(outcome.error, RateLimitError)
                assert 95 < outcome.error.retry_after <= 100
            assert [(await call).text for call in calls[5:]] == [TEXT] * 5
            assert loop.time() - began >= 100
            assert len(server.calls) == 6

    virtual_time.run(main())


def test_what_ends_in_the_queue_knows_what_was_sent_before() -> None:
    """A call that was refused once, and waits for its turn again when its time is up."""

    async def main() -> None:
        for timeouts in (Timeouts(queue=7), Timeouts(total=7)):
            async with (
                ScriptedServer(answers(refusal(503))) as server,
                client_of(server, limits=Limits(concurrency=1), timeouts=timeouts) as client,
            ):
                for kind in KINDS:
                    server.calls.clear()
                    rules = Retry(attempts=3, base_delay=1.0)
                    asking = asyncio.create_task(ask(client, kind, alone=False, within=100, retry=rules))
                    await server.call(0)
                    held = await client._limiter.acquire(MODEL)
                    error = (await asking).error
                    client._limiter.driver.release(held)
                    assert isinstance(error, APITimeoutError)
                    assert error.phase == ("queue" if timeouts.queue else "total")
                    assert (error.attempts, reasons(error), len(server.calls)) == (1, ("503",), 1)
                    assert isinstance(error.__cause__, InternalServerError)

    virtual_time.run(main())


def test_the_queue_has_a_timeout_of_its_own() -> None:
    """APITimeoutError with phase queue, and nothing was sent; it is not asked again."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with (
            ScriptedServer(good) as server,
            client_of(server, limits=Limits(concurrency=1), timeouts=Timeouts(queue=7, total=50)) as client,
        ):
            held = await client._limiter.acquire(MODEL)
            began = loop.time()
            for outcome in await asyncio.gather(*(ask(client, kind, within=100, alone=False) for kind in KINDS)):
                assert isinstance(outcome.error, APITimeoutError)
                assert (outcome.error.phase, outcome.error.seconds) == ("queue", 7)
                assert (outcome.error.attempts, outcome.error.retries) == (0, ())
            assert loop.time() - began == pytest.approx(7, abs=0.5)
            client._limiter.driver.release(held)
            assert not server.calls
            assert (await ask(client, "text", alone=False)).text == TEXT

    virtual_time.run(main())


# ------------------------------------------------------------------------------------------------- accounts with a rate


def account_of(rate: Rate | dict[str, Rate]) -> Account:
    """An account on the clock of the running event loop."""
    clock = asyncio.get_running_loop().time
    return Account(per_model=rate, clock=clock) if isinstance(rate, dict) else Account(rate, clock=clock)


@pytest.mark.parametrize(
    ("rate", "count", "within", "most_limited", "clients"),
    [
        (Rate(requests_per_second=60), 200, 4.5, 1, 1),
        (Rate(requests_per_second=60, dynamic=Dynamic(start=0.1)), 200, 27.0, 1, 2),
        (Rate(requests_per_second=60, tokens_per_second=1000), 200, 4.5, 1, 1),
    ],
    ids=["fixed", "dynamic, two clients", "tokens"],
)
@pytest.mark.default_retry
def test_an_account_is_used_in_full_and_not_overdrawn(
    rate: Rate, count: int, within: float, most_limited: int, clients: int
) -> None:
    """A gather of 200 with nothing configured: all succeed, next to none is refused, and the rate is used."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        account, limiter = account_of(rate), clocked()
        async with contextlib.AsyncExitStack() as stack:
            server = await stack.enter_async_context(EmulatorServer(TEXT, account=account))
            sharing = [
                await stack.enter_async_context(AsyncTogether(KEY, base_url=server.base_url, limits=limiter))
                for _ in range(clients)
            ]
            began = loop.time()
            calls = [DEEDS[n % 5](sharing[n % clients]) for n in range(count)]
            assert await asyncio.gather(*calls) == [TEXT] * count
            assert loop.time() - began < within
            assert account.counts().admitted == count
            assert account.counts().limited <= most_limited
            assert limiter.state.rate_limited == account.counts().limited
            assert (limiter.state.in_flight, limiter.state.queued, limiter.state.sent) == (0, 0, len(server.journal))

    virtual_time.run(main())


def test_a_model_that_is_limited_disturbs_no_other() -> None:
    """One 429 pauses all of its model's calls, and not one of another model's."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        faults = ByModel({"limited": InTurn(refuses(429, **{"retry-after": "30"}))})
        async with emulated(faults=faults, timeouts=UNTIMED) as (server, client):
            took: dict[str, list[float]] = {"limited": [], "free": []}

            async def one(model: str, kind: str) -> None:
                began = loop.time()
                assert (await ask(client, kind, model=model, within=500, alone=False)).text == TEXT
                took[model].append(loop.time() - began)

            await one("free", "create")
            first = asyncio.create_task(one("limited", "create"))
            await server.journal.wait(2)
            await asyncio.sleep(0.1)
            state = client.limits
            assert state.models["limited"].paused_for_s > 25
            assert state.models["free"].paused_for_s == 0
            await asyncio.gather(first, *(one(model, kind) for model in took for kind in KINDS for _ in range(3)))
            assert max(took["free"]) < 1
            assert min(took["limited"]) >= 29
            assert max(took["limited"]) < 40
            assert client.limits.rate_limited == 1

    virtual_time.run(main())


# --------------------------------------------------------------------------------------------------------- what it cost


@leaves_nothing
async def test_a_whole_stream_costs_what_the_server_counted() -> None:
    """`stats` has the server's own number, and none before the end."""
    async with emulated() as (_, client):
        for kind in ("chunks", "text"):
            stream = client.stream(PROMPT, model=MODEL)
            assert (stream.stats.total_tokens, stream.stats.estimated) == (None, False)
            async for _ in stream if kind == "chunks" else stream.text():
                assert stream.stats.total_tokens is None
            completion = await stream.completion()
            assert completion.usage is not None
            assert (stream.stats.total_tokens, stream.stats.estimated) == (completion.usage.total_tokens, False)


LEFT = ("break", "aclose", "idle", "total", "client", "reset", "error", "cancel", "silence after the usage")
USAGE = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}


@virtual_time.virtual
@leaves_nothing
@pytest.mark.parametrize("how", LEFT)
async def test_a_stream_that_was_cut_costs_what_was_seen(how: str) -> None:
    """Its tokens and an estimate of the prompt, and it says that this is estimated, whoever cut it."""

    async def script(call: Any) -> None:
        await call.head()
        await call.chunk(*(sse(delta(text)) for text in ("a", "b", "c")))
        if how == "silence after the usage":
            await call.chunk(sse({**delta(), "choices": [], "usage": USAGE}))
        if how == "reset":
            call.reset()
        elif how == "error":
            await call.chunk(sse({"error": {"message": "no", "code": 500}}))
        await call.hang()

    timeouts = Timeouts(
        idle=50 if how in ("idle", "silence after the usage") else 5_000, total=50 if how == "total" else None
    )
    async with ScriptedServer(script) as server, client_of(server, timeouts=timeouts) as client:
        stream = client.stream(PROMPT, model=MODEL)
        three = asyncio.Event()

        async def read(stream: Any = stream) -> None:
            count = 0
            async for _ in stream.text():
                count += 1
                if count == 3:
                    three.set()
                    if how == "break":
                        break

        task = asyncio.create_task(read())
        await three.wait()
        await {"aclose": stream.aclose, "client": client.aclose}.get(how, three.wait)()
        if how == "cancel":
            task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() is (how == "cancel")
        prompt = len(PROMPT) // 4 + 4
        whole_one = how == "silence after the usage"
        stats = stream.stats
        assert (stats.total_tokens, stats.estimated) == ((12, False) if whole_one else (prompt + 3, True))
        assert counted(client) == (0, 0)

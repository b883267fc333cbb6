"""`Call`: which failures are retried, in every way of calling."""

import asyncio
import contextlib
import socket
from collections import Counter
from typing import Any

import attrs
import pytest

from support import virtual_time
from support.calls import (
    QUICK,
    ask_with_faults,
    check_attempts,
    counted,
    emulated,
    leaves_nothing,
    notes,
    reasons,
    refusal,
    refuses,
    retrying_client,
)
from support.servers import DONE, ScriptedServer, answers, delta, response, sse, streams, whole
from support.survival import KEY, KINDS, MODEL, PROMPT, STREAMED, TEXT, TOKENS, ask, case, listening
from together_async import (
    APIConnectionError,
    APITimeoutError,
    AsyncTogether,
    Limits,
    Retry,
    StreamConnectionError,
    Timeouts,
)
from together_async.retry import RetryBudget
from together_async.testing import Account, CloseAfter, Cut, ErrorInStream, Fault, Garbage, InTurn, Rate, Stall, Status

RETRIED = (408, 409, 500, 502, 503, 504, 520, 524, 529)
OTHERS = (400, 401, 402, 403, 404, 405, 406, 410, 413, 415, 418, 422, 425, 431, 451, 501, 505, 507, 521, 522, 525, 599)


@leaves_nothing
@pytest.mark.parametrize("kind", KINDS)
async def test_which_statuses_are_asked_again(kind: str) -> None:
    """Those of the table up to `attempts` times, a 429 at any number; completions and errors know how often and why."""
    async with emulated() as (server, client):
        outcome = await ask_with_faults(server, client, kind, InTurn(*[refuses(429)] * 4))
        assert outcome.text == TEXT
        check_attempts(outcome, 5, "429")
        for status in (*RETRIED, *OTHERS):
            with case(status):
                outcome = await ask_with_faults(server, client, kind, refuses(status))
                assert outcome.error.status_code == status
                check_attempts(outcome, 3 if status in RETRIED else 1, str(status))
                outcome = await ask_with_faults(server, client, kind, InTurn(refuses(status)))
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
    """It is retried if the same failure of a whole response would be; nothing of the broken stream stays."""
    async with emulated(account=Account(Rate(requests_per_second=1000))) as (server, client):
        truth = (await ask_with_faults(server, client, kind, None)).completion
        for name, (fault, reason) in BEFORE_A_TOKEN.items():
            with case(name):
                outcome = await ask_with_faults(server, client, kind, fault)
                assert outcome.error is not None
                check_attempts(outcome, 1 if reason is None else 3, reason or "")
                outcome = await ask_with_faults(server, client, kind, InTurn(fault))
                check_attempts(outcome, 1 if reason is None else 2, reason or "")
                if reason is not None:
                    assert attrs.evolve(outcome.completion, id="", created=0) == attrs.evolve(truth, id="", created=0)


@leaves_nothing
@pytest.mark.parametrize("kind", STREAMED)
async def test_a_stream_that_breaks_after_its_first_token(kind: str) -> None:
    """It is never retried, however it breaks."""
    async with emulated() as (server, client):
        for fault in (
            *(Cut(after_token=1, how=how) for how in ("reset", "close", "chunk", "end")),  # type: ignore[arg-type]  # literals
            *(ErrorInStream(after_token=1, code=code) for code in (*RETRIED, None)),
            Garbage(after_token=1),
        ):
            with case(fault):
                outcome = await ask_with_faults(server, client, kind, fault)
                assert outcome.partial == TOKENS[0]
                check_attempts(outcome, 1, "")


async def role_then_lost(call: Any) -> None:
    """A script that sends the role and no text; then the connection is lost."""
    await call.head()
    await call.chunk(sse(delta("", role="assistant", reasoning="first thoughts")))
    call.reset()


@leaves_nothing
@pytest.mark.parametrize("kind", ["text", "block"])
async def test_what_a_text_reader_has_not_shown_is_asked_again(kind: str) -> None:
    """A role and reasoning are not shown to a reader of texts; nothing of the broken stream is in the completion."""
    async with ScriptedServer(role_then_lost, streams("One", " two")) as server, retrying_client(server) as client:
        outcome = await ask(client, kind)
        assert outcome.text == "One two"
        assert outcome.completion.choices[0].message.reasoning is None
        check_attempts(outcome, 2, "connection lost")
        assert len(server.calls) == 2


@leaves_nothing
async def test_what_a_reader_of_chunks_has_seen_is_not_asked_again() -> None:
    """A chunk with only a role was handed out: a retry would hand out a second one."""
    async with ScriptedServer(role_then_lost, streams("One")) as server, retrying_client(server) as client:
        outcome = await ask(client, "chunks")
        assert isinstance(outcome.error, StreamConnectionError)
        check_attempts(outcome, 1, "")
        assert len(server.calls) == 1


@leaves_nothing
async def test_the_text_of_another_choice_is_asked_again_whole() -> None:
    """A reader of choice 1 has seen nothing of a stream that broke within choice 0; no text of it is kept."""

    async def first(call: Any) -> None:
        await call.head()
        await call.chunk(sse(delta("lost", index=0)))
        call.reset()

    async def second(call: Any) -> None:
        await call.head()
        await call.chunk(*(sse(delta(f"choice {i}", index=i)) for i in (0, 1)))
        await call.chunk(*(sse(delta(index=i, finish="stop")) for i in (0, 1)), DONE)
        await call.send(b"0\r\n\r\n")

    async with ScriptedServer(first, second) as server, retrying_client(server) as client:
        stream = client.stream(PROMPT, model=MODEL, n=2)
        assert [text async for text in stream.text(choice=1)] == ["choice 1"]
        assert [choice.message.content for choice in (await stream.completion()).choices] == ["choice 0", "choice 1"]
        assert (stream.attempts, reasons(stream)) == (2, ("connection lost",))


@leaves_nothing
@pytest.mark.parametrize("how", ["refused", "closed", "reset", "late"])
async def test_a_connection_that_is_not_made_is_tried_again(how: str) -> None:
    """In each way of calling; also when connecting takes too long, since nothing can have been sent yet."""

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
def test_a_timeout_of_the_callers_is_not_asked_again(name: str) -> None:
    """The work was probably being done, and billed; a second request would probably be late as well."""
    fault, timeouts = TIMED_OUT[name]

    async def main() -> None:
        async with emulated(timeouts=timeouts) as (server, client):
            for kind in KINDS if name != "idle" else STREAMED:
                outcome = await ask_with_faults(server, client, kind, fault, within=500)
                assert isinstance(outcome.error, TimeoutError)
                assert outcome.error.phase == name.partition(" ")[0]
                check_attempts(outcome, 1, "")

    virtual_time.run(main())


@leaves_nothing
async def test_a_whole_response_that_breaks_off_is_asked_again() -> None:
    """Nothing of it was handed out. A response that ends regularly but is invalid stays an error."""
    async with emulated() as (server, client):
        for how in ("reset", "close"):
            for fault in (Cut(after_token=2, how=how), Cut(after_token=0, how=how)):  # type: ignore[arg-type]  # literals
                with case(fault):
                    outcome = await ask_with_faults(server, client, "create", fault)
                    check_attempts(outcome, 3, "no connection")
                    outcome = await ask_with_faults(server, client, "create", InTurn(fault))
                    assert outcome.text == TEXT
                    check_attempts(outcome, 2, "no connection")
        for other in (Cut(after_token=2, how="end"), Status(200, "<html>"), Status(200, b"")):
            with case(other):
                check_attempts(await ask_with_faults(server, client, "create", other), 1, "")


@leaves_nothing
@pytest.mark.parametrize("code", [429, 503])
async def test_an_error_under_status_200_is_asked_again_as_one_with_that_status(code: int) -> None:
    """Whole or streamed, it is the same failure, and the limiter counts it."""
    script = answers(response({"error": {"message": "no", "code": code}}, extra=b"x-ratelimit-limit: 1000\r\n"))
    for kind in ("create", "text"):
        good = answers(response(whole(TEXT))) if kind == "create" else streams(TEXT)
        async with ScriptedServer(script, good) as server, retrying_client(server) as client:
            outcome = await ask(client, kind, alone=False)
            assert outcome.text == TEXT
            assert (outcome.completion.attempts, len(server.calls)) == (2, 2)
            assert (client.limits.rate_limited, client.limits.overloaded) == ((1, 0) if code == 429 else (0, 1))


@leaves_nothing
async def test_one_attempt_is_one_request() -> None:
    """`attempts=1` never sends twice after a failure; a 429 is a wait. Also when the connection is lost or stale."""
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
                    outcome = await ask_with_faults(server, client, kind, fault)
                    assert outcome.error is not None
                    check_attempts(outcome, 1, "")
                    assert not notes(outcome.error)
        for kind in KINDS:
            outcome = await ask_with_faults(server, client, kind, InTurn(refuses(429), refuses(429)))
            assert outcome.text == TEXT
            await ask_with_faults(server, client, kind, CloseAfter())
            await asyncio.sleep(0)
            server.journal.clear()
            server.faults = None
            await ask(client, kind)
            assert len(server.journal) <= 1


@leaves_nothing
async def test_a_stale_connection_counts_as_an_attempt() -> None:
    """A request that is sent again because its pooled connection had been closed counts as one of the `attempts`."""
    turns = Counter[int]()

    async def script(call: Any) -> None:
        turns[call.connection.number] += 1
        if turns[call.connection.number] == 1:
            await call.send(refusal(503))
        else:
            call.close()

    async with (
        ScriptedServer(script) as server,
        retrying_client(server, retry=attrs.evolve(QUICK, attempts=4)) as client,
    ):
        for _ in range(6):
            before = len(server.calls)
            client._budget = RetryBudget(1)
            outcome = await ask(client, "create")
            sent = len(server.calls) - before
            assert sent == outcome.error.attempts == len(outcome.error.retries) + 1 == 4

"""`Call`: a 429 that can be waited for is waiting, not failing."""

import asyncio
import re
from typing import Any, Final

import attrs
import pytest

from support import virtual_time
from support.calls import UNTIMED, counted, do_create, good, notes, reasons, refusal, retrying_client
from support.servers import MODEL, Call, ScriptedServer, answers, response
from support.survival import KINDS, TEXT, ask, case
from together_async import Limits, RateLimitError, Retry, StreamAPIError, Timeouts
from together_async.retry import FREE_RETRIES

ONE = Retry(attempts=1)
UNTIL = re.compile(r"for (\d+) s, until \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC, and Retry\.max_retry_after is (\d+) s")
IN_BODY = {"error": {"message": "slow down", "code": 429}}


def limited(retry_after: str = "2") -> Any:
    """A script that refuses with a time to wait, and with the limits of a service that allows much."""
    return answers(refusal(429, f"retry-after: {retry_after}", "x-ratelimit-limit: 1000"))


@pytest.mark.parametrize("kind", KINDS)
def test_one_attempt_waits_for_any_number_of_429s(kind: str) -> None:
    """As `.retries` and `.attempts` show; neither `Retry.attempts` nor the budget pays for it."""

    async def main() -> None:
        async with (
            ScriptedServer(*[limited()] * 9, good) as server,
            retrying_client(server, retry=ONE, timeouts=UNTIMED) as client,
        ):
            outcome = await ask(client, kind, within=900, alone=False)
            assert outcome.text == TEXT
            assert outcome.completion.attempts == len(server.calls) == 10
            assert reasons(outcome.completion) == ("429",) * 9
            assert all(retried.waited_s >= 2 for retried in outcome.completion.retries)
            assert client._budget.left >= FREE_RETRIES
            assert client.limits.rate_limited == 9

    virtual_time.run(main())


@pytest.mark.parametrize("kind", ["create", "text"])
def test_only_the_others_count_as_attempts(kind: str) -> None:
    """Three attempts are three requests that are not answered with 429."""

    async def main() -> None:
        scripts = [limited(), answers(refusal(503)), limited(), limited(), answers(refusal(503)), limited()]
        rules = Retry(attempts=3, budget=1, base_delay=0.01)
        async with (
            ScriptedServer(*scripts, answers(refusal(503))) as server,
            retrying_client(server, retry=rules, timeouts=UNTIMED) as client,
        ):
            error = (await ask(client, kind, within=100, alone=False)).error
            assert error.status_code == 503
            assert (error.attempts, len(server.calls)) == (7, 7)
            assert reasons(error) == ("429", "503", "429", "429", "503", "429")
            (note,) = notes(error)
            assert re.fullmatch(
                r"7 attempts \(429 x 4, waited \d+\.\d s; 503 x 2, waited \d\.\d s\); Retry.attempts allows no more",
                note,
            )

    virtual_time.run(main())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("in_body", [False, True], ids=["a 429", "a 429 in a 200"])
def test_a_longer_pause_fails_at_once_and_says_until_when(in_body: bool, stream: bool) -> None:
    """The call, those that wait in the queue behind it, and those that come later; nothing more is sent."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        extra = b"retry-after: 100\r\nx-ratelimit-limit: 1000\r\n"
        data = response(IN_BODY, extra=extra) if in_body else response(IN_BODY, status=429, extra=extra)
        async with (
            ScriptedServer(answers(data)) as server,
            retrying_client(server, limits=Limits(concurrency=1), timeouts=UNTIMED, retry=Retry()) as client,
        ):
            began = loop.time()
            kind = "text" if stream else "create"
            asking = [asyncio.create_task(ask(client, kind, alone=False)) for _ in range(3)]
            errors = [(await task).error for task in asking] + [(await ask(client, kind, alone=False)).error]
            assert loop.time() - began < 5
            assert [error.attempts for error in errors] == [1, 0, 0, 0]
            assert len(server.calls) == 1
            assert isinstance(errors[0], StreamAPIError if in_body and stream else RateLimitError)
            found = UNTIL.search(str(errors[0]))
            assert found is not None, str(errors[0])
            assert found.groups() == ("100", "60")
            assert str(errors[0]).count("until") == 1
            for error in errors[1:]:
                assert isinstance(error, RateLimitError)
                assert 95 < (error.retry_after or 0) < 100.001  # a difference of times
            assert counted(client) == (0, 0)

    virtual_time.run(main())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("extra", ["x: y", "retry-after: 1", "x-ratelimit-reset: 0"])
def test_no_wait_gives_the_429_at_once(kind: str, extra: str) -> None:
    """`max_retry_after=0`: the server's own words, without a note."""

    async def main() -> None:
        rules = Retry(max_retry_after=0)
        async with (
            ScriptedServer(answers(refusal(429, extra))) as server,
            retrying_client(server, retry=rules, timeouts=UNTIMED) as client,
        ):
            error = (await ask(client, kind, alone=False)).error
            assert isinstance(error, RateLimitError)
            assert (error.attempts, str(error), notes(error)) == (1, "429: no", [])

    virtual_time.run(main())


@pytest.mark.parametrize("kind", ["create", "text"])
@pytest.mark.parametrize("most_s", [5, 60, 900])
def test_a_service_that_names_no_time_is_given_so_long(kind: str, most_s: float) -> None:
    """A 429 without a time, and one inside of a response that looks good: also when it never ends."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for script in (answers(refusal(429)), answers(response(IN_BODY))):
            async with (
                ScriptedServer(script) as server,
                retrying_client(server, retry=Retry(max_retry_after=most_s), timeouts=UNTIMED) as client,
            ):
                began = loop.time()
                error = (await ask(client, kind, within=3_000, alone=False)).error
                assert most_s <= loop.time() - began < most_s + 15
                assert "has refused everything for " in str(error)
                assert error.status_code == 429
                assert error.attempts == len(server.calls) < 12 * most_s
                (note,) = notes(error)
                assert note.startswith(f"{error.attempts} attempts (")
                assert len(note) < 120

    virtual_time.run(main())


@pytest.mark.parametrize("kind", ["create", "text"])
@pytest.mark.parametrize("in_body", [False, True], ids=["a 429", "a 429 in a 200"])
def test_a_service_that_names_the_times_is_given_15_minutes(in_body: bool, kind: str) -> None:
    """And the error names that bound."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        script = answers(response(IN_BODY, extra=b"retry-after: 20\r\n")) if in_body else limited("20")
        async with (
            ScriptedServer(script) as server,
            retrying_client(server, retry=Retry(max_retry_after=60), timeouts=UNTIMED) as client,
        ):
            began = loop.time()
            error = (await ask(client, kind, within=3_000, alone=False)).error
            assert 900 < loop.time() - began < 930
            assert str(error).endswith("s, and a service that names the times to wait is given 900 s")
            assert error.status_code == 429

    virtual_time.run(main())


PRIORITIES: Final = [
    ("interactive", None, 60),
    ("batch", None, 900),
    ("interactive", Retry(max_retry_after=5), 5),
    ("batch", Retry(max_retry_after=5), 5),
]


@pytest.mark.parametrize(("priority", "own", "most_s"), PRIORITIES)
def test_the_longest_wait_is_that_of_the_priority(priority: Any, own: Retry | None, most_s: float) -> None:
    """Wherever the call comes from; a `Retry` of the call's own holds as it is."""

    async def main() -> None:
        for pause_s in (most_s, most_s + 1):
            for kind in ("create", "stream", "map"):
                with case(f"{kind}, {pause_s} s"):
                    async with (
                        ScriptedServer(limited(str(pause_s)), good) as server,
                        retrying_client(server, retry=Retry(), timeouts=UNTIMED) as client,
                    ):
                        options: Any = {"model": MODEL, "priority": priority, "retry": own}
                        if kind == "map":
                            (result,) = [result async for result in client.map(["hi"], **options)]
                            error: Any = result.error
                        else:
                            error = None
                            try:
                                if kind == "create":
                                    await client.create("hi", **options)
                                else:
                                    await client.stream("hi", **options).completion()
                            except RateLimitError as caught:
                                error = caught
                        assert isinstance(error, RateLimitError) is (pause_s > most_s)

    virtual_time.run(main())


@pytest.mark.parametrize("kind", ["create", "text"])
def test_an_error_429_inside_of_a_response_waits_like_one_outside(kind: str) -> None:
    """By status 200 with a time or without one, as long as nothing was handed out."""

    async def main() -> None:
        timed = answers(response(IN_BODY, extra=b"retry-after: 20\r\n"))
        silent = answers(response(IN_BODY))
        async with (
            ScriptedServer(timed, silent, timed, good) as server,
            retrying_client(server, retry=ONE, timeouts=UNTIMED) as client,
        ):
            outcome = await ask(client, kind, within=200, alone=False)
            assert outcome.text == TEXT
            assert (outcome.completion.attempts, len(server.calls)) == (4, 4)
            assert [retried.waited_s >= 20 for retried in outcome.completion.retries] == [True, False, True]
            assert client._budget.left >= FREE_RETRIES

    virtual_time.run(main())


@pytest.mark.parametrize("name", ["queue", "total"])
def test_a_time_limit_is_that_of_the_whole_wait(name: str) -> None:
    """It goes on over 429s, and a pause that does not fit into it ends the call at once."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        timeouts = attrs.evolve(UNTIMED, **{name: 7.0})
        for kind in KINDS:
            with case(kind):
                async with (
                    ScriptedServer(limited("3")) as server,
                    retrying_client(server, timeouts=timeouts, retry=Retry()) as client,
                ):
                    began = loop.time()
                    error = (await ask(client, kind, within=100, alone=False)).error
                    assert isinstance(error, RateLimitError)
                    assert 6 <= loop.time() - began < 7
                    assert error.attempts == len(server.calls) == 3
                    assert str(error).endswith(f"Timeouts.{name} leaves no time for that")

    virtual_time.run(main())


def test_the_wait_begins_anew_after_another_failure() -> None:
    """`Timeouts.queue` is for the wait for one turn, and a 503 has had its turn."""

    async def main() -> None:
        scripts = [limited("5"), answers(refusal(503)), limited("5"), good]
        timeouts = Timeouts(connect=None, first_token=None, idle=None, queue=7)
        async with (
            ScriptedServer(*scripts) as server,
            retrying_client(server, timeouts=timeouts, retry=Retry(base_delay=0.01)) as client,
        ):
            assert await do_create(client) == TEXT
            assert len(server.calls) == 4

    virtual_time.run(main())


def test_a_refused_call_keeps_its_place() -> None:
    """However often it is refused, later calls are sent after it."""
    refused = 0

    async def script(call: Call) -> None:
        nonlocal refused
        if call.json["messages"][0]["content"] == "call 0" and refused < 5:
            refused += 1
            await limited("10")(call)
        else:
            await good(call)

    async def main() -> None:
        async with (
            ScriptedServer(script) as server,
            retrying_client(server, limits=Limits(concurrency=1), timeouts=UNTIMED, retry=ONE) as client,
        ):
            await asyncio.gather(*(client.create(f"call {number}", model=MODEL) for number in range(4)))
            order = [int(call.json["messages"][0]["content"][-1]) for call in server.calls]
            assert order == [0] * 6 + [1, 2, 3]

    virtual_time.run(main())


def test_leaving_ends_the_wait() -> None:
    """A cancellation, and the end of the client: at once, and nothing is left."""

    async def main() -> None:
        async with (
            ScriptedServer(limited("50")) as server,
            retrying_client(server, timeouts=UNTIMED, retry=ONE) as client,
        ):
            tasks = [asyncio.create_task(do_create(client)) for _ in range(2)]
            await asyncio.sleep(1)
            assert client.limits.queued == 2
            tasks[0].cancel()
            with pytest.raises(asyncio.CancelledError):
                await tasks[0]
            assert client.limits.queued == 1
            await client.aclose()
            with pytest.raises(Exception, match="closed") as caught:
                await tasks[1]
            assert getattr(caught.value, "attempts", 0) == 1
            assert len(server.calls) == 2

    virtual_time.run(main())

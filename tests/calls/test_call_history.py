"""`Call`: the state of the limits, and the attempts that errors and completions remember."""

import asyncio
import copy
import re

import attrs
import pytest

from support import virtual_time
from support.calls import (
    QUICK,
    UNTIMED,
    ask_with_faults,
    clocked,
    do_create,
    emulated,
    good,
    leaves_nothing,
    notes,
    reasons,
    refusal,
    retrying_client,
    starts_only,
    unpickled,
)
from support.servers import ScriptedServer, answers
from support.survival import KEY, KINDS, MODEL, PROMPT, ask
from together_async import Limits, LimitsState, Retry, Timeouts
from together_async.retry import RetryBudget
from together_async.testing import Cut, InTurn, Status


def test_the_state_is_a_value_that_can_be_read() -> None:
    """What is in flight, queued, learned, paused and counted; equal to a copy, and not to a later state."""

    async def main() -> None:
        limiter = clocked(Limits(concurrency=2, requests_per_minute=6000))
        async with (
            ScriptedServer(
                good, starts_only, answers(refusal(503)), answers(refusal(429, "retry-after: 30")), good
            ) as server,
            retrying_client(server, limits=limiter, timeouts=UNTIMED, retry=Retry(attempts=1)) as client,
        ):
            empty = client.limits
            assert empty == LimitsState(concurrency=2)
            assert (empty.sent, empty.rate_limited, empty.overloaded, empty.paused_until) == (0, 0, 0, None)
            await do_create(client)
            stream = client.stream(PROMPT, model=MODEL)
            await anext(stream)
            await ask(client, "create", alone=False)
            waiting = asyncio.create_task(ask(client, "create", alone=False, within=100))
            await asyncio.sleep(0.1)  # it is refused, and waits
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
                state.queued = 0  # type: ignore[misc]  # frozen, as tested
            await stream.aclose()
            await waiting
            assert client.limits != state
            assert state.in_flight == 1

    virtual_time.run(main())


@leaves_nothing
async def test_errors_and_completions_keep_their_history_through_a_pickle() -> None:
    """Attempts, reasons and the note; a copy is equal and has the same."""
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
                outcome = await ask_with_faults(server, client, kind, fault)
                again = unpickled(outcome.error)
                assert type(again) is type(outcome.error)
                assert str(again) == str(outcome.error)
                assert (again.attempts, again.retries) == (outcome.error.attempts, outcome.error.retries)
                assert notes(again) == notes(outcome.error)


@leaves_nothing
async def test_a_refusal_to_ask_again_says_why() -> None:
    """The budget, the server's wait or the deadline forbade a retry; nothing is said if retries are off."""
    for options, headers, why in (
        ({"retry": Retry(budget=0)}, {}, "the client's retry budget is used up"),
        (
            {"retry": QUICK},
            {"retry-after": "100"},
            "the service asks for a wait of 100 s, until DATE UTC, and Retry.max_retry_after is 60 s",
        ),
        (
            {"retry": QUICK, "timeouts": Timeouts(total=9)},
            {"retry-after": "10"},
            "Timeouts.total leaves no time for another attempt",
        ),
        ({"retry": Retry(attempts=1)}, {}, None),
    ):
        async with emulated(faults=Status(503, headers=headers), **options) as (_, client):  # type: ignore[arg-type]  # of mixed types
            for kind in KINDS:
                error = (await ask(client, kind)).error
                assert error.attempts == 1
                said = [re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "DATE", note) for note in notes(error)]
                assert said == ([] if why is None else [why])
    async with emulated(faults=Status(400)) as (_, client):
        for kind in KINDS:
            assert not any("Retry." in note for note in notes((await ask(client, kind)).error))

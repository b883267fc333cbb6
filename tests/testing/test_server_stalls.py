"""Stalls and their release, and the pace of streams."""

from __future__ import annotations

import time

import pytest

from support.raw_client import TEXT, Client, ask, plain, post, same
from support.virtual_time import lasts, virtual
from together_async.testing import (
    EmulatorServer,
    Model,
    Stall,
    Status,
)

pytestmark = pytest.mark.usefixtures("no_leaks")


@virtual
@pytest.mark.parametrize(
    ("fault", "tokens"),
    [(Stall(), 0), (Stall(in_head=20), 0), (Stall(after_token=0), 0), (Stall(after_token=2), 2), (Stall(at_byte=1), 0)],
    ids=repr,
)
async def test_a_stall_is_silence_until_it_is_released(fault, tokens):
    """What comes before is out, the connection open; `release` brings the rest."""
    _, events = await plain(stream=True)
    async with EmulatorServer(TEXT, faults=fault) as server, await Client.to(server) as client:
        client.writer.write(post(stream=True))
        got = await client.silence()
        entry = server.journal[0]
        assert (entry.outcome, entry.tokens_written) == ("open", tokens)
        _, _, sent = got.partition(b"\r\n\r\n")
        if fault.in_head is not None or fault == Stall():
            assert len(got) == (fault.in_head or 0)
        elif fault.at_byte:
            assert sent == b"1\r\nd\r\n"
        else:
            assert same(sent.partition(b"\r\n")[2]).rstrip() == same(b"".join(events[:tokens])).rstrip()
        server.release()
        rest = await client.reader.readuntil(b"0\r\n\r\n")
        assert rest.endswith(b"0\r\n\r\n")
        await entry.wait_ended()
        assert (entry.outcome, entry.tokens_written) == ("complete", 4)


async def test_a_stall_ends_by_itself():
    """After its seconds, at least."""
    async with EmulatorServer(TEXT, faults=Stall(after_token=1, seconds=0.1)) as server:
        before = time.monotonic()
        assert (await ask(server, post(stream=True))).text == TEXT
        assert time.monotonic() - before >= 0.1


@virtual
async def test_two_stalls_are_released_one_by_one():
    """`release` ends those that responses are in now."""
    async with (
        EmulatorServer(TEXT, faults=Stall(after_token=1) + Stall(after_token=3)) as server,
        await Client.to(server) as client,
    ):
        client.writer.write(post(stream=True))
        await client.silence()
        assert server.journal[0].tokens_written == 1
        server.release()
        await client.silence()
        assert server.journal[0].tokens_written == 3
        server.release()
        await server.journal[0].wait_ended()


async def test_release_where_nothing_stalls_does_nothing():
    """Neither to an idle connection nor to a pace."""
    async with EmulatorServer(TEXT, first_token_s=0.1) as server, await Client.to(server) as client:
        before = time.monotonic()
        client.writer.write(post(stream=True))
        await server.journal.wait()
        server.release()
        assert (await client.answer()).text == TEXT
        assert time.monotonic() - before >= 0.1
        server.release()


async def test_pings_while_it_stalls():
    """One each so many seconds, whole ones, until released."""
    _, events = await plain(stream=True)
    async with (
        EmulatorServer(TEXT, faults=Stall(after_token=1, ping_every=0.01)) as server,
        await Client.to(server) as client,
    ):
        client.writer.write(post(stream=True))
        got = await client.reader.readuntil(b": ping\n\n\r\n8\r\n: ping\n\n\r\n8\r\n: ping\n\n\r\n")
        assert same(got.partition(b"\r\n\r\n")[2].partition(b"\r\n")[2]).startswith(same(events[0]))
        server.release()
        await client.reader.readuntil(b"0\r\n\r\n")
        assert server.journal[0].outcome == "complete"


@virtual
async def test_a_stall_with_pings_ends_by_itself():
    """As many pings as fit."""
    async with EmulatorServer(TEXT, faults=Stall(after_token=1, seconds=2, ping_every=0.4)) as server:
        answer = await ask(server, post(stream=True))
    assert 1 <= answer.body.count(b": ping\n\n") <= 5


@pytest.mark.parametrize(
    "fault",
    [Stall(after_token=1, seconds=0.05, ping_every=0), Stall(after_token=1, seconds=0.05, ping_every=30.0)],
    ids=repr,
)
async def test_a_stall_lasts_as_long_as_it_says_whatever_its_pings(fault):
    """Without a pause between them, and with a longer one than the stall."""
    async with EmulatorServer(TEXT, faults=fault) as server:
        assert (await ask(server, post(stream=True))).body.endswith(b"[DONE]\n\n")


async def test_speed_and_time_to_first_token():
    """Not before: the first token after its seconds, the others 1/speed apart; a whole response all together."""
    async with EmulatorServer(TEXT, tokens_per_second=50, first_token_s=0.1) as server:
        before = time.monotonic()
        async with await Client.to(server) as client:
            client.writer.write(post(stream=True))
            await client.reader.readuntil(b'"content":"one"')
            first = time.monotonic() - before
            await client.reader.readuntil(b"0\r\n\r\n")
            last = time.monotonic() - before
        assert first >= 0.1
        assert last - 0.1 >= 3 / 50 - 0.01
        before = time.monotonic()
        await ask(server, post())
        assert time.monotonic() - before >= 0.1 + 4 / 50


@virtual
async def test_choices_are_generated_side_by_side():
    """Four choices of ten tokens take as long as one, not four times that."""
    async with EmulatorServer(" x" * 10, tokens_per_second=5) as server:
        with lasts((4 * 10 - 1) / (4 * 5)):  # each choice begins a quarter of a token after the one before
            await ask(server, post(stream=True, n=4))


async def test_the_pace_may_be_a_models_own():
    """In place of the server's; jitter moves the tokens, and not their number."""
    models = [Model("slow", first_token_s=0.1), Model("m", tokens_per_second=1e6)]
    async with EmulatorServer(TEXT, models=models, tokens_per_second=1e3, jitter=1.0) as server:
        before = time.monotonic()
        assert (await ask(server, post(stream=True, model="slow"))).text == TEXT
        assert time.monotonic() - before >= 0.1
        assert (await ask(server, post(stream=True))).text == TEXT


@pytest.mark.parametrize("speed", [0, -1, float("nan")])
async def test_a_speed_that_cannot_be_is_a_value_error(speed):
    """None is for no limit."""
    with pytest.raises(ValueError, match=r"tokens_per_second: got .*, expected more than 0, or None"):
        EmulatorServer(tokens_per_second=speed)


@pytest.mark.parametrize(
    "arguments",
    [{"jitter": 3}, {"first_token_s": -1}, {"replay_speed": 0}, {"journal_size": -1}, {"port": -4}],
    ids=lambda arguments: next(iter(arguments)),
)
async def test_other_numbers_that_cannot_be_are_value_errors(arguments):
    """Name, value and expectation."""
    with pytest.raises(ValueError, match=f"{next(iter(arguments))}: got"):
        EmulatorServer(**arguments)


@virtual
async def test_a_status_takes_no_time_of_the_model():
    """A whole response that is refused comes at once, as a stream does."""
    async with EmulatorServer(TEXT, first_token_s=500, faults=Status(429)) as server:
        with lasts(0):
            await ask(server, post())

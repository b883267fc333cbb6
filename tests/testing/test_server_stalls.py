"""Stalls, their pings and their release."""

from __future__ import annotations

import time

import pytest

from support.raw_client import TEXT, Client, ask, plain, post, same
from support.virtual_time import virtual
from together_async.testing import (
    EmulatorServer,
    Stall,
)

pytestmark = pytest.mark.usefixtures("no_leaks")


@virtual
@pytest.mark.parametrize(
    ("fault", "tokens"),
    [(Stall(), 0), (Stall(in_head=20), 0), (Stall(after_token=0), 0), (Stall(after_token=2), 2), (Stall(at_byte=1), 0)],
    ids=repr,
)
async def test_a_stall_is_silence_until_it_is_released(fault, tokens):
    """The part before it has arrived, the connection is open; `release` brings the rest."""
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
        remaining = await client.reader.readuntil(b"0\r\n\r\n")
        assert remaining.endswith(b"0\r\n\r\n")
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
    """A whole ping at each interval, until released."""
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

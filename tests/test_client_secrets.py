"""`AsyncTogether`: neither key nor prompt shows in errors, logs and reprs."""
# ruff: noqa: SIM117 - a server and its client, one inside the other, read better than a tuple of both

import asyncio
import copy
import logging
import pickle
import socket
import traceback
from typing import Any

import pytest

from support.clients import client_of, served, text_of
from support.scripts import JSON_HEAD, stalls
from support.servers import KEY, MODEL, Call, Script, ScriptedServer, answers, response, starts_and_hangs, streams
from support.virtual_time import virtual
from together_async import (
    APIConnectionError,
    APIStatusError,
    AsyncTogether,
    BadRequestError,
    InternalServerError,
    Timeouts,
    TogetherError,
)

pytestmark = pytest.mark.usefixtures("no_leaks")

PROMPT = "the secret plans of the company"


async def test_the_key_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Not at DEBUG, not in asyncio's debug mode, not in the repr of anything that a request goes through."""
    caplog.set_level(logging.DEBUG)
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = 0.0
    try:
        async with ScriptedServer(streams("a"), answers(response(b"", status=500))) as server:
            async with client_of(server) as client:
                await text_of(client)
                with pytest.raises(InternalServerError):
                    await client.create("Hi", model=MODEL)
                assert KEY not in repr(client) + repr(client._connections.current) + repr(
                    vars(client._connections.current)
                )
    finally:
        loop.set_debug(False)
    mine = [record.getMessage() for record in caplog.records if "test_client_secrets" not in record.getMessage()]
    assert mine
    assert all(KEY not in message for message in mine)


def all_shown(error: BaseException) -> str:
    """All that a log or a crash reporter could show of an error: texts, reprs, tracebacks with the package's locals."""
    texts = []
    seen: list[BaseException] = []
    pending: list[BaseException | None] = [error]
    while pending:
        shown_error = pending.pop()
        if shown_error is None or shown_error in seen:
            continue
        seen.append(shown_error)
        pending += [shown_error.__cause__, shown_error.__context__]
        texts += [str(shown_error), repr(shown_error), repr(shown_error.args)]
        if isinstance(shown_error, TogetherError):
            texts.append(repr({name: value for name, value in vars(shown_error).items() if name != "body"}))
        shown = traceback.TracebackException.from_exception(shown_error, capture_locals=True)
        texts += [repr(frame.locals) for frame in shown.stack if frame.filename != __file__]
    return "\n".join(texts)


@virtual
@pytest.mark.parametrize(
    "script",
    [
        answers(response({"error": {"message": "no"}}, status=401)),
        answers(response(b"", status=500)),
        answers(response(b"{", status=200)),
        answers(b"nonsense\r\n\r\n"),
        answers(response(b"", status=307, extra=b"location: file:///x\r\n")),
        stalls(),
        stalls(JSON_HEAD),
        starts_and_hangs,
    ],
)
async def test_no_error_shows_the_key(script: Script) -> None:
    """No error, cause, traceback with locals shows the key or the prompt."""
    for stream in (False, True):
        async with served(script, timeouts=Timeouts(first_token=100, idle=100), headers={"x-api-key": KEY}) as (
            _,
            client,
        ):
            with pytest.raises(TogetherError) as caught:  # noqa: PT012 - either way raises it
                if stream:
                    await client.stream(PROMPT, model=MODEL).completion()
                else:
                    await client.create(PROMPT, model=MODEL)
            shown = all_shown(caught.value)
            assert KEY not in shown
            assert caught.value.__cause__ is not caught.value


async def test_a_refused_connection_does_not_show_the_key() -> None:
    """aiohttp's errors from connecting do not show it either."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with AsyncTogether(KEY, base_url=f"http://127.0.0.1:{port}/v1") as client:
        with pytest.raises(APIConnectionError) as caught:
            await client.create(PROMPT, model=MODEL)
    assert KEY not in all_shown(caught.value)


ECHOES = [
    {"error": {"message": f"invalid key {KEY}"}},
    {"error": {"message": f"cannot process {PROMPT!r}"}},
    {"error": f"{KEY} {PROMPT}"},
    {"detail": [{"loc": ["body", "messages", 0], "msg": f"bad: {PROMPT}", "input": PROMPT}]},
]


@pytest.mark.parametrize("status", [200, 400, 401, 422, 500])
@pytest.mark.parametrize("body", ECHOES)
async def test_what_a_server_echoes_is_redacted(status: int, body: Any) -> None:
    """Servers repeat keys and prompts in their errors; our texts do not."""
    async with served(answers(response(body, status=status))) as (_, client):
        with pytest.raises(APIStatusError) as caught:
            await client.create([{"role": "user", "content": [{"type": "text", "text": PROMPT}]}], model=MODEL)
    assert KEY not in str(caught.value)
    assert PROMPT not in str(caught.value)
    assert KEY not in repr(caught.value)


async def test_a_prompt_that_is_echoed_as_json_is_redacted() -> None:
    """A plain-text error that quotes the request's JSON shows the prompt escaped; that is redacted too."""
    prompt = 'the "secret" plans\nof the company'

    async def script(call: Call) -> None:
        await call.send(response(b"cannot parse " + call.body, status=400, media_type="text/plain"))

    async with served(script) as (_, client):
        with pytest.raises(BadRequestError) as caught:
            await client.create(prompt, model=MODEL)
    assert "plans" not in str(caught.value)


async def test_a_location_that_repeats_the_key() -> None:
    """The note on a redirect that was not followed shows the origin alone."""
    location = f"location: http://h.invalid/?key={KEY}\r\n".encode()
    async with served(answers(response(b"", status=303, extra=location))) as (_, client):
        with pytest.raises(APIStatusError, match=r"http://h\.invalid was not followed") as caught:
            await client.create(PROMPT, model=MODEL)
    assert KEY not in str(caught.value)


async def test_a_client_shows_nothing_and_can_not_be_copied() -> None:
    """repr, pickle, copy."""
    async with served(streams("a"), headers={"x-secret": "hunter22"}) as (_, client):
        await client.stream(PROMPT, model=MODEL).completion()
        shown = repr(client) + repr(vars(client)) + repr(client.chat) + repr(client.chat.completions)
        assert KEY not in shown
        assert "hunter22" not in shown
        for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="key"):
                attempt(client)


async def test_logs_at_debug_show_neither_key_nor_prompt(caplog: pytest.LogCaptureFixture) -> None:
    """Errors included."""
    caplog.set_level(logging.DEBUG)
    async with served(streams("a"), answers(response(b"x", status=500)), answers(b"nonsense\r\n\r\n")) as (_, client):
        await client.stream(PROMPT, model=MODEL).completion()
        for _ in range(2):
            with pytest.raises(TogetherError):
                await client.create(PROMPT, model=MODEL)
    assert KEY not in caplog.text
    assert PROMPT not in caplog.text

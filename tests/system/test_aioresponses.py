"""Whole responses mocked with aioresponses: what it lacks on the installed aiohttp, and our client on top of it."""

from __future__ import annotations

import importlib.metadata
import json
import re
from functools import partial
from typing import Any

import aiohttp
import pytest
from aioresponses import CallbackResult, aioresponses
from yarl import URL

from together_async import (
    APIConnectionError,
    APITimeoutError,
    AsyncTogether,
    AuthenticationError,
    IncompleteStreamError,
    InternalServerError,
    RateLimitError,
    Timeouts,
    TogetherError,
    pytest_plugin,
)
from together_async.testing import EmulatorServer

KEY, MODEL, BASE = "some-key", "some/model", "https://api.example/v1"
CHAT = f"{BASE}/chat/completions"
WHOLE = {
    "id": "r-1",
    "object": "chat.completion",
    "created": 1,
    "model": MODEL,
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Blue"}, "finish_reason": "stop"}],
}
pytest_plugins = ["pytester"]
pytestmark = pytest.mark.usefixtures("no_leaks")


def stream_of(*texts: str, done: bool = True) -> str:
    """The body of a stream: a chunk for each text, the last with the finish reason when it is done."""
    chunks = [
        {
            "id": "r-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": MODEL,
            "choices": [
                {
                    "index": 0,
                    "delta": {"role": "assistant", "content": text},
                    "finish_reason": "stop" if done and text is texts[-1] else None,
                }
            ],
        }
        for text in texts
    ]
    end = "data: [DONE]\n\n" if done else ""
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + end


# ------------------------------------------------------------------------------------------------------------ the patch


async def test_the_patch_is_still_needed() -> None:
    """aioresponses by itself can't answer on this aiohttp. The day it can, this test says what to remove."""
    version = importlib.metadata.version("aioresponses")
    try:
        with aioresponses() as mock:
            mock.get(BASE)
            async with aiohttp.ClientSession() as session, session.get(BASE):
                pass
    except TypeError as error:
        assert "stream_writer" in str(error)  # noqa: PT017 - no error is the interesting case
        return
    pytest.fail(
        f"aioresponses {version} works with aiohttp {aiohttp.__version__} by itself. Remove _lacks_stream_writer and "
        "the body of together_aioresponses_patch from pytest_plugin.py (keep the fixture, which people's tests name), "
        f"and the tests of the patch here; ask for aioresponses>={version} in pyproject.toml's test extra."
    )


def init_defaults() -> Any:
    return aiohttp.ClientResponse.__init__.__kwdefaults__


def test_it_is_undone(pytester: pytest.Pytester) -> None:
    """aiohttp is changed during a test that asked for it, and as before in the next."""
    pytester.makepyfile(
        """
        import aiohttp

        def test_with(together_aioresponses_patch):
            assert aiohttp.ClientResponse.__init__.__kwdefaults__["stream_writer"].output_size == 0

        def test_after():
            assert aiohttp.ClientResponse.__init__.__kwdefaults__ is None
        """
    )
    options = ("-p", "no:cacheprovider", "-p", "no:asyncio", "-p", "no:anyio", "-W", "error")
    pytester.runpytest_inprocess(*options).assert_outcomes(passed=2)
    assert init_defaults() is None


def test_where_it_is_not_needed_nothing_is_patched(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An aioresponses that can make a response by itself is left alone."""
    able = {"stream_writer": object()}
    monkeypatch.setattr(aiohttp.ClientResponse, "__init__", lambda self, method, url, **arguments: None)
    monkeypatch.setattr(aiohttp.ClientResponse.__init__, "__kwdefaults__", able)
    assert not pytest_plugin._lacks_stream_writer()
    request.getfixturevalue("together_aioresponses_patch")
    assert init_defaults() is able


def test_another_failure_is_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `TypeError` for something else is raised: that the patch can't mend."""

    def newer(*args: Any, **kwargs: Any) -> None:
        raise TypeError("something new is missing")

    monkeypatch.setattr(aiohttp.ClientResponse, "__init__", newer)
    with pytest.raises(TypeError, match="something new"):
        pytest_plugin._lacks_stream_writer()


async def test_real_responses_are_as_before(together_server: EmulatorServer, together_aioresponses_patch: None) -> None:
    """What goes over a socket while the patch is in force gets aiohttp's own writer."""
    async with aiohttp.ClientSession() as session, session.get(f"{together_server.base_url}/models") as response:
        assert response.status == 200
        assert type(response._stream_writer).__name__ != "SimpleNamespace"
        assert len(await response.json()) == 3


# ------------------------------------------------------------------------------------------------------ all it can mock


class OwnResponse(aiohttp.ClientResponse):
    """As people pass to `response_class`."""


MOCKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "status": ({"status": 429}, {"status": 429, "reason": "Too Many Requests", "read": b""}),
    "payload": ({"payload": {"a": 1}}, {"read": b'{"a": 1}', "json": {"a": 1}}),
    "body": ({"body": "[1]"}, {"read": b"[1]", "text": "[1]", "json": [1]}),
    "bytes": ({"body": b"\xff"}, {"read": b"\xff"}),
    "content type": ({"content_type": "text/plain", "body": "x"}, {"content_type": "text/plain", "text": "x"}),
    "reason": ({"reason": "Because"}, {"reason": "Because"}),
    "response class": ({"response_class": OwnResponse}, {"__class__": OwnResponse}),
    "callback": (
        {"callback": lambda url, **kwargs: CallbackResult(status=201, payload={"got": kwargs["json"]})},
        {"status": 201, "json": {"got": {"q": 1}}},
    ),
}


@pytest.mark.parametrize("kind", MOCKS)
async def test_what_a_mock_answers(kind: str, together_aioresponses: Any) -> None:
    """Each way to say what comes back gives just that."""
    mocked, expected = MOCKS[kind]
    together_aioresponses.post(CHAT, **mocked)
    async with aiohttp.ClientSession() as session, session.post(CHAT, json={"q": 1}) as response:
        for name, value in expected.items():
            got = getattr(response, name)
            assert (await got() if name in ("read", "text", "json") else got) == value


async def test_headers_and_cookies(together_aioresponses: Any) -> None:
    """They arrive."""
    together_aioresponses.get(BASE, headers={"x-request-id": "r-1", "set-cookie": "a=b"})
    async with aiohttp.ClientSession() as session, session.get(BASE) as response:
        assert response.headers["X-Request-Id"] == "r-1"
        assert response.cookies["a"].value == "b"


@pytest.mark.parametrize(
    ("mocked", "raised"),
    [
        ({"exception": aiohttp.ClientPayloadError("broken")}, aiohttp.ClientPayloadError),
        ({"timeout": True}, TimeoutError),
        ({"status": 503}, aiohttp.ClientResponseError),
    ],
    ids=["exception", "timeout", "raise_for_status"],
)
async def test_what_a_mock_raises(mocked: dict[str, Any], raised: type[Exception], together_aioresponses: Any) -> None:
    """An exception, a timeout, and a status of a session that raises for those."""
    together_aioresponses.get(BASE, **mocked)
    async with aiohttp.ClientSession(raise_for_status=True) as session:
        with pytest.raises(raised):
            await session.get(BASE)


@pytest.mark.parametrize(("repeat", "times"), [(False, 1), (2, 2), (True, 5)])
async def test_repeat(repeat: bool | int, times: int, together_aioresponses: Any) -> None:
    """So many requests are answered; those beyond are refused."""
    together_aioresponses.get(re.compile(f"^{BASE}"), repeat=repeat)
    answered = 0
    async with aiohttp.ClientSession() as session:
        for number in range(5):
            try:
                async with session.get(f"{BASE}/{number}"):
                    answered += 1
            except aiohttp.ClientConnectionError:
                break
    assert answered == times


async def test_redirects_are_followed(together_aioresponses: Any) -> None:
    """The response at the end knows the one before."""
    together_aioresponses.get(f"{BASE}/old", status=302, headers={"Location": BASE})
    together_aioresponses.get(BASE, payload=[1])
    async with aiohttp.ClientSession() as session, session.get(f"{BASE}/old") as response:
        assert [earlier.status for earlier in response.history] == [302]
        assert await response.json() == [1]


async def test_passthrough(together_server: EmulatorServer, together_aioresponses_patch: None) -> None:
    """What is let through reaches the socket, what is mocked does not; the caller makes `aioresponses` himself."""
    with aioresponses(passthrough=[together_server.origin]) as mock:
        mock.get(BASE, payload=[1])
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{together_server.base_url}/models") as response:
                assert response.status == 200
            async with session.get(BASE) as response:
                assert await response.json() == [1]
    assert [entry.path for entry in together_server.journal] == ["/v1/models"]


# ----------------------------------------------------------------------------------------------------------- our client


async def test_a_whole_completion(together_aioresponses: Any) -> None:
    """`create` returns what the mock says; the mock knows what was sent, and its repr no key."""
    together_aioresponses.post(CHAT, payload=WHOLE)
    async with AsyncTogether(KEY, base_url=BASE) as client:
        completion = await client.create("Which colour?", model=MODEL)
    assert completion.text == "Blue"
    together_aioresponses.assert_called_once()
    (call,) = together_aioresponses.requests["POST", URL(CHAT)]
    assert json.loads(call.kwargs["data"])["messages"] == [{"role": "user", "content": "Which colour?"}]
    assert call.kwargs["headers"]["Authorization"] == f"Bearer {KEY}"
    assert KEY not in repr(together_aioresponses.requests)


@pytest.mark.parametrize("texts", [("Blue",), ("The ", "sky ", "is ", "blue.")])
async def test_a_stream_in_one_piece(texts: tuple[str, ...], together_aioresponses: Any) -> None:
    """The whole body at once is still chunk after chunk to the reader."""
    together_aioresponses.post(CHAT, body=stream_of(*texts), content_type="text/event-stream")
    async with AsyncTogether(KEY, base_url=BASE) as client, client.stream("Why?", model=MODEL) as stream:
        assert [text async for text in stream.text()] == list(texts)
        assert (await stream.completion()).choices[0].finish_reason == "stop"


async def test_a_stream_without_its_end(together_aioresponses: Any) -> None:
    """It is no completion."""
    together_aioresponses.post(CHAT, body=stream_of("The", done=False), content_type="text/event-stream")
    async with AsyncTogether(KEY, base_url=BASE) as client:
        with pytest.raises(IncompleteStreamError) as caught:
            await client.stream("Why?", model=MODEL).completion()
    assert caught.value.partial.text == "The"


ERRORS: list[tuple[dict[str, Any], type[TogetherError], str]] = [
    ({"status": 401, "payload": {"error": {"message": "who?"}}}, AuthenticationError, "401: who?"),
    ({"status": 429, "headers": {"retry-after": "2"}, "body": "slow"}, RateLimitError, "429: slow"),
    ({"status": 500, "body": "<html>"}, InternalServerError, "500"),
    ({"exception": aiohttp.ClientConnectionError("no route")}, APIConnectionError, "no route"),
    ({"timeout": True}, APITimeoutError, "connect took longer than 3 s"),
]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("mocked", "raised", "text"), ERRORS)
async def test_errors_are_ours(
    mocked: dict[str, Any], raised: type[TogetherError], text: str, streamed: bool, together_aioresponses: Any
) -> None:
    """A status, a failed connection and a timeout come out as for a real server."""
    together_aioresponses.post(CHAT, **mocked)
    async with AsyncTogether(KEY, base_url=BASE, timeouts=Timeouts(connect=3)) as client:
        call = (
            client.stream("Why?", model=MODEL).completion if streamed else partial(client.create, "Why?", model=MODEL)
        )
        with pytest.raises(raised, match=re.escape(text)) as caught:
            await call()
    assert caught.value.attempts == 1
    assert getattr(caught.value, "retry_after", None) == (2.0 if raised is RateLimitError else None)


async def test_what_is_not_mocked_is_refused(together_aioresponses: Any) -> None:
    """No socket is opened for it."""
    async with AsyncTogether(KEY, base_url=BASE) as client:
        with pytest.raises(APIConnectionError, match="refused"):
            await client.create("Why?", model=MODEL)

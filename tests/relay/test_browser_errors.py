"""What a browser gets when an answer fails, as a status or as the last event, and what it does not get."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from support.relay_doors import ACCOUNT, KEY, PROMPT, SECRETS, URL, Answer, by_asgi, by_loop, status_error, stream_of
from support.servers import MODEL
from together_async import (
    APIConnectionError,
    APIResponseValidationError,
    APIStatusError,
    APITimeoutError,
    AsyncTogether,
    AuthenticationError,
    BadRequestError,
    ChatCompletion,
    ContextLengthError,
    IncompleteStreamError,
    InternalServerError,
    NotFoundError,
    PaymentRequiredError,
    PermissionDeniedError,
    QueueFullError,
    RateLimitError,
    StreamAPIError,
    StreamConnectionError,
    StreamError,
    StreamProtocolError,
    StreamTimeoutError,
    TogetherError,
    UnprocessableEntityError,
)
from together_async.relay import (
    End,
    Hub,
    NotKeptError,
    ServerShutdownError,
    SlowConsumerError,
    error_for_browser,
    passthrough,
    status_of,
)
from together_async.relay.browser_errors import AllReadError, IdError, StoppedError, TooLargeError
from together_async.testing import Cut, EmulatorServer, ErrorInStream, Raw, Stall, Status

pytestmark = pytest.mark.usefixtures("no_leaks")


PARTIAL = ChatCompletion()


ERRORS: Mapping[type[TogetherError], tuple[TogetherError, int]] = {
    TogetherError: (TogetherError(SECRETS), 500),
    APIConnectionError: (APIConnectionError(f"cannot connect to {SECRETS}"), 502),
    APITimeoutError: (APITimeoutError(phase="connect", seconds=3), 504),
    QueueFullError: (QueueFullError("3 wait"), 503),
    APIStatusError: (status_error(APIStatusError, 409), 409),
    BadRequestError: (status_error(BadRequestError, 400), 400),
    AuthenticationError: (status_error(AuthenticationError, 401), 401),
    PaymentRequiredError: (status_error(PaymentRequiredError, 402), 402),
    PermissionDeniedError: (status_error(PermissionDeniedError, 403), 403),
    ContextLengthError: (status_error(ContextLengthError, 403), 403),
    NotFoundError: (status_error(NotFoundError, 404), 404),
    UnprocessableEntityError: (status_error(UnprocessableEntityError, 422), 422),
    RateLimitError: (status_error(RateLimitError, 429, retry_after=1.2), 429),
    InternalServerError: (status_error(InternalServerError, 529), 529),
    APIResponseValidationError: (APIResponseValidationError(SECRETS, body=SECRETS), 502),
    StreamError: (StreamError(SECRETS, partial=PARTIAL), 502),
    IncompleteStreamError: (IncompleteStreamError(SECRETS, partial=PARTIAL), 502),
    StreamConnectionError: (StreamConnectionError(SECRETS, partial=PARTIAL), 502),
    StreamTimeoutError: (StreamTimeoutError(phase="idle", seconds=3, partial=PARTIAL), 504),
    StreamAPIError: (StreamAPIError("the model broke off", partial=PARTIAL, body={"error": SECRETS}), 502),
    StreamProtocolError: (StreamProtocolError(SECRETS, partial=PARTIAL), 502),
    SlowConsumerError: (SlowConsumerError(65, 64), 503),
    IdError: (IdError(SECRETS, status_code=409), 409),
    TooLargeError: (TooLargeError(SECRETS), 503),
    NotKeptError: (NotKeptError(SECRETS), 410),
    ServerShutdownError: (ServerShutdownError(SECRETS), 503),
    StoppedError: (StoppedError(SECRETS), 410),
}
"""An error of each class, and its status."""


def tree(cls: type[TogetherError] = TogetherError) -> Iterator[type[TogetherError]]:
    yield cls
    for sub in cls.__subclasses__():
        yield from tree(sub)


def test_no_class_of_error_was_forgotten() -> None:
    """A new class needs a status, here and in the relay's own table; a subclass has its base's."""
    of_a_server = "together_async.local.server"  # which nobody relays
    ours = {cls for cls in tree() if cls.__module__.startswith("together_async.") and cls.__module__ != of_a_server}
    named = {base for cls in ours for base in cls.__mro__ if base in ERRORS and base is not TogetherError}
    assert {cls for cls in ours if not any(base in named for base in cls.__mro__)} == {TogetherError, AllReadError}


@pytest.mark.parametrize("cls", ERRORS, ids=lambda cls: cls.__name__)
async def test_an_error_before_the_first_event_is_a_status(response: Any, cls: type[TogetherError]) -> None:
    """With a JSON body in the shape of the API's errors, which no cache stores."""
    error, status = ERRORS[cls]
    answer = await response(stream_of(error))
    assert answer.status == status == status_of(error)
    assert answer.headers["content-type"].partition(";")[0] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.error_object == error_for_browser(error)
    assert answer.error_object["type"] == cls.__name__
    assert answer.error_object["message"]
    check_discreet(answer)


@pytest.mark.parametrize("cls", ERRORS, ids=lambda cls: cls.__name__)
async def test_an_error_after_the_first_event_is_the_last_event(door: Any, cls: type[TogetherError]) -> None:
    """Of type `error`, with the same object, after all that came before; nothing marks the answer as complete."""
    error, _ = ERRORS[cls]
    ended: list[End] = []
    answer = await door(stream_of("one", "two", error), on_end=ended.append)
    assert answer.status == 200
    assert answer.text == "onetwo"
    assert [event.event for event in answer.events] == ["message", "message", "error"]
    assert answer.error_object == error_for_browser(error)
    assert b"[DONE]" not in answer.body
    assert ended[0].error is error
    check_discreet(answer)


async def test_an_answer_too_large_to_keep_is_not_asked_for_again(
    door: Any, client: AsyncTogether, upstream: EmulatorServer
) -> None:
    """The next answer would be as large, so the message does not ask to try again."""
    upstream.faults = Stall(after_token=2)
    async with Hub(max_size=1) as hub:
        answer = await door(hub.open(client.stream(PROMPT, model=MODEL)))
    assert answer.error_object["type"] == "TooLargeError"
    assert answer.error_object["code"] == 503
    assert "larger than this app can keep" in answer.error_object["message"]
    assert "again" not in answer.error_object["message"]


async def test_the_loop_has_no_status_and_tells_every_error_as_an_event() -> None:
    """To get a status, an app opens the stream first."""
    answer = await by_loop(stream_of(ERRORS[RateLimitError][0]))
    assert [event.event for event in answer.events] == ["error"]
    assert answer.error_object["code"] == 429


def check_discreet(answer: Answer) -> None:
    """A browser gets no key, prompt, address or account."""
    everything = answer.body.decode() + str(dict(answer.headers))
    for secret in (KEY, PROMPT, "inference.internal", ACCOUNT):
        assert secret not in everything


@pytest.mark.parametrize(("seconds", "header"), [(1.2, "2"), (0.0, "0"), (30, "30"), (None, None)])
async def test_when_to_come_back_is_passed_on(response: Any, seconds: float | None, header: str | None) -> None:
    """In whole seconds, rounded up."""
    answer = await response(stream_of(status_error(RateLimitError, 429, retry_after=seconds)))
    assert answer.headers.get("retry-after") == header


REAL = {
    "401": Status(401, message=f"Invalid API key provided: {KEY} of {ACCOUNT}"),
    "402": Status(402, message=f"Credit limit exceeded for {ACCOUNT}, see {URL}"),
    "403": Status(403, message=f"{ACCOUNT} may not use this model"),
    "400 with the prompt": Status(400, message=f"bad prompt: {PROMPT}"),
    "400 with the key": Status(400, message=f"bad key {KEY}"),
    "429": Status(429, message=f"{ACCOUNT} reached its limit of 60 requests a minute, see {URL}"),
    "404": Status(404, message=f"{ACCOUNT} can't access this model, see {URL}"),
    "500": Status(500, message=f"internal: {URL} {ACCOUNT} {PROMPT}"),
    "503 as a page": Status(503, f"<html>{URL} {ACCOUNT} {PROMPT}</html>"),
    "garbage": Raw(b"SSH-2.0-x\r\n" + URL.encode() + b"\r\n\r\n"),
    "an error in the stream": ErrorInStream(after_token=0, message=f"broke {PROMPT} {KEY}"),
    "no body": Cut(after_token=0, how="close"),
}


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("kind", ["decoded", "passed through"])
async def test_what_a_service_says_about_app_and_account_stays_here(
    response: Any, client: AsyncTogether, upstream: EmulatorServer, name: str, kind: str
) -> None:
    """Real error responses that hold a key, a prompt, an address and an account."""
    upstream.faults = REAL[name]
    stream: Any = client.stream(PROMPT, model=MODEL)
    answer = await response(passthrough(stream) if kind == "passed through" else stream)
    assert answer.status >= 400
    check_discreet(answer)
    assert str(upstream.port) not in answer.body.decode()


IN_STREAM = {
    "a payment": ErrorInStream(after_token=2, code=402, message=f"Credit limit exceeded for {ACCOUNT}, see {URL}"),
    "a key": ErrorInStream(after_token=2, code=401, message=f"{KEY} of {ACCOUNT} was revoked"),
    "a failure": ErrorInStream(after_token=2, code=500, message=f"worker at {URL} of {ACCOUNT} died"),
    "a cut": Cut(after_token=2, how="reset"),
    "an end": Cut(after_token=2, how="end"),
}


@pytest.mark.parametrize("name", IN_STREAM)
async def test_what_a_service_says_in_the_midst_of_a_stream_stays_here_too(
    door: Any, client: AsyncTogether, upstream: EmulatorServer, name: str
) -> None:
    """The last event holds what a browser can use, whatever the service sent."""
    upstream.faults = IN_STREAM[name]
    answer = await door(client.stream(PROMPT, model=MODEL))
    assert answer.events[-1].event == "error"
    assert answer.text == "One two"
    assert b"[DONE]" not in answer.body
    check_discreet(answer)


async def test_errors_are_logged_with_what_the_browser_is_not_told(
    caplog: pytest.LogCaptureFixture, client: AsyncTogether, upstream: EmulatorServer
) -> None:
    """The operator finds the reason; no log has a key or a prompt."""
    upstream.faults = Status(402, message=f"Credit limit exceeded for {ACCOUNT}")
    with caplog.at_level(logging.INFO, "together_async.relay"):
        await by_asgi(client.stream(PROMPT, model=MODEL))
    assert "Credit limit exceeded" in caplog.text
    assert KEY not in caplog.text
    assert PROMPT not in caplog.text

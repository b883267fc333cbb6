"""Whole responses: a completion or one typed error."""

import asyncio
import json
import pickle

import pytest

from support.clients import served, transport_of
from support.servers import LAST_CHUNK, MODEL, Call, answers, chunked, response, say, whole
from together_async import (
    APIResponseValidationError,
    APIStatusError,
    AsyncTogether,
    AuthenticationError,
    BadRequestError,
    ContextLengthError,
    InternalServerError,
    Limits,
    NotFoundError,
    PaymentRequiredError,
    PermissionDeniedError,
    RateLimitError,
    TogetherError,
    UnprocessableEntityError,
)

pytestmark = pytest.mark.usefixtures("no_leaks")

PROMPT = "the secret plans of the company"


STATUSES = [
    (400, BadRequestError),
    (401, AuthenticationError),
    (402, PaymentRequiredError),
    (403, PermissionDeniedError),
    (404, NotFoundError),
    (408, APIStatusError),
    (409, APIStatusError),
    (415, APIStatusError),
    (422, UnprocessableEntityError),
    (429, RateLimitError),
    (500, InternalServerError),
    (502, InternalServerError),
    (503, InternalServerError),
    (504, InternalServerError),
    (520, InternalServerError),
    (529, InternalServerError),
    (599, InternalServerError),
]


@pytest.mark.parametrize("stream", [False, True], ids=["create", "stream"])
@pytest.mark.parametrize(("status", "error"), STATUSES)
async def test_each_status_has_its_error(status: int, error: type[APIStatusError], stream: bool) -> None:
    """Status, headers, body, request id, attempts and retry-after are on the error."""
    body = {"error": {"message": "no such luck", "type": "t", "param": None, "code": "c"}}
    extra = b"X-Request-ID: r-1\r\nretry-after: 1.5\r\n"
    async with served(answers(response(body, status=status, extra=extra))) as (server, client):
        with pytest.raises(APIStatusError) as caught:  # noqa: PT012 - either way raises it
            if stream:
                await anext(client.stream(PROMPT, model=MODEL))
            else:
                await client.create(PROMPT, model=MODEL)
        assert len(server.calls) == 1
    assert type(caught.value) is error
    assert caught.value.status_code == status
    assert caught.value.headers["x-request-id"] == caught.value.request_id == "r-1"
    assert caught.value.body == body
    assert caught.value.attempts == 1
    assert caught.value.retry_after == 1.5
    assert "no such luck" in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - our own
    assert (type(again), str(again), again.body) == (error, str(caught.value), body)


@pytest.mark.parametrize("status", [400, 403])
@pytest.mark.parametrize(
    "message",
    ["This model's maximum context length is 8193 tokens", "Input length 9000 exceeds the maximum context of 8192"],
)
async def test_a_context_that_is_too_long(status: int, message: str) -> None:
    """Together sends 403, others 400; both are ContextLengthError."""
    async with served(answers(response({"error": {"message": message}}, status=status))) as (_, client):
        with pytest.raises(ContextLengthError):
            await client.create(PROMPT, model=MODEL)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"error": "plain"}', "plain"),
        (b'{"detail": "plain"}', "plain"),
        (b'{"detail": [{"loc": ["body", "n"], "msg": "plain", "input": "the secret plans of the company"}]}', "plain"),
        (b'{"message": "plain", "code": 1}', "plain"),
        (b"plain", "plain"),
        (b"<html><style>x</style><h1>plain</h1></html>", "plain"),
        (b"", "no message"),
        (b"\xff\xfe plain", "plain"),
        (b"{broken", "broken"),
        (b"[" * 100_000, "500"),
        (b"null", "500"),
        (b'{"error": {"message": {"deep": 1}}}', "500"),
        (b'{"error": []}', "500"),
        (b"x" * 9_000, "xxx"),
    ],
)
async def test_error_bodies(body: bytes, expected: str) -> None:
    """Whatever an error's body is, the status decides the class, and the text stays short."""
    async with served(answers(response(body, status=500, media_type="x/y"))) as (_, client):
        with pytest.raises(InternalServerError) as caught:
            await client.create(PROMPT, model=MODEL)
    assert expected in str(caught.value)
    assert len(str(caught.value)) < 700
    assert PROMPT not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (response(b"<html>hello</html>", media_type="text/html"), APIResponseValidationError),
        (response(b""), APIResponseValidationError),
        (response(b"  \n "), APIResponseValidationError),
        (b"HTTP/1.1 204 No Content\r\n\r\n", APIResponseValidationError),
        (response(b"hello", media_type="text/plain"), APIResponseValidationError),
        (response(b"[]"), APIResponseValidationError),
        (response(b"null"), APIResponseValidationError),
        (response(b"{}"), APIResponseValidationError),
        (response(b'{"choices": {}}'), APIResponseValidationError),
        (response(b"[" * 100_000), APIResponseValidationError),
        (response(b"\xff"), APIResponseValidationError),
        (response(json.dumps(whole()).encode()[:-2]), APIResponseValidationError),
        (response(json.dumps(whole()).encode() * 2), APIResponseValidationError),
        (response(say("a"), media_type="text/event-stream"), APIResponseValidationError),
        (response({"error": {"message": "no"}}), APIStatusError),
        (response({"error": {"message": "no", "code": 503}}), InternalServerError),
        (response({"error": "no"}), APIStatusError),
        (response({**whole(), "error": {"message": "no"}}), APIStatusError),
    ],
)
async def test_a_200_that_is_not_a_completion(data: bytes, error: type[TogetherError]) -> None:
    """Each is a typed error with the request id and attempts."""
    data = data.replace(b"\r\n\r\n", b"\r\nx-request-id: r-1\r\n\r\n", 1)
    async with served(answers(data)) as (_, client):
        with pytest.raises(error) as caught:
            await client.create(PROMPT, model=MODEL)
    assert caught.value.request_id == "r-1"
    assert caught.value.attempts == 1


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
async def test_a_response_cut_at_every_byte(framing: str, reset: bool) -> None:
    """The whole completion, or a typed error."""
    body = json.dumps(whole("Hé")).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
    wire = {
        "length": head + b"content-length: %d\r\n\r\n" % len(body) + body,
        "chunked": head + b"transfer-encoding: chunked\r\n\r\n" + chunked(body[:50]) + chunked(body[50:]) + LAST_CHUNK,
        "close": head + b"connection: close\r\n\r\n" + body,
    }[framing]
    done = 0

    async def script(call: Call) -> None:
        await call.send(wire[: call.json["seed"]])
        if reset:
            await asyncio.sleep(0.001)
            call.reset()
        else:
            call.close()

    async def check(client: AsyncTogether, size: int) -> None:
        nonlocal done
        try:
            completion = await client.create(PROMPT, model=MODEL, seed=size)
        except TogetherError:
            assert size < len(wire) or reset
        else:
            assert completion.to_dict() == whole("Hé")
            # An until-close body is whole as JSON the moment the last brace is there.
            assert size == len(wire) or (framing == "chunked" and size > len(wire) - 8), size
            done += 1

    async with served(script) as (_, client):
        sizes = iter(range(len(wire) + 1))

        async def worker() -> None:
            for size in sizes:
                await check(client, size)

        await asyncio.gather(*(worker() for _ in range(20)))
    assert done or reset


async def test_create_cancelled_at_every_turn() -> None:
    """Cancelled at any turn of the loop: CancelledError or the answer, and nothing left open."""
    # (Limits that say how much at once: a model that never answered is asked with gaps of time.)
    async with served(answers(response(whole())), limits=Limits(concurrency=8)) as (_, client):
        outcomes = []
        for turns in range(40):
            task = asyncio.create_task(client.create(PROMPT, model=MODEL))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            try:
                outcomes.append((await task).text)
            except asyncio.CancelledError:
                outcomes.append("cancelled")
        assert set(outcomes) == {"cancelled", "Hello"}
        assert not transport_of(client).responses
        assert not transport_of(client).openings

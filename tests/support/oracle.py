"""The outcome that a planned response must have: a second, slow, obviously correct reading of the whole protocol.

It looks at the plan of a response (which bytes, when, and how it ends), reads the event stream by the standard's own
algorithm, decodes with the standard library, adds up with loops, and says which outcome is right. Nothing here is
shared with the client.
"""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import attrs

from support.sse_oracle import read_slowly
from together_async import errors
from together_async.testing.response import ConnectionEnd, ResponsePlan

SILENCE = {"first_token": 300.0, "idle": 60.0}
"""The client's defaults, in seconds."""

STATUS_ERRORS: dict[int, type[errors.APIStatusError]] = {
    400: errors.BadRequestError,
    401: errors.AuthenticationError,
    402: errors.PaymentRequiredError,
    403: errors.PermissionDeniedError,
    404: errors.NotFoundError,
    422: errors.UnprocessableEntityError,
    429: errors.RateLimitError,
}


@attrs.frozen
class Expected:
    """The right outcome.

    Attributes:
        error: The exact class of the error; None for a completion.
        seen: What was delivered, as `view` has it; None where nothing can have been.
        phase: Of a timeout.
        at: Seconds from the request to a timeout.
        refusable: The response is no HTTP (bytes come after its end), and may be refused as a whole instead.
    """

    error: type[errors.TogetherError] | None
    seen: dict[str, Any] | None = None
    phase: str | None = None
    at: float | None = None
    refusable: bool = False


@attrs.frozen
class _Arrival:
    """Bytes that came, and when."""

    at: float
    data: bytes


def by_time(arrivals: list[_Arrival]) -> list[_Arrival]:
    """The same, with data of the same time joined."""
    groups = itertools.groupby(arrivals, key=lambda arrival: arrival.at)
    return [_Arrival(at, b"".join(arrival.data for arrival in group)) for at, group in groups]


def view(body: Any) -> dict[str, Any]:
    """A completion's content as plain JSON values, without what differs between two answers to one request."""
    choices = {}
    for choice in body.get("choices") or ():
        message = choice["message"]
        calls = [
            (call["id"], call["function"]["name"], call["function"]["arguments"])
            for call in message.get("tool_calls") or ()
        ]
        logprobs = choice.get("logprobs") or {}
        choices[choice.get("index", 0)] = {
            "content": message.get("content") or "",
            "reasoning": message.get("reasoning") or message.get("reasoning_content") or "",
            "calls": calls,
            "finish_reason": choice.get("finish_reason"),
            "logprobs": [
                *zip(logprobs.get("tokens") or (), logprobs.get("token_logprobs") or (), strict=True),
                *((item["token"], item["logprob"]) for item in logprobs.get("content") or ()),
            ],
        }
    return {"choices": choices, "usage": body.get("usage")}


# ------------------------------------------------------------------------------------------------------------ delivery


def delivery(response: ResponsePlan) -> tuple[list[_Arrival], bool, str, float]:  # noqa: C901 - one walk over the plan
    """The delivered body with its times, whether the whole head is delivered, the kind of end and its time.

    The end is `body` (the body is over, in good order), `reset`, `close` or `silence`.
    """
    now, head, wanted = response.think_s, b"", response.head()
    for piece in response.pieces_of_head():
        now += piece.wait_s
        if math.isinf(now):
            return [], False, "silence", now
        head += piece.data
        if piece.end is not None:
            whole = head == wanted
            return [], whole, _ended(response, piece.end) if whole else piece.end.value, now
    arrivals: list[_Arrival] = []
    left = sum(len(piece.data) for piece in response.body) + response.length_off_by
    if response.framing != "length" or response.length_off_by >= 0:
        left = 1 << 60
    for piece in response.body:
        sent, until = 0, now + piece.for_s
        while sent < piece.times:
            if piece.stall and now + piece.wait_s >= until:
                now = until
                break
            now += piece.wait_s
            if now > 100_000:  # the client will have given up
                return arrivals, True, "silence", now
            data = b"" if piece.raw else piece.data[:left]
            left -= len(data)
            arrivals.append(_Arrival(now, data))
            sent += 1
            if left <= 0:
                return arrivals, True, "body", now
        if piece.end is not None:
            return arrivals, True, _ended(response, piece.end), now
    if response.framing == "length" and response.length_off_by > 0:
        return arrivals, True, "close", now
    return arrivals, True, "body", now


def _ended(response: ResponsePlan, end: ConnectionEnd) -> str:
    """A body that ends with its connection ends well by FIN; aiohttp reports a RST there in the same way."""
    return "body" if response.framing == "close" else end.value


# ------------------------------------------------------------------------------------------------------------- streams


class _Reading:
    """The events so far, added up."""

    def __init__(self, choices: int) -> None:
        self.wanted = choices
        self.body: dict[str, Any] = {"choices": [], "usage": None}
        self.verdict: str | None = None  # done, protocol, api
        self.content = 0

    def event(self, data: bytes, name: str) -> None:
        text = data.decode("utf-8", "surrogateescape")
        if text.strip() == "[DONE]":
            self.verdict = "done"
            return
        if name == "error":
            self.verdict = "api"
            return
        try:
            body = json.loads(text)
        except ValueError:
            self.verdict = "protocol"
            return
        if not isinstance(body, dict):
            self.verdict = "protocol"
        elif body.get("error") or body.get("detail") or body.get("object") == "error":
            self.verdict = "api"
        else:
            self.chunk(body)

    def chunk(self, body: dict[str, Any]) -> None:
        self.body["usage"] = body.get("usage") or self.body["usage"]
        generated = False
        for choice in body["choices"]:
            generated = self.add(choice) or generated
        self.content += generated

    def add(self, choice: dict[str, Any]) -> bool:
        index, delta = choice["index"], choice["delta"]
        known = {total["index"]: total for total in self.body["choices"]}
        if index not in known:
            known[index] = {"index": index, "message": {"tool_calls": []}, "finish_reason": None}
            self.body["choices"] = [known[key] for key in sorted(known)]
        total, message = known[index], known[index]["message"]
        total["finish_reason"] = choice["finish_reason"] or total["finish_reason"]
        for key in ("content", "reasoning", "reasoning_content"):
            if delta.get(key):
                message[key] = message.get(key, "") + delta[key]
        for call in delta.get("tool_calls") or ():
            if "id" in call:
                message["tool_calls"].append({"id": call["id"], "function": dict(call["function"])})
            else:
                message["tool_calls"][call["index"]]["function"]["arguments"] += call["function"]["arguments"]
        if choice.get("logprobs") is not None:
            self.add_logprobs(total, choice["logprobs"], delta)
        return any(delta.get(key) for key in ("content", "reasoning", "reasoning_content", "tool_calls"))

    @staticmethod
    def add_logprobs(total: dict[str, Any], logprobs: Any, delta: dict[str, Any]) -> None:
        if isinstance(logprobs, dict):
            lists = total.setdefault("logprobs", {"content": []})
            lists["content"] += logprobs["content"]
        else:
            lists = total.setdefault("logprobs", {"tokens": [], "token_logprobs": []})
            lists["tokens"].append(delta["content"])
            lists["token_logprobs"].append(logprobs)

    @property
    def finished(self) -> bool:
        choices = self.body["choices"]
        return len(choices) >= self.wanted and all(choice["finish_reason"] for choice in choices)


_VERDICTS = {"protocol": errors.StreamProtocolError, "api": errors.StreamAPIError}


def expect(response: ResponsePlan, *, stream: bool, choices: int) -> Expected:
    """The right outcome of a response."""
    expected = expect_stream(response, choices) if stream else expect_whole(response)
    return attrs.evolve(expected, refusable=response.framing == "length" and response.length_off_by < 0)


def expect_stream(response: ResponsePlan, choices: int) -> Expected:  # noqa: C901 - the rules, one after the other
    """The right outcome of a stream."""
    if response.status != 200:
        return Expected(status_error(response.status))
    arrivals, has_head, end, ended_at = delivery(response)
    if not has_head:
        return _without_head(end)
    reading = _Reading(choices)
    body, seen = b"", 0
    silent_since, phase = 0.0, "first_token"
    for arrival in by_time(arrivals):
        if arrival.at >= silent_since + SILENCE[phase]:
            break
        body += arrival.data
        if b"\n" not in arrival.data and b"\r" not in arrival.data:
            continue  # no line has ended
        events = read_slowly(body)
        for event in events[seen:]:
            before = reading.content
            reading.event(event.data, event.event)
            if reading.verdict is not None:
                return _verdict(reading)
            if reading.content > before:
                silent_since, phase = arrival.at, "idle"
        seen = len(events)
        if body.endswith((b"\n\n", b"\r\r", b"\r\n\r\n")):
            body, seen = b"", 0  # nothing is carried over an empty line
    if reading.finished:
        return Expected(None, view(reading.body))
    late = silent_since + SILENCE[phase]
    if end == "silence" or ended_at >= late:
        if phase == "first_token":
            return Expected(errors.APITimeoutError, phase=phase, at=late)
        return Expected(errors.StreamTimeoutError, view(reading.body), phase, late)
    kind = errors.IncompleteStreamError if end == "body" else errors.StreamConnectionError
    return Expected(kind, view(reading.body))


def _verdict(reading: _Reading) -> Expected:
    return Expected(_VERDICTS.get(reading.verdict or ""), view(reading.body))


def _without_head(end: str) -> Expected:
    if end == "silence":
        return Expected(errors.APITimeoutError, phase="first_token", at=SILENCE["first_token"])
    return Expected(errors.APIConnectionError)


def status_error(status: int) -> type[errors.APIStatusError]:
    """The class of a status."""
    return STATUS_ERRORS.get(status, errors.InternalServerError if status >= 500 else errors.APIStatusError)


# --------------------------------------------------------------------------------------------------------------- whole


def expect_whole(response: ResponsePlan) -> Expected:
    """The right outcome of a whole response."""
    if response.status != 200:
        return Expected(status_error(response.status))
    arrivals, has_head, end, ended_at = delivery(response)
    if not has_head:
        return _without_head(end)
    body, silent_since, phase = b"", 0.0, "first_token"
    for arrival in arrivals:
        if arrival.at >= silent_since + SILENCE[phase]:
            break
        body += arrival.data
        if arrival.data.strip():
            silent_since, phase = arrival.at, "idle"
    late = silent_since + SILENCE[phase]
    if end == "silence" or ended_at >= late:
        return Expected(errors.APITimeoutError, phase=phase, at=late)
    try:
        seen = view(json.loads(body))
    except ValueError:
        seen = None
    if end != "body":
        # The whole body and a broken end: both the error and the complete completion are right.
        return Expected(errors.APIConnectionError, seen)
    if seen is not None:
        return Expected(None, seen)
    return Expected(errors.APIResponseValidationError)

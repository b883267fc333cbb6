"""The fault cases: what a server does, and what is then right. Data only; the clients are judged in `faults`.

Each case is one streamed chat completion from the emulator. The user's message is the case's name, by which the
emulator finds what to do; the model's name is that of the dialect. What is right follows from one rule for everybody:

    COMPLETE   the whole answer reached the client: the loop has to end without an error, with exactly this answer
    ERROR      it did not, or the server said that it failed: the loop has to end with an error of the client's own tree
    EITHER     the protocol leaves it open, or reasonable people differ (why is said at the case): both are right

and always: within the deadline, and no text that the model did not say. `ours` is the exact class which this library
promises, empty where it has to complete; it is asked of this library alone. It is several, with `|` between them, where
it depends on how the network parts the bytes, or where what is below us does not tell.
"""

import json
import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import attrs

from together_async.testing import (
    DIALECTS,
    OPENAI,
    TOGETHER,
    Call,
    CloseAfter,
    Cut,
    Dialect,
    Drip,
    EndlessHeaders,
    ErrorInStream,
    Fault,
    Frame,
    Garbage,
    Gzip,
    Headers,
    HugeLine,
    Insert,
    InTurn,
    LineEndings,
    Raw,
    Redirect,
    Reply,
    Split,
    Stall,
    Status,
    WithoutDone,
    WithoutFinishReason,
    WrongLength,
)
from together_async.testing.response import Response

COMPLETE, ERROR, EITHER = "complete", "error", "either"
TOKENS = (" The", " sky", " is", " blue", ":", " schön", " 日本", " 😀", " so", ".")
TEXT = "".join(TOKENS)
OTHER = "A second choice says something else."
SPOKEN_PAUSE_S = 0.3
"""A pause which is no fault: the clients' timeouts are above it."""


@dataclass(frozen=True, slots=True)
class Truth:
    """One choice of the answer."""

    text: str = TEXT
    reason: str = "stop"
    calls: tuple[tuple[str, str], ...] = ()
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class Case:
    """What the server does, and what is right.

    Attributes:
        name: Unique; begins with its group.
        faults: What the emulator does to the answer (any `Rule`).
        right: COMPLETE, ERROR or EITHER.
        ours: The class of the error this library has to raise; empty when it has to complete.
        script: What the pretended model says.
        truth: What that is, by choice.
        options: Of the request.
        status: The HTTP status an error has to carry, 0 for none.
        other_text: A text which is right too.
        any_reason: A finish reason outside of the protocol's list, which clients may give another name.
        streams: How many streams are read by one client, one after the other; the last counts.
        url: Something else than the emulator's: `refused`, `unresolvable`, `silent` (accepted, never read), `tls`.
        flood: It keeps a core busy, so it runs alone.
        limit: Why this library may give another error there. It counts as wrong in the comparison all the same; a
            soak counts it apart.
    """

    name: str
    faults: Any = None
    right: str = COMPLETE
    ours: str = ""
    script: Any = Reply(TOKENS)  # noqa: RUF009 - frozen
    truth: tuple[Truth, ...] = (Truth(),)
    dialect: Dialect = TOGETHER
    options: dict[str, Any] = field(default_factory=dict)
    status: int = 0
    other_text: str = ""
    any_reason: bool = False
    streams: int = 1
    url: str = ""
    flood: bool = False
    limit: str = ""

    @property
    def group(self) -> str:
        return self.name.partition(":")[0]


# ----------------------------------------------------------------------------------------- faults the cases are made of


@attrs.frozen(repr=False)
class At(Fault):
    """A fault at a byte of the body that is only known once the body is: `make` gets the place's offset."""

    place: str
    make: Callable[[int], Fault]

    def apply(self, response: Response) -> bool:
        return self.make(_offset(response, self.place)).apply(response)


def _offset(response: Response, place: str) -> int:
    sizes = [len(piece.data) for piece in response.body]
    if place == "after DONE":
        return sum(sizes)
    if place == "before DONE":
        return sum(sizes[:-1])
    if place == "inside DONE":
        return sum(sizes[:-1]) + len(b"data: [DO")
    if place == "inside the finish event":
        return sum(sizes[:-2]) + sizes[-2] // 2
    number = int(place.rpartition(" ")[2])  # "inside event 5"
    return sum(sizes[:number]) + sizes[number] // 2


@attrs.frozen(repr=False)
class Change(Fault):
    """Another event in place of one: `how` gets the old event's bytes. Counted from 0; -1 is `[DONE]`."""

    event: int
    how: Callable[[bytes], bytes]

    def apply(self, response: Response) -> bool:
        piece = response.body[self.event]
        piece.data = self.how(piece.data)
        return True


@attrs.frozen(repr=False)
class ChangeAll(Fault):
    """Other bytes in place of every event."""

    how: Callable[[bytes], bytes]

    def apply(self, response: Response) -> bool:
        for piece in response.body:
            piece.data = self.how(piece.data)
        return True


@attrs.frozen(repr=False)
class Whole(Fault):
    """Another body with status 200, and its type."""

    body: bytes
    kind: str = "application/json"

    def apply(self, response: Response) -> bool:
        response.replace_body(self.body, self.kind)
        return True


def payload(event: bytes) -> bytes:
    return event.removeprefix(b"data: ").removesuffix(b"\n\n")


def edited(change: Callable[[dict[str, Any]], None]) -> Callable[[bytes], bytes]:
    """An event whose JSON is changed."""

    def how(event: bytes) -> bytes:
        if b"[DONE]" in event:
            return event
        body = json.loads(payload(event))
        change(body)
        return b"data: " + json.dumps(body).encode() + b"\n\n"

    return how


def setting(path: str, value: Any) -> Callable[[bytes], bytes]:
    """An event in whose JSON one value is another; `path` as `choices.0.delta`."""

    def change(body: Any) -> None:
        *way, last = (int(step) if step.isdigit() else step for step in path.split("."))
        for step in way:
            body = body[step]
        body[last] = value

    return edited(change)


def dropping(*names: str) -> Callable[[bytes], bytes]:
    def change(body: dict[str, Any]) -> None:
        for name in names:
            body.pop(name, None)

    return edited(change)


def instead(data: bytes) -> Callable[[bytes], bytes]:
    return lambda _event: b"data: " + data + b"\n\n"


# ------------------------------------------------------------------------------------------------------------ the cases

TOKEN = 5
"""The token at which most things happen."""
PLACES: dict[str, Callable[[Callable[..., Fault]], Fault]] = {
    "after the head": lambda make: make(after_token=0),
    "after token 1": lambda make: make(after_token=1),
    f"after token {TOKEN}": lambda make: make(after_token=TOKEN),
    "inside event 5": lambda make: At("inside event 5", lambda at: make(at_byte=at)),
    "before the finish event": lambda make: make(after_token=len(TOKENS)),
    "inside the finish event": lambda make: At("inside the finish event", lambda at: make(at_byte=at)),
    "before DONE": lambda make: At("before DONE", lambda at: make(at_byte=at)),
    "inside DONE": lambda make: At("inside DONE", lambda at: make(at_byte=at)),
    "after DONE": lambda make: At("after DONE", lambda at: make(at_byte=at)),
}
_FEW = (f"after token {TOKEN}", "inside event 5", "before the finish event", "before DONE")


def cuts() -> Iterator[Case]:
    yield Case("cut: connection refused", right=ERROR, ours="APIConnectionError", url="refused")
    yield Case("cut: host does not resolve", right=ERROR, ours="APIConnectionError", url="unresolvable")
    yield Case("cut: TLS spoken to a plain port", right=ERROR, ours="APIConnectionError|APITimeoutError", url="tls")
    for how in ("reset", "close"):
        yield Case(f"cut: {how} before the head", Cut(how=how), ERROR, "APIConnectionError")
        yield Case(f"cut: {how} in the head", Cut(how=how, in_head=40), ERROR, "APIConnectionError")
    for place in PLACES:
        for how in ("reset", "close", "chunk", "end"):
            yield _cut("chunked", how, place)
    for framing, ways in (
        ("length", ("reset", "close", "end")),
        ("close", ("reset", "end")),
        ("gzip", ("close", "end")),
    ):
        for place in _FEW:
            for how in ways:
                yield _cut(framing, how, place)


def _cut(framing: str, how: Any, place: str) -> Case:
    before: Fault = Gzip() if framing == "gzip" else Frame(framing)  # type: ignore[arg-type]
    faults = before + PLACES[place](lambda **at: Cut(how=how, **at))
    name = f"cut: {framing}, {how} {place}"
    if place == "after DONE":
        return Case(name, faults)
    if place in ("before DONE", "inside DONE"):
        # Every choice has its finish reason. A clean end is then how some servers (transformers serve) always end;
        # of a connection that breaks there one client may say that all had come, and another that it broke.
        return Case(name, faults, COMPLETE if how == "end" and place == "before DONE" else EITHER)
    if framing == "close" and how == "reset":
        # Where the connection's end is the body's end, aiohttp does not tell a RST from a FIN.
        return Case(name, faults, ERROR, "StreamConnectionError|IncompleteStreamError")
    clean = how == "end" or framing == "close"
    return Case(name, faults, ERROR, "IncompleteStreamError" if clean else "StreamConnectionError")


def stalls() -> Iterator[Case]:
    yield Case("stall: accepted, never read", right=ERROR, ours="APITimeoutError", url="silent")
    yield Case("stall: before the head", Stall(), ERROR, "APITimeoutError")
    yield Case("stall: in the head", Stall(in_head=40), ERROR, "APITimeoutError")
    for ping, title in ((None, "silent"), (0.2, "with pings")):
        for place, put in PLACES.items():
            faults = put(lambda ping=ping, **at: Stall(ping_every=ping, **at))
            name = f"stall: {title} {place}"
            if place.endswith("DONE"):
                # After [DONE] nothing is missing, so nothing may fail. Before it see `_cut`. Pings may not be put into
                # the middle of a line, so there they are not comments but a broken event.
                open_to_both = place != "after DONE"
                if ping is None or place != "inside DONE":
                    yield Case(name, faults, EITHER if open_to_both else COMPLETE)
            elif ping is None or not place.startswith("inside"):
                # Pings keep a connection alive; they are no answer. Who waits for ever because of them, hangs.
                begun = place != "after the head"
                yield Case(name, faults, ERROR, "StreamTimeoutError" if begun else "APITimeoutError")
    yield Case(
        "stall: a comment that never ends",
        Stall(after_token=TOKEN, ping_every=0.1, ping=b":"), ERROR, "StreamTimeoutError",
    )  # fmt: skip
    yield Case(
        "stall: deltas without content for ever",
        Stall(
            after_token=TOKEN,
            ping_every=0.1,
            ping=b'data: {"id":"x","object":"chat.completion.chunk","created":1,"model":"m",'
            b'"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n',
        ),
        ERROR,  # as with pings: what comes is no answer
        "StreamTimeoutError",
    )
    for place in ("after the head", f"after token {TOKEN}", "before DONE", "after DONE"):
        put = PLACES[place]
        yield Case(f"stall: {SPOKEN_PAUSE_S} s {place}", put(lambda **at: Stall(seconds=SPOKEN_PAUSE_S, **at)))
    yield Case(f"stall: {SPOKEN_PAUSE_S} s before the head", Stall(seconds=SPOKEN_PAUSE_S))
    yield Case(f"stall: {SPOKEN_PAUSE_S} s in the head", Stall(seconds=SPOKEN_PAUSE_S, in_head=40))


CLASSES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    402: "PaymentRequiredError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    422: "UnprocessableEntityError",
    429: "RateLimitError",
}
HTML = "<html><head><title>502</title></head><body><h1>Bad gateway</h1></body></html>"


ONE_READ = "aiohttp drops a response that came in one read with more bytes than its content-length tells"


def statuses() -> Iterator[Case]:
    def case(name: str, fault: Any, code: int, ours: str = "", right: str = ERROR, **more: Any) -> Case:
        cls = ours or CLASSES.get(code) or ("InternalServerError" if code >= 500 else "APIStatusError")
        return Case(f"status: {code} {name}", fault, right, cls, status=code, **more)

    for code in (400, 401, 402, 404, 408, 409, 422, 429, 500, 502, 503, 504, 529):
        yield case("JSON", Status(code), code)
    yield case("context length", Status(403), 403, "ContextLengthError")
    yield case(
        "context length", Status(400, message="maximum context length is 8192 tokens"), 400, "ContextLengthError"
    )
    yield case("JSON", Status(403, {"error": {"message": "this key may not do that"}}), 403)
    for code in (400, 429, 500, 503):
        yield case("text", Status(code, "it went wrong"), code)
        yield case("HTML", Status(code, HTML), code)
        yield case("empty", Status(code, b""), code)
    yield case("detail", Status(422, {"detail": [{"loc": ["body", "n"], "msg": "too large", "type": "x"}]}), 422)
    yield case("error as text", Status(500, {"error": "it went wrong"}), 500)
    yield case("JSON array", Status(500, b"[1, 2]"), 500)
    yield case("retry-after", Status(429, headers={"retry-after": "2"}), 429)
    for code in (429, 500):
        # The status is known, so it has to be told, whatever becomes of the body.
        yield case("content-length too long", Status(code) + WrongLength(100), code)
        yield case("content-length too short", Status(code) + WrongLength(-20), code, limit=ONE_READ)
        yield case("body stalls", Status(code) + Stall(at_byte=10), code)
        yield case("body reset", Status(code) + Cut(at_byte=10), code)
        yield case("body is no gzip", Status(code, headers={"content-encoding": "gzip"}), code)
    yield Case("status: 204", Status(204, b""), ERROR, "StreamProtocolError")
    yield case("without a location", Status(307, b""), 307)
    yield case("for ever", InTurn(then=Redirect("/v1/chat/completions")), 0, "APIConnectionError")


def errors_in_the_stream() -> Iterator[Case]:
    def case(name: str, fault: Any, ours: str = "StreamAPIError") -> Case:
        return Case(f"error in the stream: {name}", fault, ERROR, ours)

    for shape in ("object", "text", "flat", "detail", "named", "named_text", "beside"):
        for token in (0, TOKEN):
            yield case(f"{shape} after token {token}", ErrorInStream(shape=shape, after_token=token))
    yield case("object, then DONE", ErrorInStream(after_token=TOKEN, done=True))
    yield case("text, then DONE", ErrorInStream(shape="text", after_token=TOKEN, done=True))
    yield case("with status 503", ErrorInStream(after_token=TOKEN, code=503))
    yield case("after the last token", ErrorInStream(after_token=len(TOKENS), done=True))
    yield case("as a JSON body with status 200", Whole(b'{"error": {"message": "no", "code": 500}}'))


def malformed_events() -> Iterator[Case]:
    """A token's event comes damaged: who skips it has lost the token."""

    def case(name: str, how: Callable[[bytes], bytes], **more: Any) -> Case:
        return Case(f"malformed: {name}", Change(TOKEN, how), ERROR, "StreamProtocolError", **more)

    yield case("JSON breaks off", lambda event: event[: len(event) // 2] + b"\n\n")
    yield case("plain text", instead(b"Internal Server Error"))
    yield case("undefined", instead(b"undefined"))
    yield case("an array", instead(b"[]"))
    yield case("a number", instead(b"42"))
    yield case("a string", instead(b'" schoen"'))
    yield case("null", instead(b"null"))
    yield case("true", instead(b"true"))
    yield case("two documents", lambda event: instead(payload(event) * 2)(b""))
    yield case("something after the document", lambda event: instead(payload(event) + b"}}")(b""))
    yield case("a control character in a string", lambda event: event.replace(b'"content":" ', b'"content":" \x01'))
    # By the standard of event streams, bytes that are no UTF-8 become U+FFFD; JSON may not have them.
    yield case(
        "bytes that are no UTF-8",
        lambda event: event.replace("ö".encode(), b"\xf6"),
        other_text=TEXT.replace("ö", "\ufffd"),
    )
    yield case("a line feed in a string", lambda event: event.replace(b'"content":" ', b'"content":" \n'))
    yield case("choices is an object", setting("choices", {"index": 0}))
    yield case("choices is a text", setting("choices", "stop"))
    yield case("a choice is a text", setting("choices", ["x"]))
    yield case("delta is a list", setting("choices.0.delta", ["x"]))
    yield case("delta is a text", setting("choices.0.delta", " schön"))
    yield case("content is a number", setting("choices.0.delta.content", 42))
    yield case("content is an object", setting("choices.0.delta.content", {"text": " schön"}))
    yield case("tool calls are a text", setting("choices.0.delta.tool_calls", "get_weather"))
    # Nothing is lost with these, so they may be passed over.
    for name, path, value in (
        ("index is a text", "choices.0.index", "zero"),
        ("finish reason is an object", "choices.0.finish_reason", {"type": "stop"}),
    ):
        yield Case(f"malformed: {name}", Change(TOKEN, setting(path, value)), EITHER)
    yield case("brackets 100,000 deep", instead(b"[" * 100_000))
    yield Case("malformed: an event beside, broken", Garbage(after_token=TOKEN), ERROR, "StreamProtocolError")
    yield Case(
        "malformed: no finish reason, no DONE", WithoutFinishReason() + WithoutDone(), ERROR, "IncompleteStreamError"
    )
    yield Case(
        "malformed: one choice of two without its end",
        ChangeAll(lambda event: b"" if b'"finish_reason":"' in event and b'"index":1' in event else event)
        + WithoutDone(),
        ERROR,
        "IncompleteStreamError",
        script=(Reply(TOKENS), OTHER),
        truth=(Truth(), Truth(OTHER)),
        options={"n": 2},
    )
    for name, body, kind in (
        ("an HTML page", HTML.encode(), "text/html"),
        ("an HTML page that calls itself a stream", HTML.encode(), "text/event-stream"),
        ("plain text", b"it went wrong", "text/plain"),
        ("a JSON array", b"[]", "application/json"),
    ):
        yield Case(f"malformed: 200 and {name}", Whole(body, kind), ERROR, "StreamProtocolError")
    yield Case("malformed: 200 and nothing", Whole(b"", "text/event-stream"), ERROR, "IncompleteStreamError")
    yield Case(
        "malformed: content-length too short", At("after DONE", lambda at: WrongLength(-at // 2)),
        ERROR, "IncompleteStreamError", limit=ONE_READ,
    )  # fmt: skip
    yield Case("malformed: the body is no gzip", Headers({"content-encoding": "gzip"}), ERROR, "StreamConnectionError")
    yield Case("malformed: no HTTP", Raw(b"SSH-2.0-OpenSSH_9.6\r\n"), ERROR, "APIConnectionError")
    yield Case(
        "malformed: a chunk's size is no number",
        Raw(STREAM_HEAD + b"xyz\r\ndata: 1\r\n"),
        ERROR,
        "StreamConnectionError|APIConnectionError",
    )


STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}
ARGUMENTS = '{"city": "Łódź", "days": 3}'


def odd_but_right() -> Iterator[Case]:
    def case(name: str, faults: Any = None, **more: Any) -> Case:
        return Case(f"odd but right: {name}", faults, **more)

    yield case("nothing odd")
    for dialect in DIALECTS.values():
        yield case(f"as {dialect.name} does it", dialect=dialect)
    yield case("no DONE", WithoutDone())
    yield case("usage in a last chunk", options={"stream_options": {"include_usage": True}})
    yield case("gzip", Gzip())
    yield case("gzip, byte by byte", Split(every=1) + Gzip())
    yield case("content-length", Frame("length"))
    yield case("until the connection closes", Frame("close"))
    yield case("content-length too long, closed after DONE", WrongLength(100))
    yield case("CR LF", LineEndings("\r\n"))
    yield case("CR", LineEndings("\r"))
    yield case("byte by byte", Split(every=1))
    yield case("split inside UTF-8", Split(inside="utf-8"))
    yield case("CR LF, split inside", LineEndings("\r\n") + Split(inside="crlf"))
    yield case("a byte order mark", Change(0, lambda event: b"\xef\xbb\xbf" + event))
    yield case("data over several lines", ChangeAll(lambda e: e if b"[DONE]" in e else e.replace(b',"', b',\ndata: "')))
    yield case("no blank after data:", ChangeAll(lambda event: event.replace(b"data: ", b"data:")))
    yield case("id, retry and event lines", ChangeAll(lambda event: b"id: 7\nretry: 10\nevent: message\n" + event))
    yield case("pings between the tokens", ChangeAll(lambda event: b": ping\n\n" + event))
    yield case("an event named ping", Insert(data=b"event: ping\ndata: {}\n\n", after_token=TOKEN))
    yield case("a ping as JSON", Insert(data=b'data: {"type": "ping"}\n\n', after_token=TOKEN))
    # An event with empty data is dispatched by the standard, and no JSON: passed over here, refused there.
    yield case("empty data", Insert(data=b"data\n\ndata:\n\n", after_token=TOKEN), right=EITHER)
    yield case("blank lines", ChangeAll(lambda event: b"\n\n" + event))
    yield case("many events at once, then one byte", Split(at=(1500, 1501)))
    yield case("DONE without its blank line", Change(-1, lambda _: b"data: [DONE]"))
    yield case("blanks after DONE", Change(-1, lambda _: b"data: [DONE]  \n\n"))
    yield case("events after DONE", Change(-1, lambda _: b"data: [DONE]\n\ndata: {broken\n\n"))
    yield case("a chunk without choices", Insert(data=b'data: {"id": "x", "choices": []}\n\n', after_token=TOKEN))
    yield case("content is null in the first chunk", dialect=DIALECTS["llama.cpp"])
    yield case("keys nobody knows", ChangeAll(edited(lambda body: body.update(x_new={"deep": [1, None, "z"]}))))
    yield case("no object, created, id", ChangeAll(dropping("object", "created", "id")))
    yield case("no usage key", ChangeAll(dropping("usage")))
    yield case("a finish reason nobody knows", script=Reply(TOKENS, finish_reason="tired"), any_reason=True,
               truth=(Truth(reason="tired"),))  # fmt: skip
    yield case("finish reason eos", script=Reply(TOKENS, finish_reason="eos"), any_reason=True,
               truth=(Truth(reason="eos"),))  # fmt: skip
    yield case("finish reason length", script=Reply(TOKENS, finish_reason="length"), truth=(Truth(reason="length"),))
    yield case("escapes of JSON", ChangeAll(dropping()))  # json writes them by itself
    yield case("an empty answer", script=Reply(()), truth=(Truth(""),))
    yield case("line feeds and quotes in the text", script='"\n\r\n\t\\u0041\x7f\u2028 [DONE]\ndata: x',
               truth=(Truth('"\n\r\n\t\\u0041\x7f\u2028 [DONE]\ndata: x'),))  # fmt: skip
    yield case("a delta of 500,000 characters", script=Reply(("a" * 500_000,)), truth=(Truth("a" * 500_000),))
    yield case("5,000 tokens", script=Reply((" x",) * 5000), truth=(Truth(" x" * 5000),))
    for dialect in (TOGETHER, OPENAI):
        call = Reply(None, tool_calls=(Call("get_weather", ARGUMENTS), Call("get_weather", "{}")))
        calls = (("get_weather", ARGUMENTS), ("get_weather", "{}"))
        yield case(f"tool calls, {dialect.name}", script=call, truth=(Truth("", "tool_calls", calls),), dialect=dialect,
                   options={"tools": [TOOL]})  # fmt: skip
    for dialect in (TOGETHER, DIALECTS["llama.cpp"]):
        yield case(f"n = 2, {dialect.name}", script=(Reply(TOKENS), OTHER), truth=(Truth(), Truth(OTHER)),
                   options={"n": 2}, dialect=dialect)  # fmt: skip
    for name in ("gpt-oss", "deepseek"):
        yield case(f"reasoning, {name}", script=Reply(TOKENS, reasoning="Think first."), dialect=DIALECTS[name],
                   truth=(Truth(reasoning="Think first."),))  # fmt: skip
    yield case("redirect 307", Redirect())
    yield case("redirect 308", Redirect(code=308))
    yield case("slow drip", Drip(size=400, every_s=0.25))
    yield case("no content type", Headers({"content-type": None}))
    yield case("content type text/plain", Headers({"content-type": "text/plain"}))
    yield case(
        "an early hint before the head", Insert(data=b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n", in_head=0)
    )
    yield case("a chunk extension and trailers", Raw(CHUNKY), truth=(Truth("Hello"),), script="Hello")
    # A whole completion in answer to a stream's request holds the whole answer; few clients look for it there.
    yield case("a whole JSON completion", Whole(COMPLETION), right=EITHER, truth=(Truth("Hello"),), script="Hello")
    yield case("a connection closed while it was idle", InTurn(CloseAfter()), streams=2)
    # Closed as the next request comes: to send it again is right, and with retries off so is an error.
    yield case("a connection closed as the request came", InTurn(None, Cut(how="close")), right=EITHER, streams=2)
    yield case("three streams on one client", streams=3)


def _event(delta: dict[str, Any], reason: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    body = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


_EVENTS = _event({"role": "assistant", "content": "Hello"}, None) + _event({}, "stop") + b"data: [DONE]\n\n"
CHUNKY = STREAM_HEAD + b'%X;note="x"\r\n%b\r\n0\r\nx-checksum: 1\r\n\r\n' % (len(_EVENTS), _EVENTS)
COMPLETION = json.dumps(
    {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
).encode()
BOMB_BYTES = 256 * 1024 * 1024


@cache
def bomb() -> bytes:
    """256 MiB of blanks in 256 KiB of gzip."""
    squeeze = zlib.compressobj(wbits=31)
    block = b" " * (1 << 20)
    return b"".join(squeeze.compress(block) for _ in range(BOMB_BYTES >> 20)) + squeeze.flush()


@attrs.frozen(repr=False)
class Bomb(Fault):
    """The bomb, as a body of whatever status."""

    head: bytes

    def apply(self, response: Response) -> bool:
        data = bomb()
        response.replaced_by = self.head + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(data) + data
        return True


def floods() -> Iterator[Case]:
    def case(name: str, faults: Any, ours: str, **more: Any) -> Case:
        return Case(f"flood: {name}", faults, more.pop("right", ERROR), ours, flood=True, **more)

    # The line is an object without a meaning: to skip it is right, to refuse it too. Not to come back is not.
    yield case("a line of 64 MiB", HugeLine(after_token=TOKEN), "StreamProtocolError", right=EITHER)
    yield case("a line without end", Insert(data=b"a" * 65_536, times=float("inf"), after_token=TOKEN),
               "StreamProtocolError")  # fmt: skip
    yield case("endless headers", EndlessHeaders(), "APIConnectionError")
    yield case("pings without end or pause", Stall(after_token=TOKEN, ping_every=0), "StreamTimeoutError")
    as_json = Stall(after_token=TOKEN, ping_every=0, ping=b'data: {"type":"ping"}\n\n')
    yield case("pings as JSON without end or pause", as_json, "StreamTimeoutError")
    yield case("pings before the first token", Stall(after_token=0, ping_every=0), "APITimeoutError")
    endless = Insert(data=b"a" * 65_536, times=float("inf"), at_byte=2)
    yield case("an error's body without end", Status(500, "no") + Frame("chunked") + endless, "InternalServerError",
               status=500)  # fmt: skip
    yield case("a gzip bomb",
               Bomb(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"), "StreamProtocolError")  # fmt: skip
    yield case("a gzip bomb as an error", Bomb(b"HTTP/1.1 500 Oh\r\nContent-Type: text/plain\r\n"),
               "InternalServerError", status=500)  # fmt: skip


def table() -> dict[str, Case]:
    """All cases by name."""
    found: dict[str, Case] = {}
    for part in (cuts, stalls, statuses, errors_in_the_stream, malformed_events, odd_but_right, floods):
        for case in part():
            if case.name in found:
                raise ValueError(f"two cases are called {case.name!r}")
            found[case.name] = case
    return found


CASES = table()


# ------------------------------------------------------------------------------------------------ streams of a long run

WORDS = ("blue", "light", "schön", "Łódź", "日本", "😀", "why", "\u2028", '"', "\\n", "<b>", "scatter")


@dataclass(frozen=True, slots=True)
class Plan:
    """A stream made from a number: what is said, and where it is cut. The same on both sides of the connection.

    Attributes:
        tokens: What the model says.
        whole: How many of them arrive: all, or those before the cut.
        how: How it is cut there; empty when it is not.
        faults: Of the emulator.
    """

    tokens: tuple[str, ...]
    whole: int
    how: str
    faults: Any

    @property
    def script(self) -> Reply:
        return Reply(self.tokens)

    @property
    def ours(self) -> str:
        """The error this library has to raise; empty when it has to complete."""
        return "" if not self.how else "IncompleteStreamError" if self.how == "end" else "StreamConnectionError"


def plan(name: str) -> Plan:
    """Returns the stream called `plain <number>` or `cut <number>`.

    Raises:
        ValueError: Neither.
    """
    kind, _, number = name.partition(" ")
    if kind not in ("plain", "cut") or not number.isdigit():
        raise ValueError(f"no stream is called {name!r}")
    luck = random.Random(name)
    # The number goes into the text: another stream's text can't be taken for this one's.
    tokens = (number, *(f" {luck.choice(WORDS)}" for _ in range(luck.randrange(4, 60))))
    splits = luck.choice((None, None, None, Split(every=luck.randrange(1, 400)), Split(inside="utf-8"), Gzip()))
    if kind == "plain":
        if luck.random() < 0.02:
            # Whoever uses the connection next finds it closed, perhaps with the request under way.
            return Plan(tokens, len(tokens), "", CloseAfter())
        return Plan(tokens, len(tokens), "", splits)
    how: Any = luck.choice(("reset", "close", "chunk", "end"))
    at = luck.randrange(len(tokens) + 1)
    cut = Cut(how=how, after_token=at)
    return Plan(tokens, at, how, cut if splits is None else splits + cut)

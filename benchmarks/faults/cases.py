"""The table of fault cases (`case` says what a case is, `verdicts` judges the clients). Data only."""

import json
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.faults.case import COMPLETE, EITHER, ERROR, TEXT, TOKEN, TOKENS, Case, Truth
from benchmarks.faults.edits import At, Change, ChangeAll, Whole, dropping, edited, instead, payload, setting
from benchmarks.faults.floods import floods
from together_async.testing import (
    DIALECTS,
    OPENAI,
    TOGETHER,
    Call,
    CloseAfter,
    Cut,
    Drip,
    ErrorInStream,
    Fault,
    Frame,
    Garbage,
    Gzip,
    Headers,
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

OTHER = "A second choice says something else."
SPOKEN_PAUSE_S = 0.3
"""A pause that is not a fault: the clients' timeouts are longer."""
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
    before: Fault = Gzip() if framing == "gzip" else Frame(framing)  # type: ignore[arg-type]  # a str from a table
    faults = before + PLACES[place](lambda **at: Cut(how=how, **at))
    name = f"cut: {framing}, {how} {place}"
    if place == "after DONE":
        return Case(name, faults)
    if place in ("before DONE", "inside DONE"):
        # Every choice has its finish reason. Some servers (transformers serve) always end so. If the connection breaks
        # there, one client may report a complete answer, and another a broken connection.
        return Case(name, faults, COMPLETE if how == "end" and place == "before DONE" else EITHER)
    if framing == "close" and how == "reset":
        # Where the end of the connection ends the body, aiohttp doesn't report whether it was a RST or a FIN.
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
                # After [DONE] nothing is missing, so nothing may fail; before it, see `_cut`. A ping in the middle of a
                # line is not a comment but a broken event.
                open_to_both = place != "after DONE"
                if ping is None or place != "inside DONE":
                    yield Case(name, faults, EITHER if open_to_both else COMPLETE)
            elif ping is None or not place.startswith("inside"):
                # Pings keep a connection alive, but they are not content: a client that waits on because of them hangs.
                begun = place != "after the head"
                yield Case(name, faults, ERROR, "StreamTimeoutError" if begun else "APITimeoutError")
    yield Case(
        "stall: a comment that never ends",
        Stall(after_token=TOKEN, ping_every=0.1, ping=b":"), ERROR, "StreamTimeoutError",
    )  # table  # fmt: skip
    yield Case(
        "stall: deltas without content for ever",
        Stall(
            after_token=TOKEN,
            ping_every=0.1,
            ping=b'data: {"id":"x","object":"chat.completion.chunk","created":1,"model":"m",'
            b'"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n',
        ),
        ERROR,  # as with pings: this is not content
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
ONE_READ = "aiohttp drops a response that came in one read with more bytes than its content-length"


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
        # The status is known, so it has to be reported, whatever becomes of the body.
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
    """A token's event arrives damaged: a client that skips it has lost the token."""

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
    # By the event stream standard, bytes that are not UTF-8 become U+FFFD; JSON must not contain them.
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
    # Nothing is lost with these, so they may be ignored.
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
    )  # table  # fmt: skip
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
    # By the standard an event with empty data is dispatched, but it is not JSON: some clients ignore it, some refuse
    # it.
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
               truth=(Truth(reason="tired"),))  # table  # fmt: skip
    yield case("finish reason eos", script=Reply(TOKENS, finish_reason="eos"), any_reason=True,
               truth=(Truth(reason="eos"),))  # table  # fmt: skip
    yield case("finish reason length", script=Reply(TOKENS, finish_reason="length"), truth=(Truth(reason="length"),))
    yield case("escapes of JSON", ChangeAll(dropping()))  # json.dumps writes the escapes
    yield case("an empty answer", script=Reply(()), truth=(Truth(""),))
    yield case("line feeds and quotes in the text", script='"\n\r\n\t\\u0041\x7f\u2028 [DONE]\ndata: x',
               truth=(Truth('"\n\r\n\t\\u0041\x7f\u2028 [DONE]\ndata: x'),))  # table  # fmt: skip
    yield case("a delta of 500,000 characters", script=Reply(("a" * 500_000,)), truth=(Truth("a" * 500_000),))
    yield case("5,000 tokens", script=Reply((" x",) * 5000), truth=(Truth(" x" * 5000),))
    for dialect in (TOGETHER, OPENAI):
        call = Reply(None, tool_calls=(Call("get_weather", ARGUMENTS), Call("get_weather", "{}")))
        calls = (("get_weather", ARGUMENTS), ("get_weather", "{}"))
        yield case(f"tool calls, {dialect.name}", script=call, truth=(Truth("", "tool_calls", calls),), dialect=dialect,
                   options={"tools": [TOOL]})  # table  # fmt: skip
    for dialect in (TOGETHER, DIALECTS["llama.cpp"]):
        yield case(f"n = 2, {dialect.name}", script=(Reply(TOKENS), OTHER), truth=(Truth(), Truth(OTHER)),
                   options={"n": 2}, dialect=dialect)  # table  # fmt: skip
    for name in ("gpt-oss", "deepseek"):
        yield case(f"reasoning, {name}", script=Reply(TOKENS, reasoning="Think first."), dialect=DIALECTS[name],
                   truth=(Truth(reasoning="Think first."),))  # table  # fmt: skip
    yield case("redirect 307", Redirect())
    yield case("redirect 308", Redirect(code=308))
    yield case("slow drip", Drip(size=400, every_s=0.25))
    yield case("no content type", Headers({"content-type": None}))
    yield case("content type text/plain", Headers({"content-type": "text/plain"}))
    yield case(
        "an early hint before the head", Insert(data=b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n", in_head=0)
    )
    yield case("a chunk extension and trailers", Raw(CHUNKY), truth=(Truth("Hello"),), script="Hello")
    # A whole completion in response to a stream request holds the whole answer, but few clients look for it there.
    yield case("a whole JSON completion", Whole(COMPLETION), right=EITHER, truth=(Truth("Hello"),), script="Hello")
    yield case("a connection closed while it was idle", InTurn(CloseAfter()), streams=2)
    # Closed as the next request arrives: resending it is right, and with retries off so is an error.
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

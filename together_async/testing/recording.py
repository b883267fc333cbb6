"""Record what a server sends, with its timing, and replay it.

A recording is a file of JSON lines, one for each exchange: the request without what is private, the response's status
and headers, and the body's pieces with the second at which each came. `Recorder` is a proxy on loopback that makes one
from any client's traffic, whatever SDK or language that is written in; the emulator replays it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import json
import math
import re
import urllib.request
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import attrs
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from together_async.request import ChatCompletionRequest
from together_async.testing.response import ConnectionEnd, Piece, Position, ResponsePlan
from together_async.wire import codec
from together_async.wire.sse import EventStreamParser

VERSION = 1


@attrs.frozen
class RecordedExchange:
    """One exchange.

    Args:
        status: The response's status.
        headers: The response's headers, names in lower case.
        pieces: When a piece of the body came, in seconds since the request, and its bytes.
        request: The request's body; without messages and other texts unless prompts were kept. Empty when it was no
            JSON object.
        complete: Whether the body came to its end; False when the connection broke or the client left.
        began_s: When the head had come, in seconds since the request.
        ended_s: When the body had ended or broken off; None when that was with the last piece.
    """

    status: int
    headers: Mapping[str, str] = attrs.field(hash=False)
    pieces: tuple[tuple[float, bytes], ...]
    request: Mapping[str, Any] = attrs.field(factory=dict, hash=False, repr=False)
    complete: bool = True
    began_s: float = 0.0
    ended_s: float | None = None

    def __repr__(self) -> str:
        # What was said stays out of logs.
        state = "complete" if self.complete else "broken off"
        return f"<RecordedExchange {self.status} {state}, {self.size} bytes in {len(self.pieces)} pieces>"

    @property
    def size(self) -> int:
        """Bytes of the body."""
        return sum(len(data) for _, data in self.pieces)

    @property
    def model(self) -> str:
        """The model that was asked; empty when it is not known."""
        return str(self.request.get("model", ""))

    @functools.cached_property
    def tokens(self) -> tuple[int, ...]:
        """How many tokens end in each piece."""
        if not self.pieces:
            return ()
        if self.headers.get("content-type", "").startswith("text/event-stream"):
            parser = EventStreamParser(max_event_size=max(1, self.size))
            return tuple(sum(_tokens_in_chunk(event.data) for event in parser.feed(data)) for _, data in self.pieces)
        body = _json_object(b"".join(data for _, data in self.pieces))
        counted = (body.get("usage") or {}).get("completion_tokens")
        return (*[0] * (len(self.pieces) - 1), counted if isinstance(counted, int) else 0)

    def to_line(self) -> bytes:
        """Returns it as a line of a recording."""
        body = {
            "recording": VERSION,
            "request": self.request,
            "status": self.status,
            "headers": self.headers,
            "began": round(self.began_s, 6),
            "data": [[round(at, 6), _text_or_base64(data)] for at, data in self.pieces],
            "ended": None if self.ended_s is None else round(self.ended_s, 6),
            "complete": self.complete,
        }
        return codec.encode(body) + b"\n"

    @classmethod
    def from_line(cls, line: bytes, where: str) -> Self:
        """Reads a line of a recording.

        Raises:
            ValueError: It is none; the text says where.
        """
        try:
            body = codec.decode_json(line)
            if not isinstance(body, dict) or "recording" not in body:
                raise ValueError('expected an object with the key "recording"')
            if body["recording"] != VERSION:
                raise ValueError(f"got version {body['recording']!r}, expected {VERSION}")
            ended = body.get("ended")
            return cls(
                status=_of("status", body, int, lambda status: 200 <= status <= 599),
                headers={name.lower(): _of(name, body["headers"], str) for name in _of("headers", body, dict)},
                pieces=tuple((_seconds(at), _bytes(data)) for at, data in _of("data", body, list)),
                request=_of("request", body, dict),
                complete=_of("complete", body, bool),
                began_s=_seconds(body.get("began", 0.0)),
                ended_s=None if ended is None else _seconds(ended),
            )
        except KeyError as error:
            raise ValueError(f"{where}: not a line of a recording: {error} is missing") from error
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: not a line of a recording: {error}") from error


def _of(name: str, body: Mapping[str, Any], kind: type, check: Callable[[Any], bool] | None = None) -> Any:
    value = body[name]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)) or (check and not check(value)):
        raise ValueError(f"{name}: unexpected {type(value).__name__} {str(value)[:40]!r}")
    return value


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError(f"got {str(value)[:40]!r}, expected seconds, at least 0")
    return float(value)


def _text_or_base64(data: bytes) -> str | dict[str, str]:
    try:
        return data.decode()
    except UnicodeDecodeError:  # a piece that ends inside a character
        return {"base64": base64.b64encode(data).decode()}


def _bytes(data: Any) -> bytes:
    if isinstance(data, str):
        return data.encode()
    if isinstance(data, dict) and isinstance(data.get("base64"), str):
        return base64.b64decode(data["base64"], validate=True)
    raise ValueError(f'got {type(data).__name__} among the data, expected a text or {{"base64": ...}}')


def _json_object(data: bytes) -> dict[str, Any]:
    try:
        value = codec.decode_json(data)
    except codec.JSONError:
        return {}
    return value if isinstance(value, dict) else {}


def _tokens_in_chunk(data: bytes | str) -> int:
    """How many choices of a chunk go on: what a stream tells of tokens."""
    choices = _json_object(data.encode() if isinstance(data, str) else data).get("choices")
    deltas = [one.get("delta") for one in choices if isinstance(one, dict)] if isinstance(choices, list) else []
    keys = ("content", "reasoning", "reasoning_content", "tool_calls")
    return sum(any(delta.get(key) for key in keys) for delta in deltas if isinstance(delta, dict))


@attrs.frozen
class Recording:
    """A recording: exchanges in the order in which they ended.

    Given to an emulator as its script: a request whose body was recorded (with its prompts) gets that response,
    every other one the next in turn, from the start again after the last.
    """

    exchanges: tuple[RecordedExchange, ...]

    def __attrs_post_init__(self) -> None:
        if not self.exchanges:
            raise ValueError("an empty recording, expected at least one exchange")

    def __repr__(self) -> str:
        return f"<Recording of {len(self.exchanges)} exchanges>"

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads a recording.

        Raises:
            OSError: It can't be read.
            ValueError: It is none; the text names file and line.
        """
        lines = Path(path).read_bytes().split(b"\n")
        exchanges = [
            RecordedExchange.from_line(line, f"{path}:{at}") for at, line in enumerate(lines, 1) if line.strip()
        ]
        if not exchanges:
            raise ValueError(f"{path}: an empty recording, expected at least one exchange")
        return cls(tuple(exchanges))

    def save(self, path: str | Path) -> None:
        """Writes the recording to a file, in place of what is there.

        Raises:
            OSError: It can't be written.
        """
        Path(path).write_bytes(b"".join(exchange.to_line() for exchange in self.exchanges))

    def choose(self, request: ChatCompletionRequest, turn: int, *, streamed: bool | None = None) -> RecordedExchange:
        """Returns the exchange that answers a request.

        Args:
            request: What is asked.
            turn: How many were asked before: what was recorded several times is answered in turn.
            streamed: Whether a stream is asked for; an answer of that kind is taken if there is one. None takes either.
        """
        known = self._by_request.get(_asked(request), ())
        candidates: Sequence[RecordedExchange] = known or self.exchanges
        at = turn % len(candidates)
        for exchange in (*candidates[at:], *candidates[:at]):
            if streamed is None or exchange.request.get("stream", False) is streamed:
                return exchange
        return candidates[at]

    @functools.cached_property
    def _by_request(self) -> dict[str, list[RecordedExchange]]:
        """The exchanges whose requests were kept whole, by what was asked."""
        found: dict[str, list[RecordedExchange]] = {}
        for exchange in self.exchanges:
            with contextlib.suppress(ValueError):  # the messages were not kept
                asked = _asked(ChatCompletionRequest.from_dict(exchange.request))
                found.setdefault(asked, []).append(exchange)
        return found


def _asked(request: ChatCompletionRequest) -> str:
    """The same for the same question, in whatever order, as a stream or not."""
    body = json.loads(codec.encode(request.to_dict()))
    body.pop("stream_options", None)
    return json.dumps(body, sort_keys=True)


def replay(recorded: RecordedExchange, response: ResponsePlan, *, speed: float) -> None:
    """Makes the plan of a response from a recorded one.

    Args:
        recorded: What came then.
        response: The plan, changed in place.
        speed: How many times as fast; infinite for at once.
    """
    response.status = recorded.status
    response.headers = dict(recorded.headers)
    response.framing = "chunked" if response.streamed or not recorded.complete else "length"
    times = (recorded.began_s, *(at for at, _ in recorded.pieces))
    waits = [max(0.0, at - before) / speed for before, at in zip((0.0, *times), times, strict=False)]
    if waits[0]:
        response.insert(Position(), Piece(wait_s=waits[0]))
    response.body = [
        Piece(data, tokens=tokens, wait_s=wait)
        for (_, data), tokens, wait in zip(recorded.pieces, recorded.tokens, waits[1:], strict=True)
    ]
    end = None if recorded.complete else ConnectionEnd.CLOSE
    rest = 0.0 if recorded.ended_s is None else max(0.0, recorded.ended_s - times[-1]) / speed
    if rest or end:
        response.body.append(Piece(wait_s=rest, end=end, raw=end is not None))


# ------------------------------------------------------------------------------------------------------------- recorder

_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers of one connection, which no proxy passes on (RFC 9110, 7.6.1)."""
_NOT_SENT = _HOP_BY_HOP | {"host", "content-length", "content-encoding", "accept-encoding", "expect"}
"""What the upstream is told by us: bodies have been decompressed, and are asked for uncompressed."""
_NOT_RECORDED = _HOP_BY_HOP | {"content-encoding", "content-length", "date", "server", "set-cookie"}
"""Headers of a response that belong to its transfer or its visitor."""
_CREDENTIALS = frozenset({"authorization", "proxy-authorization", "cookie", "api-key", "x-api-key", "x-auth-token"})
_CHAT = "/chat/completions"
_MAX_REQUEST = 256 * 1024 * 1024
_SHUTDOWN_SECONDS = 0.1


class Recorder:
    """A proxy that passes requests on to a server and records the answers.

    ```python
    async with Recorder("sky.jsonl", upstream="https://api.together.xyz/v1") as recorder:
        client = AsyncTogether(base_url=recorder.base_url)  # the key is passed on, and not recorded
    ```

    Chat completions are recorded, and whatever else is asked is passed on only. What the server sends is passed on
    byte by byte as it comes; where it breaks off, so does the proxy, and where the client leaves, it leaves the server.
    What came until then is recorded as incomplete. An answer of which not even the head came is not.

    No header of a request is recorded. Prompts are not either unless asked for: of the request its numbers, flags and
    the model's name remain; of the response, the prompt that was asked for with `echo` goes, and wherever it repeats
    the key or a text of the request as a whole, that is taken out. (What the model itself says of the prompt, token by
    token, is its answer and stays.)

    The environment's proxy variables are honoured; redirects are passed on rather than followed; no cookies are kept.

    Args:
        path: The file; exchanges are added to what is there.
        upstream: The `base_url` to pass requests on to.
        keep_prompts: Whether requests are recorded with all they say, so that a replay finds the answer to each.
        host: The address to listen on.
        port: 0 for a free one.
        on_end: Called with each exchange once it is in the file.

    Attributes:
        recorded: How many exchanges were recorded.

    Raises:
        ValueError: The upstream is no http or https URL.
        OSError: On entering, when the file can't be written or the address is in use; on leaving, when an exchange
            could not be written. From then on requests are refused, so that nobody pays for what is lost.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        upstream: str,
        keep_prompts: bool = False,
        host: str = "127.0.0.1",
        port: int = 0,
        on_end: Callable[[RecordedExchange], None] | None = None,
    ) -> None:
        self.path = Path(path)
        self.recorded = 0
        self._upstream = URL(upstream.rstrip("/"))
        if self._upstream.scheme not in {"http", "https"} or not self._upstream.host or self._upstream.query_string:
            raise ValueError(f"upstream: got {upstream!r}, expected http://... or https://..., ending in /v1")
        self._keep_prompts = keep_prompts
        self._on_end = on_end
        self._host = host
        self._port = port
        self._error: OSError | None = None
        self._under_way: set[asyncio.Task[Any]] = set()
        self._runner: web.AppRunner | None = None
        self._session: aiohttp.ClientSession | None = None

    def __repr__(self) -> str:
        return f"<Recorder of {self._upstream.with_user(None)} to {self.path}, {self.recorded} exchanges>"

    @property
    def base_url(self) -> str:
        """What a client takes as `base_url`; ends in `/v1`.

        Raises:
            RuntimeError: It does not run and no port was given.
        """
        if not self._port:
            raise RuntimeError("the recorder does not run; enter it with `async with`")
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}/v1"

    # -------------------------------------------------------------------------------------------------------- lifetime

    async def __aenter__(self) -> Self:
        if self._runner is not None:
            raise RuntimeError("the recorder runs already; make another one")
        with self.path.open("ab"):  # now rather than after the first answer was paid for
            pass
        app = web.Application(client_max_size=_MAX_REQUEST)
        app.router.add_route("*", "/v1/{path:.*}", self._handle)
        # A handler is cancelled when its client leaves, and then the upstream is left too.
        self._runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS
        )
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except OSError:
            await self._runner.cleanup()
            self._runner = None
            raise
        self._port = self._runner.addresses[0][1]
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
            # The client's headers, and none of ours.
            skip_auto_headers=("Accept", "Content-Type", "User-Agent"),
            proxy=_proxy_for(self._upstream),
        )
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        runner, self._runner = self._runner, None
        session, self._session = self._session, None
        assert runner is not None and session is not None  # noqa: S101, PT018 - entered
        # aiohttp would wait for the streams under way; closing its session would not wake those who read from it.
        tasks = tuple(self._under_way)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await runner.cleanup()
        await session.close()
        if self._error is not None and exc is None:
            raise self._error

    # -------------------------------------------------------------------------------------------------------- exchange

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in one
        self._under_way.add(task)
        try:
            return await self._pass_on(request)
        finally:
            self._under_way.discard(task)

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        if self._error is not None:
            return _refusal(500, f"the recording can't be written: {self._error.strerror}")
        body = await request.read()
        clock = asyncio.get_running_loop().time
        started = clock()
        try:
            upstream = await self._ask(request, body)
        except aiohttp.ClientConnectorError as error:
            return _refusal(502, f"no connection to the upstream: {type(error).__name__}")
        except aiohttp.ClientError:
            return _break_off(request)
        exchange = _ForwardedResponse(upstream, lambda: clock() - started)
        try:
            return await exchange.pass_on(request)
        except aiohttp.ClientError:  # the upstream broke off, or the client left
            return _break_off(request)
        finally:
            upstream.close()  # unless the body is complete, when this gives the connection back
            if request.method == "POST" and request.path.endswith(_CHAT):
                self._keep(exchange.recorded(_json_object(body)), _credentials(request))

    async def _ask(self, request: web.Request, body: bytes) -> aiohttp.ClientResponse:
        assert self._session is not None  # noqa: S101 - entered
        named = {name.strip().lower() for name in request.headers.get("connection", "").split(",")}
        headers = CIMultiDict(
            (name, value) for name, value in request.headers.items() if name.lower() not in _NOT_SENT | named
        )
        headers["Accept-Encoding"] = "identity"  # compressed, it would be recorded compressed, prompts and all
        target = request.raw_path.removeprefix("/v1")
        return await self._session.request(
            request.method,
            URL(f"{self._upstream}{target}", encoded=True),
            data=body or None,
            headers=headers,
            allow_redirects=False,
        )

    def _keep(self, recorded: RecordedExchange, credentials: Sequence[str]) -> None:
        kept = without_private(recorded, credentials, keep_prompts=self._keep_prompts)
        line = kept.to_line()
        try:
            with self.path.open("ab") as file:
                start = file.tell()
                try:
                    file.write(line)
                    file.flush()
                except OSError:
                    with contextlib.suppress(OSError):
                        file.truncate(start)  # half a line would spoil the others
                    raise
        except OSError as error:
            self._error = error
            return
        self.recorded += 1
        if self._on_end is not None:
            self._on_end(kept)


class _ForwardedResponse:
    """One response on its way from the upstream to the client, and what came of it."""

    def __init__(self, upstream: aiohttp.ClientResponse, clock: Callable[[], float]) -> None:
        self._upstream = upstream
        self._clock = clock
        self._began = clock()
        self._pieces: list[tuple[float, bytes]] = []
        self._complete = False

    async def pass_on(self, request: web.Request) -> web.StreamResponse:
        """Passes the response on, each piece at once."""
        upstream = self._upstream
        decoded = "Content-Encoding" in upstream.headers  # by aiohttp, although it was not asked for
        removed = _HOP_BY_HOP | ({"content-encoding", "content-length"} if decoded else set[str]())
        headers = CIMultiDict((name, value) for name, value in upstream.headers.items() if name.lower() not in removed)
        response = web.StreamResponse(status=upstream.status, reason=upstream.reason, headers=headers)
        await response.prepare(request)
        async for data in upstream.content.iter_any():
            self._pieces.append((self._clock(), data))
            await response.write(data)
        self._complete = True
        await response.write_eof()
        return response

    def recorded(self, request: Mapping[str, Any]) -> RecordedExchange:
        """Returns what came until now."""
        kept = {
            name.lower(): value for name, value in self._upstream.headers.items() if name.lower() not in _NOT_RECORDED
        }
        pieces, ended = tuple(self._pieces), self._clock()
        return RecordedExchange(self._upstream.status, kept, pieces, request, self._complete, self._began, ended)


def _refusal(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": f"recorder: {message}", "type": "recorder_error"}}, status=status)


def _break_off(request: web.Request) -> web.StreamResponse:
    """Ends the client's connection after what was written, instead of ending the response in good order."""
    if request.transport is not None:
        request.transport.close()
    return web.Response()  # never sent


def _proxy_for(url: URL) -> str | None:
    """The environment's proxy for a URL. aiohttp's own look at the environment would add credentials from .netrc."""
    if url.host is None or urllib.request.proxy_bypass(f"{url.host}:{url.port}"):
        return None
    proxies = urllib.request.getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    return proxy if not proxy or "://" in proxy else f"http://{proxy}"


# -------------------------------------------------------------------------------------------------------------- privacy

_REMOVED = b"[removed]"
_MIN_KEY = 6
_MIN_TEXT = 8
_MIN_TEXT_IN_ERROR = 4
"""Fewer characters are a word like any other, whose removal would shred answers. An error holds no answer."""
_WORDS = frozenset({"role", "type", "model", "object"})
"""Keys whose values are the protocol's words."""
_ANSWERED = frozenset({"name", "id", "tool_call_id", "enum", "const", "default", "required", "format"})
"""Keys whose values an answer has to repeat: it calls a tool by its name."""
_KEPT: frozenset[str] = frozenset(field.name for field in attrs.fields(ChatCompletionRequest))
_DEPTH = 4
_ESCAPE = re.compile(
    rb'\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|["\\/bfnrt])', re.ASCII
)
_ECHO = re.compile(rb'"prompt(?:_token_ids|_logprobs)?"\s*:\s*(?=[\["{])')

_Span = tuple[int, int, bytes]
"""From, to, and what stands there instead."""


def without_private(recorded: RecordedExchange, credentials: Iterable[str], *, keep_prompts: bool) -> RecordedExchange:
    """Returns an exchange without the key, and without what was asked unless that is to be kept.

    Args:
        recorded: The exchange, with its whole request.
        credentials: What must not be in it in any case.
        keep_prompts: Whether the request and its repetitions stay.
    """
    secrets = {credential for credential in credentials if len(credential) >= _MIN_KEY}
    request = dict(recorded.request)
    if not keep_prompts:
        secrets.update(_texts(request, is_error=recorded.status >= 400))
        request = {
            name: value
            for name, value in request.items()
            if name in _KEPT | {"stream"} and (isinstance(value, (bool, int, float)) or name == "model")
        }
        if not isinstance(request.get("model", ""), str):
            del request["model"]
    whole = b"".join(data for _, data in recorded.pieces)
    spans = [*_spans(whole, secrets), *(() if keep_prompts else _echoes(whole))]
    pieces = _cut_out(recorded.pieces, _disjoint(spans)) if spans else recorded.pieces
    headers = {name: _plain_without(value, secrets) for name, value in recorded.headers.items()}
    return attrs.evolve(recorded, request=request, headers=headers, pieces=tuple(pieces))


def _credentials(request: web.Request) -> list[str]:
    """The key and its like, as they stand in the headers and without their scheme."""
    found: list[str] = []
    for name, value in request.headers.items():
        if name.lower() in _CREDENTIALS:
            found += (value, value.rpartition(" ")[2])
    return found


def _texts(value: Any, *, is_error: bool, key: str = "") -> Iterator[str]:
    """Every text of a request that must not be in a recording."""
    if key in _WORDS and isinstance(value, str):
        return
    if key in _ANSWERED and not is_error and not isinstance(value, Mapping):
        return
    if isinstance(value, str):
        if len(value) >= (_MIN_TEXT_IN_ERROR if is_error else _MIN_TEXT):
            yield value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            if not name.isidentifier() or (is_error and key == "properties"):  # not the protocol's
                yield from _texts(name, is_error=is_error)
            yield from _texts(item, is_error=is_error, key=name)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, is_error=is_error, key=key)


def _spans(whole: bytes, secrets: Iterable[str]) -> Iterator[_Span]:
    """Where the secrets are: as they are, and escaped as JSON does it, which may be JSON within JSON."""
    wanted = [secret.encode("utf-8", "surrogatepass") for secret in secrets]
    data, layers = whole, list[_Layer]()
    for _ in range(_DEPTH):
        for secret in wanted:
            at = data.find(secret)
            while at >= 0:
                span = (at, at + len(secret))
                for layer in reversed(layers):
                    span = (layer.outside(span[0]), layer.outside(span[1]))
                yield (*_beyond_escapes(whole, *span), _REMOVED)
                at = data.find(secret, at + len(secret))
        layer = _Layer(data)
        if layer.inside == data:
            return
        layers.append(layer)
        data = layer.inside


class _Layer:
    """Bytes with JSON's escapes replaced by what they stand for, and the way back."""

    def __init__(self, data: bytes) -> None:
        parts: list[bytes] = []
        self._inside_at, self._outside_at = [0], [0]
        done = size = 0
        for escape in _ESCAPE.finditer(data):
            start, end = escape.span()
            character = _character(escape[0])
            parts += (data[done:start], character)
            size += start - done
            self._inside_at += (size, size + len(character))
            self._outside_at += (start, end)
            size += len(character)
            done = end
        parts.append(data[done:])
        self.inside = b"".join(parts)

    def outside(self, at: int) -> int:
        """Returns where a byte of the inside begins outside."""
        mark = bisect_right(self._inside_at, at) - 1
        return self._outside_at[mark] + at - self._inside_at[mark]


def _character(escape: bytes) -> bytes:
    text = json.loads(b'"' + escape + b'"')
    return str(text).encode("utf-8", "surrogatepass")


def _beyond_escapes(whole: bytes, start: int, end: int) -> tuple[int, int]:
    """The span, with the escapes at its edges whole: half of one would spoil the JSON."""
    for edge in (start, end):
        # An escape has at most 12 bytes; a run of backslashes before it says which of them begins one.
        at = max(0, edge - 12)
        while at > 0 and whole[at - 1] == 0x5C:
            at -= 1
        for escape in _ESCAPE.finditer(whole, at, edge + 12):
            if escape.start() < edge < escape.end():
                start, end = min(start, escape.start()), max(end, escape.end())
    return start, end


def _echoes(whole: bytes) -> Iterator[_Span]:
    """Where the response gives the prompt back because it was asked to: as text, as tokens, or as their numbers."""
    text = whole.decode("latin-1")  # a character for each byte
    for found in _ECHO.finditer(whole):
        start = found.end()
        try:
            value, end = json.JSONDecoder(strict=False).raw_decode(text, start)
        except ValueError:  # it broke off in there
            end, value = len(whole), True
        if value:
            yield start, end, b"[]"


def _disjoint(spans: Iterable[_Span]) -> list[_Span]:
    """The spans in order, those that overlap as one."""
    merged: list[_Span] = []
    for start, end, instead in sorted(spans, key=lambda span: (span[0], -span[1])):
        if merged and start < merged[-1][1]:
            first, last, note = merged[-1]
            merged[-1] = (first, max(last, end), note)
        else:
            merged.append((start, end, instead))
    return merged


def _cut_out(pieces: Iterable[tuple[float, bytes]], spans: Sequence[_Span]) -> Iterator[tuple[float, bytes]]:
    """The pieces without the spans, also where one lies across pieces; a note stands where one begins."""
    start = index = 0
    for when, data in pieces:
        end, at = start + len(data), start
        kept: list[bytes] = []
        while index < len(spans) and spans[index][0] < end:
            first, last, instead = spans[index]
            if first >= start:
                kept += (data[at - start : first - start], instead)
            at = min(last, end)
            if last > end:
                break
            index += 1
        kept.append(data[at - start :])
        yield when, b"".join(kept)
        start = end


def _plain_without(text: str, secrets: Iterable[str]) -> str:
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, _REMOVED.decode())
    return text

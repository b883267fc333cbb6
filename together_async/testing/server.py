"""The emulator: a server on a real socket that answers like Together's API, or breaks as told."""

from __future__ import annotations

import asyncio
import hashlib
import math
import random
import ssl as ssl_module
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self, cast

import attrs

from together_async.request import ChatCompletionRequest
from together_async.testing import dialect as shapes
from together_async.testing.account import Account
from together_async.testing.connection import Connection, Incoming, MalformedRequestError
from together_async.testing.dialect import DEEPSEEK, GPT_OSS, TOGETHER, Dialect, Generation
from together_async.testing.fault import Fault
from together_async.testing.journal import Entry, Journal
from together_async.testing.recording import Recording, replay
from together_async.testing.response import Piece, ResponsePlan
from together_async.testing.rules import Chooser, Rule, choose
from together_async.testing.script import Script, UnsatisfiableError, generate_choices, prompt_tokens, text_of
from together_async.wire import codec

START_SECONDS = 10.0
HANDSHAKE_SECONDS = 3.0


def _at_least_0(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise ValueError(f"{name}: got {value!r}, expected a number of at least 0")
    return value


def _positive(name: str, value: float | None) -> float | None:
    if value is not None and not value > 0:
        raise ValueError(f"{name}: got {value!r}, expected more than 0, or None for no limit")
    return value


@attrs.frozen
class Model:
    """A model that the emulator pretends to have.

    Args:
        id: Its name.
        dialect: The shapes in which it answers.
        context_length: Most tokens of prompt and `max_tokens` together.
        input_price: US dollars per million tokens of the prompt.
        output_price: US dollars per million generated tokens.
        tokens_per_second: In place of the server's.
        first_token_s: In place of the server's.
    """

    id: str
    dialect: Dialect = TOGETHER
    context_length: int = 131_072
    input_price: float = 0.88
    output_price: float = 0.88
    tokens_per_second: float | None = None
    first_token_s: float | None = None

    def __attrs_post_init__(self) -> None:
        _positive("tokens_per_second", self.tokens_per_second)
        _at_least_0("first_token_s", self.first_token_s or 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Returns what `GET /models` says of it."""
        organization, _, name = self.id.rpartition("/")
        return {
            "id": self.id,
            "object": "model",
            "created": 0,
            "type": "chat",
            "display_name": name,
            "organization": organization,
            "link": "",
            "license": "",
            "context_length": self.context_length,
            "pricing": {
                "hourly": 0,
                "input": self.input_price,
                "output": self.output_price,
                "base": 0,
                "finetune": 0,
            },
        }


MODELS: tuple[Model, ...] = (
    Model("meta-llama/Llama-3.3-70B-Instruct-Turbo"),
    Model("openai/gpt-oss-20b", GPT_OSS, input_price=0.05, output_price=0.2),
    Model("deepseek-ai/DeepSeek-R1", DEEPSEEK, context_length=163_840, input_price=3.0, output_price=7.0),
)
"""What the emulator has when it is not told otherwise; every other name is answered too, in Together's shape."""


class EmulatorServer:
    """A server on loopback that speaks Together's API, says what it is told and breaks where it is told.

    ```python
    async with EmulatorServer("Hello there!", faults=Cut(after_token=1)) as server:
        client = AsyncTogether("any-key", base_url=server.base_url)
    ```

    `async with` runs it in the running event loop; a plain `with` in a thread and loop of its own, for tests that are
    not async, or whose loop is blocked by what is tested. Everything but the address can be changed while it runs.

    Args:
        script: What it says: a text, a `Reply`, several of them (one for each choice), a function of the request that
            returns such, `InTurn` (or another chooser) of such, a `Recording`; None for generated text, which is the
            same for the same request and seed.
        faults: What goes wrong: a fault, a rule, a function of the request, several of these.
        account: Limits of requests and tokens; None for none.
        tokens_per_second: Speed of each choice's stream, and of the work on a whole response; None for as fast as can
            be.
        first_token_s: Seconds to the first token.
        jitter: By how much each of the gaps differs, as a fraction, 0 to 1.
        seed: Of all chance: what is generated, and which requests `Chance` picks.
        models: The models that it has, as `Model`s or names; others are answered with 404. None for `MODELS` and any
            other name.
        dialect: The shapes in which every name answers that is none of these models.
        api_key: The key that it accepts; None accepts any, and none.
        replay_speed: How many times as fast as it was a `Recording` is replayed; infinite for at once.
        host: The address to listen on.
        port: 0 for a free one.
        ssl: TLS settings, for `https`.
        journal_size: How many requests the journal keeps.
        on_end: Called with each entry of the journal when its exchange has ended; must not raise.

    Attributes:
        journal: What it saw.
        connections: How many connections were accepted.

    Raises:
        OSError: On entering, when the address is in use.
    """

    def __init__(
        self,
        script: Script | Recording | Chooser = None,
        *,
        faults: Rule = None,
        account: Account | None = None,
        tokens_per_second: float | None = None,
        first_token_s: float = 0.0,
        jitter: float = 0.0,
        seed: int = 0,
        models: Iterable[Model | str] | None = None,
        dialect: Dialect = TOGETHER,
        api_key: str | None = None,
        replay_speed: float = math.inf,
        host: str = "127.0.0.1",
        port: int = 0,
        ssl: ssl_module.SSLContext | None = None,
        journal_size: int = 10_000,
        on_end: Callable[[Entry], None] | None = None,
    ) -> None:
        self._script, self._script_turns = script, dict[int, int]()
        self._faults, self._fault_turns = faults, dict[int, int]()
        self._replayed = 0
        self.account = account
        self.tokens_per_second = _positive("tokens_per_second", tokens_per_second)
        self.first_token_s = _at_least_0("first_token_s", first_token_s)
        self.jitter = _at_least_0("jitter", jitter)
        if jitter > 1:
            raise ValueError(f"jitter: got {jitter!r}, expected a fraction, 0 to 1")
        self.dialect = dialect
        self.seed = seed
        self.api_key = api_key
        if not replay_speed > 0:
            raise ValueError(f"replay_speed: got {replay_speed!r}, expected more than 0; math.inf is at once")
        self.replay_speed = replay_speed
        if not 0 <= port <= 65_535:
            raise ValueError(f"port: got {port!r}, expected 0 to 65535")
        if journal_size < 1:
            raise ValueError(f"journal_size: got {journal_size!r}, expected at least 1")
        self.journal = Journal(journal_size)
        self._on_end = on_end
        self.connections = 0
        self._models = {model.id: model for model in map(_model, MODELS if models is None else models)}
        self._any_model = models is None
        self._host = host
        self._port = port
        self._ssl = ssl
        self._open: set[Connection] = set()
        self._errors: list[Exception] = []
        self._server: asyncio.Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stop: asyncio.Event | None = None

    def __repr__(self) -> str:
        state = self.origin if self._server is not None else "not running"
        return f"<EmulatorServer {state}, {self.journal.total} requests>"

    @property
    def script(self) -> Script | Recording | Chooser:
        """What it says; setting it begins `InTurn` and `Recording` anew."""
        return self._script

    @script.setter
    def script(self, script: Script | Recording | Chooser) -> None:
        self._script, self._script_turns, self._replayed = script, {}, 0

    @property
    def faults(self) -> Rule:
        """What goes wrong; setting it begins `InTurn` anew."""
        return self._faults

    @faults.setter
    def faults(self, faults: Rule) -> None:
        self._faults, self._fault_turns = faults, {}

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'https' if self._ssl else 'http'}://{host}:{self.port}"

    @property
    def base_url(self) -> str:
        """What a client takes as `base_url`; ends in `/v1`."""
        return f"{self.origin}/v1"

    @property
    def port(self) -> int:
        """The port it listens on.

        Raises:
            RuntimeError: It does not run and none was given.
        """
        if not self._port:
            raise RuntimeError("the emulator does not run; enter it with `async with` or `with`")
        return self._port

    @property
    def models(self) -> tuple[Model, ...]:
        """The models it lists."""
        return tuple(self._models.values())

    @property
    def open_connections(self) -> int:
        """How many connections are open now."""
        return len(self._open)

    # -------------------------------------------------------------------------------------------------------- lifetime

    async def __aenter__(self) -> Self:
        loop = self._loop = asyncio.get_running_loop()
        if self._server is not None:
            raise RuntimeError("the emulator runs already; make another one")
        handshake = None if self._ssl is None else HANDSHAKE_SECONDS  # who never ends it must not hold up the close
        self._server = await loop.create_server(
            self._connected, self._host, self._port, ssl=self._ssl, backlog=1024, ssl_handshake_timeout=handshake
        )
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._close()
        if exc is None:
            self._raise_errors()

    async def _close(self) -> None:
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        connections = tuple(self._open)
        tasks = [connection.task for connection in connections if connection.task is not None]
        for connection in connections:
            connection.abort()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()

    def __enter__(self) -> Self:
        started = threading.Event()
        failures: list[BaseException] = []

        async def main() -> None:
            self._stop = asyncio.Event()
            try:
                async with self:
                    started.set()
                    await self._stop.wait()
            except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
                failures.append(error)
                started.set()

        self._failures = failures
        self._thread = threading.Thread(target=asyncio.run, args=(main(),), name="together-emulator", daemon=True)
        self._thread.start()
        if not started.wait(START_SECONDS):
            raise RuntimeError(f"the emulator did not start within {START_SECONDS} s")
        if failures:
            self._thread.join()
            raise failures[0]
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        assert self._loop is not None and self._stop is not None and self._thread is not None  # noqa: S101, PT018
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        if self._failures and exc is None:
            raise self._failures[0]

    def _raise_errors(self) -> None:
        """A script or rule that failed was answered with 500; here its author learns why."""
        if self._errors:
            raise self._errors[0]

    def _connected(self) -> Connection:
        connection = Connection(self.connections, self, self._open)
        self.connections += 1
        return connection

    # ------------------------------------------------------------------------------------------------ while it runs

    def release(self) -> None:
        """Ends the stalls that responses are in now; may be called from any thread."""
        self._on_each(Connection.release)

    def drop_connections(self) -> None:
        """Closes all connections with a RST, as a server does that crashes; may be called from any thread."""
        self._on_each(Connection.abort)

    def _on_each(self, action: Callable[[Connection], None]) -> None:
        def act() -> None:
            for connection in tuple(self._open):
                action(connection)

        if self._loop is None or self._server is None:
            raise RuntimeError("the emulator does not run")
        try:
            here = asyncio.get_running_loop() is self._loop
        except RuntimeError:  # a thread without a loop
            here = False
        if here:
            act()
        else:
            self._loop.call_soon_threadsafe(act)

    # --------------------------------------------------------------------------------------------------------- answers

    def answer(self, incoming: Incoming, connection: int) -> tuple[Entry, ResponsePlan]:
        """Returns the plan for a request and its entry in the journal; called by a connection."""
        entry = Entry(
            self.journal.total,
            incoming.method,
            incoming.target,
            incoming.headers,
            _body(incoming.body),
            connection=connection,
        )
        self.journal.add(entry)
        response = ResponsePlan(headers={"content-type": "application/json"})
        request_id = f"em{self.seed:x}-{entry.number:06x}"
        response.headers.update({"x-request-id": request_id, "cf-ray": f"{request_id}-LOC"})
        try:
            self._route(entry, response, request_id)
            response.head()  # a plan that can't be written is found here
        except RefusedError as refusal:
            self._refuse(response, refusal, request_id)
        except Exception as error:  # noqa: BLE001 - the author's script or rule; raised at the end
            self._errors.append(error)
            self._refuse(response, RefusedError(500, f"the emulator's script or rule raised {error!r}"), request_id)
        if incoming.wants_close:
            response.keep_alive, response.announce_close = False, True
        if incoming.version == "HTTP/1.0" and response.framing == "chunked":
            response.framing = "close"
        entry.status = response.status
        return entry, response

    def refuse(self, error: MalformedRequestError) -> ResponsePlan:
        """Returns the answer to what is no HTTP request; called by a connection."""
        response = ResponsePlan(keep_alive=False)
        self._refuse(response, RefusedError(error.status, str(error)), "")
        return response

    def failed(self, error: Exception) -> None:
        """Hears of a plan that could not be carried out; called by a connection. Raised at the end."""
        self._errors.append(error)

    def ended(self, entry: Entry) -> None:
        """Gives back what a client that left did not get; called by a connection."""
        if self.account is not None and entry.tokens_written < entry.tokens:
            self.account.refund(entry.model, entry.tokens - entry.tokens_written)
        if self._on_end is not None:
            self._on_end(entry)

    def _refuse(self, response: ResponsePlan, refusal: RefusedError, request_id: str) -> None:
        response.status = refusal.status
        response.think_s = 0.0  # a refusal takes no time
        body = refusal.body or shapes.error_body(refusal.status, refusal.message, param=refusal.param, id=request_id)
        response.replace_body(codec.encode(body), "application/json")
        response.headers.update(refusal.headers)

    def _route(self, entry: Entry, response: ResponsePlan, request_id: str) -> None:
        path = entry.path.partition("?")[0].rstrip("/")
        handlers = {"/chat/completions": ("POST", self._chat), "/models": ("GET", self._list_models)}
        for end, (method, handler) in handlers.items():
            if path.endswith(end):
                if entry.method != method:
                    raise RefusedError(405, f"{entry.method} {path}: expected {method}", headers={"allow": method})
                handler(entry, response, request_id)
                return
        raise RefusedError(404, f"no such path: {path!r}; there are POST /v1/chat/completions and GET /v1/models")

    def _list_models(self, entry: Entry, response: ResponsePlan, request_id: str) -> None:  # noqa: ARG002 - as _chat
        self._check_key(entry)
        response.body = [Piece(codec.encode([model.to_dict() for model in self.models]))]

    def _check_key(self, entry: Entry) -> None:
        if self.api_key is not None and entry.headers.get("authorization") != f"Bearer {self.api_key}":
            raise RefusedError(401)

    # ------------------------------------------------------------------------------------------------ chat completions

    def _chat(self, entry: Entry, response: ResponsePlan, request_id: str) -> None:
        self._check_key(entry)
        request = entry.request = _request(entry.body)
        model = self._model(request)
        # Where Redirect leads, nothing goes wrong, and nobody's turn is used up.
        faults = [] if "/redirected/" in entry.path else self._chosen_faults(request, entry)
        script = self._chosen_script(request)
        if isinstance(script, Recording):
            recorded = script.choose(request, self._replayed, streamed=entry.streamed)
            replay(recorded, response, speed=self.replay_speed)
            self._replayed += 1
        else:
            self._say(script, request, model, response, request_id, streamed=entry.streamed)
        self._charge(request, response)
        entry.tokens = response.tokens
        entry.faults = tuple(fault for fault in faults if fault.apply(response))

    def _say(
        self,
        script: Script,
        request: ChatCompletionRequest,
        model: Model,
        response: ResponsePlan,
        request_id: str,
        *,
        streamed: bool,
    ) -> None:
        read = prompt_tokens(request)
        if read + (request.max_tokens or 0) > model.context_length:
            raise RefusedError(
                403,
                f"prompt ({read} tokens) + max_tokens ({request.max_tokens or 0}) exceed the model's context of "
                f"{model.context_length} tokens",
                param="max_tokens",
            )
        seed = f"{self.seed}/{_fingerprint(request)}"
        said = script(request) if callable(script) else script
        try:
            choices = generate_choices(said, request, seed=seed)
        except UnsatisfiableError as error:
            raise RefusedError(400, str(error)) from error
        answer = Generation(
            id=request_id,
            created=int(time.time()),
            model=request.model,
            choices=choices,
            prompt_tokens=read,
            logprobs=request.logprobs or 0,
            echo="\n".join(text_of(message.get("content")) for message in request.messages) if request.echo else None,
            include_usage=bool((request.stream_options or {}).get("include_usage")),
        )
        if streamed:
            self._stream(model, answer, response, random.Random(seed))  # noqa: S311 - no secret
        else:
            response.body = [Piece(codec.encode(shapes.completion(model.dialect, answer)), tokens=answer.tokens)]
            first, gap = self._pace(model)
            response.think_s = first + gap * max(choice.tokens for choice in choices)

    def _stream(self, model: Model, answer: Generation, response: ResponsePlan, rng: random.Random) -> None:
        response.headers["content-type"] = "text/event-stream;charset=utf-8"
        response.framing = "chunked"
        response.keep_alive = response.announce_close = not model.dialect.closes
        events = shapes.events(model.dialect, answer)
        response.body = [Piece(event.data, event.tokens) for event in events]
        first, gap = self._pace(model)
        gap /= len(answer.choices)  # the choices are generated side by side
        timed = [piece for piece in response.body if piece.tokens] or response.body[:1]
        for piece in timed if gap else timed[:1]:
            spread = 1 + self.jitter * rng.uniform(-1, 1) if self.jitter else 1
            piece.wait_s = gap * piece.tokens * spread
        if timed:
            timed[0].wait_s = first

    def _pace(self, model: Model) -> tuple[float, float]:
        """Seconds to the first token, and from one to the next."""
        first = self.first_token_s if model.first_token_s is None else model.first_token_s
        speed = self.tokens_per_second if model.tokens_per_second is None else model.tokens_per_second
        return first, 0.0 if speed is None else 1 / speed

    def _charge(self, request: ChatCompletionRequest, response: ResponsePlan) -> None:
        if self.account is None:
            return
        verdict = self.account.admit(request.model, prompt_tokens(request) + response.tokens)
        response.headers.update(verdict.headers)
        if verdict.status != 200:
            raise RefusedError(verdict.status, body=verdict.body, headers=verdict.headers)

    def _model(self, request: ChatCompletionRequest) -> Model:
        model = self._models.get(request.model)
        if model is None and not self._any_model:
            raise RefusedError(404, f"the model {request.model!r} does not exist here", param="model")
        return model or Model(request.model, self.dialect)

    def _chosen_faults(self, request: ChatCompletionRequest, entry: Entry) -> list[Fault]:
        rng = random.Random(f"{self.seed}/{entry.number}")  # noqa: S311 - no secret
        return choose(self._faults, request, rng, self._fault_turns)

    def _chosen_script(self, request: ChatCompletionRequest) -> Script | Recording:
        script = self._script
        while isinstance(script, Chooser):
            rng = random.Random(f"{self.seed}/script/{self.journal.total}")  # noqa: S311 - no secret
            script = cast("Script | Recording", script.next(request, rng, self._script_turns))
        return script


class RefusedError(Exception):
    """The request is answered with an error status."""

    def __init__(
        self,
        status: int,
        message: str | None = None,
        *,
        param: str | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status = status
        self.param = param
        self.body = body
        self.headers = headers or {}
        self.message = message
        super().__init__(message)


def _body(data: bytes) -> Any:
    """The body as a dict when it is a JSON object, else as it came."""
    try:
        value = codec.decode_json(data)
    except codec.JSONError:
        return data
    return value if isinstance(value, dict) else data


def _request(body: Any) -> ChatCompletionRequest:
    if not isinstance(body, dict):
        raise RefusedError(400, "the body is no JSON object")
    try:
        if not isinstance(body.get("stream"), (bool, type(None))):
            raise ValueError(f"stream: got {body['stream']!r}, expected true or false")
        return ChatCompletionRequest.from_dict(body)
    except ValueError as error:
        raise RefusedError(400, str(error), param=str(error).partition(":")[0]) from error


def _fingerprint(request: ChatCompletionRequest) -> str:
    """The same for the same question, asked as a stream or not."""
    body = {name: value for name, value in request.to_dict().items() if name != "stream_options"}
    return hashlib.blake2b(codec.encode(body), digest_size=16).hexdigest()


def _model(model: Model | str) -> Model:
    return Model(model) if isinstance(model, str) else model

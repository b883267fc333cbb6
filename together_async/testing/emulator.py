"""The emulator without a socket: a request in, its entry in the journal and the plan of its response out."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable
from typing import cast

from together_async.request import ChatCompletionRequest
from together_async.testing.account import Account
from together_async.testing.answers import (
    Pace,
    RefusedError,
    fingerprint,
    plan_refusal,
    plan_stream,
    plan_whole,
    read_body,
    read_request,
)
from together_async.testing.dialect import TOGETHER, Dialect, Generation
from together_async.testing.fault import Fault
from together_async.testing.incoming import Incoming, MalformedRequestError
from together_async.testing.journal import Entry, Journal
from together_async.testing.models import MODELS, Model
from together_async.testing.recording import Recording, replay
from together_async.testing.response import Piece, ResponsePlan
from together_async.testing.rules import Chooser, Rule, choose
from together_async.testing.script import Script, UnsatisfiableError, generate_choices, prompt_tokens, text_of
from together_async.testing.validators import check_at_least_0, check_positive
from together_async.wire import codec


class Emulator:
    """Plans the response to each request, and keeps the journal. `EmulatorServer` puts it behind a socket.

    The arguments are those of `EmulatorServer`, without the address.

    Attributes:
        errors: What scripts, rules and faults raised, in order; the requests got status 500.
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
        journal_size: int = 10_000,
        on_end: Callable[[Entry], None] | None = None,
    ) -> None:
        self._script, self._script_turns = script, dict[int, int]()
        self._faults, self._fault_turns = faults, dict[int, int]()
        self._replayed = 0
        self.account = account
        self.tokens_per_second = check_positive("tokens_per_second", tokens_per_second)
        self.first_token_s = check_at_least_0("first_token_s", first_token_s)
        self.jitter = check_at_least_0("jitter", jitter)
        if jitter > 1:
            raise ValueError(f"jitter: got {jitter!r}, expected a fraction, 0 to 1")
        self.dialect = dialect
        self.seed = seed
        self.api_key = api_key
        if not replay_speed > 0:
            raise ValueError(f"replay_speed: got {replay_speed!r}, expected more than 0; math.inf is at once")
        self.replay_speed = replay_speed
        if journal_size < 1:
            raise ValueError(f"journal_size: got {journal_size!r}, expected at least 1")
        self.journal = Journal(journal_size)
        self.errors: list[Exception] = []
        self._on_end = on_end
        self._models = {model.id: model for model in map(_model, MODELS if models is None else models)}
        self._any_model = models is None

    @property
    def script(self) -> Script | Recording | Chooser:
        """The script of the answers; setting it starts `InTurn` and `Recording` again."""
        return self._script

    @script.setter
    def script(self, script: Script | Recording | Chooser) -> None:
        self._script, self._script_turns, self._replayed = script, {}, 0

    @property
    def faults(self) -> Rule:
        """The faults; setting them starts `InTurn` again."""
        return self._faults

    @faults.setter
    def faults(self, faults: Rule) -> None:
        self._faults, self._fault_turns = faults, {}

    @property
    def models(self) -> tuple[Model, ...]:
        """The models that `GET /models` lists."""
        return tuple(self._models.values())

    # ------------------------------------------------------------------------------------------- called by connections

    def answer(self, incoming: Incoming, connection: int) -> tuple[Entry, ResponsePlan]:
        """Returns a request's entry in the journal and the plan of its response; called by a connection."""
        entry = Entry(
            self.journal.total,
            incoming.method,
            incoming.target,
            incoming.headers,
            read_body(incoming.body),
            connection=connection,
        )
        self.journal.add(entry)
        response = ResponsePlan(headers={"content-type": "application/json"})
        request_id = f"em{self.seed:x}-{entry.number:06x}"
        response.headers.update({"x-request-id": request_id, "cf-ray": f"{request_id}-LOC"})
        try:
            self._route(entry, response, request_id)
            response.head()  # raises here if the plan can't be written
        except RefusedError as refusal:
            plan_refusal(response, refusal, request_id)
        except Exception as error:  # noqa: BLE001 - the author's script or rule; raised at the end
            self.errors.append(error)
            plan_refusal(response, RefusedError(500, f"the emulator's script or rule raised {error!r}"), request_id)
        if incoming.wants_close:
            response.keep_alive, response.announce_close = False, True
        if incoming.version == "HTTP/1.0" and response.framing == "chunked":
            response.framing = "close"
        entry.status = response.status
        return entry, response

    def refuse(self, error: MalformedRequestError) -> ResponsePlan:
        """Returns the response to a malformed request; called by a connection."""
        response = ResponsePlan(keep_alive=False)
        plan_refusal(response, RefusedError(error.status, str(error)), "")
        return response

    def record_failure(self, error: Exception) -> None:
        """Keeps the error of a plan that could not be carried out; called by a connection."""
        self.errors.append(error)

    def record_end(self, entry: Entry) -> None:
        """Refunds the tokens that a client which left did not get; called by a connection."""
        if self.account is not None and entry.tokens_written < entry.tokens:
            self.account.refund(entry.model, entry.tokens - entry.tokens_written)
        if self._on_end is not None:
            self._on_end(entry)

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
        request = entry.request = read_request(entry.body)
        model = self._model(request)
        # The target of a Redirect answers without faults, and uses up no turn of `InTurn`.
        faults = [] if "/redirected/" in entry.path else self._chosen_faults(request, entry)
        script = self._chosen_script(request)
        if isinstance(script, Recording):
            recorded = script.choose(request, self._replayed, streamed=entry.streamed)
            replay(recorded, response, speed=self.replay_speed)
            self._replayed += 1
        else:
            self._plan_generation(script, request, model, response, request_id, streamed=entry.streamed)
        self._charge_account(request, response)
        entry.tokens = response.tokens
        entry.faults = tuple(fault for fault in faults if fault.apply(response))

    def _plan_generation(
        self,
        script: Script,
        request: ChatCompletionRequest,
        model: Model,
        response: ResponsePlan,
        request_id: str,
        *,
        streamed: bool,
    ) -> None:
        prompt_size = prompt_tokens(request)
        if prompt_size + (request.max_tokens or 0) > model.context_length:
            raise RefusedError(
                403,
                f"prompt ({prompt_size} tokens) + max_tokens ({request.max_tokens or 0}) exceed the model's context of "
                f"{model.context_length} tokens",
                param="max_tokens",
            )
        seed = f"{self.seed}/{fingerprint(request)}"
        replies = script(request) if callable(script) else script
        try:
            choices = generate_choices(replies, request, seed=seed)
        except UnsatisfiableError as error:
            raise RefusedError(400, str(error)) from error
        generation = Generation(
            id=request_id,
            created=int(time.time()),
            model=request.model,
            choices=choices,
            prompt_tokens=prompt_size,
            logprobs=request.logprobs or 0,
            echo="\n".join(text_of(message.get("content")) for message in request.messages) if request.echo else None,
            include_usage=bool((request.stream_options or {}).get("include_usage")),
        )
        pace = self._pace(model)
        if streamed:
            plan_stream(response, model.dialect, generation, pace, random.Random(seed))  # noqa: S311 - repeatable
        else:
            plan_whole(response, model.dialect, generation, pace)

    def _pace(self, model: Model) -> Pace:
        first = self.first_token_s if model.first_token_s is None else model.first_token_s
        speed = self.tokens_per_second if model.tokens_per_second is None else model.tokens_per_second
        return Pace(first, 0.0 if speed is None else 1 / speed, self.jitter)

    def _charge_account(self, request: ChatCompletionRequest, response: ResponsePlan) -> None:
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
        rng = random.Random(f"{self.seed}/{entry.number}")  # noqa: S311 - repeatable
        return choose(self._faults, request, rng, self._fault_turns)

    def _chosen_script(self, request: ChatCompletionRequest) -> Script | Recording:
        script = self._script
        while isinstance(script, Chooser):
            rng = random.Random(f"{self.seed}/script/{self.journal.total}")  # noqa: S311 - repeatable
            script = cast("Script | Recording", script.next(request, rng, self._script_turns))
        return script


def _model(model: Model | str) -> Model:
    return Model(model) if isinstance(model, str) else model

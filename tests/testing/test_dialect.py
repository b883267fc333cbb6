"""Dialects: the same answer in each, streamed and whole, with the keys of recorded samples."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest

from support.paths import SAMPLES
from together_async.models import ChatCompletion
from together_async.request import ChatCompletionRequest
from together_async.testing import (
    DEEPSEEK,
    DIALECTS,
    GPT_OSS,
    LLAMA_CPP,
    OPENAI,
    TOGETHER,
    TRANSFORMERS,
    VLLM,
    Call,
    Dialect,
    Reply,
)
from together_async.testing.dialect import Generation, completion, error_body, error_event, events
from together_async.testing.script import Replies, generate_choices, prompt_tokens
from together_async.wire import codec
from together_async.wire.accumulator import ChatCompletionAccumulator
from together_async.wire.chunks import ChunkDecoder, ReportedError
from together_async.wire.completions import completion_of
from together_async.wire.error_bodies import error_facts

MESSAGES = [{"role": "user", "content": "Why is the sky blue?"}]
WEATHER = Call("get_weather", {"city": "Oslo"}, id="call_a1")
CLOCK = Call("get_time", {"tz": "CET"}, id="call_b2")
THOUGHT = Reply("It is 4.", reasoning="We need 2 and 2.")

everywhere = pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)


def answer(script: Replies | None, **fields: Any) -> Generation:
    """The emulator's generation for a script and a request."""
    request = ChatCompletionRequest(messages=MESSAGES, model="m", **fields)
    return Generation(
        id="em-1",
        created=1763880000,
        model="m",
        choices=generate_choices(script, request, seed=0),
        prompt_tokens=prompt_tokens(request),
        logprobs=request.logprobs or 0,
        echo="Why is the sky blue?" if request.echo else None,
        include_usage=bool((request.stream_options or {}).get("include_usage")),
    )


def payloads(dialect: Dialect, generation: Generation) -> list[Any]:
    """The JSON of each event, with "[DONE]" as a str."""
    found = []
    for event in events(dialect, generation):
        assert event.data.startswith(b"data: ")
        assert event.data.endswith(b"\n\n")
        data = event.data[6:-2]
        found.append("[DONE]" if data == b"[DONE]" else json.loads(data))
    return found


def chunks(dialect: Dialect, generation: Generation) -> list[dict[str, Any]]:
    return [payload for payload in payloads(dialect, generation) if payload != "[DONE]"]


def added_up(
    dialect: Dialect, generation: Generation
) -> tuple[ChatCompletion, ChunkDecoder, ChatCompletionAccumulator]:
    """The stream as our own client reads it."""
    decoder, accumulator = ChunkDecoder(), ChatCompletionAccumulator()
    for payload in decoder.feed(b"".join(event.data for event in events(dialect, generation))):
        chunk = decoder.decode(payload)
        if chunk is not None:
            accumulator.add(chunk)
    return accumulator.completion(), decoder, accumulator


def whole(dialect: Dialect, generation: Generation) -> ChatCompletion:
    return completion_of(codec.encode(completion(dialect, generation)), status=200, headers={})


ANSWERS: dict[str, tuple[Replies | None, dict[str, Any]]] = {
    "text": ("The sky is blue 🌊.", {}),
    "empty": ("", {}),
    "one token": (Reply(("x",)), {}),
    "an empty token": (Reply(("a", "", "b")), {}),
    "three choices": (["one two", "three", Reply(None, tool_calls=[CLOCK])], {"n": 3}),
    "one call": (Reply(None, tool_calls=[WEATHER]), {}),
    "two calls": (Reply(None, tool_calls=[WEATHER, CLOCK]), {}),
    "text and calls": (Reply("Let me see.", tool_calls=[WEATHER, CLOCK]), {}),
    "broken arguments": (Reply(None, tool_calls=[Call("f", '{"a": ', id="c")]), {}),
    "no arguments": (Reply(None, tool_calls=[Call("f", "", id="c")]), {}),
    "reasoning": (THOUGHT, {}),
    "reasoning alone": (Reply(None, reasoning="Hm, hm."), {}),
    "reasoning, text, call": (Reply("Well.", reasoning="Hm.", tool_calls=[WEATHER]), {}),
    "logprobs": ("The sky is blue 🌊.", {"logprobs": 1}),
    "logprobs of three choices": (["a b", "c", "d"], {"logprobs": 3, "n": 3}),
    "echo": ("Because.", {"echo": True}),
    "stop": ("one two three", {"stop": ["two"]}),
    "stop at once": ("one two three", {"stop": ["o"]}),
    "usage at the end": ("one two", {"stream_options": {"include_usage": True}}),
    "a finish reason": (Reply("x", finish_reason="content_filter"), {}),
    **{
        f"cut at {limit}": (Reply("Yes it is.", reasoning="We think", tool_calls=[WEATHER]), {"max_tokens": limit})
        for limit in range(1, 12)
    },
    "generated": (None, {"seed": 5}),
    "generated JSON": (None, {"response_format": {"type": "json_object"}}),
}


@everywhere
@pytest.mark.parametrize(("script", "fields"), ANSWERS.values(), ids=ANSWERS)
def test_a_stream_adds_up_to_the_whole_response(dialect, script, fields):
    """Read with our decoder and accumulator, both are the same completion, but for the usage of streams without it."""
    generation = answer(script, **fields)
    streamed, decoder, accumulator = added_up(dialect, generation)
    body = whole(dialect, generation)
    tells_usage = dialect.usage != "none" or generation.include_usage
    assert streamed == attrs.evolve(body, usage=body.usage if tells_usage else None)
    assert decoder.done is dialect.done
    assert accumulator.finished(len(generation.choices))


@everywhere
@pytest.mark.parametrize(("script", "fields"), ANSWERS.values(), ids=ANSWERS)
def test_every_token_is_in_one_event(dialect, script, fields):
    """The tokens of the events add up to those of the usage."""
    generation = answer(script, **fields)
    assert sum(event.tokens for event in events(dialect, generation)) == generation.tokens
    assert completion(dialect, generation)["usage"]["completion_tokens"] == generation.tokens
    assert max(event.tokens for event in events(dialect, generation)) <= dialect.tokens_per_chunk


@everywhere
def test_finish_reasons_may_be_left_out(dialect):
    """A dialect without them has none in the stream nor in the whole response."""
    silent = attrs.evolve(dialect, finish_reasons=False)
    generation = answer(Reply("Well.", tool_calls=[WEATHER]))
    reasons = {choice["finish_reason"] for chunk in chunks(silent, generation) for choice in chunk["choices"]}
    assert reasons == {None}
    assert completion(silent, generation)["choices"][0]["finish_reason"] is None


@everywhere
def test_done_comes_last_and_once_or_never(dialect):
    """`[DONE]` is the last event of all dialects but that of transformers."""
    marks = [payload == "[DONE]" for payload in payloads(dialect, answer("a b", n=2))]
    assert marks[:-1] == [False] * (len(marks) - 1)
    assert marks[-1] is (dialect is not TRANSFORMERS)


# --------------------------------------------------------------------------------------------------------------- shapes


def shape(value: Any) -> Any:
    """A JSON value's keys and types; of a list, that of its first item."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value[:1]]
    return type(value).__name__


def sample_chunks(name: str) -> list[dict[str, Any]]:
    events = (SAMPLES / f"{name}.sse").read_text().split("\n\n")
    return [json.loads(event[6:]) for event in events if event.startswith("data: {")]


def sample_body(name: str) -> dict[str, Any]:
    body: dict[str, Any] = json.loads((SAMPLES / f"{name}.json").read_text())
    return body


SKY = Reply(("The", " sky", " is blue 🌊"))


@pytest.mark.parametrize("at", [0, 1])
def test_a_llama_chunk_has_the_keys_and_types_of_the_service(at):
    """First and middle chunk of TOGETHER with log probabilities are shaped like the sample's."""
    assert shape(chunks(TOGETHER, answer(SKY, logprobs=1))[at]) == shape(sample_chunks("together_llama")[at])


def test_the_last_llama_chunk_has_the_keys_of_the_service():
    """Seed and usage ride in it; its token id and log probability, of an end token that we don't pretend, are null."""
    ours, theirs = shape(chunks(TOGETHER, answer(SKY, logprobs=1))[-1]), shape(sample_chunks("together_llama")[-1])
    theirs["choices"][0]["logprobs"] = theirs["choices"][0]["delta"]["token_id"] = "NoneType"
    assert ours == theirs


def test_a_whole_llama_response_has_the_keys_and_types_of_the_service():
    """`prompt`, `seed`, native logprobs, flat cached tokens, an empty list of tool calls."""
    assert shape(completion(TOGETHER, answer(SKY, logprobs=1))) == shape(sample_body("together_llama"))


def test_the_text_next_to_a_delta_repeats_its_content():
    """TOGETHER and DEEPSEEK send each token twice, in `text` and in `delta.content`, with its own id."""
    for dialect in (TOGETHER, DEEPSEEK):
        choices = [chunk["choices"][0] for chunk in chunks(dialect, answer("a b a"))]
        assert [choice["text"] for choice in choices] == ["a", " b", " a", ""]
        assert all(choice["text"] == choice["delta"]["content"] for choice in choices)
        ids = [choice["delta"]["token_id"] for choice in choices]
        assert all(isinstance(number, int) for number in ids[:-1])
        assert len(set(ids[:-1])) == 3
        assert ids[-1] is None


@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_gpt_oss_chunk_has_the_keys_and_types_of_the_service(at):
    """Role, reasoning and content of GPT_OSS are shaped like the sample's, but for `matched_stop`."""
    theirs = shape(sample_chunks("together_gpt_oss")[at])
    del theirs["choices"][0]["matched_stop"]
    assert shape(chunks(GPT_OSS, answer(Reply(("It is ", "4."), reasoning=("We need ", "2+2."))))[at]) == theirs


def test_gpt_oss_sends_the_usage_in_a_last_chunk_without_choices():
    """The chunk with the finish reason has none; the next has no choices, and nested details."""
    *_, finish, last = chunks(GPT_OSS, answer(THOUGHT))
    assert finish["choices"][0]["finish_reason"] == "stop"
    assert finish["usage"] is None
    assert last["choices"] == []
    assert shape(last["usage"]) == shape(sample_chunks("together_gpt_oss")[-1]["usage"])


def test_a_whole_gpt_oss_response_has_the_keys_and_types_of_the_service():
    """Reasoning under `reasoning`, nested usage; but for `matched_stop`."""
    theirs = shape(sample_body("together_gpt_oss"))
    del theirs["choices"][0]["matched_stop"]
    assert shape(completion(GPT_OSS, answer(THOUGHT))) == theirs


@pytest.mark.xfail(strict=True, reason="gpt-oss choices lack matched_stop")
def test_a_gpt_oss_choice_has_what_stopped_it():
    """`matched_stop` stands in each choice, in chunks and whole."""
    generation = answer(THOUGHT)
    assert "matched_stop" in chunks(GPT_OSS, generation)[0]["choices"][0]
    assert "matched_stop" in completion(GPT_OSS, generation)["choices"][0]


def test_tool_calls_are_streamed_as_the_service_does():
    """A call begins with index, id, type, name and no arguments; later pieces have index and arguments alone."""
    generation = answer(Reply(None, tool_calls=[WEATHER, CLOCK]))
    deltas = [
        chunk["choices"][0]["delta"]["tool_calls"]
        for chunk in chunks(TOGETHER, generation)
        if chunk["choices"][0]["delta"]["tool_calls"]
    ]
    begins = [delta[0] for delta in deltas if "id" in delta[0]]
    assert begins == [
        {"index": 0, "id": "call_a1", "type": "function", "function": {"name": "get_weather", "arguments": ""}},
        {"index": 1, "id": "call_b2", "type": "function", "function": {"name": "get_time", "arguments": ""}},
    ]
    pieces = [delta[0] for delta in deltas if "id" not in delta[0]]
    assert {tuple(piece) for piece in pieces} == {("index", "function")}
    assert {tuple(piece["function"]) for piece in pieces} == {("arguments",)}
    theirs = [chunk["choices"][0]["delta"]["tool_calls"] for chunk in sample_chunks("tool_calls")[:-2]]
    assert shape(deltas[0]) == shape(theirs[0])
    assert shape(deltas[1]) == shape(theirs[1])


def test_tool_calls_of_a_whole_response_are_as_the_service_has_them():
    """Content null, each call with id, type, index and the whole arguments."""
    message = completion(TOGETHER, answer(Reply(None, tool_calls=[WEATHER, CLOCK])))["choices"][0]["message"]
    theirs = sample_body("tool_calls")["choices"][0]["message"]
    assert shape(message) == shape(theirs)
    assert [call["id"] for call in message["tool_calls"]] == ["call_a1", "call_b2"]
    assert [json.loads(call["function"]["arguments"]) for call in message["tool_calls"]] == [
        {"city": "Oslo"},
        {"tz": "CET"},
    ]


@pytest.mark.parametrize(
    ("dialect", "times"),
    [(TOGETHER, 2), (GPT_OSS, 1), (DEEPSEEK, 1), (OPENAI, 1), (VLLM, 1), (LLAMA_CPP, 1), (TRANSFORMERS, 1)],
    ids=DIALECTS,
)
def test_the_finish_reason_of_calls_comes_twice_from_together(dialect, times):
    """`tool_calls` comes twice, the usage with the second; `stop` and `length` come once everywhere."""
    generation = answer(Reply(None, tool_calls=[WEATHER]))
    reasons = [c["choices"][0]["finish_reason"] for c in chunks(dialect, generation) if c["choices"]]
    assert reasons[-times:] == ["tool_calls"] * times
    assert reasons.count("tool_calls") == times
    for text in (answer("a b c"), answer("a b c", max_tokens=2)):
        got = [c["choices"][0]["finish_reason"] for c in chunks(dialect, text) if c["choices"]]
        assert len([reason for reason in got if reason]) == 1


def test_the_usage_of_together_rides_with_the_last_finish_reason():
    """With three choices it is in the very last chunk, and null in all others."""
    generation = answer(["a", "b c", "d"], n=3)
    usages = [chunk["usage"] for chunk in chunks(TOGETHER, generation)]
    assert usages[:-1] == [None] * (len(usages) - 1)
    assert usages[-1] == {
        "prompt_tokens": generation.prompt_tokens,
        "completion_tokens": 4,
        "total_tokens": generation.prompt_tokens + 4,
        "cached_tokens": 0,
    }


@everywhere
def test_include_usage_always_gets_a_last_chunk_without_choices(dialect):
    """Whatever the habit, the usage is there once, after all choices, and nowhere else."""
    got = chunks(dialect, answer("a b", stream_options={"include_usage": True}))
    assert [chunk["choices"] == [] for chunk in got] == [False] * (len(got) - 1) + [True]
    assert [chunk["usage"] is not None for chunk in got] == [False] * (len(got) - 1) + [True]
    assert got[-1]["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("dialect", [OPENAI, VLLM, TRANSFORMERS], ids=lambda dialect: dialect.name)
def test_servers_without_usage_in_a_stream_have_it_in_a_whole_response(dialect):
    """The stream has none unless asked."""
    generation = answer("a b")
    assert not any(chunk["usage"] for chunk in chunks(dialect, generation))
    assert completion(dialect, generation)["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize(
    ("dialect", "key"),
    [
        (TOGETHER, "reasoning"),
        (GPT_OSS, "reasoning"),
        (DEEPSEEK, "reasoning_content"),
        (VLLM, "reasoning_content"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_reasoning_comes_under_the_key_of_the_server(dialect, key):
    """In deltas and in messages; under the other key there is nothing."""
    generation = answer(THOUGHT)
    other = {"reasoning", "reasoning_content"} - {key}
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks(dialect, generation) if chunk["choices"]]
    assert "".join(delta.get(key) or "" for delta in deltas) == "We need 2 and 2."
    message = completion(dialect, generation)["choices"][0]["message"]
    assert message[key] == "We need 2 and 2."
    assert not any(name in value for name in other for value in (message, *deltas))


def test_native_logprobs_are_numbers_in_chunks_and_lists_in_the_whole():
    """A number with each token, null without one; whole, three lists of equal length with the same values."""
    generation = answer(Reply(("a", " b")), logprobs=1)
    streamed = [chunk["choices"][0]["logprobs"] for chunk in chunks(TOGETHER, generation)]
    listed = completion(TOGETHER, generation)["choices"][0]["logprobs"]
    assert listed["tokens"] == ["a", " b"]
    assert streamed == [*listed["token_logprobs"], None]
    assert all(isinstance(number, float) and number <= 0 for number in streamed[:-1])
    assert [type(number) for number in listed["token_ids"]] == [int, int]


@pytest.mark.parametrize("top", [1, 2, 5])
def test_openai_logprobs_have_as_many_alternatives_as_were_asked_for(top):
    """An object a token, shaped like the sample's, with the token itself first among `top_logprobs`."""
    generation = answer(Reply(("Ja", " é")), logprobs=top)
    body = completion(OPENAI, generation)["choices"][0]
    theirs = sample_body("openai_logprobs")["choices"][0]["logprobs"]["content"][0]
    entries = body["logprobs"]["content"]
    assert [entry["token"] for entry in entries] == ["Ja", " é"]
    assert entries[1]["bytes"] == [32, 195, 169]
    assert [len(entry["top_logprobs"]) for entry in entries] == [top, top]
    assert entries[0]["top_logprobs"][0]["token"] == "Ja"
    assert shape(entries[0]) == shape(theirs)
    streamed = [
        entry
        for chunk in chunks(OPENAI, generation)
        if chunk["choices"][0]["logprobs"]
        for entry in chunk["choices"][0]["logprobs"]["content"]
    ]
    assert streamed == entries


@everywhere
def test_no_logprobs_unless_asked_for(dialect):
    """Null everywhere."""
    generation = answer("a b")
    assert all(choice["logprobs"] is None for chunk in chunks(dialect, generation) for choice in chunk["choices"])
    assert completion(dialect, generation)["choices"][0]["logprobs"] is None


@everywhere
def test_echo_puts_the_prompt_into_the_first_chunk_and_the_whole(dialect):
    """`prompt` is a list of one part with its text, once."""
    generation = answer("Because.", echo=True)
    part = [{"text": "Why is the sky blue?", "logprobs": None}]
    got = chunks(dialect, generation)
    assert got[0]["prompt"] == part
    assert not any("prompt" in chunk for chunk in got[1:])
    assert completion(dialect, generation)["prompt"] == part
    assert list(shape(part)[0]) == list(shape(sample_body("echo")["prompt"])[0])


def test_vllm_puts_three_tokens_into_a_delta_and_the_finish_reason_next_to_text():
    """Four tokens are an opening, a delta of three and one of one with the reason."""
    got = [chunk["choices"][0] for chunk in chunks(VLLM, answer("a b c d"))]
    assert [(c["delta"].get("content"), c["finish_reason"]) for c in got] == [
        ("", None),
        ("a b c", None),
        (" d", "stop"),
    ]


def test_llama_cpp_opens_with_null_and_sends_the_last_choice_first():
    """Openings and tokens of choice 1 come before those of choice 0; the reason has a delta of its own, empty."""
    got = [chunk["choices"][0] for chunk in chunks(LLAMA_CPP, answer(["a", "b"], n=2))]
    theirs = [chunk["choices"][0] for chunk in sample_chunks("llama_cpp_two_choices")[:-1]]
    assert [choice["index"] for choice in got] == [1, 0, 1, 0, 1, 0]
    assert [choice["delta"] for choice in got[:2]] == [choice["delta"] for choice in theirs[:2]]
    assert [choice["delta"] for choice in got[-2:]] == [{}, {}]
    assert theirs[-1]["delta"] == {}


@pytest.mark.parametrize(
    ("dialect", "sample"),
    [
        pytest.param(
            dialect,
            sample,
            id=dialect.name,
            marks=pytest.mark.xfail(strict=True, reason="keys of other servers are approximate"),
        )
        for dialect, sample in (
            (VLLM, "vllm"),
            (LLAMA_CPP, "llama_cpp_two_choices"),
            (TRANSFORMERS, "transformers_serve"),
        )
    ],
)
def test_chunks_of_other_servers_have_the_keys_of_their_samples(dialect, sample):
    """A middle chunk has the same keys as the server's, no more."""
    theirs = sample_chunks(sample)[1]
    ours = chunks(dialect, answer("One two three four"))[1]
    assert set(ours) == set(theirs)
    assert set(ours["choices"][0]) == set(theirs["choices"][0])


@everywhere
def test_all_chunks_are_of_one_completion(dialect):
    """id, object, created and model are the same in each, and in the whole response but for `object`."""
    generation = answer("a b", n=2)
    body = completion(dialect, generation)
    for chunk in chunks(dialect, generation):
        assert chunk["object"] == "chat.completion.chunk"
        assert {name: chunk[name] for name in ("id", "created", "model")} == {
            name: body[name] for name in ("id", "created", "model")
        }
        assert {name: chunk[name] for name in dialect.extra} == dict(dialect.extra)
    assert body["object"] == "chat.completion"


@everywhere
def test_choices_take_turns(dialect):
    """Three choices are streamed side by side, each in its order, in whichever order of choices."""
    got = [c["choices"][0] for c in chunks(dialect, answer(["a b c d e f g", "h", "i j"], n=3)) if c["choices"]]
    order = [choice["index"] for choice in got]
    assert sorted(order[:3]) == [0, 1, 2]
    assert order[:3] == order[3:6] or dialect.opening == "none"
    for index, text in enumerate(("a b c d e f g", "h", "i j")):
        assert "".join(c["delta"].get("content") or "" for c in got if c["index"] == index) == text


def test_a_dialect_has_values_that_can_be():
    """Tokens in a chunk are at least one."""
    with pytest.raises(ValueError, match="tokens_per_chunk"):
        Dialect(name="x", tokens_per_chunk=0)


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(("status", "sample"), [(401, "error_together_401"), (429, "error_together_429")])
def test_an_error_body_is_the_services_own(status, sample):
    """Key for key and value for value."""
    assert error_body(status, id="x") == sample_body(sample)


STATUSES = (400, 401, 402, 403, 404, 408, 409, 422, 429, 500, 502, 503, 504, 529, 405, 418, 599)


@pytest.mark.parametrize("status", STATUSES)
def test_every_error_body_has_the_documented_keys(status):
    """message, type, param and code in an `error`, the id when there is one, the caller's words in their place."""
    body = error_body(status)
    assert list(body) == ["error"]
    assert list(body["error"]) == ["message", "type", "param", "code"]
    assert body["error"]["message"]
    got = error_body(status, "other words", type="t", param="p", id="i")
    assert got["id"] == "i"
    assert got["error"] == {**body["error"], "message": "other words", "type": "t", "param": "p"}
    facts = error_facts(got)
    assert facts is not None
    assert facts.message == "other words"


@pytest.mark.parametrize("status", [405, 413, 415, 431])
def test_a_status_of_the_clients_fault_says_so(status):
    """Below 500 it is the request."""
    assert error_body(status)["error"]["type"] == "invalid_request_error"


ERRORS = {
    "object": "error_object",
    "text": "error_text",
    "flat": "error_flat",
    "detail": "error_detail",
    "named": "error_named",
    "named_text": "error_named_text",
    "beside": "error_beside_choices",
}
"""Each shape of an error in a stream, and the sample which has it."""


@pytest.mark.parametrize("shape_name", ERRORS)
@pytest.mark.parametrize("code", [None, 503, "overloaded"])
def test_an_error_in_a_stream_is_read_as_one(shape_name, code):
    """In each shape our own decoder finds the message, and the code where the shape has a place for it."""
    decoder = ChunkDecoder()
    (payload,) = decoder.feed(error_event(shape_name, "upstream gone", code=code))
    with pytest.raises(ReportedError) as caught:
        decoder.decode(payload)
    assert caught.value.facts.message == "upstream gone"
    assert caught.value.facts.code == (None if shape_name in ("detail", "named_text") else code)


@pytest.mark.parametrize(("shape_name", "sample"), ERRORS.items())
def test_an_error_in_a_stream_has_the_shape_of_a_sample(shape_name, sample):
    """The same event name, and no key that the sample hasn't; a flat error has its type and param besides."""
    theirs = (SAMPLES / f"{sample}.sse").read_text().split("\n\n")[1]
    ours = error_event(shape_name, "upstream gone", code=500).decode().removesuffix("\n\n")
    assert ("event: error" in ours) is ("event: error" in theirs)
    mine, other = ours.partition("data: ")[2], theirs.partition("data: ")[2]
    if shape_name == "named_text":
        assert mine == other == "upstream gone"
    elif shape_name != "detail":  # whose value is a text or a list of problems
        assert set(json.loads(other)) <= set(json.loads(mine)) | {"id", "object", "created", "model", "usage", "type"}

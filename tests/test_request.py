"""Requests: what goes out is what was meant, and what can't be meant is refused before it goes."""

import copy
import fractions
import json
import math
import pickle
import re
import types
from decimal import Decimal
from enum import IntEnum

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from together_async.models import Function, ToolCall
from together_async.request import (
    _OPTION_CHECKS,
    _RANGES,
    ChatCompletionRequest,
    Message,
    RequestOptions,
    _message_dict,
    _messages,
    request_of,
)
from together_async.wire import codec
from together_async.wire.codec import decode_completion
from together_async.wire.http_request import build_request

SECRET = "my very own prompt"
TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True},
}
# name: integers only?, lowest, highest; None where there is no bound
RANGES = {
    "max_tokens": (True, 1, None),
    "temperature": (False, 0, None),
    "top_p": (False, 0, 1),
    "top_k": (True, None, None),
    "min_p": (False, 0, 1),
    "repetition_penalty": (False, 0, None),
    "presence_penalty": (False, -2, 2),
    "frequency_penalty": (False, -2, 2),
    "logprobs": (True, 0, 20),
    "n": (True, 1, 128),
    "seed": (True, None, None),
}
OTHERS = {
    "stop": ["a", "b"],
    "logit_bias": {"105": 21.4, "1024": -10.5},
    "echo": True,
    "response_format": {"type": "json", "schema": {}},
    "tools": [TOOL],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "safety_model": "safety_model_name",
    "context_length_exceeded_behavior": "truncate",
    "reasoning": {"enabled": True},
    "reasoning_effort": "low",
    "chat_template_kwargs": {"thinking": True},
    "compliance": "hipaa",
    "stream_options": {"include_usage": True},
    "parallel_tool_calls": False,
    "prompt_cache_key": "k",
}
BIG = 10**400


class Number:
    """A number as NumPy has them: neither int nor float, but either on demand."""

    def __init__(self, value):
        self.value = value


class Index(Number):
    def __index__(self):
        return self.value

    def __float__(self):
        return float(self.value)


class Float(Number):
    def __float__(self):
        return float(self.value)


class Array(Number):
    def __index__(self):
        raise TypeError("only integer scalar arrays can be converted to a scalar index")

    def __float__(self):
        raise TypeError("only length-1 arrays can be converted")


class Level(IntEnum):
    LOW = 1


def request(messages="hi", model="m", **options) -> ChatCompletionRequest:
    return ChatCompletionRequest(messages=messages, model=model, **options)


def sent(**options):
    """The body as a server reads it, without messages and model."""
    body = json.loads(build_request(request(**options), stream=False).body)
    assert body.pop("model") == "m"
    body.pop("messages")
    return body


# ------------------------------------------------------------------------------------------------------------- numbers


def test_the_table_of_ranges_is_complete():
    """Every number field of the request stands in the table above."""
    assert set(RANGES) == set(_RANGES)
    assert {*RANGES, *OTHERS, "messages", "model", "extra_body"} == {
        field.name for field in attrs.fields(ChatCompletionRequest)
    }
    assert {*RANGES, *OTHERS, "extra_body"} == set(RequestOptions.__annotations__)


@pytest.mark.parametrize("name", RANGES)
def test_range_edges(name):
    """Each bound is inside, the nearest number beyond it is outside, and None is left out."""
    whole, low, high = RANGES[name]
    step = 1 if whole else 1e-9
    for edge, outside in ((low, -step), (high, step)):
        if edge is None:
            big = 10**30 if whole else 1e30
            big = math.copysign(big, outside) if not whole else big * (1 if outside > 0 else -1)
            assert sent(**{name: big}) == {name: big}
            continue
        assert sent(**{name: edge}) == {name: edge}
        bad = edge + outside
        with pytest.raises(ValueError, match=f"^{name}: got ") as caught:
            request(**{name: bad})
        assert repr(bad) in str(caught.value)
        assert f"{low:g}" in str(caught.value)
        assert high is None or f"{high:g}" in str(caught.value)
    assert sent(**{name: None}) == {}


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize(
    "bad",
    [
        math.nan,
        math.inf,
        -math.inf,
        True,
        False,
        "1",
        b"1",
        [1],
        {},
        1j,
        Decimal("NaN"),
        Decimal("sNaN"),
        Decimal("Infinity"),
        Array(1),
        object(),
        BIG,
        -BIG,
        10**5000,
        fractions.Fraction(BIG),
    ],
    ids=lambda bad: f"{type(bad).__name__} {str(bad)[:9]}" if not isinstance(bad, int) or abs(bad) < BIG else "huge",
)
def test_what_is_no_number_for_the_field(name, bad):
    """NaN, infinities, bool, text, containers and numbers beyond a float are refused and named, texts not shown."""
    with pytest.raises(ValueError, match=f"^{name}: got .*, expected ") as caught:
        request(**{name: bad})
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", RANGES)
def test_numbers_of_other_libraries(name):
    """What has `__index__` counts as an integer, what has `__float__` as a number; both are sent as JSON numbers."""
    assert sent(**{name: Index(1)}) == {name: 1}
    assert sent(**{name: Level.LOW}) == {name: 1}
    assert type(getattr(request(**{name: Level.LOW}), name)) is int
    for value in (Float(1.0), Decimal("0.5"), fractions.Fraction(1, 2), 0.5):
        if RANGES[name][0]:
            with pytest.raises(ValueError, match=f"^{name}: got .*, expected an integer"):
                request(**{name: value})
        else:
            assert sent(**{name: value}) == {name: float(value if not isinstance(value, Number) else value.value)}


def test_seeds_of_more_than_64_bits_are_sent_exactly():
    """A seed that a server reported can be sent back, whatever its size."""
    for seed in (15924764223251450000, 2**64, 2**200, -(2**70)):
        assert sent(seed=seed) == {"seed": seed}


def test_logit_bias_keys_become_text_and_values_are_checked():
    """Token ids may be ints; each bias is a finite number."""
    assert sent(logit_bias={105: 21.4, "1024": Index(-10)}) == {"logit_bias": {"105": 21.4, "1024": -10}}
    for bad in (math.nan, "1", None, True):
        with pytest.raises(ValueError, match=r"^logit_bias\[5\]: got .*, expected a finite number"):
            request(logit_bias={5: bad})
    with pytest.raises(ValueError, match=r"^logit_bias: got a list of length 1"):
        request(logit_bias=[1])


# -------------------------------------------------------------------------------------------------------- other fields


@pytest.mark.parametrize("name", OTHERS)
def test_other_fields_are_sent_as_they_are(name):
    """Every field of the API goes out under its name, and None leaves it out."""
    assert sent(**{name: OTHERS[name]}) == {name: OTHERS[name]}
    assert sent(**{name: None}) == {}


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        *[("stop", bad) for bad in (5, ["a", 5], [None], b"a")],
        *[("echo", bad) for bad in (1, "yes")],
        *[("parallel_tool_calls", bad) for bad in (0, "no")],
        *[("response_format", bad) for bad in ("json", {}, {"type": 5}, {"type": "regex"}, {"type": "json_schema"})],
        *[
            ("tools", bad)
            for bad in (TOOL, "f", 5, ["f"], [{}], [{"type": "function"}], [{"type": "function", "function": {}}])
        ],
        *[("tool_choice", bad) for bad in ("any", 5, ["auto"], SECRET)],
        *[("reasoning", bad) for bad in (True, "high")],
        *[("chat_template_kwargs", bad) for bad in ([], "x")],
        *[("stream_options", bad) for bad in (True,)],
        *[
            (name, bad)
            for name in ("safety_model", "reasoning_effort", "compliance", "prompt_cache_key")
            for bad in (5, b"x")
        ],
        *[("context_length_exceeded_behavior", bad) for bad in (5, [])],
        *[("extra_body", bad) for bad in ("x", 5, [], {"stream": True})],
        *[("model", bad) for bad in ("", "  ", None, 5, b"m")],
    ],
    ids=lambda value: str(value)[:30],
)
def test_wrong_values_name_the_field(field, bad):
    """Each field says what it expected, and repeats no text."""
    with pytest.raises(ValueError, match=rf"^{field}\b") as caught:
        request(**{field: bad})
    assert SECRET not in str(caught.value)


def test_newer_values_pass():
    """What the server may have learned since passes: tool types, formats, parts, roles."""
    assert sent(tools=[{"type": "web_search"}]) == {"tools": [{"type": "web_search"}]}
    assert sent(response_format={"type": "grammar", "grammar": "x"})
    request([{"role": "developer", "content": [{"type": "hologram", "hologram": 1}]}])
    assert sent(reasoning_effort="ultra") == {"reasoning_effort": "ultra"}


def test_one_stop_text_will_do():
    """A str is one stop text, not its letters."""
    assert sent(stop="END") == {"stop": ["END"]}


def test_extra_body_is_merged_and_wins():
    """Whatever else the server takes goes through, even in place of a field; `stream` is not the caller's to set."""
    assert sent(top_k=5, extra_body={"top_k": 7, "new": {"a": [1]}}) == {"top_k": 7, "new": {"a": [1]}}
    assert sent(extra_body=None) == {}
    assert json.loads(build_request(request(), stream=True).body)["stream"] is True
    assert "stream" not in json.loads(build_request(request(), stream=False).body)


# ------------------------------------------------------------------------------------------------------------ messages


def messages_sent(messages):
    return json.loads(build_request(request(messages), stream=False).body)["messages"]


def test_forms_of_messages():
    """A str is one user message; dicts, values and mappings in any sequence, or from a generator, are the same."""
    expected = [{"role": "user", "content": "hi"}]
    for form in (
        "hi",
        [{"role": "user", "content": "hi"}],
        ({"role": "user", "content": "hi"},),
        [Message.user("hi")],
        [types.MappingProxyType({"role": "user", "content": "hi"})],
        (message for message in [Message("user", "hi")]),
    ):
        assert messages_sent(form) == expected


def test_a_whole_conversation():
    """Every role, parts, tool calls and both keys of reasoning go out in the wire's shape; unknown keys too."""
    parts = [
        {"type": "text", "text": "what is it"},
        {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
        {"type": "video_url", "video_url": {"url": "https://x/y.mp4"}},
        {"type": "audio_url", "audio_url": {"url": "https://x/y.wav"}},
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
    ]
    call = ToolCall(id="c1", type="function", function=Function(name="f", arguments="{}"))
    sent_messages = messages_sent(
        [
            Message.system("be brief"),
            Message.user(parts),
            Message("assistant", tool_calls=[call], reasoning="r"),
            Message.tool("result", tool_call_id="c1"),
            Message("assistant", "done", reasoning_content="rc", name="bot"),
            {"role": "user", "content": parts, "x-cache": True},
        ]
    )
    assert sent_messages == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": parts},
        {
            "role": "assistant",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}, "index": None}
            ],
            "reasoning": "r",
        },
        {"role": "tool", "content": "result", "tool_call_id": "c1"},
        {"role": "assistant", "content": "done", "name": "bot", "reasoning_content": "rc"},
        {"role": "user", "content": parts, "x-cache": True},
    ]


def test_a_completions_message_goes_back_as_it_came():
    """The model's message can be sent again: empties left out, content null kept, and a role where it had none."""
    for came, goes in (
        (
            {"role": "assistant", "content": "x", "tool_calls": [], "refusal": None},
            {"role": "assistant", "content": "x"},
        ),
        ({"content": "x"}, {"role": "assistant", "content": "x"}),
        ({"role": None, "content": "x"}, {"role": "assistant", "content": "x"}),
        (
            {"role": "assistant", "content": None, "reasoning": "r"},
            {"role": "assistant", "content": None, "reasoning": "r"},
        ),
    ):
        completion = decode_completion(json.dumps({"choices": [{"message": came}]}).encode())
        assert messages_sent([completion.choices[0].message]) == [goes]


@pytest.mark.parametrize(
    ("messages", "where"),
    [
        *[(bad, "messages") for bad in (None, 5, b"hi", {"role": "user", "content": "hi"}, [])],
        *[([bad], r"messages\[0\]") for bad in (None, "hi", 5, ["user", "hi"])],
        *[([{"role": role, "content": "x"}], r"messages\[0\]\.role") for role in (None, "", 5)],
        ([{"role": "user"}], r"messages\[0\]\.content"),
        ([{"role": "system", "content": None}], r"messages\[0\]\.content"),
        ([{"role": "user", "content": "x"}, {"role": "user", "content": 5}], r"messages\[1\]\.content"),
        ([{"role": "user", "content": {"type": "text"}}], r"messages\[0\]\.content"),
        ([{"role": "user", "content": ["x"]}], r"messages\[0\]\.content\[0\]"),
        ([{"role": "user", "content": [{"text": SECRET}]}], r"messages\[0\]\.content\[0\]\.type"),
        (
            [{"role": "user", "content": [{"type": "image_url", "url": SECRET}]}],
            r"messages\[0\]\.content\[0\]\.image_url",
        ),
        ([{"role": "tool", "content": SECRET}], r"messages\[0\]\.tool_call_id"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_messages_name_the_place(messages, where):
    """The error says which message and which part of it, and repeats none of the text."""
    with pytest.raises(ValueError, match=rf"^{where}: ") as caught:
        request(messages)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Message(5, "x"),
        lambda: Message("user"),
        lambda: Message.user(None),
        lambda: Message.user(5),
        lambda: Message.user(b"x"),
        lambda: Message.user([5]),
        lambda: Message("tool", "x"),
        lambda: Message.system(["x"]),
    ],
)
def test_a_message_is_checked_when_it_is_made(make):
    """A `Message` that no server takes can't be made."""
    with pytest.raises(ValueError, match=r"^message\."):
        make()


# ---------------------------------------------------------------------------------------------------------- as a value

requests = st.fixed_dictionaries(
    {
        "messages": st.lists(
            st.fixed_dictionaries({"role": st.just("user"), "content": st.text(st.characters(codec="utf-8"))}),
            min_size=1,
        ),
        "model": st.just("m"),
    },
    optional={
        **{
            name: st.integers(max(low if low is not None else 0, 0), high if high is not None else 2**70)
            for name, (_, low, high) in RANGES.items()
        },
        **{name: st.just(value) for name, value in OTHERS.items()},
        "unknown": st.integers(),
    },
)


@given(requests)
def test_from_dict_and_to_dict_are_inverse(body):
    """A body becomes a request and the same body again; copies and pickles of it are equal, with one hash."""
    made = ChatCompletionRequest.from_dict(body)
    assert json.loads(codec.encode(made.to_dict())) == body
    again = ChatCompletionRequest.from_dict(json.loads(codec.encode(made.to_dict())))
    for other in (again, pickle.loads(pickle.dumps(made)), copy.deepcopy(made), attrs.evolve(made)):  # noqa: S301 - made here
        assert other == made
        assert hash(other) == hash(made)


def test_from_dict_drops_stream_and_nulls_and_keeps_the_unknown():
    """A body from anywhere: `stream` is the method's, a known null is the default, an unknown key goes through."""
    made = ChatCompletionRequest.from_dict(
        {"messages": "hi", "model": "m", "stream": True, "n": None, "new": None, "other": 1}
    )
    assert (made.n, made.extra_body) == (None, {"new": None, "other": 1})


@pytest.mark.parametrize(
    ("body", "field"),
    [({"model": "m"}, "messages"), ({"messages": "hi"}, "model"), (5, "body"), ("x", "body"), (None, "body")],
)
def test_from_dict_of_what_is_no_request(body, field):
    """What is missing is named, and a body that is no object is a ValueError too."""
    with pytest.raises(ValueError, match=f"^{field}: "):
        ChatCompletionRequest.from_dict(body)


def test_a_request_can_be_sent_again_and_is_not_changed_by_its_makings():
    """Two builds give the same bytes; a list or dict of messages changed afterwards does not change the request."""
    messages = [{"role": "user", "content": [{"type": "text", "text": "x"}]}]
    made = request(messages, tools=[TOOL], extra_body={"a": 1})
    first = build_request(made, stream=True)
    messages[0]["content"][0]["text"] = "changed"
    messages.append({"role": "user", "content": "more"})
    made.to_dict()["model"] = "changed"
    assert build_request(made, stream=True) == first
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        made.model = "other"


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "hi"}],
        [{"content": "", "role": "assistant"}, {"role": "developer", "content": "x"}],
        [{"role": "system", "content": "x", "name": "n"}],
        [{"role": "critic", "content": "x"}],
        [{"role": "assistant", "content": None}],
        [{"role": "user", "content": "x"}, Message.user("y")],
        [types.MappingProxyType({"role": "user", "content": "x"})],
        [{"role": "user", "text": "x"}],
        [{"role": "tool", "content": "x"}],
        [{"role": ["user"], "content": "x"}],
    ],
    ids=str,
)
def test_plain_messages_are_sent_as_any_others(messages):
    """The quick path for dicts of a role and a text gives what the full checks give: values, keys' order and errors."""
    try:
        expected = [_message_dict(message, f"messages[{i}]") for i, message in enumerate(messages)]
    except ValueError as error:
        with pytest.raises(ValueError, match=re.escape(str(error))):
            _messages(messages)
    else:
        given = _messages(messages)
        assert [list(message.items()) for message in given] == [list(message.items()) for message in expected]
        assert all(message is not its for message, its in zip(given, messages, strict=True))


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict.fromkeys(RANGES, 1) | OTHERS | {"extra_body": {"new": 1}},
        {"stop": "END", "temperature": None},
        {"extra_body": None},
        {"n": 0, "max_tokens": 0},
        {"n": 0, "stop": [5]},
        {"tools": [{}], "logit_bias": 5},
        {"echo": 1, "model": "", "stop": 5},
        {"echo": 1, "model": 5},
        {"messages": [], "stop": 5},
        {"extra_body": {"stream": True}},
        {"seed": BIG},
    ],
    ids=str,
)
def test_request_of_options_is_that_of_the_constructor(options):
    """The request of a call's options equals the constructed one; of several wrong values the same one is named."""
    messages, model = options.pop("messages", "hi"), options.pop("model", "m")
    try:
        expected = ChatCompletionRequest(messages=messages, model=model, **options)
    except ValueError as error:
        with pytest.raises(ValueError, match=re.escape(str(error))):
            request_of(messages, model, options)
    else:
        made = request_of(messages, model, options)
        assert list(vars(made).items()) == list(vars(expected).items())
        assert (made, repr(made)) == (expected, repr(expected))


def test_every_option_has_a_check():
    """The quick way to make a request knows all fields."""
    assert _OPTION_CHECKS.keys() == RequestOptions.__annotations__.keys()


def test_the_extra_bodies_of_two_requests_are_two():
    """A request without an `extra_body` has one of its own."""
    first, second = request_of("hi", "m", {}), request_of("hi", "m", {})
    assert first.extra_body == {}
    assert first.extra_body is not second.extra_body


def test_repr_shows_no_prompt():
    """Reprs of messages and requests show sizes, roles, model and numbers."""
    message = Message("user", SECRET, reasoning=SECRET)
    made = request(
        [message, {"role": "user", "content": SECRET}],
        tools=[{"type": SECRET}],
        stop=SECRET,
        n=2,
        extra_body={"x": SECRET},
    )
    assert SECRET not in repr(message) + repr(made) + repr(build_request(made, stream=True))
    assert repr(made) == "ChatCompletionRequest(messages=<2 messages>, model='m', n=2)"
    assert repr(message) == "Message(role='user', content=<18 chars>)"


def endless():
    body: dict = {}
    body["self"] = body
    return body


@pytest.mark.parametrize(
    "value", [object(), {1, object()}, "\ud800", endless(), 10**5000, {object(): 1}], ids=lambda v: type(v).__name__
)
def test_what_has_no_json_form_is_a_value_error(value):
    """Whatever JSON can't say is refused before it is sent; the error repeats none of it."""
    made = request(extra_body={"x": value})
    with pytest.raises(ValueError, match=r"^request: has no JSON form") as caught:
        build_request(made, stream=True)
    assert caught.value.__cause__ is None

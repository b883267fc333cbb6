"""Scripts: the model's replies to a request, within the request's limits."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from together_async.request import ChatCompletionRequest
from together_async.testing import Call, Reply
from together_async.testing.script import GeneratedChoice, Script, generate_choices, prompt_tokens, text_of
from together_async.testing.text.tokens import tokens_of

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
OTHER_TOOL = {"type": "function", "function": {"name": "get_time"}}


def request(**fields: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest(**{"messages": [{"role": "user", "content": "hi"}], "model": "m", **fields})


def choices_of(script: Script, *, seed: int | str = 0, **fields: Any) -> tuple[GeneratedChoice, ...]:
    asked = request(**fields)
    replies: Any = script(asked) if callable(script) else script  # as the server does
    return generate_choices(replies, asked, seed=seed)


def text(choice: GeneratedChoice) -> str:
    return "".join(choice.content or ())


# -------------------------------------------------------------------------------------------------------------- scripts


@pytest.mark.parametrize("script", ["Hello there!", Reply("Hello there!"), ["Hello there!"], [Reply("Hello there!")]])
def test_a_text_a_reply_or_a_list_of_these(script):
    """All give the same: the tokens of the text, once, with reason `stop`."""
    (choice,) = choices_of(script)
    assert choice.content == ("Hello", " there", "!")
    assert (choice.index, choice.finish_reason, choice.reasoning, choice.calls) == (0, "stop", (), ())


@pytest.mark.parametrize(
    ("script", "texts"),
    [
        ("a", ["a", "a", "a"]),
        (["a", "b"], ["a", "b", "a"]),
        ([Reply("a"), "b", "c", "d"], ["a", "b", "c"]),
    ],
)
def test_choices_get_the_replies_in_turn(script, texts):
    """One text for all, several from the first again; each choice has its index."""
    choices = choices_of(script, n=3)
    assert [text(choice) for choice in choices] == texts
    assert [choice.index for choice in choices] == [0, 1, 2]


@pytest.mark.parametrize("replies", [5, b"x", [], [5], {"a": 1}, object()])
def test_what_is_no_reply_is_a_type_error(replies):
    """The message names the type."""
    with pytest.raises(TypeError, match="the script returned"):
        choices_of(lambda _: replies)


def test_the_tokens_may_be_given():
    """A sequence of str is streamed as it is, empty ones too."""
    (choice,) = choices_of(Reply(["a", "", "bc"], reasoning=["x", "y"]))
    assert (choice.content, choice.reasoning) == (("a", "", "bc"), ("x", "y"))
    assert Reply(["a", "", "bc"]).text == "abc"
    assert Reply(None).text == ""


def test_a_reply_may_set_its_finish_reason():
    """`finish_reason` replaces the one that follows from the content."""
    (choice,) = choices_of(Reply("x", finish_reason="content_filter"))
    assert choice.finish_reason == "content_filter"


# ---------------------------------------------------------------------------------------------------------------- calls


def test_calls_have_an_id_and_their_arguments_in_pieces():
    """A mapping becomes JSON, a str stays as it is, broken or not; ids are made where none was given."""
    (choice,) = choices_of(
        Reply(None, tool_calls=[Call("f", {"city": "Oslo"}), Call("g", '{"a', id="mine"), Call("h")])
    )
    assert [call.name for call in choice.calls] == ["f", "g", "h"]
    assert ["".join(call.pieces) for call in choice.calls] == ['{"city":"Oslo"}', '{"a', "{}"]
    assert re.fullmatch("call_[0-9a-f]{24}", choice.calls[0].id)
    assert choice.calls[1].id == "mine"
    assert len({call.id for call in choice.calls}) == 3
    assert (choice.content, choice.finish_reason) == (None, "tool_calls")
    assert choice.tokens == sum(len(call.pieces) for call in choice.calls)


# --------------------------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("stop", "kept"),
    [
        (["two"], ("one", " ")),
        ([" two"], ("one",)),
        (["e t"], ("on",)),
        (["o"], ()),
        (["three", "ne"], ("o",)),
        (["nowhere"], None),
        ([""], None),
    ],
)
def test_the_text_ends_before_the_first_stop(stop, kept):
    """Also inside a token and across two; an empty stop and one that isn't there stop nothing."""
    (choice,) = choices_of("one two three", stop=stop)
    assert choice.content == (kept if kept is not None else tuple(tokens_of("one two three")))
    assert choice.finish_reason == "stop"


def test_what_is_stopped_calls_nothing():
    """The calls came after the text."""
    (choice,) = choices_of(Reply("one two", tool_calls=[Call("f")]), stop=["two"])
    assert (choice.calls, choice.finish_reason) == ((), "stop")


MIXED = Reply(["a", "b"], reasoning=["r", "s"], tool_calls=[Call("f", "{}", id="1"), Call("g", "{}", id="2")])


def test_max_tokens_cuts_in_the_order_of_generation():
    """Reasoning, content, tool calls: every limit gives exactly so many tokens, a prefix of the whole reply."""
    (full,) = choices_of(MIXED)
    assert full.tokens >= 6
    flat = [*full.reasoning, *(full.content or ()), *(p for call in full.calls for p in call.pieces)]
    for limit in range(1, full.tokens):
        (cut,) = choices_of(MIXED, max_tokens=limit)
        assert cut.tokens == limit
        assert [*cut.reasoning, *(cut.content or ()), *(p for call in cut.calls for p in call.pieces)] == flat[:limit]
        assert cut.finish_reason == "length"


@pytest.mark.parametrize("more", [0, 1])
def test_max_tokens_that_suffice_cut_nothing(more):
    """Exactly enough is enough."""
    (full,) = choices_of(MIXED)
    (choice,) = choices_of(MIXED, max_tokens=full.tokens + more)
    assert choice == full
    assert choice.finish_reason == "tool_calls"


def test_a_call_of_which_nothing_would_be_left_is_not_begun():
    """The cut right after the text leaves no call with a name and no arguments."""
    (choice,) = choices_of(MIXED, max_tokens=4)
    assert choice.calls == ()


# ------------------------------------------------------------------------------------------------------------ generated


def test_generated_text_depends_on_request_and_seed_alone():
    """The same twice, another with another seed, and each choice its own."""
    assert choices_of(None, n=2) == choices_of(None, n=2)
    choice, other = choices_of(None, n=2)
    assert text(choice) != text(other)
    assert text(choices_of(None, seed=1)[0]) != text(choice)


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_generated_text_is_cut_by_max_tokens(limit):
    """The text goes on, as the reason `length` shows."""
    (choice,) = choices_of(None, max_tokens=limit)
    assert (choice.tokens, choice.finish_reason) == (limit, "length")


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "get_weather"),
        ({"tool_choice": "auto"}, "get_weather"),
        ({"tool_choice": "required"}, "get_weather"),
        ({"tool_choice": "none"}, None),
        ({"tool_choice": {"type": "function", "function": {"name": "get_time"}}}, "get_time"),
        ({"tool_choice": {"type": "function", "function": {"name": "unknown"}}}, "get_weather"),
        ({"messages": [{"role": "tool", "content": "4", "tool_call_id": "c"}]}, None),
        (
            {"messages": [{"role": "tool", "content": "4", "tool_call_id": "c"}], "tool_choice": "required"},
            "get_weather",
        ),
    ],
)
def test_a_tool_is_called_where_one_is_asked_for(fields, name):
    """The first unless one is named; none with `tool_choice="none"`, or after a tool's answer."""
    (choice,) = choices_of(None, tools=[TOOL, OTHER_TOOL], **fields)
    assert [call.name for call in choice.calls] == ([] if name is None else [name])
    assert (choice.content is None) is (name is not None)
    if name == "get_weather":
        arguments = json.loads("".join(choice.calls[0].pieces))
        assert list(arguments) == ["city"]
        assert isinstance(arguments["city"], str)


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


@pytest.mark.parametrize(
    "wanted",
    [
        {"type": "json", "schema": SCHEMA},
        {"type": "json_object", "schema": SCHEMA},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
    ],
    ids=lambda wanted: wanted["type"],
)
def test_a_response_format_with_a_schema_is_honoured(wanted):
    """The text is JSON that fits the schema."""
    (choice,) = choices_of(None, response_format=wanted)
    value = json.loads(text(choice))
    assert list(value) == ["n"]
    assert isinstance(value["n"], int)


def test_json_without_a_schema_is_json():
    """`json_object` alone."""
    (choice,) = choices_of(None, response_format={"type": "json_object"})
    json.loads(text(choice))


def test_a_regex_is_matched():
    """The whole text."""
    (choice,) = choices_of(None, response_format={"type": "regex", "pattern": "[a-c]{4}-[0-9]+"})
    assert re.fullmatch("[a-c]{4}-[0-9]+", text(choice))


@pytest.mark.parametrize("wanted", [None, {"type": "text"}, {"type": "what comes later"}])
def test_any_other_format_is_text(wanted):
    """Prose, as without."""
    (choice,) = choices_of(None, response_format=wanted)
    assert choice.tokens > 1


@pytest.mark.parametrize(
    "wanted", [{"type": "json", "schema": {"not": {}}}, {"type": "regex", "pattern": "("}], ids=lambda w: w["type"]
)
def test_a_format_without_a_solution_is_a_value_error(wanted):
    """Which the server answers with 400."""
    with pytest.raises(ValueError, match=r"."):
        choices_of(None, response_format=wanted)


def test_a_script_does_not_heed_the_format():
    """A script's reply is sent as it is, even if the request asks for JSON or a tool call."""
    (choice,) = choices_of("no JSON", response_format={"type": "json_object"}, tools=[TOOL], tool_choice="required")
    assert text(choice) == "no JSON"
    assert choice.calls == ()


@pytest.mark.parametrize("seed", [0, 7, 15924764223251450000])
def test_the_requested_seed_is_the_seed_reported(seed):
    """In each choice."""
    assert [choice.seed for choice in choices_of("x", seed=3, n=2)] != [seed, seed]
    assert [choice.seed for choice in generate_choices("x", request(seed=seed, n=2), seed=3)] == [seed, seed]


# --------------------------------------------------------------------------------------------------------------- prompt


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("hi", "hi"),
        (None, ""),
        ([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "u"}}, {"text": "b"}], "a b"),
        ([5, {"text": 5}], ""),
        (5, ""),
    ],
)
def test_the_text_of_a_content(content, found):
    """A str, or the text parts of a list; anything else counts as empty."""
    assert text_of(content) == found


def test_prompt_tokens_are_those_of_the_texts_and_four_a_message():
    """Counted with the tokens that the emulator speaks in."""
    asked = request(messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}])
    assert prompt_tokens(asked) == 8 + len(tokens_of("Be brief.")) + len(tokens_of("Why?"))

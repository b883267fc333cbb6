"""The accumulator: the chunks of an answer add up to the whole response of the same answer."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.paths import SAMPLES
from together_async.models import ChatCompletion
from together_async.wire.accumulator import ChatCompletionAccumulator
from together_async.wire.codec import decode_chunk, decode_completion
from together_async.wire.completions import chunk_of
from together_async.wire.sse import EventStreamParser

PAIRS = sorted(path.stem for path in SAMPLES.glob("*.sse") if (SAMPLES / f"{path.stem}.json").exists())


def chunks_of(name: str):
    events = EventStreamParser().feed((SAMPLES / f"{name}.sse").read_bytes())
    return [decode_chunk(event.data) for event in events if event.data != b"[DONE]"]


def added(chunks) -> ChatCompletionAccumulator:
    accumulator = ChatCompletionAccumulator()
    for chunk in chunks:
        accumulator.add(chunk if not isinstance(chunk, dict) else decode_chunk(json.dumps(chunk).encode()))
    return accumulator


def choice(delta=None, *, index=0, finish_reason=None, **more) -> dict:
    return {"id": "s", "choices": [{"index": index, "delta": delta or {}, "finish_reason": finish_reason, **more}]}


def test_another_id_is_another_call():
    """Servers that give every tool call the index 0, or no index at all, still mean several calls."""
    pieces = [
        {"index": 0, "id": "a", "function": {"name": "f", "arguments": '{"x":1}'}},
        {"index": 0, "id": "b", "function": {"name": "g", "arguments": "{}"}},
    ]
    calls = added([choice({"tool_calls": pieces})]).completion().choices[0].message.tool_calls
    assert [(call.id, call.function.name, call.function.arguments) for call in calls] == [
        ("a", "f", '{"x":1}'),
        ("b", "g", "{}"),
    ]


def usage_of(total: int) -> dict:
    return {"prompt_tokens": 1, "completion_tokens": total - 1, "total_tokens": total}


# ------------------------------------------------------------------------------------------------------------- samples


@pytest.mark.parametrize("name", PAIRS)
def test_a_stream_adds_up_to_its_whole_response(name):
    """Each transcript and the whole response of the same answer are equal, usage and log probabilities included."""
    completion = added(chunks_of(name)).completion()
    expected = decode_completion((SAMPLES / f"{name}.json").read_bytes())
    assert completion == expected
    assert completion.object == "chat.completion"
    assert [message(completion, i).content for i in range(len(completion.choices))] == [
        message(expected, i).content for i in range(len(expected.choices))
    ]


@pytest.mark.parametrize("name", [*PAIRS, "reference_page", "echo"])
def test_a_whole_response_as_one_chunk_adds_up_to_itself(name):
    """`chunk_of` and the accumulator are inverse."""
    expected = decode_completion((SAMPLES / f"{name}.json").read_bytes())
    accumulator = added([chunk_of(expected)])
    assert accumulator.completion() == expected
    assert accumulator.finished()


def message(completion: ChatCompletion, index: int = 0):
    return completion.choices[index].message


# ------------------------------------------------------------------------------------- any answer in any pieces

words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=6)
texts = st.none() | words
calls = st.lists(
    st.fixed_dictionaries(
        {
            "id": words,
            "type": st.just("function"),
            "function": st.fixed_dictionaries({"name": words, "arguments": st.text(max_size=12)}),
        }
    ),
    max_size=3,
)
answers = st.fixed_dictionaries(
    {
        "id": words,
        "created": st.integers(0, 2**40),
        "model": words,
        "system_fingerprint": texts,
        "usage": st.none() | st.integers(2, 99).map(usage_of),
        "choices": st.lists(
            st.fixed_dictionaries(
                {
                    "content": st.lists(words, max_size=6),
                    "reasoning": st.lists(words, max_size=3),
                    "reasoning_content": st.lists(words, max_size=3),
                    "refusal": st.lists(words, max_size=2),
                    "tool_calls": calls,
                    "function_call": st.none()
                    | st.fixed_dictionaries({"name": words, "arguments": st.text(max_size=8)}),
                    "logprobs": st.sampled_from([None, None, "native", "openai"]),
                    "finish_reason": st.sampled_from(["stop", "eos", "length", "tool_calls", "brand_new", None]),
                    "seed": st.none() | st.integers(0, 2**70),
                }
            ),
            min_size=1,
            max_size=3,
        ),
    }
)


def whole(answer) -> dict:
    """The answer as a whole response."""
    choices = []
    for index, choice in enumerate(answer["choices"]):
        calls = [{"index": i, **call} for i, call in enumerate(choice["tool_calls"])]
        body = {"role": "assistant", "content": "".join(choice["content"]) or None, "tool_calls": calls}
        for name in ("reasoning", "reasoning_content", "refusal"):
            body[name] = "".join(choice[name]) or None
        body["function_call"] = choice["function_call"]
        choices.append(
            {
                "index": index,
                "message": body,
                "finish_reason": choice["finish_reason"],
                "logprobs": logprobs(choice["content"], choice["logprobs"]),
                "seed": choice["seed"],
            }
        )
    return {**answer, "object": "chat.completion", "choices": choices}


def logprobs(tokens, kind):
    if not tokens or kind is None:
        return None
    if kind == "openai":
        return {"content": [{"token": token, "logprob": -0.5} for token in tokens]}
    return {"tokens": tokens, "token_logprobs": [-0.5] * len(tokens), "token_ids": [len(token) for token in tokens]}


def deltas(choice, rng: random.Random):
    """The pieces of a choice in the order a server sends them: a delta, and the other fields of the choice."""
    yield (
        rng.choice(
            [{"role": "assistant"}, {"role": "assistant", "content": None}, {"role": "assistant", "content": ""}]
        ),
        {},
    )
    for name in ("reasoning", "reasoning_content"):
        for text in choice[name]:
            yield {name: text, **rng.choice([{}, {"content": None}])}, {}
    for token in choice["content"]:
        if choice["logprobs"] == "native":
            yield {"content": token, "token_id": len(token)}, {"logprobs": -0.5}
        elif choice["logprobs"] == "openai":
            yield {"content": token}, {"logprobs": {"content": [{"token": token, "logprob": -0.5}]}}
        else:
            yield {"content": token}, rng.choice([{}, {"logprobs": None, "text": token}])
    for text in choice["refusal"]:
        yield {"refusal": text}, {}
    pieces = [list(call_pieces(i, call, rng)) for i, call in enumerate(choice["tool_calls"])]
    if rng.random() < 0.5:  # one call after the other, or all at once
        pieces = [[piece for call in pieces for piece in call]]
    else:
        pieces = [[call[0] for call in pieces], *[call[1:] for call in pieces]]
    yield from (({"tool_calls": [piece]}, {}) for call in pieces for piece in call)
    if choice["function_call"]:
        yield {"function_call": {"name": choice["function_call"]["name"], "arguments": ""}}, {}
        yield from (({"function_call": {"arguments": piece}}, {}) for piece in choice["function_call"]["arguments"])


def call_pieces(index, call, rng):
    function = call["function"]
    first = {
        "index": index,
        "id": call["id"],
        "type": "function",
        "function": {"name": function["name"], "arguments": ""},
    }
    if rng.random() < 0.2:
        yield {**first, "function": function}
        return
    yield first
    for character in function["arguments"]:
        yield {"index": index, "function": {"arguments": character}}


def streamed(answer, rng: random.Random):
    """The answer as chunks: choices in any order, several in one chunk or not, usage where servers put it."""
    head = {key: answer[key] for key in ("id", "created", "model", "system_fingerprint")}
    queues = []
    for index, choice in enumerate(answer["choices"]):
        queue = [
            {"index": index, "delta": delta, "finish_reason": None, **beside} for delta, beside in deltas(choice, rng)
        ]
        end = {"finish_reason": choice["finish_reason"], "seed": choice["seed"]}
        if rng.random() < 0.5 and len(queue) > 1:
            queue[-1].update(end)
        else:
            queue.append({"index": index, "delta": rng.choice([{}, None, {"content": ""}]), **end})
        if rng.random() < 0.2 and choice["finish_reason"]:
            queue.append({"index": index, "delta": {}, "finish_reason": choice["finish_reason"]})
        queues.append(queue)
    while any(queues):
        waiting = [queue for queue in queues if queue]
        taken = rng.sample(waiting, rng.randint(1, len(waiting)))
        yield {**head, "choices": [queue.pop(0) for queue in taken], "usage": None}
    if answer["usage"]:
        if rng.random() < 0.3:
            yield {**head, "choices": [], "usage": usage_of(2)}  # counted along; the last one counts
        yield {**head, "choices": [], "usage": answer["usage"]}


@given(answers, st.randoms(use_true_random=False))
def test_any_answer_in_any_pieces(answer, rng):
    """Content, reasoning, refusal, calls, log probabilities of both shapes, reasons, seeds and usage add up."""
    accumulator = ChatCompletionAccumulator()
    expected = decode_completion(json.dumps(whole(answer)).encode())
    generated = 0
    for document in streamed(answer, rng):
        chunk = decode_chunk(json.dumps(document).encode())
        accumulator.add(chunk)
        generated += any(held(choice["delta"]) for choice in document["choices"])
        if rng.random() < 0.1:
            accumulator.settle()
            hash(accumulator.completion())
    assert accumulator.completion() == expected
    assert accumulator.generated == generated
    assert accumulator.finished() == all(choice["finish_reason"] for choice in answer["choices"])
    assert accumulator.usage == expected.usage


def held(delta) -> bool:
    names = ("content", "reasoning", "reasoning_content", "refusal", "tool_calls", "function_call")
    return any((delta or {}).get(name) for name in names)


@given(answers, st.randoms(use_true_random=False), st.integers(0, 30))
def test_a_part_of_a_stream_is_a_part_of_the_answer(answer, rng, count):
    """After any number of chunks the texts are the beginnings of the texts, and no finish reason is invented."""
    chunks = list(streamed(answer, rng))[:count]
    completion = added(chunks).completion()
    sent = {}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        sent[choice["index"]] = sent.get(choice["index"]) or choice["finish_reason"]
    for part in completion.choices:
        choice = answer["choices"][part.index]
        assert "".join(choice["content"]).startswith(part.message.content or "")
        assert "".join(choice["reasoning"]).startswith(part.message.reasoning or "")
        assert part.finish_reason == sent[part.index]
    assert [part.index for part in completion.choices] == sorted(sent)


# ------------------------------------------------------------------------------------------------------------- rules


def test_nothing_is_an_empty_completion():
    """Before the first chunk there is a completion without choices, and it is not finished."""
    accumulator = ChatCompletionAccumulator()
    assert accumulator.completion() == ChatCompletion()
    assert (accumulator.finished(), accumulator.usage, accumulator.generated) == (False, None, 0)
    assert accumulator.texts(0) is None
    assert repr(accumulator) == "<ChatCompletionAccumulator 0 choices, 0 chunks with content>"


@pytest.mark.parametrize(
    ("reasons", "finished"),
    [
        ([(0, "stop")], True),
        ([(0, None)], False),
        ([(0, "")], False),
        ([(0, "stop"), (1, None)], False),
        ([(0, "stop"), (1, "length")], True),
        ([(1, "stop"), (0, None), (0, "stop")], True),
        ([(0, "tool_calls"), (0, "tool_calls")], True),
        ([(0, "stop"), (0, None)], True),
        ([(0, "stop"), (0, "")], True),
    ],
)
def test_finished_is_a_reason_for_every_choice_seen(reasons, finished):
    """An empty reason does not count, a null one does not undo one, and each choice that has begun needs its own."""
    assert added(choice(index=index, finish_reason=reason) for index, reason in reasons).finished() is finished


def test_no_finish_reason_is_null_and_not_invented():
    """A choice without a reason has null, also in JSON; an empty reason stays empty."""
    completion = added([choice({"content": "x"})]).completion()
    assert completion.choices[0].finish_reason is None
    assert completion.to_dict()["choices"][0]["finish_reason"] is None
    assert added([choice(finish_reason="")]).completion().choices[0].finish_reason == ""


def test_what_counts_as_generated():
    """Text and calls count; roles, empty texts, reasons and usage do not."""
    for delta in ({"content": "x"}, {"reasoning": "x"}, {"tool_calls": [{"index": 0, "id": "a"}]}, {"refusal": "x"}):
        assert added([choice(delta)]).generated == 1
    for silent in (
        choice({"role": "assistant"}),
        choice({"content": ""}),
        choice(finish_reason="stop"),
        {"choices": []},
    ):
        assert added([silent]).generated == 0


def test_text_beside_a_delta_is_not_added_again():
    """Together repeats the content as `text`; servers of the older shape send `text` alone."""
    assert added([choice({"content": "x"}, text="x")]).completion().text == "x"
    assert (
        added([{"choices": [{"index": 0, "text": "a"}]}, {"choices": [{"index": 0, "text": "b"}]}]).completion().text
        == "ab"
    )


def test_empty_content_is_not_null():
    """An empty content and a content that never came are different values."""
    assert message(added([choice({"content": ""}), choice({"content": ""})]).completion()).content == ""
    assert message(added([choice({"role": "assistant"})]).completion()).content is None


def test_calls_without_an_index_are_told_apart_by_id():
    """A new id begins a new call; pieces without one belong to the last."""
    pieces = [{"id": "a", "function": {"name": "f", "arguments": "1"}}, {"function": {"arguments": "2"}}, {"id": "b"}]
    calls = message(added(choice({"tool_calls": [piece]}) for piece in pieces).completion()).tool_calls
    assert [(call.id, call.function.arguments) for call in calls] == [("a", "12"), ("b", "")]


def test_calls_stand_in_the_order_of_their_index():
    """The order is a whole response's, whichever call began first."""
    pieces = [{"index": 1, "id": "b", "function": {"name": "g"}}, {"index": 0, "id": "a", "function": {"name": "f"}}]
    calls = message(added(choice({"tool_calls": [piece]}) for piece in pieces).completion()).tool_calls
    assert [call.id for call in calls] == ["a", "b"]


def test_token_ids_stand_beside_their_tokens():
    """A token without an id has a null in its place, or every later id would belong to the wrong token."""
    chunks = [
        choice({"content": "a", "token_id": None}, logprobs=-1.0),
        choice({"content": "b", "token_id": 7}, logprobs=-2.0),
    ]
    lists = added(chunks).completion().choices[0].logprobs
    assert (lists.tokens, lists.token_logprobs, lists.token_ids) == (("a", "b"), (-1.0, -2.0), (None, 7))


def test_no_token_ids_where_none_came():
    """A server without ids has no list of them."""
    assert added([choice({"content": "a"}, logprobs=-1.0)]).completion().choices[0].logprobs.token_ids is None


def test_facts_that_came_empty_first_are_filled_later():
    """Some servers begin with a chunk whose id and model are empty texts."""
    first = {"id": "", "model": "", "created": 0, "choices": []}
    completion = added([first, {**choice({"content": "x"}), "id": "real", "model": "m", "created": 5}]).completion()
    assert (completion.id, completion.model) == ("real", "m")


def test_facts_that_came_late_are_there():
    """The fingerprint and the tier may come with a later chunk than the id."""
    late = {**choice({"content": "x"}), "system_fingerprint": "fp", "service_tier": "t", "model": "m"}
    completion = added([choice({"role": "assistant"}), late]).completion()
    assert (completion.system_fingerprint, completion.service_tier, completion.model) == ("fp", "t", "m")


def test_echo_and_warnings_are_kept():
    """The prompt and the warnings come with whichever chunk they like."""
    completion = added(
        [choice({"content": "x"}), {**choice(), "prompt": [{"text": "p"}], "warnings": [{"message": "w"}]}]
    ).completion()
    assert completion.prompt[0].text == "p"
    assert completion.warnings == ({"message": "w"},)


@pytest.mark.parametrize("name", ["content", "reasoning"])
def test_work_does_not_grow_with_what_came_before(name):
    """Four times the chunks are about four times the characters copied, and memory is that of the text."""

    def copied(count: int) -> int:
        accumulator = ChatCompletionAccumulator()
        chunk = decode_chunk(json.dumps(choice({name: "x"})).encode())
        total = before = 0
        known: set[int] = set()
        for _ in range(count):
            accumulator.add(chunk)
            accumulator.settle()
            text = accumulator._choices[0].texts[name]
            if len(text.pieces) < before:  # pieces have been joined: whatever block is new was copied
                total += sum(len(block) for block in text.blocks if id(block) not in known)
                known = {id(block) for block in text.blocks}
            before = len(text.pieces)
        assert before < 1024
        assert text.joined() == "x" * count
        return total

    assert copied(40_000) <= 6 * copied(10_000)

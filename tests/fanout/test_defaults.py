"""`Defaults`: the request of every kind of element, and what fills its gaps; how many requests run at once."""

from __future__ import annotations

import traceback
from typing import Any

import pytest

from support.fanout import KINDS, SECRET, all_of, emulated, prompts, tidy
from support.servers import MODEL
from together_async import (
    ChatCompletionRequest,
    Message,
)
from together_async.fanout.defaults import Defaults, checked_concurrency


@tidy
async def test_every_kind_of_request() -> None:
    """A str, dicts, `Message`s, a whole request as a dict or as a value: all in one input."""
    message = {"role": "user", "content": "dicts"}
    given: list[Any] = [
        "text",
        [message],
        (Message.system("Be brief."), Message.user("messages")),
        {"messages": "wire", "model": MODEL, "stream": True},
        {"messages": [{"role": "user", "content": "no model"}], "unknown": 5},
        ChatCompletionRequest(messages="value", model="other", n=2),
    ]
    async with emulated() as (server, client):
        results = await all_of(client.map(given, model=MODEL, ordered=True, concurrency=1))
    assert [result.request for result in results] == given
    assert all(result.request is element for result, element in zip(results, given, strict=True))
    assert [result.completion.text for result in results if result.completion] == [
        f"You said: {text}" for text in ("text", "dicts", "messages", "wire", "no model", "value")
    ]
    assert [entry.model for entry in server.journal] == [*[MODEL] * 5, "other"]
    assert results[-1].completion is not None
    assert len(results[-1].completion.choices) == 2
    assert server.journal[4].body["unknown"] == 5
    assert not any(entry.streamed for entry in server.journal)


@tidy
async def test_defaults_fill_what_a_request_does_not_say() -> None:
    """They never replace a value of the request, not even 0; None in a dict counts as absent."""
    given: list[Any] = [
        "text",
        {"messages": "a", "model": "own", "temperature": 0, "max_tokens": 3, "extra": "own"},
        {"messages": "b", "temperature": None, "model": None},
        ChatCompletionRequest(messages="c", model="own", temperature=0.0, extra_body={"extra": "own", "mine": 1}),
        ChatCompletionRequest(messages="d", model="own"),
    ]
    options: dict[str, Any] = {"temperature": 0.7, "max_tokens": 9, "stop": ["x"], "extra_body": {"extra": "all"}}
    async with emulated() as (server, client):
        await all_of(client.map(given, model=MODEL, concurrency=1, ordered=True, **options))
    sent = [
        tuple(entry.body.get(name) for name in ("model", "temperature", "max_tokens", "extra", "mine"))
        for entry in server.journal
    ]
    assert sent == [
        (MODEL, 0.7, 9, "all", None),
        ("own", 0, 3, "own", None),
        (MODEL, 0.7, 9, "all", None),
        ("own", 0, 9, "own", 1),
        ("own", 0.7, 9, "all", None),
    ]
    assert all(entry.body["stop"] == ["x"] for entry in server.journal)


@tidy
async def test_one_request_does_not_change_the_next() -> None:
    """The shared template is not changed: each request has its own messages, and the caller's defaults stay as they
    were."""
    extra = {"a": 1}
    async with emulated() as (server, client):
        given = [[{"role": "user", "content": f"prompt {n}"}] for n in range(3)]
        await all_of(client.map(given, model=MODEL, concurrency=1, extra_body=extra))
    assert server.prompts == prompts(3)
    assert extra == {"a": 1}


BAD: dict[str, Any] = {
    "None": None,
    "int": 5,
    "bytes": SECRET.encode(),
    "half a character": SECRET + " \ud800",
    "no message": [],
    "strs": [SECRET],
    "pair": ("key", SECRET),
    "message alone": {"role": "user", "content": SECRET},
    "Message alone": Message.user(SECRET),
    "temperature": {"messages": SECRET, "temperature": -1},
    "n": {"messages": SECRET, "n": SECRET},
    "no JSON": {"messages": SECRET, "extra": object()},
    "content": [{"role": "user", "content": {SECRET}}],
    "role": [{"content": SECRET}],
    "model": {"messages": SECRET, "model": 5},
    "batch line": {"custom_id": "1", "body": {"messages": SECRET}},
    "generator": (SECRET for _ in range(1)),
    "empty dict": {},
}


@KINDS
@pytest.mark.parametrize("name", BAD)
@tidy
async def test_an_element_that_is_no_request(name: str, stream: bool) -> None:
    """Its result has a ValueError, and no prompt in any text; nothing is sent for it, and the others go on."""
    async with emulated() as (server, client):
        results = await all_of(
            client.map(["a", BAD[name], "b"], model=MODEL, ordered=True, concurrency=2, stream=stream)
        )
        assert sorted(server.prompts) == ["a", "b"]
    first, bad, last = results
    assert first.completion is not None
    assert last.completion is not None
    assert type(bad.error) is ValueError
    assert (bad.completion, bad.attempts, bad.retries, bad.usage) == (None, 0, (), None)
    assert SECRET not in "".join(traceback.format_exception(bad.error)) + repr(bad.error) + repr(bad)
    assert 0 == bad.timing.queued_s <= bad.timing.total_s


@tidy
async def test_a_wrong_default_is_an_error_of_each_request() -> None:
    """Nothing is sent for a request that relies on it; one with a valid value of its own succeeds."""
    given = ["a", "b", {"messages": "c", "model": MODEL, "temperature": 1}]
    async with emulated() as (server, client):
        results = await all_of(client.map(given, model=MODEL, ordered=True, temperature=-1, concurrency=1))
        assert [type(result.error) for result in results] == [ValueError, ValueError, type(None)]
        assert server.prompts == ["c"]


@tidy
async def test_no_model_anywhere() -> None:
    """The error says how to name one."""
    async with emulated() as (server, client):
        (result,) = await all_of(client.map(["hi"]))
        with pytest.raises(ValueError, match="model: missing; name it, as model="):
            raise result.error  # type: ignore[misc]  # if it is None, that fails too
        assert not server.prompts


@pytest.mark.parametrize(("soft", "most"), [(256, 192), (64, 32), (3, 1), (1_048_576, 256), (-1, 256)])
def test_no_more_at_once_than_the_process_may_have_files(monkeypatch: pytest.MonkeyPatch, soft: int, most: int) -> None:
    """256 by default, fewer where file descriptors are scarce, but half of them, and at least 1."""
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, soft))
    assert checked_concurrency(None, None) == most
    assert checked_concurrency(None, "auto") == most
    assert checked_concurrency(None, 1_000) == 1_000
    assert checked_concurrency(1_000, 3) == 1_000


def test_a_str_is_one_user_message() -> None:
    """The first str makes the template, the next ones take the quick path: both are as the same messages in a list."""
    defaults = Defaults({"model": MODEL, "temperature": 0.5, "extra_body": {"a": 1}})
    first, second = (defaults.request("hi") for _ in range(2))
    assert first == second == defaults.request([{"role": "user", "content": "hi"}])
    assert first == ChatCompletionRequest(messages="hi", model=MODEL, temperature=0.5, extra_body={"a": 1})

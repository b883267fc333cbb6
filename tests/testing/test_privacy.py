"""Privacy: no key and no prompt is in a recording, however it is spelled."""

import itertools
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.recordings import HEAD, TEXT, asking, body_of, chunked_body, only, post, recorded_once, recording
from support.servers import KEY
from together_async.testing import (
    Fault,
    Raw,
    Recording,
    Split,
    Status,
)
from together_async.testing.exchange import RecordedExchange
from together_async.testing.privacy import without_private

pytestmark = pytest.mark.usefixtures("no_leaks")


PROMPT = 'My "secret" plän 🌈 is/was: C:\\new\\temp\nthen <rest>'
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks up the classified ledger",
        "parameters": {"type": "object", "properties": {"hidden_field": {"type": "string", "enum": ["classified1"]}}},
    },
}


def spellings(secret: str) -> set[bytes]:
    """A text as it is, and as JSON within JSON within JSON, with and without ASCII only."""
    found = {secret}
    for ascii_only in (True, False):
        once = json.dumps(secret, ensure_ascii=ascii_only)[1:-1]
        twice = json.dumps(once, ensure_ascii=ascii_only)[1:-1]
        found |= {once, twice, json.dumps(twice, ensure_ascii=ascii_only)[1:-1]}
    return {text.encode("utf-8", "surrogatepass") for text in found}


def assert_nowhere(path: Path, *secrets: str) -> None:
    data = path.read_bytes()
    for secret in secrets:
        for spelling in spellings(secret):
            assert spelling not in data, spelling
    for exchange in Recording.load(path).exchanges:
        whole = body_of(exchange)
        for secret in secrets:
            for spelling in spellings(secret):
                assert spelling not in whole, spelling


def error(text: str, *, ascii_only: bool = True) -> bytes:
    body = json.dumps({"error": {"message": f"bad: {text}"}}, ensure_ascii=ascii_only).encode()
    return b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )


class TestPrivacy:
    ASKED = (
        asking(PROMPT),
        asking("x", messages=[{"role": "user", "content": [{"type": "text", "text": PROMPT}]}]),
        asking("x", messages=[{"role": "system", "content": PROMPT}, {"role": "user", "content": "x"}]),
        asking("x", tools=[{**TOOL, "function": {**TOOL["function"], "description": PROMPT}}]),  # type: ignore[dict-item]  # a dict
        asking("x", safety_model=PROMPT, stop=[PROMPT], whatever={"deep": [PROMPT]}),
        {PROMPT: 1, **asking("x"), "logit_bias": {PROMPT: 1}},
        asking("x", model=[PROMPT]),
    )

    @pytest.mark.parametrize("asked", ASKED, ids=range(len(ASKED)))
    @pytest.mark.parametrize("repeats", ["nothing", "text", "json", "unicode", "json in json", "plain", "pieces"])
    async def test_no_prompt_is_in_the_file(self, path: Path, asked: dict[str, Any], repeats: str) -> None:
        """Wherever it stood in the request, and however an error repeats it."""
        faults: dict[str, Fault] = {
            "nothing": Status(400, message="no"),
            "text": Raw(error(PROMPT)),
            "json": Raw(error(json.dumps(asked))),
            "unicode": Raw(error(PROMPT, ascii_only=False)),
            "json in json": Raw(error(json.dumps(json.dumps(asked)))),
            "plain": Status(400, body=f"what is {PROMPT}?"),
            "pieces": Status(400, message=PROMPT) + Split(every=1),
        }
        await recorded_once(path, faults=faults[repeats] if "model" in asked else None, ask=asked)
        assert_nowhere(path, PROMPT)
        exchange = only(path)
        assert exchange.status in {400, 422}
        assert exchange.request.get("model", "m") == "m"
        if repeats not in {"nothing", "plain"}:
            json.loads(body_of(exchange))  # still JSON without them

    @pytest.mark.parametrize("stream", [True, False])
    @pytest.mark.parametrize("prompt", [PROMPT, "short"])
    @pytest.mark.parametrize("split", [None, Split(every=3)])
    async def test_echo_is_taken_out(self, path: Path, stream: bool, prompt: str, split: Fault | None) -> None:
        """The client gets it; the recording has an empty one, whatever its length, and the answer as it was."""
        ask = asking(prompt, stream=stream, echo=True)
        got = await recorded_once(path, TEXT, faults=split, ask=ask)
        assert json.dumps(prompt).encode() in got.body or json.dumps(prompt, ensure_ascii=False).encode() in got.body
        assert_nowhere(path, prompt)
        body = body_of(only(path))
        assert body.count(b'"prompt":[]') == 1
        assert got.body.count(b'"choices"') == body.count(b'"choices"')

    async def test_an_echo_in_tokens_or_their_numbers(self, path: Path) -> None:
        chunk = {"prompt_token_ids": [17, 4], "prompt": [{"logprobs": {"tokens": ["to", "ken"]}}], "choices": []}
        await recorded_once(path, faults=Raw(HEAD + chunked_body(b"data: " + json.dumps(chunk).encode() + b"\n\n")))
        assert body_of(only(path)) == b'data: {"prompt_token_ids": [], "prompt": [], "choices": []}\n\n'

    async def test_an_echo_that_breaks_off(self, path: Path) -> None:
        data = b'data: {"choices": [], "prompt": [{"text": "Why on ear'
        await recorded_once(path, faults=Raw(HEAD + b"%x\r\n%b" % (len(data), data)))
        assert body_of(only(path)) == b'data: {"choices": [], "prompt": []'

    async def test_the_definitions_of_tools_are_not_in_an_error(self, path: Path) -> None:
        """A server that checks requests likes to repeat all of one: names, properties and values too."""
        asked = asking("x", tools=[TOOL])
        await recorded_once(path, faults=Raw(error(json.dumps(asked))), ask=asked)
        assert_nowhere(path, "look_up", "classified ledger", "hidden_field", "classified1")

    async def test_an_answer_that_calls_a_tool_stays_whole(self, path: Path) -> None:
        """Roles, types and the tool's name are in every such request, and in the answer."""
        asked = asking(
            "What is there?",
            messages=[{"role": "user", "content": PROMPT}, {"role": "assistant", "content": "Well, well"}],
            tools=[TOOL],
        )
        got = await recorded_once(path, None, ask=asked)
        assert b"look_up" in got.body
        assert body_of(only(path)) == got.body

    def test_what_an_answer_has_to_repeat_stays(self) -> None:
        """A long name of a tool and a value it allows: no answer could call it without."""
        parameters = {"type": "object", "properties": {"unit": {"type": "string", "enum": ["fahrenheit"]}}}
        tool = {"type": "function", "function": {"name": "look_up_weather", "parameters": parameters}}
        answer = b'{"name": "look_up_weather", "arguments": "{\\"unit\\": \\"fahrenheit\\"}"}'
        recorded = RecordedExchange(200, {}, ((0.0, answer),), asking("x", tools=[tool]))
        assert body_of(without_private(recorded, [], keep_prompts=False)) == answer

    def test_an_escape_is_not_cut_in_two(self) -> None:
        """The secret begins inside an escape of the answer: a line feed, then "ice"."""
        answer = json.dumps({"a": "so\nice weather", "b": 1}).encode()
        kept = without_private(
            RecordedExchange(200, {}, ((0.0, answer),), asking("nice weather")), [], keep_prompts=False
        )
        assert json.loads(body_of(kept)) == {"a": "so[removed]", "b": 1}

    @pytest.mark.parametrize("keep_prompts", [True, False])
    @pytest.mark.parametrize("split", [None, Split(every=1)])
    async def test_the_key_is_never_in_the_file(self, path: Path, keep_prompts: bool, split: Fault | None) -> None:
        """Not even when the server repeats it, in a header or in the text, in one piece or in many."""
        faults = Status(401, message=f"Incorrect key: {KEY}", headers={"x-key": KEY, "x-auth": f"Bearer {KEY}"})
        got = await recorded_once(path, faults=faults + split if split else faults, keep_prompts=keep_prompts)
        assert KEY.encode() in got.body
        assert_nowhere(path, KEY, "Bearer")
        assert only(path).headers["x-key"] == "[removed]"
        assert json.loads(body_of(only(path)))["error"]["message"] == "Incorrect key: [removed]"

    @pytest.mark.parametrize("header", ["x-api-key", "api-key", "cookie"])
    async def test_keys_in_other_headers(self, path: Path, header: str) -> None:
        async with recording(path, "Your hunter2hunter2 is fine.") as (_, recorder):
            await post(recorder.base_url, asking(stream=False), **{header: "hunter2hunter2"})
        assert_nowhere(path, "hunter2hunter2")

    async def test_what_stays_of_a_request(self, path: Path) -> None:
        await recorded_once(path, TEXT, ask=asking(PROMPT, max_tokens=50, temperature=0.5, user_mail="a@b.example"))
        assert only(path).request == {"model": "m", "stream": True, "max_tokens": 50, "temperature": 0.5}

    async def test_prompts_are_kept_on_demand(self, path: Path) -> None:
        ask = asking(PROMPT, echo=True)
        got = await recorded_once(path, TEXT, ask=ask, keep_prompts=True)
        assert only(path).request == ask
        assert body_of(only(path)) == got.body

    async def test_an_answer_is_not_shredded(self, path: Path) -> None:
        """Short words of the prompt, and placeholders for a key, are words."""
        async with recording(path, "none of the sky is none") as (_, recorder):
            got = await post(recorder.base_url, asking("sky none"[:3]), authorization="Bearer none")
        assert body_of(only(path)) == got.body

    @given(
        st.text(min_size=8, max_size=30),
        st.integers(0, 2),
        st.booleans(),
        st.lists(st.integers(0, 400), max_size=6),
        st.text(max_size=5),
        st.text(max_size=5),
    )
    def test_whatever_the_text_and_the_split(
        self, secret: str, depth: int, ascii_only: bool, cuts: list[int], before: str, after: str
    ) -> None:
        """However often it is escaped, in whichever pieces it comes: it is gone, the JSON is JSON, the times are as
        they were."""
        text = before + secret + after
        for _ in range(depth):
            text = json.dumps(text, ensure_ascii=ascii_only)
        whole = json.dumps({"detail": text}, ensure_ascii=ascii_only).encode()
        edges = [0, *sorted(cut for cut in set(cuts) if cut < len(whole)), len(whole)]
        pieces = tuple((float(a), whole[a:b]) for a, b in itertools.pairwise(edges))
        recorded = RecordedExchange(200, {}, pieces, asking(secret))
        kept = without_private(recorded, [], keep_prompts=False)
        text_of_detail = json.loads(body_of(kept))["detail"]
        for _ in range(depth):
            assert secret not in text_of_detail
            try:
                text_of_detail = json.loads(text_of_detail)
            except ValueError:  # the inner JSON may suffer where the prompt's edge was half an escape
                break
        assert secret not in text_of_detail
        assert [at for at, _ in kept.pieces] == [at for at, _ in pieces]


def test_long_streams_are_searched_in_linear_time() -> None:
    """20,000 pieces that are full of the prompt: merged and cut in one walk."""
    prompt = "secretive"
    piece = json.dumps({"t": f"\u00e9 {prompt} \n"}).encode()
    pieces = tuple((float(at), piece) for at in range(20_000))
    started = time.process_time()
    kept = without_private(RecordedExchange(200, {}, pieces, asking(prompt)), [], keep_prompts=False)
    assert time.process_time() - started < 3
    assert body_of(kept).count(b"[removed]") == 20_000

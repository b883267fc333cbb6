"""`LocalServer` with llama.cpp and the built-in model."""

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator
from email.message import Message
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from together_async.local import LocalServer, LocalServerError, default_model_path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def real_server() -> AsyncIterator[LocalServer]:
    async with LocalServer() as server:
        yield server


async def fetch(server: LocalServer, path: str, body: object = None, **headers: str) -> tuple[Any, Message]:
    """Send one request with the standard library's client; returns the decoded body and the headers."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json", **headers}
    request = urllib.request.Request(server.base_url.removesuffix("/v1") + path, data, headers)  # noqa: S310 - of our own server

    def send() -> tuple[Any, Message]:
        with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310 - of our own server
            return json.load(response), response.headers

    return await asyncio.to_thread(send)


@pytest.mark.real_model
@pytest.mark.skipif(find_spec("xllamacpp") is None, reason="the extra `local` is not installed")
@pytest.mark.asyncio(loop_scope="module")
class TestRealModel:
    async def test_it_answers(self, real_server: LocalServer) -> None:
        messages = [{"role": "user", "content": "Hello"}]
        body, _ = await fetch(real_server, "/v1/chat/completions", {"messages": messages, "max_tokens": 5})
        assert body["model"] == real_server.model == "gemma-3-270m"
        assert body["choices"][0]["message"]["content"]
        assert body["usage"]["completion_tokens"] == 5

    async def test_a_conversation_is_a_transcript(self, real_server: LocalServer) -> None:
        """The base model never learned turns: it gets questions and answers in plain words, the last one open."""
        messages = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "One"}]},
            {"role": "assistant", "content": "Two"},
            {"role": "user", "content": "Three"},
        ]
        body, _ = await fetch(real_server, "/apply-template", {"messages": messages})
        assert body["prompt"] == "Be brief.\n\nQuestion: One\nAnswer: Two\nQuestion: Three\nAnswer:"

    async def test_an_answer_ends_where_the_next_question_begins(self, real_server: LocalServer) -> None:
        """`server.stop` keeps the base model from asking itself."""
        body = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 200}
        answer, _ = await fetch(
            real_server, "/v1/chat/completions", {**body, "stop": real_server.stop, "temperature": 0}
        )
        assert "Question:" not in answer["choices"][0]["message"]["content"]
        assert answer["choices"][0]["finish_reason"] == "stop"

    async def test_every_slot_has_the_whole_context(self, real_server: LocalServer) -> None:
        """llama.cpp divides its context among the slots; `context_length` is that of one request."""
        body, _ = await fetch(real_server, "/v1/models")
        assert body["data"][0]["meta"]["n_ctx"] == 4096

    async def test_no_web_page_may_read_the_answers(self, real_server: LocalServer) -> None:
        """llama.cpp allows every origin by default."""
        _, headers = await fetch(real_server, "/v1/models", Origin="https://example.com")
        assert not headers["Access-Control-Allow-Origin"]

    async def test_a_broken_model_file_says_so(self, real_server: LocalServer, tmp_path: Path) -> None:
        path = tmp_path / "short.gguf"
        with default_model_path().open("rb") as whole:
            path.write_bytes(whole.read(20_000_000))
        with pytest.raises(LocalServerError, match="model is corrupted or incomplete"):
            await LocalServer(path).__aenter__()

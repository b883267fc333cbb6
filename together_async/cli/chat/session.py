"""One event loop and one client: what answers the questions of `together-async chat`."""

import asyncio
import contextlib
import json
from collections.abc import Generator
from contextlib import AsyncExitStack
from importlib import import_module
from types import TracebackType
from typing import Any, Self

import attrs
import click

from together_async import AsyncTogether, ChatCompletion, StreamStats, TogetherError
from together_async.cli.chat.options import ChatOptions
from together_async.cli.target import LocalModel, Remote
from together_async.cli.terminal import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, Output, note, report

Message = dict[str, str]


@attrs.frozen
class ShownAnswer:
    """The part of an answer that was shown. It outlives the coroutine that shows it, which may be interrupted.

    Attributes:
        exit_code: The command's exit code if this is the last answer.
        text: The answer, or the part before it broke or was stopped.
    """

    exit_code: int
    text: str


class Session:
    """The event loop, the client and, for a local model, its server: open for one answer or many.

    Args:
        target: The server or local model that answers.
        options: How to ask, and how to show the answer.
    """

    def __init__(self, target: LocalModel | Remote, options: ChatOptions) -> None:
        self._target = target
        self._options = options
        self._output = Output(machine=options.as_json)
        self._runner = asyncio.Runner()
        self._resources = AsyncExitStack()
        self._remote = Remote("", "", "")

    @property
    def model(self) -> str:
        """The model that answers."""
        return self._remote.model

    def __enter__(self) -> Self:
        # The client loads aiohttp at its first call, which takes 0.1 s: do it before the loop runs and the answer's
        # time counts.
        import_module("together_async.http.transport")
        try:
            self._runner.run(self._open())
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        try:
            self._runner.run(self._resources.aclose())
        finally:
            self._runner.close()

    async def _open(self) -> None:
        self._remote = await self._start(self._target) if isinstance(self._target, LocalModel) else self._target
        with usage_errors():
            client = AsyncTogether(self._remote.api_key, base_url=self._remote.base_url)
        self._client = await self._resources.enter_async_context(client)

    async def _start(self, target: LocalModel) -> Remote:
        from together_async.cli.local_model import start_display  # noqa: PLC0415 - only for --local
        from together_async.local import LocalServer  # noqa: PLC0415 - as above

        with start_display(quiet=self._options.quiet) as display:
            server = LocalServer(target.path, on_progress=display.on_progress)
            await self._resources.enter_async_context(server)
        return Remote(server.base_url, "none", server.model, server.stop or None)

    def ask(self, messages: list[Message]) -> ShownAnswer:
        """Stream one answer to standard output; print its figures, or an error, on standard error.

        Args:
            messages: The conversation so far, ending with the question.
        """
        shown: list[str] = []
        try:
            self._runner.run(self._stream(messages, shown))
        except KeyboardInterrupt:
            self._output.end_line()
            note("Interrupted: " + ("the answer above is partial." if shown else "nothing had come yet."))
            exit_code = EXIT_INTERRUPTED
        except TogetherError as error:
            self._output.end_line()
            report(error, base_url=self._remote.base_url, has_answer=bool(shown))
            exit_code = EXIT_FAILED
        else:
            exit_code = EXIT_DONE
        return ShownAnswer(exit_code, "".join(shown))

    async def _stream(self, messages: list[Message], shown: list[str]) -> None:
        with usage_errors():
            stream = self._client.stream(messages, **self._request_fields())
        async with stream:
            async for chunk in stream:
                delta = chunk.choices[0].delta if chunk.choices else None
                if text := (delta.content if delta else None):
                    shown.append(text)
                if self._options.as_json:
                    self._output.write(json.dumps(chunk.to_dict(), ensure_ascii=False) + "\n")
                elif text:
                    self._output.write(text)
            completion = await stream.completion()
        self._output.end_line()
        if not self._options.quiet:
            note(closing_line(completion, stream.stats))

    def _request_fields(self) -> dict[str, Any]:
        fields = {
            "model": self._remote.model,
            "max_tokens": self._options.max_tokens,
            "temperature": self._options.temperature,
            "stop": self._remote.stop,
            "stream_options": {"include_usage": True},  # Together always reports it; llama.cpp and vLLM must be asked
        }
        return {name: value for name, value in fields.items() if value is not None}


@contextlib.contextmanager
def usage_errors() -> Generator[None]:
    """Turn the client's ValueError, raised before anything is sent, into a usage error."""
    try:
        yield
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def closing_line(completion: ChatCompletion, stats: StreamStats) -> str:
    """Sum up an answer: its speed, its tokens, and whether it was cut."""
    parts: list[str] = []
    if stats.first_token_s is not None:
        parts.append(f"first token {stats.first_token_s:.2f} s")
    if stats.tokens_per_s is not None:
        parts.append(f"{stats.tokens_per_s:.1f} tokens/s")
    if (usage := completion.usage) is not None:
        parts.append(f"{usage.prompt_tokens} prompt + {usage.completion_tokens} answer = {usage.total_tokens} tokens")
    if any(choice.finish_reason == "length" for choice in completion.choices):
        parts.append("cut off at the token limit (finish_reason length): raise --max-tokens for more")
    return "[" + ", ".join(parts) + "]" if parts else ""

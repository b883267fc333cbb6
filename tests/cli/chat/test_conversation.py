"""A conversation with `together-async chat` on a terminal."""

import contextlib
from collections.abc import AsyncIterator

from support.chat_server import ChatServer, Exchange, Script, hello
from support.terminal import Terminal, environment


@contextlib.asynccontextmanager
async def conversation(script: Script, *arguments: str) -> AsyncIterator[tuple[Terminal, ChatServer]]:
    async with (
        ChatServer(script) as server,
        Terminal("chat", "--model", "m", *arguments, env=environment(TOGETHER_BASE_URL=server.base_url)) as terminal,
    ):
        await terminal.expect("> ")
        yield terminal, server


class TestConversation:
    async def test_it_remembers_until_cleared(self) -> None:
        async with conversation(hello, "--system", "Be.") as (terminal, server):
            for line, reply in (
                ("one", r"tokens\]"),
                ("two", r"tokens\]"),
                ("/clear", "Cleared."),
                ("three", r"tokens\]"),
            ):
                terminal.press(line + "\r")
                await terminal.expect(reply)
                await terminal.expect("> ")
            terminal.press("\x04")
            assert await terminal.ended() == 0
        system = {"role": "system", "content": "Be."}
        first, second, third = ({"role": "user", "content": text} for text in ("one", "two", "three"))
        answer = {"role": "assistant", "content": "Hello"}
        assert [request.body["messages"] for request in server.requests] == [
            [system, first],
            [system, first, answer, second],
            [system, third],
        ]

    async def test_ctrl_c_stops_the_answer_and_not_the_session(self) -> None:
        """What had come stays in the conversation, since the person saw it."""
        calls = 0

        async def script(exchange: Exchange) -> None:
            nonlocal calls
            calls += 1
            if calls > 1:
                return await hello(exchange)
            await exchange.begin()
            await exchange.text("Half of")
            return await exchange.left()

        async with conversation(script) as (terminal, server):
            terminal.press("one\r")
            await terminal.expect("Half of")
            terminal.press("\x03")
            await terminal.expect("Interrupted: the answer above is partial")
            await terminal.expect("> ")
            terminal.press("two\r")
            await terminal.expect("Hello")
            await terminal.expect("> ")
            terminal.press("/exit\r")
            assert await terminal.ended() == 0
        assert [message["content"] for message in server.requests[1].body["messages"]] == ["one", "Half of", "two"]

    async def test_a_failed_question_is_forgotten(self) -> None:
        """It can be asked again, without two user messages in a row."""
        calls = 0

        async def script(exchange: Exchange) -> None:
            nonlocal calls
            calls += 1
            if calls == 1:
                return await exchange.status("400 Bad Request", {"error": {"message": "no such thing"}})
            return await hello(exchange)

        async with conversation(script) as (terminal, server):
            terminal.press("one\r")
            await terminal.expect("no such thing")
            await terminal.expect("> ")
            terminal.press("two\r")
            await terminal.expect(r"tokens\]")
            await terminal.expect("> ")
            terminal.press("\x04")
            assert await terminal.ended() == 0
        assert [message["content"] for message in server.requests[1].body["messages"]] == ["two"]

    async def test_keys_at_the_prompt(self) -> None:
        """Ctrl-C there says how to leave; help and unknown commands are not sent."""
        async with conversation(hello) as (terminal, server):
            terminal.press("half a line")
            await terminal.expect("half a line")
            await terminal.interrupt("/exit or Ctrl-D ends")
            await terminal.expect("> ")
            terminal.press("/help\r")
            await terminal.expect("forget the conversation")
            await terminal.expect("> ")
            terminal.press("/nonsense\r")
            await terminal.expect("No command /nonsense")
            await terminal.expect("> ")
            terminal.press("\r")
            await terminal.expect("> ")
            terminal.press("\x04")
            assert await terminal.ended() == 0
        assert server.requests == []

    async def test_the_model_cannot_steer_the_terminal(self) -> None:
        """Escape sequences in an answer lose what makes them one."""

        async def script(exchange: Exchange) -> None:
            await exchange.begin()
            await exchange.text("a\x1b]0;owned\x07b\r\n\tc\x9b2Jd")
            await exchange.end()

        async with conversation(script) as (terminal, _):
            terminal.press("one\r")
            await terminal.expect(r"a\]0;ownedb")
            await terminal.expect("c2Jd")

"""One question, or a conversation on the terminal."""

import contextlib
import re
import sys
from importlib import import_module

import click

from together_async import TogetherError
from together_async.cli.chat.options import ChatOptions
from together_async.cli.chat.session import Message, Session
from together_async.cli.target import LocalModel, Remote
from together_async.cli.terminal import EXIT_DONE, EXIT_FAILED, as_unicode, note, report

HELP = """\
/clear   forget the conversation so far
/help    this text
/exit    end (Ctrl-D does too)
Ctrl-C stops an answer. What you type is sent line by line."""


def answer_once(target: LocalModel | Remote, options: ChatOptions, prompt: str) -> int:
    """Answer one prompt.

    Args:
        target: The server or local model that answers.
        options: How to ask, and how to show the answers.
        prompt: The user's message.

    Returns:
        The exit code.
    """
    try:
        with Session(target, options) as session:
            return session.ask([*system_message(options), {"role": "user", "content": prompt}]).exit_code
    except TogetherError as error:
        report(error)
        return EXIT_FAILED


def converse(target: LocalModel | Remote, options: ChatOptions) -> int:
    """Hold a conversation on the terminal until it is ended with `/exit` or Ctrl-D.

    Args:
        target: The server or local model that answers.
        options: How to ask, and how to show the answers.

    Returns:
        The exit code.
    """
    with contextlib.suppress(ImportError):  # missing on Windows; it gives `input` line editing and a history
        import_module("readline")
    try:
        with Session(target, options) as session:
            if not options.quiet:
                note(f"Talking to {session.model}. /help lists the commands, Ctrl-D ends.")
            read_and_answer(session, system_message(options))
    except TogetherError as error:
        report(error)
        return EXIT_FAILED
    return EXIT_DONE


def read_and_answer(session: Session, opening: list[Message]) -> None:
    """Read lines and answer them, until the person ends the conversation."""
    messages = [*opening]
    while True:
        try:
            line = read_line()
            if line is None or line == "/exit":
                return
            if line == "/clear":
                messages = [*opening]
                note("Cleared.")
            elif line == "/help":
                note(HELP)
            elif re.fullmatch(r"/[a-z]+", line):
                note(f"No command {line}; /help lists them.")
            elif line:
                messages += exchange(session, messages, line)
        except KeyboardInterrupt:  # at the prompt; `ask` handles its own
            click.echo(err=True)
            note("/exit or Ctrl-D ends.")


def exchange(session: Session, messages: list[Message], line: str) -> list[Message]:
    """Ask one question; return the messages to remember.

    Of a stopped answer the part that was shown is kept; a question without any answer is forgotten.
    """
    question: Message = {"role": "user", "content": line}
    answer = session.ask([*messages, question])
    return [question, {"role": "assistant", "content": answer.text}] if answer.text else []


def read_line() -> str | None:
    """Read a line from the person. The event loop does not run meanwhile: nothing open needs it.

    Returns:
        The line; None at the end of the input.
    """
    prompt = "> "
    if not sys.stdout.isatty():  # input() would mix its prompt into the answers
        click.echo(prompt, nl=False, err=True)
        prompt = ""
    try:
        return as_unicode(input(prompt)).strip()
    except EOFError:
        click.echo(err=True)
        return None


def system_message(options: ChatOptions) -> list[Message]:
    """Return the messages with which every conversation begins."""
    return [{"role": "system", "content": options.system}] if options.system else []

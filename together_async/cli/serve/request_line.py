"""The line that `serve` prints for each request when it has ended."""

import json
import time
from datetime import datetime

import attrs
import click

from together_async.testing import Entry
from together_async.testing.exchange import RecordedExchange

COLOURS = {"complete": "green", "client left": "yellow", "broken off": "red", "refused": "red"}


LONGEST_NAME = 60


_AT_ONCE_S = 0.02


@attrs.frozen(kw_only=True)
class RequestLine:
    """What is printed of a request when it has ended; it holds neither key nor prompt.

    Attributes:
        path: The request's path, without the query.
        model: The model asked for; empty if the request named none.
        stream: Whether a stream was asked for.
        status: The response's HTTP status; 0 if none was sent.
        outcome: How the response ended.
        tokens_written: How many tokens were sent.
        tokens: How many tokens the whole answer has; None if unknown.
        first_token_s: Seconds to the first token; None if no token was sent.
        elapsed_s: Seconds to the end of the response.
        tokens_per_s: Speed after the first token; None for an answer that was sent all at once.
        faults: The faults that were injected.
    """

    path: str
    model: str
    stream: bool
    status: int
    outcome: str
    tokens_written: int
    tokens: int | None
    first_token_s: float | None
    elapsed_s: float
    tokens_per_s: float | None
    faults: tuple[str, ...] = ()

    @classmethod
    def from_entry(cls, entry: Entry) -> "RequestLine":
        """Make the line of a request to the emulator."""
        ended = time.monotonic() if entry.ended_at is None else entry.ended_at
        first = entry.received_at if entry.first_token_at is None else max(entry.received_at, entry.first_token_at)
        return cls(
            path=entry.path.partition("?")[0],
            model=entry.model,
            stream=entry.streamed,
            status=entry.status,
            outcome=entry.outcome,
            tokens_written=entry.tokens_written,
            tokens=entry.tokens,
            first_token_s=None if entry.first_token_at is None else first - entry.received_at,
            elapsed_s=ended - entry.received_at,
            tokens_per_s=_speed(entry.tokens_written, ended - first),
            faults=tuple(map(repr, entry.faults)),
        )

    @classmethod
    def from_exchange(cls, recorded: RecordedExchange) -> "RequestLine":
        """Make the line of a request to the recorder."""
        first = recorded.pieces[0][0] if recorded.pieces else None
        ended = recorded.ended_s or recorded.began_s
        return cls(
            path="/v1/chat/completions",
            model=recorded.model,
            stream=bool(recorded.request.get("stream")),
            status=recorded.status,
            outcome="broken off" if not recorded.complete else "refused" if recorded.status >= 300 else "complete",
            tokens_written=sum(recorded.tokens),
            tokens=None,
            first_token_s=first,
            elapsed_s=ended,
            tokens_per_s=_speed(sum(recorded.tokens[1:]), ended - (first or 0.0)),
        )

    def as_json(self) -> str:
        """Return the line as JSON, for a program."""
        speed = self.tokens_per_s
        times = {
            "first_token_s": None if self.first_token_s is None else round(self.first_token_s, 6),
            "elapsed_s": round(self.elapsed_s, 6),
            "tokens_per_s": None if speed is None else round(speed, 3),
        }
        return json.dumps({"ended_at": _now().isoformat(), **attrs.asdict(self), **times})

    def as_text(self) -> str:
        """Return the line as text, coloured for a terminal."""
        failed = self.status >= 400
        colour = "red" if failed else COLOURS[self.outcome]
        parts = [
            click.style(f"{_now():%H:%M:%S}", dim=True),
            click.style(f"{self.status or '---'} {self.outcome:11}", fg=colour),
            f"{self._count():>12}",
            "" if self.first_token_s is None else f"first token {self.first_token_s:.2f} s",
            "" if self.tokens_per_s is None else f"{self.tokens_per_s:.1f} tokens/s",
            click.style(_printable(self.model or self.path), bold=True),
            click.style(" ".join(map(_printable, self.faults)), fg="magenta"),
        ]
        return "  ".join(part for part in parts if click.unstyle(part)).rstrip()

    def _count(self) -> str:
        if not self.tokens and not self.tokens_written:
            return ""
        total = "" if self.tokens is None else f"/{self.tokens}"
        return f"{self.tokens_written}{total} tokens"


def _speed(tokens: int, seconds: float) -> float | None:
    return tokens / seconds if tokens and seconds > _AT_ONCE_S else None


def _now() -> datetime:
    return datetime.now().astimezone()


def _printable(text: str) -> str:
    """The client chooses the model's name, so it could hold escape sequences for the terminal."""
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= LONGEST_NAME else text[: LONGEST_NAME - 1] + "…"

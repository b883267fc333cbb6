"""Faults that the cases need beyond those of the emulator: edits of single events and of whole bodies."""

import json
from collections.abc import Callable
from typing import Any

import attrs

from together_async.testing import Fault
from together_async.testing.response import ResponsePlan


@attrs.frozen(repr=False)
class At(Fault):
    """A fault at a byte that is only known once the body exists: `make` gets the offset of the place."""

    place: str
    make: Callable[[int], Fault]

    def apply(self, response: ResponsePlan) -> bool:
        return self.make(_offset(response, self.place)).apply(response)


def _offset(response: ResponsePlan, place: str) -> int:
    sizes = [len(piece.data) for piece in response.body]
    if place == "after DONE":
        return sum(sizes)
    if place == "before DONE":
        return sum(sizes[:-1])
    if place == "inside DONE":
        return sum(sizes[:-1]) + len(b"data: [DO")
    if place == "inside the finish event":
        return sum(sizes[:-2]) + sizes[-2] // 2
    number = int(place.rpartition(" ")[2])  # "inside event 5"
    return sum(sizes[:number]) + sizes[number] // 2


@attrs.frozen(repr=False)
class Change(Fault):
    """Replaces one event: `how` gets the bytes of the old one. Events count from 0; -1 is `[DONE]`."""

    event: int
    how: Callable[[bytes], bytes]

    def apply(self, response: ResponsePlan) -> bool:
        piece = response.body[self.event]
        piece.data = self.how(piece.data)
        return True


@attrs.frozen(repr=False)
class ChangeAll(Fault):
    """Replaces every event: `how` gets the bytes of the old one."""

    how: Callable[[bytes], bytes]

    def apply(self, response: ResponsePlan) -> bool:
        for piece in response.body:
            piece.data = self.how(piece.data)
        return True


@attrs.frozen(repr=False)
class Whole(Fault):
    """Replaces the body, with status 200 and this content type."""

    body: bytes
    kind: str = "application/json"

    def apply(self, response: ResponsePlan) -> bool:
        response.replace_body(self.body, self.kind)
        return True


def payload(event: bytes) -> bytes:
    return event.removeprefix(b"data: ").removesuffix(b"\n\n")


def edited(change: Callable[[dict[str, Any]], None]) -> Callable[[bytes], bytes]:
    """Returns an edit that changes an event's JSON; `[DONE]` stays."""

    def how(event: bytes) -> bytes:
        if b"[DONE]" in event:
            return event
        body = json.loads(payload(event))
        change(body)
        return b"data: " + json.dumps(body).encode() + b"\n\n"

    return how


def setting(path: str, value: Any) -> Callable[[bytes], bytes]:
    """Returns an edit that sets a value in an event's JSON; `path` is as in `choices.0.delta`."""

    def change(body: Any) -> None:
        *way, last = (int(step) if step.isdigit() else step for step in path.split("."))
        for step in way:
            body = body[step]
        body[last] = value

    return edited(change)


def dropping(*names: str) -> Callable[[bytes], bytes]:
    """Returns an edit that removes keys from an event's JSON."""

    def change(body: dict[str, Any]) -> None:
        for name in names:
            body.pop(name, None)

    return edited(change)


def instead(data: bytes) -> Callable[[bytes], bytes]:
    """Returns an edit that makes an event of `data`."""
    return lambda _event: b"data: " + data + b"\n\n"

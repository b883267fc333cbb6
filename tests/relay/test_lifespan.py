"""`lifespan`: all closables of an app are closed at its end, and anything else is refused."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from together_async.relay import Hub, lifespan


@attrs.define
class Closes:
    """Something that is closed, and may fail at it."""

    name: str
    closed: list[str]
    error: Exception | None = None

    async def aclose(self) -> None:
        self.closed.append(self.name)
        if self.error is not None:
            raise self.error


async def test_the_last_is_closed_first() -> None:
    """A hub that was made of a client's streams before the client; and nothing before the app's end."""
    closed: list[str] = []
    async with lifespan(Closes("client", closed), Closes("hub", closed))(object()):
        assert not closed
    assert closed == ["hub", "client"]


async def test_the_others_are_closed_where_one_fails() -> None:
    """Its error is the app's, once all have been closed."""
    closed: list[str] = []
    with pytest.raises(OSError, match="stuck"):
        async with lifespan(Closes("client", closed), Closes("hub", closed, OSError("stuck")))(object()):
            pass
    assert closed == ["hub", "client"]


@pytest.mark.parametrize("wrong", [None, 5, "client", Hub])
def test_what_cannot_be_closed_is_refused_when_the_app_is_made(wrong: Any) -> None:
    """And not at its end, when nobody looks."""
    with pytest.raises(TypeError, match=r"lifespan: got a .*, expected clients, hubs"):
        lifespan(Hub(), wrong)

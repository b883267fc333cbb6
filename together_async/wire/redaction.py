"""`Secret`: a text that is used as any other and shown nowhere."""

from __future__ import annotations


class Secret(str):
    """A text whose repr does not show it, so that no traceback with locals, debugger or log of headers does."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'[secret]'"

"""`Connections`: where a client connects to and with what, and its transport in the running event loop.

The transport is imported on first use, because aiohttp takes longer to import than everything else together.
"""

from __future__ import annotations

import asyncio
import urllib.parse
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from together_async.errors import APIConnectionError, AuthenticationError, unsent
from together_async.wire.redaction import Secret

if TYPE_CHECKING:
    import ssl as ssl_module

    import aiohttp

    from together_async.http.transport import Transport

DEFAULT_BASE_URL: Final = "https://api.together.xyz/v1"


class Connections:
    """The connections of one client.

    Args:
        api_key: The key; empty for servers that need none.
        base_url: The API's root, checked.
        headers: Sent with every request, in addition to or in place of the usual ones; names in lower case.
        session: The caller's own session; None opens one on first use.
        ssl: TLS settings for a session that is opened here.
        proxy: A proxy's URL for a session that is opened here; None follows the environment, empty uses none.
        owner: Which client this is, and where it was made, for the warning about one that was not closed.

    Attributes:
        api_key: As given.
        base_url: As given.
        closed: Whether the client has been closed.
        current: The transport that is in use; None before the first request, and after the end.
    """

    def __init__(
        self,
        api_key: Secret,
        base_url: str,
        headers: Mapping[str, str],
        *,
        session: aiohttp.ClientSession | None,
        ssl: ssl_module.SSLContext | None,
        proxy: str | None,
        owner: str,
    ) -> None:
        self.api_key = api_key
        self.base_url = base_url
        self.closed = False
        self.current: Transport | None = None
        self._headers = headers
        self._session = session
        self._ssl = ssl
        self._proxy = proxy
        self._owner = owner

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.describe()}>"

    def __reduce__(self) -> tuple[Any, ...]:
        # Every call and every reader of a stream holds the connections, and with them the key.
        raise TypeError("a client holds a key and connections and can't be pickled; make one where it is used")

    def describe(self) -> str:
        """Returns the base URL, without its query, which may hold a key, and the state of the connections."""
        state = "closed" if self.closed else repr(self.current) if self.current is not None else "not connected"
        return f"{self.base_url.partition('?')[0]} {state}"

    def transport(self, headers: Mapping[str, str] | None = None) -> Transport:
        """Returns the transport of the running event loop, made on first use; that of an ended loop is given up.

        Args:
            headers: Those of the call, which may bring a key.

        Raises:
            AuthenticationError: Together's own API needs a key, and there is none.
            APIConnectionError: The client is closed, or in use in another event loop.
        """
        self._check_has_key(headers)
        if self.closed:
            raise unsent(APIConnectionError("the client is closed; make a new one, or close it later"))
        transport, loop = self.current, asyncio.get_running_loop()
        if transport is not None and transport.loop is not loop:
            if not transport.loop.is_closed():
                raise unsent(
                    APIConnectionError(
                        "the client is in use in another event loop that still runs; make one client per loop"
                    )
                )
            transport.discard()
            if self._session is not None:
                raise APIConnectionError(
                    "the session that was passed belongs to an event loop that has ended; make session and client anew"
                )
            transport = None
        if transport is None:
            from together_async.http.headers import default_headers  # noqa: PLC0415 - imports multidict
            from together_async.http.transport import Transport  # noqa: PLC0415 - imports aiohttp

            transport = self.current = Transport(
                self.base_url,
                default_headers(api_key=self.api_key, extra=self._headers),
                session=self._session,
                ssl=self._ssl,
                proxy=self._proxy,
                secret=self.api_key,
            )
        return transport

    def _check_has_key(self, headers: Mapping[str, str] | None) -> None:
        """Together's own API needs a key. Other servers may not, and the caller's headers or session may bring one."""
        if self.api_key or self.base_url != DEFAULT_BASE_URL or "authorization" in {*self._headers, *(headers or ())}:
            return
        if self._session is None or "Authorization" not in self._session.headers:
            raise unsent(
                AuthenticationError(
                    "no API key: set TOGETHER_API_KEY or pass api_key= (or a base_url of a server that needs none)",
                    status_code=401,
                )
            )

    async def aclose(self) -> None:
        """Ends everything under way with a typed error, and closes the connections. Twice is fine.

        Raises:
            APIConnectionError: The client is in use in another event loop, which still runs.
        """
        transport = self.current
        here = transport is None or transport.loop is asyncio.get_running_loop()
        if transport is not None and not here and not transport.loop.is_closed():
            raise unsent(
                APIConnectionError("the client is in use in another event loop that still runs; close it there")
            )
        self.closed, self.current = True, None
        if transport is not None:
            if here:
                await transport.aclose()
            else:
                transport.discard()

    def discard(self) -> None:
        """Closes the client without waiting: nobody did while its event loop could run, or it can't run any more."""
        transport, self.current, self.closed = self.current, None, True
        if transport is not None:
            transport.discard()

    def __del__(self) -> None:
        # Here and not in the client: calls hold the connections, so a client may be dropped while a stream is read.
        transport = getattr(self, "current", None)
        if transport is None:
            return
        unclosed = transport.holds_resources
        transport.discard()  # first: the warning may be an error
        if unclosed:
            warnings.warn(
                f"unclosed {self._owner}; use `async with` or `await client.aclose()`",
                ResourceWarning,
                source=self,
                stacklevel=1,
            )


def checked_key(key: object) -> Secret:
    """Returns the key without the blanks around it.

    Raises:
        ValueError: It is not a text of printable ASCII. The message never shows it.
    """
    if not isinstance(key, str):
        raise ValueError(f"api_key: got a {type(key).__name__}, expected a str")
    key = Secret(key.strip(" \t\r\n"))
    for position, character in enumerate(key):
        if not 0x21 <= ord(character) <= 0x7E:
            raise ValueError(
                f"api_key: character {position} of {len(key)} is U+{ord(character):04X}, expected printable ASCII "
                "without blanks; was something else pasted along?"
            )
    return key


def checked_url(url: object) -> str:
    """Returns a base URL without a slash at its end.

    Raises:
        ValueError: It is not an http(s) URL, or carries credentials.
    """
    if not isinstance(url, str):
        raise ValueError(f"base_url: got a {type(url).__name__}, expected a str")
    parts = urllib.parse.urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            f"base_url: got scheme {parts.scheme!r}, host {parts.hostname!r}; expected http(s)://host[:port]/v1"
        )
    if parts.username is not None or parts.password is not None:
        raise ValueError("base_url: carries credentials, which end up in logs; pass api_key= or headers=")
    try:
        _ = parts.port
    except ValueError as error:
        raise ValueError(f"base_url: {error}, expected 0 to 65535") from None
    return urllib.parse.urlunsplit(parts._replace(path=parts.path.rstrip("/"), fragment=""))


def checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Returns headers with their names in lower case, and with values that no repr shows.

    Raises:
        ValueError: A name or a value is not a text, or has control characters.
    """
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise ValueError(f"headers[{name!r}]: got a {type(value).__name__}, expected a str")
        if any((ord(c) < 0x20 and c != "\t") or c == "\x7f" for c in name + value):
            raise ValueError(f"headers[{name!r}]: has control characters")
    return {name.lower(): Secret(value) for name, value in headers.items()}

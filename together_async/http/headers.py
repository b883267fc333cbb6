"""The headers of requests."""

from __future__ import annotations

from collections.abc import Mapping

from multidict import CIMultiDict

from together_async._version import __version__
from together_async.wire.redaction import Secret


def default_headers(*, api_key: str, extra: Mapping[str, str]) -> dict[str, str]:
    """Returns the headers of every request."""
    headers = {
        "Authorization": Secret(f"Bearer {api_key}"),
        "Content-Type": "application/json",
        # Compression would hold tokens back in the server's and the proxies' compressors.
        "Accept": "text/event-stream, application/json",
        "Accept-Encoding": "identity",
        "User-Agent": f"together-async/{__version__}",
    }
    if not api_key:
        del headers["Authorization"]
    return dict(merged(CIMultiDict(headers), extra))


def merged(base: Mapping[str, str], extra: Mapping[str, str]) -> CIMultiDict[str]:
    """Returns headers, with those of `extra` added or put in their place; names are the same in any case."""
    headers = CIMultiDict(base)
    for name, value in extra.items():
        headers[name] = value
    return headers

"""Which proxy a client uses."""

from __future__ import annotations

import urllib.parse
import urllib.request
from typing import Any

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from together_async.wire.redaction import Secret


def proxy_options(proxy: str | None, base: URL) -> dict[str, Any]:
    """Returns aiohttp's arguments for the proxy to use for `base`: the given one, or the environment's."""
    if proxy is None:
        if base.host is None or urllib.request.proxy_bypass(f"{base.host}:{base.port}"):
            return {}
        proxies = urllib.request.getproxies()
        proxy = proxies.get(base.scheme) or proxies.get("all")
    if not proxy:
        return {}
    url = URL(proxy if "://" in proxy else f"http://{proxy}")
    options: dict[str, Any] = {"proxy": url.with_user(None)}
    if url.user is not None:
        credentials = Secret(aiohttp.encode_basic_auth(url.user, url.password or ""))
        options["proxy_headers"] = CIMultiDict({"Proxy-Authorization": credentials})
    return options

"""Prices, from whatever a service's list of models looks like."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.servers import ScriptedServer, answers, response
from together_async import APIStatusError, AsyncTogether, TogetherError
from together_async.pricing import Price, read_prices
from together_async.testing import EmulatorServer, Model

ENTRY = {"id": "m", "pricing": {"hourly": 0, "input": 0.88, "output": 1.5, "base": 0, "finetune": 0}}


def test_a_price_is_for_a_million_tokens() -> None:
    assert Price(prompt=2, completion=10).of(500_000, 100_000) == pytest.approx(2.0)
    assert Price(0, 0).of(10**9, 10**9) == 0


@pytest.mark.parametrize(
    "listing", [[ENTRY], {"data": [ENTRY]}, {"object": "list", "data": [ENTRY, {"id": "n"}, None, 5]}]
)
def test_together_lists_and_openai_wraps(listing: Any) -> None:
    assert read_prices(listing) == {"m": Price(0.88, 1.5)}


@pytest.mark.parametrize(
    "pricing",
    [
        None,
        5,
        {},
        {"input": 1},
        {"input": None, "output": 1},
        {"input": -1, "output": 1},
        {"input": "free", "output": 1},
        {"input": True, "output": 1},
        {"input": "nan", "output": 1},
        {"input": "inf", "output": 1},
        {"input": [1], "output": 1},
        {"input": 10**400, "output": 1},
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_price_is_left_out(pricing: Any) -> None:
    """A price that is guessed would keep no budget."""
    assert read_prices([{"id": "m", "pricing": pricing}, ENTRY | {"id": "n"}]) == {"n": Price(0.88, 1.5)}


def test_a_price_may_be_a_text() -> None:
    assert read_prices([{"id": "m", "pricing": {"input": "0.5", "output": 0}}]) == {"m": Price(0.5, 0)}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner) | st.dictionaries(st.sampled_from(["data", "id", "pricing", "input", "output"]), inner)
        ),
        max_leaves=20,
    )
)
def test_no_listing_breaks_it(listing: Any) -> None:
    for name, price in read_prices(listing).items():
        assert isinstance(name, str)
        assert 0 <= price.prompt < math.inf
        assert 0 <= price.completion < math.inf


# -------------------------------------------------------------------------------------------------------- client.prices
async def test_a_client_asks_for_prices(no_leaks: None) -> None:
    models = [Model("a/b", input_price=0.1, output_price=0.2), Model("c")]
    async with EmulatorServer(models=models) as server, AsyncTogether("any-key", base_url=server.base_url) as client:
        assert await client.prices() == {"a/b": Price(0.1, 0.2), "c": Price(0.88, 0.88)}
        assert server.journal[-1].headers["authorization"] == "Bearer any-key"
        assert server.journal[-1].path == "/v1/models"


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (response({"error": {"message": "no"}}, status=404), APIStatusError),
        (response({"error": {"message": "no"}}, status=401), APIStatusError),
        (response(b"<html>hello</html>", media_type="text/html"), TogetherError),
        (response(b"[{"), TogetherError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n[", TogetherError),
    ],
)
async def test_a_service_without_prices_is_one_typed_error(no_leaks: None, data: bytes, kind: type[Exception]) -> None:
    async def script(call: Any) -> None:
        await answers(data)(call)
        call.close()

    async with ScriptedServer(script) as server, AsyncTogether("any-secret-key", base_url=server.base_url) as client:
        with pytest.raises(kind) as caught:
            await client.prices()
        assert "any-secret-key" not in str(caught.value)
        assert server.calls[0].target == "/v1/models"

"""`errors`: a compressed body that inflates beyond reason."""

import gzip

import pytest

from support.clients import read_all, served
from support.servers import MODEL, answers, response
from together_async import APIResponseValidationError, StreamProtocolError
from together_async.http.errors import InflationError

pytestmark = pytest.mark.usefixtures("no_leaks")

BOMB = response(gzip.compress(b" " * 2**24), media_type="text/event-stream", extra=b"content-encoding: gzip\r\n")
"""16 MiB of blanks in 16 KiB."""


async def test_users_do_not_see_an_inflation_error() -> None:
    """A stream raises StreamProtocolError, a whole response APIResponseValidationError, each caused by it."""
    async with served(answers(BOMB)) as (_, client):
        with pytest.raises(StreamProtocolError, match="likely an attack") as of_stream:
            await read_all(client)
        with pytest.raises(APIResponseValidationError, match="likely an attack") as of_whole:
            await client.create("Hi", model=MODEL)
    for caught in (of_stream, of_whole):
        assert isinstance(caught.value.__cause__, InflationError)
        assert caught.value.attempts == 1

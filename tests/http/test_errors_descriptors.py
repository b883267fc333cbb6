"""`errors`: no file descriptor is left for a connection."""

import errno
import os
import socket
import traceback
from typing import Any

import aiohttp
import pytest

from support.descriptors import no_descriptor_left
from support.servers import KEY
from together_async import AsyncTogether, Timeouts
from together_async.http.errors import DescriptorsExhaustedError, is_exhaustion
from together_async.retry import is_retryable
from together_async.wire.http_request import HTTPRequest

pytestmark = pytest.mark.usefixtures("no_leaks")


async def opened(client: AsyncTogether) -> Any:
    """Sends a request by the transport alone."""
    transport = client._connections.transport()
    request = HTTPRequest("chat/completions", b"{}", stream=False)
    return await transport.open(request, headers=None, timeouts=Timeouts(), started=transport.loop.time())


@pytest.mark.parametrize("proxy", [None, "http://127.0.0.1:9"])
@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost", "no-such-host.invalid"])
async def test_no_socket_and_no_look_up(host: str, proxy: str | None) -> None:
    """The error is of this package, says what to raise, and no request was sent, by a proxy or without one."""
    async with AsyncTogether(KEY, base_url=f"http://{host}:9/v1", proxy=proxy) as client:
        with no_descriptor_left(), pytest.raises(DescriptorsExhaustedError) as caught:
            await opened(client)
    error = caught.value
    assert error.attempts == 0
    assert "ulimit -n" in str(error)
    assert "Limits(concurrency=...)" in str(error)
    assert KEY not in "".join(traceback.format_exception(error))
    assert is_retryable(error)


@pytest.mark.parametrize(
    ("error", "exhausted"),
    [
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), True),
        (OSError(errno.ENFILE, os.strerror(errno.ENFILE)), True),
        (OSError(errno.ECONNREFUSED, "refused"), False),
        (OSError("Multiple exceptions: [Errno 111] Connect call failed, [Errno 24] Too many open files"), True),
        (OSError("Multiple exceptions: [Errno 111] Connect call failed, [Errno 101] Unreachable"), False),
        (OSError(errno.ECONNREFUSED, "a text that says [Errno 24]"), False),
        (socket.gaierror(socket.EAI_NONAME, "unknown"), False),
        (socket.gaierror(socket.EAI_AGAIN, "try again"), False),
    ],
)
def test_which_errors_are_exhaustion(error: OSError, exhausted: bool) -> None:
    """By the number of the error, by the texts of several in one; a look-up that fails, by trying."""
    assert is_exhaustion(error) is exhausted

    class ConnectingError(Exception):
        os_error = error

    assert is_exhaustion(ConnectingError()) is exhausted
    assert not is_exhaustion(aiohttp.ServerDisconnectedError())


def test_a_look_up_that_fails_for_want_of_a_descriptor() -> None:
    """Resolvers say the name is unknown when they could not open their files or a socket."""
    with no_descriptor_left():
        found = is_exhaustion(socket.gaierror(socket.EAI_AGAIN, "try again"))
    assert found

"""A whole response: the completion of a call that is not streamed."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from together_async.errors import APIConnectionError, APIStatusError, TogetherError
from together_async.models import ChatCompletion, Usage, record_attempts
from together_async.wire.completions import completion_of, plain_completion
from together_async.wire.error_bodies import request_id
from together_async.wire.redaction import scrub

if TYPE_CHECKING:
    from together_async.calls.call import Call
    from together_async.http.response import HTTPResponse


async def read_completion(call: Call) -> ChatCompletion:
    """Returns the completion of a call, after as many attempts as it may make.

    Raises:
        TogetherError: The error of the last attempt.
    """
    response = await call.open()
    while True:
        try:
            return await _read(call, response)
        except (APIConnectionError, APIStatusError) as error:
            # The body broke off, or was an error. The caller has seen nothing of it, so the call may be sent again.
            response = await call.again(error)


async def _read(call: Call, response: HTTPResponse) -> ChatCompletion:
    usage: Usage | None = None
    response.on_close = functools.partial(call.settle, None)
    try:
        body = await response.read_all()
        completion = plain_completion(body) or completion_of(
            body, status=response.status, headers=response.headers, secrets=call.secrets()
        )
        usage = completion.usage
        record_attempts(completion, call.attempts, call.retries)
    except TogetherError as error:
        if isinstance(error, APIStatusError):
            call.record_error_in_body(error.status_code, error.body, response.headers)
        scrub(error, call.secrets())
        error.attempts, error.retries = call.attempts, call.retries
        error.request_id = error.request_id or request_id(response.headers)
        raise
    finally:
        response.on_close = None  # the usage is known here
        response.close()
        call.settle(usage)
    return completion

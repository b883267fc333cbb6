"""The tree of errors: its shape, what each carries, and that all of it survives a process boundary."""

import copy
import inspect
import pickle

import pytest

import together_async
from together_async import errors
from together_async.errors import (
    STATUS_ERRORS,
    APIConnectionError,
    APIResponseValidationError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    ContextLengthError,
    IncompleteStreamError,
    InsufficientQuotaError,
    InternalServerError,
    QueueFullError,
    RateLimitError,
    StreamAPIError,
    StreamConnectionError,
    StreamError,
    StreamProtocolError,
    StreamTimeoutError,
    TogetherError,
    status_error_class,
)
from together_async.wire.codec import decode_completion

# error: its parents, with Python's own where there is one
TREE = {
    "TogetherError": {"Exception"},
    "APIConnectionError": {"TogetherError"},
    "APITimeoutError": {"APIConnectionError", "TimeoutError"},
    "QueueFullError": {"TogetherError"},
    "APIStatusError": {"TogetherError"},
    "BadRequestError": {"APIStatusError"},
    "AuthenticationError": {"APIStatusError"},
    "PaymentRequiredError": {"APIStatusError"},
    "PermissionDeniedError": {"APIStatusError"},
    "ContextLengthError": {"APIStatusError"},
    "NotFoundError": {"APIStatusError"},
    "UnprocessableEntityError": {"APIStatusError"},
    "RateLimitError": {"APIStatusError"},
    "InsufficientQuotaError": {"PaymentRequiredError", "RateLimitError"},
    "InternalServerError": {"APIStatusError"},
    "APIResponseValidationError": {"TogetherError"},
    "StreamError": {"TogetherError"},
    "IncompleteStreamError": {"StreamError"},
    "StreamConnectionError": {"StreamError"},
    "StreamTimeoutError": {"StreamError", "TimeoutError"},
    "StreamAPIError": {"StreamError"},
    "StreamProtocolError": {"StreamError"},
}
STATUSES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    402: "PaymentRequiredError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    422: "UnprocessableEntityError",
    429: "RateLimitError",
    500: "InternalServerError",
    503: "InternalServerError",
    529: "InternalServerError",
    599: "InternalServerError",
    200: "APIStatusError",
    302: "APIStatusError",
    408: "APIStatusError",
    409: "APIStatusError",
    418: "APIStatusError",
}
PARTIAL = decode_completion(
    b'{"id":"c","choices":[{"index":0,"message":{"content":"half"},"finish_reason":null}],"x":1}'
)
STATUS_FACTS = {
    "status_code": 429,
    "headers": {"retry-after": "2"},
    "body": {"error": {"message": "slow"}},
    "retry_after": 2.0,
    "request_id": "r-1",
}
EVERY_ERROR = [
    TogetherError("x", request_id="r-1"),
    APIConnectionError("x"),
    APITimeoutError(phase="connect", seconds=2.5, request_id="r-1"),
    QueueFullError("x"),
    *[
        cls("429: slow", **STATUS_FACTS)
        for cls in {
            *STATUS_ERRORS.values(),
            APIStatusError,
            ContextLengthError,
            InsufficientQuotaError,
            InternalServerError,
        }
    ],
    APIResponseValidationError("x", path="$.choices[0]", body={"a": [1]}, request_id="r-1"),
    *[
        cls("x", partial=PARTIAL, request_id="r-1")
        for cls in (StreamError, IncompleteStreamError, StreamConnectionError, StreamProtocolError)
    ],
    StreamTimeoutError(phase="idle", seconds=60, partial=PARTIAL, request_id="r-1"),
    StreamAPIError("x", partial=PARTIAL, status_code=503, body={"code": 503}, request_id="r-1"),
]
each_error = pytest.mark.parametrize("error", EVERY_ERROR, ids=lambda error: type(error).__name__)


def test_the_tree_is_the_documented_one():
    """Each error has just the parents the table says, and the module defines no other."""
    found = {
        name: {base.__name__ for base in cls.__bases__}
        for name, cls in vars(errors).items()
        if inspect.isclass(cls) and issubclass(cls, BaseException)
    }
    assert found == TREE


def test_every_error_is_tried_here():
    """The list above leaves out none."""
    assert {type(error).__name__ for error in EVERY_ERROR} == set(TREE)


@pytest.mark.parametrize("name", sorted(set(TREE)))
def test_every_error_is_public(name):
    """Whoever catches an error finds it at the top of the package."""
    assert getattr(together_async, name) is getattr(errors, name)
    assert name in together_async.__all__


@pytest.mark.parametrize(("status", "name"), STATUSES.items())
def test_class_for_status(status, name):
    """One class for each status of the table, one for all from 500, the base for the rest."""
    assert status_error_class(status).__name__ == name


@each_error
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_keeps_everything(error, protocol):
    """Type, text, every attribute, attempts and notes cross a process boundary."""
    error = copy.copy(error)
    error.attempts = 3
    error.add_note("while doing this")
    assert_same(pickle.loads(pickle.dumps(error, protocol)), error)  # noqa: S301 - made here


@each_error
def test_copies_keep_everything(error):
    """`copy` and `deepcopy` give the same error."""
    assert_same(copy.copy(error), error)
    assert_same(copy.deepcopy(error), error)


def assert_same(other, error):
    assert type(other) is type(error)
    assert (str(other), repr(other), other.args) == (str(error), repr(error), error.args)
    assert vars(other) == vars(error)
    assert other.attempts == error.attempts
    assert other.request_id == error.request_id


@each_error
def test_every_error_has_attempts_and_request_id(error):
    """One attempt unless recorded otherwise; none where nothing was sent."""
    assert error.attempts == (0 if isinstance(error, QueueFullError) else 1)
    assert error.request_id in (None, "r-1")
    assert isinstance(error, TogetherError)


@pytest.mark.parametrize("phase", ["connect", "first_token", "idle", "total", "queue"])
def test_timeouts_say_what_ran_out_and_what_to_do(phase):
    """The text names phase, seconds and the setting to change; both kinds are a TimeoutError."""
    for error in (
        APITimeoutError(phase=phase, seconds=2.5),
        StreamTimeoutError(phase=phase, seconds=2.5, partial=PARTIAL),
    ):
        assert isinstance(error, TimeoutError)
        assert (error.phase, error.seconds) == (phase, 2.5)
        assert f"{phase} took longer than 2.5 s" in str(error)
        assert f"Timeouts.{phase}" in str(error)


def test_the_partial_completion_is_whole_after_pickling():
    """`.partial` keeps its JSON to the last key."""
    error = pickle.loads(pickle.dumps(IncompleteStreamError("x", partial=PARTIAL)))  # noqa: S301 - made here
    assert error.partial == PARTIAL
    assert error.partial.to_dict() == PARTIAL.to_dict()
    assert error.partial.choices[0].finish_reason is None


def test_status_facts_are_attributes_and_a_copy():
    """The facts are there, and the headers are the error's own."""
    headers = {"a": "b"}
    error = RateLimitError("x", status_code=429, headers=headers, retry_after=1.5)
    headers["a"] = "changed"
    assert (error.status_code, error.headers, error.body, error.retry_after) == (429, {"a": "b"}, None, 1.5)
    assert AuthenticationError("x", status_code=401).headers == {}

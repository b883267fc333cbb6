"""The bytes of the event streams that the servers send. Pure: no clock, no sockets.

Every event has Together's shape and about 320 bytes; `text` repeats `delta.content`, as in the service's own events.
"""

import random

HEAD = (
    b"HTTP/1.1 200 OK\r\n"
    b"Content-Type: text/event-stream;charset=utf-8\r\n"
    b"Transfer-Encoding: chunked\r\n"
    b"x-request-id: bench\r\n\r\n"
)
END = b"0\r\n\r\n"
DONE = b"data: [DONE]\n\n"

_BEFORE = (
    b'data: {"id":"oGxyzAB-2kFHot-9a1b2c3d4e5f6789","object":"chat.completion.chunk","created":1767225600,'
    b'"choices":[{"index":0,"text":"'
)
_BETWEEN = b'","logprobs":null,"finish_reason":null,"seed":null,"delta":{"token_id":374,"role":"assistant","content":"'
_AFTER = b'","tool_calls":null}}],"model":"meta-llama/Llama-3.3-70B-Turbo","usage":null}\n\n'

LAST = (
    b'data: {"id":"oGxyzAB-2kFHot-9a1b2c3d4e5f6789","object":"chat.completion.chunk","created":1767225600,'
    b'"choices":[{"index":0,"text":"","logprobs":null,"finish_reason":"stop","seed":15924764223251450000,'
    b'"delta":{"token_id":128009,"role":"assistant","content":"","tool_calls":null}}],'
    b'"model":"meta-llama/Llama-3.3-70B-Turbo",'
    b'"usage":{"prompt_tokens":11,"completion_tokens":64,"total_tokens":75,"cached_tokens":0}}\n\n'
)

WORDS = (  # noqa: SIM905 - a list would need a hundred quotes
    "the of and to in is that it for was on are as with they at be this from have or by one had not but what all were "
    "when we there can an your which their said if do will each about how up out them then she many some so these would"
).split()


def event(text: bytes) -> bytes:
    """One token as a server-sent event. `text` is already JSON-escaped."""
    return _BEFORE + text + _BETWEEN + text + _AFTER


def http_chunk(data: bytes) -> bytes:
    """`data` as one chunk of a body with chunked transfer encoding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def words(count: int, seed: int) -> list[bytes]:
    """`count` texts as long as real tokens, the same for the same seed."""
    pick = random.Random(seed)
    return [b" " + pick.choice(WORDS).encode() for _ in range(count)]


def block(tokens: int, seed: int, events_per_chunk: int) -> bytes:
    """`tokens` events, several per HTTP chunk, as a busy proxy coalesces them."""
    events = [event(word) for word in words(tokens, seed)]
    return b"".join(
        http_chunk(b"".join(events[at : at + events_per_chunk])) for at in range(0, tokens, events_per_chunk)
    )


def stamped(seconds: float) -> bytes:
    """One token whose text is a time of the monotonic clock, in its own HTTP chunk. The length is always the same."""
    return http_chunk(event(b"%017.6f" % seconds))


def tail() -> bytes:
    """The finish reason and usage, `[DONE]`, and the end of the body."""
    return http_chunk(LAST + DONE) + END

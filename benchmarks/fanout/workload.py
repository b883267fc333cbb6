"""The requests and their answers, which the server and the clients both know. Pure."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.harness import event_bytes

MODEL = "meta-llama/Llama-3.3-70B-Instruct-Turbo"
CHUNKS = 64
"""Of a stream, one per token; the last has no text."""
STREAMED_TEXT = "".join(map(bytes.decode, event_bytes.words(CHUNKS - 1, 1)))
WHOLE_TEXT = (
    "The sky is blue because the molecules of the air scatter the short waves of the light of the sun, which are blue, "
    "far more than the long ones, which are red."
)
WHOLE = json.dumps(
    {
        "id": "oGxyzAB-2kFHot-9a1b2c3d4e5f6789",
        "object": "chat.completion",
        "created": 1767225600,
        "model": MODEL,
        "prompt": [],
        "choices": [
            {
                "finish_reason": "stop",
                "seed": 15924764223251450000,
                "logprobs": None,
                "index": 0,
                "message": {"role": "assistant", "content": WHOLE_TEXT, "tool_calls": []},
            }
        ],
        "usage": {"prompt_tokens": 41, "completion_tokens": 36, "total_tokens": 77, "cached_tokens": 0},
    },
    separators=(",", ":"),
).encode()


@dataclass
class Job:
    """The work of one run, and what became of it.

    Attributes:
        texts: The prompts, one for each request.
        concurrency: How many requests are under way at once.
        stream: Whether the answers are streamed.
        outcomes: The requests by outcome: `ok`, or the name of the error's class.
    """

    base_url: str
    texts: Sequence[str]
    concurrency: int
    stream: bool
    outcomes: Counter[str] = field(default_factory=Counter)

    @property
    def expected(self) -> str:
        return STREAMED_TEXT if self.stream else WHOLE_TEXT

    def note(self, text: str | None) -> None:
        """Counts an answer."""
        self.outcomes["ok" if text == self.expected else "another text"] += 1


def texts(count: int) -> list[str]:
    return [f"Why is the sky blue? Answer in one sentence. {number}" for number in range(count)]

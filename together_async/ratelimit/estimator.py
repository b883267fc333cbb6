"""Estimates how many tokens a request will use. Pure.

The rule: a prompt has a token for every four characters of its messages, and four more for each message; a picture or
another part that is not text counts 1,000. The output is `max_tokens`, for each of `n` choices. Both are multiplied by
factors learned from the `usage` of earlier responses of the same model: the tokens a prompt really had per estimated
token, and the fraction of `max_tokens` that few responses exceed, which is the mean and twice the mean deviation, as
TCP estimates its timeout (RFC 6298). For a request without `max_tokens`, the same is done with the tokens that
responses had, and before the first response 256 are assumed. The excess of an estimate is given back when the response
ends.

The first responses count fully, later ones a twentieth each, so that the factors follow the current work.

A server's counts are believed only within bounds (`believed_counts`): one of them that is nonsense would switch the
limit of tokens off, or stop the model for years.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

CHARACTERS_PER_TOKEN: Final = 4
TOKENS_PER_MESSAGE: Final = 4
TOKENS_PER_PART: Final = 1_000
OUTPUT_TOKENS: Final = 256
DEVIATIONS: Final = 2.0
FIRST_COUNTS: Final = 3
"""The deviation that is guessed from the first sample has the weight of this many samples."""
PROMPT_FACTOR: Final = 20
PROMPT_EXCESS: Final = 100_000
"""A prompt may have `PROMPT_FACTOR` times the tokens of the rule, and `PROMPT_EXCESS` more. Of scripts that a tokenizer
does not know, a character is up to four tokens, which is 16 times the rule; tools, schemas, documents and films are not
in the rule at all."""
OUTPUT_EXCESS: Final = 100_000
"""A choice may have `max_tokens` and this many more: some servers do not count a model's reasoning towards it."""
MOST_OUTPUT: Final = 1_000_000
"""The most tokens of a choice without `max_tokens`; no model writes a longer one."""
_LEAST_WEIGHT: Final = 0.05
_SAMPLES: Final = 20
"""After this many samples, every further one has the least weight."""


class Size(NamedTuple):
    """The size of a request as far as the request shows it; made by `size_of`.

    Attributes:
        prompt: Tokens of the prompt, by the rule alone.
        max_tokens: Tokens of each choice at most; None when the request does not limit them.
        n: How many choices, from 1.
    """

    prompt: int
    max_tokens: int | None
    n: int


def size_of(messages: Sequence[Mapping[str, Any]], max_tokens: int | None, n: int | None) -> Size:
    """Returns the size of a request with these messages; `n` is 1 when it is None."""
    characters = parts = 0
    for message in messages:
        content = message.get("content")
        if isinstance(content, str):
            characters += len(content)
        elif isinstance(content, (list, tuple)):
            for part in content:
                text = part.get("text") if isinstance(part, Mapping) else None
                if isinstance(text, str):
                    characters += len(text)
                else:
                    parts += 1
    prompt = characters // CHARACTERS_PER_TOKEN + TOKENS_PER_MESSAGE * len(messages) + TOKENS_PER_PART * parts
    return Size(prompt, max_tokens, n or 1)


class TokenCounts(NamedTuple):
    """The tokens that a server has counted; None for what it has not.

    Attributes:
        prompt: Tokens of the prompt.
        completion: Tokens of all choices together.
        total: Both together.
    """

    prompt: int | None
    completion: int | None
    total: int | None


NOT_COUNTED: Final = TokenCounts(None, None, None)


def believed_counts(size: Size, prompt: object, completion: object, total: object) -> TokenCounts:
    """Returns a server's counts if they are possible for a request of this size.

    A count out of its range makes all three unbelievable. So does a total of 0, since each prompt has a token; and a
    total below the sum of the other two is replaced by the sum.

    Args:
        size: The request's size.
        prompt: The server's count of the prompt's tokens, of any type; None if it did not come.
        completion: The same, of all choices together.
        total: The same, of both.
    """
    rule, max_tokens, n = size
    most_prompt = rule * PROMPT_FACTOR + PROMPT_EXCESS
    most_output = n * (MOST_OUTPUT if max_tokens is None else max_tokens + OUTPUT_EXCESS)
    if not (
        (prompt is None or (type(prompt) is int and 0 <= prompt <= most_prompt))
        and (completion is None or (type(completion) is int and 0 <= completion <= most_output))
        and (total is None or (type(total) is int and 0 < total <= most_prompt + most_output))
    ):
        return NOT_COUNTED
    if prompt is not None and completion is not None and (total is None or total < prompt + completion):
        total = prompt + completion or None
    return TokenCounts(prompt, completion, total)


class _Mean:
    """A mean, and the mean deviation from it, of which the first samples count fully, later ones a twentieth each."""

    __slots__ = ("deviation", "samples", "value")

    def __init__(self, value: float) -> None:
        self.value = value
        self.deviation = 0.0
        self.samples = 0

    @property
    def likely_most(self) -> float:
        """A value that few samples exceed."""
        return self.value + DEVIATIONS * self.deviation

    def add(self, sample: float) -> None:
        self.samples += 1
        samples, off = self.samples, sample - self.value
        weight = 1 / samples if samples < _SAMPLES else _LEAST_WEIGHT
        if samples == 1:
            self.deviation = sample / 2  # RFC 6298, 2.2
        else:
            slowly = 1 / (samples + FIRST_COUNTS) if samples + FIRST_COUNTS < _SAMPLES else _LEAST_WEIGHT
            self.deviation += slowly * ((off if off > 0 else -off) - self.deviation)
        self.value += weight * off


class Estimator:
    """What was learned about the sizes of one model's requests."""

    __slots__ = ("_fraction", "_output", "_prompt")

    def __init__(self) -> None:
        self._prompt = _Mean(1.0)
        self._fraction = _Mean(1.0)
        self._output = _Mean(OUTPUT_TOKENS)

    def prompt(self, size: Size) -> int:
        """Returns the tokens that the prompt is expected to have."""
        return round(size.prompt * self._prompt.value)

    def total(self, size: Size) -> int:
        """Returns the tokens that prompt and completion are expected to have together."""
        prompt, most, n = size
        output = self._output.likely_most if most is None else most * min(1.0, self._fraction.likely_most)
        return round(prompt * self._prompt.value) + round(output * n)

    def learn(self, size: Size, prompt_tokens: int | None, completion_tokens: int | None) -> None:
        """Learns from the server's count for a request whose response came to its end.

        Args:
            size: The request's size.
            prompt_tokens: The server's count; None when it did not come.
            completion_tokens: The same, of all choices together.
        """
        if prompt_tokens and size.prompt:
            self._prompt.add(prompt_tokens / size.prompt)
        if completion_tokens is not None:
            self._output.add(completion_tokens / size.n)
            if size.max_tokens:
                self._fraction.add(min(1.0, completion_tokens / (size.max_tokens * size.n)))

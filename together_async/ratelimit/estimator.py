"""How many tokens a request will use, before anybody knows. Pure.

The rule: a prompt has a token for every four characters of its messages, and four more for each message; a picture or
another part that is no text counts 1,000. The output is `max_tokens`, for each of `n` choices. Both are multiplied by
what was learned from the `usage` of earlier responses of the same model: how many tokens a prompt really had for the
estimate, and what fraction of `max_tokens` is generated at most, as a rule: the mean and twice the mean deviation, as
TCP estimates how long an answer may take (RFC 6298). Where a request does not say `max_tokens`, the same is taken of
what was generated, and before there is anything, 256. What was reserved too much comes back when the response ends.

The first responses count fully, later ones a twentieth each, so the factors follow what the work of the hour is like.
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
"""The guess at a deviation after the first sample counts like as many more."""
_LEAST_WEIGHT: Final = 0.05
_SAMPLES: Final = 20


class Size(NamedTuple):
    """A request's size as far as it can be seen; made by `size_of`.

    Attributes:
        prompt: Tokens of the prompt, by the rule alone.
        max_tokens: Most tokens of each choice, None when the request does not say.
        n: Choices.
    """

    prompt: int
    max_tokens: int | None
    n: int


def size_of(messages: Sequence[Mapping[str, Any]], max_tokens: int | None, n: int | None) -> Size:
    """Returns what can be seen of a request."""
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


class _Mean:
    """A mean, and the mean deviation from it, of which the first samples count fully, later ones a twentieth each."""

    __slots__ = ("deviation", "samples", "value")

    def __init__(self, value: float) -> None:
        self.value = value
        self.deviation = 0.0
        self.samples = 0

    @property
    def likely_most(self) -> float:
        """What few samples exceed."""
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
    """What was learned of one model."""

    __slots__ = ("_fraction", "_output", "_prompt")

    def __init__(self) -> None:
        self._prompt = _Mean(1.0)
        self._fraction = _Mean(1.0)
        self._output = _Mean(OUTPUT_TOKENS)

    def prompt(self, size: Size) -> int:
        """Returns the tokens that the prompt is expected to have."""
        return round(size.prompt * self._prompt.value)

    def total(self, size: Size) -> int:
        """Returns the tokens that request and answer are expected to use together."""
        prompt, most, n = size
        output = self._output.likely_most if most is None else most * min(1.0, self._fraction.likely_most)
        return round(prompt * self._prompt.value) + round(output * n)

    def learn(self, size: Size, prompt_tokens: int | None, completion_tokens: int | None) -> None:
        """Takes the server's count for a request whose answer came to its end."""
        if prompt_tokens and size.prompt:
            self._prompt.add(prompt_tokens / size.prompt)
        if completion_tokens is not None:
            self._output.add(completion_tokens / size.n)
            if size.max_tokens:
                self._fraction.add(min(1.0, completion_tokens / (size.max_tokens * size.n)))

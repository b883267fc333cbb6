"""Completions: their text, their usage and log probabilities in every server's shape."""

from support.paths import SAMPLES
from together_async.models import Usage
from together_async.wire.codec import decode_chunk, decode_completion
from together_async.wire.sse import EventStreamParser


def test_text_is_the_first_choices_content():
    """A completion without text has the empty string, whatever is missing."""
    assert decode_completion(b'{"choices":[{"message":{"content":"x"}},{"message":{"content":"y"}}]}').text == "x"
    for nothing in (b'{"choices":[]}', b'{"choices":[{}]}', b'{"choices":[{"message":{"content":null}}]}'):
        assert decode_completion(nothing).text == ""


def test_usage_in_both_shapes():
    """Cached tokens are found flat or nested, a flat zero is zero, and without a count it is None."""
    flat = decode_completion((SAMPLES / "together_llama.json").read_bytes()).usage
    nested = decode_completion((SAMPLES / "together_gpt_oss.json").read_bytes()).usage
    assert (flat.cached_prompt_tokens, flat.reasoning_tokens) == (0, None)
    assert (nested.cached_prompt_tokens, nested.reasoning_tokens) == (64, 12)
    assert (Usage().cached_prompt_tokens, Usage().reasoning_tokens) == (None, None)


def test_logprobs_in_both_shapes():
    """Native lists stand side by side, a null of the first token kept; OpenAI's objects are in `content`."""
    native = decode_completion((SAMPLES / "together_llama.json").read_bytes()).choices[0].logprobs
    assert native.tokens == ("The", " sky", " is blue 🌊", "")
    assert native.token_logprobs == (-0.0478, -0.3125, -1.5, -0.25)
    openai = decode_completion((SAMPLES / "openai_logprobs.json").read_bytes()).choices[0].logprobs
    assert [item["logprob"] for item in openai.content] == [-0.01, -0.5, -0.75]
    echoed = decode_completion((SAMPLES / "echo.json").read_bytes()).prompt[0].logprobs
    assert echoed.token_logprobs == (None, -2.5)
    first = EventStreamParser().feed((SAMPLES / "together_llama.sse").read_bytes())[0]
    assert decode_chunk(first.data).choices[0].logprobs == -0.0478


def test_empty_null_and_absent_are_equal_where_they_mean_the_same():
    """Servers send `tool_calls: []`, null or nothing; the message is the same."""
    same = [
        decode_completion(b'{"choices":[{"message":{"role":"assistant","content":"x"%s}}]}' % more)
        for more in (b"", b',"tool_calls":[]', b',"tool_calls":null,"refusal":null', b',"reasoning":""')
    ]
    assert all(value == same[0] and hash(value) == hash(same[0]) for value in same)

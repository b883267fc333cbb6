"""The calls of the limits benchmark."""

from benchmarks.limits.workload import MAX_TOKENS, number_of, orders
from together_async.request import ChatCompletionRequest
from together_async.testing import script


def test_the_calls_of_the_limits_benchmark_are_about_100_tokens_and_the_same_on_both_sides() -> None:
    calls = orders(2000)
    assert calls[:500] == orders(500)
    assert [number_of(call.text) for call in calls] == list(range(2000))
    tokens = [script.prompt_tokens(request(call.text)) + call.reply_tokens for call in calls]
    assert 98 < sum(tokens) / len(tokens) < 102
    assert max(call.reply_tokens for call in calls) < MAX_TOKENS


def request(text: str) -> ChatCompletionRequest:
    return ChatCompletionRequest.from_dict({"model": "m", "messages": [{"role": "user", "content": text}]})

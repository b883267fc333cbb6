"""The calls of the limits benchmark."""

import random

from benchmarks.limits import command, run, workload
from benchmarks.limits.workload import MAX_TOKENS, SETTINGS, number_of, orders
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


def test_every_part_of_the_command_is_measured_and_no_other() -> None:
    parts = {setting.part for setting in SETTINGS.values()}
    assert {*parts, *run.OWN_PARTS} == set(command.PARTS)
    assert not parts & set(run.OWN_PARTS)


def test_stray_429s_come_first_for_a_while_or_by_chance() -> None:
    rng = random.Random(1)
    assert [workload.first_stray(number, 0.0, rng) for number in range(3)] == [True, False, False]
    assert [workload.spell_of_strays(0, seconds, rng) for seconds in (0.0, 4.9, 5.1)] == [True, True, False]
    assert 80 < sum(workload.tenth_stray(0, 0.0, rng) for _ in range(1_000)) < 120
    assert not workload.no_strays(0, 0.0, rng)

"""What becomes of a call is the same on both sides of the connection."""

from typing import Any

from benchmarks.life import plan as plans
from benchmarks.life.leavings import LEAVINGS
from benchmarks.life.readings import READINGS
from together_async.request import ChatCompletionRequest
from together_async.testing import Chance

ALL = [plans.plan(1, number, list(READINGS), list(LEAVINGS)) for number in range(4000)]


def request_of(plan: plans.Plan, **options: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest(messages=plan.message, model=plan.model, **options)


def test_a_plan_depends_on_seed_and_number_alone() -> None:
    assert ALL[7] == plans.plan(1, 7, list(READINGS), list(LEAVINGS))
    assert ALL[7] != plans.plan(2, 7, list(READINGS), list(LEAVINGS))


def test_every_way_of_reading_is_left_in_every_way_and_every_fault_happens() -> None:
    assert {(plan.reading, plan.leaving) for plan in ALL} == {(read, leave) for read in READINGS for leave in LEAVINGS}
    assert {plan.fault for plan in ALL} == {*plans.FAULTS}


def test_a_429_of_the_faults_pauses_no_other_model() -> None:
    assert {plan.model for plan in ALL if plan.fault == "429"} == {*plans.REFUSED}
    assert not any(plan.model in plans.REFUSED for plan in ALL if plan.fault != "429")


def test_the_server_says_what_the_reader_expects() -> None:
    replies = plans.script(request_of(ALL[5], n=2))
    assert [reply.text for reply in replies] == [ALL[5].text(0), ALL[5].text(1)]
    assert plans.script(request_of(ALL[5], response_format={"type": "json_object"})) is None


def test_with_odd_numbers_another_attempt_may_go_well() -> None:
    for plan in ALL[:100]:
        rule = plans.faults(request_of(plan))
        assert isinstance(rule, Chance) is bool(plan.number % 2)

"""The rules of tool calls: which call a piece belongs to, and how pieces add up."""

import pytest

from together_async.models import FunctionDelta, ToolCallDelta
from together_async.wire.tool_calls import MergedToolCalls, ToolCalls


def piece(index=None, id=None, name=None, arguments=None):
    function = FunctionDelta(name=name, arguments=arguments) if name is not None or arguments is not None else None
    return ToolCallDelta(index=index, id=id, function=function)


def add(calls, pieces):
    for each in pieces:
        calls.call_of(each).add(each)
    return calls


CASES = {
    "by index": (
        [piece(0, "a", "f", ""), piece(1, "b", "g", ""), piece(0, arguments="x"), piece(1, arguments="y")],
        [("a", "f", "x"), ("b", "g", "y")],
    ),
    "out of order": ([piece(1, "b", "g", "y"), piece(0, "a", "f", "x")], [("a", "f", "x"), ("b", "g", "y")]),
    "another id at the same index": (
        [piece(0, "a", "f", "x"), piece(0, "b", "g", "y")],
        [("a", "f", "x"), ("b", "g", "y")],
    ),
    "id and name in each piece": ([piece(0, "a", "f", "x"), piece(0, "a", "f", "y")], [("a", "f", "xy")]),
    "without an index the last call": ([piece(None, "a", "f"), piece(arguments="x")], [("a", "f", "x")]),
    "without an index another id": (
        [piece(None, "a", "f", "x"), piece(None, "b", "g", "y")],
        [("a", "f", "x"), ("b", "g", "y")],
    ),
    "without an index another name": (
        [piece(name="f", arguments="x"), piece(name="f", arguments="y")],
        [("", "f", "x"), ("", "f", "y")],
    ),
    "a name again before arguments": ([piece(name="f"), piece(name="f"), piece(arguments="x")], [("", "f", "x")]),
}


@pytest.mark.parametrize(("pieces", "expected"), CASES.values(), ids=CASES)
def test_pieces_add_up_to_calls(pieces, expected):
    """The calls as id, name and arguments; merged first, they add up to the same."""
    for given in (pieces, add(MergedToolCalls(), pieces).deltas()):
        calls = add(ToolCalls(), given).tool_calls()
        assert [(call.id, call.function.name, call.function.arguments) for call in calls] == expected


def test_no_piece_is_no_call():
    """None, which a message without tool calls has."""
    assert ToolCalls().tool_calls() is None
    assert MergedToolCalls().deltas() is None


def test_an_empty_argument_text_is_not_null():
    """A call whose arguments came empty is merged to a piece with empty arguments."""
    (empty,) = add(MergedToolCalls(), [piece(0, "a", "f", "")]).deltas()
    (absent,) = add(MergedToolCalls(), [piece(0, "a", "f")]).deltas()
    assert (empty.function.arguments, absent.function.arguments) == ("", None)
